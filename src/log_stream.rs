//! The live log of each build, a Redis Stream of its events and its output, and the record that stays after it.
//!
//! A [`LogStream`] listens to the journal of one attempt and keeps a bounded buffer. One task of the worker writes all buffers.
//! A slow, full or absent Redis neither delays nor fails a build: what Redis does not take is counted, and a record marks it.
//! `docs/logs.md` describes the format of the log, `docs/history.md` that of the record.

mod attempt;
mod buffer;
mod history;
mod place;
mod position;
mod reader;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Notify;

use crate::clock::Epoch;
use crate::event::Event;
use crate::hex;
use crate::journal::{self, Listener};
use crate::redis::{Redis, RedisError};
use crate::settings::Settings;

use attempt::Facts;
use buffer::{Buffer, Limits, Pool};
use place::Place;

pub use attempt::{Attempt, Summary};
pub use history::{
    AttemptRecord, BuildRecord, HistoryError, Lookup, RecordedAttempt, ids, look_up, page_of_builds, read_record,
    summaries,
};
pub use reader::{LogPage, LogRead, LogReader};
pub use writer::COMMANDS;

/// Makes the key for an id.
type KeyOf = fn(&str) -> String;

/// The keys of a build's log and record.
#[derive(Clone, Copy, Debug)]
pub struct LogKeys {
    /// The stream, by the id of the build.
    pub events: KeyOf,
    /// The id of the build, by `build_id` or jid.
    pub log: KeyOf,
    /// The URL of the archived log, by the id of the build.
    pub archive: KeyOf,
    /// The record, by the id of the build.
    pub record: KeyOf,
    /// The list of all builds with a record.
    pub builds: &'static str,
}

/// The streams of all builds of a worker.
#[derive(Debug)]
pub struct LogStreams(Option<Shared>);

#[derive(Debug)]
struct Shared {
    redis: Redis,
    ttl: Duration,
    record_ttl: Duration,
    limits: Limits,
    pool: Arc<Pool>,
    keys: LogKeys,
    open: Mutex<Vec<Arc<LogStream>>>,
    changed: Arc<Notify>,
}

/// The stream of one attempt.
#[derive(Debug)]
pub struct LogStream {
    attempt: Attempt,
    /// The report so far. It takes in each event before this listener does.
    report: Arc<journal::Record>,
    /// Tells this attempt's entries from those of others.
    writer: String,
    state: Mutex<State>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    /// In the stream's key, once it is known.
    id: Option<String>,
    /// How often the build's id was looked for. It is not known before Rails has answered.
    n_lookups: u32,
    buffer: Buffer,
    has_begun: bool,
    /// Bytes of earlier attempts that make room for this one.
    removed_bytes: usize,
    /// Whether it is known which entries Redis has.
    is_certain: bool,
    facts: Facts,
    /// The place of this attempt in the record, once it is known.
    place: Option<Place>,
    /// Whether the record in Redis lacks something.
    is_record_due: bool,
    /// The key of the stream has another type, and the log is not written.
    is_log_refused: bool,
    /// Redis refused the record, and it is not written any more.
    is_record_refused: bool,
    /// Whether the attempt has ended, and the build with it.
    end: Option<End>,
    /// Where the whole log is archived.
    archive_url: Option<String>,
    failing_since: Option<Instant>,
    retry_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct End {
    is_over: bool,
}

impl LogStreams {
    /// Connects with the first write. Without `journal.stream`, it writes nothing.
    pub fn new(settings: &Settings, keys: LogKeys) -> Result<Self, RedisError> {
        let journal = &settings.journal;
        if !journal.stream {
            return Ok(Self(None));
        }
        Ok(Self(Some(Shared {
            redis: Redis::new(&settings.redis_of_logs())?,
            ttl: journal.ttl,
            record_ttl: journal.record_ttl,
            limits: Limits { step_bytes: journal.step_bytes, build_bytes: journal.build_bytes },
            pool: Arc::new(Pool::new(journal.pending_bytes, settings.total_concurrency())),
            keys,
            open: Mutex::default(),
            changed: Arc::default(),
        })))
    }

