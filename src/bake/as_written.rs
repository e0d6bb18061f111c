//! Text that bake would change: it normalizes every text to Unicode's NFC, in JSON and in HCL, even one that an expression
//! makes (`cty.StringVal`). A compose file keeps its text, and buildx merges it with the definition.

use serde_json::{Map, Value};

use super::policy::Refusal;
use super::print::Targets;

/// The name of the compose file in a job's directory.
pub(super) const FILE: &str = "as-written.yml";

/// Fields of a target that a compose file can have, by their names there.
const TEXTS: [(&str, &str); 3] =
    [("context", "context"), ("dockerfile", "dockerfile"), ("dockerfile-inline", "dockerfile_inline")];
const MAPS: [(&str, &str); 3] = [("args", "args"), ("labels", "labels"), ("contexts", "additional_contexts")];

/// The targets without the text that bake might change, and the compose file with that text; `None` when there is none.
pub(super) fn split(targets: &Targets) -> Option<(Targets, String)> {
    let mut rest = targets.clone();
    let service = |(name, fields): (&String, &mut Map<String, Value>)| {
        let build = take(fields);
        (!build.is_empty()).then(|| format!("{}: {{\"build\": {{{}}}}}", quoted(name), build.join(", ")))
    };
    let services: Vec<String> = rest.iter_mut().filter_map(service).collect();
    (!services.is_empty()).then(|| (rest, format!("{{\"services\": {{{}}}}}\n", services.join(",\n"))))
}

/// The refusal of the first text that bake might change; `None` when there is none.
pub(super) fn refusal(targets: &Targets) -> Option<Refusal> {
    let mut fields = targets.iter().flat_map(|(name, fields)| fields.iter().map(move |field| (name, field)));
    let (target, (field, _)) = fields.find(|(_, (_, value))| is_any_changed(value))?;
    let message = "has text that buildx changes when it normalizes Unicode; write it in the form NFC";
    Some(Refusal::invalid(format!("target.{target}.{field}"), message))
}

/// Takes the text that bake might change: entries of a compose file's `build`.
fn take(fields: &mut Map<String, Value>) -> Vec<String> {
    let mut build = Vec::new();
    for (field, name) in TEXTS {
        if let Some(text) = fields.get(field).and_then(Value::as_str).filter(|text| is_changed(text)) {
            build.push(format!("{}: {}", quoted(name), literal(text)));
            fields.remove(field);
        }
    }
    for (field, name) in MAPS {
        let Some(Value::Object(entries)) = fields.get_mut(field) else { continue };
        let mut taken = Vec::new();
        entries.retain(|key, value| {
            let Some(text) = value.as_str().filter(|text| is_changed(key) || is_changed(text)) else { return true };
            taken.push(format!("{}: {}", quoted(key), literal(text)));
            false
        });
        if !taken.is_empty() {
            build.push(format!("{}: {{{}}}", quoted(name), taken.join(", ")));
        }
    }
    build
}

/// Whether normalization might change a text. It changes none of the characters before the first combining one.
fn is_changed(text: &str) -> bool {
    text.chars().any(|character| character >= '\u{300}')
}

fn is_any_changed(value: &Value) -> bool {
    match value {
        Value::String(text) => is_changed(text),
        Value::Array(values) => values.iter().any(is_any_changed),
        Value::Object(fields) => fields.iter().any(|(name, value)| is_changed(name) || is_any_changed(value)),
        _ => false,
    }
}

/// A value in YAML that compose does not interpolate.
fn literal(text: &str) -> String {
    quoted(&text.replace('$', "$$"))
}

/// A text in YAML's double quotes, in ASCII.
fn quoted(text: &str) -> String {
    let escaped = text.chars().fold(String::with_capacity(text.len()), |mut escaped, character| {
        match character {
            '"' | '\\' => escaped.extend(['\\', character]),
            ' '..='~' => escaped.push(character),
            other => escaped.push_str(&format!("\\U{:08x}", u32::from(other))),
        }
        escaped
    });
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_text_that_may_change_goes_into_the_compose_file() {
        let target = json!({
            "context": "/w/e\u{301}", "dockerfile": "Dockerfile", "tags": ["x"],
            "args": {"A": "caf\u{e9}", "B": "$\u{2126}\n\""}, "labels": {"k\u{301}": "v"},
        });
        let targets = serde_json::from_value::<Targets>(json!({"a": target, "b": {"context": "/w"}})).expect("objects");
        let (rest, compose) = split(&targets).expect("some text");
        let kept = json!({"dockerfile": "Dockerfile", "tags": ["x"], "args": {"A": "caf\u{e9}"}, "labels": {}});
        assert_eq!(json!(rest), json!({"a": kept, "b": {"context": "/w"}}));
        let build =
            r#""context": "/w/e\U00000301", "args": {"B": "$$\U00002126\U0000000a\""}, "labels": {"k\U00000301": "v"}"#;
        assert_eq!(compose, format!("{{\"services\": {{\"a\": {{\"build\": {{{build}}}}}}}}}\n"));
        let refused = refusal(&targets).expect("some text").to_string();
        assert!(refused.starts_with("target.a.context: has text that buildx changes"), "{refused}");
        assert!(split(&rest).is_none() && refusal(&rest).is_none());
    }
}
