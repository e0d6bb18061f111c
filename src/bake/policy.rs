//! What a resolved definition may ask for.
//!
//! buildx's own check of files and entitlements is off in the progress mode that we need, so this is the wall. Deny by
//! default: a field that is not listed here is refused, since a newer buildx may give it a meaning. Names the path of
//! what it refuses. What a repository may not decide (names of images and caches, outputs) is replaced and said; what
//! reaches for the host is refused.

pub(super) mod paths;
mod references;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::grants::Grants;
use super::print::{Targets, folder};
use super::{BakeError, Order};
use crate::job::{Naming, Recipe, RepositoryFile, is_for_any_host};
use crate::secret::SecretBytes;
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
    "description",
    "dockerfile-inline",
    "labels",
    "no-cache-filter",
    "platforms",
    "target",
    "ulimits",
    "shm-size",
];

/// Build arguments that are no business of a repository's: which frontend reads its Dockerfile, and whose cached
/// directories its steps see.
const FRONTEND: &str = "BUILDKIT_SYNTAX";
const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// A definition that may be built.
#[derive(Debug, Default)]
pub(super) struct Policed {
    /// Contexts are absolute, and outputs set.
    pub(super) targets: Targets,
    /// What was replaced, for the person who asked for the build.
    pub(super) notices: Vec<String>,
    /// The secrets that are granted, with the file in which a target looks for each.
    pub(super) secrets: Vec<(PathBuf, SecretBytes)>,
}

/// Checks a resolved definition. Its secrets are to be put below `secrets`.
pub(super) fn police(
    targets: Targets,
    order: &Order<'_>,
    grants: &Grants<'_>,
    limits: &settings::Bake,
    secrets: &Path,
) -> Result<Policed, BakeError> {
    if targets.is_empty() {
        return Err(Refusal::new("target", "the definition has no target").into());
    }
    if targets.len() > limits.max_targets {
        let message = format!("{} targets, at most {} are allowed", targets.len(), limits.max_targets);
        return Err(Refusal::new("target", message).into());
    }
    let names: Vec<String> = targets.keys().cloned().collect();
    let folder = folder(order);
    let mut policed = Policed::default();
    for (name, fields) in targets {
        if !crate::job::is_target_name(&name) {
            let message = "the name may have letters, digits, - and _, and begins with none of - and .";
            return Err(Refusal::new(format!("target.{name}"), message).into());
        }
        let mut rules =
            Rules { order, grants, folder: &folder, names: &names, target: name, secrets, policed: &mut policed };
        let fields = rules.target(fields)?;
        let name = rules.target;
        policed.targets.insert(name, fields);
    }
    references::check_caches(&policed.targets)?;
    // The platform may tell its own images apart by their digests.
    if order.build.push && repository_file(order).is_some() {
        references::check_tags(&policed.targets)?;
    }
    Ok(policed)
}

/// The rules, for one target.
struct Rules<'a> {
    order: &'a Order<'a>,
    grants: &'a Grants<'a>,
    /// From which relative contexts start.
    folder: &'a Path,
    names: &'a [String],
    target: String,
    secrets: &'a Path,
    policed: &'a mut Policed,
}

