//! A build as Rails asks for it: the build request of the contract.
//!
//! Owns the fields, their checks and their error messages. Pure: it neither asks Rails nor knows Sidekiq.

pub mod arguments;
mod bounded;
mod callback;
mod commit;
mod git_ref;
mod names;
mod paths;
mod request;
mod template;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::attestation::{Asked, Attestation, By};
use crate::field_error::FieldError;
use crate::name::{is_name, is_target_name, target_name};

pub use callback::Callback;
pub use commit::Commit;
pub use git_ref::GitRef;
pub use names::{Repository, Sha};
pub use paths::Paths;
pub use request::is_build_id;
pub use template::{Application, Image, ImageSecret, is_for_any_host};

/// A build to run, as Rails requested it.
#[derive(Clone, Debug)]
pub struct BuildJob {
    /// Rails' id: a string or a number, returned unchanged.
    pub build_id: Option<Value>,
    /// The App's installation, if Rails knows it.
    pub installation_id: Option<u64>,
    /// The commit.
    pub sha: Sha,
    /// The job's `ref`: returned, never resolved.
    pub git_ref: Option<String>,
    /// The branch or tag that `git_ref` names in full. GitHub is asked whether the commit is on it, unless the build is a fork's.
    pub branch_or_tag: Option<GitRef>,
    /// What to build from it.
    pub build: Build,
    /// The job that notifies Rails.
    pub callback: Option<Callback>,
    /// Notices for the customer about fields that have no effect.
    pub notices: Vec<String>,
}

/// What to build from a worktree, whatever its origin.
#[derive(Clone, Debug)]
pub struct Build {
    /// The account; by default the repository's owner.
    pub account: String,
    /// The repository.
    pub repository: Repository,
    /// How far the commit's author is trusted.
    pub trust: Trust,
    /// Where the definition comes from.
    pub recipe: Recipe,
    /// The requested targets; empty for the default group.
    pub targets: Vec<String>,
    /// Values of the definition's variables.
    pub variables: BTreeMap<String, String>,
    /// The branch of the commit, if the job's ref names one.
    pub branch: Option<String>,
    /// The repository's default branch, if Rails knows it.
    pub default_branch: Option<String>,
    /// Whether images are pushed.
    pub push: bool,
    /// Whether cached steps are run again.
    pub no_cache: bool,
    /// Whether base images are looked up again.
    pub pull: bool,
    /// Whether to attest how images are built; overridden by the platform's own definition of an image.
    pub provenance: Option<Asked>,
    /// Whether to attest the content of images; overridden likewise.
    pub sbom: Option<Asked>,
    /// Whether steps get the time of the commit; overridden by a definition's own build argument.
    pub source_date_epoch: Option<SourceDateEpoch>,
    /// Name of a builder in the configuration.
    pub builder: Option<String>,
    /// The time limit of the bake.
    pub timeout: Option<Duration>,
}

/// The value of the build argument `SOURCE_DATE_EPOCH`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceDateEpoch {
    /// None.
    #[default]
    Off,
    /// The time of the commit.
    Commit,
}

impl SourceDateEpoch {
    /// As in the job and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Commit => "commit",
        }
    }
}

/// Where the definition of a build comes from.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// The platform's Application Template.
    Application(Application),
    /// A bake definition that the platform made, as JSON text: it takes less memory than its values.
    Inline(String),
    /// Files in the worktree that buildx reads.
    Files(RepositoryFiles),
}

/// Compose files, or bake files in HCL or JSON, which buildx merges in this order.
#[derive(Clone, Debug)]
pub struct RepositoryFiles {
    /// At least one path from the root of the worktree, without `..`.
    pub paths: Vec<String>,
    /// The directory where they are read, from the root of the worktree: relative paths in them start there.
    pub directory: String,
    /// What determines the tags of their images.
    pub naming: Naming,
}

/// What determines the tags of a repository's own definition.
#[derive(Clone, Debug)]
pub enum Naming {
    /// The file itself: its owner runs the build (`sidebake build`).
    File,
    /// The job: tags by [the name of the target](target_name). Where it lists none, the worker's configuration.
    Job(BTreeMap<String, Vec<String>>),
}

/// How far the author of a commit is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// A protected branch.
    Protected,
    /// Anyone who can push to the repository.
    #[default]
    Branch,
    /// Anyone: writes no cache that others read.
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

