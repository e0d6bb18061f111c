//! What waits in the queues and runs in the fleet: the numbers for `/metrics` and `/scale`.
//!
//! One worker reads them and keeps them in Redis for the others, so that a scrape of the whole fleet costs Redis little more than a
//! scrape of one worker. Nothing is read unless it is asked for, and a reading is whole or it is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::sleep;

use super::line::{self, Rule, Wait};
use super::part::{Extent, Part};
use super::payload::Payload;
use super::{Identity, keys, tenant, waiting};
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError};
use crate::settings::{Jobs, Limits, Tenants};
use crate::{bounds, hex, json, metric};

/// How long all workers share one reading.
const FRESH: Duration = Duration::from_secs(10);

/// How long and how often to wait for another worker that is reading.
const PAUSE: Duration = Duration::from_millis(100);
const N_PAUSES: usize = 10;

/// Jobs at the head of a queue that are looked at, within the bytes of a [`Part`].
const FIRST: usize = 1000;

/// Life of the lock of the process that reads the first jobs.
const LOCKED: Duration = Duration::from_secs(5);

/// Sidekiq's sorted sets.
const SETS: [&str; 3] = [keys::RETRY, keys::SCHEDULE, keys::DEAD];

/// What waits and what runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Load {
    /// By queue.
    pub queues: BTreeMap<String, QueueLoad>,
    /// Jobs in each sorted set.
    pub sets: BTreeMap<String, u64>,
    /// Workers with these queues.
    pub n_workers: u64,
    /// Their slots.
    pub n_slots: u64,
    /// Jobs that they run.
    pub n_running: u64,
    /// Running builds on the shards of each builder.
    pub running_on_shards: BTreeMap<String, u64>,
}

/// What waits in a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct QueueLoad {
    /// All jobs.
    pub n_jobs: u64,
    /// When the next one was enqueued, in milliseconds since 1970.
    pub oldest_ms: Option<u64>,
    /// Whether no worker fetches from it.
    pub is_paused: bool,
    /// How many of the first jobs were looked at.
    pub n_first: u64,
    /// Of these: how many each account has, of the accounts with the most.
    pub accounts: BTreeMap<String, u64>,
    /// Of these: how many are for each builder with shards.
    pub for_shards: BTreeMap<String, u64>,
    /// Of these: how many no worker may run now.
    pub n_blocked: u64,
}

impl QueueLoad {
    /// Jobs that a free slot could run, as far as the first ones tell.
    pub fn n_ready(&self) -> u64 {
        if self.is_paused { 0 } else { self.n_jobs.saturating_sub(self.part(self.n_jobs, self.n_blocked)) }
    }

    /// As large a part of `n` as `n_some` is of the first jobs.
    fn part(&self, n: u64, n_some: u64) -> u64 {
        n.saturating_mul(n_some) / self.n_first.max(1)
    }
}

impl Load {
    /// Jobs that free slots could run.
    pub fn n_ready(&self) -> u64 {
        self.queues.values().map(QueueLoad::n_ready).sum()
    }

    /// Workers that all running and ready jobs need, with `n_slots` each.
    pub fn wanted_workers(&self, n_slots: u64) -> u64 {
        (self.n_running + self.n_ready()).div_ceil(n_slots.max(1))
    }

    /// Shards that the builds of a builder need, with `n_builds` on each. Extrapolates from the first jobs of a queue.
    pub fn wanted_shards(&self, builder: &str, n_builds: u64) -> u64 {
        let waiting =
            |queue: &QueueLoad| queue.part(queue.n_ready(), queue.for_shards.get(builder).copied().unwrap_or(0));
        let n_waiting: u64 = self.queues.values().map(waiting).sum();
        (self.running_on_shards.get(builder).copied().unwrap_or(0) + n_waiting).div_ceil(n_builds.max(1))
    }
}

/// Reads the load for a worker.
#[derive(Debug)]
pub struct Loads {
    /// A connection.
    pub redis: Redis,
    /// This process.
    pub identity: Arc<Identity>,
    /// How jobs are read.
    pub jobs: Jobs,
    /// How they share the slots.
    pub tenants: Tenants,
    /// The limits of other workers.
    pub limits: watch::Receiver<Vec<Limits>>,
    /// The queues of this process.
    pub queues: Vec<String>,
    /// The builders with shards.
    pub sharded: BTreeSet<String>,
}

