//! A text with its escapes resolved, and where each byte comes from: a secret is found however a tool escapes it.
//!
//! Percent-encoding (RFC 3986), and backslashes as in JSON (RFC 8259), Go, C and shells. Tools differ in what they escape, so the
//! text is decoded instead of the secret being encoded.

use std::ops::Range;

/// A decoded text.
pub(super) struct Decoded {
    pub(super) bytes: Vec<u8>,
    /// The escapes, in order.
    resolved: Vec<Resolved>,
    /// The text ends inside an escape, which begins here.
    open: Option<usize>,
}

/// An escape that was resolved.
struct Resolved {
    /// Where it was in the text, and where its bytes are.
    from: Range<usize>,
    to: Range<usize>,
}

/// One escape at the beginning of a text.
enum Escape {
    /// What it stands for, and its length.
    Of(Character, usize),
    /// Its rest is missing.
    Open,
    /// Not an escape.
    None,
}

/// Bytes of at most one character.
struct Character {
    bytes: [u8; 4],
    n_bytes: usize,
}

impl From<u8> for Character {
    fn from(byte: u8) -> Self {
        Self { bytes: [byte, 0, 0, 0], n_bytes: 1 }
    }
}

impl From<char> for Character {
    fn from(c: char) -> Self {
        let mut bytes = [0; 4];
        Self { n_bytes: c.encode_utf8(&mut bytes).len(), bytes }
    }
}

impl Decoded {
    /// With `%41` as `A`. `None` for a text without escapes.
    pub(super) fn percent(text: &str) -> Option<Self> {
        Self::of(text, b'%', percent)
    }

    /// With `\n`, `\"`, `\u0041`, `\x41` and `\101` as characters. `None` for a text without escapes.
    pub(super) fn backslashes(text: &str) -> Option<Self> {
        Self::of(text, b'\\', backslash)
    }

    fn of(text: &str, mark: u8, escape: fn(&[u8]) -> Escape) -> Option<Self> {
        let text = text.as_bytes();
        let (mut bytes, mut resolved, mut open) = (Vec::new(), Vec::new(), None);
        let (mut copied, mut from) = (0, 0);
        while let Some(at) = memchr::memchr(mark, &text[from..]).map(|n| from + n) {
            match escape(&text[at..]) {
                Escape::Of(decoded, length) => {
                    bytes.extend_from_slice(&text[copied..at]);
                    let to = bytes.len()..bytes.len() + decoded.n_bytes;
                    resolved.push(Resolved { from: at..at + length, to });
                    bytes.extend_from_slice(&decoded.bytes[..decoded.n_bytes]);
                    (copied, from) = (at + length, at + length);
                }
                Escape::Open => {
                    open = Some(at);
                    break;
                }
                Escape::None => from = at + 1,
            }
        }
        if resolved.is_empty() && open.is_none() {
            return None;
        }
        let end = open.unwrap_or(text.len());
        bytes.extend_from_slice(&text[copied..end]);
        Some(Self { bytes, resolved, open })
    }

    /// The same range in the text. An escape of several bytes is masked whole.
    pub(super) fn in_text(&self, from: usize, to: usize) -> Range<usize> {
        self.byte_in_text(from).start..self.byte_in_text(to - 1).end
    }

    /// Where the last `n_bytes` begin in the text; an escape without its end belongs to them.
    pub(super) fn end_in_text(&self, n_bytes: usize) -> Option<usize> {
        let pending = (n_bytes > 0).then(|| self.byte_in_text(self.bytes.len() - n_bytes).start);
        pending.or(self.open)
    }

    /// Where one byte is in the text, or the escape that it is of.
    fn byte_in_text(&self, at: usize) -> Range<usize> {
        let n_before = self.resolved.partition_point(|escape| escape.to.start <= at);
        match n_before.checked_sub(1).map(|n| &self.resolved[n]) {
            Some(escape) if at < escape.to.end => escape.from.clone(),
            Some(escape) => {
                let start = escape.from.end + (at - escape.to.end);
                start..start + 1
            }
            None => at..at + 1,
        }
    }
}

fn percent(text: &[u8]) -> Escape {
    match (text.get(1), text.get(2)) {
        (Some(high), Some(low)) => match number(&[*high, *low], 16) {
            Some(byte) => Escape::Of((byte as u8).into(), 3),
            None => Escape::None,
        },
        (None, _) => Escape::Open,
        (Some(high), None) if high.is_ascii_hexdigit() => Escape::Open,
        _ => Escape::None,
    }
}

