//! When a failed job runs again: Sidekiq's curve and limits, and one limit more.

use std::time::Duration;

use super::payload::{Payload, RetryRule};
use crate::clock::Epoch;
use crate::settings::Jobs;

/// Wait before retry number `count` (0 for the first), without jitter: `count⁴ + 15` seconds.
///
/// About 20 days in all over the default 25 retries. Follows Sidekiq 8.1, `JobRetry#delay_for`.
pub fn retry_delay(count: u32) -> Duration {
    Duration::from_secs(u64::from(count).saturating_pow(4).saturating_add(15))
}

/// The bound below which jitter is added, in whole seconds: Sidekiq 8's `10 · (count + 1)`.
pub fn jitter_bound(count: u32) -> u64 {
    10 * (u64::from(count) + 1)
}

/// What follows a failure by the rules of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// Run again at this time.
    RetryAt(Epoch),
    /// Move to the dead set.
    Die,
    /// Drop the job: `retry: false`, or `dead: false`.
    Drop,
}

/// Decides what follows a failure at `now`. A retry comes after `wait` at the earliest; `jitter` is in 0..1.
///
/// Sidekiq's rules, and one more: no retry starts later than `max_age` after the first failure.
pub fn next(payload: &Payload, jobs: &Jobs, now: Epoch, wait: Duration, jitter: f64) -> Next {
    let exhausted = if payload.may_die() { Next::Die } else { Next::Drop };
    let maximum = match payload.retry_rule() {
        RetryRule::Never => return Next::Drop,
        RetryRule::Default => jobs.max_retries,
        RetryRule::Times(n) => n,
    };
    let count = payload.n_failures();
    let first_failure = payload.failed_at().unwrap_or(now);
    // From Sidekiq 8.1 on, one or the other.
    let is_exhausted = match payload.retry_for() {
        Some(window) => now.since(first_failure) > window,
        None => count >= maximum,
    };
    if is_exhausted {
        return exhausted;
    }
    // The bound is far below 2⁵³. Sidekiq's jitter has whole seconds.
    let jitter = Duration::from_secs((jitter * jitter_bound(count) as f64) as u64);
    let at = now.plus(retry_delay(count).max(wait)).plus(jitter);
    if at.since(first_failure) > jobs.max_age { exhausted } else { Next::RetryAt(at) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(text: &str) -> Next {
        let payload = Payload::parse(text.as_bytes()).expect("a job");
        next(&payload, &Jobs::default(), Epoch::from_secs_f64(1000.0), Duration::ZERO, 0.5)
    }

    #[test]
    fn the_first_retry_comes_after_fifteen_seconds_and_jitter() {
        assert_eq!(decide(r#"{"class":"B"}"#), Next::RetryAt(Epoch::from_secs_f64(1020.0)));
        let third = decide(r#"{"class":"B","retry_count":1,"failed_at":900.0}"#);
        assert_eq!(third, Next::RetryAt(Epoch::from_secs_f64(1000.0 + 31.0 + 15.0)));
        assert_eq!(retry_delay(24), Duration::from_secs(331_791));
    }

    #[test]
    fn retry_and_dead_of_the_job_decide() {
        assert_eq!(decide(r#"{"class":"B","retry":0}"#), Next::Die);
        assert_eq!(decide(r#"{"class":"B","retry":false}"#), Next::Drop);
        assert_eq!(decide(r#"{"class":"B","retry":1,"retry_count":0}"#), Next::Die);
        assert_eq!(decide(r#"{"class":"B","retry":1,"retry_count":0,"dead":false}"#), Next::Drop);
    }

    #[test]
    fn retry_for_replaces_the_number_of_retries() {
        let decide = |retry: &str, failed_at: &str| {
            decide(&format!(
                r#"{{"class":"B","retry":{retry},"retry_for":600,"retry_count":3,"failed_at":{failed_at}}}"#
            ))
        };
        assert!(matches!(decide("1", "400.0"), Next::RetryAt(_)), "the number does not count");
        assert_eq!(decide("true", "399.0"), Next::Die);
        assert_eq!(decide("false", "999.0"), Next::Drop);
        let first = r#"{"class":"B","retry":0,"retry_for":1}"#;
        assert!(matches!(super::tests::decide(first), Next::RetryAt(_)), "the first failure opens the window");
    }

    #[test]
    fn a_retry_beyond_the_age_limit_does_not_come() {
        let old = r#"{"class":"B","retry_count":3,"failed_at":1000.0}"#;
        let payload = Payload::parse(old.as_bytes()).expect("a job");
        let two_hours_later = Epoch::from_secs_f64(1000.0 + 7200.0);
        assert_eq!(next(&payload, &Jobs::default(), two_hours_later, Duration::ZERO, 0.0), Next::Die);
    }

    #[test]
    fn a_requested_wait_longer_than_the_curve_is_kept_and_counts_against_the_age_limit() {
        let payload = Payload::parse(br#"{"class":"BuildJob"}"#).expect("a job");
        let decide =
            |wait| next(&payload, &Jobs::default(), Epoch::from_secs_f64(1000.0), Duration::from_secs(wait), 0.0);
        assert_eq!(decide(3), Next::RetryAt(Epoch::from_secs_f64(1015.0)));
        assert_eq!(decide(600), Next::RetryAt(Epoch::from_secs_f64(1600.0)));
        assert_eq!(decide(3 * 60 * 60), Next::Die);
    }
}
