//! The part of a log stream that Redis does not have yet: bounded, whatever a build prints and however long Redis is away.
//!
//! A step's first lines go to Redis at once, as long as the step has room for them. Its last lines wait here for the end of the
//! step, and a `missing` record between the two says how much is left out. Meanwhile `progress` records show that the step prints.
//! No function here waits, and none does I/O.

mod printing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::bounds;
use crate::event::{Event, Step};
use crate::log_record::LogRecord;
use crate::text::lines::Lines;

use printing::{Printing, json_size, weight, weight_of_all};

/// Memory of a waiting line or record beside its text, with what the allocator adds.
const OVERHEAD: usize = 56;

/// What Redis takes for an entry beside its records.
const ENTRY_OVERHEAD: usize = 160;

/// Memory of what is known about a step that prints.
const STEP_OVERHEAD: usize = 512;

/// Room for the first and the last record of an attempt, which are never left out.
const ENDS: usize = 12 << 10;

/// The bytes of all builds of a worker that wait for Redis.
#[derive(Debug)]
pub(super) struct Pool {
    used: AtomicUsize,
    /// All builds together.
    shared: usize,
    /// Each build has this much in any case.
    own: usize,
}

/// The bytes that a stream may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Of one step's output.
    pub step_bytes: usize,
    /// Of the whole stream.
    pub build_bytes: usize,
}

/// One entry of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its number in this attempt, from 1.
    pub number: u64,
    /// A JSON array of records.
    pub records: String,
    /// Bytes of the stream, with this entry.
    pub total_bytes: usize,
}

/// What waits for Redis, in order.
#[derive(Debug)]
pub(super) struct Buffer {
    limits: Limits,
    pool: Arc<Pool>,
    pending_bytes: usize,
    queue: VecDeque<Item>,
    steps: HashMap<StepKey, Printing>,
    /// Entries that were sent, and that Redis may have.
    sent: VecDeque<Entry>,
    n_entries: u64,
    total_bytes: usize,
    output_left: usize,
    records_left: usize,
    left_out: LeftOut,
}

/// What is missing, and not marked yet.
#[derive(Debug, Default)]
struct LeftOut {
    n_records: u64,
    n_lines: u64,
}

#[derive(Debug)]
enum Item {
    Record(String),
    Line { key: StepKey, prefix: Arc<str>, line: Box<str> },
}

/// The address of a step's name. The step's state keeps the name, so that no other has the same address.
type StepKey = usize;

impl Pool {
    /// A pool for so many builds at once.
    pub(super) fn new(max_bytes: usize, n_builds: usize) -> Self {
        Self { used: AtomicUsize::new(0), shared: max_bytes / 2, own: max_bytes / 2 / n_builds.max(1) }
    }

    fn has_room(&self, own: usize, n_bytes: usize) -> bool {
        own + n_bytes <= self.own || self.used.load(Ordering::Relaxed) + n_bytes <= self.shared
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release(self.pending_bytes);
    }
}

impl Buffer {
    pub(super) fn new(limits: Limits, pool: Arc<Pool>) -> Self {
        let mut buffer = Self {
            limits,
            pool,
            pending_bytes: 0,
            queue: VecDeque::new(),
            steps: HashMap::new(),
            sent: VecDeque::new(),
            n_entries: 0,
            total_bytes: 0,
            output_left: 0,
            records_left: 0,
            left_out: LeftOut::default(),
        };
        // Half of the stream is free in any case: `begin` removes earlier attempts that take more.
        buffer.grant((limits.build_bytes / 2).saturating_sub(ENDS));
        buffer
    }

    /// Whether earlier attempts take so many bytes that they must be removed.
    pub(super) fn is_too_much(&self, of_earlier_attempts: usize) -> bool {
        of_earlier_attempts > self.limits.build_bytes / 2
    }

