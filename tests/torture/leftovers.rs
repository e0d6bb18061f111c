//! Leftovers of a story in Redis and on the disk, after the end of all its workers.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use world::Redis;

use crate::fleet::{CONCURRENCY, Fleet};
use crate::jobs::Plan;
use crate::look;
use crate::samples::Samples;
use crate::strays::Dead;

/// The keys that one worker's connection may track: its queues, its own keys, and the keys of all workers.
const TRACKED_BY_WORKER: u64 = 20;

/// More than all accounts of a story, and classes of strays.
const N_ACCOUNTS: usize = 100;

/// Everything that should not exist, in sentences.
pub async fn find(redis: &Redis, fleet: &Fleet, samples: &Samples) -> Vec<String> {
    let mut wrong = Vec::new();
    wrong.extend(of_progress(redis, fleet).await);
    for key in redis.keys("sidebake:*").await {
        wrong.extend(growth(redis, fleet, &key).await);
    }
    let n_tracked = fleet.n_starts().await as u64 * TRACKED_BY_WORKER;
    if samples.n_tracked_keys() > n_tracked {
        wrong.push(format!("tracking_total_keys was {}, more than {n_tracked}", samples.n_tracked_keys()));
    }
    let run = fleet.state_directory().join("run");
    for entry in std::fs::read_dir(run).into_iter().flatten().flatten() {
        wrong.push(format!("{} remains in the state directory", entry.path().display()));
    }
    wrong
}

/// Checks the hashes of progress. One that Redis refused to remove must expire; no other may remain.
async fn of_progress(redis: &Redis, fleet: &Fleet) -> Vec<String> {
    let (mut wrong, mut expiring) = (Vec::new(), Vec::new());
    for key in redis.keys("it-*").await {
        let ttl_s: i64 = look::ask(redis, redis::cmd("TTL").arg(&key)).await.unwrap_or(-1);
        if ttl_s < 0 {
            wrong.push(format!("{key} remains after the end of its job, and does not expire"));
        } else {
            expiring.push(key);
        }
    }
    let most = fleet.n_unlinks_refused.load(Ordering::Relaxed) * fleet.n_workers() * CONCURRENCY;
    if expiring.len() > most {
        wrong.push(format!("{expiring:?} remain after the end of their jobs, more than {most}"));
    }
    wrong
}

/// Checks one of sidebake's keys. Only keys that expire soon may remain, logs of builds, and counts of crashes and stops.
async fn growth(redis: &Redis, fleet: &Fleet, key: &str) -> Option<String> {
    let n_jobs = |n_times: usize| n_times * CONCURRENCY;
    let most = match key {
        "sidebake:recoveries" => {
            n_jobs(fleet.n_crashes.load(Ordering::Relaxed) + fleet.n_stops.load(Ordering::Relaxed))
        }
        // One field for each account, and one for the clock.
        "sidebake:shares" => N_ACCOUNTS,
        "sidebake:limits" if expires(redis, key).await => return None,
        _ if (key.starts_with("sidebake:newest:") || key.starts_with("sidebake:twin:"))
            && expires(redis, key).await =>
        {
            return None;
        }
        "sidebake:interruptions" => n_jobs(fleet.n_stops.load(Ordering::Relaxed)),
        _ if ends_soon(redis, key).await || is_log(redis, key).await => return None,
        _ => return Some(format!("{key} is left")),
    };
    let n: usize = look::ask(redis, redis::cmd("HLEN").arg(key)).await.unwrap_or(0);
    (n > most).then(|| format!("{key} has {n} fields, more than {most}"))
}

/// Whether a key is a string that expires within a minute.
async fn ends_soon(redis: &Redis, key: &str) -> bool {
    let kind: String = look::ask(redis, redis::cmd("TYPE").arg(key)).await.unwrap_or_default();
    let ttl_s: i64 = look::ask(redis, redis::cmd("TTL").arg(key)).await.unwrap_or(-1);
    // The key may have expired meanwhile.
    kind == "none" || kind == "string" && (-2..=60).contains(&ttl_s) && ttl_s != -1
}

/// Whether a key expires at some time.
async fn expires(redis: &Redis, key: &str) -> bool {
    look::ask::<i64>(redis, redis::cmd("TTL").arg(key)).await.unwrap_or(-1) > 0
}

/// Whether a key is of the log of an ended build: it has a TTL.
async fn is_log(redis: &Redis, key: &str) -> bool {
    let is_named = key.starts_with("sidebake:build:") && (key.ends_with(":events") || key.ends_with(":log"));
    let ttl_s: i64 = look::ask(redis, redis::cmd("TTL").arg(key)).await.unwrap_or(-1);
    is_named && ttl_s != -1
}

/// Checks the entries of the dead set.
pub fn of_dead(dead: &[Dead], plan: &Plan) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut lacking: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for entry in dead {
        if let Some(lack) = entry.lacks() {
            lacking.entry(lack).or_default().push(entry.shown());
        }
    }
    for (lack, entries) in lacking {
        wrong.push(format!("{} entries of the dead set have no {lack}, such as {:?}", entries.len(), entries[0]));
    }
    for stray in &plan.strays {
        let found: Vec<&Dead> = dead.iter().filter(|dead| stray.is_in(dead)).collect();
        match &found[..] {
            [] => wrong.push(format!("a stray was lost: {}", stray.what)),
            [dead] if stray.is_whole_in(dead) => {}
            [dead] => wrong.push(format!("a stray is not whole: {}: {:?}", stray.what, dead.shown())),
            _ => wrong.push(format!("a stray is {} times in the dead set: {}", found.len(), stray.what)),
        }
    }
    wrong
}
