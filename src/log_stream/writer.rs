//! Writes the log streams to Redis: one transaction for each build that has something new, at most one in 150 ms.
//!
//! An entry has two fields: `records`, a JSON array, and its `position`. After a lost reply, the last entry's position tells what
//! Redis has, so no line is written twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Pipeline;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::buffer::Entry;
use super::position::Position;
use super::{End, LogStream, LogStreams, Shared, State};
use crate::log_record::LogRecord;
use crate::redis::{Complaint, RedisError};

/// Every command that the writer sends, each in a form that Redis accepts; `k` is a key.
pub const COMMANDS: &[&str] = &["EXPIRE k 1", "SET k v", "XADD k * f v", "XREVRANGE k + -", "XTRIM k MAXLEN 0"];

/// The shortest time between two writes of a build.
const PERIOD: Duration = Duration::from_millis(150);

/// How often the streams are looked at while nothing new happens: the progress of a step may be due.
const LOOK: Duration = Duration::from_secs(1);

/// How soon a write that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// After the end of its attempt, how long a stream waits for Redis.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the last writes of a worker may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Bytes of one write.
const WRITE: usize = 256 << 10;

/// The least TTL of a stream whose build goes on. A build that its worker leaves behind expires too.
const RUNNING: Duration = Duration::from_secs(24 * 60 * 60);

/// How much longer than the stream Redis knows that there was one.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl LogStreams {
    /// Writes the streams until `ended`, and then what is left.
    pub async fn run(&self, ended: &CancellationToken) {
        let Some(shared) = &self.0 else { return };
        let mut complaint = Complaint::new("log_stream_not_written", "a build's log cannot be written to Redis");
        let changed = || timeout(LOOK, shared.changed.notified());
        while ended.run_until_cancelled(changed()).await.is_some() {
            let pause = if shared.write_all(&mut complaint).await { PERIOD } else { AFTER_FAILURE };
            let _ = ended.run_until_cancelled(sleep(pause)).await;
        }
        let rest = async { while shared.write_all(&mut complaint).await && shared.has_pending() {} };
        let _ = timeout(FAREWELL, rest).await;
    }
}

impl Shared {
    /// Writes what each stream has. Returns whether Redis answers.
    async fn write_all(&self, complaint: &mut Complaint) -> bool {
        let streams = self.open().clone();
        let mut is_up = true;
        for stream in &streams {
            if stream.is_resting() {
                continue;
            }
            let written = self.write(stream).await;
            stream.state().note(written.is_ok());
            is_up = !written.as_ref().is_err_and(|error| error.code().is_none());
            complaint.hear(written);
            if !is_up {
                break;
            }
        }
        drop(streams);
        self.open().retain(is_needed);
        if self.has_pending() {
            self.changed.notify_one();
        }
        is_up
    }

    fn has_pending(&self) -> bool {
        self.open().iter().any(|stream| stream.state().has_pending())
    }

    /// Writes what one stream has. Nothing is written before the id of the build is known.
    async fn write(&self, stream: &LogStream) -> Result<(), RedisError> {
        let id = {
            let mut state = stream.state();
            state.buffer.tell_progress(Instant::now());
            state.pending_id()
        };
        let Some(id) = id else { return Ok(()) };
        let key = (self.keys.events)(&id);
        let mut pipeline = redis::pipe();
        // Without the right to one of the commands, nothing is written: a stream without a TTL would stay forever.
        pipeline.atomic();
        if !stream.state().is_certain {
            let last = self.last_position(&key).await?;
            self.resume(stream, last, &id, &mut pipeline);
        }
        let Some(last) = self.add_entries(stream, &id, &mut pipeline) else { return Ok(()) };
        let written = self.redis.pipeline::<()>(&pipeline).await;
        let mut state = stream.state();
        match &written {
            Ok(()) => {
                state.buffer.acknowledge(last);
                state.removed_bytes = 0;
            }
            Err(_) => state.is_certain = false,
        }
        written
    }

