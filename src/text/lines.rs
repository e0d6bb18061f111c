//! Lines of text in batches: a step may print a million of them, and an allocation or a copy for each would decide how fast it may print.

use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A batch of which most is gone is copied, so that the rest of it does not keep all of its memory.
const MIN_COPIED: usize = 4 << 10;

/// Some lines of plain text. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    /// Each line with its line feed.
    text: Arc<str>,
    n_lines: usize,
}

impl Lines {
    /// Takes whole lines, each with its line feed.
    pub fn new(text: &str) -> Self {
        debug_assert!(text.is_empty() || text.ends_with('\n'), "the last line has its line feed");
        Self { text: text.into(), n_lines: memchr::memchr_iter(b'\n', text.as_bytes()).count() }
    }

    /// The lines in order, without their line feeds.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        each(&self.text)
    }

    /// The lines, each with its line feed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.n_lines
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n_lines == 0
    }

    /// Bytes of the lines, without their line feeds.
    pub fn n_bytes(&self) -> usize {
        self.text.len() - self.n_lines
    }

    /// The last line.
    pub fn last(&self) -> Option<&str> {
        last(&self.text)
    }
}

impl From<&str> for Lines {
    /// One line.
    fn from(line: &str) -> Self {
        Self { text: format!("{line}\n").into(), n_lines: 1 }
    }
}

/// Lines of which the oldest goes first. Whole batches come and go at once, and are not copied.
#[derive(Clone, Debug, Default)]
pub struct LineQueue {
    batches: VecDeque<Batch>,
    n_lines: usize,
    n_bytes: usize,
}

/// The lines of a batch that have not gone. There is at least one.
#[derive(Clone, Debug)]
pub struct Batch {
    lines: Lines,
    /// Where the oldest begins, and how many there are.
    from: usize,
    n_left: usize,
}

/// A line that has gone from a queue.
#[derive(Debug)]
pub struct GoneLine {
    text: Arc<str>,
    range: Range<usize>,
}

impl Deref for GoneLine {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text[self.range.clone()]
    }
}

impl LineQueue {
    /// Adds lines.
    pub fn push(&mut self, lines: &Lines) {
        if !lines.is_empty() {
            self.n_lines += lines.len();
            self.n_bytes += lines.n_bytes();
            self.batches.push_back(Batch { lines: lines.clone(), from: 0, n_left: lines.len() });
        }
    }

    /// Takes the oldest line.
    pub fn pop(&mut self) -> Option<GoneLine> {
        let batch = self.batches.front_mut()?;
        let line = batch.pop();
        self.n_lines -= 1;
        self.n_bytes -= line.len();
        if batch.n_left == 0 {
            self.batches.pop_front();
        }
        Some(line)
    }

    /// The oldest batch.
    pub fn front(&self) -> Option<&Batch> {
        self.batches.front()
    }

    /// Takes the oldest batch.
    pub fn pop_batch(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.n_lines -= batch.len();
        self.n_bytes -= batch.n_bytes();
        Some(batch)
    }

    /// The lines, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.batches.iter().flat_map(|batch| each(batch.text()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.n_lines
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n_lines == 0
    }

    /// Bytes of all of them.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

impl Batch {
    /// How many lines there are.
    #[expect(clippy::len_without_is_empty, reason = "a batch has a line")]
    pub fn len(&self) -> usize {
        self.n_left
    }

    /// Bytes of the lines, without their line feeds.
    pub fn n_bytes(&self) -> usize {
        self.text().len() - self.n_left
    }

    /// The last line.
    pub fn last(&self) -> &str {
        last(self.text()).unwrap_or_default()
    }

    /// The lines, each with its line feed.
    fn text(&self) -> &str {
        &self.lines.text[self.from..]
    }

    fn pop(&mut self) -> GoneLine {
        let from = self.from;
        let end = from + memchr::memchr(b'\n', self.text().as_bytes()).expect("a batch has a line");
        let line = GoneLine { text: Arc::clone(&self.lines.text), range: from..end };
        (self.from, self.n_left) = (end + 1, self.n_left - 1);
        if self.from > MIN_COPIED && self.from > self.lines.text.len() / 2 {
            (self.lines.text, self.from) = (self.text().into(), 0);
        }
        line
    }
}

fn each(text: &str) -> impl Iterator<Item = &str> {
    let mut from = 0;
    memchr::memchr_iter(b'\n', text.as_bytes()).map(move |end| {
        let line = &text[from..end];
        from = end + 1;
        line
    })
}

fn last(text: &str) -> Option<&str> {
    let text = text.strip_suffix('\n')?;
    Some(memchr::memrchr(b'\n', text.as_bytes()).map_or(text, |end| &text[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines_of(lines: &[String]) -> Lines {
        Lines::new(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
    }

    proptest! {
        #[test]
        fn lines_come_out_as_they_went_in(lines in prop::collection::vec("[a-cé\t]{0,9}", 0..20)) {
            let found = lines_of(&lines);
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), lines.clone());
            prop_assert_eq!((found.len(), found.is_empty()), (lines.len(), lines.is_empty()));
            prop_assert_eq!(found.n_bytes(), lines.iter().map(String::len).sum::<usize>());
            prop_assert_eq!(found.last(), lines.last().map(String::as_str));
        }

        #[test]
        fn a_queue_is_one_of_strings(steps in prop::collection::vec((prop::collection::vec("[a-cé]{0,900}", 0..9), 0_usize..9), 0..20)) {
            let (mut queue, mut expected) = (LineQueue::default(), VecDeque::<String>::new());
            for (pushed, n_popped) in steps {
                queue.push(&lines_of(&pushed));
                expected.extend(pushed);
                for _ in 0..n_popped {
                    prop_assert_eq!(queue.pop().map(|line| line.to_string()), expected.pop_front());
                }
                if n_popped == 3 && let Some(batch) = queue.pop_batch() {
                    let gone: Vec<String> = expected.drain(..batch.len()).collect();
                    prop_assert_eq!(batch.n_bytes(), gone.iter().map(String::len).sum::<usize>());
                    prop_assert_eq!(Some(batch.last()), gone.last().map(String::as_str));
                }
                prop_assert!(queue.iter().eq(expected.iter().map(String::as_str)));
                prop_assert_eq!((queue.len(), queue.is_empty()), (expected.len(), expected.is_empty()));
                prop_assert_eq!(queue.n_bytes(), expected.iter().map(String::len).sum::<usize>());
            }
        }
    }

    #[test]
    fn a_batch_of_which_most_has_gone_takes_little_memory() {
        let mut queue = LineQueue::default();
        queue.push(&lines_of(&(0..10_000).map(|n| format!("line {n}")).collect::<Vec<_>>()));
        while queue.len() > 10 {
            queue.pop();
            let batch = queue.front().expect("a batch");
            assert!(batch.lines.text.len() <= 2 * (batch.text().len() + MIN_COPIED), "{}", batch.lines.text.len());
        }
        assert_eq!(queue.iter().last(), Some("line 9999"));
    }
}
