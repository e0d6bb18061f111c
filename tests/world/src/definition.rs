//! JSON bake definitions, resolved as `docker-buildx bake --print` (0.29) resolves them in the simple case.
//!
//! Evaluates only the escapes `$${` and `%%{`. Refuses templates, variables, inheritance and matrices.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// Fields whose values keep their escapes in the output.
const ESCAPED: [&str; 5] = ["args", "labels", "annotations", "dockerfile-inline", "extra-hosts"];

/// Lists that the output shows as objects although a definition may write them as `key=value,…`.
const CSV: [&str; 6] = ["attest", "cache-from", "cache-to", "secret", "ssh", "output"];

/// The fields of a target in the order of buildx. Ignores others, as buildx does.
const FIELDS: [&str; 25] = [
    "description",
    "annotations",
    "attest",
    "context",
    "contexts",
    "dockerfile",
    "dockerfile-inline",
    "args",
    "labels",
    "tags",
    "cache-from",
    "cache-to",
    "target",
    "secret",
    "ssh",
    "platforms",
    "output",
    "pull",
    "no-cache",
    "network",
    "no-cache-filter",
    "shm-size",
    "ulimits",
    "entitlements",
    "extra-hosts",
];

/// The output of `--print` for the requested targets (`default` when none), or the text after `ERROR: `.
pub fn resolve(text: &str, asked: &[String]) -> Result<Value, String> {
    let definition: Value = serde_json::from_str(text)
        .map_err(|error| format!("the scripted docker-buildx reads JSON definitions only: {error}"))?;
    let definition = evaluate(definition)?;
    let asked = if asked.is_empty() { &["default".to_owned()] } else { asked };
    let mut groups = BTreeMap::new();
    let mut targets = BTreeSet::new();
    for name in asked {
        collect(&definition, name, &mut groups, &mut targets)?;
    }
    let built = targets.clone();
    for name in &built {
        add_linked(&definition, name, &mut targets)?;
    }
    // Alone, `default` is its own group. A longer request becomes the group's content.
    if asked != ["default"] || !groups.contains_key("default") {
        groups.insert("default".into(), json!({"targets": asked}));
    }
    let mut printed = Map::new();
    for name in &targets {
        printed.insert(name.clone(), print(&definition["target"][name], !built.contains(name))?);
    }
    Ok(json!({"group": groups, "target": printed}))
}

/// The output of `--list type=targets,format=json`, or the text after `ERROR: `.
pub fn list(text: &str) -> Result<Value, String> {
    let definition: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let names = |kind: &str| definition[kind].as_object().into_iter().flat_map(Map::keys).cloned().collect::<Vec<_>>();
    let groups = names("group").into_iter().map(|name| json!({"name": name, "group": true}));
    Ok(groups.chain(names("target").into_iter().map(|name| json!({"name": name}))).collect())
}

/// The requested targets: those of the group `default` of a printed definition.
pub fn built_targets(printed: &Value) -> Vec<String> {
    let mut targets = BTreeSet::new();
    let mut names = vec!["default".to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(name) = names.pop() {
        match printed["group"][&name]["targets"].as_array() {
            Some(members) if seen.insert(name.clone()) => {
                names.extend(members.iter().filter_map(|member| member.as_str().map(str::to_owned)));
            }
            _ if printed["target"].get(&name).is_some() => drop(targets.insert(name)),
            _ => {}
        }
    }
    targets.into_iter().collect()
}

fn collect(
    definition: &Value,
    name: &str,
    groups: &mut BTreeMap<String, Value>,
    targets: &mut BTreeSet<String>,
) -> Result<(), String> {
    if let Some(group) = definition["group"].get(name) {
        if groups.insert(name.into(), json!({"targets": group["targets"]})).is_none() {
            for member in group["targets"].as_array().into_iter().flatten() {
                collect(definition, member.as_str().unwrap_or(""), groups, targets)?;
            }
        }
        return Ok(());
    }
    if definition["target"].get(name).is_none() {
        return Err(format!("failed to find target {name}"));
    }
    targets.insert(name.into());
    Ok(())
}

fn add_linked(definition: &Value, name: &str, targets: &mut BTreeSet<String>) -> Result<(), String> {
    let contexts = definition["target"][name]["contexts"].as_object();
    for context in contexts.into_iter().flat_map(Map::values) {
        let Some(linked) = context.as_str().and_then(|context| context.strip_prefix("target:")) else {
            continue;
        };
        if definition["target"].get(linked).is_none() {
            return Err(format!("failed to find target {linked}"));
        }
        if targets.insert(linked.into()) {
            add_linked(definition, linked, targets)?;
        }
    }
    Ok(())
}

fn print(target: &Value, is_linked_only: bool) -> Result<Value, String> {
    for field in ["inherits", "matrix", "name"] {
        if target.get(field).is_some() {
            return Err(format!("the scripted docker-buildx does not imitate {field:?}"));
        }
    }
    let mut printed = Map::new();
    for field in FIELDS {
        let value = match (field, target.get(field)) {
            ("output", _) if is_linked_only => json!([{"type": "cacheonly"}]),
            ("context", value) => clean(value.and_then(Value::as_str).unwrap_or(".")).into(),
            ("dockerfile", None) => "Dockerfile".into(),
            (_, None) => continue,
            (_, Some(value)) if CSV.contains(&field) => objects(value),
            (_, Some(value)) if ESCAPED.contains(&field) => escape(value),
            (_, Some(value)) => value.clone(),
        };
        // The output omits empty lists and maps.
        let is_empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
        if !is_empty {
            printed.insert(field.into(), value);
        }
    }
    Ok(printed.into())
}

/// Go's `path.Clean`, for a context that is a path.
fn clean(context: &str) -> String {
    if context.contains("://") {
        return context.into();
    }
    let root = if context.starts_with('/') { "/" } else { "" };
    let mut parts: Vec<&str> = Vec::new();
    for part in context.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if !root.is_empty() => {}
            part => parts.push(part),
        }
    }
    let path = format!("{root}{}", parts.join("/"));
    if path.is_empty() { ".".into() } else { path }
}

