//! The lines of a step's output that explain its failure: the last ones, and earlier ones that look like an error.
//!
//! A compiler, a package manager or a test runner often reports the cause hundreds of lines before the end. Which words report an
//! error is a list (`words`); a wrong guess costs some lines of the excerpt, and decides nothing.

mod words;

use std::collections::VecDeque;

use crate::{bounds, text};

use words::{GENERIC, Lead, weight};

/// Bytes of one line.
const MAX_LINE: usize = 1 << 10;

/// Lines beside the last ones: the most error-like ones, each with the lines after it.
const MAX_BLOCKS: usize = 8;
const MAX_FOLLOWING: usize = 2;

/// Bytes of these lines, all together.
const MAX_EARLIER: usize = 3 << 10;

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
}

/// An error-like line and the lines after it.
#[derive(Clone, Debug)]
struct Block {
    /// The number of its first line, from 0.
    at: usize,
    weight: u8,
    lines: Vec<String>,
}

impl Block {
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
        let n_lines = self.last.len() + self.earlier.len() * (1 + MAX_FOLLOWING);
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

    /// Takes the oldest of the last lines, and keeps it if it looks like an error or follows one.
    fn set_aside(&mut self) {
        let at = self.n_lines - self.last.len();
        let Some(line) = self.last.pop_front() else { return };
        self.last_bytes -= line.len();
        let weight = weight(&line);
        if let Some(block) = self.earlier.last_mut()
            && at == block.at + block.lines.len()
            && block.lines.len() <= MAX_FOLLOWING
            && weight <= block.weight
        {
            self.earlier_bytes += line.len();
            block.lines.push(line);
        } else if weight >= MIN_WEIGHT {
            self.earlier_bytes += line.len();
            self.earlier.push(Block { at, weight, lines: vec![line] });
        }
        while self.earlier.len() > MAX_BLOCKS || self.earlier_bytes > MAX_EARLIER {
            self.drop_block();
        }
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
            if weight != GENERIC {
                last_other = Some(line);
            }
            last = Some(line);
        }
        // Nothing looks like an error: the last line that does not only repeat that something failed.
        best.1.or(last_other).or(last).map(|line| line.trim())
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
