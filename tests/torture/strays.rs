//! Texts on a queue that are not jobs, or jobs with fields of unusual types. Each must appear in the dead set exactly
//! once, complete.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;

/// Larger than any text that passes in one piece.
const GIANT: usize = 3 << 20;
/// The prefix of a marker; 16 hexadecimal digits follow.
const MARKER: &str = "stray-";
/// Deeper than any parser supports.
const DEEP: usize = 10_000;

pub struct Stray {
    pub what: &'static str,
    pub text: Vec<u8>,
    /// Appears only in this stray, if the stray has room for it.
    marker: Option<String>,
    /// It names a class, so it may die as that job.
    is_job: bool,
}

/// The class of the entry that wraps a text that is not a job.
const MALFORMED: &str = "Sidebake::Malformed";

/// An entry of the dead set, parsed once.
pub struct Dead {
    raw: Vec<u8>,
    /// None for a text that is not JSON.
    entry: Option<Value>,
    /// Markers in its text and in all its strings, including decoded Base64.
    markers: BTreeSet<String>,
    /// Strings in the arguments of an entry that wraps a text, including decoded Base64.
    wrapped: Vec<Vec<u8>>,
}

/// One of each kind.
pub fn all(random: &mut StdRng) -> Vec<Stray> {
    let mut strays = bare(random);
    for (what, is_job, shape) in shapes() {
        let marker = format!("{MARKER}{:016x}", random.random::<u64>());
        let text = shape.iter().flat_map(|part| part.fill(&marker)).collect();
        strays.push(Stray { what, text, marker: Some(marker), is_job });
    }
    strays
}

/// Strays without room for a marker.
fn bare(random: &mut StdRng) -> Vec<Stray> {
    let mut number = || random.random_range(1_000_000_000_u64..9_000_000_000);
    let texts = [
        ("null", "null".to_owned()),
        ("true", "true".to_owned()),
        ("an integer", number().to_string()),
        ("a negative float", format!("-{}.5e3", number())),
        ("a large integer", number().to_string().repeat(40)),
        ("a number that is infinite", format!("{}e999", number())),
        ("an empty text", String::new()),
        ("a space", " ".to_owned()),
        ("a line feed", "\n".to_owned()),
        ("an empty array", "[]".to_owned()),
        ("an empty object", "{}".to_owned()),
        ("an empty string", "\"\"".to_owned()),
        ("an array of numbers", format!("[{},2,3]", number())),
    ];
    texts.map(|(what, text)| Stray { what, text: text.into_bytes(), marker: None, is_job: false }).into()
}

