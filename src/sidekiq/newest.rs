//! Newest commit wins: of the jobs that build the same, only the newest one is built.
//!
//! Jobs build the same when they have the same account, repository and `ref`, or the same `supersede_key`. A counter with a limit of 1
//! ([`Edition::counter`]) keeps them from running at once. `sidebake:newest:<key>` records the newest one that any worker has seen. A job
//! compares itself with the record when it begins, and ends when there is a newer one. So a retry of an old job never beats a newer one,
//! whatever happened to the workers in between.
//!
//! [`Watch`] makes that quick. One busy process of the fleet reads each queue for newer jobs, records them, and takes older ones from
//! the queue, beside the slots, so that they end at once. Each busy process compares its running jobs with the records.
//!
//! Newer is the job that Rails created later: a retry keeps its `created_at`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::custody::Handle;
use super::inflight::Token;
use super::iteration::TTL;
use super::part::Part;
use super::running::RunningJobs;
use super::tenant::{self, Counter};
use super::{Identity, keys};
use crate::event::Newer;
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::settings::{Jobs, Tenants};
use crate::{bounds, hex};

static NEWEST: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("edition.lua"), include_str!("newest.lua"))));
static USHER: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("edition.lua"), include_str!("usher.lua"))));

/// The pause between two looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Jobs in a part of a queue: of the queue from its head on, and of its end, where new jobs are.
const PART: usize = 800;
const NEWEST_JOBS: usize = 200;

/// How many jobs one look may take from a queue.
const USHERED: usize = 32;

/// After how many looks the records are read again of jobs that were recorded.
const REREAD: u32 = 8;

/// A job among those that build the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edition {
    /// Names what is built: a hash.
    pub key: String,
    /// When Rails created the job, in microseconds.
    pub created_us: u64,
    /// Its jid.
    pub jid: String,
    /// As in the job.
    pub build_id: Option<Value>,
    /// Whether it also ends an older one that runs.
    pub ends_running: bool,
}

/// Whether any job may end others. The settings of an account count for classes that say nothing.
pub fn is_on(jobs: &Jobs, tenants: &Tenants) -> bool {
    jobs.classes.values().any(|class| class.supersede.is_some()) || !tenants.supersede.is_empty()
}

/// The key of jobs that build the same: a hash of what names it. The names may be long.
pub(super) fn key(tenant: &str, what: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in [tenant].iter().chain(what) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(&digest.finalize()[..12])
}

impl Edition {
    /// Lets one job of a key run at a time.
    pub(super) fn counter(&self) -> Counter {
        Counter { name: format!("newest {}", self.key), limit: Some(1) }
    }

    /// What sorts the jobs of a key.
    fn order(&self) -> (u64, &str) {
        (self.created_us, &self.jid)
    }

    /// As edition.lua has it.
    fn record(&self) -> String {
        let build_id = self.build_id.as_ref().map(Value::to_string).unwrap_or_default();
        format!("{}\n{}\n{}\n{build_id}", self.created_us, self.jid, u8::from(self.ends_running))
    }

    /// The job of a record when it is newer, and whether it ends one that runs.
    fn compare(&self, record: &str) -> Option<(Newer, bool)> {
        let mut lines = record.splitn(4, '\n');
        let (created, jid) = (lines.next()?.parse().ok()?, lines.next()?);
        let (ends_running, build_id) = (lines.next()? == "1", lines.next()?);
        let newer = Newer { jid: jid.to_owned(), build_id: serde_json::from_str(build_id).ok() };
        ((created, jid) > self.order()).then_some((newer, ends_running))
    }
}

/// Records a job that begins as the newest one of its key, unless there is a newer one. Returns that one.
pub async fn enter(redis: &Redis, edition: &Edition) -> Result<Option<Newer>, RedisError> {
    compare(redis, edition, None).await
}

/// The same for a job that waits in the list of a queue.
async fn compare(
    redis: &Redis,
    edition: &Edition,
    waiting: Option<(&str, &[u8])>,
) -> Result<Option<Newer>, RedisError> {
    let mut script = NEWEST.key(keys::newest(&edition.key));
    script.arg(edition.created_us).arg(&edition.jid).arg(edition.record()).arg(TTL.as_secs());
    if let Some((queue, text)) = waiting {
        script.key(keys::queue(queue)).arg(text);
    }
    let record: Option<String> = redis.script(&script).await?;
    Ok(record.and_then(|record| edition.compare(&record)).map(|(newer, _)| newer))
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
    /// What it runs.
    pub running: &'a RunningJobs,
    /// Custody.
    pub handle: &'a Handle,
}

