//! Writes log streams and records to Redis: one transaction for each build that has something new, at most one in 150 ms.
//!
//! An entry of a stream has two fields: `records`, a JSON array, and its `position`. After a lost reply, the last entry's position tells what
//! Redis has, so no line is written twice. A record is a hash with two fields for each attempt; each write replaces them.
//! A key of another type costs what it would hold, the log or the record, and never the other.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{ErrorKind, Pipeline, Value};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::buffer::{Buffer, Entry};
use super::place::Place;
use super::position::Position;
use super::{Attempt, End, LogStream, LogStreams, Shared, State};
use crate::bounds;
use crate::clock::Epoch;
use crate::event::millis;
use crate::log_record::LogRecord;
use crate::metric;
use crate::redis::{Complaint, RedisError};

/// Every command that the writer sends, each in a form that Redis accepts; `k` is a key.
pub const COMMANDS: &[&str] = &[
    "EXPIRE k 1",
    "HDEL k f",
    "HKEYS k",
    "HSET k f v",
    "SET k v",
    "XADD k * f v",
    "XREVRANGE k + -",
    "XTRIM k MAXLEN 0",
    "ZADD k 0 v",
    "ZREMRANGEBYRANK k 0 0",
    "ZREMRANGEBYSCORE k 0 0",
];

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

/// How much longer than the stream and the record Redis knows that there was one.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What is heard of failures.
struct Complaints {
    log: Complaint,
    record: Complaint,
}

/// What Redis has before a writer begins, or after a lost reply.
struct Known {
    /// The last entry of the stream; an error when its key has another type.
    position: Result<Option<Position>, RedisError>,
    /// The fields of the record; an error when it is not a hash.
    fields: Result<Vec<String>, RedisError>,
}

/// Whether Redis took each part of what is written of a build. An error names the key.
struct Written {
    log: Result<(), RedisError>,
    record: Result<(), RedisError>,
    list: Result<(), RedisError>,
}

impl Written {
    /// Nothing was refused.
    const ALL: Self = Self { log: Ok(()), record: Ok(()), list: Ok(()) };

    /// Each part with the first of its errors.
    fn and(self, later: Self) -> Self {
        Self { log: self.log.and(later.log), record: self.record.and(later.record), list: self.list.and(later.list) }
    }
}

impl LogStreams {
    /// Writes the streams until `ended`, and then what is left.
    pub async fn run(&self, ended: &CancellationToken) {
        let Some(shared) = &self.0 else { return };
        let mut complaints = Complaints {
            log: Complaint::new("log_stream_not_written", "a build's log cannot be written to Redis"),
            record: Complaint::new("build_record_not_written", "a build's record cannot be written to Redis"),
        };
        let changed = || timeout(LOOK, shared.changed.notified());
        while ended.run_until_cancelled(changed()).await.is_some() {
            let pause = if shared.write_all(&mut complaints).await { PERIOD } else { AFTER_FAILURE };
            let _ = ended.run_until_cancelled(sleep(pause)).await;
        }
        let rest = async { while shared.write_all(&mut complaints).await && shared.has_pending() {} };
        let _ = timeout(FAREWELL, rest).await;
    }
}

