//! The jobs that this process runs, shared with the tasks that show them, cancel them and settle them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inflight::{Token, UnitOfWork};
use super::keys;
use super::newest::Edition;
use super::payload::Payload;
use super::tenant::Candidate;
use crate::clock::Epoch;
use crate::event::OtherJob;
use crate::journal::Progress;
use crate::settings::Jobs;

/// How old the progress in Redis may get; as Sidekiq.
const FLUSH: Duration = Duration::from_secs(5);

/// The progress of a suspect that has not begun.
const WAITS: &str = "waits to run alone: it was running when workers died";

/// A unit of work in custody, as the heartbeat shows it.
#[derive(Clone, Debug)]
pub struct Running {
    /// The unit.
    pub unit: UnitOfWork,
    /// When it began, or began to wait until nothing else runs.
    pub since: Epoch,
    /// Cancelled when the job was reclaimed. Nothing that the build does afterwards has an effect.
    pub reclaimed: CancellationToken,
    /// Its progress, and whether it is cancelled.
    pub iteration: Arc<Iteration>,
}

impl Running {
    /// A unit that begins, or begins to wait, now.
    pub fn new(unit: UnitOfWork, now: Epoch) -> Self {
        Self { unit, since: now, reclaimed: CancellationToken::new(), iteration: Arc::default() }
    }
}

/// All running jobs, by token.
#[derive(Clone, Debug, Default)]
pub struct RunningJobs(Arc<Mutex<BTreeMap<Token, Running>>>);

impl RunningJobs {
    /// A copy of the present state, in the order of fetching.
    pub fn snapshot(&self) -> Vec<Running> {
        self.with(|running| running.values().cloned().collect())
    }

    /// How many there are.
    pub fn n_jobs(&self) -> usize {
        self.with(|running| running.len())
    }

    /// How many there are of a capsule.
    pub(super) fn n_jobs_of(&self, capsule: usize) -> usize {
        self.with(|running| running.keys().filter(|token| token.capsule == capsule).count())
    }

    /// Bytes of their texts.
    pub(super) fn size_bytes(&self) -> usize {
        self.with(|running| running.values().map(|job| job.unit.text.len()).sum())
    }

    pub(super) fn insert(&self, running: Running) {
        self.with(|all| all.insert(running.unit.token.clone(), running));
    }

    pub(super) fn remove(&self, token: &Token) -> Option<Running> {
        self.with(|all| all.remove(token))
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Token, Running>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A job among those with the same inputs.
#[derive(Clone, Copy, Debug)]
pub struct Twin<'a> {
    /// Names the inputs as far as they were known before the job was taken.
    pub key: &'a str,
    /// The tenant.
    pub tenant: &'a str,
    /// When it was enqueued, in microseconds.
    pub queued_us: u64,
}

/// Progress and cancellation of one running job.
#[derive(Debug, Default)]
pub struct Iteration {
    job: OnceLock<(String, u32)>,
    is_waiting: AtomicBool,
    /// How far the build is.
    pub progress: Arc<Progress>,
    /// Cancelled when the job is.
    pub cancelled: CancellationToken,
    candidate: OnceLock<Candidate>,
    tenant: OnceLock<String>,
    newer: OnceLock<OtherJob>,
    written: Mutex<Option<(Instant, String)>>,
}

impl Iteration {
    /// Makes the job cancellable, if its class is one of this worker's: another class may be one of Ruby's own iterable jobs,
    /// which keep their cursor in the same hash.
    pub fn begin_job(&self, jobs: &Jobs, payload: &Payload) {
        if jobs.runs(&payload.class) {
            self.begin(&payload.jid, payload.n_failures().saturating_add(1));
        }
    }

    /// Marks the job as waiting. It can be cancelled meanwhile.
    pub(super) fn wait(&self, jobs: &Jobs, text: &[u8]) {
        self.is_waiting.store(true, Ordering::Relaxed);
        if let Ok(payload) = Payload::parse(text) {
            self.begin_job(jobs, &payload);
        }
    }

    /// Ends the wait.
    pub(super) fn go_on(&self) {
        self.is_waiting.store(false, Ordering::Relaxed);
    }

    /// Whether the job has not begun.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    /// The progress in one line; `None` before anything has begun.
    pub fn text(&self) -> Option<String> {
        if self.is_waiting() { Some(WAITS.to_owned()) } else { self.progress.text() }
    }

    /// Makes the job with this jid cancellable; `attempt` counts from 1.
    pub fn begin(&self, jid: &str, attempt: u32) {
        // Without a jid no command can name the job.
        if !jid.is_empty() {
            let _ = self.job.set((jid.to_owned(), attempt));
        }
    }

    /// The job's jid, once it is known.
    pub fn jid(&self) -> Option<&str> {
        self.job.get().map(|(jid, _)| jid.as_str())
    }

    /// The job's jid and the number of this attempt, once they are known.
    pub(super) fn job(&self) -> Option<(&str, u32)> {
        self.job.get().map(|(jid, attempt)| (jid.as_str(), *attempt))
    }

    /// The key of the hash that is removed with the job. It may hold a mark `cancelled` although this process wrote nothing.
    pub fn key(&self) -> Option<String> {
        self.jid().map(keys::iteration)
    }

    /// Lets a newer job end this one, and a twin have its result.
    pub fn take_part(&self, candidate: Candidate) {
        let _ = self.candidate.set(candidate);
    }

    /// The tenant of the job, which is read once.
    pub fn tenant(&self, read: impl FnOnce() -> String) -> &str {
        let known = self.candidate.get().map(|candidate| candidate.claim.tenant.as_str());
        known.unwrap_or_else(|| self.tenant.get_or_init(read))
    }

    /// The job among those that build the same; `None` when it does not take part.
    pub fn edition(&self) -> Option<&Edition> {
        self.candidate.get()?.edition.as_ref()
    }

    /// What the job waits for; `None` when it has no twins.
    pub fn twin(&self) -> Option<Twin<'_>> {
        let Candidate { claim, twin, queued_us, .. } = self.candidate.get()?;
        Some(Twin { key: twin.as_deref()?, tenant: &claim.tenant, queued_us: (*queued_us)? })
    }

    /// Ends the job, because this one is newer.
    pub fn supersede(&self, newer: OtherJob) {
        // Set before the token is cancelled, so that every listener finds it.
        let _ = self.newer.set(newer);
        self.cancelled.cancel();
    }

    /// The newer job that ended this one.
    pub fn newer(&self) -> Option<&OtherJob> {
        self.newer.get()
    }

    /// The progress as JSON text, when Redis does not have it or its copy is old.
    pub(super) fn unwritten(&self) -> Option<String> {
        let text = self.text()?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = written.as_ref().is_some_and(|(at, known)| *known == text && at.elapsed() < FLUSH);
        if is_known {
            return None;
        }
        *written = Some((Instant::now(), text.clone()));
        Some(Value::String(text).to_string())
    }
}
