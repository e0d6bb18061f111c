//! Reads the records of builds.
//!
//! Another program may have changed a record. So each part is read by itself, and a part that cannot be read is named.

use std::collections::BTreeMap;

use redis::{Cmd, FromRedisValue, Pipeline, Value as Reply};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::attempt::Summary;
use super::place::Place;
use crate::event::{Placement, Warning};
use crate::json;
use crate::redis::{Redis, RedisError};

/// A build whose name was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// No record and no log was ever written under this name, or it was forgotten.
    Unknown,
    /// The id in the keys of the build.
    Build(String),
    /// The name is the id of a build, whose job is `jid`, and also the jid of build `other`.
    Ambiguous {
        /// The job of the build that has this id.
        jid: String,
        /// The id of the build whose job has this jid.
        other: String,
    },
}

/// All that is recorded of a build.
#[derive(Debug, Default)]
pub struct BuildRecord {
    /// The attempts, in order.
    pub attempts: Vec<RecordedAttempt>,
    /// Why parts of the record cannot be read.
    pub flaws: Vec<String>,
}

/// One attempt.
#[derive(Debug)]
pub struct RecordedAttempt {
    /// All of it.
    pub json: Value,
    /// What people want to see.
    pub attempt: AttemptRecord,
}

/// An attempt as far as this version knows it.
#[derive(Clone, Debug, Deserialize)]
pub struct AttemptRecord {
    /// What the list of builds shows of it.
    #[serde(flatten)]
    pub summary: Summary,
    /// The phase that runs.
    pub phase: Option<String>,
    /// The reason as a sentence.
    pub message: Option<String>,
    /// Milliseconds of each phase.
    #[serde(default)]
    pub timings: Map<String, Value>,
    /// Where it was built.
    pub placement: Option<Placement>,
    /// As in a report, with the slowest steps.
    #[serde(default)]
    pub targets: Vec<Value>,
    /// How many targets the record has no room for.
    #[serde(default)]
    pub targets_left_out: u64,
    /// BuildKit's warnings.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// Messages for the customer.
    #[serde(default)]
    pub notices: Vec<String>,
    /// Where the log is kept.
    #[serde(default)]
    pub log_url: Value,
}

/// Why a build's record or log cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// Redis does not answer, or refuses.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// Another program wrote the key.
    #[error("key {0} has another type; another program wrote it")]
    OtherType(String),
}

/// Finds the build with this id or jid. `log` is the key that leads to the id, `record` that of the record with this id.
pub async fn look_up(redis: &Redis, name: &str, log: &str, record: &str) -> Result<Lookup, HistoryError> {
    let id: Option<String> = query(redis, redis::cmd("GET").arg(log), log).await?;
    // A record that cannot be read is no obstacle to finding another build.
    let own = summaries(redis, &[record.to_owned()]).await?.pop().and_then(Result::ok).flatten();
    Ok(match (id, own) {
        (None, None) => Lookup::Unknown,
        (None, Some(_)) => Lookup::Build(name.to_owned()),
        (Some(other), Some(own)) if other != name && own.jid != name => Lookup::Ambiguous { jid: own.jid, other },
        (Some(id), _) => Lookup::Build(id),
    })
}

/// The record at a key; `None` when there is none.
pub async fn read_record(redis: &Redis, key: &str) -> Result<Option<BuildRecord>, HistoryError> {
    let fields: Vec<(Vec<u8>, Vec<u8>)> = query(redis, redis::cmd("HGETALL").arg(key), key).await?;
    if fields.is_empty() {
        return Ok(None);
    }
    let place = |field: &[u8]| Place::of_attempt(&String::from_utf8_lossy(field));
    let attempts: BTreeMap<Place, Vec<u8>> =
        fields.into_iter().filter_map(|(field, text)| Some((place(&field)?, text))).collect();
    let mut record = BuildRecord::default();
    for (place, text) in attempts {
        match RecordedAttempt::read(&text) {
            Ok(attempt) => record.attempts.push(attempt),
            Err(error) => record.flaws.push(format!("{}: {error}", place.attempt())),
        }
    }
    if record.attempts.is_empty() && record.flaws.is_empty() {
        record.flaws.push("it has no attempts".into());
    }
    Ok(Some(record))
}

