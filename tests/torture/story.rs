//! One run: pushes jobs, causes faults, repairs everything, and waits until the queues are empty.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::Script;
use redis::aio::MultiplexedConnection;
use world::Redis;

use crate::Verdict;
use crate::audit::Ending;
use crate::culprits;
use crate::faults::{self, Counts, Kind};
use crate::fleet::{Fleet, USER};
use crate::jobs::{Deed, Plan, REFUSED};
use crate::look;
use crate::mutants::Without;
use crate::relay::Relay;
use crate::samples::Samples;
use crate::scripts::Scripts;
use crate::stalls::Stalls;

/// When no fault happens and no job ends for this long, the rest is stuck. The longest legitimate wait is that for a
/// second retry.
const PATIENCE: Duration = Duration::from_secs(90);
/// The same for a mutant, which the test expects to get stuck.
const PATIENCE_WITH_MUTANT: Duration = Duration::from_secs(25);

const N_WORKERS: usize = 3;

pub struct Story {
    /// How long the story pushes jobs and causes faults.
    pub duration: Duration,
    pub n_jobs: usize,
    /// How many of a hundred jobs outlast every fault.
    pub n_long: u32,
    pub n_faults: usize,
    /// The number of jobs that take their worker down on every run.
    pub n_culprits: usize,
    /// Whether there are texts that are not jobs, and results that Redis refuses for a while.
    pub has_strays: bool,
    /// Further settings of the workers. With [`crate::jobs::SHARED`], jobs have accounts and branches.
    pub settings: &'static str,
    pub seed: u64,
    pub kinds: Vec<Kind>,
    /// The commands that [`Kind::RefusedCommand`] may refuse.
    pub commands: &'static [&'static str],
    /// `appendfsync`.
    pub fsync: &'static str,
    pub mutant: Option<Without>,
}

/// The verdict about a run, and its counts.
pub struct Told {
    pub verdict: Verdict,
    pub counts: Vec<String>,
}

impl Story {
    /// Runs the story to its end. Keeps the logs when it fails with unchanged custody.
    pub async fn tell(&self, judge: fn(&Ending) -> Verdict) -> Told {
        let mut arguments = vec!["--appendonly", "yes", "--appendfsync", self.fsync, "--user"];
        arguments.extend(USER);
        let redis = Redis::start_with(&arguments);
        let mut fleet = self.fleet(&redis).await;
        let (plan, samples, started) = (Plan::of(self), Samples::default(), Instant::now());
        let stalls = Stalls::watch();
        let work = async {
            let ((), counts) =
                tokio::join!(push_all(self.duration, &plan, &redis), self.break_all(&plan, &redis, &fleet));
            let whole = started.elapsed();
            (counts, self.run_dry(&fleet, &redis).await, [whole, started.elapsed()])
        };
        let (counts, stuck, [whole, dry]) = tokio::select! {
            done = work => done,
            () = culprits::kill(&plan.culprits, self.seed, &fleet, &redis) => unreachable!("it goes on"),
            () = samples.take(&fleet, &redis) => unreachable!("it goes on"),
        };
        stalls.end().into_iter().for_each(|(since, until)| fleet.was_out(since, until));
        let ending = Ending::read(&redis, &fleet, plan, stuck, &samples).await;
        let verdict = judge(&ending);
        let mut counts = ending.counts(&counts, [whole, dry, started.elapsed()]);
        if verdict.is_err() && self.mutant.is_none() {
            counts.push(format!("the logs stay in {}", fleet.keep_logs().display()));
        }
        Told { verdict, counts }
    }

    async fn fleet(&self, redis: &Redis) -> Fleet {
        let scripts = Scripts::load(redis).await;
        let rewrite = match self.mutant {
            Some(mutant) => Some(mutant.rewrite(redis).await),
            None => None,
        };
        let mut relays = Vec::new();
        for _ in 0..N_WORKERS {
            relays.push(Relay::to(redis.port(), scripts.clone(), rewrite.clone()).await);
        }
        Fleet::start(relays, self.settings)
    }

