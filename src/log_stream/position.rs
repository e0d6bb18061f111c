//! The `position` of an entry: its writer, its number and the bytes of the stream so far, such as `1f2e3d4c5b6a 7 40321`.
//!
//! A worker learns from the last position what Redis has. A reader learns from a gap that entries were removed.

use std::fmt;

/// The position of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Tells one attempt's entries from those of others.
    pub writer: String,
    /// From 1.
    pub number: u64,
    /// Bytes of the stream, with this entry.
    pub total_bytes: usize,
}

impl Position {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (writer, number, total) = (words.next()?, words.next()?, words.next()?);
        Some(Self { writer: writer.to_owned(), number: number.parse().ok()?, total_bytes: total.parse().ok()? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.writer, self.number, self.total_bytes)
    }
}
