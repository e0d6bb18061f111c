//! Jobs in flight: the token that proves ownership, the entry in Redis, and the job as a worker holds it.
//!
//! `sidebake:inflight:<identity>` is a hash with one field per job. The field is the token; `:idle` follows it while the job
//! does not run. The value is the name of the queue, a line feed, and the job's text as it was fetched. The scripts write
//! entries (`turn.lua`, `begin.lua`); this module is the only one outside of them that reads their format.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use super::keys;
use super::payload::Payload;
use crate::bounds;
use crate::redis::{Redis, RedisError, Script};

static ENTRIES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("entries.lua")));

/// What follows a token while its job does not run: it has not begun, or Redis refused its result. The scripts spell it too; as an
/// argument it would be sent with every turn.
const IDLE: &str = ":idle";

/// Stands for a capsule where a job fills no slot.
const BESIDE: usize = u16::MAX as usize;

/// The name of an entry in flight. Together with the job's text it is the fence: both are compared before anything is settled.
///
/// A process uses each of its tokens for one job only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    text: String,
    /// The index of the capsule whose slot the job fills.
    pub capsule: usize,
}

impl Token {
    /// The `n`th token of a process; later ones sort after earlier ones.
    pub fn nth(n: u64, capsule: usize) -> Self {
        // Only some processes have capsules, and every entry in flight has a token.
        let text = if capsule == 0 { format!("{n:012x}") } else { format!("{n:012x}.{capsule}") };
        Self { text, capsule }
    }

    /// The `n`th token of jobs that fill no slot: they only end.
    pub(super) fn beside(n: u64) -> Self {
        Self::nth(n, BESIDE)
    }

    /// Whether the job fills no slot.
    pub fn is_beside(&self) -> bool {
        self.capsule == BESIDE
    }

    /// The token as text, without `:idle`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The token in the name of a field.
    pub(super) fn of_field(field: &str) -> Self {
        let text = field.strip_suffix(IDLE).unwrap_or(field);
        let capsule = text.split_once('.').and_then(|(_, capsule)| capsule.parse().ok());
        Self { text: text.to_owned(), capsule: capsule.unwrap_or(0) }
    }

    /// The name of the field.
    pub(super) fn field(&self, is_idle: bool) -> String {
        format!("{}{}", self.text, if is_idle { IDLE } else { "" })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One entry of an in-flight hash.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Whether the job does not run.
    pub is_idle: bool,
    /// The job's text.
    pub text: Vec<u8>,
}

impl Entry {
    /// `None` when a value has no queue: sidebake writes no such entry.
    fn read(field: &str, mut value: Vec<u8>) -> Option<Self> {
        let end = value.iter().position(|byte| *byte == b'\n')?;
        let text = value.split_off(end + 1);
        value.truncate(end);
        std::str::from_utf8(&value).ok()?;
        Some(Self { is_idle: field.ends_with(IDLE), text })
    }
}

/// The same with their texts.
pub(super) async fn entries(redis: &Redis, owner: impl fmt::Display) -> Result<Vec<Entry>, RedisError> {
    let entries: HashMap<String, Vec<u8>> = redis.query(redis::cmd("HGETALL").arg(keys::inflight(owner))).await?;
    Ok(entries.into_iter().filter_map(|(field, value)| Entry::read(&field, value)).collect())
}

/// How many bytes from each end of a text count for its digest. Redis computes the digests while nothing else runs.
const ENDS: usize = 2048;

/// What tells two texts apart without sending them. Jobs differ in their jids, which Sidekiq writes near the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    size_bytes: usize,
    digest: String,
}

impl Fingerprint {
    pub(super) fn of(text: &[u8]) -> Self {
        let n = text.len().min(ENDS);
        let mut ends = sha1_smol::Sha1::from(&text[..n]);
        ends.update(&text[text.len() - n..]);
        Self { size_bytes: text.len(), digest: ends.digest().to_string() }
    }
}

/// One entry of an in-flight hash, without its text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedEntry {
    /// Its field.
    pub field: String,
    /// The queue that the job was fetched from.
    pub queue: String,
    /// Of the job's text.
    pub fingerprint: Fingerprint,
}

impl ListedEntry {
    /// Its token.
    pub(super) fn token(&self) -> Token {
        Token::of_field(&self.field)
    }
}

