//! `[accounts]`: what accounts have and may do, by patterns, so that a new account needs no deploy.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::pattern::JOB_NAMES;
use super::{NamePattern, TextPattern};
use crate::field_error::{FieldError, refuse};
use crate::name::reference;

/// Placeholders of a target's tags and caches, besides those of every pattern.
const OF_TARGETS: &[&str] = &["target", "sha", "branch"];

/// What accounts have and may do. Patterns contain `{account}`, `{owner}`, `{repository}` and `{trust}` (`protected`,
/// `branch` or `fork`), which stand for those of the job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Accounts {
    /// File with the account's registry credentials: a docker `config.json`. A fork's build has them too, and its Dockerfile can
    /// begin `FROM` any image that they can read: with `{account}/{trust}.json`, forks have other credentials, or none.
    pub registries: Option<TextPattern>,
    /// Directory of the credential helpers (`docker-credential-…`) that such a file may name. They run outside of the sandbox,
    /// 15 seconds at most, with the worker's environment without `SIDEBAKE_…` and the URL of Redis.
    pub credential_helpers: Option<PathBuf>,
    /// File with a build secret; `{name}` is the name in the job. A build gets the secret when the file exists. A fork's build
    /// gets none.
    pub secrets: Option<TextPattern>,
    /// Environment variables of the worker that hold build secrets, by `account/name`; `*` matches anything.
    pub secret_variables: BTreeMap<NamePattern, String>,
    /// Tags of images whose definition is in the repository, when the job names none. Also `{target}`, `{sha}` and `{branch}`; a
    /// pattern whose branch is unknown is left out. Accounts and repositories are in lower case. A fork's build pushes only the
    /// tags of its job.
    pub tags: Vec<TextPattern>,
    /// Where cached steps are kept, when the definition does not say.
    #[serde(deserialize_with = "name_or_table")]
    pub cache: Cache,
    /// What definitions may ask for beyond the strictest policy.
    pub policy: Policy,
    /// The policy of some accounts, by account. The most specific pattern counts, alone.
    pub policy_for: BTreeMap<NamePattern, Policy>,
}

/// Where cached steps are imported from and exported to. `accounts.cache = "…"` is short for `reference` alone. `from` and `to` are as in
/// `docker buildx build`: `type=registry,ref=…`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// The cache of a target in a registry, such as `registry.example/{account}/{repository}/cache:{target}`. Every build imports it. A
    /// build of the job's `default_branch` exports it with all steps, after its images are pushed, when a step has run. A fork's build
    /// exports none. It cannot be combined with the other settings.
    pub reference: Option<TextPattern>,
    /// Cache imports. One with `{branch}` is also tried with the job's `default_branch`.
    pub from: Vec<TextPattern>,
    /// Cache exports. A fork's build exports none.
    pub to: Vec<TextPattern>,
    /// Whether only builds of the default branch export their cache.
    pub only_default_branch: bool,
}

/// What definitions of an account may ask for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Image of the Dockerfile frontend, which replaces that of `# syntax=` and `BUILDKIT_SYNTAX`. Without it, the repository
    /// chooses the image, a fork too; it runs as a RUN step does.
    pub frontend: Option<String>,
    /// URLs that may be contexts, such as `https://github.com/acme/*`. The builder fetches them.
    pub remote_contexts: Vec<NamePattern>,
    /// Entitlements of BuildKit, such as `network.host`.
    pub entitlements: Vec<String>,
}

impl Cache {
    fn check(&self) -> Result<(), FieldError> {
        const KEY: &str = "accounts.cache.reference";
        let Some(pattern) = &self.reference else { return Ok(()) };
        check_names(KEY, pattern, &["target"])?;
        if !self.from.is_empty() || !self.to.is_empty() || self.only_default_branch {
            return refuse(KEY, "cannot be combined with from, to or only_default_branch; remove those");
        }
        // Otherwise a target could import steps that another repository wrote.
        let is_own = pattern.has("account") || pattern.has("owner");
        if !(pattern.has("target") && pattern.has("repository") && is_own) {
            return refuse(KEY, "must contain {target}, {repository}, and {account} or {owner}");
        }
        // `a-b` and `c` would have the cache of `a` and `b-c`.
        let text = pattern.to_string();
        if text.split(['/', ':']).any(|part| part.matches('{').count() > 1) {
            return refuse(KEY, "must have a / or : between two placeholders");
        }
        let names: Vec<(&str, &str)> = JOB_NAMES.iter().chain(&["target"]).map(|name| (*name, "x")).collect();
        reference::check_tag(&pattern.expand(&names)).or_else(|message| refuse(KEY, message))
    }
}

/// Reads the name of a cache, or the table.
fn name_or_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cache, D::Error> {
    struct Form;
    impl<'de> Visitor<'de> for Form {
        type Value = Cache;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(
                "a registry reference, such as registry.example/{account}/{repository}/cache:{target}, or a table",
            )
        }

        fn visit_str<E: de::Error>(self, name: &str) -> Result<Cache, E> {
            Ok(Cache { reference: Some(TextPattern::new(name)), ..Cache::default() })
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Cache, A::Error> {
            Cache::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(Form)
}

impl Accounts {
    /// The policy of an account.
    pub fn policy_of(&self, account: &str) -> &Policy {
        NamePattern::most_specific(&self.policy_for, account).map_or(&self.policy, |(_, policy)| policy)
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        let of_targets = |key, patterns: &[TextPattern]| {
            patterns.iter().try_for_each(|pattern| check_names(&format!("accounts.{key}"), pattern, OF_TARGETS))
        };
        of_targets("tags", &self.tags)?;
        of_targets("cache.from", &self.cache.from)?;
        of_targets("cache.to", &self.cache.to)?;
        self.cache.check()?;
        self.registries.iter().try_for_each(|pattern| check_names("accounts.registries", pattern, &[]))?;
        self.secrets.iter().try_for_each(|pattern| check_names("accounts.secrets", pattern, &["name"]))?;
        if self.secrets.as_ref().is_some_and(|pattern| !pattern.has("name")) {
            return refuse("accounts.secrets", "must contain {name}");
        }
        if self.tags.iter().any(|pattern| !pattern.has("target")) {
            return refuse("accounts.tags", "must contain {target}, or two images get the same name");
        }
        if self.cache.to.iter().any(|pattern| !pattern.has("target")) {
            let message = "must contain {target}, or the last target overwrites the cache of the others";
            return refuse("accounts.cache.to", message);
        }
        if self.credential_helpers.as_ref().is_some_and(|directory| !directory.is_absolute()) {
            return refuse("accounts.credential_helpers", "must be an absolute path");
        }
        Ok(())
    }
}

/// Refuses a pattern with a placeholder that has no value where it is used. `more` are those besides every job's.
pub(super) fn check_names(path: &str, pattern: &TextPattern, more: &[&str]) -> Result<(), FieldError> {
    pattern.unknown(more).map_or(Ok(()), |name| {
        let known: Vec<_> = JOB_NAMES.iter().chain(more).map(|name| format!("{{{name}}}")).collect();
        refuse(path, format!("unknown placeholder {{{name}}}; known: {}", known.join(", ")))
    })
}
