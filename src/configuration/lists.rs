//! Environment variables that are a list: in JSON, such as `["a","b"]`, or of queues, such as `a,2,b`.

use std::collections::BTreeMap;

use crate::field_error::FieldError;
use crate::json;

/// The end of the names of variables that list queues.
const QUEUES: &str = "__QUEUES";

/// Lists by the dotted paths of their settings.
pub(super) type Lists = Vec<(String, Vec<config::Value>)>;

/// Separates the variables that are such a list from all others.
///
/// # Errors
///
/// When a variable begins like a list and is not one of texts or numbers.
pub(super) fn split(variables: BTreeMap<String, String>) -> Result<(Lists, BTreeMap<String, String>), FieldError> {
    let is_json = |text: &str| text.trim_start().starts_with('[');
    let is_list = |name: &str, text: &str| name.starts_with("SIDEBAKE__") && (is_json(text) || name.ends_with(QUEUES));
    let (lists, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        variables.into_iter().partition(|(name, text)| is_list(name, text));
    let read = |(name, text): (String, String)| {
        let key = name.trim_start_matches("SIDEBAKE__").to_lowercase().replace("__", ".");
        let message = "not a list of texts or numbers; write a,b or [\"a\",\"b\"]";
        let items = if is_json(&text) { items(&text) } else { Some(queues(&text)) };
        items.map(|items| (key, items)).ok_or_else(|| FieldError::new(name, message))
    };
    Ok((lists.into_iter().map(read).collect::<Result<_, _>>()?, others))
}

/// Reads `NAME` and `NAME,WEIGHT`, separated by commas: a number is the weight of the name before it.
fn queues(text: &str) -> Vec<config::Value> {
    let mut queues: Vec<String> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let is_weight = part.parse::<u32>().is_ok();
        match queues.last_mut().filter(|last| is_weight && !last.contains(',')) {
            Some(name) => name.extend([",", part]),
            None => queues.push(part.to_owned()),
        }
    }
    queues.into_iter().map(config::Value::from).collect()
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