/// All entries of a process, in no order. Costs the network next to nothing, however long the texts are.
pub(super) async fn list(redis: &Redis, owner: impl fmt::Display) -> Result<Vec<ListedEntry>, RedisError> {
    let mut script = ENTRIES.key(keys::inflight(owner));
    script.arg(ENDS);
    let entries: Vec<(String, Vec<u8>, usize, String)> = redis.script(&script).await?;
    let listed = entries.into_iter().filter_map(|(field, queue, size_bytes, digest)| {
        let fingerprint = Fingerprint { size_bytes, digest };
        Some(ListedEntry { field, queue: String::from_utf8(queue).ok()?, fingerprint })
    });
    Ok(listed.collect())
}

/// A job that some process holds.
#[derive(Debug)]
pub struct HeldJob {
    /// The identity of the process.
    pub owner: String,
    /// Whether the process has its lease. Without one, it has died or does not reach Redis.
    pub has_lease: bool,
    /// Whether it holds the job without running it.
    pub is_idle: bool,
    /// The job.
    pub payload: Payload,
}

/// Passes every job in flight to `see`. A text that is not a job is left out. One process at a time is in memory.
pub async fn for_each(redis: &Redis, mut see: impl FnMut(HeldJob)) -> Result<(), RedisError> {
    let owners: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg(keys::OWNERS)).await?;
    for owner in owners {
        let has_lease = redis.query(redis::cmd("EXISTS").arg(keys::lease(&owner))).await?;
        for Entry { is_idle, text, .. } in entries(redis, &owner).await? {
            if let Ok(payload) = Payload::parse(&text) {
                see(HeldJob { owner: owner.clone(), has_lease, is_idle, payload });
            }
        }
    }
    Ok(())
}

/// A job in custody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitOfWork {
    /// Proves, with the text, that this process owns the job.
    pub token: Token,
    /// The queue that it was fetched from.
    pub queue: String,
    /// The text as it was fetched, shared by everything that holds the job.
    pub text: Arc<[u8]>,
    /// How often it was recovered from a dead worker within three days.
    pub n_recoveries: u32,
    /// How often of that it was the only job that had begun, so that it alone can have crashed the worker.
    pub n_crashes: u32,
    /// How often a stopping worker killed it within three days.
    pub n_interruptions: u32,
    /// Whether its entry is idle, as that of each job that was recovered before.
    pub is_idle: bool,
}

impl UnitOfWork {
    /// A job without a history, under the `n`th token.
    #[cfg(test)]
    pub(super) fn fetched(n: u64, text: &[u8]) -> Self {
        Self {
            token: Token::nth(n, 0),
            queue: "default".into(),
            text: text.into(),
            n_recoveries: 0,
            n_crashes: 0,
            n_interruptions: 0,
            is_idle: false,
        }
    }

    /// Token and text, which together prove that this process owns the job.
    pub(super) fn fence(&self) -> (Token, Arc<[u8]>) {
        (self.token.clone(), Arc::clone(&self.text))
    }

    /// Whether it goes to the dead set without running again.
    pub fn is_poison(&self) -> bool {
        self.n_crashes as usize > bounds::CRASHES
    }

    /// Whether it may be the job that crashes its workers. Such a job runs apart from others.
    pub fn is_suspect(&self) -> bool {
        self.n_recoveries as usize > bounds::RECOVERIES && !self.is_poison()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_a_token_with_its_capsule_and_whether_the_job_runs() {
        for (token, is_idle, field) in [
            (Token::nth(10, 0), false, "00000000000a"),
            (Token::nth(10, 0), true, "00000000000a:idle"),
            (Token::nth(10, 1), true, "00000000000a.1:idle"),
        ] {
            assert_eq!((token.field(is_idle).as_str(), Token::of_field(field)), (field, token));
        }
    }

    #[test]
    fn an_entry_is_a_queue_a_line_feed_and_the_text() {
        let read = |value: &[u8]| Entry::read("1:idle", value.to_vec());
        let entry = read(b"builds\n{\n}").expect("an entry");
        assert_eq!((&*entry.text, entry.is_idle), (&b"{\n}"[..], true));
        assert_eq!([read(b"no line feed"), read(b"\xff\n{}")], [None, None]);
    }
}
