//! The part of a log stream that Redis does not have yet: bounded, whatever a build prints and however long Redis is away.
//!
//! A step's first lines go to Redis at once, as long as the step has room for them. Its last lines wait here for the end of the
//! step, and a `missing` record between the two says how much is left out. No function here waits, and none does I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::record::{Record, StepOf};
use crate::bounds;
use crate::event::{Event, Step};

/// Memory of a waiting line or record beside its text, with what the allocator adds.
const OVERHEAD: usize = 56;

/// What Redis takes for an entry beside its records.
const ENTRY_OVERHEAD: usize = 160;

/// Memory of what is known about a step that prints.
const STEP_OVERHEAD: usize = 512;

/// A step gets no room below this.
const LEAST_STEP: usize = 1 << 10;

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

/// A step that has printed, and has not ended.
#[derive(Debug)]
struct Printing {
    step: Step,
    of: StepOf,
    /// The beginning of its `output` records.
    prefix: Arc<str>,
    reserved: usize,
    head_left: usize,
    tail_max: usize,
    tail: VecDeque<Box<str>>,
    tail_bytes: usize,
    is_long: bool,
    missing_lines: u64,
    missing_bytes: u64,
}

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
    pub(super) fn begin(&mut self, attempt: &Record, of_earlier_attempts: usize) {
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
            Event::StepOutput { step, line } => self.line(step, line),
            Event::StepEnded { step, .. } => self.end_step(key(step)),
            // What still prints is of a docker-buildx that has ended.
            Event::PhaseEnded(..) | Event::Placed(_) | Event::TargetEnded(_) | Event::Ended { .. } => self.end_steps(),
            _ => {}
        }
        let Some(record) = Record::of(event) else { return };
        match record {
            Record::LeftOut { .. } => self.left_out.n_records += 1,
            // The end is never left out.
            Record::End { .. } => {
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

    fn line(&mut self, step: &Step, line: &str) {
        let (key, size, cost) = (key(step), json_size(line), line.len() + OVERHEAD);
        if !self.steps.contains_key(&key) && !self.begin_step(key, step) {
            self.left_out.n_lines += 1;
            return;
        }
        let printing = self.steps.get_mut(&key).expect("the step was added");
        if !printing.is_long && size <= printing.head_left {
            printing.head_left -= size;
            if self.make_room(key, cost) {
                let printing = self.mark_missing(key);
                let (prefix, line) = (Arc::clone(&printing.prefix), line.into());
                self.hold(cost);
                return self.queue.push_back(Item::Line { key, prefix, line });
            }
        } else {
            printing.is_long = true;
            let weight = weight(line);
            while self.steps[&key].is_full(weight) {
                self.drop_oldest(key);
            }
            if self.steps[&key].tail_max >= weight && self.make_room(key, cost) {
                let printing = self.steps.get_mut(&key).expect("the step was added");
                printing.tail.push_back(line.into());
                printing.tail_bytes += weight;
                return self.hold(cost);
            }
        }
        let printing = self.steps.get_mut(&key).expect("the step was added");
        printing.miss(line);
    }

    /// Gives a step a part of the room that is left, so that later steps have room too. Returns whether it can be kept.
    fn begin_step(&mut self, key: StepKey, step: &Step) -> bool {
        if !self.pool.has_room(self.pending_bytes, STEP_OVERHEAD) {
            return false;
        }
        self.hold(STEP_OVERHEAD);
        let room = self.limits.step_bytes.min(self.output_left / 4);
        let reserved = if room < LEAST_STEP { 0 } else { room };
        self.output_left -= reserved;
        let of = StepOf::new(step);
        let empty = Record::Output { of: of.clone(), lines: Vec::new() }.to_json();
        let printing = Printing {
            step: step.clone(),
            of,
            prefix: empty.trim_end_matches("]}").into(),
            reserved,
            head_left: reserved / 2,
            tail_max: reserved / 2,
            tail: VecDeque::new(),
            tail_bytes: 0,
            is_long: false,
            missing_lines: 0,
            missing_bytes: 0,
        };
        self.steps.insert(key, printing);
        true
    }

    /// Makes room for a line by dropping last lines of steps. Returns whether there is room.
    fn make_room(&mut self, key: StepKey, cost: usize) -> bool {
        while !self.pool.has_room(self.pending_bytes, cost) {
            // The step's own lines first: the search for the longest takes time.
            let own = self.steps.get(&key).is_some_and(|printing| !printing.tail.is_empty()).then_some(key);
            let longest = || {
                let longest = self.steps.iter().max_by_key(|(_, printing)| printing.tail_bytes);
                longest.filter(|(_, printing)| !printing.tail.is_empty()).map(|(key, _)| *key)
            };
            let Some(from) = own.or_else(longest) else { return false };
            self.drop_oldest(from);
        }
        true
    }

    fn drop_oldest(&mut self, key: StepKey) {
        let Some(printing) = self.steps.get_mut(&key) else { return };
        let Some(line) = printing.tail.pop_front() else { return };
        printing.tail_bytes -= weight(&line);
        printing.miss(&line);
        self.release(line.len() + OVERHEAD);
    }

    /// Adds the mark for the lines that are missing before the next one.
    fn mark_missing(&mut self, key: StepKey) -> &Printing {
        let printing = self.steps.get_mut(&key).expect("the step prints");
        if printing.missing_lines > 0 {
            let (lines, bytes) = (printing.missing_lines, printing.missing_bytes);
            (printing.missing_lines, printing.missing_bytes) = (0, 0);
            let mark = Record::Missing { of: printing.of.clone(), lines, bytes };
            if !self.record(&mark) {
                self.left_out.n_lines += lines;
            }
        }
        &self.steps[&key]
    }

    fn end_steps(&mut self) {
        let keys: Vec<StepKey> = self.steps.keys().copied().collect();
        keys.into_iter().for_each(|key| self.end_step(key));
    }

    /// Adds the mark and the last lines of a step, and gives back the room that it did not use.
    fn end_step(&mut self, key: StepKey) {
        if !self.steps.contains_key(&key) {
            return;
        }
        self.mark_missing(key);
        let Some(printing) = self.steps.remove(&key) else { return };
        let mut unused = printing.head_left + printing.tail_max;
        for line in printing.tail {
            unused = unused.saturating_sub(json_size(&line));
            self.queue.push_back(Item::Line { key, prefix: Arc::clone(&printing.prefix), line });
        }
        self.output_left += unused.min(printing.reserved);
        self.release(STEP_OVERHEAD);
        drop(printing.step);
    }

    /// Adds a record when there is room for it. Returns whether there is.
    fn record(&mut self, record: &Record) -> bool {
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
            let mark = Record::LeftOut { records: n_records, lines: n_lines }.to_json();
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

impl Printing {
    /// Whether the oldest of the last lines must go before one of this weight can be kept.
    fn is_full(&self, weight: usize) -> bool {
        self.tail_bytes + weight > self.tail_max && !self.tail.is_empty()
    }

    fn miss(&mut self, line: &str) {
        self.missing_lines += 1;
        self.missing_bytes += line.len() as u64;
    }
}

fn key(step: &Step) -> StepKey {
    Arc::as_ptr(&step.name).cast::<u8>() as usize
}

/// The size of a plain line in a JSON array.
fn json_size(line: &str) -> usize {
    line.len() + line.bytes().filter(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).count() + 3
}

/// What a last line counts in the room of its step: its memory here or its size in Redis, whichever is more.
fn weight(line: &str) -> usize {
    json_size(line).max(line.len() + OVERHEAD)
}

fn append(records: &mut String, json: &str) {
    if records.len() > 1 {
        records.push(',');
    }
    records.push_str(json);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::Status;

    const LIMITS: Limits = Limits { step_bytes: 64 << 10, build_bytes: 1 << 20 };

    fn pool(max_bytes: usize) -> Arc<Pool> {
        Arc::new(Pool::new(max_bytes, 1))
    }

    fn step(name: &str) -> Step {
        Step { target: Some("web".into()), name: name.into() }
    }

    fn buffer(pool: &Arc<Pool>) -> Buffer {
        let mut buffer = Buffer::new(LIMITS, Arc::clone(pool));
        buffer.begin(&Record::Attempt { jid: "j".into(), number: 1, removed_bytes: 0 }, 0);
        buffer
    }

    fn print(buffer: &mut Buffer, step: &Step, line: impl Into<String>) {
        buffer.take_in(&Event::StepOutput { step: step.clone(), line: line.into() });
    }

    fn end_step(buffer: &mut Buffer, step: &Step) {
        let took = std::time::Duration::ZERO;
        buffer.take_in(&Event::StepEnded { step: step.clone(), is_cached: false, took, error: None });
    }

    fn end(buffer: &mut Buffer) {
        buffer.take_in(&Event::Ended { status: Status::Succeeded, reason: None, message: None, is_over: true });
    }

    /// Everything that can be sent now, as Redis takes it.
    fn sent(buffer: &mut Buffer) -> Vec<Record> {
        let mut records = Vec::new();
        while !buffer.is_empty() {
            let entries = buffer.fill(256 << 10).clone();
            for entry in &entries {
                records.extend(serde_json::from_str::<Vec<Record>>(&entry.records).expect("records"));
            }
            buffer.acknowledge(entries.back().expect("an entry").number);
        }
        records
    }

    /// Lines, and marks as `…N`.
    fn output(records: &[Record]) -> Vec<String> {
        let output = records.iter().flat_map(|record| match record {
            Record::Output { lines, .. } => lines.clone(),
            Record::Missing { lines, .. } => vec![format!("…{lines}")],
            _ => Vec::new(),
        });
        output.collect()
    }

    #[test]
    fn a_long_step_keeps_its_first_and_last_lines_with_a_mark_between() {
        let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
        let mut buffer = buffer(&pool);
        (0..100_000).for_each(|n| print(&mut buffer, &make, format!("line {n}")));
        end_step(&mut buffer, &make);
        let output = output(&sent(&mut buffer));
        let mark = output.iter().position(|line| line.starts_with('…')).expect("a mark");
        assert_eq!((output[0].as_str(), output.last().map(String::as_str)), ("line 0", Some("line 99999")));
        assert_eq!(output[mark], format!("…{}", 100_000 - (output.len() - 1)));
        assert!(mark > 1000 && output.len() - mark > 400, "{mark} {}", output.len());
        assert_eq!(pool.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn first_lines_are_sent_before_the_step_ends() {
        let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
        let mut buffer = buffer(&pool);
        for n in 0..10 {
            print(&mut buffer, &make, n.to_string());
            assert_eq!(output(&sent(&mut buffer)), [n.to_string()]);
        }
    }

    #[test]
    fn steps_of_a_batch_keep_their_lines_in_order() {
        let (pool, steps) = (pool(8 << 20), [step("[1/2] RUN a"), step("[1/2] RUN b")]);
        let mut buffer = buffer(&pool);
        (0..100).for_each(|n| print(&mut buffer, &steps[n % 2], n.to_string()));
        let records = sent(&mut buffer);
        let lines = |name: &str| -> Vec<String> {
            let of_step =
                records.iter().filter(|record| matches!(record, Record::Output { of, .. } if of.step == name));
            output(&of_step.cloned().collect::<Vec<_>>())
        };
        let expected = |first| (first..100).step_by(2).map(|n: usize| n.to_string()).collect::<Vec<_>>();
        assert_eq!((lines("[1/2] RUN a"), lines("[1/2] RUN b")), (expected(0), expected(1)));
        assert_eq!(records.len(), 3, "one record for each step, and the attempt's");
    }

    #[test]
    fn the_stream_of_a_build_stays_within_its_bound_and_ends_with_its_end() {
        let pool = pool(8 << 20);
        let mut buffer = buffer(&pool);
        for n in 0..600 {
            let make = step(&format!("[{n}/600] RUN make {}", "\"".repeat(900)));
            buffer.take_in(&Event::StepStarted(make.clone()));
            // One line in each batch is the form that takes the most bytes.
            for line in 0..20 {
                print(&mut buffer, &make, format!("\\\t\"{line}\""));
                buffer.fill(1 << 20);
                let last = buffer.n_entries;
                buffer.acknowledge(last);
            }
            (0..150).for_each(|_| print(&mut buffer, &make, "x".repeat(100)));
            end_step(&mut buffer, &make);
        }
        end(&mut buffer);
        let records = sent(&mut buffer);
        assert!(matches!(records.last(), Some(Record::End { .. })), "{:?}", records.last());
        assert!(records.iter().any(|record| matches!(record, Record::LeftOut { .. })));
        assert!(buffer.total_bytes <= LIMITS.build_bytes, "{}", buffer.total_bytes);
        assert!(buffer.total_bytes > LIMITS.build_bytes / 2, "{}", buffer.total_bytes);
    }

    #[test]
    fn what_redis_does_not_take_is_bounded_and_counted() {
        let (pool, make) = (pool(128 << 10), step("[2/2] RUN make"));
        let mut buffer = buffer(&pool);
        let n_lines = 50_000;
        for n in 0..n_lines {
            print(&mut buffer, &make, format!("line {n}"));
            buffer.take_in(&Event::Notice("a notice".into()));
            buffer.fill(256 << 10);
            assert!(pool.used.load(Ordering::Relaxed) <= (128 << 10) + bounds::LOG_ENTRY);
        }
        end_step(&mut buffer, &make);
        end(&mut buffer);
        let records = sent(&mut buffer);
        let (mut n_there, mut n_missing, mut n_notices) = (0, 0, 0);
        for record in &records {
            match record {
                Record::Output { lines, .. } => n_there += lines.len() as u64,
                Record::Missing { lines, .. } => n_missing += lines,
                Record::LeftOut { records, lines } => {
                    n_notices += records;
                    n_missing += lines;
                }
                Record::Notice { .. } | Record::StepEnd { .. } => n_notices += 1,
                _ => {}
            }
        }
        assert_eq!(n_there + n_missing, n_lines, "every line is there or counted");
        assert_eq!(n_notices, n_lines + 1, "every notice and the step's end is there or counted");
        assert!(matches!(records.last(), Some(Record::End { .. })));
        assert_eq!(pool.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_build_that_fills_the_pool_leaves_the_others_their_share() {
        let pool = Arc::new(Pool::new(256 << 10, 4));
        let (mut greedy, mut modest) = (buffer(&pool), buffer(&pool));
        let (make, test) = (step("RUN make"), step("RUN test"));
        (0..10_000).for_each(|n| print(&mut greedy, &make, n.to_string()));
        (0..100).for_each(|n| print(&mut modest, &test, n.to_string()));
        assert_eq!(output(&sent(&mut modest)).len(), 100);
    }

    #[test]
    fn a_second_attempt_has_the_room_that_the_first_left() {
        let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
        let mut buffer = Buffer::new(LIMITS, Arc::clone(&pool));
        assert!(buffer.is_too_much(LIMITS.build_bytes / 2 + 1) && !buffer.is_too_much(LIMITS.build_bytes / 2));
        buffer.begin(&Record::Attempt { jid: "j".into(), number: 2, removed_bytes: 0 }, LIMITS.build_bytes / 2);
        for _ in 0..100 {
            (0..10_000).for_each(|n| print(&mut buffer, &make, n.to_string()));
            end_step(&mut buffer, &make);
            sent(&mut buffer);
        }
        end(&mut buffer);
        sent(&mut buffer);
        assert!(buffer.total_bytes <= LIMITS.build_bytes, "{}", buffer.total_bytes);
    }

    proptest! {
        #[test]
        fn every_line_is_there_once_and_in_order_wherever_the_batches_end(
            lines in prop::collection::vec("[ -~\t\n\"\\\\é␀]{0,40}", 1..60),
            cuts in prop::collection::vec(any::<bool>(), 60),
        ) {
            let (pool, make) = (pool(8 << 20), step("[2/2] RUN make"));
            let mut buffer = buffer(&pool);
            let mut records = Vec::new();
            for (line, is_cut) in lines.iter().zip(cuts) {
                print(&mut buffer, &make, line.clone());
                if is_cut {
                    records.extend(sent(&mut buffer));
                }
            }
            end_step(&mut buffer, &make);
            records.extend(sent(&mut buffer));
            prop_assert_eq!(output(&records), lines);
            prop_assert_eq!(pool.used.load(Ordering::Relaxed), 0);
        }
    }
}
