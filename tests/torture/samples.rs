//! Samples Redis and the workers all the time. Detects states that must never occur, and values that must not grow with
//! the number of jobs.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use world::Redis;

use crate::fleet::Fleet;
use crate::look;

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
            for (key, field, entry) in inflight.into_iter().flatten() {
                let (field, entry) = (format!("{key} {}", String::from_utf8_lossy(&field)), hasher.hash_one(entry));
                if seen.insert(field.clone(), entry).is_some_and(|before| before != entry) {
                    self.used_twice.lock().unwrap().push(field);
                }
            }
        }
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
