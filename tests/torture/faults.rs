//! What breaks.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use rand::rngs::StdRng;
use world::Redis;

use crate::fleet::Fleet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A worker is killed, and another one started.
    Kill,
    /// A worker is stopped for longer than its lease, or shorter, and goes on.
    Freeze,
    /// A worker is told to end within a second, and another one started.
    Term,
    /// Redis is killed, and started again.
    RedisKill,
    /// Redis takes nothing for a while.
    RedisFull,
    /// A worker's requests arrive, and their replies do not.
    LostReplies,
    /// A worker's request arrives seconds after it was given up.
    LateRequest,
}

impl Kind {
    pub const ALL: [Self; 7] =
        [Self::Kill, Self::Freeze, Self::Term, Self::RedisKill, Self::RedisFull, Self::LostReplies, Self::LateRequest];
}

/// How often each thing has broken.
pub type Counts = BTreeMap<Kind, usize>;

/// Breaks one thing, and returns when it is whole again.
pub async fn one(kind: Kind, random: &mut StdRng, fleet: &mut Fleet, redis: &Redis) {
    let i = random.random_range(0..fleet.workers.len());
    let worker = &mut fleet.workers[i];
    let mut seconds = |least: f64, most: f64| Duration::from_secs_f64(random.random_range(least..most));
    match kind {
        Kind::Kill => {
            worker.signal("KILL");
            worker.again().await;
        }
        Kind::Freeze => {
            let (log, since) = (worker.log(), SystemTime::now());
            worker.signal("STOP");
            tokio::time::sleep(seconds(1.0, 8.0)).await;
            let until = SystemTime::now();
            worker.signal("CONT");
            worker.freezes.push((log, since, until));
        }
        Kind::Term => {
            worker.signal("TERM");
            worker.again().await;
        }
        Kind::RedisKill => {
            let since = SystemTime::now();
            redis.stop();
            tokio::time::sleep(seconds(0.1, 3.0)).await;
            redis.restart();
            fleet.outages.push((since, SystemTime::now()));
        }
        Kind::RedisFull => {
            limit(redis, "1").await;
            tokio::time::sleep(seconds(0.5, 3.0)).await;
            limit(redis, "0").await;
        }
        Kind::LostReplies => {
            let during = seconds(0.0, 1.5);
            worker.relay.lose_replies(during);
            fleet.outages.push((SystemTime::now(), SystemTime::now() + during));
        }
        Kind::LateRequest => worker.relay.deliver_late(seconds(1.5, 6.0)),
    }
}

async fn limit(redis: &Redis, bytes: &str) {
    let mut connection = redis.connection().await;
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).exec_async(&mut connection).await.unwrap();
}
