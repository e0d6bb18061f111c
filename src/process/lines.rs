//! The lines of a pipe, one at a time. Holds only the beginning of one line.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The size of a read: the whole buffer of a pipe on Linux.
const CHUNK: usize = 64 << 10;

/// A pipe, split into lines.
pub(super) struct Lines<P> {
    pipe: P,
    /// Until the end of the pipe.
    pub(super) is_open: bool,
    chunk: Box<[u8]>,
    /// The beginning of an unfinished line.
    rest: Vec<u8>,
    max_line: usize,
}

impl<P: AsyncRead + Unpin> Lines<P> {
    /// Cuts lines at `max_line` bytes.
    pub(super) fn of(pipe: P, max_line: usize) -> Self {
        Self { pipe, is_open: true, chunk: vec![0; CHUNK].into(), rest: Vec::new(), max_line }
    }

    /// Waits for bytes and returns their number, 0 at the end of the pipe. Dropping the future loses nothing.
    pub(super) async fn read(&mut self) -> usize {
        let n = self.pipe.read(&mut self.chunk).await.unwrap_or(0);
        self.is_open = n > 0;
        n
    }

    /// Passes on the lines that the first `n` bytes of the chunk complete. With 0, passes on the unfinished line.
    pub(super) fn hand_over(&mut self, n: usize, mut on_line: impl FnMut(&[u8])) {
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', &self.chunk[..n]) {
            let line = &self.chunk[from..end];
            from = end + 1;
            if self.rest.is_empty() && line.len() <= self.max_line {
                on_line(line);
                continue;
            }
            self.rest.extend_from_slice(&line[..line.len().min(self.max_line - self.rest.len())]);
            on_line(&self.rest);
            self.rest.clear();
        }
        let unfinished = &self.chunk[from..n];
        self.rest.extend_from_slice(&unfinished[..unfinished.len().min(self.max_line - self.rest.len())]);
        if !self.is_open && !self.rest.is_empty() {
            on_line(&self.rest);
            self.rest.clear();
        }
        // One long line must not keep its memory for the rest of the child's life.
        self.rest.shrink_to(self.rest.len().max(CHUNK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_the_pipe_is_read() {
        let text = b"one\n\ntwo\nthree is long\nfour";
        for size in 1..text.len() {
            let (mut found, mut lines) = (Vec::new(), Lines::of(tokio::io::empty(), 5));
            for piece in text.chunks(size) {
                lines.chunk[..piece.len()].copy_from_slice(piece);
                lines.hand_over(piece.len(), |line| found.push(String::from_utf8_lossy(line).into_owned()));
            }
            lines.is_open = false;
            lines.hand_over(0, |line| found.push(String::from_utf8_lossy(line).into_owned()));
            assert_eq!(found, ["one", "", "two", "three", "four"], "in pieces of {size}");
        }
    }
}
