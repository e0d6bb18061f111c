//! Shows in `it-<jid>` where waiting jobs stand, as [`super::iteration`] shows the progress of running ones.
//!
//! Sidekiq's Web UI shows the hash of running jobs and of retries; an application reads that of any job
//! (`Sidekiq::JobRecord#iterable_state`). One process of the fleet looks at each queue while jobs wait there.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::custody::Handle;
use super::part::{Extent, Part};
use super::payload::Payload;
use super::running::RunningJobs;
use super::{Identity, iteration, keys, line, tenant, waiting};
use crate::bounds;
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::settings::{Jobs, Tenants};

static QUEUED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("queued.lua")));

/// The pause between two looks. An idle worker looks once in so many.
const PERIOD: Duration = Duration::from_secs(2);
const IDLE: u32 = 10;

/// Life of the lock of a queue.
const LOCKED: Duration = Duration::from_secs(5);

/// How long Redis keeps a hash after the last look. Longer than an outage of the fleet: the mark of a job that is cancelled meanwhile
/// lives as long.
const SHOWN: Duration = Duration::from_secs(24 * 60 * 60);

/// Jobs at the head of a queue that are shown.
const MOST: usize = 100;

/// What the task needs.
#[derive(Debug)]
pub struct Queued<'a> {
    /// A connection.
    pub redis: &'a Redis,
    /// This process.
    pub identity: &'a Identity,
    /// How jobs are read.
    pub jobs: &'a Jobs,
    /// How they share the slots.
    pub tenants: &'a Tenants,
    /// The queues of this process.
    pub queues: Vec<String>,
    /// What it runs.
    pub running: &'a RunningJobs,
    /// Custody.
    pub handle: &'a Handle,
}

impl Queued<'_> {
    /// Looks at the queues until `quiet`: often while jobs run or wait, else now and then for the jobs of paused queues.
    pub async fn run(&self, quiet: &CancellationToken) {
        let mut complaint = Complaint::new("queued_not_shown", "waiting jobs do not show what they wait for");
        let (mut limits, mut tenants) = (self.handle.limits().subscribe(), self.tenants.clone());
        let mut n_idle = 0;
        while quiet.run_until_cancelled(sleep(PERIOD)).await.is_some() {
            let is_busy = self.running.n_jobs() > 0 || self.handle.sees_waiting();
            n_idle = if is_busy { 0 } else { n_idle + 1 };
            if n_idle % IDLE == 0 {
                tenants.others.clone_from(&limits.borrow_and_update());
                complaint.hear(self.look(&tenants).await);
            }
        }
    }

    async fn look(&self, tenants: &Tenants) -> Result<(), RedisError> {
        let paused = waiting::paused(self.redis).await.unwrap_or_default();
        let mut result = Ok(());
        for queue in &self.queues {
            result = result.and(self.show(queue, tenants, paused.contains(queue)).await);
        }
        result
    }

    /// Shows the jobs at the head of a queue, unless another process does.
    async fn show(&self, queue: &str, tenants: &Tenants, is_paused: bool) -> Result<(), RedisError> {
        let lock = keys::queued(queue);
        let extent = Extent { n_before: 0, n: MOST, longest: bounds::WINDOW, locked: LOCKED };
        let Some(part) = Part::read(self.redis, self.identity, queue, &lock, extent).await? else { return Ok(()) };
        if part.texts.is_empty() {
            return Ok(());
        }
        let read = |text| Arc::new(tenant::read(text, self.jobs, tenants));
        let jobs: Vec<_> = part.texts.iter().map(read).collect();
        let standing = line::standing(self.redis, &jobs).await?;
        let waits = line::waits(&jobs, &standing, line::Rule::of(is_paused, self.jobs, tenants));
        let mut script = QUEUED.key(keys::queue(queue));
        script.key(lock).arg(self.identity.to_string()).arg(part.n_read);
        script.arg(SHOWN.as_secs()).arg(iteration::TTL.as_secs());
        let mut seen = HashSet::new();
        for (text, wait) in part.texts.iter().zip(waits) {
            let payload = Payload::parse_shared(text).ok();
            // A class that is not this worker's may be one of Ruby's own iterable jobs, which keep their cursor in the same hash.
            let runs_here = |payload: &Payload| self.jobs.runs(&payload.class) && !payload.jid.is_empty();
            // A job that was pushed twice shows its first place.
            let is_first = |payload: &Payload| runs_here(payload) && seen.insert(payload.jid.clone());
            if let Some(payload) = payload.filter(is_first) {
                let shown = serde_json::to_string(&wait.to_string()).expect("a text is plain data");
                let digest = sha1_smol::Sha1::from(text).digest().to_string();
                script.key(keys::iteration(&payload.jid)).arg(digest).arg(shown);
            }
        }
        if seen.is_empty() { Ok(()) } else { self.redis.script(&script).await }
    }
}
