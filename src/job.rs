//! A build as Rails asks for it: the native object of the contract.
//!
//! Owns the fields, their checks and their error messages. Pure: it neither asks Rails nor knows Sidekiq. Unknown
//! fields are refused by name and path.

pub mod arguments;
mod bounded;
mod git_ref;
mod template;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::attestation::{Asked, Attestation, By};
use crate::name::{is_name, is_target_name};
use crate::settings::Queue;
use crate::{bounds, text};

pub use git_ref::GitRef;
pub use template::{Application, Image, ImageSecret, is_for_any_host};

/// Arguments that are not a build. The message begins with the path of the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct JobError {
    /// Such as `application.images[2].args.FOO`; `.` for the whole.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl JobError {
    /// Both are cut: names and values of the request are in them.
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        let short = |text: String| text::shown(&text, bounds::NOTICE);
        Self { path: short(path.into()), message: short(message.into()) }
    }
}

/// A build to do, as Rails asked for it.
#[derive(Clone, Debug)]
pub struct BuildJob {
    /// Rails' id: a string or a number, given back as it is.
    pub build_id: Option<Value>,
    /// The App's installation, when Rails knows it.
    pub installation_id: Option<u64>,
    /// The commit.
    pub sha: Sha,
    /// Where it was pushed, as the job says: given back, and never resolved.
    pub git_ref: Option<String>,
    /// The branch or tag that this names in full: GitHub is asked whether the commit is on it, unless the build is a fork's.
    pub branch_or_tag: Option<GitRef>,
    /// What to build from it.
    pub build: Build,
    /// The job that tells Rails.
    pub callback: Option<Callback>,
    /// What the job says and does not get, for the person who asked for the build.
    pub notices: Vec<String>,
}

/// What to build from a worktree, wherever that came from.
#[derive(Clone, Debug)]
pub struct Build {
    /// Whose build it is; the repository's owner unless the job says otherwise.
    pub account: String,
    /// The repository.
    pub repository: Repository,
    /// How far the commit's author is trusted.
    pub trust: Trust,
    /// Where the definition comes from.
    pub recipe: Recipe,
    /// Which of its targets; empty for its default group.
    pub targets: Vec<String>,
    /// Values of the definition's variables.
    pub variables: BTreeMap<String, String>,
    /// The branch of the commit, when the job's ref is one.
    pub branch: Option<String>,
    /// The repository's default branch, when Rails knows it.
    pub default_branch: Option<String>,
    /// Whether images are pushed.
    pub push: bool,
    /// Whether cached steps are run again.
    pub no_cache: bool,
    /// Whether base images are looked up again.
    pub pull: bool,
    /// Whether to attest how images are built; what the platform's own definition says of an image wins.
    pub provenance: Option<Asked>,
    /// Whether to attest what is in images; the same.
    pub sbom: Option<Asked>,
    /// Name of a builder in the configuration.
    pub builder: Option<String>,
    /// Limit for the bake.
    pub timeout: Option<Duration>,
}

/// Where the definition of a build comes from.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// The platform's Application Template.
    Application(Application),
    /// A bake definition that the platform made: the text of a JSON object, which takes less memory than its values.
    Inline(String),
    /// A file of the tree that buildx reads.
    File(RepositoryFile),
}

/// A compose file, or a bake file in HCL or JSON.
#[derive(Clone, Debug)]
pub struct RepositoryFile {
    /// From the root of the tree; neither absolute nor with `..`.
    pub path: String,
    /// Who says what its images are called.
    pub naming: Naming,
}

/// Who says what images of a repository's own definition are called.
#[derive(Clone, Debug)]
pub enum Naming {
    /// The file itself: whoever builds is its owner (`sidebake build`).
    File,
    /// The job: tags by target. Where it says nothing, the worker's configuration.
    Job(BTreeMap<String, Vec<String>>),
}

/// How far the author of a commit is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// A protected branch.
    Protected,
    /// Anybody who can push to the repository.
    #[default]
    Branch,
    /// Anybody: writes no cache that others read.
    Fork,
}

impl Trust {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Protected, Self::Branch, Self::Fork];

    /// As in the job.
    pub fn name(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Branch => "branch",
            Self::Fork => "fork",
        }
    }
}