fn backslash(text: &[u8]) -> Escape {
    let Some(kind) = text.get(1) else { return Escape::Open };
    let one = |byte: u8| Escape::Of(byte.into(), 2);
    match kind {
        b'n' => one(b'\n'),
        b't' => one(b'\t'),
        b'r' => one(b'\r'),
        b'b' => one(8),
        b'f' => one(12),
        b'u' => unicode(text),
        b'x' => match text.get(2..4) {
            Some(digits) => number(digits, 16).map_or(one(b'x'), |byte| Escape::Of((byte as u8).into(), 4)),
            None => Escape::Open,
        },
        b'0'..=b'3' => match text.get(1..4) {
            Some(digits) => number(digits, 8).map_or(one(*kind), |byte| Escape::Of((byte as u8).into(), 4)),
            None => Escape::Open,
        },
        kind if kind.is_ascii() => one(*kind),
        _ => Escape::None,
    }
}

/// `\uXXXX`, or two of them for one character.
fn unicode(text: &[u8]) -> Escape {
    let unit = |at: usize| number(text.get(at..at + 4)?, 16);
    if text.len() < 6 {
        return Escape::Open;
    }
    let character = |code: u32| char::from_u32(code).map(Character::from);
    match unit(2) {
        Some(high @ 0xd800..=0xdbff) if text[6..].starts_with(b"\\u") => match unit(8) {
            Some(low @ 0xdc00..=0xdfff) => {
                let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                character(code).map_or(Escape::None, |character| Escape::Of(character, 12))
            }
            None if text.len() < 12 => Escape::Open,
            _ => Escape::None,
        },
        Some(code) => character(code).map_or(Escape::None, |character| Escape::Of(character, 6)),
        None => Escape::Of(b'u'.into(), 2),
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| Some(number * radix + char::from(*digit).to_digit(radix)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where each byte begins in the text, byte by byte; then where the last one ends.
    fn starts(text: &[u8], mark: u8, escape: fn(&[u8]) -> Escape) -> Vec<usize> {
        let (mut starts, mut at) = (Vec::new(), 0);
        while at < text.len() {
            let (n_bytes, length) = match if text[at] == mark { escape(&text[at..]) } else { Escape::None } {
                Escape::Of(decoded, length) => (decoded.n_bytes, length),
                Escape::Open => break,
                Escape::None => (1, 1),
            };
            starts.extend(std::iter::repeat_n(at, n_bytes));
            at += length;
        }
        starts.push(at);
        starts
    }

    proptest! {
        #[test]
        fn each_range_leads_back_to_where_its_bytes_begin_and_end(text in r"([a-c]{1,3}|\\|\\u00e9|\\n|\\x4|1|%4|%41|%|é){0,9}") {
            for (mark, escape) in [(b'%', percent as fn(&[u8]) -> Escape), (b'\\', backslash)] {
                let Some(decoded) = Decoded::of(&text, mark, escape) else { continue };
                let starts = starts(text.as_bytes(), mark, escape);
                let n_bytes = decoded.bytes.len();
                prop_assert_eq!(starts.len(), n_bytes + 1);
                for from in 0..n_bytes {
                    prop_assert_eq!(decoded.end_in_text(n_bytes - from), Some(starts[from]));
                    for to in from + 1..=n_bytes {
                        let end = starts[to..].iter().find(|start| **start > starts[to - 1]).unwrap_or(&starts[n_bytes]);
                        prop_assert_eq!(decoded.in_text(from, to), starts[from]..*end);
                    }
                }
            }
        }
    }

    fn decoded(decoded: Option<Decoded>) -> String {
        String::from_utf8_lossy(&decoded.expect("an escape").bytes).into_owned()
    }

    #[test]
    fn escapes_of_each_tool_are_resolved() {
        for (text, expected) in [("a%2Bb%2f%c3%A9", "a+b/é"), ("100% of %zz %4", "100% of %zz ")] {
            assert_eq!(decoded(Decoded::percent(text)), expected);
        }
        for (text, expected) in [
            (r#"say \"hi\"\n\/ \\ \u00e9 \ud83d\ude00"#, "say \"hi\"\n/ \\ é 😀"),
            (r"\$HOME\ x\'y \x41\101 \303\251", "$HOME x'y AA é"),
            (r"\u003c \ud83d end \uzzzz", r"< \ud83d end uzzzz"),
            (r"\ud83d\uzzzz \u003c", r"\ud83duzzzz <"),
            ("a\\", "a"),
        ] {
            assert_eq!(decoded(Decoded::backslashes(text)), expected);
        }
        assert!(Decoded::percent("plain").is_none() && Decoded::backslashes("plain").is_none());
    }

    #[test]
    fn a_range_leads_back_to_whole_escapes() {
        let decoded = Decoded::percent("x%41%42y%4").expect("escapes");
        assert_eq!((decoded.in_text(1, 3), decoded.in_text(0, 1), decoded.in_text(3, 4)), (1..7, 0..1, 7..8));
        assert_eq!((decoded.end_in_text(2), decoded.end_in_text(0)), (Some(4), Some(8)));
        let one = Decoded::backslashes(r"\u00e9!").expect("an escape");
        assert_eq!((one.in_text(0, 1), one.in_text(0, 2), one.in_text(2, 3)), (0..6, 0..6, 6..7));
    }
}
