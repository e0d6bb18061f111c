//! A text with its escapes resolved, and where each byte comes from: a secret is found however a tool escapes it.
//!
//! Percent-encoding (RFC 3986), and backslashes as in JSON (RFC 8259), Go, C and shells. Tools differ in what they escape, so the
//! text is decoded instead of the secret being encoded.

/// A decoded text.
pub(super) struct Decoded {
    pub(super) bytes: Vec<u8>,
    /// Where each byte begins in the text; then where the last one ends.
    starts: Vec<usize>,
    /// The text ends inside an escape, which begins here.
    open: Option<usize>,
}

/// One escape at the beginning of a text.
enum Escape {
    /// These bytes, and its length.
    Of(Vec<u8>, usize),
    /// Its rest is missing.
    Open,
    /// Not an escape.
    None,
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
        if !text.contains(&mark) {
            return None;
        }
        let (mut bytes, mut starts) = (Vec::with_capacity(text.len()), Vec::with_capacity(text.len() + 1));
        let (mut at, mut open) = (0, None);
        while at < text.len() {
            match if text[at] == mark { escape(&text[at..]) } else { Escape::None } {
                Escape::Of(decoded, length) => {
                    starts.extend(std::iter::repeat_n(at, decoded.len()));
                    bytes.extend(decoded);
                    at += length;
                }
                Escape::Open => {
                    open = Some(at);
                    break;
                }
                Escape::None => {
                    starts.push(at);
                    bytes.push(text[at]);
                    at += 1;
                }
            }
        }
        starts.push(at);
        Some(Self { bytes, starts, open })
    }

    /// The same range in the text.
    pub(super) fn in_text(&self, from: usize, to: usize) -> std::ops::Range<usize> {
        // An escape of several bytes is masked whole.
        let end = self.starts[to..].iter().find(|start| **start > self.starts[to - 1]);
        self.starts[from]..end.copied().unwrap_or(self.starts[self.bytes.len()])
    }

    /// Where the last `n_bytes` begin in the text; an escape without its end belongs to them.
    pub(super) fn end_in_text(&self, n_bytes: usize) -> Option<usize> {
        let pending = (n_bytes > 0).then(|| self.starts[self.bytes.len() - n_bytes]);
        pending.or(self.open)
    }
}

fn percent(text: &[u8]) -> Escape {
    match (text.get(1), text.get(2)) {
        (Some(high), Some(low)) => match number(&[*high, *low], 16) {
            Some(byte) => Escape::Of(vec![byte as u8], 3),
            None => Escape::None,
        },
        (None, _) => Escape::Open,
        (Some(high), None) if high.is_ascii_hexdigit() => Escape::Open,
        _ => Escape::None,
    }
}

fn backslash(text: &[u8]) -> Escape {
    let Some(kind) = text.get(1) else { return Escape::Open };
    let one = |byte: u8| Escape::Of(vec![byte], 2);
    match kind {
        b'n' => one(b'\n'),
        b't' => one(b'\t'),
        b'r' => one(b'\r'),
        b'b' => one(8),
        b'f' => one(12),
        b'u' => unicode(text),
        b'x' => match text.get(2..4) {
            Some(digits) => number(digits, 16).map_or(one(b'x'), |byte| Escape::Of(vec![byte as u8], 4)),
            None => Escape::Open,
        },
        b'0'..=b'3' => match text.get(1..4) {
            Some(digits) => number(digits, 8).map_or(one(*kind), |byte| Escape::Of(vec![byte as u8], 4)),
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
    let character = |code: u32| char::from_u32(code).map(|c| c.to_string().into_bytes());
    match unit(2) {
        Some(high @ 0xd800..=0xdbff) if text[6..].starts_with(b"\\u") => match unit(8) {
            Some(low @ 0xdc00..=0xdfff) => {
                let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                character(code).map_or(Escape::None, |bytes| Escape::Of(bytes, 12))
            }
            None if text.len() < 12 => Escape::Open,
            _ => Escape::None,
        },
        Some(code) => character(code).map_or(Escape::None, |bytes| Escape::Of(bytes, 6)),
        None => Escape::Of(vec![b'u'], 2),
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| Some(number * radix + char::from(*digit).to_digit(radix)?))
}

#[cfg(test)]
mod tests {
    use super::*;

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