/// The Sidekiq job that tells Rails.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callback {
    /// Ruby class.
    pub class: String,
    /// Queue without prefix.
    #[serde(default = "default_queue")]
    pub queue: String,
    /// When to tell.
    #[serde(default = "finished_only")]
    pub on: Vec<Moment>,
    /// Whether the class is an Active Job, which needs its own envelope.
    #[serde(default)]
    pub active_job: bool,
}

/// A moment that Rails can be told about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// An attempt began.
    Started,
    /// An attempt failed and there will be another.
    Retrying,
    /// The build is over.
    #[default]
    Finished,
}

impl Moment {
    /// As in the job.
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Retrying => "retrying",
            Self::Finished => "finished",
        }
    }
}

impl Callback {
    /// The callback of a native object that may otherwise be invalid: whoever made it wants to hear of that, too.
    pub fn find(native: &Value) -> Option<Self> {
        Self::deserialize(native.get("callback")?).ok().filter(|callback| callback.check().is_ok())
    }

    /// Whether Sidekiq can run the class and show the queue.
    fn check(&self) -> Result<(), JobError> {
        let is_class = self.class.starts_with(char::is_uppercase)
            && self.class.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':'))
            && self.class.len() <= bounds::NAME
            // Its arguments are a mailer's, a method's and those of a mail.
            && !self.class.starts_with("ActionMailer::");
        if !is_class {
            let message = format!("expected the name of a job class, found {:?}", self.class);
            return Err(JobError::new("callback.class", message));
        }
        if !Queue::is_name(&self.queue) {
            return Err(JobError::new(
                "callback.queue",
                format!("expected the name of a queue, found {:?}", self.queue),
            ));
        }
        Ok(())
    }

    /// Whether Rails wants to hear of this moment.
    pub fn wants(&self, moment: Moment) -> bool {
        self.on.contains(&moment)
    }
}

fn default_queue() -> String {
    "default".into()
}

fn finished_only() -> Vec<Moment> {
    vec![Moment::Finished]
}

/// `owner/name`, in the characters that GitHub allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    /// User or organization.
    pub owner: String,
    /// The name alone.
    pub name: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl Repository {
    /// Parses `owner/name`; nothing else may be in it, since it becomes part of URLs and paths.
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, name) = text.split_once('/')?;
        (is_name(owner) && is_name(name))
            .then(|| Self { owner: owner.to_owned(), name: name.strip_suffix(".git").unwrap_or(name).to_owned() })
    }

    /// Whether both are of one user or organization; GitHub does not mind upper and lower case.
    pub fn is_of_owner(&self, other: &Self) -> bool {
        self.owner.eq_ignore_ascii_case(&other.owner)
    }
}

impl<'de> Deserialize<'de> for Repository {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("expected owner/name, found {text:?}")))
    }
}

/// A full commit id: 40 lower-case hexadecimal digits. A shortened one would fetch nothing, without an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sha(String);

impl Sha {
    /// Parses a full id.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 40 && text.bytes().all(is_hex)).then(|| Self(text.to_owned()))
    }

    /// The 40 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Sha {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Sha {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom(format!("expected 40 lower-case hexadecimal digits, found {text:?}")))
    }
}

/// Rails' id of a build.
#[derive(Clone, Debug)]
struct BuildId(Value);

/// Whether a value can be Rails' id of a build. It is echoed even when the rest of the request is invalid.
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

/// The native object as it is written. Optional fields may also be null, as Ruby writes them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Native {
    build_id: Option<BuildId>,
    account: Option<String>,
    repository: Repository,
    installation_id: Option<u64>,
    sha: Sha,
    #[serde(rename = "ref")]
    git_ref: Option<String>,
    trust: Option<Trust>,
    application: Option<Application>,
    compose: Option<String>,
    bake: Option<String>,
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
    builder: Option<String>,
    timeout_s: Option<u64>,
    callback: Option<Callback>,
}

impl BuildJob {
    /// Reads the native object.
    ///
    /// # Errors
    ///
    /// Names the path of the first field that is unknown, missing, of the wrong type or out of range.
    pub fn parse(native: &Value) -> Result<Self, JobError> {
        bounded::check(native)?;
        let native: Native = serde_path_to_error::deserialize(native)
            .map_err(|error| JobError::new(error.path().to_string(), plain(&error.inner().to_string())))?;
        let job = native.into_job()?;
        job.build.check()?;
        job.callback.as_ref().map_or(Ok(()), Callback::check)?;
        Ok(job)
    }
}

