//! Strangers' text for people to read: bounded in bytes, without control characters.
//!
//! Owns the form in which such a text is masked, stored and shown. A text goes through [`plain`], then the mask, then [`clip`].
//! Masking after `plain` finds a secret that is printed with colors in it. Masking before `clip` finds one that lies across the
//! cut. [`paths`] hides what a message reveals of the worker. ECMA-48 defines the escape sequences.

pub mod excerpt;
pub mod lines;
pub mod paths;
pub mod quads;
pub mod tail;

use std::borrow::Cow;
use std::ops::Range;

/// `text` without terminal escape sequences, with other control characters replaced by visible ones.
///
/// Line feeds and tabs stay. C0 characters and DEL become their pictures (U+2400 to U+2421): NUL becomes `␀`. C1 characters
/// and characters that reorder or hide text (bidirectional controls, U+2028, U+2029) become U+FFFD. The result is never
/// longer than three times `text`.
pub fn plain(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut shown_to = 0;
    for escape in escapes(text) {
        push_visible(&mut shown, &text[shown_to..escape.start]);
        shown_to = escape.end;
    }
    push_visible(&mut shown, &text[shown_to..]);
    Cow::Owned(shown)
}

/// Whether a text is shown unchanged.
pub fn is_plain(text: &str) -> bool {
    has_no_suspect(text) || !text.chars().any(is_hidden)
}

/// The same on one line: line feeds and tabs become spaces.
pub fn one_line(text: &str) -> String {
    plain(text.trim()).replace(['\n', '\t'], " ")
}

/// The beginning of `text`, at most `max_bytes` bytes, cut between characters. A cut text ends with a mark that counts the missing
/// bytes.
pub fn clip(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    // The mark for the whole text is the longest.
    let room = max_bytes.saturating_sub(more(text.len()).len());
    let kept = boundary(text, room);
    let mut clipped = text[..kept].to_owned();
    clipped.push_str(&more(text.len() - kept));
    clipped.truncate(boundary(&clipped, max_bytes));
    Cow::Owned(clipped)
}

/// The beginning and the end of `text`, at most `max_bytes` bytes, with a mark between them that counts the missing bytes. For errors,
/// which begin with the operation and end with the cause. The end gets a quarter.
pub fn elide(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    let room = max_bytes.saturating_sub(more(text.len()).len() + " … ".len());
    if room < 16 {
        return clip(text, max_bytes);
    }
    let begin = boundary(text, room - room / 4);
    let end = text.len() - boundary_from_end(text, room / 4);
    Cow::Owned(format!("{}{} … {}", &text[..begin], more(end - begin), &text[end..]))
}

/// The last boundary between characters of `text` up to byte `at`.
pub fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The length of the longest end of `text` with whole characters and at most `max_bytes` bytes.
fn boundary_from_end(text: &str, max_bytes: usize) -> usize {
    (0..=max_bytes.min(text.len())).rev().find(|length| text.is_char_boundary(text.len() - length)).unwrap_or(0)
}

/// The mark for missing bytes.
pub fn more(n_bytes: usize) -> String {
    format!("… ({n_bytes} more bytes)")
}

/// The terminal escape sequences of `text`, in order. Takes linear time.
pub fn escapes(text: &str) -> impl Iterator<Item = Range<usize>> {
    let (mut from, mut unended_to) = (0, 0);
    std::iter::from_fn(move || {
        loop {
            let at = from + text.get(from..)?.find('\x1b')?;
            from = at + 1;
            // When one command is not terminated in its line, those after it are not either.
            let is_command = text.as_bytes().get(at + 1) == Some(&b']');
            if is_command && at < unended_to {
                continue;
            }
            match escape_sequence(&text[at..]) {
                Some(length) => {
                    from = at + length;
                    return Some(at..from);
                }
                None if is_command => unended_to = text[at..].find('\n').map_or(text.len(), |end| at + end),
                None => {}
            }
        }
    })
}

