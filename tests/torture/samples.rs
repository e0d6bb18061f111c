//! What must not grow with the number of jobs, looked at all the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use world::Redis;

use crate::fleet::Fleet;
use crate::look;

const LOOK: Duration = Duration::from_secs(1);

/// The most that was seen of each.
#[derive(Debug, Default)]
pub struct Samples {
    n_tracked_keys: AtomicU64,
    worker_kilobytes: AtomicU64,
}

impl Samples {
    /// Looks until it is dropped.
    pub async fn take(&self, fleet: &Fleet, redis: &Redis) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(info) = look::ask::<String>(redis, redis::cmd("INFO").arg("stats")).await {
                let n = look::field(&info, "tracking_total_keys").unwrap_or_default();
                self.n_tracked_keys.fetch_max(n, Ordering::Relaxed);
            }
            for i in 0..fleet.n_workers() {
                self.worker_kilobytes.fetch_max(resident_kilobytes(fleet.pid(i)), Ordering::Relaxed);
            }
        }
    }

    /// `tracking_total_keys` of Redis.
    pub fn n_tracked_keys(&self) -> u64 {
        self.n_tracked_keys.load(Ordering::Relaxed)
    }

    /// Of the largest worker.
    pub fn worker_megabytes(&self) -> u64 {
        self.worker_kilobytes.load(Ordering::Relaxed) >> 10
    }
}

fn resident_kilobytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
