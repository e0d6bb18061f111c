//! JSON text as slices: what lies where in it, however deep, without reading it into values; and the one way to read a text
//! into values that is not the worker's own.
//!
//! Every function takes text that is JSON (RFC 8259); [`is_json`] says so in constant stack space. Nothing here recurses, so
//! a text of any depth is safe.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::de::{DeserializeOwned, Error, IgnoredAny};

use crate::{bounds, text};

/// Bytes of a path in a message.
const MAX_PATH: usize = 120;

/// Whether the text is one JSON value, and why not.
///
/// # Errors
///
/// The parser's own, with line and column.
pub fn is_json(text: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<IgnoredAny>(text).map(drop)
}

/// Reads a text that a job, a child process or a server has written.
///
/// A bound on the bytes of a text does not bound the memory that its values take: three bytes, `{},`, make a value of 72 bytes,
/// and `{"":0},` makes one of more than 500. So names and values are counted before the first one is made. `tests/it/limits.rs`
/// has the short list of what else may be read.
///
/// # Errors
///
/// The parser's own; or there are more than [`bounds::VALUES`] names and values.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    if has_more_values(text, bounds::VALUES) {
        return Err(Error::custom(format_args!("more than {} names and values", bounds::VALUES)));
    }
    serde_json::from_slice(text)
}

/// Whether a text has more than `max` names and values. Of a text that is not JSON a parser makes no more than are counted.
pub fn has_more_values(text: &[u8], max: usize) -> bool {
    n_values(text, max) > max
}

/// How many names and values a text has; past `max` it counts no further.
pub fn n_values(text: &[u8], max: usize) -> usize {
    let (mut at, mut n) = (0, 0);
    while n <= max {
        at += n_between(&text[at..]);
        let Some(first) = text.get(at) else { break };
        n += usize::from(!matches!(first, b'}' | b']'));
        at += token_length(&text[at..]);
    }
    n
}

/// The fields of an object in order, each with its name and the text of its value; none for any other value.
///
/// A name that has no Unicode text (a lone surrogate) keeps its escapes.
pub fn fields(value: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    let mut tokens = Tokens::inside(value, b'{');
    std::iter::from_fn(move || {
        let name = tokens.value()?;
        Some((string(name).unwrap_or(Cow::Borrowed(name)), tokens.value()?))
    })
}

/// The text of each item of an array; none for any other value.
pub fn items(value: &str) -> impl Iterator<Item = &str> {
    let mut tokens = Tokens::inside(value, b'[');
    std::iter::from_fn(move || tokens.value())
}

/// The text of the value at a JSON Pointer (RFC 6901).
pub fn pointer<'a>(value: &'a str, pointer: &str) -> Option<&'a str> {
    let mut found = value.trim();
    if pointer.is_empty() {
        return Some(found);
    }
    for part in pointer.strip_prefix('/')?.split('/') {
        let name = part.replace("~1", "/").replace("~0", "~");
        found = match found.as_bytes().first()? {
            b'{' => fields(found).filter(|(field, _)| *field == name).last()?.1,
            b'[' => items(found).nth(name.parse().ok()?)?,
            _ => return None,
        };
    }
    Some(found)
}

/// How deep arrays and objects lie in each other: 0 for a scalar.
pub fn depth(value: &str) -> usize {
    let (mut open, mut deepest) = (0, 0);
    for token in Tokens::of(value) {
        open += step(token);
        deepest = deepest.max(open);
    }
    deepest.unsigned_abs()
}

/// Why some parsers refuse a text that is JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    /// More names and values than allowed: to look for fields that are there twice takes memory for each.
    #[error("{path}: more than {max} names and values")]
    TooMany {
        /// The first one too many.
        path: String,
        /// How many are allowed.
        max: usize,
    },
    /// More levels than allowed.
    #[error("{path}: nested deeper than {max} levels")]
    TooDeep {
        /// Where the first level too many begins.
        path: String,
        /// How many are allowed.
        max: usize,
    },
    /// An object has two fields of one name.
    #[error("{path}: duplicate field")]
    Duplicate {
        /// The field.
        path: String,
    },
    /// A `\ud800` without its other half, so the string has no Unicode text.
    #[error("{path}: a string with half of a surrogate pair")]
    Surrogate {
        /// The string.
        path: String,
    },
}

