//! Ends jobs early: those that a [newer one](super::newest) replaces, and those whose [twin](super::twins) was built.
//!
//! Each process compares its running jobs with the records. One process of the fleet reads each queue while jobs wait there. It
//! records the newest job of each key, and takes jobs that only have to end from their queue, beside the slots.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::custody::Handle;
use super::inflight::Token;
use super::newest::{self, Edition};
use super::part::{BESIDE, Extent, NEWEST, PART, Part};
use super::running::RunningJobs;
use super::tenant::{self, Candidate};
use super::{Identity, keys, twins, waiting};
use crate::clock::Epoch;
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::settings::{Jobs, Tenants};
use crate::{bounds, hex};

static USHER: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("edition.lua"), include_str!("usher.lua"))));

/// The pause between two looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Life of the lock of a queue.
const LOCKED: Duration = Duration::from_secs(1);

/// How many parts the end of a queue may take.
const MOST_PARTS: usize = 4;

/// How many jobs may be beside the slots, in any state.
const USHERED: usize = 32;

/// How many elements of lists Redis may search in one look. It does nothing else meanwhile, for some ten milliseconds.
const SEARCHED: usize = 50_000;

/// How many keys a pass over the queues remembers.
const SEEN: usize = 20_000;

/// How soon the same job is taken again.
const AGAIN: Duration = Duration::from_secs(5);

/// Whether any job may end early.
pub fn is_on(jobs: &Jobs, tenants: &Tenants) -> bool {
    newest::is_on(jobs, tenants) || tenants.coalesce
}

/// What a watch needs.
#[derive(Debug)]
pub struct Watch<'a> {
    /// A connection.
    pub redis: &'a Redis,
    /// This process.
    pub identity: &'a Identity,
    /// How jobs are read.
    pub jobs: &'a Jobs,
    /// The same.
    pub tenants: &'a Tenants,
    /// The queues of this process.
    pub queues: Vec<String>,
    /// How many jobs it may run.
    pub n_slots: usize,
    /// What it runs.
    pub running: &'a RunningJobs,
    /// Custody.
    pub handle: &'a Handle,
}

/// What a watch keeps between looks.
#[derive(Default)]
struct Memory {
    queues: HashMap<String, Reading>,
    /// The jobs of the last looks, most of which the next ones have too.
    read: HashMap<Arc<[u8]>, Arc<Candidate>>,
    /// Jobs that were taken a moment ago.
    ushered: HashMap<Arc<[u8]>, Instant>,
    /// Numbers the tokens.
    n_tokens: u64,
}

/// How far the reading of a queue is.
#[derive(Default)]
struct Reading {
    /// Where the next part of a long queue begins.
    n_read: usize,
    /// The first job of each key in this pass over the queue, by jid.
    seen: HashMap<String, String>,
    /// Not before.
    at: Option<Instant>,
}

/// A waiting job.
struct Found {
    queue: String,
    candidate: Arc<Candidate>,
    place: Place,
}

/// Where a job was read. Redis searches for it from there.
#[derive(Clone, Copy)]
struct Place {
    /// Otherwise near the end.
    is_near_head: bool,
    /// How many jobs are between it and there, at most.
    distance: usize,
}

/// A waiting job that only has to end. The script checks it again.
struct Ending<'f> {
    found: &'f Found,
    why: Why<'f>,
}

/// Why a job only has to end.
#[derive(Clone, Copy)]
enum Why<'f> {
    /// There is a newer one, which gets its place when it waits.
    Superseded { heir: Option<&'f Found> },
    /// The result of its twin is known.
    Built,
}

