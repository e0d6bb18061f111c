//! What the archived log keeps of a build: all of it, up to a cap. Beyond the cap, each step keeps its last lines, with a mark before
//! them for what is missing.
//!
//! The lines of a step become one record when they follow each other. No function here does I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::bounds;
use crate::event::{Event, Step};
use crate::log_record::{LogRecord, StepOf};

/// Bytes of output in one record.
const RECORD: usize = 8 << 10;

/// A tail below this is not kept.
const LEAST_TAIL: usize = 256;

/// What a line counts in memory beside its text, with what the allocator adds.
const OVERHEAD: usize = 32;

/// The address of a step's name. The value beside it keeps the name, so that no other has the same address.
type StepKey = usize;

/// The log of one attempt.
#[derive(Debug)]
pub(super) struct Excerpt {
    /// Bytes of output that are still kept whole.
    left: usize,
    /// Bytes of last lines that are still kept: a quarter of the cap.
    tails_left: usize,
    tails: HashMap<StepKey, LastLines>,
    tail_bytes: usize,
    open: Option<OpenLines>,
    /// Notices that the journal left out.
    n_left_out: u64,
}

/// Lines of one step that follow each other.
#[derive(Debug)]
struct OpenLines {
    step: Step,
    lines: Vec<String>,
    n_bytes: usize,
}

/// The last lines of a step, once the log has reached its cap.
#[derive(Debug)]
struct LastLines {
    step: Step,
    lines: VecDeque<Box<str>>,
    n_bytes: usize,
    max_bytes: usize,
    missing_lines: u64,
    missing_bytes: u64,
}

