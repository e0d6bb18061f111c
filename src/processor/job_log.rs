//! The two lines that the log has of a job: its start, and its end with what an operator asks first.
//!
//! Their fields are public: `docs/operating.md` lists them, and `tests/it/worker_log.rs` compares. A failure that is the customer's
//! has the level info. Only one that is the platform's is a warning.

use super::disposition::{AttemptOutcome, Disposition};
use super::job::Job;
use crate::clock::Epoch;
use crate::event::millis;
use crate::reason::{Cause, Class};
use crate::report::Report;
use crate::sidekiq::running::Running;

/// Logs the start of a job.
pub(super) fn start(job: &Job) {
    let (unit, class, report) = (&job.running.unit, &job.payload.class, job.record.report());
    let Report { jid, attempt, timings, .. } = report;
    let queued_ms = millis(timings.queued);
    tracing::info!(event = "job_started", jid, token = %unit.token, class, queue = unit.queue, attempt, queued_ms, "job started");
}

/// Logs the end of a job, or of one attempt at it.
pub(super) fn end(outcome: &AttemptOutcome, report: &Report, disposition: Disposition, job: &Job) {
    let Running { unit, since, reclaimed, .. } = &job.running;
    let Report { jid, attempt, timings, placement, targets, .. } = report;
    let (repository, sha) = (report.repository.as_deref(), report.sha.as_deref());
    let failure = outcome.failure();
    let reason = failure.as_ref().map(|failure| failure.reason);
    let detail = failure.as_ref().map(|failure| job.detail().unwrap_or(&failure.detail));
    let builder = placement.as_ref().map(|placement| placement.builder.as_str());
    let shard = placement.as_ref().and_then(|placement| placement.shard.as_deref());
    let pod = placement.as_ref().and_then(|placement| placement.pod.as_deref());
    let [queued_ms, fetch_ms, bake_ms, total_ms] =
        [timings.queued, timings.fetch, timings.bake, Epoch::now().since(*since)].map(millis);
    let steps_cached: u32 = targets.iter().map(|target| target.steps_cached).sum();
    let steps_total: u32 = targets.iter().map(|target| target.steps_total).sum();
    let retry_at_s = match disposition {
        Disposition::RetryAt(at) => Some(at.as_secs_f64()),
        _ => None,
    };
    // One list of fields for every end. The token tells two runs of one job apart: a worker may fetch a job again before it
    // notices that it lost it.
    macro_rules! log {
        ($level:ident, event = $event:literal, $message:literal) => {
            tracing::$level!(
                event = $event, jid, token = %unit.token, class = job.payload.class, queue = unit.queue, attempt, repository,
                sha, reason = reason.map(tracing::field::display), detail, builder, shard, pod, queued_ms, fetch_ms, bake_ms,
                total_ms, steps_cached, steps_total, retry_at_s, $message
            )
        };
    }
    // Redis refuses the settlement, unless the entry comes back.
    if reclaimed.is_cancelled() || matches!(outcome, AttemptOutcome::Stopped(Cause::Reclaimed)) {
        log!(warn, event = "job_dropped", "build ended; Redis no longer has its job in flight here");
        return;
    }
    match (reason.map(|reason| reason.class()), disposition) {
        (None, _) => log!(info, event = "job_done", "job done"),
        (_, Disposition::Requeue) => log!(info, event = "job_requeued", "job requeued"),
        (Some(Class::Infrastructure), Disposition::RetryAt(_)) => {
            log!(warn, event = "job_retried", "job failed; will be retried");
        }
        (_, Disposition::RetryAt(_)) => log!(info, event = "job_retried", "job failed; will be retried"),
        (Some(Class::Infrastructure), _) => log!(warn, event = "job_failed", "job failed"),
        (Some(Class::User), _) => log!(info, event = "job_failed", "job failed"),
        (Some(Class::Control), _) => log!(info, event = "job_stopped", "job cancelled, superseded or expired"),
    }
}
