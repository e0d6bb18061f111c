//! The faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;
use world::Redis;

use crate::fleet::{Fleet, LEASE_S, USER};
use crate::jobs::Plan;
use crate::look;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Kills a worker and starts another.
    Kill,
    /// Stops a worker for a time longer or shorter than its lease, then continues it.
    Freeze,
    /// Terminates a worker with one second of grace and starts another. Prefers a worker that holds a refused result.
    Term,
    /// Kills Redis and starts it again.
    RedisKill,
    /// Makes Redis refuse all writes for a while.
    RedisFull,
    /// Delivers a worker's requests but not their replies.
    LostReplies,
    /// Delivers a worker's request seconds after the worker gave it up.
    LateRequest,
    /// Delivers a renewal and a turn after their worker has lost its lease and its jobs.
    HeldRenewal,
    /// Makes Redis refuse one command from the workers for a while.
    RefusedCommand,
}

/// Every command that a script must run before it removes an entry, because otherwise a failure would lose the entry.
pub const COMMANDS: [&str; 16] = [
    "HSET", "LPUSH", "RPUSH", "SADD", "ZADD", "ZREM", "HDEL", "RPOP", "SET", "GET", "HGET", "HMGET", "PEXPIRE", "SREM",
    "UNLINK", "EXPIRE",
];

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Kill,
        Self::Freeze,
        Self::Term,
        Self::RedisKill,
        Self::RedisFull,
        Self::LostReplies,
        Self::LateRequest,
        Self::HeldRenewal,
        Self::RefusedCommand,
    ];

    /// Whether the worker's jobs in flight appear to have crashed it.
    fn is_crash(self) -> bool {
        matches!(self, Self::Kill | Self::Freeze | Self::HeldRenewal)
    }
}

/// How many times each fault happened.
pub type Counts = BTreeMap<Kind, usize>;

/// Causes one fault, and returns when it is repaired, except for requests that the network still holds.
pub async fn one(kind: Kind, commands: &[&str], random: &mut StdRng, plan: &Plan, fleet: &Fleet, redis: &Redis) {
    let i = victim(kind, random.random_range(0..fleet.n_workers()), plan, fleet, redis).await;
    let mut seconds = |least: f64, most: f64| Duration::from_secs_f64(random.random_range(least..most));
    if kind.is_crash() {
        fleet.n_crashes.fetch_add(1, Ordering::Relaxed);
    }
    let since = SystemTime::now();
    match kind {
        Kind::Kill => {
            let mut worker = fleet.worker(i).await;
            worker.signal(Signal::KILL);
            fleet.again(i, &mut worker).await;
        }
        Kind::Freeze => {
            let mut worker = fleet.worker(i).await;
            let since = SystemTime::now();
            worker.signal(Signal::STOP);
            tokio::time::sleep(seconds(1.0, 8.0)).await;
            let until = SystemTime::now();
            worker.signal(Signal::CONT);
            let log = worker.log();
            worker.freezes.push((log, (since, until)));
        }
        Kind::Term => {
            let mut worker = fleet.worker(i).await;
            fleet.n_stops.fetch_add(1, Ordering::Relaxed);
            worker.signal(Signal::TERM);
            fleet.again(i, &mut worker).await;
        }
        Kind::RedisKill => {
            redis.stop();
            tokio::time::sleep(seconds(0.1, 3.0)).await;
            redis.restart();
            fleet.was_out(since, SystemTime::now());
        }
        Kind::RedisFull => {
            configure(redis, "CONFIG", &["SET", "maxmemory", "1"]).await;
            tokio::time::sleep(seconds(0.5, 3.0)).await;
            configure(redis, "CONFIG", &["SET", "maxmemory", "0"]).await;
        }
        Kind::LostReplies => {
            let during = seconds(0.0, 1.5);
            fleet.relays[i].lose_replies(during);
            fleet.was_out(since, since + during);
        }
        Kind::LateRequest => fleet.relays[i].deliver_late(seconds(1.5, 6.0)),
        // Until other workers have its jobs: one lease, half a lease for a suspect, and one or two checks of the
        // owners.
        Kind::HeldRenewal => fleet.relays[i].hold(Duration::from_secs(LEASE_S).mul_f64(1.8) + seconds(0.0, 2.0)),
        Kind::RefusedCommand => {
            let during = seconds(0.3, 4.0);
            let command = commands[random.random_range(0..commands.len())];
            if command == "UNLINK" {
                fleet.n_unlinks_refused.fetch_add(1, Ordering::Relaxed);
            }
            configure(redis, "ACL", &["SETUSER", USER[0], &format!("-{command}")]).await;
            tokio::time::sleep(during).await;
            configure(redis, "ACL", &["SETUSER", USER[0], &format!("+{command}")]).await;
            fleet.was_out(since, SystemTime::now());
        }
    }
}

/// The worker to break. A crash never hits a worker with a single healthy job, because that job would look like a
/// culprit.
async fn victim(kind: Kind, drawn: usize, plan: &Plan, fleet: &Fleet, redis: &Redis) -> usize {
    if !kind.is_crash() && kind != Kind::Term {
        return drawn;
    }
    let inflight = look::inflight(redis).await;
    let entries = |i: usize| inflight.iter().find(|(pid, _)| *pid == fleet.pid(i)).map(|(_, entries)| &entries[..]);
    let has_one_of = |i: &usize, jids: &BTreeSet<String>| {
        entries(*i).unwrap_or_default().iter().any(|entry| jids.iter().any(|jid| look::is_of(entry, jid)))
    };
    let n = fleet.n_workers();
    let mut candidates = (drawn..drawn + n).map(|i| i % n);
    let chosen = if kind == Kind::Term {
        candidates.find(|i| has_one_of(i, &plan.refused))
    } else {
        candidates.find(|i| entries(*i).is_none_or(|entries| entries.len() != 1) || has_one_of(i, &plan.culprits))
    };
    chosen.unwrap_or(drawn)
}

async fn configure(redis: &Redis, command: &str, arguments: &[&str]) {
    let mut connection = redis.connection().await;
    redis::cmd(command).arg(arguments).exec_async(&mut connection).await.unwrap();
}