impl Shared {
    /// Writes what each stream has. Returns whether Redis answers.
    async fn write_all(&self, complaints: &mut Complaints) -> bool {
        let streams = self.open().clone();
        let mut is_up = true;
        for stream in &streams {
            if stream.is_resting() {
                continue;
            }
            let written = self.write(stream).await;
            stream.state().note(written.is_ok());
            is_up = !written.as_ref().is_err_and(|error| error.code().is_none());
            match written {
                Ok(written) => {
                    complaints.log.hear(written.log);
                    complaints.record.hear(written.record.and(written.list));
                }
                Err(error) => drop(complaints.log.hear::<()>(Err(error))),
            }
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

    /// Writes what one stream has. Nothing is written before the id of the build is known. Returns what Redis refused.
    ///
    /// Everything is one transaction. Without the right to one of the commands, nothing is written: a key without a TTL would stay
    /// forever. A key of another type is an error of its part alone.
    async fn write(&self, stream: &LogStream) -> Result<Written, RedisError> {
        let id = {
            let mut state = stream.state();
            state.buffer.tell_progress(Instant::now());
            state.pending_id()
        };
        let Some(id) = id else { return Ok(Written::ALL) };
        let known = if stream.state().is_certain { None } else { Some(self.known(&id).await?) };
        let (position, fields) = known.map(|known| (known.position, known.fields)).unzip();
        let (is_new, mut readable) = (fields.is_some(), Written::ALL);
        let mut pipeline = redis::pipe();
        pipeline.atomic().ignore_errors();
        if let Some(position) = position {
            readable.log = position.map(|position| self.resume(stream, position, &id, &mut pipeline));
            self.refuse(stream, &readable);
        }
        let last = self.add_entries(stream, &id, &mut pipeline);
        let n_log = pipeline.len();
        if let Some(fields) = fields {
            readable.record = fields.map(|fields| self.find_place(stream, &fields, &id, &mut pipeline));
            self.refuse(stream, &readable);
        }
        self.add_record(stream, &id, &mut pipeline);
        let n_record = pipeline.len() - n_log;
        if is_new {
            self.add_names(stream, &id, &mut pipeline);
            self.add_to_list(stream, &id, &mut pipeline);
        }
        let written = match self.send(&pipeline, n_log, n_record, &id).await {
            Ok(written) => readable.and(written),
            Err(error) => {
                let mut state = stream.state();
                (state.is_certain, state.is_record_due) = (false, true);
                return Err(error);
            }
        };
        self.refuse(stream, &written);
        let mut state = stream.state();
        (state.is_certain, state.removed_bytes) = (true, 0);
        last.into_iter().for_each(|last| state.buffer.acknowledge(last));
        Ok(written)
    }

    /// Gives up what Redis refuses because of its type. The rest of the attempt does not try again.
    fn refuse(&self, stream: &LogStream, written: &Written) {
        let mut state = stream.state();
        state.is_record_refused |= written.record.is_err();
        if written.log.is_err() {
            state.is_log_refused = true;
            state.buffer = Buffer::new(self.limits, Arc::clone(&self.pool));
        }
    }

    /// Sends the commands: those of the log, those of the record, those of the list. Another failure of the log than a key of
    /// another type may pass.
    async fn send(&self, pipeline: &Pipeline, n_log: usize, n_record: usize, id: &str) -> Result<Written, RedisError> {
        if pipeline.is_empty() {
            return Ok(Written::ALL);
        }
        let replies: Vec<Result<Value, RedisError>> = self.redis.pipeline(pipeline).await?;
        let mut replies = replies.into_iter();
        let mut part = |n: usize| {
            let of_part: Vec<_> = replies.by_ref().take(n).collect();
            of_part.into_iter().try_for_each(|reply| reply.map(drop))
        };
        let (log, record, list) = (part(n_log), part(n_record), part(usize::MAX));
        let log = match log {
            Err(error) if !has_another_type(&error) => return Err(error),
            log => of_key(&(self.keys.events)(id), log),
        };
        Ok(Written { log, record: of_key(&(self.keys.record)(id), record), list: of_key(self.keys.builds, list) })
    }

    /// Compares the buffer with the last entry in Redis.
    fn resume(&self, stream: &LogStream, last: Option<Position>, id: &str, pipeline: &mut Pipeline) {
        let mut state = stream.state();
        if let Some(own) = last.as_ref().filter(|last| last.writer == stream.writer) {
            return state.buffer.acknowledge(own.number);
        }
        if !state.has_begun {
            let earlier_bytes = last.map_or(0, |last| last.total_bytes);
            let removed_bytes = if state.buffer.is_too_much(earlier_bytes) { earlier_bytes } else { 0 };
            let Attempt { jid, number, .. } = &stream.attempt;
            let attempt = LogRecord::Attempt { jid: jid.clone(), number: *number, removed_bytes };
            state.buffer.begin(&attempt, earlier_bytes - removed_bytes);
            state.has_begun = true;
            state.removed_bytes = removed_bytes;
        }
        // Until Redis has the first entry, each try begins with these.
        if state.removed_bytes > 0 {
            pipeline.cmd("XTRIM").arg((self.keys.events)(id)).arg(&["MAXLEN", "0"]);
        }
    }

    /// Adds the keys that lead from build and job to the id.
    fn add_names(&self, stream: &LogStream, id: &str, pipeline: &mut Pipeline) {
        let remembered_s = self.remembered_s();
        let (of_id, of_jid) = ((self.keys.log)(id), (self.keys.log)(&stream.attempt.jid));
        // The id may be the jid of another job. Then the key leads to that job's build; the record shows that there are two.
        pipeline.cmd("SET").arg(&of_id).arg(id).arg(&["NX", "EX"]).arg(remembered_s);
        pipeline.cmd("EXPIRE").arg(&of_id).arg(remembered_s);
        pipeline.cmd("SET").arg(&of_jid).arg(id).arg("EX").arg(remembered_s);
    }

    /// Finds the place of this attempt in the record, and makes room for it.
    fn find_place(&self, stream: &LogStream, fields: &[String], id: &str, pipeline: &mut Pipeline) {
        let own = &stream.writer;
        let others = fields.iter().filter_map(|field| Place::of_attempt(field)).filter(|place| place.writer != *own);
        let others: BTreeSet<Place> = others.collect();
        let number = others.last().map_or(1, |last| last.number.saturating_add(1));
        stream.state().place.get_or_insert_with(|| Place { number, writer: own.clone() });
        let n_too_many = (others.len() + 1).saturating_sub(bounds::RECORD_ATTEMPTS);
        for oldest in others.iter().take(n_too_many) {
            pipeline.cmd("HDEL").arg((self.keys.record)(id)).arg(oldest.attempt()).arg(oldest.summary());
        }
    }

    /// Puts the build into the list of all builds, and removes those that are too old or too many.
    fn add_to_list(&self, stream: &LogStream, id: &str, pipeline: &mut Pipeline) {
        let (builds, began_at) = (self.keys.builds, stream.attempt.began_at.as_millis());
        let kept = self.record_ttl.max(RUNNING);
        let too_old = Epoch::now().as_millis().saturating_sub(millis(kept));
        // GT: a writer that comes back late must not make the build older.
        pipeline.cmd("ZADD").arg(builds).arg("GT").arg(began_at).arg(id);
        pipeline.cmd("ZREMRANGEBYSCORE").arg(builds).arg("-inf").arg(format!("({too_old}"));
        pipeline.cmd("ZREMRANGEBYRANK").arg(builds).arg(0).arg(format!("-{}", bounds::BUILDS + 1));
        pipeline.cmd("EXPIRE").arg(builds).arg(kept.as_secs());
    }

    /// Adds the record of the attempt when it has changed, and the TTL.
    fn add_record(&self, stream: &LogStream, id: &str, pipeline: &mut Pipeline) {
        let mut state = stream.state();
        if state.is_record_refused || !std::mem::take(&mut state.is_record_due) {
            return;
        }
        let Some(place) = state.place.clone() else { return };
        let (facts, is_over) = (state.facts.clone(), state.end.is_some_and(|End { is_over }| is_over));
        // A long report takes time, and the build must not wait for it.
        drop(state);
        let (key, report) = ((self.keys.record)(id), stream.report.report());
        let summary = stream.attempt.summary(&facts, &report);
        let attempt = stream.attempt.record(&facts, report);
        let ttl = if is_over { self.record_ttl } else { self.record_ttl.max(RUNNING) };
        pipeline.cmd("HSET").arg(&key).arg(place.summary()).arg(summary).arg(place.attempt()).arg(attempt);
        pipeline.cmd("EXPIRE").arg(&key).arg(ttl.as_secs());
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
            pipeline.cmd("XADD").arg(key).arg(&["*", "records", &entry.records, "position", &position]);
        }
        let is_over = state.end.is_some_and(|End { is_over }| is_over) && state.buffer.is_filled();
        if let Some(url) = &state.archive_url {
            pipeline.cmd("SET").arg((self.keys.archive)(id)).arg(url).arg("EX").arg(self.remembered_s());
        }
        let ttl = if is_over { self.ttl } else { self.ttl.max(RUNNING) };
        pipeline.cmd("EXPIRE").arg(key).arg(ttl.as_secs());
        Some(last)
    }

    /// How long Redis knows that there was a build, from its first or last entry.
    fn remembered_s(&self) -> u64 {
        (self.ttl.max(RUNNING).max(self.record_ttl) + REMEMBERED).as_secs()
    }

    async fn known(&self, id: &str) -> Result<Known, RedisError> {
        let (events, record) = ((self.keys.events)(id), (self.keys.record)(id));
        let mut look = redis::pipe();
        look.cmd("XREVRANGE").arg(&events).arg(&["+", "-", "COUNT", "1"]).cmd("HKEYS").arg(&record).ignore_errors();
        let replies: Vec<Result<Value, RedisError>> = self.redis.pipeline(&look).await?;
        let [entries, fields] = <[_; 2]>::try_from(replies).expect("each command has a reply");
        let entries = match entries {
            Err(error) if !has_another_type(&error) => return Err(error),
            entries => of_key(&events, entries),
        };
        let fields = fields.and_then(|fields| Ok(redis::from_redis_value(fields)?));
        Ok(Known { position: entries.map(last_position), fields: of_key(&record, fields) })
    }
}

/// The position in the reply to XREVRANGE. An entry of another program has none.
fn last_position(entries: Value) -> Option<Position> {
    let entries: Vec<(String, HashMap<String, String>)> = redis::from_redis_value(entries).ok()?;
    Position::parse(entries.first()?.1.get("position")?)
}

fn has_another_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

/// Names the key in an error.
fn of_key<T>(key: &str, result: Result<T, RedisError>) -> Result<T, RedisError> {
    let named =
        |error| RedisError::from((ErrorKind::UnexpectedReturnType, "cannot be used", format!("{key}: {error}")));
    result.map_err(named)
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
        self.id.clone().filter(|_| self.has_pending())
    }

    fn has_pending(&self) -> bool {
        let is_record_due = self.is_record_due && !self.is_record_refused;
        self.id.is_some() && (!self.buffer.is_empty() || is_record_due)
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
        metric::LOG_STREAMS_LOST.add([], 1);
        tracing::warn!(event = "log_stream_lost", jid = stream.attempt.jid, "the end of a build's log was not written");
        return false;
    }
    let has_ended = state.end.is_some() || Arc::strong_count(stream) == 1;
    !has_ended || state.has_pending()
}
