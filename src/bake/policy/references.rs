//! Tags, caches and outputs of targets.
//!
//! The platform's own definitions choose them. In a repository's file they are replaced. Outputs are always the worker's.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::image_name::ImageName;
use super::{Refusal, Rules, is_empty, is_of_repository, list, repository_file};
use crate::bake::print::Targets;
use crate::name::reference;

const CACHES_OF_WORKER: &str = "ignored: the worker sets caches";

const NO_CACHE_OF_FORKS: &str = "a fork's build writes no cache";

impl Rules<'_> {
    /// Decides tags, caches and outputs of a target.
    pub(super) fn settle_references(&mut self, target: &mut Map<String, Value>) -> Result<(), Refusal> {
        let is_file = repository_file(self.request).is_some();
        let output = target.remove("output").unwrap_or_default();
        if !is_empty(&output) && !is_of_repository(self.request) {
            self.check_outputs(&output)?;
        }
        let leaves_nothing = !is_empty(&output) && list(&output).iter().all(leaves_no_image);
        if is_file {
            self.replace_tags(target, leaves_nothing);
            self.replace_caches(target);
        } else {
            if is_of_repository(self.request) {
                self.drop_other_caches(target);
            }
            self.check_cache("cache-from", target)?;
            self.check_cache("cache-to", target)?;
            self.add_caches(target);
        }
        if is_of_repository(self.request) && leaves_nothing && !list(&output).iter().all(is_cache_only) {
            self.notice("output", "not written: only images leave the builder");
        }
        // A fork writes no cache that others read.
        if self.grants.is_fork() && target.remove("cache-to").is_some_and(|theirs| !is_empty(&theirs)) {
            self.notice("cache-to", NO_CACHE_OF_FORKS);
        }
        self.check_tags(target)?;
        if leaves_nothing {
            target.insert("output".into(), json!([{"type": "cacheonly"}]));
        } else if self.request.build.push {
            if target.get("tags").is_none_or(is_empty) {
                let refusal = match is_file && self.grants.is_fork() {
                    true => self.refusal("tags", "a fork's build pushes only the tags that the job lists"),
                    false => self.invalid("tags", "expected at least one tag, since the image is pushed"),
                };
                return Err(refusal);
            }
            target.insert("output".into(), json!([{"type": "registry"}]));
        }
        Ok(())
    }

    fn replace_tags(&mut self, target: &mut Map<String, Value>, leaves_nothing: bool) {
        let theirs = target.remove("tags").unwrap_or_default();
        if leaves_nothing {
            if self.grants.tags_of_job(&self.target).is_some_and(|tags| !tags.is_empty()) {
                self.notice("tags", "not used: no image of this target leaves the builder");
            }
            return;
        }
        let tags = self.grants.tags(&self.target);
        let names: Vec<&str> = list(&theirs).iter().filter_map(Value::as_str).collect();
        let is_same = names.iter().map(|name| ImageName::parse(name)).eq(tags.iter().map(|tag| ImageName::parse(tag)));
        if tags.is_empty() && !is_empty(&theirs) {
            self.notice("tags", &format!("{} ignored: the worker names images", names.join(", ")));
        } else if !is_empty(&theirs) && !is_same {
            self.notice("tags", &format!("set to {} in place of {}", tags.join(", "), names.join(", ")));
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

    /// Drops caches that would be the host's, or a service's that builds have no credentials for.
    fn drop_other_caches(&mut self, target: &mut Map<String, Value>) {
        for field in ["cache-from", "cache-to"] {
            let Some(Value::Array(entries)) = target.get_mut(field) else { continue };
            let n_before = entries.len();
            entries.retain(|entry| matches!(kind(entry), Some("inline" | "registry")));
            if entries.len() < n_before {
                self.notice(field, "ignored where it is not a cache in a registry");
            }
            if entries.is_empty() {
                target.remove(field);
            }
        }
    }

    /// Why a cache that the definition exports itself is dropped, if it is.
    pub(super) fn why_no_own_cache(&self) -> Option<&'static str> {
        let of_file = repository_file(self.request).map(|_| CACHES_OF_WORKER);
        if self.grants.is_fork() { Some(NO_CACHE_OF_FORKS) } else { of_file }
    }

    /// Adds the configured caches where the definition has none.
    fn add_caches(&mut self, target: &mut Map<String, Value>) {
        let has_none = ["cache-from", "cache-to"].iter().all(|field| target.get(*field).is_none_or(is_empty));
        if has_none && let Some(reference) = self.grants.cache_reference(&self.target) {
            target.insert("cache-from".into(), json!([{"type": "registry", "ref": reference}]));
            if self.grants.is_default_branch() {
                self.validated.exports.insert(self.target.clone(), reference);
            }
        }
        for (field, ours) in
            [("cache-from", self.grants.cache_from(&self.target)), ("cache-to", self.grants.cache_to(&self.target))]
        {
            if target.get(field).is_none_or(is_empty) && !ours.is_empty() {
                target.insert(field.into(), ours.into());
            }
        }
    }

    /// Refuses a tag that BuildKit would refuse only after it has built the image.
    fn check_tags(&self, target: &Map<String, Value>) -> Result<(), Refusal> {
        let Some(tags) = target.get("tags") else { return Ok(()) };
        for (i, tag) in self.list("tags", tags)?.iter().enumerate() {
            let refused = |message: String| self.invalid(&format!("tags[{i}]"), message);
            let text = tag.as_str().ok_or_else(|| refused("expected a string".into()))?;
            reference::check_tag(text).map_err(refused)?;
        }
        Ok(())
    }

    /// Refuses any other type: it would read or write the host, or use its credentials.
    fn check_cache(&self, field: &str, target: &Map<String, Value>) -> Result<(), Refusal> {
        let Some(value) = target.get(field) else { return Ok(()) };
        for (i, entry) in self.list(field, value)?.iter().enumerate() {
            let path = format!("{field}[{i}]");
            match kind(entry) {
                Some("inline") => {}
                Some("registry") => {
                    let text = entry.get("ref").and_then(Value::as_str).unwrap_or_default();
                    reference::check_reference(text).map_err(|message| self.invalid(&path, message))?;
                }
                _ => {
                    let message = "expected a cache in a registry (type=registry or type=inline)";
                    return Err(self.refusal(&path, message));
                }
            }
        }
        Ok(())
    }

    /// Refuses outputs other than images: `local`, `tar` and `oci` write to the host.
    fn check_outputs(&self, value: &Value) -> Result<(), Refusal> {
        for (i, output) in self.list("output", value)?.iter().enumerate() {
            if !matches!(kind(output), Some("image" | "registry" | "cacheonly")) || output.get("dest").is_some() {
                return Err(self.refusal(
                    &format!("output[{i}]"),
                    "expected an image in a registry (type=image or type=registry)",
                ));
            }
        }
        Ok(())
    }
}

