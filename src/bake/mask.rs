//! Masks build secrets and registry credentials in all output of a build: a step may print its secrets, and a registry may
//! quote what it was sent.

use std::borrow::Cow;
use std::ops::Range;

use aho_corasick::Anchored;
use aho_corasick::automaton::Automaton;
use aho_corasick::nfa::contiguous::NFA;

use crate::secret::Secret;
use crate::text;

/// What replaces a secret.
const SHOWN: &str = "***";

/// Replaces a secret while escape sequences are still in the text: no escape sequence can absorb it.
const MARK: &str = "\u{fffc}\u{fffc}\u{fffc}";

/// Shorter texts are not masked: they appear in too much that is not secret. Replacement characters do not count.
const MIN_LENGTH: usize = 4;

/// Finds each line of each secret: the output of a step arrives line by line.
///
/// A line is found in three forms: unchanged, without control characters, and quoted as Go quotes it.
pub(super) struct Mask {
    /// `None` when there is nothing to find.
    automaton: Option<NFA>,
    patterns: Vec<Secret>,
}

impl Mask {
    pub(super) fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let secrets: Vec<Secret> = secrets.into_iter().collect();
        let lines = secrets.iter().flat_map(|secret| secret.expose().lines()).map(str::trim);
        let mut patterns: Vec<String> = lines.flat_map(forms).filter(|form| is_telling(form)).collect();
        patterns.sort_unstable();
        patterns.dedup();
        // For long lines, a contiguous automaton is by far the smallest kind. Secrets cannot reach its limits.
        let automaton = NFA::builder().build(&patterns).expect("secrets have less than two gibibytes");
        let automaton = (!patterns.is_empty()).then_some(automaton);
        Self { automaton, patterns: patterns.into_iter().map(Secret::new).collect() }
    }

    /// A whole text, plain and masked.
    pub(super) fn plain(&self, text: &str) -> String {
        match text::plain(text) {
            Cow::Borrowed(text) => self.replace(text),
            Cow::Owned(_) => self.replace(&text::plain(&self.with_marks(text, text.len()))).replace(MARK, SHOWN),
        }
    }

    /// The same for the beginning of a text: leaves out what its rest could complete to a secret.
    pub(super) fn plain_beginning(&self, text: &str) -> String {
        let text = text::without_open_escape(text);
        match text::plain(text) {
            Cow::Borrowed(text) => self.replace_to(text, text.len() - self.pending(text)),
            Cow::Owned(_) => {
                let marked = self.with_marks(text, text.len() - self.pending(text));
                let plain = text::plain(text::without_open_escape(&marked));
                self.replace_to(&plain, plain.len() - self.pending(&plain)).replace(MARK, SHOWN)
            }
        }
    }

    fn replace(&self, text: &str) -> String {
        self.replace_to(text, text.len())
    }

    fn replace_to(&self, text: &str, end: usize) -> String {
        without(text, end, self.spans(text), SHOWN)
    }

    /// The text up to `end`, with a mark for each secret that overlaps an escape sequence: without the sequence it would be
    /// another text.
    fn with_marks(&self, text: &str, end: usize) -> String {
        let mut spans = self.spans(text);
        let mut escapes = text::escapes(text).peekable();
        spans.retain(|span| {
            while escapes.next_if(|escape| escape.end <= span.start).is_some() {}
            escapes.peek().is_some_and(|escape| escape.start < span.start) || text[span.clone()].contains('\x1b')
        });
        without(text, end, spans, MARK)
    }

    /// How many bytes at the end of a text may begin a secret.
    fn pending(&self, text: &str) -> usize {
        self.patterns.iter().map(|pattern| pending(text, pattern.expose())).max().unwrap_or(0)
    }

    /// Where secrets are, in order. Overlapping ones are joined: the rest of either would reveal it.
    fn spans(&self, text: &str) -> Vec<Range<usize>> {
        let Some(automaton) = &self.automaton else { return Vec::new() };
        let mut spans: Vec<Range<usize>> = Vec::new();
        let mut state = automaton.start_state(Anchored::No).expect("the automaton is not anchored");
        for (at, byte) in text.bytes().enumerate() {
            state = automaton.next_state(Anchored::No, state, byte);
            if !automaton.is_match(state) {
                continue;
            }
            // The first match that ends here is the longest.
            let mut start = at + 1 - automaton.pattern_len(automaton.match_pattern(state, 0));
            while let Some(last) = spans.pop_if(|last| last.end > start) {
                start = start.min(last.start);
            }
            spans.push(start..at + 1);
        }
        spans
    }
}

/// The text up to `end`, without the secrets that begin before it.
fn without(text: &str, end: usize, spans: Vec<Range<usize>>, shown: &str) -> String {
    let mut masked = String::with_capacity(end);
    let mut shown_to = 0;
    for span in spans.into_iter().filter(|span| span.start < end) {
        masked.push_str(&text[shown_to..span.start]);
        masked.push_str(shown);
        shown_to = span.end;
    }
    if shown_to < end {
        masked.push_str(&text[shown_to..end]);
    }
    masked
}

/// The forms in which a line of a secret may be printed or quoted.
fn forms(line: &str) -> [String; 3] {
    let quoted = line.replace('\\', "\\\\").replace('"', "\\\"");
    [line.to_owned(), text::plain(line).trim().to_owned(), quoted]
}

fn is_telling(form: &str) -> bool {
    form.split(char::REPLACEMENT_CHARACTER).map(str::len).sum::<usize>() >= MIN_LENGTH
}

