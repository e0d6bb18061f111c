//! Newest commit wins: of the jobs that build the same, only the newest one is built.
//!
//! Jobs build the same when they have the same account, repository and `ref`, or the same `supersede_key`. A counter with a limit of 1
//! (`Edition::counter`) keeps them from running at once. `sidebake:newest:<key>` records the newest one that any worker has seen. A job
//! compares itself with the record when it begins, and ends when there is a newer one. So a retry of an old job never beats a newer one,
//! whatever happened to the workers in between. [`super::watch`] makes that quick.
//!
//! Newer is the job that Rails created later: a retry keeps its `created_at`.

use std::sync::LazyLock;

use serde_json::Value;

use super::iteration::TTL;
use super::keys;
use super::tenant::Counter;
use crate::event::OtherJob;
use crate::json;
use crate::redis::{Redis, RedisError, Script};
use crate::settings::{Jobs, Tenants};

static NEWEST: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("edition.lua"), include_str!("newest.lua"))));

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
    /// What tells its inputs from others. One with the same inputs does not end it.
    pub twin: Option<String>,
}

/// Whether any job may end others. The settings of an account count for classes that say nothing.
pub fn is_on(jobs: &Jobs, tenants: &Tenants) -> bool {
    jobs.classes.values().any(|class| class.supersede.is_some()) || !tenants.supersede.is_empty()
}

impl Edition {
    /// Lets one job of a key run at a time.
    pub(super) fn counter(&self) -> Counter {
        Counter { name: format!("newest {}", self.key), limit: Some(1) }
    }

    /// What sorts the jobs of a key.
    pub(super) fn order(&self) -> (u64, &str) {
        (self.created_us, &self.jid)
    }

    /// Whether it ends this other one, which waits.
    pub(super) fn ends(&self, other: &Self) -> bool {
        let are_twins = self.twin.is_some() && self.twin == other.twin;
        self.key == other.key && self.order() > other.order() && !are_twins
    }

    /// As edition.lua has it.
    pub(super) fn record(&self) -> String {
        let build_id = self.build_id.as_ref().map(Value::to_string).unwrap_or_default();
        let twin = self.twin.as_deref().unwrap_or_default();
        format!("{}\n{}\n{}\n{twin}\n{build_id}", self.created_us, self.jid, u8::from(self.ends_running))
    }

    /// The job of a record when it is newer and builds something else, and whether it ends one that runs.
    pub(super) fn compare(&self, record: &str) -> Option<(OtherJob, bool)> {
        let record = Record::read(record)?;
        let is_twin = self.twin.as_deref() == Some(record.twin);
        let newer = OtherJob { jid: record.jid.to_owned(), build_id: json::read(record.build_id.as_bytes()).ok() };
        (!is_twin && record.order() > self.order()).then_some((newer, record.ends_running))
    }

    /// Whether a record is of this job or of a newer one.
    pub(super) fn is_recorded(&self, record: &str) -> bool {
        Record::read(record).is_some_and(|record| record.order() >= self.order())
    }
}

/// A record, as edition.lua has it.
struct Record<'a> {
    created_us: u64,
    jid: &'a str,
    ends_running: bool,
    twin: &'a str,
    build_id: &'a str,
}

impl<'a> Record<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut lines = text.splitn(5, '\n');
        let (created_us, jid) = (lines.next()?.parse().ok()?, lines.next()?);
        let (ends_running, twin, build_id) = (lines.next()? == "1", lines.next()?, lines.next()?);
        Some(Self { created_us, jid, ends_running, twin, build_id })
    }

    fn order(&self) -> (u64, &str) {
        (self.created_us, self.jid)
    }
}

/// Where a job waits.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub queue: &'a str,
    pub text: &'a [u8],
    /// Where Redis begins to search for it: the argument of LPOS.
    pub rank: &'static str,
}

/// Records a job that begins as the newest one of its key, unless there is a newer one. Returns that one.
pub async fn enter(redis: &Redis, edition: &Edition) -> Result<Option<OtherJob>, RedisError> {
    let record = compare(redis, edition, None).await?;
    Ok(record.and_then(|record| edition.compare(&record)).map(|(newer, _)| newer))
}

/// The same for a waiting job, while it waits there. Returns the record of the newer one.
pub(super) async fn compare(
    redis: &Redis,
    edition: &Edition,
    place: Option<Place<'_>>,
) -> Result<Option<String>, RedisError> {
    let mut script = NEWEST.key(keys::newest(&edition.key));
    script.arg(edition.created_us).arg(&edition.jid).arg(edition.twin.as_deref().unwrap_or_default());
    script.arg(edition.record()).arg(TTL.as_secs());
    if let Some(Place { queue, text, rank }) = place {
        script.key(keys::queue(queue)).key(keys::iteration(&edition.jid)).arg(text).arg(rank);
    }
    redis.script(&script).await
}

/// Whether no job with other inputs is the newest one of the key so far.
pub async fn follows_its_twin(redis: &Redis, edition: &Edition) -> Result<bool, RedisError> {
    let record = records(redis, [edition.key.as_str()].into_iter()).await?.pop().flatten();
    let record = record.as_deref().and_then(Record::read);
    Ok(record.is_none_or(|record| record.jid == edition.jid || edition.twin.as_deref() == Some(record.twin)))
}

/// The records of these keys.
pub(super) async fn records<'a>(
    redis: &Redis,
    keys: impl Iterator<Item = &'a str>,
) -> Result<Vec<Option<String>>, RedisError> {
    let names: Vec<String> = keys.map(super::keys::newest).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    redis.query(redis::cmd("MGET").arg(names)).await
}

/// How many jobs run by each of these counters.
pub(super) async fn running(redis: &Redis, counters: impl Iterator<Item = String>) -> Result<Vec<i64>, RedisError> {
    let names: Vec<String> = counters.collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let counts: Vec<Option<i64>> = redis.query(redis::cmd("HMGET").arg(keys::RUNNING).arg(names)).await?;
    Ok(counts.into_iter().map(Option::unwrap_or_default).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sidekiq::tenant;

    fn edition(created_us: u64, jid: &str) -> Edition {
        let build_id = Some(json!("b\n7"));
        Edition {
            key: tenant::key("acme", &["acme/app", "refs/heads/main"]),
            created_us,
            jid: jid.into(),
            build_id,
            ends_running: true,
            twin: None,
        }
    }

    #[test]
    fn a_record_names_the_newer_job_to_an_older_one_only() {
        let newer = edition(2_000_000, "b");
        let named = (OtherJob { jid: "b".into(), build_id: Some(json!("b\n7")) }, true);
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
        // Two with the same inputs.
        let [twin, other] =
            [edition(3_000_000, "d"), edition(1, "a")].map(|its| Edition { twin: Some("t".into()), ..its });
        assert_eq!(other.compare(&twin.record()), None);
        assert!(newer.compare(&twin.record()).is_some());
        let unnamed = Edition { build_id: None, ..edition(2, "b") };
        assert_eq!(edition(1, "a").compare(&unnamed.record()).map(|(newer, _)| newer.build_id), Some(None));
    }
}