/// The first reason for which a parser that follows RFC 8259 strictly, or that allows `max_depth` levels, refuses the text.
pub fn oddity(value: &str, max_depth: usize) -> Option<Oddity> {
    let (mut open, mut n_values): (Vec<Level<'_>>, _) = (Vec::new(), 0);
    for token in Tokens::of(value) {
        if step(token) < 0 {
            open.pop();
            continue;
        }
        let text = string(token);
        let is_new = open.last_mut().is_none_or(|level| level.step_to(token, text.as_ref()));
        if token.starts_with('"') && text.is_none() {
            return Some(Oddity::Surrogate { path: path(&open) });
        }
        if !is_new {
            return Some(Oddity::Duplicate { path: path(&open) });
        }
        n_values += 1;
        if n_values > bounds::VALUES {
            return Some(Oddity::TooMany { path: path(&open), max: bounds::VALUES });
        }
        match token.as_bytes()[0] {
            b'{' => open.push(Level::Object { names: HashSet::new(), name: "", is_at_value: false }),
            b'[' => open.push(Level::Array { n_items: 0 }),
            _ => {}
        }
        if open.len() > max_depth {
            return Some(Oddity::TooDeep { path: path(&open), max: max_depth });
        }
    }
    None
}

/// An array or object around the present token.
enum Level<'a> {
    Array { n_items: usize },
    Object { names: HashSet<Cow<'a, str>>, name: &'a str, is_at_value: bool },
}

impl<'a> Level<'a> {
    /// Takes in the next name or value; returns whether a name is new.
    fn step_to(&mut self, token: &'a str, text: Option<&Cow<'a, str>>) -> bool {
        match self {
            Self::Array { n_items } => *n_items += 1,
            Self::Object { is_at_value, .. } if *is_at_value => *is_at_value = false,
            Self::Object { names, name, is_at_value } => {
                (*name, *is_at_value) = (token, true);
                return text.is_none_or(|text| names.insert(text.clone()));
            }
        }
        true
    }
}

/// Such as `args[0].labels.a`; the beginning of a long one.
fn path(open: &[Level<'_>]) -> String {
    let mut path = String::new();
    for level in open {
        match level {
            Level::Array { n_items: 0 } => {}
            Level::Array { n_items } => path.push_str(&format!("[{}]", n_items - 1)),
            Level::Object { name, .. } => {
                let separator = if path.is_empty() || name.is_empty() { "" } else { "." };
                path.push_str(separator);
                path.push_str(name.trim_matches('"'));
            }
        }
        if path.len() > MAX_PATH {
            break;
        }
    }
    if path.is_empty() { ".".into() } else { text::shown(&path, MAX_PATH) }
}

/// The text of a string token; `None` for any other token, and for a lone surrogate.
fn string(token: &str) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(token).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// The brackets, names and scalars of a text, one after the other; commas, colons and white space are passed over.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Those inside of a value that begins with `bracket`; none of any other value.
    fn inside(value: &'a str, bracket: u8) -> Self {
        let mut tokens = Self::of(value);
        let is_it = tokens.next().is_some_and(|token| token.as_bytes()[0] == bracket);
        if is_it { tokens } else { Self::of("") }
    }

    /// The text of a whole value or name; `None` at the end of the array or object.
    fn value(&mut self) -> Option<&'a str> {
        let first = self.next()?;
        let start = self.at - first.len();
        let mut open = step(first);
        if open < 0 {
            return None;
        }
        while open > 0 {
            open += step(self.next()?);
        }
        Some(&self.text[start..self.at])
    }
}

/// How many levels a token opens: one, none, or one less than none.
fn step(token: &str) -> isize {
    match token.as_bytes()[0] {
        b'{' | b'[' => 1,
        b'}' | b']' => -1,
        _ => 0,
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        self.at += n_between(&bytes[self.at..]);
        let rest = bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let token = &self.text[self.at..self.at + token_length(rest)];
        self.at += token.len();
        Some(token)
    }
}

fn is_between(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b',' | b':')
}

/// How many bytes there are before the next token.
fn n_between(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| is_between(byte)).count()
}

/// The length of the token that `bytes` begin with; there are some.
fn token_length(bytes: &[u8]) -> usize {
    match bytes[0] {
        b'{' | b'}' | b'[' | b']' => 1,
        b'"' => string_length(bytes),
        _ => bytes.iter().take_while(|byte| !is_between(byte) && !matches!(byte, b'}' | b']')).count(),
    }
}

