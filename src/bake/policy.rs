//! What a resolved definition may ask for.
//!
//! buildx's own check of files and entitlements is off in the progress mode that we use, so this check is the only one. Deny
//! by default: an unknown field is refused, since a newer buildx may give it a meaning. A refusal names the field's path, and
//! says whether the field is not allowed, not valid, or names something that does not exist.
//! Fields that a repository may not decide (names of images and caches, outputs, attestations) are replaced and reported.
//! Fields that reach for the host are refused. The meaning of a field decides, whatever its spelling.

mod arguments;
pub(super) mod attestations;
pub(super) mod dockerfile;
mod hosts;
mod image_name;
mod labels;
pub(super) mod near;
pub(super) mod paths;
mod references;
mod refusal;
mod resources;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::definition_file::folder;
use super::grants::Grants;
use super::print::Targets;
use super::{BakeError, BakeRequest, escape};
use crate::job::{Naming, Recipe, RepositoryFiles, is_for_any_host};
use crate::name::{MAX_TARGET_NAME, is_target_name};
use crate::reason::Reason;
use crate::secret::SecretBytes;
use crate::settings;

pub use refusal::Refusal;

/// Fields that affect only the build itself.
const HARMLESS: &[&str] =
    &["annotations", "description", "labels", "no-cache-filter", "platforms", "target", "ulimits", "shm-size"];

/// A definition that may be built.
#[derive(Debug, Default)]
pub(super) struct Validated {
    /// The targets, with absolute contexts and with outputs.
    pub(super) targets: Targets,
    /// Fields that were replaced, as notices for the customer.
    pub(super) notices: Vec<String>,
    /// The granted secrets, by their configured name, each with the file where targets find it. A definition can name one many
    /// times, in many targets.
    pub(super) secrets: BTreeMap<String, (PathBuf, SecretBytes)>,
    /// The caches that a build may export after it has ended, by target.
    pub(super) exports: BTreeMap<String, String>,
    /// The first field that only a local engine can build.
    pub(super) local: Option<Refusal>,
}

/// Checks a resolved definition. Its secrets will be written to the directory `secrets`.
pub(super) fn validate(
    targets: Targets,
    request: &BakeRequest<'_>,
    grants: &Grants<'_>,
    limits: &settings::Bake,
    secrets: &Path,
) -> Result<Validated, BakeError> {
    if targets.is_empty() {
        return Err(Refusal::invalid("target", "the definition has no targets").into());
    }
    if targets.len() > limits.max_targets {
        let message = format!("{} targets; at most {} are allowed", targets.len(), limits.max_targets);
        return Err(Refusal::not_allowed("target", message).into());
    }
    let names: Vec<String> = targets.keys().cloned().collect();
    let folder = folder(request);
    let mut validated = Validated::default();
    for (name, fields) in targets {
        if !is_target_name(&name) {
            let message = format!("expected a name of at most {MAX_TARGET_NAME} letters, digits, - and _");
            return Err(Refusal::invalid(format!("target.{name}"), message).into());
        }
        let mut rules = Rules {
            request,
            grants,
            limits,
            folder: &folder,
            names: &names,
            target: name,
            secrets,
            validated: &mut validated,
        };
        let fields = rules.target(fields)?;
        let name = rules.target;
        validated.targets.insert(name, fields);
    }
    for name in request.build.tagged().filter(|name| !validated.targets.contains_key(*name)) {
        validated.notices.push(format!("tags.{name}: not used: the job does not build this target"));
    }
    references::check_caches(&validated.targets, &validated.exports)?;
    // The platform may distinguish its own images by their digests.
    if request.build.push && repository_file(request).is_some() {
        references::check_tags(&validated.targets)?;
    }
    Ok(validated)
}

/// The rules applied to one target.
struct Rules<'a> {
    request: &'a BakeRequest<'a>,
    grants: &'a Grants<'a>,
    limits: &'a settings::Bake,
    /// The directory where relative contexts start.
    folder: &'a Path,
    names: &'a [String],
    target: String,
    secrets: &'a Path,
    validated: &'a mut Validated,
}

