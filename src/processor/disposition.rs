//! What happens to a job after an attempt, decided by one pure function.

use std::time::Duration;

use crate::clock::Epoch;
use crate::reason::{Cause, Class, End, Failure, Reason};
use crate::report::Status;
use crate::settings::Jobs;
use crate::sidekiq::payload::Payload;
use crate::sidekiq::retry::{self, Next};
use crate::sidekiq::settlement::RunEnd;
use crate::stop::Stop;

/// From this interruption on, a job waits in the retry set.
const MAX_INTERRUPTIONS: u32 = 3;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptOutcome {
    /// The build succeeded.
    Succeeded,
    /// It failed.
    Failed(Failure),
    /// It was stopped, by no fault of its own.
    Stopped(Cause),
}

impl AttemptOutcome {
    /// What the result of a build means, with the cause of its stop.
    pub fn of(result: Result<(), End>, stop: &Stop) -> Self {
        match result {
            Ok(()) => Self::Succeeded,
            Err(End::Failed(failure)) => Self::Failed(failure),
            // Only a shutdown stops a build without setting a cause.
            Err(End::Stopped) => match stop.cause().unwrap_or(Cause::Shutdown) {
                cause @ Cause::TimedOut { .. } => Self::Failed(cause.failure()),
                cause => Self::Stopped(cause),
            },
        }
    }

    /// The failure to report; `None` after a success.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Succeeded => None,
            Self::Failed(failure) => Some(failure.clone()),
            Self::Stopped(cause) => Some(cause.failure()),
        }
    }

    /// The status to report.
    pub fn status(&self) -> Status {
        match self.failure().map(|failure| failure.reason) {
            None => Status::Succeeded,
            Some(Reason::Cancelled | Reason::Expired) => Status::Cancelled,
            Some(Reason::Superseded) => Status::Superseded,
            Some(_) => Status::Failed,
        }
    }
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Disposition {
    /// It is done. To Sidekiq it has not failed.
    Acknowledge,
    /// It runs again at this time.
    RetryAt(Epoch),
    /// It moves to the dead set.
    Dead,
    /// It has failed and is dropped: `retry: false`, or `dead: false`.
    Drop,
    /// It is requeued at the head of its queue, as if it had never been fetched.
    Requeue,
}

/// Decides what happens to a job. `jitter` is in 0..1.
///
/// A user failure finishes the job when a callback reports it. Without a callback nobody would see the failure, so the job
/// moves to the dead set. A control end never counts as a retry.
pub fn dispose(
    outcome: &AttemptOutcome,
    payload: &Payload,
    jobs: &Jobs,
    has_callback: bool,
    n_interruptions: u32,
    now: Epoch,
    jitter: f64,
) -> Disposition {
    let dead = if payload.may_die() { Disposition::Dead } else { Disposition::Drop };
    let next = |wait| retry::next(payload, jobs, now, wait, jitter);
    let failure = match outcome {
        AttemptOutcome::Succeeded | AttemptOutcome::Stopped(Cause::Cancelled | Cause::Superseded) => {
            return Disposition::Acknowledge;
        }
        AttemptOutcome::Stopped(_) if n_interruptions + 1 < MAX_INTERRUPTIONS => return Disposition::Requeue,
        // Each stop interrupts this job. A job without retries is requeued once more: it has not failed.
        AttemptOutcome::Stopped(_) => match next(Duration::ZERO) {
            Next::RetryAt(at) => return Disposition::RetryAt(at),
            Next::Die | Next::Drop => return Disposition::Requeue,
        },
        AttemptOutcome::Failed(failure) => failure,
    };
    match (failure.reason, failure.reason.class()) {
        (Reason::Poison, _) => dead,
        (_, Class::Control) => Disposition::Acknowledge,
        (_, Class::User) if !jobs.raise_user_failures => {
            if has_callback {
                Disposition::Acknowledge
            } else {
                dead
            }
        }
        (_, Class::User | Class::Infrastructure) => match next(failure.wait) {
            // Sidekiq cannot show it in the retry set, and another attempt would end in the same way.
            Next::RetryAt(_) if payload.flaw().is_some() => dead,
            Next::RetryAt(at) => Disposition::RetryAt(at),
            Next::Die => Disposition::Dead,
            Next::Drop => Disposition::Drop,
        },
    }
}

/// How the run of a unit ended, for custody.
pub(super) fn run_end(outcome: &AttemptOutcome, disposition: Disposition, is_reclaimed: bool) -> RunEnd {
    match (outcome, disposition) {
        _ if is_reclaimed => RunEnd::Reclaimed,
        (AttemptOutcome::Stopped(Cause::Shutdown), Disposition::Requeue) => RunEnd::Killed,
        // Also a build that its fence refused: the turn compares token and text once more.
        _ => RunEnd::Ended,
    }
}