/// The length of the string that `bytes` begin with, quotes included.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    loop {
        match bytes.get(at) {
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
            None => return bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn nested(depth: usize) -> String {
        format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn a_pointer_finds_what_lies_behind_anything() {
        let text =
            format!(r#" {{"deep": {}, "a" : [ 1e400, {{"b\u0020c": "x\"}}]"}} ], "a/~": -0.0 }} "#, nested(100_000));
        is_json(&text).expect("JSON");
        assert_eq!(pointer(&text, "/a/0"), Some("1e400"));
        assert_eq!(pointer(&text, "/a/1/b c"), Some(r#""x\"}]""#));
        assert_eq!(pointer(&text, "/a~1~0"), Some("-0.0"));
        assert_eq!(
            [pointer(&text, "/a/2"), pointer(&text, "/x"), pointer(&text, "a"), pointer(&text, "/a/0/0")],
            [None; 4]
        );
        assert_eq!(depth(&text), 100_001);
        assert_eq!(fields(&text).map(|(name, _)| name.into_owned()).collect::<Vec<_>>(), ["deep", "a", "a/~"]);
        assert_eq!(items("[1, [2, 3], \"a,b\"]").collect::<Vec<_>>(), ["1", "[2, 3]", "\"a,b\""]);
        assert_eq!((fields("[1]").count(), items("{}").count(), items("7").count()), (0, 0, 0));
    }

    #[test]
    fn an_oddity_is_named_by_its_path() {
        let odd = |text: &str| {
            is_json(text).expect("JSON");
            oddity(text, 3).map(|odd| odd.to_string())
        };
        assert_eq!(odd(r#"{"a": [{"b": 1}], "c": "\ud83d\ude00 \\ud800"}"#), None);
        assert_eq!(odd(r#"{"a": [1, {"b": []}]}"#).as_deref(), Some("a[1].b: nested deeper than 3 levels"));
        assert_eq!(odd(r#"{"a": {"b": 1, "\u0062": 2}}"#).as_deref(), Some("a.\\u0062: duplicate field"));
        assert_eq!(odd(r#"["x", ["\ud800"]]"#).as_deref(), Some("[1][0]: a string with half of a surrogate pair"));
        assert_eq!(odd(r#"{"\udc00": 1}"#).as_deref(), Some("\\udc00: a string with half of a surrogate pair"));
        assert_eq!(odd(&nested(4)).as_deref(), Some("[0][0][0]: nested deeper than 3 levels"));
        assert!(odd(&nested(1_000_000)).is_some());
    }

    #[test]
    fn values_are_counted_before_they_are_read() {
        for (text, expected) in [
            (r#"{"a": [1, "b}", {}], "c": null}"#, 8),
            (r#" [[],[ ],"\"]",-1.5e3,true] "#, 6),
            ("", 0),
            ("[{},{},\"\u{fffd}", 4),
            (r#"["a"#, 2),
        ] {
            assert_eq!(n_values(text.as_bytes(), 100), expected, "{text}");
        }
        assert_eq!(n_values(b"[1,2,3,4,5]", 2), 3, "it counts no further");
        let list = |n: usize| format!("[{}0]", "{},".repeat(n));
        assert!(read::<Value>(list(bounds::VALUES - 2).as_bytes()).is_ok());
        for last in ["0]", "", "\u{0}", "0]]"] {
            let text = list(bounds::VALUES - 1).replace("0]", last);
            let error = read::<Value>(text.as_bytes()).err().filter(|error| last != "0]" || error.is_data());
            assert!(error.is_some(), "{last:?}");
        }
        let odd = oddity(&list(bounds::VALUES), 3).map(|odd| odd.to_string());
        assert_eq!(odd.as_deref(), Some("[49999]: more than 50000 names and values"));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from)
        ];
        leaf.prop_recursive(6, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..5).prop_map(|map| json!(map)),
            ]
        })
    }

    fn depth_of(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(depth_of).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn n_of(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(n_of).sum::<usize>(),
            Value::Object(fields) => 1 + fields.values().map(|value| 1 + n_of(value)).sum::<usize>(),
            _ => 1,
        }
    }

    proptest! {
        #[test]
        fn slices_are_the_values_that_a_parser_reads(value in any_json(), is_pretty in any::<bool>()) {
            let text = if is_pretty { format!("{value:#}") } else { value.to_string() };
            prop_assert_eq!(depth(&text), depth_of(&value));
            prop_assert_eq!(oddity(&text, depth_of(&value)), None);
            prop_assert_eq!(n_values(text.as_bytes(), usize::MAX - 1), n_of(&value));
            let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
            match &value {
                Value::Object(expected) => {
                    let found: serde_json::Map<_, _> = fields(&text).map(|(name, value)| (name.into_owned(), read(value))).collect();
                    prop_assert_eq!(&found, expected);
                }
                Value::Array(expected) => prop_assert_eq!(&items(&text).map(read).collect::<Vec<_>>(), expected),
                _ => {}
            }
        }

        #[test]
        fn no_text_makes_it_panic_or_run_for_ever(text in any::<String>(), pointer_text in any::<String>()) {
            fields(&text).for_each(drop);
            items(&text).for_each(drop);
            n_values(text.as_bytes(), usize::MAX - 1);
            let _ = (depth(&text.replace(['}', ']'], "")), pointer(&text, &pointer_text));
        }
    }
}
