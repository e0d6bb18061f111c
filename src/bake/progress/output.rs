//! Joins the output of steps into lines: BuildKit sends chunks that end anywhere, also inside a line or a character.
//!
//! Keeps only the beginning of each unfinished line, bounded per line and in total.

use std::collections::HashMap;

use crate::bounds;

/// How much Base64 is decoded at once: a multiple of four.
const BLOCK: usize = 64 << 10;

/// A line that arrives whole is not cut.
const _: () = assert!(BLOCK <= bounds::OUTPUT_LINE);

/// One pipe of a step: the step's number, and whether it is standard error.
pub(super) type StepPipe = (u32, bool);

/// What a step has printed.
#[derive(Debug)]
pub(super) enum Piece<'o> {
    /// Whole lines, each with its line feed and without carriage returns.
    Lines(&'o [u8]),
    /// One line without a line feed, and the number of bytes that were dropped at its end.
    Line(&'o [u8], usize),
}

/// The unfinished lines.
#[derive(Debug, Default)]
pub(super) struct Output {
    open: HashMap<StepPipe, OpenLine>,
    /// Bytes of all of them.
    n_bytes: usize,
    decoded: Vec<u8>,
}

/// The beginning of a line.
#[derive(Debug, Default)]
struct OpenLine {
    text: Vec<u8>,
    /// Bytes that were dropped after it.
    n_dropped: usize,
    /// Whether it ends with a carriage return: the next bytes overwrite it.
    has_returned: bool,
}

impl Output {
    /// Reads Base64 of one pipe and passes on the finished lines. Stops at invalid Base64.
    pub(super) fn take_in(&mut self, pipe: StepPipe, base64: &str, mut on_piece: impl FnMut(Piece<'_>)) {
        let mut decoded = std::mem::take(&mut self.decoded);
        for block in base64.as_bytes().chunks(BLOCK) {
            decoded.clear();
            if base64_simd::STANDARD.decode_append(block, &mut decoded).is_err() {
                break;
            }
            self.bytes(pipe, &decoded, &mut on_piece);
        }
        self.decoded = decoded;
    }

    fn bytes(&mut self, pipe: StepPipe, bytes: &[u8], on_piece: &mut impl FnMut(Piece<'_>)) {
        let whole = memchr::memrchr(b'\n', bytes).map_or(0, |end| end + 1);
        let (mut lines, rest) = bytes.split_at(whole);
        if self.open.contains_key(&pipe)
            && let Some(end) = memchr::memchr(b'\n', lines)
        {
            self.begin(pipe, &lines[..end]);
            self.end(pipe, &mut |line, n_dropped| on_piece(Piece::Line(line, n_dropped)));
            lines = &lines[end + 1..];
        }
        // Most lines arrive whole.
        if memchr::memchr(b'\r', lines).is_some() {
            each(lines, |line| on_piece(Piece::Line(written_last(line), 0)));
        } else if !lines.is_empty() {
            on_piece(Piece::Lines(lines));
        }
        if !rest.is_empty() {
            self.begin(pipe, rest);
        }
    }

    /// Passes on the last lines of a step, which have no line feed.
    pub(super) fn end_of(&mut self, step: u32, mut on_piece: impl FnMut(Piece<'_>)) {
        // Carriage returns alone are not a line.
        let mut on_text = |line: &[u8], n_dropped| {
            if !line.is_empty() || n_dropped > 0 {
                on_piece(Piece::Line(line, n_dropped));
            }
        };
        for is_error in [false, true] {
            self.end((step, is_error), &mut on_text);
        }
    }

    /// The steps that have unfinished lines, in order.
    pub(super) fn steps(&self) -> Vec<u32> {
        let mut steps: Vec<u32> = self.open.keys().map(|(step, _)| *step).collect();
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    fn begin(&mut self, pipe: StepPipe, bytes: &[u8]) {
        let line = self.open.entry(pipe).or_default();
        self.n_bytes -= line.text.len();
        line.add(bytes, bounds::OUTPUT_OPEN - self.n_bytes);
        self.n_bytes += line.text.len();
    }

    fn end(&mut self, pipe: StepPipe, on_line: &mut impl FnMut(&[u8], usize)) {
        let Some(line) = self.open.remove(&pipe) else { return };
        self.n_bytes -= line.text.len();
        on_line(&line.text, line.n_dropped);
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.open.values().map(|line| line.text.capacity()).sum::<usize>() + self.decoded.capacity()
    }
}

impl OpenLine {
    /// Adds bytes without a line feed, up to `room` bytes in the whole line.
    fn add(&mut self, bytes: &[u8], room: usize) {
        let text = without_returns(bytes);
        if !text.is_empty() {
            let last = written_last(text);
            if self.has_returned || last.len() < text.len() {
                *self = Self::default();
            }
            let room = room.min(bounds::OUTPUT_LINE).saturating_sub(self.text.len());
            // A line that was cut stays cut.
            let room = if self.n_dropped > 0 { 0 } else { room };
            let kept = last.len().min(room);
            self.text.extend_from_slice(&last[..kept]);
            self.n_dropped += last.len() - kept;
        }
        self.has_returned |= text.len() < bytes.len();
    }
}

/// Passes on each of these lines, without its line feed.
pub(super) fn each(lines: &[u8], mut on_line: impl FnMut(&[u8])) {
    let mut from = 0;
    for end in memchr::memchr_iter(b'\n', lines) {
        on_line(&lines[from..end]);
        from = end + 1;
    }
}

/// What a terminal shows of a line with carriage returns: the last part.
fn written_last(line: &[u8]) -> &[u8] {
    if !line.contains(&b'\r') {
        return line;
    }
    let line = without_returns(line);
    line.iter().rposition(|byte| *byte == b'\r').map_or(line, |at| &line[at + 1..])
}

/// The line without carriage returns at its end.
fn without_returns(line: &[u8]) -> &[u8] {
    &line[..line.iter().rposition(|byte| *byte != b'\r').map_or(0, |at| at + 1)]
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<(String, usize)> {
        let (mut output, mut lines) = (Output::default(), Vec::new());
        for chunk in chunks {
            output.take_in((0, false), &BASE64_STANDARD.encode(chunk), |piece| lines.extend(lines_of(piece)));
        }
        output.end_of(0, |piece| lines.extend(lines_of(piece)));
        assert_eq!((output.n_bytes, output.steps()), (0, vec![]));
        lines
    }

    fn lines_of(piece: Piece<'_>) -> Vec<(String, usize)> {
        let lossy = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
        match piece {
            Piece::Lines(lines) => {
                let mut found = Vec::new();
                each(lines, |line| found.push((lossy(line), 0)));
                found
            }
            Piece::Line(line, n_dropped) => vec![(lossy(line), n_dropped)],
        }
    }

    #[test]
    fn lines_are_put_together_and_the_last_needs_no_end() {
        let whole = |text: &str| (text.to_owned(), 0);
        assert_eq!(lines(&[b"one\ntw", b"o\r\n", b"\nthree"]), ["one", "two", "", "three"].map(whole));
        assert_eq!(lines(&[b"caf\xc3", b"\xa9\n"]), [whole("caf\u{e9}")]);
    }

    #[test]
    fn a_carriage_return_writes_over_the_line() {
        let whole = |text: &str| (text.to_owned(), 0);
        assert_eq!(lines(&[b"1%\r50", b"%\r", b"100%\r\r", b"\n", b"done\r"]), ["100%", "done"].map(whole));
        let many = b"x\r".repeat(200_000);
        assert_eq!(lines(&[&many, b"end\n", &many]), ["end", "x"].map(whole));
    }

    #[test]
    fn a_long_line_and_many_open_ones_are_cut() {
        let long = vec![b'x'; bounds::OUTPUT_LINE + 5];
        for chunks in [&[&long[..], b"\n"][..], &[&long[..9], &long[9..], b"\n"]] {
            let found = lines(chunks);
            assert_eq!((found[0].0.len(), found[0].1), (bounds::OUTPUT_LINE, 5));
        }
        let mut output = Output::default();
        let half = BASE64_STANDARD.encode(&long[..bounds::OUTPUT_LINE / 2]);
        for step in 0..100 {
            output.take_in((step, true), &half, |_| panic!("no line has ended"));
            output.take_in((step, true), &half, |_| panic!("no line has ended"));
        }
        assert_eq!(output.n_bytes, bounds::OUTPUT_OPEN);
        assert!(output.size() <= 2 * bounds::OUTPUT_OPEN + BLOCK, "{}", output.size());
        let mut n_bytes = 0;
        for step in output.steps() {
            output
                .end_of(step, |piece| n_bytes += lines_of(piece).iter().map(|(line, n)| line.len() + n).sum::<usize>());
        }
        assert_eq!(n_bytes, 100 * bounds::OUTPUT_LINE);
    }

    #[test]
    fn what_is_not_base64_is_passed_over() {
        let mut output = Output::default();
        for text in ["b25lCg==b25lCg==", "?", "b25lCg="] {
            output.take_in((0, false), text, |_| panic!("not a line"));
        }
        let long = BASE64_STANDARD.encode([b'\n'; BLOCK]) + "?";
        let mut n_lines = 0;
        output.take_in((0, false), &long, |piece| n_lines += lines_of(piece).len());
        assert_eq!(n_lines, BLOCK / 4 * 3);
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(text in "[ab\r\n]{0,40}", size in 1_usize..9) {
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            prop_assert_eq!(lines(&chunks), lines(&[text.as_bytes()]), "{:?} by {}", text, size);
        }
    }
}