impl Rules<'_> {
    fn target(&mut self, mut fields: Map<String, Value>) -> Result<Map<String, Value>, BakeError> {
        let context = fields.remove("context");
        let context = self.context(context.as_ref().and_then(Value::as_str).unwrap_or("."))?;
        let secrets = self.granted_secrets(fields.remove("secret"))?;
        self.settle_references(&mut fields)?;
        let mut policed = Map::from_iter([("context".to_owned(), context.clone())]);
        for (field, value) in fields {
            let value = self.field(&field, value, &context)?;
            policed.insert(field, value);
        }
        if !secrets.is_empty() {
            policed.insert("secret".into(), secrets.into());
        }
        self.settle_arguments(&mut policed);
        if self.order.build.no_cache {
            policed.insert("no-cache".into(), json!(true));
        }
        if self.order.build.pull {
            policed.insert("pull".into(), json!(true));
        }
        Ok(policed)
    }

    /// The value to build with, or why not.
    fn field(&self, field: &str, value: Value, context: &Value) -> Result<Value, Refusal> {
        let refuse = |message: &str| Err(self.refusal(field, message));
        match field {
            "dockerfile" => self.dockerfile(value, context),
            "contexts" => self.named_contexts(value),
            "args" | "tags" | "cache-from" | "cache-to" | "output" => Ok(value),
            "network" => match value.as_str() {
                Some("" | "default" | "none") => Ok(value),
                Some("host") if self.is_entitled("network.host") => Ok(value),
                _ => refuse("only default and none are allowed"),
            },
            "pull" | "no-cache" => Ok(value),
            "call" => match value.as_str() {
                Some("" | "build") => Ok(value),
                _ => refuse("only build is allowed"),
            },
            "ssh" if is_empty(&value) => Ok(value),
            "ssh" => refuse("keys and agents of the host are not allowed"),
            "entitlements" => {
                let entitled = |name: &Value| name.as_str().is_some_and(|name| self.is_entitled(name));
                if is_empty(&value) || value.as_array().is_some_and(|names| names.iter().all(entitled)) {
                    Ok(value)
                } else {
                    refuse("entitlements are not allowed")
                }
            }
            "extra-hosts" => Ok(value),
            "attest" => self.attest(value),
            field if HARMLESS.contains(&field) => Ok(value),
            _ => refuse("this field is not allowed"),
        }
    }

    /// Secrets by name only: where a definition says file or variable, it means the host's.
    fn granted_secrets(&mut self, value: Option<Value>) -> Result<Vec<Value>, BakeError> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
        let mut granted = Vec::new();
        for (i, secret) in self.list("secret", &value)?.iter().enumerate() {
            let field = format!("secret[{i}]");
            let has_source = secret.get("src").is_some() || secret.get("env").is_some();
            let id = secret.get("id").and_then(Value::as_str).ok_or_else(|| self.refusal(&field, "expected an id"))?;
            if is_for_any_host(id) {
                let message = format!("{id} would go to any git host: {id}.github.com goes to that one");
                return Err(self.refusal(&field, message).into());
            }
            if has_source && repository_file(self.order).is_none() {
                return Err(self.refusal(&field, "host files and variables are not allowed").into());
            }
            if self.grants.is_fork() {
                self.notice(&field, "a fork's build gets no build secrets");
                continue;
            }
            let Some(secret) = self.grants.secret(&self.target, id)? else {
                let message = match has_source {
                    true => format!("host files and variables are not allowed, and no secret {id:?} is granted"),
                    false => format!("no secret {id:?} is granted to {}", self.order.build.account),
                };
                return Err(self.refusal(&field, message).into());
            };
            if has_source {
                self.notice(&field, &format!("{id} is the worker's, and not a file or variable"));
            }
            let path = self.secrets.join(self.policed.secrets.len().to_string());
            granted.push(json!({"id": id, "src": path}));
            self.policed.secrets.push((path, secret));
        }
        Ok(granted)
    }

    /// Provenance and SBOM by BuildKit itself; a generator of the author's choice would be an image of theirs.
    fn attest(&self, value: Value) -> Result<Value, Refusal> {
        for (i, attestation) in self.list("attest", &value)?.iter().enumerate() {
            let kind = references::kind(attestation);
            if !matches!(kind, Some("provenance" | "sbom")) || attestation.get("generator").is_some() {
                let message = "only provenance and sbom of BuildKit's own are allowed";
                return Err(self.refusal(&format!("attest[{i}]"), message));
            }
        }
        Ok(value)
    }

    /// The build arguments that BuildKit itself reads.
    fn settle_arguments(&mut self, target: &mut Map<String, Value>) {
        let build = self.order.build;
        let namespace = format!("{}/{}", build.repository, build.trust.name());
        let ours = [(FRONTEND, self.grants.policy.frontend.clone()), (CACHE_NAMESPACE, Some(namespace))];
        let mut arguments = target.get("args").and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, value) in ours {
            let Some(value) = value else { continue };
            let theirs = arguments.insert(name.into(), json!(value));
            if theirs.is_some_and(|theirs| theirs != json!(value)) {
                self.notice(&format!("args.{name}"), &format!("is {value}"));
            }
        }
        target.insert("args".into(), arguments.into());
    }

    fn is_entitled(&self, entitlement: &str) -> bool {
        !self.grants.is_fork() && self.grants.policy.entitlements.iter().any(|known| known == entitlement)
    }

    /// What is not a list would be read by nobody here, and by buildx in its own way.
    fn list<'a>(&self, field: &str, value: &'a Value) -> Result<&'a [Value], Refusal> {
        value.as_array().map(Vec::as_slice).ok_or_else(|| self.refusal(field, "expected a list"))
    }

    fn refusal(&self, field: &str, message: impl Into<String>) -> Refusal {
        Refusal::new(self.path(field), message)
    }

    fn notice(&mut self, field: &str, message: &str) {
        self.policed.notices.push(format!("{}: {message}", self.path(field)));
    }

    /// Of a field in the definition.
    fn path(&self, field: &str) -> String {
        format!("target.{}.{field}", self.target)
    }
}