/// The beginning of a text, without an escape sequence at its end that the rest may complete.
pub fn without_open_escape(text: &str) -> &str {
    let last_line = text.rfind('\n').map_or(0, |at| at + 1);
    let is_open = |at: usize| match text.as_bytes().get(at + 1) {
        None => true,
        Some(b'[') => text.bytes().skip(at + 2).all(|byte| (0x20..=0x3f).contains(&byte)),
        // Once it is terminated, sequences inside it are a part of it.
        Some(b']') => at >= last_line,
        Some(_) => false,
    };
    let mut from = 0;
    for escape in escapes(text).chain(std::iter::once(text.len()..text.len())) {
        while let Some(at) = text[from..escape.start].find('\x1b').map(|at| from + at) {
            if is_open(at) {
                return &text[..at];
            }
            from = at + 1;
        }
        from = escape.end;
    }
    text
}

/// [`plain`], then [`clip`].
pub fn shown(text: &str, max_bytes: usize) -> String {
    clip(&plain(text), max_bytes).into_owned()
}

/// The length of the escape sequence at the beginning of `text`: a control sequence (`ESC [ … final`), an operating system
/// command (`ESC ] … BEL` or `ESC ] … ESC \`) that ends in the same line, or a two-character escape.
fn escape_sequence(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&0x1b) {
        return None;
    }
    match bytes.get(1)? {
        b'[' => {
            let parameters = bytes[2..].iter().take_while(|byte| (0x20..=0x3f).contains(*byte)).count();
            let end = 2 + parameters;
            matches!(bytes.get(end), Some(0x40..=0x7e)).then_some(end + 1)
        }
        b']' => {
            // Stops at the first terminator, so a text of many commands is scanned once.
            let ends = |at: &usize| matches!(bytes[*at], 0x07 | b'\n') || bytes[*at..].starts_with(b"\x1b\\");
            let end = (2..bytes.len()).find(ends)?;
            match bytes[end] {
                0x07 => Some(end + 1),
                0x1b => Some(end + 2),
                _ => None,
            }
        }
        0x30..=0x5a | 0x5c | 0x5e..=0x7e => Some(2),
        _ => None,
    }
}

/// Adds a text without escape sequences.
fn push_visible(shown: &mut String, text: &str) {
    if has_no_suspect(text) {
        shown.push_str(text);
    } else {
        shown.extend(text.chars().map(visible));
    }
}

/// Whether no byte is a control character, and no two bytes may begin a character that is not visible. The inner loop has no branches, so
/// the compiler vectorizes it.
fn has_no_suspect(text: &str) -> bool {
    let is_control = |byte: u8| (byte == 0x7f) | ((byte < b' ') & (byte != b'\n') & (byte != b'\t'));
    // U+0080 to U+009F, U+061C, and U+2000 to U+207F.
    let begins_hidden = |byte: u8, next: u8| {
        ((byte == 0xc2) & (next < 0xa0)) | ((byte == 0xd8) & (next == 0x9c)) | ((byte == 0xe2) & (next < 0x82))
    };
    let (bytes, nexts) = (text.as_bytes(), text.as_bytes().get(1..).unwrap_or_default());
    bytes.chunks(64).all(|block| !block.iter().fold(false, |any, byte| any | is_control(*byte)))
        && (text.is_ascii()
            || bytes.chunks(64).zip(nexts.chunks(64)).all(|(block, nexts)| {
                !block.iter().zip(nexts).fold(false, |any, (byte, next)| any | begins_hidden(*byte, *next))
            }))
}

fn is_hidden(c: char) -> bool {
    visible(c) != c
}

