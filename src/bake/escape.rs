//! bake evaluates every string in JSON as an HCL template, keys included. This module escapes and unescapes them.

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

/// Text that evaluates to `text`, in Unicode's NFC, to which HCL normalizes every text.
pub(super) fn literal(text: &str) -> String {
    let escaped = text.replace("${", "$${").replace("%{", "%%{");
    // HCL drops a byte order mark at the beginning.
    match escaped.strip_prefix('\u{feff}') {
        Some(rest) => format!(r#"${{"\ufeff"}}{rest}"#),
        None => escaped,
    }
}

/// Reverses [`literal`] as `--print` applies it to some fields.
fn plain(text: &str) -> String {
    text.replace("$${", "${").replace("%%{", "%{")
}

/// The field of buildx's own policies.
pub(super) const POLICY: &str = "policy";

/// The fields that `--print` escapes (buildx 0.29 to 0.36). It prints all others unescaped.
const PRINTED_ESCAPED: &[&str] = &["args", "labels", "annotations", "dockerfile-inline", "extra-hosts"];

/// The meaning of a printed target: its escaped fields unescaped.
pub(super) fn unescape(target: Map<String, Value>) -> Map<String, Value> {
    let unescaped = |name: String, value| {
        let value = if PRINTED_ESCAPED.contains(&name.as_str()) { map_texts(value, &plain) } else { value };
        (name, value)
    };
    target.into_iter().map(|(name, value)| unescaped(name, value)).collect()
}

/// The definition that evaluates to exactly these targets. It has no group: the command line names the targets.
///
/// `has_policies`: unless disabled, this buildx evaluates a `Dockerfile.rego` beside each Dockerfile.
pub(super) fn definition(targets: &BTreeMap<String, Map<String, Value>>, has_policies: bool) -> String {
    let policy = has_policies.then(|| json!([{"disabled": true}]));
    let targets = targets.iter().map(|(name, target)| (name.as_str(), Target(target, policy.as_ref())));
    let definition = BTreeMap::from([("target", BTreeMap::from_iter(targets))]);
    serde_json::to_string(&definition).expect("a value is JSON")
}

/// A target and its policy entry, serialized without a copy of its values.
struct Target<'a>(&'a Map<String, Value>, Option<&'a Value>);

impl Serialize for Target<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let own = self.0.iter().map(|(name, value)| (literal(name), Escaped(value)));
        let mut fields = serializer.serialize_map(None)?;
        for (name, value) in own {
            fields.serialize_entry(&name, &value)?;
        }
        if let Some(policy) = self.1 {
            fields.serialize_entry(POLICY, policy)?;
        }
        fields.end()
    }
}

/// A value with every string escaped, keys included.
struct Escaped<'a>(&'a Value);

impl Serialize for Escaped<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::String(text) => serializer.serialize_str(&literal(text)),
            Value::Array(values) => serializer.collect_seq(values.iter().map(Escaped)),
            Value::Object(fields) => {
                serializer.collect_map(fields.iter().map(|(name, value)| (literal(name), Escaped(value))))
            }
            other => other.serialize(serializer),
        }
    }
}

/// Applies `f` to every text that is not a key: `--print` prints keys unescaped.
pub(super) fn map_texts(value: Value, f: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(f(&text)),
        Value::Array(values) => values.into_iter().map(|value| map_texts(value, f)).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, map_texts(value, f))).collect(),
        other => other,
    }
}