impl Build {
    /// A build that is not pushed, with nothing chosen; the account is the repository's owner.
    pub fn new(repository: Repository, trust: Trust, recipe: Recipe) -> Self {
        Self {
            account: repository.owner.clone(),
            repository,
            trust,
            recipe,
            targets: Vec::new(),
            variables: BTreeMap::new(),
            branch: None,
            default_branch: None,
            push: false,
            no_cache: false,
            pull: false,
            provenance: None,
            sbom: None,
            builder: None,
            timeout: None,
        }
    }

    fn check(&self) -> Result<(), JobError> {
        if !is_name(&self.account) {
            return Err(JobError::new(
                "account",
                format!("expected letters, digits, - _ and ., found {:?}", self.account),
            ));
        }
        if let Some(name) = self.targets.iter().find(|name| !is_target_name(name)) {
            return Err(JobError::new("targets", format!("{name:?} is not a target name")));
        }
        if self.timeout.is_some_and(|limit| limit.is_zero() || limit > Duration::from_secs(24 * 60 * 60)) {
            return Err(JobError::new("timeout_s", "expected 1 to 86400"));
        }
        if let Some(name) = self.variables.keys().find(|name| !is_variable(name)) {
            return Err(JobError::new("variables", format!("{name:?} cannot be set")));
        }
        for attestation in Attestation::ALL {
            let refused = |message| JobError::new(attestation.name(), message);
            self.asked(attestation)
                .map_or(Ok(()), |asked| asked.check(attestation, By::Definition))
                .map_err(refused)?;
        }
        match &self.recipe {
            Recipe::Application(application) => application.check(self.push),
            Recipe::Inline(_) | Recipe::File(_) => Ok(()),
        }
    }

    /// What the job says of an attestation.
    pub fn asked(&self, attestation: Attestation) -> Option<&Asked> {
        match attestation {
            Attestation::Provenance => self.provenance.as_ref(),
            Attestation::Sbom => self.sbom.as_ref(),
        }
    }

