//! A step that has printed, and has not ended: how much of its output goes to Redis, and the last lines that wait here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::OVERHEAD;
use crate::event::Step;
use crate::log_record::{LogRecord, StepOf};
use crate::text;
use crate::text::lines::{LineQueue, Lines};

/// A step gets no room below this.
const LEAST_STEP: usize = 1 << 10;

/// The shortest time between two `progress` records of a step.
const PROGRESS: Duration = Duration::from_secs(3);

/// After an hour, a step has a `progress` record in three minutes: the time between two grows with the time of the whole.
const PROGRESS_SLOWDOWN: u32 = 20;

/// Bytes of the latest line in a `progress` record.
pub(super) const LAST: usize = 120;

/// The output of one step.
#[derive(Debug)]
pub(super) struct Printing {
    /// Keeps the name, whose address is the step's key.
    _step: Step,
    of: StepOf,
    /// The beginning of its `output` records.
    pub(super) prefix: Arc<str>,
    /// Bytes of the stream that are its own.
    pub(super) reserved: usize,
    /// How many of them are left for its first lines, and how many there are for its last ones.
    pub(super) head_left: usize,
    pub(super) tail_max: usize,
    pub(super) tail: LineQueue,
    /// What the last lines count.
    pub(super) tail_bytes: usize,
    is_long: bool,
    missing_lines: u64,
    missing_bytes: u64,
    pub(super) progress: StepProgress,
}

/// What `progress` records say of a step.
#[derive(Debug, Default)]
pub(super) struct StepProgress {
    left: usize,
    lines: u64,
    bytes: u64,
    last: String,
    /// Lines in the last record.
    told_lines: u64,
    since: Option<Instant>,
    told_at: Option<Instant>,
}

impl Printing {
    /// A step with so much room in the stream.
    pub(super) fn new(step: &Step, room: usize) -> Self {
        let reserved = if room < LEAST_STEP { 0 } else { room };
        let of = StepOf::new(step);
        let empty = LogRecord::Output { of: of.clone(), lines: Vec::new() }.to_json();
        Self {
            _step: step.clone(),
            of,
            prefix: empty.trim_end_matches("]}").into(),
            reserved,
            head_left: reserved / 2 - reserved / 8,
            tail_max: reserved / 2,
            tail: LineQueue::default(),
            tail_bytes: 0,
            is_long: false,
            missing_lines: 0,
            missing_bytes: 0,
            progress: StepProgress { left: reserved / 8, ..StepProgress::default() },
        }
    }

    /// Takes the room for a line from that of the first lines. Returns whether there was enough; if not, there never will be.
    pub(super) fn is_at_its_head(&mut self, line: &str) -> bool {
        if self.is_long {
            return false;
        }
        let left = self.head_left.checked_sub(json_size(line));
        self.is_long = left.is_none();
        self.head_left = left.unwrap_or(self.head_left);
        !self.is_long
    }

    /// Whether the oldest of the last lines must go before one of this weight can be kept.
    pub(super) fn is_full(&self, weight: usize) -> bool {
        self.tail_bytes + weight > self.tail_max && !self.tail.is_empty()
    }

    /// Whether all its lines are last ones from now on.
    pub(super) fn is_long(&self) -> bool {
        self.is_long
    }

    /// Adds last lines.
    pub(super) fn push(&mut self, lines: &Lines, weight: usize) {
        self.tail.push(lines);
        self.tail_bytes += weight;
    }

    /// Drops the oldest of the last lines: a batch that has to go as a whole, otherwise one line. Returns the memory of them.
    pub(super) fn drop_oldest(&mut self, needed: usize) -> Option<usize> {
        let batch = self.tail.front()?;
        let (n_lines, n_bytes) = (batch.len(), batch.n_bytes());
        let of_batch = n_bytes + n_lines * OVERHEAD;
        if n_lines > 1 && of_batch <= needed {
            self.tail.pop_batch();
            self.tail_bytes -= of_batch;
            self.miss(n_lines, n_bytes);
            return Some(of_batch);
        }
        let line = self.tail.pop()?;
        self.tail_bytes -= weight(&line);
        self.miss(1, line.len());
        Some(line.len() + OVERHEAD)
    }

    /// Counts lines that are missing.
    pub(super) fn miss(&mut self, n_lines: usize, n_bytes: usize) {
        self.missing_lines += n_lines as u64;
        self.missing_bytes += n_bytes as u64;
    }

    /// The mark for the lines that are missing since the last one.
    pub(super) fn missing_record(&mut self) -> Option<LogRecord> {
        let (lines, bytes) = (std::mem::take(&mut self.missing_lines), std::mem::take(&mut self.missing_bytes));
        (lines > 0).then(|| LogRecord::Missing { of: self.of.clone(), lines, bytes })
    }

    /// How much the step has printed, and its latest line.
    pub(super) fn progress_record(&self) -> LogRecord {
        let StepProgress { lines, bytes, ref last, .. } = self.progress;
        LogRecord::Progress { of: self.of.clone(), lines, bytes, last: last.clone() }
    }

    /// The room that is left, without what the last lines take.
    pub(super) fn unused(&self) -> usize {
        self.head_left + self.tail_max + self.progress.left
    }
}

impl StepProgress {
    pub(super) fn take_in(&mut self, n_lines: usize, n_bytes: usize, last: &str) {
        self.lines += n_lines as u64;
        self.bytes += n_bytes as u64;
        self.last.clear();
        self.last.push_str(&last[..text::boundary(last, LAST)]);
    }

    pub(super) fn is_untold(&self) -> bool {
        self.lines > self.told_lines && self.left > 0
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        let pause = self.since.map_or(PROGRESS, |since| PROGRESS.max((now - since) / PROGRESS_SLOWDOWN));
        self.is_untold() && self.told_at.is_none_or(|told_at| now - told_at >= pause)
    }

    /// Notes that a record of this size tells everything. Returns whether it has room; if not, it is the last.
    pub(super) fn told(&mut self, now: Instant, size: usize) -> bool {
        self.told_lines = self.lines;
        self.told_at = Some(now);
        self.since.get_or_insert(now);
        let has_room = size <= self.left;
        self.left = if has_room { self.left - size } else { 0 };
        has_room
    }
}

/// The size of a plain line in a JSON array. The inner sum fits a byte, so the compiler vectorizes it.
pub(super) fn json_size(line: &str) -> usize {
    let is_escaped = |byte: &u8| u8::from((*byte == b'"') | (*byte == b'\\') | (*byte < b' '));
    let n_escaped = line.as_bytes().chunks(128).map(|block| usize::from(block.iter().map(is_escaped).sum::<u8>()));
    line.len() + n_escaped.sum::<usize>() + 3
}

/// What last lines count in the room of their step, all together, when each counts its memory. `None` when one may count more.
pub(super) fn weight_of_all(lines: &Lines) -> Option<usize> {
    // A line feed counts as escaped.
    let n_escaped = json_size(lines.text()) - 3 - lines.text().len() - lines.len();
    (n_escaped + 3 <= OVERHEAD).then(|| lines.n_bytes() + lines.len() * OVERHEAD)
}

/// What a last line counts in the room of its step: its memory here or its size in Redis, whichever is more.
pub(super) fn weight(line: &str) -> usize {
    json_size(line).max(line.len() + OVERHEAD)
}
