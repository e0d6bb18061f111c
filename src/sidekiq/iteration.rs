//! `it-<jid>`: shows the progress of a running job, and carries the mark that cancels it.
//!
//! Sidekiq's iterable jobs have this hash. So its Busy page (8.1.4) shows our jobs, and `Sidekiq::Client#cancel!` (7.3.3)
//! cancels them. A worker writes the hash only while it owns the job; settling removes it.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::running::{Running, RunningJobs};
use super::{Identity, keys};
use crate::clock::Epoch;
use crate::redis::{Complaint, Redis, RedisError, Script};

static ITERATION: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("iteration.lua")));

/// How soon a running job notices that it is cancelled. While no job runs, Redis is not asked.
const PERIOD: Duration = Duration::from_millis(400);

/// How long Redis keeps a hash that no worker removes; as Sidekiq.
pub(super) const TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Writes progress and reads cancellations until `stop`: one request for all running jobs.
pub async fn run(redis: &Redis, identity: &Identity, running: &RunningJobs, stop: &CancellationToken) {
    let mut complaint = Complaint::new("progress_not_written", "running jobs can be neither shown nor cancelled");
    while stop.run_until_cancelled(sleep(PERIOD)).await.is_some() {
        complaint.hear(sync(redis, identity, &running.snapshot()).await);
    }
}

/// Writes the progress of these jobs, and cancels those that Redis has marked.
pub async fn sync(redis: &Redis, identity: &Identity, running: &[Running]) -> Result<(), RedisError> {
    let now = Epoch::now();
    let mut script = ITERATION.key(keys::inflight(identity));
    script.arg(TTL.as_secs());
    let mut jobs = Vec::new();
    for job in running {
        let Some((jid, attempt)) = job.iteration.job() else { continue };
        let progress = job.iteration.unwritten().unwrap_or_default();
        let runtime_s = now.since(job.since).as_secs_f64();
        script
            .key(keys::iteration(jid))
            .arg(job.unit.token.as_str())
            .arg(jid)
            .arg(attempt)
            .arg(progress)
            .arg(runtime_s);
        jobs.push(job);
    }
    if jobs.is_empty() {
        return Ok(());
    }
    let cancelled: Vec<bool> = redis.script(&script).await?;
    for (job, _) in jobs.iter().zip(cancelled).filter(|(_, is_cancelled)| *is_cancelled) {
        if !job.iteration.cancelled.is_cancelled() {
            tracing::debug!(event = "job_cancelled", token = %job.unit.token, jid = job.iteration.jid(), "job cancelled");
            job.iteration.cancelled.cancel();
        }
    }
    Ok(())
}
