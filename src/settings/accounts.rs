//! What accounts have and may: patterns for the many, and a few exceptions by name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::{NamePattern, Pattern, SettingsError};

/// What a name of an image or a cache may be made of, besides what every pattern may.
const OF_TARGETS: &[&str] = &["target", "sha", "branch"];

/// What accounts have, by pattern, and what they may.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Accounts {
    /// File with the account's registry credentials, in the form of a docker `config.json`.
    pub registries: Option<Pattern>,
    /// Directory of the credential helpers (`docker-credential-…`) that such a file may name.
    pub credential_helpers: Option<PathBuf>,
    /// File with a build secret; `{name}` is what the job calls it. A secret is granted when its file is there.
    pub secrets: Option<Pattern>,
    /// Variables of the worker that hold build secrets, by `account/name`.
    pub secret_variables: BTreeMap<NamePattern, String>,
    /// What images of a repository's own definition are called, when the job does not say.
    pub tags: Vec<Pattern>,
    /// Where cached steps are kept, when the job does not say.
    pub cache: Cache,
    /// What definitions may ask for.
    pub policy: Policy,
    /// The same for some accounts; the closest pattern counts, and counts alone.
    pub policy_for: BTreeMap<NamePattern, Policy>,
}

/// Where cached steps are looked for and left: `type=registry,ref=…`, as `docker buildx build` has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Looked for in all of these; one with `{branch}` also on the job's default branch.
    pub from: Vec<Pattern>,
    /// Left in all of these, though never by a fork.
    pub to: Vec<Pattern>,
    /// Whether only builds of the default branch leave any.
    pub only_default_branch: bool,
}

/// What definitions of an account may ask for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Image of the Dockerfile frontend, whatever `# syntax=` says.
    pub frontend: Option<String>,
    /// URLs that may be contexts; the builder fetches them.
    pub remote_contexts: Vec<NamePattern>,
    /// Entitlements, such as `network.host`.
    pub entitlements: Vec<String>,
}

impl Accounts {
    /// The policy of an account.
    pub fn policy_of(&self, account: &str) -> &Policy {
        let meant = self.policy_for.iter().filter(|(pattern, _)| pattern.matches(account));
        meant.max_by_key(|(pattern, _)| pattern.closeness()).map_or(&self.policy, |(_, policy)| policy)
    }

    pub(super) fn check(&self) -> Result<(), SettingsError> {
        let refuse = |key: &str, message: String| Err(SettingsError::Key { path: format!("accounts.{key}"), message });
        let of_targets = |key, patterns: &[Pattern]| {
            patterns.iter().try_for_each(|pattern| check_names(&format!("accounts.{key}"), pattern, OF_TARGETS))
        };
        of_targets("tags", &self.tags)?;
        of_targets("cache.from", &self.cache.from)?;
        of_targets("cache.to", &self.cache.to)?;
        self.registries.iter().try_for_each(|pattern| check_names("accounts.registries", pattern, &[]))?;
        self.secrets.iter().try_for_each(|pattern| check_names("accounts.secrets", pattern, &["name"]))?;
        if self.secrets.as_ref().is_some_and(|pattern| !pattern.has("name")) {
            return refuse("secrets", "must have {name} in it".into());
        }
        if self.tags.iter().any(|pattern| !pattern.has("target")) {
            return refuse("tags", "must have {target} in it, or two images have one name".into());
        }
        if self.cache.to.iter().any(|pattern| !pattern.has("target")) {
            return refuse(
                "cache.to",
                "must have {target} in it: of two targets in one place the last one wins".into(),
            );
        }
        if self.credential_helpers.as_ref().is_some_and(|directory| !directory.is_absolute()) {
            return refuse("credential_helpers", "must be an absolute path".into());
        }
        Ok(())
    }
}

/// Refuses a pattern that names what is not known where it is used.
pub(super) fn check_names(path: &str, pattern: &Pattern, more: &[&str]) -> Result<(), SettingsError> {
    pattern.unknown(more).map_or(Ok(()), |name| {
        let message = format!("{{{name}}} in {:?} is no name that is known here", pattern.to_string());
        Err(SettingsError::Key { path: path.to_owned(), message })
    })
}