    /// Begins the stream of this attempt, after `of_earlier_attempts` bytes.
    pub(super) fn begin(&mut self, attempt: &LogRecord, of_earlier_attempts: usize) {
        self.total_bytes = of_earlier_attempts;
        self.grant((self.limits.build_bytes / 2).saturating_sub(of_earlier_attempts));
        let record = attempt.to_json();
        self.hold(record.len() + OVERHEAD);
        self.queue.push_front(Item::Record(record));
    }

    /// A quarter is for records, the rest for output.
    fn grant(&mut self, n_bytes: usize) {
        self.records_left += n_bytes / 4;
        self.output_left += n_bytes - n_bytes / 4;
    }

    /// Takes in one event.
    pub(super) fn take_in(&mut self, event: &Event) {
        match event {
            Event::StepOutput { step, lines } => self.lines(step, lines),
            Event::StepEnded { step, .. } => self.end_step(key(step)),
            // What still prints is of a docker-buildx that has ended.
            Event::PhaseEnded(..) | Event::Placed(_) | Event::TargetEnded(_) | Event::Ended { .. } => self.end_steps(),
            _ => {}
        }
        let Some(record) = LogRecord::of(event) else { return };
        match record {
            LogRecord::LeftOut { .. } => self.left_out.n_records += 1,
            // The end is never left out.
            LogRecord::End { .. } => {
                self.mark_left_out();
                self.push(record.to_json());
            }
            record => {
                if !self.record(&record) {
                    self.left_out.n_records += 1;
                }
            }
        }
    }

    /// Adds a record for each step that has printed more, but not more often than readers need. Its lines come when it ends.
    pub(super) fn tell_progress(&mut self, now: Instant) {
        let due = self.steps.iter().filter(|(_, printing)| printing.progress.is_due(now)).map(|(key, _)| *key);
        for key in due.collect::<Vec<_>>() {
            let Some(printing) = self.steps.get_mut(&key) else { continue };
            let json = printing.progress_record().to_json();
            let size = json.len() + 1 + ENTRY_OVERHEAD;
            if printing.progress.told(now, size) && self.pool.has_room(self.pending_bytes, json.len() + OVERHEAD) {
                self.push(json);
            }
        }
    }

    /// The entries to send, at most so many bytes. They stay until [`Self::acknowledge`].
    pub(super) fn fill(&mut self, max_bytes: usize) -> &VecDeque<Entry> {
        let mut n_bytes: usize = self.sent.iter().map(|entry| entry.records.len()).sum();
        while n_bytes < max_bytes
            && let Some(entry) = self.entry()
        {
            n_bytes += entry.records.len();
            self.sent.push_back(entry);
        }
        &self.sent
    }

    /// Redis has all entries up to this number.
    pub(super) fn acknowledge(&mut self, number: u64) {
        while self.sent.front().is_some_and(|entry| entry.number <= number) {
            let entry = self.sent.pop_front();
            self.release(entry.map_or(0, |entry| entry.records.len()));
        }
    }