    /// What the names of a pattern stand for.
    pub fn names(&self) -> [(&'static str, &str); 4] {
        let Repository { owner, name } = &self.repository;
        [("account", &self.account), ("owner", owner), ("repository", name), ("trust", self.trust.name())]
    }
}

/// Whether a definition's variable may have this name: one that buildx, its runtime or its loader reads would do more.
fn is_variable(name: &str) -> bool {
    const NOT_THEIRS: &[&str] =
        &["BUILDX_", "BUILDKIT_", "LD_", "GODEBUG", "GOTRACEBACK", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "TMPDIR"];
    let is_identifier = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins_well && name.chars().all(is_identifier) && !NOT_THEIRS.iter().any(|prefix| name.starts_with(prefix))
}

/// A file of the repository that buildx reads, by one of these endings.
fn repository_file(
    field: &str,
    path: String,
    endings: &[&str],
    tags: BTreeMap<String, Vec<String>>,
) -> Result<Recipe, JobError> {
    let is_inside = path.split('/').all(|part| !matches!(part, "" | "." | ".." | "-"));
    if !is_inside || !endings.iter().any(|ending| path.ends_with(ending)) {
        let message = format!("expected the path of a file in the repository that ends in {}", endings.join(" or "));
        return Err(JobError::new(field, format!("{message}, found {path:?}")));
    }
    Ok(Recipe::File(RepositoryFile { path, naming: Naming::Job(tags) }))
}

impl Native {
    fn into_job(self) -> Result<BuildJob, JobError> {
        let tags = self.tags.unwrap_or_default();
        let has_file = self.compose.is_some() || self.bake.is_some();
        if !has_file && !tags.is_empty() {
            return Err(JobError::new("tags", "are for a compose or bake file; others name their own"));
        }
        let recipe = match (self.application, self.definition, self.compose, self.bake) {
            (Some(application), None, None, None) => Recipe::Application(application),
            (None, Some(definition), None, None) => Recipe::Inline(Value::Object(definition).to_string()),
            (None, None, Some(path), None) => repository_file("compose", path, &[".yml", ".yaml"], tags)?,
            (None, None, None, Some(path)) => repository_file("bake", path, &[".hcl", ".json"], tags)?,
            _ => return Err(JobError::new(".", "expected one of application, compose, bake and definition")),
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

/// serde's message in the order that a person reads: what was expected, then what was there.
fn plain(message: &str) -> String {
    let swapped = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.split_once(", expected "))
        .map(|(found, expected)| format!("expected {expected}, found {found}"));
    swapped.unwrap_or_else(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn native() -> Value {
        json!({
            "build_id": 42, "account": "acme", "repository": "acme/voting-app", "installation_id": 123,
            "sha": "0123456789abcdef0123456789abcdef01234567", "ref": "refs/heads/main", "trust": "branch",
            "application": {"images": [{"name": "vote", "context": "./vote", "dockerfile": "Dockerfile", "target": null,
                "args": {"K": "v"}, "tags": ["registry/acme/vote:1"], "labels": {}, "platforms": [], "secrets": [],
                "cache_from": [], "cache_to": []}]},
            "push": true, "no_cache": false, "pull": false, "builder": null, "timeout_s": 1800,
            "callback": {"class": "BuildFinishedJob", "queue": "default", "on": ["finished"]}
        })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut value = native();
        change(&mut value);
        BuildJob::parse(&value).expect_err("refused").to_string()
    }

    #[test]
    fn the_contracts_example_is_read() {
        let job = BuildJob::parse(&native()).expect("valid");
        assert_eq!(job.build.repository.to_string(), "acme/voting-app");
        assert_eq!(job.build.timeout, Some(Duration::from_secs(1800)));
        assert!(matches!(job.build.recipe, Recipe::Application(application) if application.images[0].name == "vote"));
    }

    #[test]
    fn only_repository_sha_and_a_recipe_are_required() {
        let job = BuildJob::parse(&json!({
            "repository": "acme/voting-app", "sha": "0123456789abcdef0123456789abcdef01234567",
            "definition": {"target": {}}
        }))
        .expect("valid");
        assert_eq!((job.build.account.as_str(), job.build.trust, job.build.push), ("acme", Trust::Branch, true));
    }

    #[test]
    fn only_the_full_name_of_a_branch_or_tag_keeps_the_trust_that_the_job_states() {
        let parse = |git_ref: Value, trust: Value| {
            let mut job = native();
            (job["ref"], job["trust"]) = (git_ref, trust);
            BuildJob::parse(&job)
        };
        for git_ref in [
            "main",
            "heads/main",
            "tags/v1",
            "HEAD",
            "",
            " refs/heads/main",
            "/refs/heads/main",
            "Refs/heads/main",
            "refs/pull/7/head",
            "refs/pull/7/merge",
            "pull/7/head",
            "refs/merge-requests/7/head",
            "refs/x",
            "refs/remotes/origin/main",
            "refs/heads",
            "eve:main",
            "refs%2Fheads%2Fmain",
            "refs//heads/main",
            "0123456789abcdef0123456789abcdef01234567",
            "main^{commit}",
            "refs/notes/x",
            "@",
            "refs/heads\\main",
        ] {
            for trust in [Value::Null, json!("branch"), json!("protected"), json!("fork")] {
                let job = parse(json!(git_ref), trust.clone()).expect("valid");
                assert_eq!(job.build.trust, Trust::Fork, "{git_ref:?} {trust}");
                assert_eq!(job.build.branch, None);
            }
        }
        for git_ref in [json!("refs/heads/pull/7/head"), json!("refs/tags/v1"), Value::Null, json!("refs/heads/a%2f")] {
            assert_eq!(parse(git_ref.clone(), json!("protected")).expect("valid").build.trust, Trust::Protected);
            assert_eq!(parse(git_ref, Value::Null).expect("valid").build.trust, Trust::Branch);
        }
        for forbidden in [
            "refs/heads/../pull/7/head",
            "refs/heads/x^{commit}",
            "refs/heads/a b",
            "refs/heads/",
            "refs/heads/.a",
            "refs/heads/a.lock",
            "refs/tags/a//b",
            "refs/heads/a/",
            "refs/heads/a:b",
            "refs/heads/a?b",
            "refs/heads/a*",
            "refs/heads/[a",
            "refs/heads/a\\b",
            "refs/heads/a~1",
            "refs/heads/a.",
            "refs/heads/@{-1}",
            "refs/heads/a\0",
            "main\n",
            "refs/heads/a\u{7f}",
            "refs/tags/a..b",
        ] {
            let error = parse(json!(forbidden), json!("branch")).expect_err(forbidden).to_string();
            assert!(error.starts_with("ref: "), "{error}");
        }
    }

    #[test]
    fn attestations_are_asked_for_by_job_and_image_without_the_options_that_are_the_configurations() {
        let mut job = native();
        (job["provenance"], job["sbom"]) = (json!("mode=max"), json!(true));
        let build = BuildJob::parse(&job).expect("valid").build;
        assert_eq!(
            (build.provenance.map(|asked| asked.to_string()), build.sbom),
            (Some("mode=max".into()), Some(Asked::on()))
        );
        let builder = refused(|job| job["provenance"] = json!("builder-id=https://evil"));
        assert_eq!(builder, "provenance: builder-id is set by bake.provenance in the worker's configuration");
        let generator = refused(|job| job["application"]["images"][0]["sbom"] = json!("generator=evil/image"));
        assert!(generator.starts_with("application.images[0].sbom: generator is set by bake.sbom"), "{generator}");
        let number = refused(|job| job["sbom"] = json!(3));
        assert_eq!(number, "sbom: expected true, false or options such as \"mode=max\", found integer `3`");
    }

    #[test]
    fn an_error_names_the_path_of_the_field() {
        let wrong_type = refused(|job| {
            job["application"]["images"][0]["args"]["FOO"] = json!(3);
        });
        assert_eq!(wrong_type, "application.images[0].args.FOO: expected a string, found integer `3`");
        let missing = refused(|job| {
            job.as_object_mut().expect("an object").remove("sha");
        });
        assert_eq!(missing, ".: missing field `sha`");
        let short = refused(|job| job["sha"] = json!("abc123"));
        assert_eq!(short, "sha: expected 40 lower-case hexadecimal digits, found \"abc123\"");
        let unknown = refused(|job| job["application"]["images"][0]["contxt"] = json!("./x"));
        assert!(unknown.starts_with("application.images[0].contxt: unknown field `contxt`"), "{unknown}");
        let unknown = refused(|job| job["shaa"] = json!("x"));
        assert!(unknown.starts_with("shaa: unknown field `shaa`"), "{unknown}");
    }

    #[test]
    fn a_definition_in_the_repository_is_a_path_in_it() {
        let of = |field: &str, path: &str| {
            refused(|job| {
                job["application"] = Value::Null;
                job[field] = json!(path);
            })
        };
        for path in ["/etc/x.yml", "../x.yml", "a//x.yml", "a/../x.yml", "x.hcl", "-", ""] {
            assert!(of("compose", path).starts_with("compose: expected the path of a file"), "{path}");
        }
        assert!(of("bake", "docker-compose.yml").starts_with("bake: expected the path of a file"));
        assert!(
            refused(|job| job["tags"] = json!({"vote": ["x"]})).starts_with("tags: are for a compose or bake file")
        );
        for name in ["LD_PRELOAD", "BUILDX_CONFIG", "a b", "", "1A", "GODEBUG"] {
            assert!(refused(|job| job["variables"] = json!({name: "x"})).starts_with("variables: "), "{name}");
        }
    }

    #[test]
    fn a_secret_that_would_go_to_any_git_host_is_refused() {
        let secret = |id: &str| refused(|job| job["application"]["images"][0]["secrets"] = json!([{"id": id}]));
        assert!(secret("GIT_AUTH_TOKEN").contains("GIT_AUTH_TOKEN.github.com goes to that one"));
        assert!(secret("../npm").contains("is not the name of a secret"));
    }

    #[test]
    fn names_that_would_leave_a_path_or_url_are_refused() {
        for repository in ["acme", "acme/..", "../x", "a/b/c", "acme/x y", "acme/", "acme/x?y", "acme/-%2f"] {
            assert!(refused(|job| job["repository"] = json!(repository)).starts_with("repository: "), "{repository}");
        }
        assert!(refused(|job| job["account"] = json!("../acme")).starts_with("account: "));
        for name in ["a*", "--push", "", "a b"] {
            assert!(refused(|job| job["application"]["images"][0]["name"] = json!(name)).contains("not a target name"));
        }
    }

    #[test]
    fn exactly_one_recipe_is_wanted() {
        assert_eq!(
            refused(|job| job["application"] = Value::Null),
            ".: expected one of application, compose, bake and definition"
        );
        assert_eq!(
            refused(|job| job["definition"] = json!({})),
            ".: expected one of application, compose, bake and definition"
        );
    }
}
