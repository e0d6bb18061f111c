//! When a failed job runs again: Sidekiq's curve and Sidekiq's limits, with one of ours.

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

/// What the rules of a job say after a failure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// Again at this time.
    RetryAt(Epoch),
    /// To the dead set.
    Die,
    /// Nowhere: `retry: false`, or `dead: false`.
    Drop,
}

/// Decides what follows a failure at `now`; a retry comes after `wait` at the earliest. `jitter` is a number in 0..1.
///
/// Sidekiq's rules, and one more: no retry that would start later than `max_age` after the first failure.
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
    // The jitter's bound is far below 2⁵³, and a fraction of a second is no jitter of Sidekiq's.
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
    fn numbers_and_switches_of_the_job_are_honoured() {
        assert_eq!(decide(r#"{"class":"B","retry":0}"#), Next::Die);
        assert_eq!(decide(r#"{"class":"B","retry":false}"#), Next::Drop);
        assert_eq!(decide(r#"{"class":"B","retry":1,"retry_count":0}"#), Next::Die);
        assert_eq!(decide(r#"{"class":"B","retry":1,"retry_count":0,"dead":false}"#), Next::Drop);
    }

    #[test]
    fn a_window_for_retries_counts_in_place_of_their_number() {
        let decide = |retry: &str, failed_at: &str| {
            decide(&format!(
                r#"{{"class":"B","retry":{retry},"retry_for":600,"retry_count":3,"failed_at":{failed_at}}}"#
            ))
        };
        assert!(matches!(decide("1", "400.0"), Next::RetryAt(_)), "the number is not looked at");
        assert_eq!(decide("true", "399.0"), Next::Die);
        assert_eq!(decide("false", "999.0"), Next::Drop);
        let first = r#"{"class":"B","retry":0,"retry_for":1}"#;
        assert!(matches!(super::tests::decide(first), Next::RetryAt(_)), "the first failure opens it");
    }

    #[test]
    fn nobody_wants_a_build_of_last_week() {
        let old = r#"{"class":"B","retry_count":3,"failed_at":1000.0}"#;
        let payload = Payload::parse(old.as_bytes()).expect("a job");
        let two_hours_later = Epoch::from_secs_f64(1000.0 + 7200.0);
        assert_eq!(next(&payload, &Jobs::default(), two_hours_later, Duration::ZERO, 0.0), Next::Die);
    }

    #[test]
    fn who_wants_to_be_left_alone_for_longer_than_the_curve_is_and_the_age_limit_counts_it() {
        let payload = Payload::parse(br#"{"class":"BuildJob"}"#).expect("a job");
        let decide =
            |wait| next(&payload, &Jobs::default(), Epoch::from_secs_f64(1000.0), Duration::from_secs(wait), 0.0);
        assert_eq!(decide(3), Next::RetryAt(Epoch::from_secs_f64(1015.0)));
        assert_eq!(decide(600), Next::RetryAt(Epoch::from_secs_f64(1600.0)));
        assert_eq!(decide(3 * 60 * 60), Next::Die);
    }
}
