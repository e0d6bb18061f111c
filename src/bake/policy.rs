//! What a resolved definition may ask for.
//!
//! buildx's own check of files and entitlements is off in the progress mode that we need, so this is the wall. Deny by
//! default: a field that is not listed here is refused, since a newer buildx may give it a meaning. Names the path of
//! what it refuses. Paths are judged after symbolic links.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Order;
use super::print::Targets;
use crate::job::{Recipe, Trust};
use crate::settings;

/// Something that is not allowed. The message begins with the path in the definition.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Refusal {
    path: String,
    message: String,
}

impl Refusal {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// Fields whose value is the author's own business: they reach the builder and nothing else.
const HARMLESS: &[&str] = &[
    "annotations",
    "args",
    "description",
    "dockerfile-inline",
    "labels",
    "no-cache-filter",
    "platforms",
    "target",
    "ulimits",
    "shm-size",
];

/// Checks a resolved definition; returns it with contexts made absolute and outputs set.
pub(super) fn police(targets: Targets, order: &Order<'_>, limits: &settings::Bake) -> Result<Targets, Refusal> {
    if targets.is_empty() {
        return Err(Refusal::new("target", "the definition has no target"));
    }
    if targets.len() > limits.max_targets {
        let message = format!("{} targets, at most {} are allowed", targets.len(), limits.max_targets);
        return Err(Refusal::new("target", message));
    }
    let names: Vec<String> = targets.keys().cloned().collect();
    let police_one = |(name, fields): (String, Map<String, Value>)| {
        if !crate::job::is_target_name(&name) {
            return Err(Refusal::new(
                format!("target.{name}"),
                "the name may have letters, digits, - and _, and begins with none of - and .",
            ));
        }
        let rules = Rules { order, names: &names, path: format!("target.{name}") };
        Ok((name, rules.target(fields)?))
    };
    targets.into_iter().map(police_one).collect()
}

struct Rules<'a> {
    order: &'a Order<'a>,
    names: &'a [String],
    path: String,
}