impl RecordedAttempt {
    fn read(text: &[u8]) -> serde_json::Result<Self> {
        let json = json::read::<Value>(text)?;
        Ok(Self { attempt: AttemptRecord::deserialize(&json)?, json })
    }
}

/// The ids of builds in the list from number `start` on, the newest first.
pub async fn page_of_builds(redis: &Redis, key: &str, start: usize, n: usize) -> Result<Vec<String>, HistoryError> {
    let range = redis::cmd("ZRANGE").arg(key).arg(start).arg(start + n - 1).arg("REV").to_owned();
    let ids: Vec<Vec<u8>> = query(redis, &range, key).await?;
    Ok(ids.iter().map(|id| String::from_utf8_lossy(id).into_owned()).collect())
}

/// The summary of the last attempt in each of these records: `None` where there is no record, an error where it cannot be read.
pub async fn summaries(redis: &Redis, records: &[String]) -> Result<Vec<Result<Option<Summary>, String>>, RedisError> {
    let mut look = redis::pipe();
    for key in records {
        look.cmd("HKEYS").arg(key);
    }
    let fields: Vec<Result<Vec<Vec<u8>>, RedisError>> = all(redis, look).await?;
    let place = |field: &Vec<u8>| Place::of_summary(&String::from_utf8_lossy(field));
    let last = |fields: &Vec<Vec<u8>>| fields.iter().filter_map(place).max();
    let mut look = redis::pipe();
    for (key, fields) in records.iter().zip(&fields) {
        // Without a summary, Redis answers for a field that does not exist.
        let place = fields.as_ref().ok().and_then(last);
        look.cmd("HGET").arg(key).arg(place.map(|place| place.summary()).unwrap_or_default());
    }
    let replies: Vec<Result<Reply, RedisError>> = all(redis, look).await?;
    let summary = |(fields, reply): (Result<Vec<_>, RedisError>, Result<Reply, RedisError>)| match (fields, reply) {
        (Err(_), _) | (_, Err(_)) => Err("its record has another type".to_owned()),
        (Ok(fields), _) if fields.is_empty() => Ok(None),
        (_, Ok(Reply::BulkString(text))) => {
            json::read(&text).map(Some).map_err(|error| format!("its record cannot be read: {error}"))
        }
        (_, Ok(_)) => Err("its record has no summary".to_owned()),
    };
    Ok(fields.into_iter().zip(replies).map(summary).collect())
}

/// The ids that these keys lead to.
pub async fn ids(redis: &Redis, logs: &[String]) -> Result<Vec<Option<String>>, RedisError> {
    let mut look = redis::pipe();
    for key in logs {
        look.cmd("GET").arg(key);
    }
    let replies: Vec<Result<Option<String>, RedisError>> = all(redis, look).await?;
    Ok(replies.into_iter().map(|reply| reply.ok().flatten()).collect())
}

/// The reply to each command.
async fn all<T: FromRedisValue>(redis: &Redis, mut look: Pipeline) -> Result<Vec<Result<T, RedisError>>, RedisError> {
    if look.is_empty() {
        return Ok(Vec::new());
    }
    redis.pipeline(look.ignore_errors()).await
}

/// The reply to a command that reads this key.
pub(super) async fn query<T: FromRedisValue>(redis: &Redis, command: &Cmd, key: &str) -> Result<T, HistoryError> {
    redis.query(command).await.map_err(|error| match error.code() {
        Some("WRONGTYPE") => HistoryError::OtherType(key.to_owned()),
        _ => error.into(),
    })
}