impl Build {
    /// A build of a repository that is not pushed, with nothing selected.
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
            source_date_epoch: None,
            builder: None,
            timeout: None,
        }
    }

    fn check(&self) -> Result<(), FieldError> {
        if !is_name(&self.account) {
            return Err(FieldError::new(
                "account",
                format!("expected letters, digits, - _ and ., found {:?}", self.account),
            ));
        }
        if let Some(name) = self.targets.iter().find(|name| !is_target_name(&target_name(name))) {
            return Err(FieldError::new("targets", format!("{name:?} is not a valid target name")));
        }
        if self.timeout.is_some_and(|limit| limit.is_zero() || limit > Duration::from_secs(24 * 60 * 60)) {
            return Err(FieldError::new("timeout_s", "expected 1 to 86400"));
        }
        if let Some(name) = self.variables.keys().find(|name| !is_variable(name)) {
            return Err(FieldError::new("variables", format!("{name:?} is not a variable that a job can set")));
        }
        for attestation in Attestation::ALL {
            let refused = |message| FieldError::new(attestation.name(), message);
            self.asked(attestation)
                .map_or(Ok(()), |asked| asked.check(attestation, By::Definition))
                .map_err(refused)?;
        }
        match &self.recipe {
            Recipe::Application(application) => {
                application.check(self.push)?;
                self.check_targets(application.images.iter().map(|image| &*image.name).chain(["default"]))
            }
            // Only buildx knows their targets.
            Recipe::Inline(_) | Recipe::Files(_) => Ok(()),
        }
    }

    /// Refuses a target that has tags in the job and is not among the known targets.
    pub fn check_tags<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Result<(), FieldError> {
        let unknown = self.tagged().find(|name| !is_unlisted(name) && !known.clone().any(|known| known == *name));
        unknown.map_or(Ok(()), |name| {
            Err(FieldError::new(
                format!("tags.{name}"),
                format!("no target of this name; known: {}", list_names(known)),
            ))
        })
    }

    /// The targets of a repository's file that have tags in the job.
    pub fn tagged(&self) -> impl Iterator<Item = &str> {
        let of_job = match &self.recipe {
            Recipe::Files(RepositoryFiles { naming: Naming::Job(tags), .. }) => Some(tags),
            _ => None,
        };
        of_job.into_iter().flat_map(BTreeMap::keys).map(String::as_str)
    }

    /// The targets as bake names them.
    pub fn target_names(&self) -> Vec<String> {
        self.targets.iter().map(|name| target_name(name)).collect()
    }

    /// Refuses a requested target that is not among the known targets and groups.
    pub fn check_targets<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Result<(), FieldError> {
        let is_known = |name: &String| known.clone().any(|known| known == target_name(name));
        let unknown = self.targets.iter().find(|name| !is_unlisted(name) && !is_known(name));
        unknown.map_or(Ok(()), |name| {
            Err(FieldError::new("targets", format!("no target or group {name:?}; known: {}", list_names(known))))
        })
    }

    /// The job's request for an attestation.
    pub fn asked(&self, attestation: Attestation) -> Option<&Asked> {
        match attestation {
            Attestation::Provenance => self.provenance.as_ref(),
            Attestation::Sbom => self.sbom.as_ref(),
        }
    }

    /// The placeholders of a pattern, with their values.
    pub fn names(&self) -> [(&'static str, &str); 4] {
        let Repository { owner, name } = &self.repository;
        [("account", &self.account), ("owner", owner), ("repository", name), ("trust", self.trust.name())]
    }
}

/// Whether buildx lists a target of this name only when it is built: such targets are there for others to inherit from.
fn is_unlisted(name: &str) -> bool {
    name.starts_with('_')
}

/// Some names for a message.
pub fn list_names<'a>(names: impl Iterator<Item = &'a str> + Clone) -> String {
    const MAX_SHOWN: usize = 30;
    let n_more = names.clone().count().saturating_sub(MAX_SHOWN);
    let shown: Vec<&str> = names.take(MAX_SHOWN).collect();
    let more = if n_more > 0 { format!(" and {n_more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// Whether a job may set a variable of this name: some have an effect on buildx, its runtime or its loader.
pub fn is_variable(name: &str) -> bool {
    const NOT_THEIRS: &[&str] =
        &["BUILDX_", "BUILDKIT_", "LD_", "GODEBUG", "GOTRACEBACK", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "TMPDIR"];
    let is_identifier = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins_well && name.chars().all(is_identifier) && !NOT_THEIRS.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests;