impl Rules<'_> {
    fn target(&mut self, mut fields: Map<String, Value>) -> Result<Map<String, Value>, BakeError> {
        fields.retain(|_, value| !value.is_null());
        self.translate_arguments(&mut fields)?;
        let context = fields.remove("context");
        let context = self.context(context.as_ref().and_then(Value::as_str).unwrap_or("."))?;
        let secrets = self.granted_secrets(fields.remove("secret"))?;
        self.settle_references(&mut fields)?;
        self.settle_attestations(&mut fields)?;
        self.settle_labels(&mut fields)?;
        self.drop_policies(&mut fields);
        // buildx adds an entitlement for it that is not in the file.
        if let Some(network) = fields.get("network") {
            self.field("network", network.clone())?;
        }
        let mut validated = Map::from_iter([("context".to_owned(), context.clone())]);
        let is_inline = fields.contains_key("dockerfile-inline");
        for (field, value) in fields {
            let value = match &*field {
                "dockerfile" => self.dockerfile(&value, &context, is_inline)?,
                _ => self.field(&field, value)?,
            };
            validated.insert(field, value);
        }
        if !secrets.is_empty() {
            validated.insert("secret".into(), secrets.into());
        }
        self.settle_arguments(&mut validated);
        if self.request.build.no_cache {
            validated.insert("no-cache".into(), json!(true));
        }
        if self.request.build.pull {
            validated.insert("pull".into(), json!(true));
        }
        Ok(validated)
    }

    /// The value to build with, or a refusal.
    fn field(&mut self, field: &str, value: Value) -> Result<Value, Refusal> {
        let refuse = |rules: &Self, message: &str| Err(rules.refusal(field, message));
        match field {
            "contexts" => self.named_contexts(value),
            // Decided before.
            "args" | "attest" | "tags" | "cache-from" | "cache-to" | "output" => Ok(value),
            "network" => match value.as_str() {
                Some("" | "default" | "none") => Ok(value),
                Some("host") if self.is_entitled("network.host") => Ok(value),
                _ => refuse(self, "expected default or none"),
            },
            "pull" | "no-cache" => Ok(value),
            "call" => match value.as_str() {
                Some("" | "build") => Ok(value),
                _ => refuse(self, "expected build"),
            },
            "ssh" if is_empty(&value) => Ok(value),
            "ssh" => refuse(self, "SSH keys and agents of the host are not allowed"),
            "entitlements" => {
                let entitled = |name: &Value| name.as_str().is_some_and(|name| self.is_entitled(name));
                if is_empty(&value) || value.as_array().is_some_and(|names| names.iter().all(entitled)) {
                    Ok(value)
                } else {
                    refuse(self, "entitlements are not allowed")
                }
            }
            "extra-hosts" => self.extra_hosts(value),
            "resources" => self.resources(value),
            "dockerfile-inline" => {
                let text = value.as_str().ok_or_else(|| self.invalid(field, "expected a string"))?;
                let checked = dockerfile::check(text.as_bytes());
                checked.map_err(|message| Refusal::new(Reason::DockerfileInvalid, self.path(field), message))?;
                Ok(value)
            }
            field if HARMLESS.contains(&field) => Ok(value),
            _ => refuse(self, "this field is not allowed"),
        }
    }

    /// Grants secrets by id. A file or variable in a definition would be the host's.
    fn granted_secrets(&mut self, value: Option<Value>) -> Result<Vec<Value>, BakeError> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
        let mut granted = Vec::new();
        for (i, secret) in self.list("secret", &value)?.iter().enumerate() {
            let field = format!("secret[{i}]");
            let has_source = secret.get("src").is_some() || secret.get("env").is_some();
            let id = secret.get("id").and_then(Value::as_str).ok_or_else(|| self.invalid(&field, "expected an id"))?;
            if is_for_any_host(id) {
                let message = format!("{id} would go to any git host; name it {id}.github.com");
                return Err(self.refusal(&field, message).into());
            }
            if has_source && !is_of_repository(self.request) {
                return Err(self.refusal(&field, "files and variables of the host are not allowed").into());
            }
            if self.grants.is_fork() {
                self.notice(&field, "a fork's build gets no build secrets");
                continue;
            }
            let Some(path) = self.granted(id)? else {
                let message = match has_source {
                    true => format!("files and variables of the host are not allowed, and no secret {id:?} is granted"),
                    false => format!("no secret {id:?} is granted to {}", self.request.build.account),
                };
                return Err(self.refusal(&field, message).into());
            };
            if has_source {
                self.notice(&field, &format!("replaced by the worker's secret {id}"));
            }
            granted.push(json!({"id": id, "src": path}));
        }
        Ok(granted)
    }

    /// The file of the secret with this id, which is read when first mentioned; `None` when it is not granted.
    fn granted(&mut self, id: &str) -> Result<Option<PathBuf>, BakeError> {
        let name = self.grants.name_of_secret(&self.target, id).to_owned();
        if let Some((path, _)) = self.validated.secrets.get(&name) {
            return Ok(Some(path.clone()));
        }
        let Some(secret) = self.grants.secret(&name)? else { return Ok(None) };
        let path = self.secrets.join(self.validated.secrets.len().to_string());
        self.validated.secrets.insert(name, (path.clone(), secret));
        Ok(Some(path))
    }

    /// Removes a repository's own policies: buildx would evaluate them in the worker's child. The worker disables all policies.
    fn drop_policies(&mut self, fields: &mut Map<String, Value>) {
        if is_of_repository(self.request) && fields.remove(escape::POLICY).is_some() {
            self.notice(escape::POLICY, "not used: the worker disables the policies of buildx");
        }
    }

    fn is_entitled(&self, entitlement: &str) -> bool {
        !self.grants.is_fork() && self.grants.policy.entitlements.iter().any(|known| known == entitlement)
    }

    /// Refuses a value that is not a list: buildx would interpret it in its own way.
    fn list<'a>(&self, field: &str, value: &'a Value) -> Result<&'a [Value], Refusal> {
        value.as_array().map(Vec::as_slice).ok_or_else(|| self.invalid(field, "expected a list"))
    }

    /// Of a field that the account may not use, or not with this value.
    fn refusal(&self, field: &str, message: impl AsRef<str>) -> Refusal {
        Refusal::not_allowed(self.path(field), message)
    }

    /// A refusal of a field that no account may write in this form.
    fn invalid(&self, field: &str, message: impl AsRef<str>) -> Refusal {
        Refusal::invalid(self.path(field), message)
    }

    fn notice(&mut self, field: &str, message: &str) {
        self.validated.notices.push(format!("{}: {message}", self.path(field)));
    }

    /// The path of a field in the definition.
    fn path(&self, field: &str) -> String {
        format!("target.{}.{field}", self.target)
    }
}

/// The repository's own files, if the definition comes from them and the worker names its images.
fn repository_file<'a>(request: &BakeRequest<'a>) -> Option<&'a RepositoryFiles> {
    match &request.build.recipe {
        Recipe::Files(files) if matches!(files.naming, Naming::Job(_)) => Some(files),
        _ => None,
    }
}

/// Whether the definition comes from the repository's own files. The job may name the images.
fn is_of_repository(request: &BakeRequest<'_>) -> bool {
    matches!(request.build.recipe, Recipe::Files(_))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests;