/// The fields `info`, `concurrency` and `quiet` of a process.
type Shown = (Option<Vec<u8>>, Option<u64>, Option<String>);

#[derive(Deserialize)]
struct Info {
    queues: BTreeSet<String>,
}

impl Loads {
    /// What waits and runs, read by this or by another worker in the last seconds. `None` when another one takes long to read it.
    pub async fn read(&self) -> Result<Option<Load>, RedisError> {
        let names: BTreeSet<&str> = self.queues.iter().map(String::as_str).collect();
        let digest = Sha256::digest(serde_json::to_vec(&names).expect("names are JSON"));
        let digest = hex::encode(&digest[..8]);
        let key = keys::load(&digest);
        for _ in 0..N_PAUSES {
            let known: Option<Vec<u8>> = self.redis.query(redis::cmd("GET").arg(&key)).await?;
            // A value of another version is ignored.
            if let Some(load) = known.and_then(|text| json::read(&text).ok()) {
                return Ok(Some(load));
            }
            if let Some(load) = self.look(&digest).await? {
                let text = serde_json::to_string(&load).expect("numbers are JSON");
                let mut keep = redis::cmd("SET");
                keep.arg(key).arg(text).arg("EX").arg(FRESH.as_secs());
                // A Redis that is full does not keep it. Then each worker reads for itself.
                let _ = self.redis.query::<()>(&keep).await;
                return Ok(Some(load));
            }
            sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// Reads everything. `None` when another worker is reading.
    async fn look(&self, digest: &str) -> Result<Option<Load>, RedisError> {
        let mut load = self.fleet().await?;
        let paused = waiting::paused(&self.redis).await?;
        let mut counts = redis::pipe();
        let queues = self.queues.iter().map(|queue| ("LLEN", keys::queue(queue)));
        let sets = SETS.iter().map(|set| ("ZCARD", (*set).to_owned()));
        let shards = self.sharded.iter().map(|builder| ("HLEN", keys::shards(builder)));
        for (command, key) in queues.chain(sets).chain(shards) {
            counts.cmd(command).arg(key);
        }
        let counts: Vec<u64> = self.redis.pipeline(&counts).await?;
        let (lengths, counts) = counts.split_at(self.queues.len());
        let (sets, on_shards) = counts.split_at(SETS.len());
        load.sets = SETS.into_iter().map(str::to_owned).zip(sets.iter().copied()).collect();
        load.running_on_shards = self.sharded.iter().cloned().zip(on_shards.iter().copied()).collect();
        for (queue, n_jobs) in self.queues.iter().zip(lengths) {
            let is_paused = paused.contains(queue);
            let first = if *n_jobs == 0 {
                QueueLoad::default()
            } else if let Some(first) = self.first(queue, digest, is_paused).await? {
                first
            } else {
                return Ok(None);
            };
            load.queues.insert(queue.clone(), QueueLoad { n_jobs: *n_jobs, is_paused, ..first });
        }
        Ok(Some(load))
    }

    /// The workers with these queues, and what they run.
    async fn fleet(&self) -> Result<Load, RedisError> {
        let owners: Vec<String> = self.redis.query(redis::cmd("SMEMBERS").arg(keys::OWNERS)).await?;
        let mut load = Load::default();
        if owners.is_empty() {
            return Ok(load);
        }
        let mut asked = redis::pipe();
        asked.ignore_errors();
        for owner in &owners {
            asked.cmd("HMGET").arg(owner).arg(&["info", "concurrency", "quiet"]).cmd("HLEN").arg(keys::inflight(owner));
        }
        let answers: Vec<RedisResult<redis::Value>> = self.redis.pipeline(&asked).await?;
        let own: BTreeSet<&str> = self.queues.iter().map(String::as_str).collect();
        for answer in answers.chunks(2) {
            let [Ok(shown), Ok(n_running)] = answer else { continue };
            let shown: Result<Shown, _> = redis::from_redis_value(shown.clone());
            // A dead worker shows nothing, and its jobs wait again soon. A quiet one is about to end.
            let Ok((Some(info), Some(n_slots), quiet)) = shown else { continue };
            if quiet.as_deref() == Some("true") {
                continue;
            }
            let queues = json::read::<Info>(&info).map(|info| info.queues).unwrap_or_default();
            if queues.iter().map(String::as_str).eq(own.iter().copied()) {
                load.n_workers += 1;
                load.n_slots += n_slots;
                load.n_running += redis::from_redis_value::<u64>(n_running.clone()).unwrap_or(0);
            }
        }
        Ok(load)
    }

    /// What the first jobs of a queue say. `None` when another worker reads them.
    async fn first(&self, queue: &str, digest: &str, is_paused: bool) -> Result<Option<QueueLoad>, RedisError> {
        let lock = keys::load_lock(digest, queue);
        let extent = Extent { n_before: 0, n: FIRST, longest: bounds::WINDOW, locked: LOCKED };
        let Some(part) = Part::read(&self.redis, &self.identity, queue, &lock, extent).await? else { return Ok(None) };
        let Some(first) = part.texts.first() else { return Ok(Some(QueueLoad::default())) };
        let enqueued = Payload::parse_shared(first).ok().and_then(|payload| payload.enqueued_at());
        let tenants = Tenants { others: self.limits.borrow().clone(), ..self.tenants.clone() };
        let jobs: Vec<_> = part.texts.iter().map(|text| Arc::new(tenant::read(text, &self.jobs, &tenants))).collect();
        let standing = line::standing(&self.redis, &jobs).await?;
        let waits = line::waits(&jobs, &standing, Rule::of(is_paused, &self.jobs, &tenants));
        let (mut accounts, mut for_shards) = (BTreeMap::new(), BTreeMap::new());
        for job in &jobs {
            *accounts.entry(job.claim.tenant.clone()).or_default() += 1;
            let builder = tenants.builder_of(&job.claim.tenant, job.builder.as_deref());
            if let Some(builder) = builder.filter(|builder| self.sharded.contains(*builder)) {
                *for_shards.entry(builder.to_owned()).or_default() += 1;
            }
        }
        Ok(Some(QueueLoad {
            oldest_ms: enqueued.map(Epoch::as_millis),
            n_first: jobs.len() as u64,
            accounts: metric::top(accounts),
            for_shards,
            n_blocked: waits.iter().filter(|wait| matches!(wait, Wait::Room { .. } | Wait::Newer)).count() as u64,
            ..QueueLoad::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_and_shards_are_wanted_for_what_runs_and_what_may_run() {
        let for_shards = [("a".to_owned(), 30)];
        let queue =
            QueueLoad { n_jobs: 30, n_first: 30, n_blocked: 9, for_shards: for_shards.into(), ..QueueLoad::default() };
        let paused = QueueLoad { n_jobs: 1000, is_paused: true, ..QueueLoad::default() };
        let queues = [("default".to_owned(), queue), ("later".to_owned(), paused)].into();
        let load = Load { queues, n_running: 10, running_on_shards: [("a".into(), 5)].into(), ..Load::default() };
        assert_eq!((load.n_ready(), load.wanted_workers(10), load.wanted_workers(0)), (21, 4, 31));
        assert_eq!((load.wanted_shards("a", 4), load.wanted_shards("b", 4)), (7, 0));
        assert_eq!(Load::default().wanted_workers(10), 0);
    }

    #[test]
    fn the_first_jobs_of_a_long_queue_stand_for_the_others() {
        let queue =
            QueueLoad { n_jobs: 10_000, n_first: 64, for_shards: [("a".into(), 32)].into(), ..QueueLoad::default() };
        let blocked = QueueLoad { n_jobs: 100_000, n_first: 1000, n_blocked: 1000, ..QueueLoad::default() };
        let load =
            Load { queues: [("default".to_owned(), queue), ("flood".to_owned(), blocked)].into(), ..Load::default() };
        assert_eq!((load.wanted_shards("a", 10), load.n_ready()), (500, 10_000));
        let absurd = QueueLoad { n_jobs: u64::MAX, n_first: 1, n_blocked: 2, ..QueueLoad::default() };
        assert_eq!(absurd.n_ready(), 0);
    }
}
