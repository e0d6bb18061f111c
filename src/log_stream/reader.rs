//! Reads a log stream from its beginning, and goes on where it stopped.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::history::{HistoryError, query};
use super::position::Position;
use crate::event::millis;
use crate::json;
use crate::redis::Redis;

/// Entries of one request: at most some megabytes.
const PAGE: &str = "100";

/// A reader of one stream. After a failure, call [`Self::read`] again: no record is lost or repeated.
#[derive(Debug)]
pub struct LogReader<'r> {
    redis: &'r Redis,
    key: String,
    last_id: String,
    /// The last number of each writer.
    numbers: HashMap<String, u64>,
}

/// What a reader found.
#[derive(Debug)]
pub enum LogRead {
    /// More of the log.
    Page(LogPage),
    /// Nothing new.
    Nothing,
    /// No log: it was deleted or trimmed, or it has expired.
    Gone,
}

/// A part of the log.
#[derive(Debug, Default)]
pub struct LogPage {
    /// Each record with the id of its entry. Records that are not JSON are left out.
    pub records: Vec<(String, Value)>,
    /// Whether entries before these were removed unread.
    pub has_gap: bool,
}

impl<'r> LogReader<'r> {
    /// A reader at the beginning of the stream.
    pub fn new(redis: &'r Redis, key: String) -> Self {
        Self { redis, key, last_id: "0".into(), numbers: HashMap::new() }
    }

    /// The next records. Waits at most `wait` for them.
    pub async fn read(&mut self, wait: Duration) -> Result<LogRead, HistoryError> {
        let mut command = redis::cmd("XREAD");
        command.arg(&["COUNT", PAGE]);
        if !wait.is_zero() {
            command.arg("BLOCK").arg(millis(wait));
        }
        command.arg("STREAMS").arg(&self.key).arg(&self.last_id);
        type Streams = Vec<(String, Vec<(String, HashMap<String, String>)>)>;
        let streams: Option<Streams> = query(self.redis, &command, &self.key).await?;
        let entries: Vec<_> = streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect();
        if entries.is_empty() {
            let n_entries: u64 = query(self.redis, redis::cmd("XLEN").arg(&self.key), &self.key).await?;
            return Ok(if n_entries == 0 { LogRead::Gone } else { LogRead::Nothing });
        }
        let mut page = LogPage::default();
        entries.into_iter().for_each(|(id, fields)| self.take_in(id, &fields, &mut page));
        Ok(LogRead::Page(page))
    }

    fn take_in(&mut self, id: String, fields: &HashMap<String, String>, page: &mut LogPage) {
        if let Some(Position { writer, number, .. }) = fields.get("position").and_then(|text| Position::parse(text)) {
            let last = self.numbers.insert(writer, number).unwrap_or(0);
            page.has_gap |= number != last + 1;
        }
        let records = fields.get("records").and_then(|text| json::read::<Vec<Value>>(text.as_bytes()).ok());
        page.records.extend(records.into_iter().flatten().map(|record| (id.clone(), record)));
        self.last_id = id;
    }
}