/// How an attempt ended, as a label of a metric.
pub(super) fn label(outcome: &AttemptOutcome, disposition: Disposition, is_reclaimed: bool) -> &'static str {
    match disposition {
        _ if is_reclaimed || matches!(outcome, AttemptOutcome::Stopped(Cause::Reclaimed)) => "reclaimed",
        Disposition::RetryAt(_) => "retrying",
        Disposition::Requeue => "requeued",
        Disposition::Acknowledge | Disposition::Dead | Disposition::Drop => outcome.status().name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(reason: Option<Reason>, text: &str, has_callback: bool) -> Disposition {
        let payload = Payload::parse(text.as_bytes()).expect("a job");
        let outcome =
            reason.map_or(AttemptOutcome::Succeeded, |reason| AttemptOutcome::Failed(Failure::new(reason, "x")));
        dispose(&outcome, &payload, &Jobs::default(), has_callback, 0, Epoch::from_secs_f64(100.0), 0.0)
    }

    #[test]
    fn every_outcome_has_a_disposition() {
        let job = r#"{"class":"BuildJob","args":[]}"#;
        let retry_at = Disposition::RetryAt(Epoch::from_secs_f64(115.0));
        for (reason, text, has_callback, expected) in [
            (None, job, false, Disposition::Acknowledge),
            (Some(Reason::StepFailed), job, true, Disposition::Acknowledge),
            (Some(Reason::StepFailed), job, false, Disposition::Dead),
            (Some(Reason::StepFailed), r#"{"class":"BuildJob","args":[],"dead":false}"#, false, Disposition::Drop),
            (
                Some(Reason::StepFailed),
                r#"{"class":"BuildJob","args":[],"dead":false}"#,
                true,
                Disposition::Acknowledge,
            ),
            (Some(Reason::GitUnavailable), job, true, retry_at),
            (Some(Reason::Panicked), job, false, retry_at),
            (Some(Reason::GitUnavailable), r#"{"class":"BuildJob","args":[],"retry":0}"#, true, Disposition::Dead),
            (Some(Reason::GitUnavailable), r#"{"class":"BuildJob","args":[],"retry":false}"#, true, Disposition::Drop),
            (
                Some(Reason::GitUnavailable),
                r#"{"class":"BuildJob","args":[],"retry":0,"dead":false}"#,
                true,
                Disposition::Drop,
            ),
            (Some(Reason::Expired), job, false, Disposition::Acknowledge),
            (Some(Reason::Poison), job, true, Disposition::Dead),
            (Some(Reason::Poison), r#"{"class":"BuildJob","args":[],"dead":false}"#, true, Disposition::Drop),
        ] {
            assert_eq!(decide(reason, text, has_callback), expected, "{reason:?} {text} {has_callback}");
        }
    }

    #[test]
    fn the_third_interruption_is_a_retry_where_there_are_any() {
        let decide_for = |cause, text: &str, n| {
            let payload = Payload::parse(text.as_bytes()).expect("a job");
            dispose(
                &AttemptOutcome::Stopped(cause),
                &payload,
                &Jobs::default(),
                true,
                n,
                Epoch::from_secs_f64(100.0),
                0.0,
            )
        };
        let job = r#"{"class":"BuildJob","args":[]}"#;
        for cause in [Cause::Shutdown, Cause::Reclaimed] {
            assert_eq!([0, 1].map(|n| decide_for(cause, job, n)), [Disposition::Requeue; 2]);
        }
        assert_eq!(decide_for(Cause::Cancelled, job, 0), Disposition::Acknowledge);
        let decide = |text, n| decide_for(Cause::Shutdown, text, n);
        assert_eq!(decide(r#"{"class":"BuildJob","args":[],"retry":0}"#, 0), Disposition::Requeue);
        assert_eq!(decide(job, 2), Disposition::RetryAt(Epoch::from_secs_f64(115.0)));
        assert_eq!(decide(r#"{"class":"BuildJob","args":[],"retry":false}"#, 2), Disposition::Requeue);
    }

    #[test]
    fn only_a_build_that_a_stop_requeues_is_killed() {
        let stopped = AttemptOutcome::Stopped;
        for (outcome, disposition, expected) in [
            (stopped(Cause::Shutdown), Disposition::Requeue, RunEnd::Killed),
            (stopped(Cause::Shutdown), Disposition::RetryAt(Epoch::from_secs_f64(1.0)), RunEnd::Ended),
            (stopped(Cause::Reclaimed), Disposition::Requeue, RunEnd::Ended),
            (stopped(Cause::Cancelled), Disposition::Acknowledge, RunEnd::Ended),
            (AttemptOutcome::Succeeded, Disposition::Acknowledge, RunEnd::Ended),
        ] {
            assert_eq!(run_end(&outcome, disposition, false), expected, "{outcome:?}");
            assert_eq!(run_end(&outcome, disposition, true), RunEnd::Reclaimed, "{outcome:?}");
        }
    }

    #[test]
    fn user_failures_are_raised_where_the_configuration_says_so() {
        let jobs = Jobs { raise_user_failures: true, ..Jobs::default() };
        let payload = Payload::parse(br#"{"class":"BuildJob","args":[]}"#).expect("a job");
        let failed = AttemptOutcome::Failed(Failure::new(Reason::StepFailed, "x"));
        let decide = |payload: &Payload| dispose(&failed, payload, &jobs, true, 0, Epoch::from_secs_f64(100.0), 0.0);
        assert_eq!(decide(&payload), Disposition::RetryAt(Epoch::from_secs_f64(115.0)));
        let malformed = Payload::parse(br#"{"class":"BuildJob","args":null}"#).expect("a job");
        assert_eq!(decide(&malformed), Disposition::Dead, "the retry set cannot show it");
    }
}
