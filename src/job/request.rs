//! A build request as Rails writes it: a JSON object, read into a [`BuildJob`]. Unknown fields are refused by path.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde_json::{Map, Value};

use super::git_ref::{self, GitRef};
use super::{
    Application, Asked, Build, BuildJob, Callback, Naming, Paths, Recipe, Repository, RepositoryFiles, Sha,
    SourceDateEpoch, Trust, bounded,
};
use crate::bounds;
use crate::field_error::FieldError;
use crate::name::{reference, target_name};
use crate::settings::Supersede;

/// Rails' id of a build.
#[derive(Clone, Debug)]
struct BuildId(Value);

/// Whether a value can be Rails' id of a build. It is returned even when the rest of the request is invalid.
pub fn is_build_id(value: &Value) -> bool {
    match value {
        Value::String(text) => text.len() <= bounds::NAME && BuildId::deserialize(value).is_ok(),
        _ => BuildId::deserialize(value).is_ok(),
    }
}

impl<'de> Deserialize<'de> for BuildId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Id;
        impl Visitor<'_> for Id {
            type Value = BuildId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an integer")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<BuildId, E> {
                if text.is_empty() {
                    return Err(E::invalid_value(Unexpected::Str(text), &"an id"));
                }
                Ok(BuildId(text.into()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<BuildId, E> {
                Ok(BuildId(number.into()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<BuildId, E> {
                Ok(BuildId(number.into()))
            }
        }
        deserializer.deserialize_any(Id)
    }
}

/// A build request as it is written. Optional fields may also be null, as Ruby writes them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRequest {
    build_id: Option<BuildId>,
    account: Option<String>,
    repository: Repository,
    installation_id: Option<u64>,
    sha: Sha,
    #[serde(rename = "ref")]
    git_ref: Option<String>,
    trust: Option<Trust>,
    application: Option<Application>,
    compose: Option<Paths>,
    bake: Option<Paths>,
    definition: Option<Map<String, Value>>,
    targets: Option<Vec<String>>,
    variables: Option<BTreeMap<String, String>>,
    tags: Option<BTreeMap<String, Vec<String>>>,
    default_branch: Option<String>,
    push: Option<bool>,
    no_cache: Option<bool>,
    pull: Option<bool>,
    provenance: Option<Asked>,
    sbom: Option<Asked>,
    source_date_epoch: Option<SourceDateEpoch>,
    builder: Option<String>,
    timeout_s: Option<u64>,
    /// Read where jobs are chosen, before the request (`sidekiq::tenant`).
    #[serde(rename = "priority")]
    _priority: Option<i64>,
    #[serde(rename = "supersede")]
    _supersede: Option<Supersede>,
    #[serde(rename = "supersede_key")]
    _supersede_key: Option<String>,
    callback: Option<Callback>,
}

impl BuildJob {
    /// Reads a build request.
    ///
    /// # Errors
    ///
    /// Names the path of the first field that is unknown, missing, of the wrong type or out of range.
    pub fn parse(request: &Value) -> Result<Self, FieldError> {
        bounded::check(request)?;
        let written: WrittenRequest = serde_path_to_error::deserialize(request)
            .map_err(|error| FieldError::new(error.path().to_string(), plain(&error.inner().to_string())))?;
        let job = written.into_job()?;
        job.build.check()?;
        job.callback.as_ref().map_or(Ok(()), Callback::check)?;
        Ok(job)
    }
}

/// Endings of the paths of compose files.
const COMPOSE: [&str; 2] = [".yml", ".yaml"];

/// Endings of the paths of files that bake reads. With `bake`, it reads compose files too.
const BAKE: [&str; 4] = [".hcl", ".json", ".yml", ".yaml"];

/// Files of the repository that buildx reads. Compose reads its files in the directory of the first one, bake in the root.
fn repository_files(
    field: &str,
    Paths(paths): Paths,
    tags: BTreeMap<String, Vec<String>>,
) -> Result<Recipe, FieldError> {
    let is_compose = field == "compose";
    let endings = if is_compose { &COMPOSE[..] } else { &BAKE };
    if paths.is_empty() {
        return Err(FieldError::new(field, "expected at least one path"));
    }
    for path in &paths {
        let is_inside = path.split('/').all(|part| !matches!(part, "" | "." | ".." | "-"));
        if !is_inside || !endings.iter().any(|ending| path.ends_with(ending)) {
            let message =
                format!("expected the path of a file in the repository that ends in {}", endings.join(" or "));
            return Err(FieldError::new(field, format!("{message}, found {path:?}")));
        }
    }
    let directory = paths[0].rsplit_once('/').filter(|_| is_compose).map_or("", |(directory, _)| directory).to_owned();
    Ok(Recipe::Files(RepositoryFiles { paths, directory, naming: Naming::Job(by_target(tags)?) }))
}

/// The tags by the names that bake gives to targets.
fn by_target(tags: BTreeMap<String, Vec<String>>) -> Result<BTreeMap<String, Vec<String>>, FieldError> {
    let mut of_targets = BTreeMap::new();
    for (name, tags) in tags {
        let path = format!("tags.{name}");
        for (i, tag) in tags.iter().enumerate() {
            reference::check_tag(tag).map_err(|message| FieldError::new(format!("{path}[{i}]"), message))?;
        }
        let target = target_name(&name);
        if of_targets.insert(target.clone(), tags).is_some() {
            return Err(FieldError::new(path, format!("another name has the tags of the same target {target}")));
        }
    }
    Ok(of_targets)
}

impl WrittenRequest {
    fn into_job(self) -> Result<BuildJob, FieldError> {
        let tags = self.tags.unwrap_or_default();
        let has_file = self.compose.is_some() || self.bake.is_some();
        if !has_file && !tags.is_empty() {
            return Err(FieldError::new(
                "tags",
                "only allowed with compose or bake; application and definition set tags themselves",
            ));
        }
        let recipe = match (self.application, self.definition, self.compose, self.bake) {
            (Some(application), None, None, None) => Recipe::Application(application),
            (None, Some(definition), None, None) => Recipe::Inline(Value::Object(definition).to_string()),
            (None, None, Some(paths), None) => repository_files("compose", paths, tags)?,
            (None, None, None, Some(paths)) => repository_files("bake", paths, tags)?,
            _ => return Err(FieldError::new(".", "expected exactly one of application, compose, bake and definition")),
        };
        let branch_or_tag = self.git_ref.as_deref().map(GitRef::parse).transpose()?.flatten();
        let (trust, notice) = git_ref::trust(self.trust, self.git_ref.as_deref(), branch_or_tag.as_ref());
        let build = Build {
            account: self.account.unwrap_or_else(|| self.repository.owner.clone()),
            repository: self.repository,
            trust,
            recipe,
            targets: self.targets.unwrap_or_default(),
            variables: self.variables.unwrap_or_default(),
            branch: branch_or_tag.as_ref().and_then(GitRef::branch).map(str::to_owned),
            default_branch: self.default_branch,
            push: self.push.unwrap_or(true),
            no_cache: self.no_cache.unwrap_or(false),
            pull: self.pull.unwrap_or(false),
            provenance: self.provenance,
            sbom: self.sbom,
            source_date_epoch: self.source_date_epoch,
            builder: self.builder,
            timeout: self.timeout_s.map(Duration::from_secs),
        };
        Ok(BuildJob {
            build_id: self.build_id.map(|id| id.0),
            installation_id: self.installation_id,
            sha: self.sha,
            git_ref: self.git_ref,
            branch_or_tag,
            build,
            callback: self.callback,
            notices: notice.into_iter().collect(),
        })
    }
}

/// serde's message, with the expected type before the found one.
pub(super) fn plain(message: &str) -> String {
    let swapped = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.split_once(", expected "))
        .map(|(found, expected)| format!("expected {expected}, found {found}"));
    swapped.unwrap_or_else(|| message.to_owned())
}
