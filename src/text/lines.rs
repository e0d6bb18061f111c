//! Lines of text in one buffer: a step may print a million of them, and each would otherwise be an allocation.

use std::collections::VecDeque;

/// Some lines of plain text. None contains a line feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Each line with its line feed.
    text: String,
}

impl Lines {
    /// Adds one line, which has no line feed.
    pub fn push(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Adds whole lines, each with its line feed.
    pub fn push_all(&mut self, lines: &str) {
        debug_assert!(lines.is_empty() || lines.ends_with('\n'), "the last line has its line feed");
        self.text.push_str(lines);
    }

    /// The lines in order, without their line feeds.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut from = 0;
        memchr::memchr_iter(b'\n', self.text.as_bytes()).map(move |end| {
            let line = &self.text[from..end];
            from = end + 1;
            line
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Bytes of the lines, with their line feeds.
    pub fn size(&self) -> usize {
        self.text.len()
    }
}

impl From<&str> for Lines {
    /// One line.
    fn from(line: &str) -> Self {
        Self { text: format!("{line}\n") }
    }
}

/// Lines of which the oldest goes first.
#[derive(Clone, Debug, Default)]
pub struct LineQueue {
    text: String,
    /// Where the oldest line begins. What stands before it has gone.
    from: usize,
    lengths: VecDeque<u32>,
}

impl LineQueue {
    /// Adds a line.
    pub fn push(&mut self, line: &str) {
        let is_full = self.text.len() + line.len() > self.text.capacity();
        // Each byte moves for a byte that has gone, or for a third of one, so a million lines take linear time.
        if is_full && self.from >= self.text.len() / 4 {
            self.remove_gone();
        }
        self.text.push_str(line);
        self.lengths.push_back(u32::try_from(line.len()).expect("a line is shorter than 4 GiB"));
    }

    /// Takes the oldest line.
    pub fn pop(&mut self) -> Option<&str> {
        let (from, length) = (self.from, self.lengths.pop_front()? as usize);
        self.from += length;
        Some(&self.text[from..self.from])
    }

    /// The lines, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut rest = &self.text[self.from..];
        self.lengths.iter().map(move |length| {
            let (line, after) = rest.split_at(*length as usize);
            rest = after;
            line
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Bytes of all of them.
    pub fn n_bytes(&self) -> usize {
        self.text.len() - self.from
    }

    /// Gives back the memory that it does not need.
    pub fn shrink(&mut self) {
        self.remove_gone();
        self.text.shrink_to_fit();
        self.lengths.shrink_to_fit();
    }

    fn remove_gone(&mut self) {
        self.text.drain(..self.from);
        self.from = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_come_out_as_they_went_in(lines in prop::collection::vec("[a-cé\t]{0,9}", 0..20)) {
            let mut found = Lines::default();
            lines.iter().for_each(|line| found.push(line));
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), lines);
        }

        #[test]
        fn a_queue_is_one_of_strings(pushed in prop::collection::vec(prop::option::of("[a-cé]{0,30}"), 0..200)) {
            let (mut queue, mut expected) = (LineQueue::default(), VecDeque::<String>::new());
            for line in pushed {
                match line {
                    Some(line) => {
                        queue.push(&line);
                        expected.push_back(line);
                    }
                    None => prop_assert_eq!(queue.pop().map(str::to_owned), expected.pop_front()),
                }
                prop_assert!(queue.iter().eq(expected.iter().map(String::as_str)));
                prop_assert_eq!((queue.len(), queue.is_empty()), (expected.len(), expected.is_empty()));
                prop_assert_eq!(queue.n_bytes(), expected.iter().map(String::len).sum::<usize>());
            }
        }
    }

    #[test]
    fn the_memory_of_a_queue_is_that_of_its_lines() {
        let mut queue = LineQueue::default();
        for n in 0..100_000 {
            queue.push(&"x".repeat(n % 200));
            while queue.n_bytes() > 8 << 10 {
                queue.pop();
            }
        }
        assert!(queue.text.capacity() <= 32 << 10, "{}", queue.text.capacity());
        while queue.len() > 5 {
            queue.pop();
        }
        queue.shrink();
        assert_eq!(queue.text.capacity(), queue.n_bytes());
    }
}
