//! `it-<jid>`: where a job that runs long says how far it is, and is told to end.
//!
//! Sidekiq's iterable jobs have this hash, so its Busy page (8.1.4) shows ours, and `Sidekiq::Client#cancel!` (7.3.3)
//! cancels them. It is written only while the job is ours, and goes when the job is settled.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Identity;
use super::custody::{Running, RunningJobs};
use super::payload::Payload;
use crate::clock::Epoch;
use crate::journal::Progress;
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::settings::Jobs;

static ITERATION: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("iteration.lua")));

/// How soon a running job learns that it is cancelled; while none runs, nobody is asked.
const PERIOD: Duration = Duration::from_millis(400);

/// How old what is shown may get; as Sidekiq.
const FLUSH: Duration = Duration::from_secs(5);

/// How long the hash is kept when nobody ends the job; as Sidekiq.
pub(super) const TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What is shown of a suspect that has not begun.
const WAITS: &str = "waits to run alone: it was there when workers died";

/// What a running job shares with whoever looks at it.
#[derive(Debug, Default)]
pub struct Iteration {
    job: OnceLock<(String, u32)>,
    is_waiting: AtomicBool,
    /// How far it is.
    pub progress: Arc<Progress>,
    /// Cancelled when somebody has cancelled the job.
    pub cancelled: CancellationToken,
    written: Mutex<Option<(Instant, String)>>,
}

impl Iteration {
    /// From here on the job can be cancelled, if it is one of this worker's: another class may be Ruby's own iterable job,
    /// whose place is in the same hash.
    pub fn begin_job(&self, jobs: &Jobs, payload: &Payload) {
        if jobs.runs(&payload.class) {
            self.begin(&payload.jid, payload.n_failures().saturating_add(1));
        }
    }

    /// The job waits until it may begin. It can be cancelled meanwhile.
    pub(super) fn wait(&self, jobs: &Jobs, text: &[u8]) {
        self.is_waiting.store(true, Ordering::Relaxed);
        if let Ok(payload) = Payload::parse(text) {
            self.begin_job(jobs, &payload);
        }
    }

    /// The job waits no longer.
    pub(super) fn go_on(&self) {
        self.is_waiting.store(false, Ordering::Relaxed);
    }

    /// Whether the job has not begun.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    /// How far the job is, in a line; `None` before anything has begun.
    pub fn text(&self) -> Option<String> {
        if self.is_waiting() { Some(WAITS.to_owned()) } else { self.progress.text() }
    }

    /// From here on the job can be cancelled: its jid, and the number of this attempt.
    pub fn begin(&self, jid: &str, attempt: u32) {
        // One without a jid cannot be addressed.
        if !jid.is_empty() {
            let _ = self.job.set((jid.to_owned(), attempt));
        }
    }

    /// The job's jid, once it is known.
    pub fn jid(&self) -> Option<&str> {
        self.job.get().map(|(jid, _)| jid.as_str())
    }

    /// The hash, which goes with the job: also one that we have not written, for it may have a mark that we have not seen.
    pub fn key(&self) -> Option<String> {
        self.jid().map(key)
    }

    /// What is to be shown now: JSON text, when it is new or old.
    fn news(&self) -> Option<String> {
        let text = self.text()?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shown = written.as_ref().is_some_and(|(at, shown)| *shown == text && at.elapsed() < FLUSH);
        if is_shown {
            return None;
        }
        *written = Some((Instant::now(), text.clone()));
        Some(Value::String(text).to_string())
    }
}

/// `it-<jid>`.
pub fn key(jid: &str) -> String {
    format!("it-{jid}")
}

/// Shows running jobs, and tells them when they are cancelled, until `stop`: one request for all of them.
pub async fn run(redis: &Redis, identity: &Identity, running: &RunningJobs, stop: &CancellationToken) {
    let mut complaint = Complaint::that("running jobs cannot be shown, and not be cancelled");
    while stop.run_until_cancelled(sleep(PERIOD)).await.is_some() {
        complaint.hear(look(redis, identity, &running.snapshot()).await);
    }
}

/// Shows these jobs, and tells those that are cancelled.
pub async fn look(redis: &Redis, identity: &Identity, running: &[Running]) -> Result<(), RedisError> {
    let now = Epoch::now();
    let mut script = ITERATION.key(identity.inflight_key());
    script.arg(TTL.as_secs());
    let mut jobs = Vec::new();
    for job in running {
        let Some((jid, attempt)) = job.iteration.job.get() else { continue };
        let news = job.iteration.news().unwrap_or_default();
        let runtime_s = now.since(job.since).as_secs_f64();
        script.key(key(jid)).arg(job.unit.token.to_string()).arg(jid).arg(attempt).arg(news).arg(runtime_s);
        jobs.push(job);
    }
    if jobs.is_empty() {
        return Ok(());
    }
    let cancelled: Vec<bool> = redis.script(&script).await?;
    for (job, _) in jobs.iter().zip(cancelled).filter(|(_, is_cancelled)| *is_cancelled) {
        if !job.iteration.cancelled.is_cancelled() {
            tracing::info!(token = %job.unit.token, jid = job.iteration.jid(), "the job is cancelled");
            job.iteration.cancelled.cancel();
        }
    }
    Ok(())
}
