//! How JSON objects of Kubernetes are merged: objects by key, lists of named items by name.

use serde_json::{Map, Value};

/// Merges `upper` into `lower`: objects by key, lists of named items by name; replaces everything else.
pub(super) fn lay_over(lower: &mut Value, upper: Value) {
    let is_named = is_named_list(&upper);
    match (lower, upper) {
        (Value::Object(lower), Value::Object(upper)) => {
            if upper.contains_key("value") {
                // A variable has a value or a source.
                lower.remove("valueFrom");
            }
            for (key, value) in upper {
                lay_over(lower.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(lower), Value::Array(upper)) if is_named => {
            for item in upper {
                match lower.iter_mut().find(|other| name(other) == name(&item)) {
                    Some(other) => lay_over(other, item),
                    None => lower.push(item),
                }
            }
        }
        (lower, upper) => *lower = upper,
    }
}

/// Sets what was configured at `last`, and is not in `configured`, back to `base`, or removes it.
pub(super) fn withdraw(desired: &mut Value, last: &Value, configured: &Value, base: &Value) {
    match (desired, last) {
        (Value::Object(desired), Value::Object(last)) => {
            for (key, last) in last {
                let (now, base) = (&configured[key.as_str()], &base[key.as_str()]);
                let has_parts = last.is_object() || is_named_list(last);
                match desired.get_mut(key) {
                    // Kubernetes does not keep an empty value.
                    None if is_blank(last) && now.is_null() && !base.is_null() => {
                        desired.insert(key.clone(), base.clone());
                    }
                    None => {}
                    Some(part) if has_parts => {
                        withdraw(part, last, now, base);
                        if now.is_null() && is_empty(part) {
                            desired.remove(key);
                        }
                    }
                    Some(_) if !now.is_null() => {}
                    Some(part) if !base.is_null() => *part = base.clone(),
                    Some(_) => drop(desired.remove(key)),
                }
            }
        }
        (Value::Array(desired), Value::Array(last)) => {
            for last in last {
                let Some(at) = desired.iter().position(|item| name(item) == name(last)) else { continue };
                match (item(configured, name(last)), item(base, name(last))) {
                    (Some(now), base) => withdraw(&mut desired[at], last, now, base.unwrap_or(&Value::Null)),
                    (None, Some(base)) => desired[at] = base.clone(),
                    (None, None) => drop(desired.remove(at)),
                }
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// What differs, as a JSON merge patch (RFC 7396): lists are whole, and null removes a field.
pub(super) fn difference(live: &Value, desired: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (live, desired) else { return desired.clone() };
    let removed = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    let changed = changed.map(|(key, value)| (key.clone(), difference(&live[key.as_str()], value)));
    Value::Object(removed.chain(changed).collect())
}

/// Whether a value is a list of items with names, which are merged one by one.
pub(super) fn is_named_list(value: &Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty() && items.iter().all(|item| name(item).is_some()))
}

/// The item of a list that has this name.
pub(super) fn item<'a>(list: &'a Value, wanted: Option<&str>) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| name(item) == wanted)
}

pub(super) fn name(item: &Value) -> Option<&str> {
    item.get("name")?.as_str()
}

/// Whether Kubernetes omits a value: it keeps no empty list or text.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