fn objects(list: &Value) -> Value {
    let items = list.as_array().into_iter().flatten();
    items.map(|item| item.as_str().map_or_else(|| sorted(item), csv_object)).collect()
}

fn csv_object(csv: &str) -> Value {
    let pairs = csv.split(',').map(|pair| pair.split_once('=').unwrap_or(("type", pair)));
    sorted(&pairs.map(|(key, value)| (key.to_owned(), Value::from(value))).collect::<Map<_, _>>().into())
}

fn sorted(object: &Value) -> Value {
    let fields: BTreeMap<&String, &Value> = object.as_object().into_iter().flatten().collect();
    json!(fields)
}

/// Writes the escapes again, in values only. Omits an argument without a value.
fn escape(value: &Value) -> Value {
    match value {
        Value::String(text) => text.replace("${", "$${").replace("%{", "%%{").into(),
        Value::Array(items) => items.iter().map(escape).collect(),
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(set.map(|(key, value)| (key.clone(), escape(value))).collect())
        }
        other => other.clone(),
    }
}

/// Removes the escapes from every key and value, and refuses expressions.
fn evaluate(value: Value) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => unescape(&text)?.into(),
        Value::Array(items) => items.into_iter().map(evaluate).collect::<Result<_, _>>()?,
        Value::Object(fields) => {
            let evaluated = fields.into_iter().map(|(key, value)| Ok((unescape(&key)?, evaluate(value)?)));
            Value::Object(evaluated.collect::<Result<_, String>>()?)
        }
        other => other,
    })
}

fn unescape(text: &str) -> Result<String, String> {
    const MARKS: [(&str, char); 2] = [("$${", '$'), ("%%{", '%')];
    let mut unescaped = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if let Some((mark, sign)) = MARKS.iter().find(|(mark, _)| rest.starts_with(mark)) {
            unescaped.extend([*sign, '{']);
            rest = &rest[mark.len()..];
        } else if rest.starts_with("${") || rest.starts_with("%{") {
            return Err(format!("the scripted docker-buildx does not evaluate {text:?}"));
        } else {
            unescaped.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    Ok(unescaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `given` is the stdin of Debian's buildx 0.29.1; the expected text is the output of its `--print all`.
    #[test]
    fn a_definition_is_printed_as_buildx_0_29_printed_it() {
        let given = r#"{"group": {"all": {"targets": ["vote", "result"]}}, "target": {
            "vote": {"context": "./vote", "args": {"K": "v $${x} %%{y}", "N": null}, "labels": {"a$${k}": "b"},
                "tags": ["r/acme/vote:1", "r/acme/vote:$${b}"], "cache-from": ["type=registry,ref=r/c"],
                "cache-to": [{"type": "registry", "ref": "r/c", "mode": "max"}], "output": ["type=image,push=true"],
                "secret": ["id=npm,src=/s"], "platforms": ["linux/amd64"], "contexts": {"base": "target:base"},
                "attest": ["type=provenance,mode=min"], "pull": true, "no-cache": false, "dockerfile-inline": "FROM x"},
            "base": {"context": "/abs/base"},
            "result": {"dockerfile": "D", "bogus": 3, "output": ["type=registry"], "ssh": [], "description": "hi",
                "extra-hosts": {"a": "1.2.3.4"}, "annotations": ["x=$${y}"]}}}"#;
        let printed = json!({
            "group": {"all": {"targets": ["vote", "result"]}, "default": {"targets": ["all"]}},
            "target": {
                "base": {"context": "/abs/base", "dockerfile": "Dockerfile", "output": [{"type": "cacheonly"}]},
                "result": {"description": "hi", "annotations": ["x=$${y}"], "context": ".", "dockerfile": "D",
                    "output": [{"type": "registry"}], "extra-hosts": {"a": "1.2.3.4"}},
                "vote": {
                    "attest": [{"mode": "min", "type": "provenance"}], "context": "vote",
                    "contexts": {"base": "target:base"}, "dockerfile": "Dockerfile", "dockerfile-inline": "FROM x",
                    "args": {"K": "v $${x} %%{y}"}, "labels": {"a${k}": "b"}, "tags": ["r/acme/vote:1", "r/acme/vote:${b}"],
                    "cache-from": [{"ref": "r/c", "type": "registry"}],
                    "cache-to": [{"mode": "max", "ref": "r/c", "type": "registry"}],
                    "secret": [{"id": "npm", "src": "/s"}], "platforms": ["linux/amd64"],
                    "output": [{"push": "true", "type": "image"}], "pull": true, "no-cache": false},
            },
        });
        let resolved = resolve(given, &["all".into()]).unwrap();
        // As text, because the order of the fields is buildx's too.
        assert_eq!(resolved.to_string(), printed.to_string());
        assert_eq!(built_targets(&resolved), ["result", "vote"]);
    }

    #[test]
    fn a_missing_target_has_buildxs_text_and_an_expression_is_refused() {
        let resolve = |text| resolve(text, &[]).unwrap_err();
        assert_eq!(resolve(r#"{"target": {}}"#), "failed to find target default");
        assert!(
            resolve(r#"{"target": {"default": {"args": {"${upper(\"k\")}": "v"}}}}"#).contains("does not evaluate")
        );
    }
}