/// How many bytes at the end of `text` are a proper beginning of `pattern` (Knuth, Morris and Pratt).
fn pending(text: &str, pattern: &str) -> usize {
    let pattern = pattern.as_bytes();
    let pattern = &pattern[..pattern.len().min(text.len() + 1)];
    let next = |borders: &[usize], mut n: usize, byte: u8| {
        while n > 0 && pattern[n] != byte {
            n = borders[n - 1];
        }
        n + usize::from(pattern[n] == byte)
    };
    let mut borders = vec![0; pattern.len()];
    for at in 1..pattern.len() {
        borders[at] = next(&borders, borders[at - 1], pattern[at]);
    }
    let tail = &text.as_bytes()[text.len() - (pattern.len() - 1)..];
    tail.iter().fold(0, |n, byte| next(&borders, n, *byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::SecretBytes;

    fn mask(secrets: &[&str]) -> Mask {
        Mask::new(secrets.iter().map(|secret| Secret::new(*secret)))
    }

    #[test]
    fn every_line_of_a_secret_is_masked_and_those_that_overlap_are_one() {
        let mask =
            mask(&["hunter2\n", "-----BEGIN\nabcdef\nx\n", "my-hunter2", "hunter2-long", "long-story", "say \"hi\""]);
        let table = [
            ("token=hunter2 and more", "token=*** and more"),
            ("hunter2-long", "***"),
            ("hunter2-long-story", "***"),
            ("hunter2hunter2", "******"),
            ("my-hunter2", "***"),
            ("abcdef x", "*** x"),
            ("nothing", "nothing"),
            ("it is say \"hi\"", "it is ***"),
            (r#"process "echo say \"hi\"""#, r#"process "echo ***""#),
        ];
        for (text, expected) in table {
            assert_eq!(mask.plain(text), expected);
        }
        assert_eq!(Mask::new([]).plain("x"), "x");
    }

    #[test]
    fn a_secret_with_colors_in_it_or_in_a_color_is_masked() {
        let mask = mask(&["hunter2", "0;1mtoken", "\x1b[1mkey=abc\x07"]);
        for (text, expected) in [
            ("\x1b[31mhun\x1b[1mter2\x1b[0m!", "***!"),
            ("\x1b[0;1mtoken bar", "␛[*** bar"),
            ("so \x1b[1mkey=abc\x07", "so ***"),
            ("so key=abc␇", "so ***"),
        ] {
            assert_eq!(mask.plain(text), expected, "{text:?}");
        }
    }

    #[test]
    fn of_bytes_that_are_no_text_what_can_be_read_is_masked() {
        let secret = SecretBytes::new(b"\x00\xff\xfekey=hunter2\xff\n\xff\xfe\xfd\xfc\n\xffab\n".into());
        let mask = Mask::new([secret.to_text()]);
        let printed = String::from_utf8_lossy(b"it is \x00\xff\xfekey=hunter2\xff");
        assert_eq!(mask.plain(&printed), "it is ***");
        let others = String::from_utf8_lossy(b"\xff\xfe\xfd\xfc caf\xe9 \xffab");
        assert_eq!(mask.plain(&others), others, "no more than a log of another encoding");
    }

    #[test]
    fn a_beginning_ends_before_what_may_be_a_secret() {
        let mask = mask(&["hunter2", "abcabcabd"]);
        for (text, expected) in [
            ("it is hunt", "it is "),
            ("it is hunter2", "it is ***"),
            ("it is hunter2 and hunter", "it is *** and "),
            ("abcabcabcabcab", "abcabc"),
            ("", ""),
            ("h", ""),
            ("no", "no"),
        ] {
            assert_eq!(mask.plain_beginning(text), expected, "{text:?}");
        }
        assert_eq!(Mask::new([]).plain_beginning("x"), "x");
    }

    /// Whether `shown` has a part of `secret`, of four bytes or more, that the rest of the text does not have.
    fn tells(shown: &str, secret: &str, others: [&str; 4]) -> bool {
        let parts = secret.as_bytes().windows(MIN_LENGTH).filter_map(|part| std::str::from_utf8(part).ok());
        let mut parts = parts.filter(|part| others.iter().all(|other| !other.contains(part)));
        parts.any(|part| shown.contains(part))
    }

    proptest! {
        #[test]
        fn no_part_of_a_secret_is_shown_wherever_it_is_and_wherever_the_text_is_cut(
            secret in "[a-c\"\\\\\x1b\\[m;0-1]{4,12}",
            before in "[a-c\x1b\\[m;0-1é]{0,12}",
            after in "[a-c\x1b\\[m;0-1é]{0,12}",
            at in any::<prop::sample::Index>(),
        ) {
            prop_assume!(secret.trim().len() >= MIN_LENGTH);
            let mask = mask(&[&secret]);
            let text = format!("{before}{secret}{after}");
            // What is left of the text without the secret, in which an escape sequence may have gone on with it.
            let others = [before.clone(), after.clone(), format!("{before}{MARK}{after}"), format!("{before}{after}")];
            let others = others.map(|other| text::plain(&other).into_owned());
            let others = others.each_ref().map(String::as_str);
            let shown = mask.plain(&text);
            let plain_secret = text::plain(&secret);
            let tells = |shown: &str| tells(shown, &secret, others) || tells(shown, &plain_secret, others);
            prop_assert!(!tells(&shown), "{:?} of {:?}", shown, text);
            let cut = &text[..text::boundary(&text, at.index(text.len() + 1))];
            let beginning = mask.plain_beginning(cut);
            prop_assert!(!tells(&beginning), "{:?} of {:?}", beginning, text);
        }

        #[test]
        fn what_is_pending_is_the_longest_beginning(text in "[ab]{0,12}", pattern in "[ab]{4,12}") {
            let fits = |n: &usize| text.ends_with(&pattern[..*n]);
            let expected = (0..pattern.len().min(text.len() + 1)).rev().find(fits);
            prop_assert_eq!(Some(pending(&text, &pattern)), expected);
        }
    }
}
