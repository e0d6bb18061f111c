//! Masks secrets in all output of a build: a step may print its secrets, and a registry may quote what it was sent.
//!
//! The output of a step arrives line by line, so each line of a secret is found alone. It is found unchanged, without control
//! characters, percent-encoded, with backslashes ([`decoded`]), and quoted for a shell. A secret as a whole is also found in Base64 and
//! hexadecimal ([`encoded`]), and an unknown token by its form ([`tokens`]).

mod decoded;
mod encoded;
mod tokens;

use std::borrow::Cow;
use std::ops::Range;

use aho_corasick::Anchored;
use aho_corasick::automaton::Automaton;
use aho_corasick::nfa::contiguous::NFA;

use crate::secret::{Secret, SecretBytes};
use crate::text;
use crate::text::quads::Quads;

use decoded::Decoded;
use tokens::Tokens;

/// What replaces a secret.
const SHOWN: &str = "***";

/// Replaces a secret while escape sequences are still in the text: no escape sequence can absorb it.
const MARK: &str = "\u{fffc}\u{fffc}\u{fffc}";

/// Shorter texts are not masked: they appear in too much that is not secret. Replacement characters do not count.
const MIN_LENGTH: usize = 4;

/// Finds secrets and tokens in one pass.
pub(super) struct Mask {
    /// Of all patterns, then of the prefixes of [`tokens::KINDS`].
    automaton: NFA,
    patterns: Vec<Secret>,
    /// Of the same.
    quads: Quads,
}

impl Mask {
    pub(super) fn new(secrets: impl IntoIterator<Item = SecretBytes>) -> Self {
        let mut patterns: Vec<String> = secrets.into_iter().flat_map(|secret| patterns(&secret)).collect();
        patterns.sort_unstable();
        patterns.dedup();
        let prefixes = || tokens::KINDS.iter().map(|kind| kind.prefix);
        // For long lines, a contiguous automaton is by far the smallest kind. Secrets cannot reach its limits.
        let automaton = NFA::builder().build(patterns.iter().map(String::as_str).chain(prefixes()));
        let automaton = automaton.expect("secrets have less than two gibibytes");
        let quads = Quads::of(patterns.iter().map(String::as_bytes).chain(prefixes().map(str::as_bytes)));
        Self { automaton, patterns: patterns.into_iter().map(Secret::new).collect(), quads }
    }

    /// A whole text, plain and masked. Most texts are neither changed nor copied.
    pub(super) fn plain<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match text::plain(text) {
            Cow::Borrowed(text) if self.is_free(text) => text.into(),
            Cow::Borrowed(text) => self.replace(text).into(),
            Cow::Owned(plain) if self.is_free(text) && self.is_free(&plain) && !plain.contains(MARK) => plain.into(),
            Cow::Owned(_) => self.replace(&text::plain(&self.with_marks(text, text.len()))).replace(MARK, SHOWN).into(),
        }
    }

    /// Whether a text, or each line of it alone, certainly has no secret. `false` is a guess.
    pub(super) fn is_free(&self, text: &str) -> bool {
        // In a line alone, an escape at its end may be open. Then its view ends earlier than here.
        !self.quads.may_be_in(text.as_bytes()) && views(text).all(|view| !self.quads.may_be_in(&view.bytes))
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
        let of_patterns = |text: &[u8]| {
            let pending = self.patterns.iter().map(|pattern| pending(text, pattern.expose().as_bytes()));
            pending.max().unwrap_or(0)
        };
        let in_view = |view: Decoded| text.len() - view.end_in_text(of_patterns(&view.bytes)).unwrap_or(text.len());
        let views = views(text).map(in_view).max().unwrap_or(0);
        let (mut of_tokens, mut tokens) = (0, Tokens::of(text.as_bytes()));
        self.find(text.as_bytes(), |found| {
            if let Found::Token(kind, start) = found
                && tokens.is_open(kind, start)
            {
                of_tokens = of_tokens.max(text.len() - start);
            }
        });
        of_patterns(text.as_bytes()).max(views).max(of_tokens)
    }

    /// Where secrets are, in order. Overlapping ones are joined: the rest of either would reveal it.
    fn spans(&self, text: &str) -> Vec<Range<usize>> {
        let (mut spans, mut tokens) = (Vec::<Range<usize>>::new(), Tokens::of(text.as_bytes()));
        self.find(text.as_bytes(), |found| match found {
            Found::Secret(span) => spans.push(span),
            Found::Token(kind, start) => spans.extend(tokens.end(kind, start).map(|end| start..end)),
        });
        for view in views(text) {
            self.find(&view.bytes, |found| {
                if let Found::Secret(span) = found {
                    spans.push(view.in_text(span.start, span.end));
                }
            });
        }
        joined(spans)
    }

    /// Passes on the longest secret and the tokens that end at each byte.
    fn find(&self, text: &[u8], mut on_found: impl FnMut(Found)) {
        let automaton = &self.automaton;
        let mut state = automaton.start_state(Anchored::No).expect("the automaton is not anchored");
        for (at, byte) in text.iter().enumerate() {
            state = automaton.next_state(Anchored::No, state, *byte);
            if !automaton.is_match(state) {
                continue;
            }
            let mut has_secret = false;
            for n in 0..automaton.match_len(state) {
                let pattern = automaton.match_pattern(state, n);
                let start = at + 1 - automaton.pattern_len(pattern);
                match pattern.as_usize().checked_sub(self.patterns.len()) {
                    Some(kind) => on_found(Found::Token(kind, start)),
                    // The first one is the longest.
                    None if !has_secret => {
                        has_secret = true;
                        on_found(Found::Secret(start..at + 1));
                    }
                    None => {}
                }
            }
        }
    }
}