impl Excerpt {
    /// A log that keeps so many bytes of output whole.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            left: max_bytes,
            tails_left: max_bytes / 4,
            tails: HashMap::new(),
            tail_bytes: 0,
            open: None,
            n_left_out: 0,
        }
    }

    /// Takes in one event, and passes on the records that are complete.
    pub(super) fn take_in<E>(
        &mut self,
        event: &Event,
        on_record: &mut impl FnMut(LogRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        match event {
            Event::StepOutput { step, lines } => {
                return lines.iter().try_for_each(|line| self.line(step, line, on_record));
            }
            // They have no bound, so their number is one record at the end.
            Event::NoticeLeftOut => {
                self.n_left_out += 1;
                return Ok(());
            }
            _ => {}
        }
        let Some(record) = LogRecord::of(event) else { return Ok(()) };
        self.end_run(on_record)?;
        match event {
            Event::StepEnded { step, .. } => self.end_step(key(step), on_record)?,
            // What still prints is of a docker-buildx that has ended.
            Event::PhaseEnded(..) | Event::Placed(_) | Event::TargetEnded(_) | Event::Ended { .. } => {
                self.end_steps(on_record)?;
            }
            _ => {}
        }
        if matches!(event, Event::Ended { .. }) && self.n_left_out > 0 {
            on_record(LogRecord::LeftOut { records: self.n_left_out, lines: 0 })?;
        }
        on_record(record)
    }

    fn line<E>(
        &mut self,
        step: &Step,
        line: &str,
        on_record: &mut impl FnMut(LogRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = line.len() + 1;
        if self.tails.contains_key(&key(step)) || size > self.left {
            // The log has one gap for each step, and nothing whole after it.
            self.left = 0;
            self.last_line(step, line);
            return Ok(());
        }
        self.left -= size;
        if self.open.as_ref().is_some_and(|run| !run.step.is_same(step) || run.n_bytes + size > RECORD) {
            self.end_run(on_record)?;
        }
        let run = self.open.get_or_insert_with(|| OpenLines { step: step.clone(), lines: Vec::new(), n_bytes: 0 });
        run.lines.push(line.to_owned());
        run.n_bytes += size;
        Ok(())
    }

    /// Keeps a line until others replace it.
    fn last_line(&mut self, step: &Step, line: &str) {
        let tails_left = &mut self.tails_left;
        let tail = self.tails.entry(key(step)).or_insert_with(|| {
            // Later steps have room too.
            let room = bounds::ARCHIVE_TAIL.min(*tails_left / 4);
            let max_bytes = if room < LEAST_TAIL { 0 } else { room };
            *tails_left -= max_bytes;
            LastLines::new(step, max_bytes)
        });
        let (before, size) = (tail.n_bytes, line.len() + OVERHEAD);
        while tail.n_bytes + size > tail.max_bytes && tail.drop_oldest() {}
        if size > tail.max_bytes {
            tail.miss(line);
        } else {
            tail.lines.push_back(line.into());
            tail.n_bytes += size;
        }
        self.tail_bytes = self.tail_bytes + tail.n_bytes - before;
        while self.tail_bytes > bounds::ARCHIVE_TAILS {
            let longest = self.tails.values_mut().max_by_key(|tail| tail.n_bytes);
            let Some(longest) = longest else { return };
            self.tail_bytes -= longest.n_bytes;
            longest.drop_oldest();
            self.tail_bytes += longest.n_bytes;
        }
    }

    fn end_run<E>(&mut self, on_record: &mut impl FnMut(LogRecord) -> Result<(), E>) -> Result<(), E> {
        let Some(OpenLines { step, lines, .. }) = self.open.take() else { return Ok(()) };
        on_record(LogRecord::Output { of: StepOf::new(&step), lines })
    }

    fn end_steps<E>(&mut self, on_record: &mut impl FnMut(LogRecord) -> Result<(), E>) -> Result<(), E> {
        let keys: Vec<StepKey> = self.tails.keys().copied().collect();
        keys.into_iter().try_for_each(|key| self.end_step(key, on_record))
    }

    /// Passes on the mark and the last lines of a step.
    fn end_step<E>(&mut self, key: StepKey, on_record: &mut impl FnMut(LogRecord) -> Result<(), E>) -> Result<(), E> {
        let Some(tail) = self.tails.remove(&key) else { return Ok(()) };
        self.tail_bytes -= tail.n_bytes;
        let of = StepOf::new(&tail.step);
        if tail.missing_lines > 0 {
            let (lines, bytes) = (tail.missing_lines, tail.missing_bytes);
            on_record(LogRecord::Missing { of: of.clone(), lines, bytes })?;
        }
        if tail.lines.is_empty() {
            return Ok(());
        }
        on_record(LogRecord::Output { of, lines: tail.lines.into_iter().map(String::from).collect() })
    }
}

impl LastLines {
    fn new(step: &Step, max_bytes: usize) -> Self {
        let lines = VecDeque::new();
        Self { step: step.clone(), lines, n_bytes: 0, max_bytes, missing_lines: 0, missing_bytes: 0 }
    }

    /// Returns whether there was a line.
    fn drop_oldest(&mut self) -> bool {
        let Some(line) = self.lines.pop_front() else { return false };
        self.n_bytes -= line.len() + OVERHEAD;
        self.miss(&line);
        true
    }

    fn miss(&mut self, line: &str) {
        self.missing_lines += 1;
        self.missing_bytes += line.len() as u64;
    }
}

fn key(step: &Step) -> StepKey {
    Arc::as_ptr(&step.name).cast::<u8>() as usize
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use super::*;
    use crate::event::Status;

    fn step(name: &str) -> Step {
        Step { target: Some("web".into()), name: name.into() }
    }

    fn ends(step: &Step) -> Event {
        Event::StepEnded { step: step.clone(), is_cached: false, took: Duration::ZERO, error: None }
    }

    /// The log of these events, as text.
    fn log(max_bytes: usize, events: impl IntoIterator<Item = Event>) -> Vec<String> {
        let (mut excerpt, mut text) = (Excerpt::new(max_bytes), Vec::new());
        let end = Event::Ended { status: Status::Succeeded, reason: None, message: None, is_over: true, log_url: None };
        for event in events.into_iter().chain([end]) {
            let taken = excerpt.take_in(&event, &mut |record| {
                record.write_text(&mut text).expect("memory has room");
                Ok::<(), Infallible>(())
            });
            taken.expect("memory has room");
            assert!(excerpt.tail_bytes <= bounds::ARCHIVE_TAILS);
        }
        assert_eq!((excerpt.tail_bytes, excerpt.tails.len()), (0, 0));
        String::from_utf8(text).expect("text").lines().map(str::to_owned).collect()
    }

    fn prints(step: &Step, line: impl AsRef<str>) -> Event {
        Event::StepOutput { step: step.clone(), lines: line.as_ref().into() }
    }

    #[test]
    fn a_log_below_its_cap_is_whole_and_in_order() {
        let [a, b] = [step("[1/2] RUN a"), step("[2/2] RUN b")];
        let lines = (0..5000).map(|n| prints(if n % 3 == 0 { &a } else { &b }, n.to_string()));
        let log = log(1 << 20, lines);
        let expected = (0..5000).map(|n| format!("web {}/2 | {n}", if n % 3 == 0 { 1 } else { 2 }));
        assert_eq!(log, expected.chain(["build | succeeded".into()]).collect::<Vec<_>>());
    }

    #[test]
    fn beyond_its_cap_each_step_keeps_its_last_lines_after_a_mark() {
        let [noisy, late] = [step("[1/2] RUN a"), step("[2/2] RUN b")];
        let line = |n: usize| format!("line {n:08}");
        let events = (0..100_000).map(|n| prints(&noisy, line(n))).chain([ends(&noisy)]);
        let events = events.chain((0..9).map(|n| prints(&late, line(n)))).chain([ends(&late)]);
        let log = log(140_000, events);
        let shown = |text: &str| log.iter().any(|line| line.ends_with(text));
        assert!(shown("line 00009999") && !shown("line 00010000") && shown("line 00099999"), "{} lines", log.len());
        let mark = log.iter().position(|line| line.contains("are missing here")).expect("a mark");
        let n_after = log.iter().filter(|line| line.starts_with("web 1/2")).count() - mark - 1;
        assert_eq!(
            log[mark],
            format!("web 1/2 | … {0} lines ({1} bytes) are missing here", 90_000 - n_after, 13 * (90_000 - n_after))
        );
        assert!(n_after > 100, "{n_after}");
        assert_eq!(log.iter().filter(|line| line.starts_with("web 2/2")).count(), 9, "a late step is there");
    }

    #[test]
    fn last_lines_of_many_steps_have_a_bound() {
        let steps: Vec<Step> = (0..500).map(|n| step(&format!("[{n}/500] RUN make"))).collect();
        let events = (0..200_000).map(|n| prints(&steps[n % 500], "x".repeat(200)));
        let log = log(16 << 20, events);
        let n_bytes: usize = log.iter().map(String::len).sum();
        assert!(n_bytes < 24 << 20, "{n_bytes}");
    }
}