/// Refuses a cache that two targets write, or that overwrites an image: only the last one would remain.
pub(super) fn check_caches(targets: &Targets, exports: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let images =
        image_names(targets, "tags").map(|(name, target, _)| (name, format!("target.{target}.tags"))).collect();
    let exports = exports.iter().map(|(target, text)| (ImageName::parse(text), &**target, &**text));
    let caches = image_names(targets, "cache-to").chain(exports).collect::<Vec<_>>();
    check_unique(images, &caches, "cache-to")?;
    check_unique(BTreeMap::new(), &caches, "cache-to")
}

/// Refuses an image that two targets write: configured tags are in lower case, names of targets need not be.
pub(super) fn check_tags(targets: &Targets) -> Result<(), Refusal> {
    check_unique(BTreeMap::new(), &image_names(targets, "tags").collect::<Vec<_>>(), "tags")
}

/// The image names in a field of all targets, each with its target and its text.
fn image_names<'a>(targets: &'a Targets, field: &'a str) -> impl Iterator<Item = (ImageName, &'a str, &'a str)> {
    let text = |entry: &'a Value| entry.as_str().or_else(|| entry.get("ref")?.as_str());
    let entries = targets.iter().flat_map(move |(name, target)| {
        target.get(field).map(list).unwrap_or_default().iter().map(move |entry| (name.as_str(), entry))
    });
    entries.filter_map(move |(name, entry)| Some((ImageName::parse(text(entry)?), name, text(entry)?)))
}

/// Refuses an image name of one target that another target already has.
fn check_unique(
    mut taken: BTreeMap<ImageName, String>,
    names: &[(ImageName, &str, &str)],
    field: &str,
) -> Result<(), Refusal> {
    for (name, target, text) in names {
        let mine = format!("target.{target}");
        match taken.get(name) {
            Some(other) if *other != mine => {
                let message = format!("{text} is also written by {other}; give each its own name");
                return Err(Refusal::invalid(format!("{mine}.{field}"), message));
            }
            _ => drop(taken.insert(name.clone(), mine)),
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

/// Whether an output creates files where buildx runs, or nothing.
fn leaves_no_image(output: &Value) -> bool {
    match kind(output) {
        // Without a destination it loads an image into the local engine, like `--load`. Many repositories' files have it.
        Some("docker") => output.get("dest").is_some(),
        kind => matches!(kind, Some("cacheonly" | "local" | "tar" | "oci")),
    }
}
