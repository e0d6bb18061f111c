//! The lines of a step's output that explain its failure: the last ones, and earlier ones that look like an error.
//!
//! A compiler, a package manager or a test runner often reports the cause hundreds of lines before the end. Which words report an
//! error is a list (`words`); a wrong guess costs some lines of the excerpt, and decides nothing.

mod words;

use std::collections::VecDeque;

use crate::{bounds, text};

use words::{CAUSED_BY, GENERIC, Lead, Words, is_place, is_warning, makes_warnings_errors};

/// Bytes of one line.
const MAX_LINE: usize = 1 << 10;

/// Lines beside the last ones: the most error-like ones, each with the lines after it.
const MAX_BLOCKS: usize = 8;
const MAX_FOLLOWING: usize = 2;

/// Bytes of these lines, all together.
const MAX_EARLIER: usize = 3 << 10;

/// How Java begins the lines of a stack trace.
const IN_TRACE: [&str; 2] = ["\tat ", "\t... "];

/// What a line takes beside its text.
const LINE_COST: usize = 64;

/// From this weight on, a line is kept that is not among the last ones.
const MIN_WEIGHT: u8 = 3;

/// A bounded excerpt of a text that is read line by line.
#[derive(Clone, Debug, Default)]
pub struct Excerpt {
    /// The number of lines so far.
    n_lines: usize,
    /// The last lines.
    last: VecDeque<String>,
    /// Earlier lines, in order.
    earlier: Vec<Block>,
    /// Bytes of the last lines and of the earlier ones.
    last_bytes: usize,
    earlier_bytes: usize,
    /// The last line that was set aside, unless it was kept.
    before: Option<String>,
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
struct Block {
    /// The number of its first line, from 0.
    at: usize,
    /// Lines before the error-like one.
    n_before: usize,
    weight: u8,
    lines: Vec<String>,
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

impl Excerpt {
    /// Adds a plain line without a line feed.
    pub fn push(&mut self, line: &str) {
        let line = text::clip(line, MAX_LINE);
        self.last_bytes += line.len();
        self.n_lines += 1;
        self.last.push_back(line.into_owned());
        while self.last.len() > bounds::LOG_TAIL_LINES || self.last_bytes > bounds::LOG_TAIL {
            self.set_aside();
        }
    }

    /// Bytes of memory that it takes, nearly.
    pub fn size(&self) -> usize {
        let n_lines = self.last.len() + self.earlier.len() * (2 + MAX_FOLLOWING);
        self.last_bytes + self.earlier_bytes + n_lines * LINE_COST
    }

    /// Drops the older half of its last lines, to make room for other excerpts.
    pub fn shrink(&mut self) {
        for _ in 0..self.last.len().div_ceil(2) {
            self.set_aside();
        }
        if self.last.is_empty() {
            self.earlier_bytes = 0;
            self.earlier.clear();
        }
    }

    /// Takes the oldest of the last lines, and keeps it if it looks like an error or stands beside one.
    fn set_aside(&mut self) {
        let at = self.n_lines - self.last.len();
        let Some(line) = self.last.pop_front() else { return };
        self.last_bytes -= line.len();
        // Each line of output comes here, so its words are searched once.
        let words = Words::of(&line);
        let weight = self.trace.weight(&line, &words);
        let follows = self.earlier.last().is_some_and(|block| block.is_continued(at, weight));
        let trace = self.trace.after(&line, &words);
        let after_cause = self.earlier.last().is_some_and(|block| block.error().starts_with(CAUSED_BY));
        let is_root = after_cause && self.trace == Trace::Kept && line.starts_with(CAUSED_BY);
        self.trace = trace;
        if follows && !is_root {
            self.earlier_bytes += line.len();
            self.earlier.last_mut().into_iter().for_each(|block| block.lines.push(line.clone()));
            self.before = None;
        } else if weight >= MIN_WEIGHT && !self.earlier.iter().any(|block| *block.error() == line) {
            // The last cause of an exception is the root of the others.
            if is_root {
                self.earlier_bytes -= self.earlier.pop().map_or(0, |block| block.size());
            }
            self.keep(at, weight, line);
        } else {
            self.before = Some(line);
        }
        while self.earlier.len() > MAX_BLOCKS || self.earlier_bytes > MAX_EARLIER {
            self.drop_block();
        }
    }

    /// Keeps an error-like line. Some tools print what it is about in the indented line before.
    fn keep(&mut self, at: usize, weight: u8, line: String) {
        let before = self.before.take().filter(|before| before.starts_with([' ', '\t']) && !before.trim().is_empty());
        let n_before = usize::from(before.is_some());
        let block = Block { at: at - n_before, n_before, weight, lines: before.into_iter().chain([line]).collect() };
        self.earlier_bytes += block.size();
        self.earlier.push(block);
    }

    /// Drops the block of the least weight. Of equal ones the last goes: the first error is usually the cause.
    fn drop_block(&mut self) {
        let least = (0..self.earlier.len()).rev().min_by_key(|index| self.earlier[*index].weight);
        if let Some(index) = least {
            self.earlier_bytes -= self.earlier.remove(index).size();
        }
    }

    /// The excerpt: at most [`bounds::LOG_TAIL_LINES`] lines and [`bounds::LOG_TAIL`] bytes. A gap is a line that counts the missing
    /// ones. `None` without output.
    pub fn text(&self) -> Option<String> {
        let mut fitting = self.clone();
        loop {
            let lines = fitting.lines();
            let n_bytes = lines.iter().map(|line| line.len() + 1).sum::<usize>();
            if lines.len() <= bounds::LOG_TAIL_LINES && n_bytes <= bounds::LOG_TAIL {
                let text = lines.join("\n");
                return (!text.trim().is_empty()).then_some(text);
            }
            fitting.set_aside();
        }
    }

    fn lines(&self) -> Vec<String> {
        let (mut lines, mut next) = (Vec::new(), 0);
        for block in &self.earlier {
            lines.extend(gap(block.at - next));
            lines.extend(block.lines.iter().cloned());
            next = block.at + block.lines.len();
        }
        lines.extend(gap(self.n_lines - self.last.len() - next));
        lines.extend(self.last.iter().cloned());
        lines
    }

    /// The line that most likely names the cause. Of equal ones the first counts: later errors often follow from it. `None` without
    /// output.
    pub fn cause(&self) -> Option<&str> {
        let (mut best, mut last, mut last_other) = ((GENERIC, None), None, None);
        let (mut warning, mut is_strict) = (None, false);
        // What the line before says of the next one.
        let mut before = Lead::None;
        for line in self.earlier.iter().flat_map(|block| &block.lines).chain(&self.last) {
            if line.trim().is_empty() {
                continue;
            }
            let weight = before.weight_of(line);
            before = Lead::of(line, weight);
            let weight = if before == Lead::Heading { GENERIC } else { weight };
            if weight > best.0 {
                best = (weight, Some(line));
            }
            if is_warning(line) {
                warning = Some(line);
            }
            is_strict |= makes_warnings_errors(line);
            if weight != GENERIC && !is_place(line) {
                last_other = Some(line);
            }
            last = Some(line);
        }
        // Nothing looks like an error: a warning that counts as one, or the last line that does not only repeat that something failed.
        let warning = warning.filter(|_| is_strict);
        best.1.or(warning).or(last_other).or(last).map(|line| line.trim())
    }
}

/// The line that stands for `n` missing lines.
fn gap(n: usize) -> Option<String> {
    match n {
        0 => None,
        1 => Some("… (1 line left out)".into()),
        n => Some(format!("… ({n} lines left out)")),
    }
}

#[cfg(test)]
mod tests;
