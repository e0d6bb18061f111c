//! Finds the words of the list in one pass over a line, or over many lines.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use super::table::{Kind, TABLE};
use super::{CAUSED_BY, margin};
use crate::text::quads::{QUAD, Quads, lower, of_word};

/// In how many places a word is looked for before the whole line is searched, and in how many bytes there may be one place more. Then
/// no line takes much longer than another.
const MAX_TRIED: usize = 8;
const BYTES_OF_TRY: usize = 16;

/// The words, ready to be found in one pass over a line.
pub(super) struct List {
    pub(super) automaton: AhoCorasick,
    /// By pattern: what it shows, and whether only at the beginning of a line.
    pub(super) kinds: Vec<(Kind, bool)>,
    /// Of the words that may be anywhere.
    quads: Quads,
    /// The quads of these words, in lower case and in the order of their buckets, each with its word and its place by [`of_word`].
    by_quad: Vec<([u8; QUAD], &'static [u8], usize)>,
    /// Where each bucket begins.
    buckets: Vec<u16>,
    /// Of the others: a bit for their first two bytes, in lower case.
    beginnings: Vec<u64>,
}

impl List {
    /// Whether a line of this margin may have one of the words. Most lines have none.
    pub(super) fn may_be_in(&self, line: &str, margin: usize) -> bool {
        self.begins(&line.as_bytes()[margin..]) || self.next(line.as_bytes(), 0).is_some()
    }

    /// Whether a text may begin with one of the words for the beginning of a line.
    fn begins(&self, text: &[u8]) -> bool {
        let Some(two) = text.first_chunk() else { return false };
        let place = place_of_two(*two);
        self.beginnings[place / 64] >> (place % 64) & 1 != 0
    }

    /// A place, not before `from`, in the first of the words that may be anywhere. Where tries are frequent, a guess.
    fn next(&self, text: &[u8], from: usize) -> Option<usize> {
        let (mut tried_to, mut n_tried) = (from, 0);
        loop {
            let at = self.quads.candidate(text, tried_to)?;
            n_tried += 1;
            if n_tried > MAX_TRIED + (at - from) / BYTES_OF_TRY || self.is_word(text, at) {
                return Some(at);
            }
            tried_to = at + 1;
        }
    }

    /// Whether a quad is of a word that is there.
    fn is_word(&self, text: &[u8], at: usize) -> bool {
        let quad = lower(&text[at..]);
        let bucket = bucket_of(quad);
        let (first, end) = (self.buckets[bucket], self.buckets[bucket + 1]);
        self.by_quad[usize::from(first)..usize::from(end)].iter().any(|(other, word, quad_at)| {
            let found = || (at + 1).checked_sub(*quad_at).and_then(|from| text.get(from..from + word.len()));
            *other == quad && found().is_some_and(|found| found.eq_ignore_ascii_case(word))
        })
    }
}

/// Finds the lines of a text that may have words. All of it is searched together: most batches have none.
pub(in crate::text::excerpt) struct Search<'t> {
    text: &'t [u8],
    /// The next place in a word; the end of the text without one.
    next: usize,
}

impl<'t> Search<'t> {
    pub(in crate::text::excerpt) fn of(text: &'t str) -> Self {
        let text = text.as_bytes();
        Self { text, next: LIST.next(text, 0).unwrap_or(text.len()) }
    }

    /// Whether the line that begins at `from` may have a word. `false` is certain. Asked in the order of the lines.
    pub(in crate::text::excerpt) fn may_be_in(&mut self, line: &str, from: usize) -> bool {
        if self.next < from {
            self.next = LIST.next(self.text, from).unwrap_or(self.text.len());
        }
        self.next < from + line.len() || LIST.begins(&line.as_bytes()[margin(line)..]) || line.starts_with(CAUSED_BY)
    }
}

pub(super) static LIST: LazyLock<List> = LazyLock::new(|| {
    let words = || TABLE.iter().flat_map(|(kind, words)| words.iter().map(move |word| (*kind, *word)));
    let automaton = AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .kind(Some(AhoCorasickKind::DFA))
        .build(words().map(|(_, word)| word.trim_start_matches('^')))
        .expect("the words are few and short");
    let (at_margin, anywhere): (Vec<&'static [u8]>, Vec<&'static [u8]>) =
        words().map(|(_, word)| word.as_bytes()).partition(|word| word.starts_with(b"^"));
    let quads = |word: &'static [u8]| of_word(word).into_iter().map(move |(quad, at)| (lower(&quad), word, at));
    let mut by_quad: Vec<_> = anywhere.iter().copied().flat_map(quads).collect();
    by_quad.sort_by_key(|(quad, ..)| bucket_of(*quad));
    let before = |bucket| by_quad.partition_point(|(quad, ..)| bucket_of(*quad) < bucket);
    let buckets = (0..=N_BUCKETS).map(|bucket| u16::try_from(before(bucket)).expect("the words are few")).collect();
    let mut beginnings = vec![0; (1 << 16) / 64];
    for word in &at_margin {
        let place = place_of_two([word[1], word[2]]);
        beginnings[place / 64] |= 1_u64 << (place % 64);
    }
    List {
        automaton,
        kinds: words().map(|(kind, word)| (kind, word.starts_with('^'))).collect(),
        quads: Quads::ignoring_case(anywhere),
        by_quad,
        buckets,
        beginnings,
    }
});

/// Buckets of quads: some for each word.
const N_BUCKETS: usize = 1 << 11;

/// The bucket of a quad, by Fibonacci hashing.
fn bucket_of(quad: [u8; QUAD]) -> usize {
    (u32::from_ne_bytes(quad).wrapping_mul(0x9e37_79b9) >> (u32::BITS - N_BUCKETS.ilog2())) as usize
}

/// A number for two bytes, without regard to case.
fn place_of_two(two: [u8; 2]) -> usize {
    usize::from(u16::from_ne_bytes(two.map(|byte| byte.to_ascii_lowercase())))
}

#[cfg(test)]
mod tests {
    use aho_corasick::Match;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_that_is_not_searched_has_no_word(
            before in "[ \t]{0,2}[a-z\u{2003}]{0,3}",
            n in any::<prop::sample::Index>(),
            after in "[ -~é]{0,9}",
            is_upper in any::<bool>(),
        ) {
            let words: Vec<&str> = TABLE.iter().flat_map(|(_, words)| *words).copied().collect();
            let word = words[n.index(words.len())].trim_start_matches('^');
            let word = if is_upper { word.to_ascii_uppercase() } else { word.to_owned() };
            let line = format!("{before}{word}{after}");
            let margin = margin(&line);
            let is_found = |found: Match| !LIST.kinds[found.pattern().as_usize()].1 || found.start() == margin;
            let has_word = LIST.automaton.find_overlapping_iter(&line).any(is_found);
            prop_assert!(!has_word || LIST.may_be_in(&line, margin), "{line:?}");
        }
    }

    #[test]
    fn most_lines_have_no_word() {
        let lines =
            (0..1000).map(|n| format!("  CC    src/module_{n}/file_{}.o with -O2 -Wall -Wextra -std=c17", n * 7));
        assert_eq!(lines.filter(|line| LIST.may_be_in(line, margin(line))).count(), 0);
    }
}
