//! Names of images and caches, and what becomes of what is built.
//!
//! The platform's own definitions say them; in a repository's file they are replaced, and outputs are the worker's everywhere.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Refusal, Rules, is_empty, list, repository_file};
use crate::bake::print::Targets;

impl Rules<'_> {
    /// Settles tags, caches and outputs of a target.
    pub(super) fn settle_references(&mut self, target: &mut Map<String, Value>) -> Result<(), Refusal> {
        let is_file = repository_file(self.order).is_some();
        let output = target.remove("output").unwrap_or_default();
        if !is_empty(&output) && !is_file {
            self.check_outputs(&output)?;
        }
        let leaves_nothing = !is_empty(&output) && list(&output).iter().all(leaves_no_image);
        if is_file {
            self.replace_tags(target, leaves_nothing);
            self.replace_caches(target);
            if leaves_nothing && !list(&output).iter().all(is_cache_only) {
                self.notice("output", "is not written: nothing but images leaves the builder");
            }
        } else {
            self.check_cache("cache-from", target)?;
            self.check_cache("cache-to", target)?;
            self.add_caches(target);
        }
        if self.grants.is_fork() {
            // A fork writes no cache that others read.
            target.remove("cache-to");
        }
        if leaves_nothing {
            target.insert("output".into(), json!([{"type": "cacheonly"}]));
        } else if self.order.build.push {
            if target.get("tags").is_none_or(is_empty) {
                let message = match is_file && self.grants.is_fork() {
                    true => "a fork's build pushes only what the job names",
                    false => "expected at least one, since the images are pushed",
                };
                return Err(self.refusal("tags", message));
            }
            target.insert("output".into(), json!([{"type": "registry"}]));
        }
        Ok(())
    }

    fn replace_tags(&mut self, target: &mut Map<String, Value>, leaves_nothing: bool) {
        let tags = if leaves_nothing { Vec::new() } else { self.grants.tags(&self.target) };
        let theirs = target.remove("tags").unwrap_or_default();
        if !is_empty(&theirs) && theirs != json!(tags) && !leaves_nothing {
            let names: Vec<&str> = list(&theirs).iter().filter_map(Value::as_str).collect();
            self.notice("tags", &format!("{} in place of {}", tags.join(", "), names.join(", ")));
        }
        if !tags.is_empty() {
            target.insert("tags".into(), json!(tags));
        }
    }

    fn replace_caches(&mut self, target: &mut Map<String, Value>) {
        for field in ["cache-from", "cache-to"] {
            if target.remove(field).is_some_and(|theirs| !is_empty(&theirs)) {
                self.notice(field, "caches are the worker's");
            }
        }
        self.add_caches(target);
    }

    /// The configuration's, where the definition has none.
    fn add_caches(&self, target: &mut Map<String, Value>) {
        for (field, ours) in
            [("cache-from", self.grants.cache_from(&self.target)), ("cache-to", self.grants.cache_to(&self.target))]
        {
            if target.get(field).is_none_or(is_empty) && !ours.is_empty() {
                target.insert(field.into(), ours.into());
            }
        }
    }

    /// Any other kind would read or write the host, or use its credentials.
    fn check_cache(&self, field: &str, target: &Map<String, Value>) -> Result<(), Refusal> {
        let Some(value) = target.get(field) else { return Ok(()) };
        for (i, entry) in self.list(field, value)?.iter().enumerate() {
            if !matches!(kind(entry), Some("inline" | "registry")) {
                return Err(self.refusal(&format!("{field}[{i}]"), "only caches in a registry are allowed"));
            }
        }
        Ok(())
    }

    /// Outputs reach registries only: `local`, `tar` and `oci` write to the host.
    fn check_outputs(&self, value: &Value) -> Result<(), Refusal> {
        for (i, output) in self.list("output", value)?.iter().enumerate() {
            if !matches!(kind(output), Some("image" | "registry" | "cacheonly")) || output.get("dest").is_some() {
                return Err(self.refusal(&format!("output[{i}]"), "only images in a registry are allowed"));
            }
        }
        Ok(())
    }
}

/// Two targets that leave their cache in one place leave only that of the last one.
pub(super) fn check_caches(targets: &Targets) -> Result<(), Refusal> {
    check_places(targets, "cache-to", |cache| cache.get("ref").and_then(Value::as_str))
}

/// The same of images: names that we give are in lower case, and those of targets need not be.
pub(super) fn check_tags(targets: &Targets) -> Result<(), Refusal> {
    check_places(targets, "tags", Value::as_str)
}

fn check_places(targets: &Targets, field: &str, place: fn(&Value) -> Option<&str>) -> Result<(), Refusal> {
    let mut taken = BTreeMap::new();
    for (name, target) in targets {
        for place in target.get(field).map(list).unwrap_or_default().iter().filter_map(place) {
            if let Some(other) = taken.insert(place, name).filter(|other| *other != name) {
                let message = format!("{place} is that of target.{other} as well: the last one wins");
                return Err(Refusal::new(format!("target.{name}.{field}"), message));
            }
        }
    }
    Ok(())
}

fn kind(entry: &Value) -> Option<&str> {
    entry.get("type").and_then(Value::as_str)
}

pub(super) fn is_cache_only(output: &Value) -> bool {
    kind(output) == Some("cacheonly")
}

/// Whether an output makes files where buildx runs, or nothing at all.
fn leaves_no_image(output: &Value) -> bool {
    match kind(output) {
        // Without a destination it is an image for the local engine, as `--load` makes: ordinary files have it.
        Some("docker") => output.get("dest").is_some(),
        kind => matches!(kind, Some("cacheonly" | "local" | "tar" | "oci")),
    }
}
