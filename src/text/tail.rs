//! The last lines of a child process's output, bounded in bytes.

use std::collections::VecDeque;

use crate::bounds;

/// The lines, without line feeds. The oldest are dropped beyond [`bounds::SAID`] bytes.
#[derive(Debug, Default)]
pub struct Tail {
    lines: VecDeque<String>,
    n_bytes: usize,
}

impl Tail {
    /// Adds a line.
    pub fn push(&mut self, line: String) {
        self.n_bytes += line.len();
        self.lines.push_back(line);
        // Empty lines take memory too.
        while self.n_bytes > bounds::SAID || self.lines.len() > bounds::SAID / 64 {
            self.n_bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    /// The lines, the oldest first.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// The last line that is not blank.
    pub fn last(&self) -> Option<&str> {
        self.lines().rev().find(|line| !line.trim().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let mut tail = Tail::default();
        for n in 0..100_000 {
            tail.push(if n % 2 == 0 { String::new() } else { "x".repeat(n % 2000) });
            assert!(tail.n_bytes <= bounds::SAID && tail.lines.len() <= bounds::SAID / 64);
        }
        assert_eq!(tail.last().map(str::len), Some(1999));
        tail.push("x".repeat(bounds::SAID + 1));
        assert_eq!((tail.last(), tail.n_bytes), (None, 0));
    }
}