impl Watch<'_> {
    /// Watches until `ended`. After `quiet` it takes nothing from queues.
    pub async fn run(&self, quiet: &CancellationToken, ended: &CancellationToken) {
        if is_on(self.jobs, self.tenants) {
            tokio::join!(self.watch_running(ended), self.watch_queues(quiet));
        }
    }

    async fn watch_running(&self, ended: &CancellationToken) {
        let mut complaint = Complaint::new("running_not_watched", "newer jobs cannot end builds that run");
        while ended.run_until_cancelled(sleep(PERIOD)).await.is_some() {
            complaint.hear(self.end_running().await);
        }
    }

    /// Stops running jobs of this process that a newer one ends, and records those that are the newest: their first record may have been
    /// refused or lost.
    async fn end_running(&self) -> Result<(), RedisError> {
        let running = self.running.snapshot();
        let running = running.iter().filter(|job| !job.iteration.cancelled.is_cancelled());
        let running: Vec<_> = running.filter_map(|job| Some((job, job.iteration.edition()?))).collect();
        let records = newest::records(self.redis, running.iter().map(|(_, edition)| edition.key.as_str())).await?;
        let mut result = Ok(());
        for ((job, edition), record) in running.into_iter().zip(records) {
            match record.as_deref().and_then(|record| edition.compare(record)) {
                Some((newer, true)) => {
                    let (token, jid) = (&job.unit.token, job.iteration.jid());
                    tracing::debug!(event = "job_superseded", %token, jid, newer = newer.jid, "a newer job ends this build");
                    job.iteration.supersede(newer);
                }
                Some((_, false)) => {}
                None if record.is_some_and(|record| edition.is_recorded(&record)) => {}
                None => result = result.and(newest::enter(self.redis, edition).await.map(drop)),
            }
        }
        result
    }

    async fn watch_queues(&self, quiet: &CancellationToken) {
        let mut complaint = Complaint::new("queue_not_watched", "jobs that only have to end wait for a slot");
        let (mut memory, digest) = (Memory::default(), self.digest());
        while quiet.run_until_cancelled(sleep(PERIOD)).await.is_some() {
            // An idle process takes each job at once, and each job looks at the records when it begins.
            if self.running.n_jobs() == 0 && !self.handle.sees_waiting() {
                memory = Memory { n_tokens: memory.n_tokens, ..Memory::default() };
            } else if self.handle.takes_jobs() {
                complaint.hear(self.look(&mut memory, &digest, quiet).await);
            }
        }
    }

    /// Names the settings that decide which jobs end others. Processes with the same ones take turns.
    fn digest(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(format!("{:?} {}", self.tenants.supersede, self.tenants.coalesce));
        for (name, class) in &self.jobs.classes {
            digest.update(format!("\n{name} {:?} {:?} {:?}", class.supersede, class.supersede_key, class.tenant));
        }
        hex::encode(&digest.finalize()[..6])
    }

    /// Looks at all queues. Goes on after an error, and returns the first one.
    async fn look(&self, memory: &mut Memory, digest: &str, quiet: &CancellationToken) -> Result<(), RedisError> {
        let (before, now) = (std::mem::take(&mut memory.read), Epoch::now());
        let (mut found, mut result) = (Vec::new(), Ok(()));
        let paused = waiting::paused(self.redis).await.unwrap_or_default();
        for queue in self.queues.iter().filter(|queue| !paused.contains(*queue)) {
            let mut reading = memory.queues.remove(queue).unwrap_or_default();
            if reading.at.is_none_or(|at| at <= Instant::now()) {
                if reading.n_read == 0 {
                    reading.seen.clear();
                }
                match self.jobs(&mut reading, queue, digest).await {
                    Ok(jobs) => {
                        let waiting = jobs.into_iter().map(|(text, place)| {
                            let read = || Arc::new(tenant::read(&text, self.jobs, self.tenants));
                            let known =
                                before.get(&text).filter(|known| known.expiry.is_none_or(|at| at > now)).cloned();
                            let candidate = known.unwrap_or_else(read);
                            memory.read.insert(text, Arc::clone(&candidate));
                            Found { queue: queue.clone(), candidate, place }
                        });
                        found.extend(waiting);
                    }
                    Err(error) => {
                        reading.at = Some(Instant::now() + BESIDE);
                        result = result.and(Err(error));
                    }
                }
            }
            memory.queues.insert(queue.clone(), reading);
        }
        let (mut endings, recorded) = self.superseded(memory, &found).await;
        let built = self.built(&found).await.map(|built| endings.splice(0..0, built)).map(drop);
        let ushered = self.usher(memory, &endings, quiet).await;
        result.and(recorded).and(built).and(ushered)
    }

    /// The jobs of a queue: all of a short one; of a long one, the next part and the end. None where another process reads it.
    async fn jobs(
        &self,
        reading: &mut Reading,
        queue: &str,
        digest: &str,
    ) -> Result<Vec<(Arc<[u8]>, Place)>, RedisError> {
        let lock = keys::watch(queue, digest);
        let read = async |n_before, n| {
            let extent = Extent { n_before, n, longest: bounds::WINDOW, locked: LOCKED };
            Part::read(self.redis, self.identity, queue, &lock, extent).await
        };
        let Some(part) = read(reading.n_read, PART).await? else {
            reading.at = Some(Instant::now() + BESIDE);
            return Ok(Vec::new());
        };
        let (mut n_read, n_waiting) = (reading.n_read + part.n_read, part.n_waiting);
        let near_head = Place { is_near_head: true, distance: n_read };
        let mut jobs: Vec<_> = part.texts.into_iter().map(|text| (text, near_head)).collect();
        // A part that ends at the end of the queue ends the pass.
        let is_over = part.n_read == 0 || n_read >= n_waiting;
        reading.n_read = if is_over { 0 } else { n_read };
        n_read = n_waiting.saturating_sub(NEWEST).max(n_read);
        // Long jobs take more than one part.
        for _ in 0..MOST_PARTS {
            if is_over || n_read >= n_waiting {
                break;
            }
            let Some(part) = read(n_read, NEWEST).await?.filter(|part| part.n_read > 0) else { break };
            n_read += part.n_read;
            let near_end = Place { is_near_head: false, distance: NEWEST };
            jobs.extend(part.texts.into_iter().map(|text| (text, near_end)));
        }
        Ok(jobs)
    }

    /// Records the newest waiting job of each key where that matters: others wait, or one runs. Returns the older ones. Goes on after an
    /// error, and returns the first one.
    async fn superseded<'f>(
        &self,
        memory: &mut Memory,
        found: &'f [Found],
    ) -> (Vec<Ending<'f>>, Result<(), RedisError>) {
        let mut by_key: BTreeMap<&str, Vec<(&Found, &Edition)>> = BTreeMap::new();
        for one in found {
            if let Some(edition) = &one.candidate.edition {
                by_key.entry(&edition.key).or_default().push((one, edition));
            }
        }
        let counters = by_key.values().map(|found| found[0].1.counter().name);
        let known = async {
            let records = newest::records(self.redis, by_key.keys().copied()).await?;
            Ok::<_, RedisError>((records, newest::running(self.redis, counters).await?))
        };
        let (records, n_running) = match known.await {
            Ok(known) => known,
            Err(error) => return (Vec::new(), Err(error)),
        };
        let (mut endings, mut result) = (Vec::new(), Ok(()));
        for ((waiting, mut record), n_running) in by_key.into_values().zip(records).zip(n_running) {
            let Some(best) = waiting.iter().max_by_key(|(_, edition)| edition.order()) else { continue };
            let is_recorded = record.as_deref().is_some_and(|record| best.1.is_recorded(record));
            let others = waiting.len() > 1 || n_running > 0 || memory.has_seen_another(&best.0.queue, best.1);
            if !is_recorded && others {
                match newest::compare(self.redis, best.1, Some(best.0.place())).await {
                    Ok(newer) => record = newer,
                    Err(error) => result = result.and(Err(error)),
                }
            }
            for (found, edition) in &waiting {
                let heir = best.1.ends(edition).then_some(best.0);
                let is_older = record.as_deref().is_some_and(|record| edition.compare(record).is_some());
                if heir.is_some() || is_older {
                    endings.push(Ending { found, why: Why::Superseded { heir } });
                }
            }
        }
        (endings, result)
    }

    /// The waiting jobs whose twin was built while they waited.
    async fn built<'f>(&self, found: &'f [Found]) -> Result<Vec<Ending<'f>>, RedisError> {
        let found = found.iter().filter(|one| one.candidate.has_inputs);
        let twins: BTreeSet<&str> = found.clone().filter_map(|one| one.candidate.twin.as_deref()).collect();
        let ended = twins::ended(self.redis, &twins).await?;
        let is_built = |one: &&Found| {
            let ended_us = one.candidate.twin.as_deref().and_then(|twin| ended.get(twin));
            ended_us.zip(one.candidate.queued_us).is_some_and(|(ended_us, queued_us)| queued_us <= *ended_us)
        };
        Ok(found.filter(is_built).map(|found| Ending { found, why: Why::Built }).collect())
    }

    /// Takes jobs from their queues that end as soon as they begin. Goes on after an error, and returns the first one.
    async fn usher(
        &self,
        memory: &mut Memory,
        endings: &[Ending<'_>],
        quiet: &CancellationToken,
    ) -> Result<(), RedisError> {
        let (mut n_ushered, mut n_bytes, mut n_searched, mut result) = (0, self.running.size_bytes(), 0, Ok(()));
        memory.ushered.retain(|_, at| at.elapsed() < AGAIN);
        for ending in endings {
            let Found { candidate, place, .. } = ending.found;
            let is_enough = n_ushered == USHERED || n_searched >= SEARCHED;
            if is_enough || n_bytes + candidate.text.len() > bounds::JOBS || quiet.is_cancelled() {
                break;
            }
            // It came back: it has to be built after all.
            if memory.ushered.contains_key(&candidate.text) {
                continue;
            }
            memory.n_tokens += 1;
            n_searched += place.distance;
            match self.take(ending, &Token::beside(memory.n_tokens)).await {
                Ok(true) => {
                    memory.ushered.insert(Arc::clone(&candidate.text), Instant::now());
                    n_ushered += 1;
                    n_bytes += candidate.text.len();
                }
                Ok(false) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        if n_ushered > 0 {
            self.handle.reconcile.notify_one();
        }
        result
    }

    async fn take(&self, ending: &Ending<'_>, token: &Token) -> Result<bool, RedisError> {
        let Found { queue, candidate, place } = ending.found;
        let (why, record, at_us, heir) = match (ending.why, &candidate.edition, &candidate.twin) {
            (Why::Superseded { heir }, Some(edition), _) => {
                ("superseded", keys::newest(&edition.key), edition.created_us, heir.filter(|heir| heir.queue == *queue))
            }
            (_, _, Some(twin)) => ("built", keys::twin(twin), candidate.queued_us.unwrap_or(u64::MAX), None),
            _ => return Ok(false),
        };
        let jid = candidate.edition.as_ref().map_or("", |edition| &edition.jid);
        let mut script = USHER.key(keys::queue(queue));
        script.key(record).key(keys::inflight(self.identity)).key(keys::lease(self.identity)).key(keys::PAUSED);
        script.arg(self.handle.incarnation()).arg(token.as_str()).arg(queue).arg(&*candidate.text);
        script.arg(at_us).arg(why).arg(jid).arg(candidate.twin.as_deref().unwrap_or_default());
        script.arg(self.n_slots + USHERED).arg(place.rank());
        // The newer one takes the place of the older one, or a branch with many pushes would never be built.
        script.arg(heir.map_or("1", |heir| heir.place.rank()));
        script.arg(heir.map_or(&[][..], |heir| &heir.candidate.text));
        self.redis.script(&script).await
    }
}

impl Memory {
    /// Notes the first job of a key in this pass over a queue. Returns whether it is another one.
    fn has_seen_another(&mut self, queue: &str, edition: &Edition) -> bool {
        let Some(reading) = self.queues.get_mut(queue) else { return false };
        match reading.seen.get(&edition.key) {
            Some(jid) => *jid != edition.jid,
            None => {
                if reading.seen.len() < SEEN {
                    reading.seen.insert(edition.key.clone(), edition.jid.clone());
                }
                false
            }
        }
    }
}

impl Place {
    /// The argument of LPOS and LREM.
    fn rank(self) -> &'static str {
        if self.is_near_head { "-1" } else { "1" }
    }
}

impl Found {
    fn place(&self) -> newest::Place<'_> {
        newest::Place { queue: &self.queue, text: &self.candidate.text, rank: self.place.rank() }
    }
}