fn visible(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\x7f' => '␡',
        '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => char::REPLACEMENT_CHARACTER,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            char::REPLACEMENT_CHARACTER
        }
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_become_visible_and_escape_sequences_go() {
        for (text, expected) in [
            ("a\tb\nc", "a\tb\nc"),
            ("nul\0", "nul␀"),
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07text", "text"),
            ("\x1b]8;;http://x\x1b\\link", "link"),
            ("\x1b]0;no end\nnext", "␛]0;no end\nnext"),
            ("\x1b[31", "␛[31"),
            ("\x1b", "␛"),
            ("\x1bcreset", "reset"),
            ("back\x08space\x7f", "back␈space␡"),
            ("50%\r100%", "50%␍100%"),
            ("a\u{202e}b\u{85}", "a\u{fffd}b\u{fffd}"),
            ("a\u{61c}b\u{200e}c\u{200f}d\u{2069}", "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"),
        ] {
            assert_eq!(plain(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_clipped_text_says_how_much_is_missing() {
        assert_eq!(clip("short", 5), "short");
        assert_eq!(clip(&"x".repeat(100), 40), format!("{}… (80 more bytes)", "x".repeat(20)));
    }

    #[test]
    fn an_elided_error_has_its_beginning_and_its_cause() {
        let error = format!("process \"{}\" did not complete successfully: exit code: 137", "x".repeat(1000));
        let elided = elide(&error, 200);
        assert!(elided.starts_with("process \"xxx") && elided.ends_with("exit code: 137"), "{elided}");
        assert!(elided.contains(" more bytes) … ") && elided.len() <= 200, "{elided}");
        assert_eq!(elide("short", 5), "short");
    }

    #[test]
    fn a_text_of_nothing_but_escapes_takes_no_longer_than_another() {
        // Looked through to its end for each of them, it would take hours.
        let text = "\x1b]0;".repeat(1 << 20);
        assert_eq!(escapes(&text).count(), 0);
        assert_eq!(escapes(&(text.clone() + "\n\x1b]0;x\x07")).count(), 1);
        assert_eq!(without_open_escape(&text), "");
        assert_eq!(without_open_escape(&format!("{text}\n")).len(), text.len() + 1);
        let ended = "\x1b]\x07".repeat(1 << 20);
        assert_eq!((escapes(&ended).count(), plain(&ended).len()), (1 << 20, 0));
    }

    #[test]
    fn an_escape_sequence_that_may_go_on_is_left_out() {
        for (text, expected) in [
            ("a\x1b", "a"),
            ("a\x1b[3", "a"),
            ("a\x1b[31mb", "a\x1b[31mb"),
            ("a\x1b]0;tit", "a"),
            ("a\x1b]0;title\x07b\x1b]8;", "a\x1b]0;title\x07b"),
            ("a\x1b]0;x\nb", "a\x1b]0;x\nb"),
            ("a\x1b b\x1b", "a\x1b b"),
            ("a\x1b]0\x1bcb", "a"),
            ("a\x1b]0\n\x1bcb", "a\x1b]0\n\x1bcb"),
        ] {
            assert_eq!(without_open_escape(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_fits_its_bound_and_shows_no_control_character(text in any::<String>(), max_bytes in 0_usize..200) {
            let shown = shown(&text, max_bytes);
            prop_assert!(shown.len() <= max_bytes);
            prop_assert!(!shown.chars().any(is_hidden));
        }

        #[test]
        fn an_elided_text_fits_its_bound(text in any::<String>(), max_bytes in 0_usize..200) {
            prop_assert!(elide(&text, max_bytes).len() <= max_bytes);
        }

        #[test]
        fn the_beginning_of_a_text_is_shown_as_the_text_is(
            text in "[ab\x1b\\[\\]0-9;m\x07\\\\\\n]{0,40}",
            at in any::<prop::sample::Index>(),
        ) {
            let beginning = without_open_escape(&text[..boundary(&text, at.index(text.len() + 1))]);
            prop_assert!(plain(&text).starts_with(&*plain(beginning)), "{:?} of {:?}", beginning, text);
        }

        #[test]
        fn a_text_without_suspects_has_no_hidden_character(text in "[a\\n\\t\u{7f}-\u{a1}\u{61b}-\u{61d}\u{2000}-\u{2080}\u{fffd}]{0,80}", only in any::<bool>()) {
            let text: String = if only { text.chars().filter(|c| !is_hidden(*c)).collect() } else { text };
            prop_assert_eq!(is_plain(&text), !text.chars().any(is_hidden));
        }

        #[test]
        fn plain_is_stable(text in any::<String>()) {
            let once = plain(&text).into_owned();
            prop_assert_eq!(plain(&once), once.as_str());
        }
    }
}