    /// Whether Redis has everything that can be sent now.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.queue.is_empty()
    }

    /// Whether everything is in the entries of the last [`Self::fill`].
    pub(super) fn is_filled(&self) -> bool {
        self.queue.is_empty()
    }

    fn lines(&mut self, step: &Step, lines: &Lines) {
        let key = key(step);
        let Some(mut printing) = self.steps.remove(&key).or_else(|| self.begin_step(step)) else {
            self.left_out.n_lines += lines.len() as u64;
            return;
        };
        if !self.last_lines(&mut printing, lines) {
            lines.iter().for_each(|line| self.line(key, &mut printing, line));
        }
        self.steps.insert(key, printing);
    }

    /// Takes in lines of a long step together, as if one by one. Returns whether it has: not when there may be too little room.
    fn last_lines(&mut self, printing: &mut Printing, lines: &Lines) -> bool {
        let weight = weight_of_all(lines).filter(|weight| printing.is_long() && *weight <= printing.tail_max);
        let Some(weight) = weight.filter(|weight| self.pool.has_room(self.pending_bytes, *weight)) else {
            return false;
        };
        printing.progress.take_in(lines.len(), lines.n_bytes(), lines.last().unwrap_or_default());
        self.drop_for(printing, weight);
        printing.push(lines, weight);
        self.hold(weight);
        true
    }

    /// Drops the oldest of a step's last lines until there is room for as much.
    fn drop_for(&mut self, printing: &mut Printing, weight: usize) {
        while printing.is_full(weight)
            && let Some(n_bytes) = printing.drop_oldest(printing.tail_bytes + weight - printing.tail_max)
        {
            self.release(n_bytes);
        }
    }

    /// Takes in a line of a step, which is not among `self.steps` meanwhile.
    fn line(&mut self, key: StepKey, printing: &mut Printing, line: &str) {
        let cost = line.len() + OVERHEAD;
        if printing.is_at_its_head(line) {
            if self.make_room(printing, cost) {
                self.mark_missing(printing);
                let prefix = Arc::clone(&printing.prefix);
                self.hold(cost);
                return self.queue.push_back(Item::Line { key, prefix, line: line.into() });
            }
        } else {
            printing.progress.take_in(1, line.len(), line);
            let weight = weight(line);
            self.drop_for(printing, weight);
            if printing.tail_max >= weight && self.make_room(printing, cost) {
                printing.push(&line.into(), weight);
                return self.hold(cost);
            }
        }
        printing.miss(1, line.len());
    }

    /// Gives a step a part of the room that is left, so that later steps have room too. `None` when it cannot be kept.
    fn begin_step(&mut self, step: &Step) -> Option<Printing> {
        if !self.pool.has_room(self.pending_bytes, STEP_OVERHEAD) {
            return None;
        }
        self.hold(STEP_OVERHEAD);
        let room = self.limits.step_bytes.min(self.output_left / 4);
        let printing = Printing::new(step, room);
        self.output_left -= printing.reserved;
        Some(printing)
    }

    /// Makes room for a line by dropping last lines of steps. Returns whether there is room.
    fn make_room(&mut self, printing: &mut Printing, cost: usize) -> bool {
        while !self.pool.has_room(self.pending_bytes, cost) {
            // The step's own lines first: the search for the longest takes time.
            if self.drop_oldest(printing) {
                continue;
            }
            let longest = self.steps.iter().max_by_key(|(_, other)| other.tail_bytes);
            let Some(longest) = longest.filter(|(_, other)| !other.tail.is_empty()).map(|(key, _)| *key) else {
                return false;
            };
            if let Some(mut other) = self.steps.remove(&longest) {
                self.drop_oldest(&mut other);
                self.steps.insert(longest, other);
            }
        }
        true
    }

    /// Drops the oldest of a step's last lines. Returns whether there was one.
    fn drop_oldest(&mut self, printing: &mut Printing) -> bool {
        let Some(n_bytes) = printing.drop_oldest(0) else { return false };
        self.release(n_bytes);
        true
    }

    /// Adds the mark for the lines that are missing before the next one.
    fn mark_missing(&mut self, printing: &mut Printing) {
        let Some(mark) = printing.missing_record() else { return };
        if let LogRecord::Missing { lines, .. } = mark
            && !self.record(&mark)
        {
            self.left_out.n_lines += lines;
        }
    }

    fn end_steps(&mut self) {
        let keys: Vec<StepKey> = self.steps.keys().copied().collect();
        keys.into_iter().for_each(|key| self.end_step(key));
    }

    /// Adds the mark and the last lines of a step, and gives back the room that it did not use.
    fn end_step(&mut self, key: StepKey) {
        let Some(mut printing) = self.steps.remove(&key) else { return };
        self.mark_missing(&mut printing);
        let mut unused = printing.unused();
        for line in printing.tail.iter() {
            unused = unused.saturating_sub(json_size(line));
            self.queue.push_back(Item::Line { key, prefix: Arc::clone(&printing.prefix), line: line.into() });
        }
        self.output_left += unused.min(printing.reserved);
        self.release(STEP_OVERHEAD);
    }

    /// Adds a record when there is room for it. Returns whether there is.
    fn record(&mut self, record: &LogRecord) -> bool {
        let json = record.to_json();
        // A batch may have only this record.
        let size = json.len() + 1 + ENTRY_OVERHEAD;
        if size > self.records_left || !self.pool.has_room(self.pending_bytes, json.len() + OVERHEAD) {
            return false;
        }
        self.records_left -= size;
        self.mark_left_out();
        self.push(json);
        true
    }

    fn mark_left_out(&mut self) {
        let LeftOut { n_records, n_lines } = std::mem::take(&mut self.left_out);
        if n_records + n_lines > 0 {
            let mark = LogRecord::LeftOut { records: n_records, lines: n_lines }.to_json();
            self.records_left = self.records_left.saturating_sub(mark.len());
            self.push(mark);
        }
    }

    fn push(&mut self, json: String) {
        self.hold(json.len() + OVERHEAD);
        self.queue.push_back(Item::Record(json));
    }

    /// The next entry, of at most about [`bounds::LOG_ENTRY`] bytes.
    fn entry(&mut self) -> Option<Entry> {
        let mut records = String::from("[");
        while records.len() < bounds::LOG_ENTRY {
            match self.queue.pop_front() {
                Some(Item::Record(json)) => {
                    self.release(json.len() + OVERHEAD);
                    append(&mut records, &json);
                }
                Some(line @ Item::Line { .. }) => {
                    self.queue.push_front(line);
                    self.outputs(&mut records);
                }
                None => break,
            }
        }
        if records.len() == 1 {
            return None;
        }
        records.push(']');
        self.n_entries += 1;
        self.total_bytes += records.len() + ENTRY_OVERHEAD;
        self.hold(records.len());
        Some(Entry { number: self.n_entries, records, total_bytes: self.total_bytes })
    }

    /// Appends the next lines, one record for each step.
    fn outputs(&mut self, records: &mut String) {
        let (mut outputs, mut n_bytes) = (Vec::<(Arc<str>, String)>::new(), records.len());
        while n_bytes < bounds::LOG_ENTRY && matches!(self.queue.front(), Some(Item::Line { .. })) {
            let Some(Item::Line { key, prefix, line }) = self.queue.pop_front() else { break };
            self.release(line.len() + OVERHEAD);
            let at = outputs.iter().position(|(other, _)| Arc::ptr_eq(other, &prefix)).unwrap_or_else(|| {
                outputs.push((Arc::clone(&prefix), prefix.to_string()));
                self.charge(key, prefix.len() + ENTRY_OVERHEAD);
                n_bytes += prefix.len();
                outputs.len() - 1
            });
            let output = &mut outputs[at].1;
            let before = output.len();
            if !output.ends_with('[') {
                output.push(',');
            }
            output.push_str(&serde_json::to_string(&line).expect("a text is JSON"));
            n_bytes += output.len() - before;
        }
        outputs.iter().for_each(|(_, output)| append(records, &format!("{output}]}}")));
    }

    /// Takes what an `output` record adds to its lines from the room of its step.
    fn charge(&mut self, key: StepKey, n_bytes: usize) {
        let left = self.steps.get_mut(&key).map_or(&mut self.output_left, |printing| &mut printing.head_left);
        *left = left.saturating_sub(n_bytes);
    }

    fn hold(&mut self, n_bytes: usize) {
        self.pending_bytes += n_bytes;
        self.pool.used.fetch_add(n_bytes, Ordering::Relaxed);
    }

    fn release(&mut self, n_bytes: usize) {
        self.pending_bytes -= n_bytes;
        self.pool.used.fetch_sub(n_bytes, Ordering::Relaxed);
    }
}

fn key(step: &Step) -> StepKey {
    Arc::as_ptr(&step.name).cast::<u8>() as usize
}

fn append(records: &mut String, json: &str) {
    if records.len() > 1 {
        records.push(',');
    }
    records.push_str(json);
}

#[cfg(test)]
mod tests;