impl Rules<'_> {
    fn target(&self, fields: Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
        let context = self.context(fields.get("context").and_then(Value::as_str).unwrap_or("."))?;
        let is_cache_only = is_cache_only(&fields);
        let mut policed = Map::new();
        for (field, value) in fields {
            let value = self.field(&field, value, &context)?;
            policed.insert(field, value);
        }
        if self.order.build.trust == Trust::Fork {
            // A fork writes no cache that others read.
            policed.remove("cache-to");
        }
        policed.insert("context".into(), json!(context));
        self.settle_output(&mut policed, is_cache_only)?;
        Ok(policed)
    }

    /// The value to build with, or why not.
    fn field(&self, field: &str, value: Value, context: &Path) -> Result<Value, Refusal> {
        let refuse = |message: &str| Err(Refusal::new(format!("{}.{field}", self.path), message));
        match field {
            "context" => Ok(value),
            "dockerfile" => self.dockerfile(value, context),
            "contexts" => self.named_contexts(value),
            "tags" => Ok(value),
            "cache-from" | "cache-to" => self.cache(field, value),
            "output" => self.output(value),
            "network" => match value.as_str() {
                Some("" | "default" | "none") => Ok(value),
                _ => refuse("only default and none are allowed"),
            },
            "pull" | "no-cache" => Ok(value),
            "call" => match value.as_str() {
                Some("" | "build") => Ok(value),
                _ => refuse("only build is allowed"),
            },
            "secret" => refuse("build secrets are not allowed"),
            "ssh" => refuse("keys and agents of the host are not allowed"),
            "entitlements" if is_empty(&value) => Ok(value),
            "entitlements" => refuse("entitlements are not allowed"),
            "extra-hosts" => Ok(value),
            "attest" => self.attest(value),
            field if HARMLESS.contains(&field) => Ok(value),
            _ => refuse("this field is not allowed"),
        }
    }

    /// A build context: a directory of the worktree, after symbolic links.
    fn context(&self, context: &str) -> Result<PathBuf, Refusal> {
        self.inside(&format!("{}.context", self.path), self.order.worktree, context)
    }

    fn named_contexts(&self, value: Value) -> Result<Value, Refusal> {
        let Value::Object(contexts) = value else {
            return Err(Refusal::new(format!("{}.contexts", self.path), "expected an object"));
        };
        let police_one = |(name, value): (String, Value)| {
            let path = format!("{}.contexts.{name}", self.path);
            let text = value.as_str().ok_or_else(|| Refusal::new(&path, "expected a string"))?;
            if let Some(target) = text.strip_prefix("target:") {
                let is_known = self.names.iter().any(|name| name == target);
                return if is_known { Ok((name, value)) } else { Err(Refusal::new(path, "there is no such target")) };
            }
            if text.starts_with("docker-image://") {
                return Ok((name, value));
            }
            let inside = self.inside(&path, self.order.worktree, text)?;
            Ok((name, json!(inside)))
        };
        contexts.into_iter().map(police_one).collect()
    }

    fn dockerfile(&self, value: Value, context: &Path) -> Result<Value, Refusal> {
        let path = format!("{}.dockerfile", self.path);
        let text = value.as_str().ok_or_else(|| Refusal::new(&path, "expected a string"))?;
        let file = context.join(text);
        if file.symlink_metadata().is_ok() {
            return self.inside(&path, context, text).map(|_| value);
        }
        // It is not there, and BuildKit says so better than we could; where it would be must be ours all the same.
        let root = self.root(&path)?;
        let folder = file.ancestors().find_map(|folder| folder.canonicalize().ok());
        let is_ours = !text.contains("://")
            && fold(&file).starts_with(&root)
            && folder.is_some_and(|folder| folder.starts_with(&root));
        if is_ours { Ok(value) } else { Err(Refusal::new(path, format!("{text:?} is outside of the repository"))) }
    }

    fn root(&self, path: &str) -> Result<PathBuf, Refusal> {
        let root = self.order.worktree.canonicalize();
        root.map_err(|error| Refusal::new(path, format!("the worktree cannot be read: {error}")))
    }

    /// A path below `base` that stays inside the worktree after symbolic links.
    fn inside(&self, path: &str, base: &Path, text: &str) -> Result<PathBuf, Refusal> {
        let is_remote = text.contains("://") || text.starts_with("git@") || text.starts_with("oci-layout:");
        if is_remote || text == "-" || text.starts_with("target:") {
            return Err(Refusal::new(path, format!("{text:?} is not a directory of the repository")));
        }
        let root = self.root(path)?;
        let found = base
            .join(text)
            .canonicalize()
            .map_err(|_| Refusal::new(path, format!("{text:?} is not in the repository")))?;
        if found.starts_with(&root) {
            Ok(found)
        } else {
            Err(Refusal::new(path, format!("{text:?} is outside of the repository")))
        }
    }

    /// What is not a list would be read by nobody here, and by buildx in its own way.
    fn list<'a>(&self, field: &str, value: &'a Value) -> Result<&'a [Value], Refusal> {
        value
            .as_array()
            .map(Vec::as_slice)
            .ok_or_else(|| Refusal::new(format!("{}.{field}", self.path), "expected a list"))
    }

    fn cache(&self, field: &str, value: Value) -> Result<Value, Refusal> {
        for (i, entry) in self.list(field, &value)?.iter().enumerate() {
            let path = format!("{}.{field}[{i}]", self.path);
            match entry.get("type").and_then(Value::as_str) {
                Some("inline" | "registry") if self.order.trusts_references() => {}
                Some("inline" | "registry") => {
                    return Err(Refusal::new(path, "the repository may not name cache references"));
                }
                _ => return Err(Refusal::new(path, "only caches in a registry are allowed")),
            }
        }
        Ok(value)
    }

    /// Outputs reach registries only: `local`, `tar` and `oci` write to the host.
    fn output(&self, value: Value) -> Result<Value, Refusal> {
        for (i, output) in self.list("output", &value)?.iter().enumerate() {
            let path = format!("{}.output[{i}]", self.path);
            let kind = output.get("type").and_then(Value::as_str);
            if !matches!(kind, Some("image" | "registry" | "cacheonly")) || output.get("dest").is_some() {
                return Err(Refusal::new(path, "only images in a registry are allowed"));
            }
            if !self.order.trusts_references() && output.get("name").is_some() {
                return Err(Refusal::new(path, "the repository may not name images"));
            }
        }
        Ok(value)
    }

    /// Provenance and SBOM by BuildKit itself; a generator of the author's choice would be an image of theirs.
    fn attest(&self, value: Value) -> Result<Value, Refusal> {
        for (i, attestation) in self.list("attest", &value)?.iter().enumerate() {
            let path = format!("{}.attest[{i}]", self.path);
            let kind = attestation.get("type").and_then(Value::as_str);
            if !matches!(kind, Some("provenance" | "sbom")) || attestation.get("generator").is_some() {
                return Err(Refusal::new(path, "only provenance and sbom of BuildKit's own are allowed"));
            }
        }
        Ok(value)
    }

    /// The worker decides whether images are pushed. What the definition keeps in the cache stays there.
    fn settle_output(&self, target: &mut Map<String, Value>, is_cache_only: bool) -> Result<(), Refusal> {
        target.remove("output");
        if is_cache_only {
            target.insert("output".into(), json!([{"type": "cacheonly"}]));
        } else if self.order.build.push {
            if target.get("tags").is_none_or(is_empty) {
                return Err(Refusal::new(
                    format!("{}.tags", self.path),
                    "expected at least one, since the images are pushed",
                ));
            }
            target.insert("output".into(), json!([{"type": "registry"}]));
        }
        if self.order.build.no_cache {
            target.insert("no-cache".into(), json!(true));
        }
        if self.order.build.pull {
            target.insert("pull".into(), json!(true));
        }
        Ok(())
    }
}