    /// Compares the buffer with the last entry in Redis.
    fn resume(&self, stream: &LogStream, last: Option<Position>, id: &str, pipeline: &mut Pipeline) {
        let mut state = stream.state();
        state.is_certain = true;
        if let Some(own) = last.as_ref().filter(|last| last.writer == stream.writer) {
            return state.buffer.acknowledge(own.number);
        }
        if !state.has_begun {
            let earlier_bytes = last.map_or(0, |last| last.total_bytes);
            let removed_bytes = if state.buffer.is_too_much(earlier_bytes) { earlier_bytes } else { 0 };
            let attempt = LogRecord::Attempt { jid: stream.jid.clone(), number: stream.attempt, removed_bytes };
            state.buffer.begin(&attempt, earlier_bytes - removed_bytes);
            state.has_begun = true;
            state.removed_bytes = removed_bytes;
        }
        // Until Redis has the first entry, each try begins with these.
        if state.removed_bytes > 0 {
            pipeline.cmd("XTRIM").arg((self.keys.events)(id)).arg(&["MAXLEN", "0"]).ignore();
        }
        for name in [id, &stream.jid] {
            pipeline.cmd("SET").arg((self.keys.log)(name)).arg(id).arg("EX").arg(self.remembered_s()).ignore();
        }
    }

    /// Adds the next entries and the TTL. Returns the number of the last entry.
    fn add_entries(&self, stream: &LogStream, id: &str, pipeline: &mut Pipeline) -> Option<u64> {
        let key = &(self.keys.events)(id);
        let mut state = stream.state();
        let entries = state.buffer.fill(WRITE);
        let last = entries.back()?.number;
        for entry in entries {
            let Entry { number, total_bytes, .. } = *entry;
            let position = Position { writer: stream.writer.clone(), number, total_bytes }.to_string();
            pipeline.cmd("XADD").arg(key).arg(&["*", "records", &entry.records, "position", &position]).ignore();
        }
        let is_over = state.end.is_some_and(|End { is_over }| is_over) && state.buffer.is_filled();
        if let Some(url) = &state.archive_url {
            pipeline.cmd("SET").arg((self.keys.archive)(id)).arg(url).arg("EX").arg(self.remembered_s()).ignore();
        }
        let ttl = if is_over { self.ttl } else { self.ttl.max(RUNNING) };
        pipeline.cmd("EXPIRE").arg(key).arg(ttl.as_secs()).ignore();
        Some(last)
    }

    /// How long Redis knows that there was a stream, from its first or last entry.
    fn remembered_s(&self) -> u64 {
        (self.ttl.max(RUNNING) + REMEMBERED).as_secs()
    }

    async fn last_position(&self, key: &str) -> Result<Option<Position>, RedisError> {
        let query = redis::cmd("XREVRANGE").arg(key).arg(&["+", "-", "COUNT", "1"]).to_owned();
        let entries: Vec<(String, HashMap<String, String>)> = self.redis.query(&query).await?;
        Ok(entries.first().and_then(|(_, fields)| Position::parse(fields.get("position")?)))
    }
}

impl LogStream {
    /// Whether a write failed a moment ago.
    fn is_resting(&self) -> bool {
        self.state().retry_at.is_some_and(|at| at > Instant::now())
    }
}

impl State {
    /// The id, when something waits for Redis.
    fn pending_id(&self) -> Option<String> {
        self.id.clone().filter(|_| !self.buffer.is_empty())
    }

    fn has_pending(&self) -> bool {
        self.id.is_some() && !self.buffer.is_empty()
    }

    /// Takes in whether a write succeeded.
    fn note(&mut self, is_written: bool) {
        let now = Instant::now();
        self.retry_at = (!is_written).then_some(now + AFTER_FAILURE);
        self.failing_since = if is_written { None } else { self.failing_since.or(Some(now)) };
    }

    /// Whether Redis refuses a stream whose attempt has ended for so long that it is dropped.
    fn is_lost(&self) -> bool {
        self.end.is_some() && self.failing_since.is_some_and(|since| since.elapsed() > PATIENCE)
    }
}

/// Whether a stream must be looked at again. Its attempt holds it too, until that ends.
fn is_needed(stream: &Arc<LogStream>) -> bool {
    let state = stream.state();
    if state.has_pending() && state.is_lost() {
        tracing::warn!(event = "log_stream_lost", jid = stream.jid, "the end of a build's log was not written");
        return false;
    }
    let has_ended = state.end.is_some() || Arc::strong_count(stream) == 1;
    !has_ended || state.has_pending()
}
