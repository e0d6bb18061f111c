//! The lines before the last ones that look like an error, each with the lines beside it.

use super::words::{CAUSED_BY, Words};

/// Lines beside the last ones: the most error-like ones, each with the lines after it.
pub(super) const MAX_BLOCKS: usize = 8;
pub(super) const MAX_FOLLOWING: usize = 2;

/// Bytes of these lines, all together.
pub(super) const MAX_EARLIER: usize = 3 << 10;

/// How Java begins the lines of a stack trace.
const IN_TRACE: [&str; 2] = ["\tat ", "\t... "];

/// From this weight on, a line is kept that is not among the last ones.
const MIN_WEIGHT: u8 = 3;

/// Earlier lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Earlier {
    /// In order.
    pub(super) blocks: Vec<Block>,
    /// Bytes of them.
    pub(super) n_bytes: usize,
    /// The line before the next one when it is indented and was not kept; else empty.
    before: String,
    trace: Trace,
}

/// The stack trace of which the last lines were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trace {
    #[default]
    None,
    /// Of an exception that is harmless, such as one that a test expects.
    Harmless,
    /// Of an exception whose cause was kept.
    Kept,
}

impl Trace {
    fn weight(self, line: &str, words: &Words) -> u8 {
        if self == Self::Harmless && line.starts_with(CAUSED_BY) { 0 } else { words.weight(line) }
    }

    fn after(self, line: &str, words: &Words) -> Self {
        match self {
            Self::Harmless if line.starts_with(CAUSED_BY) => self,
            _ if line.starts_with(CAUSED_BY) => Self::Kept,
            _ if IN_TRACE.iter().any(|begin| line.starts_with(begin)) => self,
            _ if words.is_harmless => Self::Harmless,
            _ => Self::None,
        }
    }
}

/// An error-like line and the lines beside it.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// The number of its first line, from 0.
    pub(super) at: usize,
    /// Lines before the error-like one.
    n_before: usize,
    weight: u8,
    pub(super) lines: Vec<String>,
}

impl Block {
    fn error(&self) -> &String {
        &self.lines[self.n_before]
    }

    /// Whether line number `at` follows the block and belongs to it.
    fn is_continued(&self, at: usize, weight: u8) -> bool {
        let n_following = self.lines.len() - self.n_before - 1;
        at == self.at + self.lines.len() && n_following < MAX_FOLLOWING && weight <= self.weight
    }

    fn size(&self) -> usize {
        self.lines.iter().map(String::len).sum()
    }
}

impl Earlier {
    /// Takes in line number `at`, and keeps it if it looks like an error or stands beside one.
    pub(super) fn take_in(&mut self, at: usize, line: &str, words: &Words) {
        let weight = self.trace.weight(line, words);
        let follows = self.blocks.last().is_some_and(|block| block.is_continued(at, weight));
        let trace = self.trace.after(line, words);
        let after_cause = self.blocks.last().is_some_and(|block| block.error().starts_with(CAUSED_BY));
        let is_root = after_cause && self.trace == Trace::Kept && line.starts_with(CAUSED_BY);
        self.trace = trace;
        if follows && !is_root {
            self.n_bytes += line.len();
            self.blocks.last_mut().into_iter().for_each(|block| block.lines.push(line.to_owned()));
            self.before.clear();
        } else if weight >= MIN_WEIGHT && !self.blocks.iter().any(|block| block.error() == line) {
            // The last cause of an exception is the root of the others.
            if is_root {
                self.n_bytes -= self.blocks.pop().map_or(0, |block| block.size());
            }
            self.keep(at, weight, line);
        } else {
            self.pass_over(line);
        }
        while self.blocks.len() > MAX_BLOCKS || self.n_bytes > MAX_EARLIER {
            self.drop_block();
        }
    }

    /// Whether it takes in none of the lines from number `at` on, as long as none has words.
    pub(super) fn takes_no(&self, at: usize) -> bool {
        self.trace == Trace::None && !self.blocks.last().is_some_and(|block| block.is_continued(at, 0))
    }

    /// Passes over lines that it does not take in.
    pub(super) fn pass_over(&mut self, last: &str) {
        self.before.clear();
        if last.starts_with([' ', '\t']) {
            self.before.push_str(last);
        }
    }

    /// Drops all of them.
    pub(super) fn clear(&mut self) {
        self.n_bytes = 0;
        self.blocks.clear();
    }

    /// Keeps an error-like line. Some tools print what it is about in the indented line before.
    fn keep(&mut self, at: usize, weight: u8, line: &str) {
        let before = (!self.before.trim().is_empty()).then(|| std::mem::take(&mut self.before));
        self.before.clear();
        let n_before = usize::from(before.is_some());
        let lines = before.into_iter().chain([line.to_owned()]).collect();
        let block = Block { at: at - n_before, n_before, weight, lines };
        self.n_bytes += block.size();
        self.blocks.push(block);
    }

    /// Drops the block of the least weight. Of equal ones the last goes: the first error is usually the cause.
    fn drop_block(&mut self) {
        let least = (0..self.blocks.len()).rev().min_by_key(|index| self.blocks[*index].weight);
        if let Some(index) = least {
            self.n_bytes -= self.blocks.remove(index).size();
        }
    }
}
