//! Where a live Deployment differs from the desired one, as Kubernetes compares values.

use serde_json::Value;

use super::merge::{is_blank, is_named_list, item, name};
use crate::settings::quantity;

/// A field that differs from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Its path in the Deployment, such as `spec.replicas`.
    pub path: String,
    /// What it is; `none` when it is not there.
    pub live: String,
    /// What the configuration says; `none` when it no longer says anything.
    pub configured: String,
}

/// Where the live Deployment differs from the [`desired`](super::desired) one.
pub(in crate::builder) fn drift(live: &Value, desired: &Value) -> Vec<Drift> {
    let mut found = Vec::new();
    compare("spec", &live["spec"], &desired["spec"], &mut found);
    found
}

fn compare(path: &str, live: &Value, desired: &Value, found: &mut Vec<Drift>) {
    let is_object = |value: &Value| value.is_object() || value.is_null();
    let is_list = |value: &Value| is_named_list(value) || value.is_null();
    if live == desired || (is_blank(live) && is_blank(desired) && !is_in_map(path)) {
        return;
    }
    if is_object(live) && is_object(desired) {
        for key in keys(live, desired) {
            compare(&format!("{path}.{key}"), &live[key], &desired[key], found);
        }
    } else if is_list(live) && is_list(desired) {
        for own in names(live, desired) {
            let (live, desired) = (item(live, Some(own)), item(desired, Some(own)));
            let is_in_both = live.is_some() && desired.is_some();
            let [live, desired] = [live, desired].map(|one| one.map_or(Value::Null, |one| fields(one, is_in_both)));
            compare(&format!("{path}.{own}"), &live, &desired, found);
        }
    } else if !is_equal(path, live, desired) {
        found.push(Drift { path: path.to_owned(), live: show(live), configured: show(desired) });
    }
}

/// The keys of two objects: those of the second one first.
fn keys<'a>(live: &'a Value, desired: &'a Value) -> impl Iterator<Item = &'a str> {
    let of = |value: &'a Value| value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    of(desired).chain(of(live).filter(|key| desired.get(key).is_none()))
}

/// The names in two lists: those of the second one first.
fn names<'a>(live: &'a Value, desired: &'a Value) -> impl Iterator<Item = &'a str> {
    let of = |value: &'a Value| value.as_array().into_iter().flatten().filter_map(name);
    of(desired).chain(of(live).filter(|own| item(desired, Some(own)).is_none()))
}

/// What an item has besides its name. Of an item that is only in one list, the name itself when that is all.
fn fields(item: &Value, is_in_both: bool) -> Value {
    let mut fields = item.as_object().cloned().unwrap_or_default();
    let name = fields.remove("name");
    if !is_in_both && fields.values().all(is_blank) { name.unwrap_or_default() } else { Value::Object(fields) }
}

/// Whether a field is in a map of texts, where an empty one counts.
fn is_in_map(path: &str) -> bool {
    [".nodeSelector.", ".labels.", ".annotations.", ".matchLabels."].iter().any(|map| path.contains(map))
}

/// A list or value without the fields that Kubernetes omits.
fn without_blanks(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !is_blank(value));
            Value::Object(kept.map(|(key, value)| (key.clone(), without_blanks(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_blanks).collect(),
        other => other.clone(),
    }
}

/// Kubernetes writes `1000m` as `1`, and `1024Mi` as `1Gi`.
fn is_equal(path: &str, live: &Value, configured: &Value) -> bool {
    if !path.contains(".resources.") {
        return without_blanks(live) == without_blanks(configured);
    }
    match (live.as_str().and_then(quantity), configured.as_str().and_then(quantity)) {
        (Some(live), Some(configured)) => (live - configured).abs() <= configured.abs() * 1e-9,
        _ => live == configured,
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
