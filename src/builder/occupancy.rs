//! How many builds run on each pod: every worker writes its own count to Redis, for `sidebake builder status`.
//!
//! A worker's key (`sidebake:occupancy:<identity>`) is a string, JSON of builder → pod → number of builds. The pod `""` stands for an unknown
//! one. Written after changes and every 20 s; expires a minute after its worker's last write. Only people read it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::json;
use crate::redis::{Redis, RedisError};

const TTL_S: u64 = 60;
const PERIOD: Duration = Duration::from_secs(20);

/// Changes within this time are written together.
const BREATH: Duration = Duration::from_millis(200);

/// Builder → pod → builds.
pub type Counts = BTreeMap<String, BTreeMap<String, u32>>;

/// The running builds of this process.
#[derive(Clone, Debug, Default)]
pub struct Occupancy {
    counts: Arc<Mutex<Counts>>,
    changed: Arc<Notify>,
}

/// One running build; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Occupied {
    occupancy: Occupancy,
    builder: String,
    pod: String,
}

impl Occupancy {
    /// Writes the counts to `key` until `ended`, then deletes it.
    pub async fn run(&self, redis: &Redis, key: &str, ended: &CancellationToken) {
        loop {
            let text = serde_json::to_string(&*self.counts()).expect("counts are JSON");
            let told = redis.query::<()>(redis::cmd("SET").arg(key).arg(text).arg("EX").arg(TTL_S)).await;
            if let Err(error) = told {
                tracing::debug!(%error, "count of running builds not written");
            }
            let next = async {
                let _ = tokio::time::timeout(PERIOD, self.changed.notified()).await;
                tokio::time::sleep(BREATH).await;
            };
            if ended.run_until_cancelled(next).await.is_none() {
                break;
            }
        }
        let _ = redis.query::<()>(redis::cmd("DEL").arg(key)).await;
    }

    pub(super) fn occupy(&self, builder: &str, pod: &str) -> Occupied {
        let occupied = Occupied { occupancy: self.clone(), builder: builder.to_owned(), pod: pod.to_owned() };
        occupied.count(1);
        occupied
    }

    /// The builds of this process.
    pub fn of_process(&self) -> Counts {
        self.counts().clone()
    }

    /// The builds of this process on a builder, by pod.
    pub(super) fn on(&self, builder: &str) -> BTreeMap<String, u32> {
        self.counts().get(builder).cloned().unwrap_or_default()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Occupied {
    /// Sets the build's pod once it is known.
    pub(super) fn on(&mut self, pod: &str) {
        self.count(-1);
        pod.clone_into(&mut self.pod);
        self.count(1);
    }

    fn count(&self, difference: i32) {
        let mut counts = self.occupancy.counts();
        let pods = counts.entry(self.builder.clone()).or_default();
        let n = pods.entry(self.pod.clone()).or_default();
        *n = n.saturating_add_signed(difference);
        pods.retain(|_, n| *n > 0);
        drop(counts);
        self.occupancy.changed.notify_one();
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.count(-1);
    }
}

/// The running builds of all workers, from all keys that match `pattern`.
pub async fn of_fleet(redis: &Redis, pattern: &str) -> Result<Counts, RedisError> {
    let mut sum = Counts::new();
    let mut cursor = 0;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
        let (next, keys): (u64, Vec<String>) = redis.query(&scan).await?;
        for key in keys {
            let text: Option<String> = redis.query(redis::cmd("GET").arg(key)).await?;
            // A value of another version is ignored.
            let counts: Counts = text.and_then(|text| json::read(text.as_bytes()).ok()).unwrap_or_default();
            for (builder, pods) in counts {
                for (pod, n) in pods {
                    *sum.entry(builder.clone()).or_default().entry(pod).or_default() += n;
                }
            }
        }
        if next == 0 {
            return Ok(sum);
        }
        cursor = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_counted_where_it_is_until_it_ends() {
        let occupancy = Occupancy::default();
        let mut first = occupancy.occupy("default", "");
        let second = occupancy.occupy("default", "d0-a");
        first.on("d0-a");
        assert_eq!(occupancy.counts()["default"], BTreeMap::from([("d0-a".to_owned(), 2)]));
        drop(second);
        assert_eq!(occupancy.counts()["default"]["d0-a"], 1);
        drop(first);
        assert!(occupancy.counts()["default"].is_empty());
    }
}