/// A part of a text.
enum Part {
    Marker,
    Bytes(&'static [u8]),
    Repeated(&'static str, usize),
}

impl Part {
    fn fill(&self, marker: &str) -> Vec<u8> {
        match self {
            Self::Marker => marker.as_bytes().to_vec(),
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Repeated(text, n) => text.repeat(*n).into_bytes(),
        }
    }
}

/// Each stray's description, whether it names a class, and its parts.
fn shapes() -> Vec<(&'static str, bool, Vec<Part>)> {
    use Part::{Bytes, Marker, Repeated};
    let around =
        |before: &'static str, after: &'static str| vec![Bytes(before.as_bytes()), Marker, Bytes(after.as_bytes())];
    let mut shapes = vec![
        ("a string", false, around("\"", "\"")),
        ("an array", false, around("[\"", "\",null]")),
        ("broken JSON", false, around(r#"{"class":"Sidebake::Probe","args":[""#, "")),
        ("text after JSON", false, around(r#"{"class":"Sidebake::Probe","args":[]} "#, "")),
        ("plain text", false, around("BuildJob ", "")),
        ("several lines", false, around("default\n", "\n\n")),
        ("invalid UTF-8", false, vec![Bytes(b"\xff\xfe"), Marker, Bytes(b"\xc3")]),
        ("invalid UTF-8 in an object", false, vec![Bytes(b"{\"a\":\"\xed\xa0\x80"), Marker, Bytes(b"\"}")]),
        ("NUL", false, vec![Bytes(b"\0"), Marker, Bytes(b"\0")]),
        ("arrays in arrays", false, vec![Repeated("[", DEEP), Bytes(b"\""), Marker, Bytes(b"\""), Repeated("]", DEEP)]),
        (
            "objects in objects",
            false,
            vec![Repeated("{\"a\":", DEEP), Bytes(b"\""), Marker, Bytes(b"\""), Repeated("}", DEEP)],
        ),
        ("a giant text", false, vec![Repeated("x", GIANT), Marker]),
        ("a giant string", false, vec![Bytes(b"\""), Repeated("y", GIANT), Marker, Bytes(b"\"")]),
        (
            "a giant object",
            false,
            vec![Bytes(b"{\"args\":[\""), Repeated("z", GIANT), Bytes(b"\"],\"x\":\""), Marker, Bytes(b"\"}")],
        ),
        ("no class", false, around(r#"{"jid":"0123456789abcdef01234567","args":[],"x":""#, "\"}")),
        (
            "a class of the wrapper only",
            false,
            around(r#"{"class":"Sidekiq::ActiveJob::Wrapper","wrapped":5,"retry":0,"args":[{}],"x":""#, "\"}"),
        ),
        ("an unknown class", true, around(r#"{"class":"Nobody","retry":0,"args":[],"x":""#, "\"}")),
    ];
    shapes.extend(odd_fields());
    shapes
}

/// Objects with one field of an unusual type.
fn odd_fields() -> Vec<(&'static str, bool, Vec<Part>)> {
    let tail = |before: &'static str| vec![Part::Bytes(before.as_bytes()), Part::Marker, Part::Bytes(b"\"}")];
    vec![
        ("class null", false, tail(r#"{"class":null,"args":[],"x":""#)),
        ("class a number", false, tail(r#"{"class":5,"args":[],"x":""#)),
        ("class an array", false, tail(r#"{"class":["BuildJob"],"args":[],"x":""#)),
        ("class an object", false, tail(r#"{"class":{"a":1},"args":[],"x":""#)),
        ("args null", true, tail(r#"{"class":"Sidebake::Probe","retry":0,"args":null,"x":""#)),
        ("args a number", true, tail(r#"{"class":"Sidebake::Probe","retry":0,"args":5,"x":""#)),
        ("args a string", true, tail(r#"{"class":"Sidebake::Probe","retry":0,"args":"a","x":""#)),
        ("args an object", true, tail(r#"{"class":"Sidebake::Probe","retry":0,"args":{"a":1},"x":""#)),
        ("no args", true, tail(r#"{"class":"Sidebake::Probe","retry":0,"x":""#)),
        (
            "jid a number",
            true,
            tail(r#"{"class":"Sidebake::Probe","retry":0,"jid":5,"args":[{"outcome":"infrastructure"}],"x":""#),
        ),
        (
            "jid null",
            true,
            tail(r#"{"class":"Sidebake::Probe","retry":0,"jid":null,"args":[{"outcome":"infrastructure"}],"x":""#),
        ),
        ("no jid", true, tail(r#"{"class":"Sidebake::Probe","retry":0,"args":[{"outcome":"infrastructure"}],"x":""#)),
        (
            "queue a number",
            true,
            tail(r#"{"class":"Sidebake::Probe","retry":0,"queue":5,"args":[{"outcome":"infrastructure"}],"x":""#),
        ),
        (
            "created_at a string",
            true,
            tail(
                r#"{"class":"Sidebake::Probe","retry":0,"created_at":"now","args":[{"outcome":"infrastructure"}],"x":""#,
            ),
        ),
    ]
}

impl Stray {
    /// Whether this entry is the result of the stray.
    pub fn is_in(&self, dead: &Dead) -> bool {
        match &self.marker {
            Some(marker) => dead.markers.contains(marker),
            None => self.is_wrapped_in(dead),
        }
    }

    /// Whether the entry contains the complete stray.
    pub fn is_whole_in(&self, dead: &Dead) -> bool {
        self.is_job || self.is_wrapped_in(dead)
    }

    fn is_wrapped_in(&self, dead: &Dead) -> bool {
        dead.raw == self.text || dead.wrapped.contains(&self.text)
    }
}

impl Dead {
    pub fn read(raw: Vec<u8>) -> Self {
        let entry: Option<Value> = serde_json::from_slice(&raw).ok();
        let all = entry.iter().flat_map(strings);
        // Scans each text once, because some are very large and there are as many markers as strays.
        let markers = all.chain([raw.clone()]).flat_map(|text| markers(&text)).collect();
        let wrapper = entry.as_ref().filter(|entry| entry["class"] == MALFORMED);
        let wrapped = wrapper.map(|entry| strings(&entry["args"])).unwrap_or_default();
        Self { raw, entry, markers, wrapped }
    }

    /// Its jid, or empty without one.
    pub fn jid(&self) -> &str {
        self.entry.as_ref().and_then(|entry| entry["jid"].as_str()).unwrap_or_default()
    }

    /// What it lacks for Sidekiq's Web UI: a field, or the form of an object.
    pub fn lacks(&self) -> Option<&'static str> {
        let Some(Value::Object(entry)) = &self.entry else { return Some("object") };
        let is_string = |name: &str| entry.get(name).is_some_and(Value::is_string);
        if !is_string("class") {
            Some("class")
        } else if !entry.get("args").is_some_and(Value::is_array) {
            Some("args")
        } else if !is_string("jid") {
            Some("jid")
        } else {
            None
        }
    }

    /// Its beginning, for an assertion message.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.raw[..self.raw.len().min(80)]).into_owned()
    }
}

fn markers(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let found = text.match_indices(MARKER).filter_map(|(at, _)| text.get(at..at + MARKER.len() + 16));
    found.map(str::to_owned).collect()
}

/// Every string in a value, including decoded Base64.
fn strings(value: &Value) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = vec![value];
    while let Some(value) = rest.pop() {
        match value {
            Value::String(text) => found.push(text.clone().into_bytes()),
            Value::Array(values) => rest.extend(values),
            Value::Object(fields) => rest.extend(fields.values()),
            _ => {}
        }
    }
    let decoded: Vec<Vec<u8>> = found.iter().filter_map(|text| BASE64.decode(text).ok()).collect();
    found.extend(decoded);
    found
}