/// What a watch keeps between looks.
#[derive(Default)]
struct Memory {
    /// Where the reading of a long queue goes on.
    n_read: HashMap<String, usize>,
    /// The jobs of the last looks, most of which the next ones have too.
    read: HashMap<Arc<[u8]>, Option<Arc<Edition>>>,
    /// The newest job of each key that is recorded or was found in a record.
    known: HashMap<String, (u64, String)>,
    n_looks: u32,
    /// Numbers the tokens.
    n_tokens: u64,
}

/// A waiting job that takes part.
struct Found {
    queue: String,
    text: Arc<[u8]>,
    edition: Arc<Edition>,
}

impl Watch<'_> {
    /// Looks until `ended`, while this process runs jobs. After `quiet` it takes nothing from queues.
    pub async fn run(&self, quiet: &CancellationToken, ended: &CancellationToken) {
        if !is_on(self.jobs, self.tenants) {
            return;
        }
        let mut complaint = Complaint::new("newest_not_watched", "older builds of a branch cannot be ended early");
        let mut memory = Memory::default();
        while ended.run_until_cancelled(sleep(PERIOD)).await.is_some() {
            // An idle process takes each job at once, and each job looks at the record when it begins.
            if self.running.n_jobs() == 0 {
                memory = Memory { n_tokens: memory.n_tokens, ..Memory::default() };
                continue;
            }
            complaint.hear(self.look(&mut memory, quiet).await);
        }
    }

    async fn look(&self, memory: &mut Memory, quiet: &CancellationToken) -> Result<(), RedisError> {
        self.end_running().await?;
        if quiet.is_cancelled() {
            return Ok(());
        }
        memory.n_looks += 1;
        if memory.n_looks.is_multiple_of(REREAD) {
            memory.known.clear();
        }
        let mut found = Vec::new();
        let before = std::mem::take(&mut memory.read);
        let paused: BTreeSet<String> = self.redis.query(redis::cmd("SMEMBERS").arg(keys::PAUSED)).await?;
        for queue in self.queues.iter().filter(|queue| !paused.contains(*queue)) {
            for text in self.texts(memory, queue).await? {
                let read = || tenant::read(&text, self.jobs, self.tenants).edition.map(Arc::new);
                let edition = before.get(&text).cloned().unwrap_or_else(read);
                if let Some(edition) = &edition {
                    found.push(Found { queue: queue.clone(), text: Arc::clone(&text), edition: Arc::clone(edition) });
                }
                memory.read.insert(text, edition);
            }
        }
        self.record(memory, &found).await?;
        self.usher(memory, &found).await
    }

    /// Stops running jobs of this process that a newer one ends.
    async fn end_running(&self) -> Result<(), RedisError> {
        let mut running = self.running.snapshot();
        running.retain(|job| job.iteration.edition().is_some() && !job.iteration.cancelled.is_cancelled());
        let names = running.iter().filter_map(|job| Some(keys::newest(&job.iteration.edition()?.key)));
        let names: Vec<String> = names.collect();
        if names.is_empty() {
            return Ok(());
        }
        let records: Vec<Option<String>> = self.redis.query(redis::cmd("MGET").arg(names)).await?;
        for (job, record) in running.iter().zip(records) {
            let newer = job.iteration.edition().zip(record).and_then(|(edition, record)| edition.compare(&record));
            if let Some((newer, true)) = newer {
                let (token, jid) = (&job.unit.token, job.iteration.jid());
                tracing::info!(event = "job_superseded", %token, jid, newer = newer.jid, "a newer job ends this build");
                job.iteration.supersede(newer);
            }
        }
        Ok(())
    }

    /// The jobs of a queue: all of a short one; of a long one, the next part and the end. None where another process reads it.
    async fn texts(&self, memory: &mut Memory, queue: &str) -> Result<Vec<Arc<[u8]>>, RedisError> {
        let n_before = memory.n_read.get(queue).copied().unwrap_or(0);
        let Some(part) = self.read(queue, n_before, PART).await? else { return Ok(Vec::new()) };
        let (n_read, n_waiting) = (n_before + part.n_read, part.n_waiting);
        // A part that ends at the end of the queue ends the pass.
        let is_over = part.n_read == 0 || n_read >= n_waiting;
        memory.n_read.insert(queue.to_owned(), if is_over { 0 } else { n_read });
        let mut texts = part.texts;
        if !is_over {
            let n_before_newest = n_waiting.saturating_sub(NEWEST_JOBS).max(n_read);
            texts.extend(self.read(queue, n_before_newest, NEWEST_JOBS).await?.into_iter().flat_map(|part| part.texts));
        }
        Ok(texts)
    }

    async fn read(&self, queue: &str, n_before: usize, n: usize) -> Result<Option<Part>, RedisError> {
        Part::read(self.redis, self.identity, queue, keys::watch(queue), n_before, n).await
    }

    /// Records the newest waiting job of each key.
    async fn record(&self, memory: &mut Memory, found: &[Found]) -> Result<(), RedisError> {
        let mut newest: BTreeMap<&str, &Found> = BTreeMap::new();
        for one in found {
            let best = newest.entry(&one.edition.key).or_insert(one);
            if one.edition.order() > best.edition.order() {
                *best = one;
            }
        }
        for (key, Found { queue, text, edition }) in newest {
            let is_known = memory.known.get(key).is_some_and(|(at, jid)| (*at, jid.as_str()) >= edition.order());
            if is_known {
                continue;
            }
            let newer = compare(self.redis, edition, Some((queue, text))).await?;
            // Of a newer one, only that it is newer matters.
            let known = newer.map_or((edition.created_us, edition.jid.clone()), |_| (u64::MAX, String::new()));
            memory.known.insert(key.to_owned(), known);
        }
        // Keys of jobs that wait no more.
        memory.known.retain(|key, _| found.iter().any(|one| one.edition.key == *key));
        Ok(())
    }

    /// Takes older jobs from their queues. They end as soon as they begin.
    async fn usher(&self, memory: &mut Memory, found: &[Found]) -> Result<(), RedisError> {
        let (mut n_ushered, mut n_bytes) = (0, self.running.size_bytes());
        let is_older = |one: &&Found| {
            let known = memory.known.get(&one.edition.key);
            known.is_some_and(|(at, jid)| (*at, jid.as_str()) > one.edition.order())
        };
        for Found { queue, text, edition } in found.iter().filter(is_older) {
            if n_ushered == USHERED || n_bytes + text.len() > bounds::JOBS {
                break;
            }
            memory.n_tokens += 1;
            let token = Token::beside(memory.n_tokens);
            let mut script = USHER.key(keys::queue(queue));
            script.key(keys::newest(&edition.key)).key(keys::inflight(self.identity)).key(keys::lease(self.identity));
            script.key(keys::PAUSED).arg(self.handle.incarnation()).arg(token.as_str()).arg(queue).arg(&**text);
            script.arg(edition.created_us).arg(&edition.jid);
            if self.redis.script(&script).await? {
                n_ushered += 1;
                n_bytes += text.len();
            }
        }
        if n_ushered > 0 {
            self.handle.reconcile.notify_one();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edition(created_us: u64, jid: &str) -> Edition {
        let build_id = Some(json!("b\n7"));
        Edition {
            key: key("acme", &["acme/app", "refs/heads/main"]),
            created_us,
            jid: jid.into(),
            build_id,
            ends_running: true,
        }
    }

    #[test]
    fn a_record_names_the_newer_job_to_an_older_one_only() {
        let newer = edition(2_000_000, "b");
        let named = (Newer { jid: "b".into(), build_id: Some(json!("b\n7")) }, true);
        for (older, expected) in [
            (edition(1_999_999, "c"), Some(named.clone())),
            (edition(2_000_000, "a"), Some(named)),
            (newer.clone(), None),
            (edition(2_000_000, "c"), None),
            (edition(10_000_000, "a"), None),
        ] {
            assert_eq!(older.compare(&newer.record()), expected, "{older:?}");
        }
        assert_eq!(newer.compare("nonsense"), None);
        let unnamed = Edition { build_id: None, ..edition(2, "b") };
        assert_eq!(edition(1, "a").compare(&unnamed.record()).map(|(newer, _)| newer.build_id), Some(None));
    }

    #[test]
    fn names_that_run_together_have_different_keys() {
        let keys = [key("a", &["b", "c"]), key("ab", &["c"]), key("a", &["bc"]), key("a", &["b", "", "c"])];
        let distinct: BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), 4);
    }
}