    /// Causes one fault after another at the times of the seed, and repairs everything at the end.
    async fn break_all(&self, plan: &Plan, redis: &Redis, fleet: &Fleet) -> Counts {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0xfa);
        let started = Instant::now();
        let mut at: Vec<f64> = (0..self.n_faults).map(|_| random.random_range(0.02..1.0)).collect();
        at.sort_by(f64::total_cmp);
        let mut counts = Counts::new();
        for fraction in at {
            let due = self.duration.mul_f64(fraction);
            tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
            let kind = self.kinds[random.random_range(0..self.kinds.len())];
            faults::one(kind, self.commands, &mut random, plan, fleet, redis).await;
            *counts.entry(kind).or_default() += 1;
        }
        for relay in &fleet.relays {
            relay.is_whole().await;
        }
        counts
    }

    /// Waits until nothing is queued, due or in flight, and no dead worker has keys. When no more jobs end, returns the
    /// rest.
    async fn run_dry(&self, fleet: &Fleet, redis: &Redis) -> Vec<String> {
        let patience = if self.mutant.is_none() { PATIENCE } else { PATIENCE_WITH_MUTANT };
        let (mut last, mut since) = (None, Instant::now());
        loop {
            let n_left = n_entries(redis, &["queue:default", "queue:low", "retry"], "sidebake:inflight:*").await;
            if n_left == 0 {
                break;
            }
            let n_ended = (redis.get("stat:processed").await, n_entries(redis, &["dead"], "").await);
            if last.as_ref() != Some(&n_ended) {
                (last, since) = (Some(n_ended), Instant::now());
            }
            if since.elapsed() > patience {
                return left(redis).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let dry = Instant::now();
        while redis.smembers("sidebake:owners").await.len() != fleet.n_workers() {
            if dry.elapsed() > Duration::from_secs(20) {
                return vec![format!("owners {:?}", redis.smembers("sidebake:owners").await)];
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Vec::new()
    }
}

/// Performs every planned action once, and tries it as often as necessary.
async fn push_all(duration: Duration, plan: &Plan, redis: &Redis) {
    let (started, mut connection) = (Instant::now(), None);
    for (at, deed) in &plan.deeds {
        let due = duration.mul_f64(*at);
        tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
        loop {
            if connection.is_none() {
                let client = redis::Client::open(redis.url()).unwrap();
                connection = client.get_multiplexed_async_connection().await.ok();
            }
            if let Some(connection) = &mut connection
                && let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(2), act(deed, connection)).await
            {
                break;
            }
            connection = None;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn act(deed: &Deed, connection: &mut MultiplexedConnection) -> redis::RedisResult<()> {
    // The same script records the push, so that a second attempt pushes nothing.
    const PUSH: &str =
        "if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then redis.call('LPUSH', KEYS[2], ARGV[2]) end return 1";
    const ACCEPT: &str = "if redis.call('TYPE', KEYS[1]).ok == 'string' then redis.call('DEL', KEYS[1]) end return 1";
    let refused = format!("queue:{REFUSED}");
    match deed {
        Deed::Push { queue, id, text } => {
            let (script, list) = (Script::new(PUSH), format!("queue:{queue}"));
            script.key("torture:pushed").key(list).arg(id).arg(text).invoke_async(connection).await
        }
        Deed::Refuse => redis::cmd("SET").arg(refused).arg("not a list").exec_async(connection).await,
        Deed::Accept => Script::new(ACCEPT).key(refused).invoke_async(connection).await,
    }
}

/// How many entries these lists and sets have, and the hashes that match a pattern.
async fn n_entries(redis: &Redis, keys: &[&str], pattern: &str) -> usize {
    const COUNT: &str = "local n = 0
        for _, key in ipairs(KEYS) do
            local kind = redis.call('TYPE', key).ok
            n = n + (kind == 'list' and redis.call('LLEN', key) or kind == 'zset' and redis.call('ZCARD', key) or 0)
        end
        for _, key in ipairs(redis.call('KEYS', ARGV[1])) do n = n + redis.call('HLEN', key) end
        return n";
    let script = Script::new(COUNT);
    script.key(keys).arg(pattern).invoke_async(&mut redis.connection().await).await.unwrap()
}

/// The entries that should not exist, each with its beginning.
pub async fn left(redis: &Redis) -> Vec<String> {
    let mut left = Vec::new();
    for queue in ["default", "low"] {
        left.extend(redis.queue(queue).await.into_iter().map(|job| format!("queue:{queue} {job}")));
    }
    let retry: Vec<Vec<u8>> =
        look::ask(redis, redis::cmd("ZRANGE").arg(&["retry", "0", "-1"])).await.unwrap_or_default();
    left.extend(retry.iter().map(|job| format!("retry {}", String::from_utf8_lossy(job))));
    for key in redis.keys("sidebake:inflight:*").await {
        let lease = redis.get(&key.replace(":inflight:", ":lease:")).await;
        let entries: Vec<(Vec<u8>, Vec<u8>)> =
            look::ask(redis, redis::cmd("HGETALL").arg(&key)).await.unwrap_or_default();
        for (token, job) in entries {
            let [token, job] = [&token, &job].map(|text| String::from_utf8_lossy(text));
            left.push(format!("{key} (lease {lease:?}) {token} {job}"));
        }
    }
    left.into_iter().map(|what| what.chars().take(300).collect()).collect()
}