/// What a text has.
enum Found {
    Secret(Range<usize>),
    /// The beginning of a token: its kind's number, and where.
    Token(usize, usize),
}

/// The text with its escapes resolved, in each way that it has any.
fn views(text: &str) -> impl Iterator<Item = Decoded> {
    [Decoded::percent(text), Decoded::backslashes(text)].into_iter().flatten()
}

/// The spans in order, with those joined that overlap.
fn joined(mut spans: Vec<Range<usize>>) -> Vec<Range<usize>> {
    spans.sort_unstable_by_key(|span| (span.start, span.end));
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for span in spans {
        match joined.last_mut().filter(|last| span.start < last.end) {
            Some(last) => last.end = last.end.max(span.end),
            None => joined.push(span),
        }
    }
    joined
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

/// Everything to find of a secret.
fn patterns(secret: &SecretBytes) -> Vec<String> {
    let text = secret.to_text();
    let lines = text.expose().lines().map(str::trim).flat_map(forms).filter(|form| is_telling(form));
    lines.chain(encoded::forms(secret.expose())).collect()
}

/// The forms in which a line of a secret may be printed, apart from escapes: unchanged, plain, in a form of HTML, and quoted for a shell.
fn forms(line: &str) -> Vec<String> {
    let mut forms = vec![line.to_owned(), text::plain(line).trim().to_owned()];
    if line.contains(' ') {
        forms.push(line.replace(' ', "+"));
    }
    if line.contains('\'') {
        forms.extend(["'\\''", "'\"'\"'"].map(|quote| line.replace('\'', quote)));
    }
    forms
}

fn is_telling(form: &str) -> bool {
    form.split(char::REPLACEMENT_CHARACTER).map(str::len).sum::<usize>() >= MIN_LENGTH
}

/// How many bytes at the end of `text` are a proper beginning of `pattern` (Knuth, Morris and Pratt).
fn pending(text: &[u8], pattern: &[u8]) -> usize {
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
    let tail = &text[text.len() - (pattern.len() - 1)..];
    tail.iter().fold(0, |n, byte| next(&borders, n, *byte))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    use super::*;
    use crate::hex;

    fn mask(secrets: &[&str]) -> Mask {
        Mask::new(secrets.iter().map(|secret| SecretBytes::new(secret.as_bytes().into())))
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
        let mask = Mask::new([secret]);
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
            ("!!", "!!"),
        ] {
            assert_eq!(mask.plain_beginning(text), expected, "{text:?}");
        }
        assert_eq!(Mask::new([]).plain_beginning("x"), "x");
    }

    const LONG: &str = "q7Zp/XvK2+Wm9T'h R4d\"Lc6Y<é>\\Ns8B";

    /// The secret as tools print it.
    fn printed() -> Vec<String> {
        let base64 = |before: &str| BASE64_STANDARD.encode(format!("{before}{LONG}, and more"));
        let url_safe = |before: &str| base64(before).replace('+', "-").replace('/', "_");
        let percent = |plain: &str, space: &str| -> String {
            let escaped = |byte: u8| match char::from(byte) {
                ' ' => space.to_owned(),
                c if c.is_ascii_alphanumeric() || plain.contains(c) => c.to_string(),
                _ => format!("%{byte:02X}"),
            };
            LONG.bytes().map(escaped).collect()
        };
        let json = serde_json::to_string(LONG).expect("a text");
        let ascii = json.replace('é', "\\u00e9").replace('/', "\\/").replace('<', "\\u003c").replace('>', "\\u003E");
        vec![
            LONG.to_owned(),
            base64(""),
            base64("a"),
            base64("ab"),
            url_safe(""),
            url_safe("a"),
            url_safe("ab"),
            percent("-._~", "%20"),
            percent("", "+"),
            percent("", "%20"),
            json,
            ascii,
            format!("{LONG:?}"),
            hex::encode(LONG),
            hex::encode(LONG).to_uppercase(),
            format!("'{}'", LONG.replace('\'', "'\\''")),
            LONG.chars().map(|c| if c.is_alphanumeric() { c.to_string() } else { format!("\\{c}") }).collect(),
        ]
    }

    #[test]
    fn a_secret_is_masked_however_a_tool_prints_it() {
        let mask = mask(&[LONG]);
        for printed in printed() {
            let shown = mask.plain(&format!("before {printed} after")).into_owned();
            assert!(shown.starts_with("before ") && shown.ends_with(" after") && shown.contains(SHOWN), "{shown}");
            let n_left = shown.len() - "before *** after".len();
            let is_base64 = printed.len() > 50 && !printed.contains(['%', ' ']);
            assert!(n_left <= if is_base64 { 20 } else { 2 }, "{shown} of {printed}");
        }
    }

    #[test]
    fn every_line_of_a_key_is_masked_in_each_form() {
        let body: Vec<String> = (0..24).map(|n| BASE64_STANDARD.encode([n * 7 + 1; 48])).collect();
        let key = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", body.join("\n"));
        let mask = mask(&[&key]);
        let base64 = BASE64_STANDARD.encode(&key);
        let wrapped = base64.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line).into_owned());
        let lines =
            key.lines().map(|line| format!("    {line}")).chain(key.lines().map(|line| format!("#12 1.5 | {line}")));
        for line in lines.chain(wrapped) {
            let shown = mask.plain(&line);
            assert!(shown.contains(SHOWN) && shown.len() <= 20, "{shown}");
        }
        let json = mask.plain(&serde_json::to_string(&key).expect("a text")).into_owned();
        assert!(json.replace("***", "").replace("\\n", "").len() <= 2, "{json}");
    }

    #[test]
    fn a_token_is_known_by_its_form() {
        let mask = mask(&[]);
        let token = format!("ghs_{}", "aB3".repeat(12));
        let web = format!("eyJ{}.eyJ{}.{}", "aB3".repeat(9), "x_-".repeat(9), "Zz".repeat(20));
        for (text, expected) in [
            (format!("https://x-access-token:{token}@github.com"), "https://x-access-token:***@github.com"),
            (format!("TOKEN={token}"), "TOKEN=***"),
            (format!("Bearer {web}, next"), "Bearer ***, next"),
            ("ghs_short npm_config_registry eyJhbGciOiJ9".into(), "ghs_short npm_config_registry eyJhbGciOiJ9"),
            (format!("x{token}"), &*format!("x{token}")),
        ] {
            assert_eq!(mask.plain(&text), expected);
        }
        assert_eq!(mask.plain_beginning("it is ghp_abc"), "it is ");
    }

    #[test]
    fn the_memory_of_a_mask_is_bounded() {
        let secret = |n: usize| (0..n).map(|n| b'!' + (n * n % 89) as u8).collect::<Vec<u8>>();
        let memory = |bytes: Vec<u8>| Mask::new([SecretBytes::new(bytes)]).automaton.memory_usage();
        let (whole, long) = (memory(secret(encoded::MAX_SECRET)), memory(secret(500 << 10)));
        assert!(whole <= 16 << 20 && long <= 40 * (500 << 10), "{whole} {long}");
    }

    /// Whether `shown` has a part of `secret`, of four bytes or more, that the rest of the text does not have.
    fn tells(shown: &str, secret: &str, others: [&str; 4]) -> bool {
        let parts = secret.as_bytes().windows(MIN_LENGTH).filter_map(|part| std::str::from_utf8(part).ok());
        let mut parts = parts.filter(|part| others.iter().all(|other| !other.contains(part)));
        parts.any(|part| shown.contains(part))
    }

    proptest! {
        #[test]
        fn a_text_that_is_free_is_masked_as_if_it_were_searched(
            parts in prop::collection::vec(prop_oneof![
                "[a-c%\\\\\x1b\\[m;0-4é\u{fffc}]{0,6}",
                Just("ab12c".to_owned()),
                Just("%6".to_owned()),
                Just("ghp_".to_owned() + &"aB3".repeat(11)),
                Just("hf_".to_owned() + &"aB3".repeat(11)),
                Just(MARK.to_owned()),
            ], 0..6),
        ) {
            let (mask, text) = (mask(&["ab12c", "a1bé", "cc\"c\"c"]), parts.concat());
            let searched = match text::plain(&text) {
                Cow::Borrowed(text) => mask.replace(text),
                Cow::Owned(_) => mask.replace(&text::plain(&mask.with_marks(&text, text.len()))).replace(MARK, SHOWN),
            };
            prop_assert_eq!(mask.plain(&text), searched);
        }

        #[test]
        fn lines_that_are_free_together_are_free_alone(lines in prop::collection::vec("[ab%\\\\u0-4é]{0,9}", 0..5)) {
            let mask = mask(&["abab", "b1a0", "aébé"]);
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert!(!mask.is_free(&text) || lines.iter().all(|line| mask.spans(line).is_empty()), "{text:?}");
        }

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
            prop_assert_eq!(Some(pending(text.as_bytes(), pattern.as_bytes())), expected);
        }
    }
}
