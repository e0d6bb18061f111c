//! Samples Redis and the workers all the time. Detects states that must never occur, and values that must not grow with
//! the number of jobs.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use world::Redis;

use crate::fleet::Fleet;
use crate::look;

/// Ends the token of a job that fills no slot.
const BESIDE: &str = ".65535";

const LOOK: Duration = Duration::from_millis(150);

/// An in-flight hash, its field, and the value.
type Entry = (String, Vec<u8>, Vec<u8>);

/// Every entry of every in-flight hash, at one moment.
const INFLIGHT: &str = "local all = {}
    for _, key in ipairs(redis.call('KEYS', 'sidebake:inflight:*')) do
        local fields = redis.call('HGETALL', key)
        for i = 1, #fields, 2 do all[#all + 1] = { key, fields[i], fields[i + 1] } end
    end
    return all";

/// The samples.
#[derive(Debug, Default)]
pub struct Samples {
    n_tracked_keys: AtomicU64,
    worker_kilobytes: AtomicU64,
    /// Fields that held two jobs, one after the other.
    used_twice: Mutex<Vec<String>>,
    /// The most jobs of each account, branch and group of twins that ran at once.
    at_once: Mutex<BTreeMap<String, usize>>,
}

impl Samples {
    /// Samples until it is dropped.
    pub async fn take(&self, fleet: &Fleet, redis: &Redis) {
        let (hasher, mut seen) = (RandomState::new(), HashMap::new());
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(info) = look::ask::<String>(redis, redis::cmd("INFO").arg("stats")).await {
                let n = look::field(&info, "tracking_total_keys").unwrap_or_default();
                self.n_tracked_keys.fetch_max(n, Ordering::Relaxed);
            }
            for i in 0..fleet.n_workers() {
                self.worker_kilobytes.fetch_max(resident_kilobytes(fleet.pid(i)), Ordering::Relaxed);
            }
            let inflight: Option<Vec<Entry>> = look::ask(redis, redis::cmd("EVAL").arg(INFLIGHT).arg(0)).await;
            self.count(inflight.iter().flatten());
            for (key, field, entry) in inflight.into_iter().flatten() {
                let (field, entry) = (format!("{key} {}", String::from_utf8_lossy(&field)), hasher.hash_one(entry));
                if seen.insert(field.clone(), entry).is_some_and(|before| before != entry) {
                    self.used_twice.lock().unwrap().push(field);
                }
            }
        }
    }

    /// Counts the jobs that run, without those that only end.
    fn count<'a>(&self, inflight: impl Iterator<Item = &'a Entry>) {
        let mut now: BTreeMap<String, usize> = BTreeMap::new();
        for (_, field, entry) in inflight {
            let field = String::from_utf8_lossy(field);
            if field.ends_with(":idle") || field.ends_with(BESIDE) {
                continue;
            }
            let job = entry.iter().position(|byte| *byte == b'\n').map(|end| &entry[end + 1..]);
            let Some(job) = job.and_then(|job| serde_json::from_slice::<Value>(job).ok()) else { continue };
            for name in ["account", "ref", "group"] {
                if let Some(name) = job["args"][0][name].as_str() {
                    *now.entry(name.to_owned()).or_default() += 1;
                }
            }
        }
        let mut most = self.at_once.lock().unwrap();
        for (name, n) in now {
            let known = most.entry(name).or_default();
            *known = n.max(*known);
        }
    }

    /// The most jobs of each account and of each branch that ran at once.
    pub fn at_once(&self) -> BTreeMap<String, usize> {
        self.at_once.lock().unwrap().clone()
    }

    /// The tokens under which a sample shows two jobs of a worker, one after the other.
    pub fn used_twice(&self) -> Vec<String> {
        self.used_twice.lock().unwrap().clone()
    }

    /// `tracking_total_keys` of Redis.
    pub fn n_tracked_keys(&self) -> u64 {
        self.n_tracked_keys.load(Ordering::Relaxed)
    }

    /// The memory of the largest worker.
    pub fn worker_megabytes(&self) -> u64 {
        self.worker_kilobytes.load(Ordering::Relaxed) >> 10
    }
}

fn resident_kilobytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