    /// The listener of a new attempt. `report` must be a listener before it.
    pub fn begin(&self, attempt: Attempt, report: &Arc<journal::Record>) -> Option<Arc<LogStream>> {
        let shared = self.0.as_ref()?;
        let state = State {
            id: None,
            n_lookups: 0,
            buffer: Buffer::new(shared.limits, Arc::clone(&shared.pool)),
            has_begun: false,
            removed_bytes: 0,
            is_certain: false,
            facts: Facts::default(),
            place: None,
            is_record_due: false,
            is_log_refused: false,
            is_record_refused: false,
            end: None,
            archive_url: None,
            failing_since: None,
            retry_at: None,
        };
        let stream = Arc::new(LogStream {
            attempt,
            report: Arc::clone(report),
            writer: hex::random::<6>(),
            state: Mutex::new(state),
            changed: Arc::clone(&shared.changed),
        });
        shared.open().push(Arc::clone(&stream));
        Some(stream)
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<Arc<LogStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogStream {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for LogStream {
    fn on_event(&self, event: &Event) {
        let mut state = self.state();
        state.learn_id(event, &self.attempt.jid);
        state.is_record_due |= state.facts.take_in(event, Epoch::now);
        if let Event::Ended { is_over, log_url, .. } = event {
            state.end = Some(End { is_over: *is_over });
            state.archive_url.clone_from(log_url);
        }
        if !state.is_log_refused {
            state.buffer.take_in(event);
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl State {
    /// The id is the `build_id`. Without one it is the jid, which is certain after the second look-up at the latest.
    fn learn_id(&mut self, event: &Event, jid: &str) {
        let is_known = match event {
            Event::BuildId(Some(Value::String(id))) => return self.name(id),
            Event::BuildId(Some(id)) => return self.name(&id.to_string()),
            Event::BuildId(None) => {
                self.n_lookups += 1;
                self.n_lookups > 1
            }
            Event::Commit { .. } | Event::Ended { .. } => true,
            _ => false,
        };
        if is_known {
            self.name(jid);
        }
    }

    fn name(&mut self, id: &str) {
        self.id.get_or_insert_with(|| id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    const KEYS: LogKeys = LogKeys {
        events: str::to_owned,
        log: str::to_owned,
        archive: str::to_owned,
        record: str::to_owned,
        builds: "builds",
    };

    fn begin(streams: &LogStreams) -> Option<Arc<LogStream>> {
        let began_at = Epoch::from_millis(0);
        let attempt = Attempt { jid: "a-jid".into(), number: 1, worker: "a:1:b".into(), queued_at: None, began_at };
        streams.begin(attempt, &Arc::new(journal::Record::new(Report::default())))
    }

    fn id_after(events: &[Event]) -> Option<String> {
        let settings = Settings::default();
        let stream = begin(&LogStreams::new(&settings, KEYS).expect("a URL")).expect("streams are on");
        events.iter().for_each(|event| stream.on_event(event));
        stream.state().id.clone()
    }

    #[test]
    fn a_stream_has_the_id_of_the_build_or_else_the_jid() {
        let commit = || Event::Commit { account: "a".into(), repository: "a/b".into(), sha: "1".into(), git_ref: None };
        let unknown = || Event::BuildId(None);
        assert_eq!(id_after(&[Event::BuildId(Some(Value::from(42)))]).as_deref(), Some("42"));
        assert_eq!(id_after(&[unknown(), Event::BuildId(Some("x".into()))]).as_deref(), Some("x"));
        assert_eq!(id_after(&[unknown()]), None, "Rails may know it");
        assert_eq!(id_after(&[unknown(), unknown()]).as_deref(), Some("a-jid"));
        assert_eq!(id_after(&[unknown(), commit()]).as_deref(), Some("a-jid"));
    }

    #[test]
    fn without_the_setting_there_is_no_stream() {
        let mut settings = Settings::default();
        settings.journal.stream = false;
        assert!(begin(&LogStreams::new(&settings, KEYS).expect("nothing to connect to")).is_none());
    }
}
