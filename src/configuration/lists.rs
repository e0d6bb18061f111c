//! Environment variables that are a list in JSON, such as `["a","b"]`.

use std::collections::BTreeMap;

use crate::field_error::FieldError;
use crate::json;

/// Lists by the dotted paths of their settings.
pub(super) type Lists = Vec<(String, Vec<config::Value>)>;

/// Separates the variables that are a list in JSON from all others.
///
/// # Errors
///
/// When a variable begins like a list and is not one of texts or numbers.
pub(super) fn split(variables: BTreeMap<String, String>) -> Result<(Lists, BTreeMap<String, String>), FieldError> {
    let is_list = |name: &str, text: &str| name.starts_with("SIDEBAKE__") && text.trim_start().starts_with('[');
    let (lists, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        variables.into_iter().partition(|(name, text)| is_list(name, text));
    let read = |(name, text): (String, String)| {
        let key = name.trim_start_matches("SIDEBAKE__").to_lowercase().replace("__", ".");
        let message = "not a list of texts or numbers; write a,b or [\"a\",\"b\"]";
        items(&text).map(|items| (key, items)).ok_or_else(|| FieldError::new(name, message))
    };
    Ok((lists.into_iter().map(read).collect::<Result<_, _>>()?, others))
}

fn items(text: &str) -> Option<Vec<config::Value>> {
    let items: Vec<serde_json::Value> = json::read(text.as_bytes()).ok()?;
    let value = |item: serde_json::Value| match item {
        serde_json::Value::String(text) => Some(config::Value::from(text)),
        serde_json::Value::Number(number) => number.as_i64().map(config::Value::from),
        _ => None,
    };
    items.into_iter().map(value).collect()
}
