//! Sidekiq's metrics: how often each class ran, failed, and for how long, by the minute.
//!
//! Written for the Web UI of Sidekiq 7 and for that of 8, whose keys differ. Follows `ExecutionTracker` of 7.3 and 8.1.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::Pipeline;

use super::keys;
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError};

/// Upper bounds of the histogram's buckets, ms. A last bucket has all longer runs.
const BOUNDS: [u64; 25] = [
    20, 30, 45, 65, 100, 150, 225, 335, 500, 750, 1100, 1700, 2500, 3800, 5750, 8500, 13000, 20000, 30000, 45000,
    65000, 100_000, 150_000, 225_000, 335_000,
];

const SHORT_TERM: Duration = Duration::from_secs(8 * 60 * 60);
const MID_TERM: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// What has run since the last flush.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<String, ClassCounts>>);

#[derive(Debug, Default)]
struct ClassCounts {
    n_processed: u64,
    n_failed: u64,
    /// Of runs that did not fail.
    millis: u64,
    buckets: [u64; BOUNDS.len() + 1],
}

impl Metrics {
    /// Counts one attempt.
    pub fn record(&self, class: &str, took: Duration, is_failed: bool) {
        // The separator in Sidekiq's fields.
        if class.contains('|') {
            return;
        }
        let mut classes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let class = classes.entry(class.to_owned()).or_default();
        class.n_processed += 1;
        if is_failed {
            class.n_failed += 1;
            return;
        }
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        class.millis = class.millis.saturating_add(millis);
        class.buckets[BOUNDS.partition_point(|bound| *bound <= millis)] += 1;
    }

    /// Writes what has run since the last flush. What Redis does not take is lost, as in Ruby.
    pub async fn flush(&self, redis: &Redis, now: Epoch) -> Result<(), RedisError> {
        let classes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if classes.is_empty() {
            return Ok(());
        }
        let (mut pipe, counts) = (redis::pipe(), keys::class_counts(now));
        for (name, class) in &classes {
            let failed = (class.n_failed > 0).then(|| (format!("{name}|f"), class.n_failed));
            let millis = (class.n_failed < class.n_processed).then(|| (format!("{name}|ms"), class.millis));
            let processed = (format!("{name}|p"), class.n_processed);
            for (field, n) in [processed].into_iter().chain(failed).chain(millis) {
                for key in &counts {
                    pipe.hincr(key, &field, n).ignore();
                }
            }
            for key in keys::class_histograms(name, now) {
                histogram(&mut pipe, &key, class);
            }
        }
        for (key, ttl) in counts.iter().zip([SHORT_TERM, SHORT_TERM, MID_TERM]) {
            expire(&mut pipe, key, ttl);
        }
        redis.pipeline(&pipe).await
    }
}

fn histogram(pipe: &mut Pipeline, key: &str, class: &ClassCounts) {
    if class.buckets.iter().all(|n| *n == 0) {
        return;
    }
    let command = pipe.cmd("BITFIELD").arg(key).arg("OVERFLOW").arg("SAT");
    for (i, n) in class.buckets.iter().enumerate().filter(|(_, n)| **n > 0) {
        command.arg("INCRBY").arg("u16").arg(format!("#{i}")).arg(*n);
    }
    command.ignore();
    expire(pipe, key, SHORT_TERM);
}

fn expire(pipe: &mut Pipeline, key: &str, ttl: Duration) {
    pipe.cmd("EXPIRE").arg(key).arg(ttl.as_secs()).ignore();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_what_is_below_its_bound() {
        let metrics = Metrics::default();
        for millis in [0, 19, 20, 334_999, 335_000, 10_000_000] {
            metrics.record("B", Duration::from_millis(millis), false);
        }
        metrics.record("B", Duration::from_secs(1), true);
        metrics.record("B|x", Duration::ZERO, false);
        let classes = metrics.0.into_inner().expect("no panic");
        let class = &classes["B"];
        assert_eq!((classes.len(), class.n_processed, class.n_failed), (1, 7, 1));
        assert_eq!((class.buckets[0], class.buckets[1], class.buckets[24], class.buckets[25]), (2, 1, 1, 2));
        assert_eq!(class.millis, 19 + 20 + 334_999 + 335_000 + 10_000_000);
    }
}
