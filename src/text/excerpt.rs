//! The lines of a step's output that explain its failure: the last ones, and earlier ones that look like an error.
//!
//! A compiler, a package manager or a test runner often reports the cause hundreds of lines before the end. Which words report an
//! error is a list (`words`); a wrong guess costs some lines of the excerpt, and decides nothing.

mod earlier;
mod words;

use std::collections::VecDeque;

use super::lines::{LineQueue, Lines};
use crate::{bounds, text};

use earlier::{Earlier, MAX_FOLLOWING};
use words::{GENERIC, Lead, Search, Words, is_place, is_warning, makes_warnings_errors};

/// Bytes of one line.
const MAX_LINE: usize = 1 << 10;

/// What a line takes beside its text.
const LINE_COST: usize = 64;

/// A bounded excerpt of a text that is read line by line.
#[derive(Clone, Debug, Default)]
pub struct Excerpt {
    /// The number of lines so far.
    n_lines: usize,
    /// The last lines.
    last: LineQueue,
    /// The numbers of those that may have words of an error.
    suspects: VecDeque<usize>,
    earlier: Earlier,
}

impl Excerpt {
    /// Adds plain lines.
    pub fn push(&mut self, lines: &Lines) {
        let (mut from, mut search, mut is_long) = (0, Search::of(lines.text()), false);
        for (n, line) in lines.iter().enumerate() {
            if search.may_be_in(line, from) {
                self.suspects.push_back(self.n_lines + n);
            }
            is_long |= line.len() > MAX_LINE;
            from += line.len() + 1;
        }
        self.n_lines += lines.len();
        if is_long {
            lines.iter().for_each(|line| self.last.push(&Lines::from(&*text::clip(line, MAX_LINE))));
        } else {
            self.last.push(lines);
        }
        self.set_aside_all();
    }

    /// Sets aside what is too much. Most batches go as a whole, unread.
    fn set_aside_all(&mut self) {
        while let Some(batch) = self.last.front() {
            let n_more = self.last.len().saturating_sub(bounds::LOG_TAIL_LINES);
            let more_bytes = self.last.n_bytes().saturating_sub(bounds::LOG_TAIL);
            let at = self.n_lines - self.last.len();
            let is_free = self.suspects.front().is_none_or(|suspect| *suspect >= at + batch.len());
            if n_more == 0 && more_bytes == 0 {
                return;
            } else if (n_more >= batch.len() || more_bytes > batch.n_bytes()) && is_free && self.earlier.takes_no(at) {
                self.earlier.pass_over(batch.last());
                self.last.pop_batch();
            } else {
                self.set_aside();
            }
        }
    }

    /// Bytes of memory that it takes, nearly.
    pub fn size(&self) -> usize {
        let n_lines = self.last.len() + self.earlier.blocks.len() * (2 + MAX_FOLLOWING);
        self.last.n_bytes() + self.earlier.n_bytes + n_lines * LINE_COST
    }

    /// Drops the older half of its last lines, to make room for other excerpts.
    pub fn shrink(&mut self) {
        for _ in 0..self.last.len().div_ceil(2) {
            self.set_aside();
        }
        if self.last.is_empty() {
            self.earlier.clear();
        }
    }

    /// Takes the oldest of the last lines, and keeps it if it looks like an error or stands beside one.
    fn set_aside(&mut self) {
        let at = self.n_lines - self.last.len();
        let Some(line) = self.last.pop() else { return };
        let is_suspect = self.suspects.front() == Some(&at);
        if is_suspect {
            self.suspects.pop_front();
        }
        let words = if is_suspect { Words::of(&line) } else { Words::default() };
        self.earlier.take_in(at, &line, &words);
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
        for block in &self.earlier.blocks {
            lines.extend(gap(block.at - next));
            lines.extend(block.lines.iter().cloned());
            next = block.at + block.lines.len();
        }
        lines.extend(gap(self.n_lines - self.last.len() - next));
        lines.extend(self.last.iter().map(str::to_owned));
        lines
    }

    /// The line that most likely names the cause. Of equal ones the first counts: later errors often follow from it. `None` without
    /// output.
    pub fn cause(&self) -> Option<&str> {
        let (mut best, mut last, mut last_other) = ((GENERIC, None), None, None);
        let (mut warning, mut is_strict) = (None, false);
        // What the line before says of the next one.
        let mut before = Lead::None;
        let earlier = self.earlier.blocks.iter().flat_map(|block| &block.lines).map(String::as_str);
        for line in earlier.chain(self.last.iter()) {
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