/// The repository's own file, when the definition comes from one and the worker names what it makes.
fn repository_file<'a>(order: &Order<'a>) -> Option<&'a RepositoryFile> {
    match &order.build.recipe {
        Recipe::File(file) if matches!(file.naming, Naming::Job(_)) => Some(file),
        _ => None,
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::job::{Build, Repository, Trust};

    /// Polices one target called `t` in a worktree with `app/` (a Dockerfile in it) and a link `out` to `/etc`.
    fn police_target(target: Value, is_repositorys: bool) -> Result<Map<String, Value>, String> {
        police_as(Trust::Branch, target, is_repositorys)
    }

    fn police_as(trust: Trust, target: Value, is_repositorys: bool) -> Result<Map<String, Value>, String> {
        let accounts = settings::Accounts::default();
        let policed = police_all(&accounts, trust, false, json!({"t": target}), is_repositorys)?;
        Ok(policed.targets["t"].clone())
    }

    fn police_all(
        accounts: &settings::Accounts,
        trust: Trust,
        push: bool,
        targets: Value,
        is_repositorys: bool,
    ) -> Result<Policed, String> {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(worktree.path().join("app")).expect("made");
        std::fs::write(worktree.path().join("app/Dockerfile"), "FROM scratch").expect("written");
        std::os::unix::fs::symlink("/etc", worktree.path().join("out")).expect("linked");
        std::fs::create_dir_all(worktree.path().join("app/a/b/c")).expect("made");
        std::fs::write(worktree.path().join("app/decoy"), "FROM scratch").expect("written");
        std::os::unix::fs::symlink("app/a/b/c", worktree.path().join("deep")).expect("linked");
        std::os::unix::fs::symlink("/etc/passwd", worktree.path().join("app/Linked")).expect("linked");
        let file = || RepositoryFile { path: "docker-bake.hcl".into(), naming: Naming::Job(BTreeMap::new()) };
        let recipe = if is_repositorys { Recipe::File(file()) } else { Recipe::Inline(Map::new()) };
        let repository = Repository::parse("acme/app").expect("a repository");
        let build = Build { push, ..Build::new(repository, trust, recipe) };
        let order = Order { build: &build, worktree: worktree.path(), sha: None };
        let targets: Targets = serde_json::from_value(targets).expect("a target is an object");
        let (grants, limits) = (Grants::new(accounts, &order), settings::Bake::default());
        let policed = police(targets, &order, &grants, &limits, Path::new("/secrets"));
        policed.map_err(|refusal| refusal.to_string())
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
        // Followed it is app/decoy; buildx folds it as text, and would read beside the worktree.
        let folded = refused(json!({"context": ".", "dockerfile": "deep/../../../decoy"}));
        assert!(folded.contains("outside of the repository"), "{folded}");
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
    fn what_the_repository_may_not_name_is_replaced() {
        let target = json!({
            "context": "app", "tags": ["evil/x"], "cache-from": [{"type": "local", "src": "/etc"}],
            "cache-to": [{"type": "registry", "ref": "x"}], "output": [{"type": "registry", "name": "x"}],
            "args": {"BUILDKIT_CACHE_MOUNT_NS": "another's"}
        });
        let policed = police_target(target, true).expect("allowed");
        assert_eq!(policed.keys().collect::<Vec<_>>(), ["context", "args"]);
        assert_eq!(policed["args"], json!({"BUILDKIT_CACHE_MOUNT_NS": "acme/app/branch"}));
        let local = json!({"context": "app", "output": [{"type": "local", "dest": "/tmp/x"}]});
        assert_eq!(police_target(local, true).expect("allowed")["output"], json!([{"type": "cacheonly"}]));
    }

    #[test]
    fn two_targets_that_would_have_one_name_are_refused_by_theirs() {
        let names = |name: &str| vec![settings::Pattern::new(format!("{name}/{{repository}}/{{target}}"))];
        let tagged = settings::Accounts { tags: names("r"), ..settings::Accounts::default() };
        let mut cached = settings::Accounts::default();
        cached.cache.to = names("type=registry,ref=r");
        let police = |accounts, push, targets: &Value, is_repositorys| {
            police_all(accounts, Trust::Branch, push, targets.clone(), is_repositorys).map(drop)
        };
        let target = json!({"context": "app", "tags": ["x"]});
        let two = json!({"Api": target, "api": target});
        let message = "r/app/api is that of target.Api as well: the last one wins";
        assert_eq!(police(&tagged, true, &two, true), Err(format!("target.api.tags: {message}")));
        assert_eq!(police(&tagged, false, &two, true), Ok(()), "nothing is pushed");
        assert_eq!(police(&tagged, true, &two, false), Ok(()), "the platform's own");
        for is_repositorys in [true, false] {
            let refused = police(&cached, false, &two, is_repositorys);
            assert_eq!(refused, Err(format!("target.api.cache-to: {message}")));
        }
        let unlike =
            json!({"Api": target, "web": target, "api": {"context": "app", "output": [{"type": "cacheonly"}]}});
        assert_eq!(police(&tagged, true, &unlike, true), Ok(()), "the third is nobody's image");
    }

    #[test]
    fn a_repository_chooses_its_frontend_unless_it_is_pinned_also_for_a_fork() {
        let pinned = settings::Policy { frontend: Some("ours".into()), ..settings::Policy::default() };
        let pinned = settings::Accounts { policy: pinned, ..settings::Accounts::default() };
        let target = json!({"t": {"context": "app", "args": {"BUILDKIT_SYNTAX": "theirs"}}});
        for (accounts, expected) in [(settings::Accounts::default(), "theirs"), (pinned, "ours")] {
            for trust in [Trust::Branch, Trust::Fork] {
                let policed = police_all(&accounts, trust, false, target.clone(), true).expect("allowed");
                assert_eq!(policed.targets["t"]["args"]["BUILDKIT_SYNTAX"], expected, "{trust:?}");
            }
        }
    }
}