impl Order<'_> {
    /// The platform's own definitions name tags and caches; a repository's may not.
    fn trusts_references(&self) -> bool {
        !matches!(self.build.recipe, Recipe::File(_))
    }
}

/// The path without `.` and `..`, as text: for a file that is not there.
fn fold(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut folded, part| {
        match part {
            std::path::Component::ParentDir => drop(folded.pop()),
            std::path::Component::CurDir => {}
            other => folded.push(other),
        }
        folded
    })
}

fn is_cache_only(target: &Map<String, Value>) -> bool {
    target.get("output").is_some_and(|output| {
        let outputs = list(output);
        !outputs.is_empty()
            && outputs.iter().all(|output| output.get("type").and_then(Value::as_str) == Some("cacheonly"))
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Build, Repository};

    /// Polices one target called `t` in a worktree with `app/` (a Dockerfile in it) and a link `out` to `/etc`.
    fn police_target(target: Value, is_repositorys: bool) -> Result<Map<String, Value>, String> {
        police_as(Trust::Branch, target, is_repositorys)
    }

    fn police_as(trust: Trust, target: Value, is_repositorys: bool) -> Result<Map<String, Value>, String> {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(worktree.path().join("app")).expect("made");
        std::fs::write(worktree.path().join("app/Dockerfile"), "FROM scratch").expect("written");
        std::os::unix::fs::symlink("/etc", worktree.path().join("out")).expect("linked");
        std::os::unix::fs::symlink("/etc/passwd", worktree.path().join("app/Linked")).expect("linked");
        let recipe = if is_repositorys { Recipe::File("docker-bake.hcl".into()) } else { Recipe::Inline(Map::new()) };
        let build = Build {
            account: "acme".into(),
            repository: Repository::parse("acme/app").expect("a repository"),
            trust,
            recipe,
            targets: Vec::new(),
            push: false,
            no_cache: false,
            pull: false,
            builder: None,
            timeout: None,
        };
        let order = Order { build: &build, worktree: worktree.path() };
        let Value::Object(fields) = target else { panic!("a target is an object") };
        let targets = Targets::from([("t".into(), fields)]);
        let mut policed = police(targets, &order, &settings::Bake::default()).map_err(|refusal| refusal.to_string())?;
        Ok(policed.remove("t").expect("the target"))
    }

    fn refused(target: Value) -> String {
        police_target(target, false).expect_err("refused")
    }

    #[test]
    fn a_context_inside_the_worktree_becomes_absolute() {
        let policed = police_target(json!({"context": "./app", "dockerfile": "Dockerfile"}), false).expect("allowed");
        let context = policed["context"].as_str().expect("text");
        assert!(context.starts_with('/') && context.ends_with("/app"), "{context}");
    }

    #[test]
    fn what_reaches_out_of_the_worktree_is_refused_with_its_path() {
        assert_eq!(refused(json!({"context": ".."})), "target.t.context: \"..\" is outside of the repository");
        assert_eq!(refused(json!({"context": "/etc"})), "target.t.context: \"/etc\" is outside of the repository");
        assert_eq!(refused(json!({"context": "out"})), "target.t.context: \"out\" is outside of the repository");
        assert_eq!(refused(json!({"context": "nowhere"})), "target.t.context: \"nowhere\" is not in the repository");
        assert!(
            refused(json!({"context": "https://example.com/x.git"})).contains("is not a directory of the repository")
        );
        assert_eq!(
            refused(json!({"context": "app", "dockerfile": "../../../etc/passwd"})).split(':').next(),
            Some("target.t.dockerfile")
        );
        for missing in ["../../../../nowhere/Dockerfile", "http://127.0.0.1/Dockerfile", "cwd://../x"] {
            let message = refused(json!({"context": "app", "dockerfile": missing}));
            assert!(message.contains("outside of the repository"), "{message}");
        }
        assert!(police_target(json!({"context": "app", "dockerfile": "docker/Dockerfile"}), false).is_ok());
        assert!(refused(json!({"context": "app", "dockerfile": "Linked"})).contains("outside of the repository"));
        assert!(refused(json!({"context": "app", "contexts": {"x": "/"}})).starts_with("target.t.contexts.x: "));
        assert!(refused(json!({"context": "app", "contexts": {"x": "target:y"}})).contains("there is no such target"));
    }

    #[test]
    fn the_hosts_files_keys_network_and_entitlements_are_refused() {
        for (field, value) in [
            ("secret", json!([{"id": "x", "src": "/etc/passwd"}])),
            ("ssh", json!([{"id": "default"}])),
            ("network", json!("host")),
            ("entitlements", json!(["network.host"])),
            ("output", json!([{"type": "local", "dest": "/tmp/x"}])),
            ("output", json!([{"type": "tar", "dest": "-"}])),
            ("cache-to", json!([{"type": "local", "dest": "/tmp/x"}])),
            ("cache-from", json!([{"type": "local", "src": "/etc"}])),
            ("attest", json!([{"type": "sbom", "generator": "evil/image"}])),
            ("call", json!("check")),
            ("policy", json!([{"Files": ["x"]}])),
            ("a-field-of-the-future", json!(true)),
        ] {
            let message = refused(json!({"context": "app", field: value}));
            assert!(message.starts_with(&format!("target.t.{field}")), "{message}");
        }
    }

    #[test]
    fn a_fork_writes_no_cache() {
        let target = json!({"context": "app", "cache-to": [{"type": "registry", "ref": "x"}]});
        assert!(police_as(Trust::Branch, target.clone(), false).expect("allowed").contains_key("cache-to"));
        assert!(!police_as(Trust::Fork, target, false).expect("allowed").contains_key("cache-to"));
    }

    #[test]
    fn the_repository_may_not_name_images_or_caches() {
        let cache = json!({"context": "app", "cache-from": [{"type": "registry", "ref": "x"}]});
        assert!(police_target(cache.clone(), false).is_ok());
        assert!(police_target(cache, true).is_err());
        let output = json!({"context": "app", "output": [{"type": "registry", "name": "x"}]});
        assert!(police_target(output, true).is_err());
    }
}
