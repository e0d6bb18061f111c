//! Names of images and caches, and what becomes of what is built.
//!
//! The platform's own definitions say them; in a repository's file they are replaced, and outputs are the worker's everywhere.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::image_name::ImageName;
use super::{Refusal, Rules, is_empty, list, repository_file};
use crate::bake::print::Targets;

const CACHES_OF_WORKER: &str = "caches are the worker's";

const NO_CACHE_OF_FORKS: &str = "a fork's build writes no cache";

impl Rules<'_> {
    /// Settles tags, caches and outputs of a target.
    pub(super) fn settle_references(&mut self, target: &mut Map<String, Value>) -> Result<(), Refusal> {
        let is_file = repository_file(self.request).is_some();
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
        // A fork writes no cache that others read.
        if self.grants.is_fork() && target.remove("cache-to").is_some_and(|theirs| !is_empty(&theirs)) {
            self.notice("cache-to", NO_CACHE_OF_FORKS);
        }
        if leaves_nothing {
            target.insert("output".into(), json!([{"type": "cacheonly"}]));
        } else if self.request.build.push {
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
        let names: Vec<&str> = list(&theirs).iter().filter_map(Value::as_str).collect();
        let is_same = names.iter().map(|name| ImageName::parse(name)).eq(tags.iter().map(|tag| ImageName::parse(tag)));
        if !is_empty(&theirs) && !is_same && !leaves_nothing {
            self.notice("tags", &format!("{} in place of {}", tags.join(", "), names.join(", ")));
        }
        if !tags.is_empty() {
            target.insert("tags".into(), json!(tags));
        }
    }

    fn replace_caches(&mut self, target: &mut Map<String, Value>) {
        for field in ["cache-from", "cache-to"] {
            if target.remove(field).is_some_and(|theirs| !is_empty(&theirs)) {
                self.notice(field, CACHES_OF_WORKER);
            }
        }
        self.add_caches(target);
    }

    /// Why a cache that the definition itself writes is left out, if it is.
    pub(super) fn why_no_own_cache(&self) -> Option<&'static str> {
        let of_file = repository_file(self.request).map(|_| CACHES_OF_WORKER);
        if self.grants.is_fork() { Some(NO_CACHE_OF_FORKS) } else { of_file }
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

/// Refuses a cache that two targets write, or that is written over an image: only the last one would be left.
pub(super) fn check_caches(targets: &Targets) -> Result<(), Refusal> {
    let images = places(targets, "tags").map(|(place, target, _)| (place, format!("target.{target}.tags"))).collect();
    let caches = places(targets, "cache-to").collect::<Vec<_>>();
    check_places(images, &caches, "cache-to")?;
    check_places(BTreeMap::new(), &caches, "cache-to")
}

/// Refuses an image that two targets are: names that we give are in lower case, and those of targets need not be.
pub(super) fn check_tags(targets: &Targets) -> Result<(), Refusal> {
    check_places(BTreeMap::new(), &places(targets, "tags").collect::<Vec<_>>(), "tags")
}

/// What a field of all targets names, with the target and the text.
fn places<'a>(targets: &'a Targets, field: &'a str) -> impl Iterator<Item = (ImageName, &'a str, &'a str)> {
    let text = |entry: &'a Value| entry.as_str().or_else(|| entry.get("ref")?.as_str());
    let entries = targets.iter().flat_map(move |(name, target)| {
        target.get(field).map(list).unwrap_or_default().iter().map(move |entry| (name.as_str(), entry))
    });
    entries.filter_map(move |(name, entry)| Some((ImageName::parse(text(entry)?), name, text(entry)?)))
}

/// Refuses a place of one target that is taken by another.
fn check_places(
    mut taken: BTreeMap<ImageName, String>,
    places: &[(ImageName, &str, &str)],
    field: &str,
) -> Result<(), Refusal> {
    for (place, target, text) in places {
        let mine = format!("target.{target}");
        match taken.get(place) {
            Some(other) if *other != mine => {
                let message = format!("{text} is that of {other} as well: the last one wins");
                return Err(Refusal::new(format!("{mine}.{field}"), message));
            }
            _ => drop(taken.insert(place.clone(), mine)),
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
