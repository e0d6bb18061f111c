//! `[source]`: fetch and checkout.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{NamePattern, SecretSource};
use crate::field_error::{FieldError, refuse};
use crate::secret::Secret;

/// Characters of the shortest `source.mtimes_key`. A build sees the times of its own files and could test guesses of the key
/// against them.
pub const MIN_MTIMES_KEY: usize = 32;

/// Fetch and checkout of a commit.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// Timeout of the connection to the git host.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long the git host may send nothing.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// Timeout of fetch and checkout together.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Files and directories of a commit, its submodules included.
    pub max_entries: u64,
    /// Bytes of all files of a commit, its submodules included.
    pub max_tree_bytes: u64,
    /// Bytes of one file.
    pub max_file_bytes: u64,
    /// Bytes received in one fetch, submodules included.
    pub max_fetch_bytes: u64,
    /// The former name of `network.ca_file`. It still works, and the system's certificates count beside it now.
    pub ca_file: Option<PathBuf>,
    /// Repositories (`owner/name`, `*` matches anything) whose submodules the worker fetches. The submodules of other
    /// repositories stay empty directories. A submodule must be on the same git host. The worker uses a token for submodules
    /// of the same owner, so people who may push to such a repository can build what is in that owner's other repositories.
    /// A fork's build gets public submodules only.
    pub submodules: Vec<NamePattern>,
    /// Whether the files of a commit have a `.git` beside them.
    pub git_dir: GitDir,
    /// Where the modification times of files come from.
    pub mtimes: Mtimes,
    /// `mtimes` of some repositories, by `owner/name`. The most specific pattern counts.
    pub mtimes_for: BTreeMap<NamePattern, Mtimes>,
    /// Key of the `content` times: at least 32 characters, secret, the same on every worker.
    pub mtimes_key: Option<Secret>,
    /// File that contains it. The worker reads it for each job.
    pub mtimes_key_file: Option<PathBuf>,
}

/// Whether the files of a commit have a `.git` beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GitDir {
    /// They have none, and a step that reads `.git` fails.
    #[default]
    None,
    /// They have a `.git` with this one commit, for `git describe`, setuptools_scm and Go's version stamp. `HEAD` is on the job's
    /// branch, else on no branch. It has the tags of the commit, 20 at most. It has no history, no remote, no
    /// token, no hooks, and no `.git` for submodules. Its size counts in `max_tree_bytes`.
    Minimal,
}

/// Where the modification times of a worktree's files come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mtimes {
    /// The clock, when they are written. Correct for every build; each build sends its whole context.
    Checkout,
    /// The file's content, so that a builder gets only what changed, from any worker. Only for builds that do not compare times.
    /// make, ninja and cargo do: with objects in a cache mount or a base image, they may take a changed file for an old one.
    Content,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(10 * 60),
            max_entries: 500_000,
            max_tree_bytes: 8 << 30,
            max_file_bytes: 2 << 30,
            max_fetch_bytes: 4 << 30,
            ca_file: None,
            submodules: Vec::new(),
            git_dir: GitDir::None,
            mtimes: Mtimes::Checkout,
            mtimes_for: BTreeMap::new(),
            mtimes_key: None,
            mtimes_key_file: None,
        }
    }
}

impl Source {
    /// Where the times of this repository's files come from; `repository` is `owner/name`.
    pub fn mtimes_of(&self, repository: &str) -> Mtimes {
        NamePattern::most_specific(&self.mtimes_for, repository).map_or(self.mtimes, |(_, mtimes)| *mtimes)
    }

    /// Whether any repository's files have times that come from content.
    pub fn needs_mtimes_key(&self) -> bool {
        self.mtimes_for.values().chain([&self.mtimes]).any(|mtimes| *mtimes == Mtimes::Content)
    }

    /// Where the key of the `content` times is.
    pub fn mtimes_key(&self) -> Option<SecretSource> {
        SecretSource::of(self.mtimes_key.as_ref(), self.mtimes_key_file.as_ref())
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        SecretSource::check("source", "mtimes_key", self.mtimes_key.as_ref(), self.mtimes_key_file.as_ref())?;
        match self.mtimes_key() {
            None if self.needs_mtimes_key() => {
                refuse("source.mtimes_key_file", "required for times that come from content")
            }
            Some(SecretSource::Value(key)) if key.expose().len() < MIN_MTIMES_KEY => {
                refuse("source.mtimes_key", format!("must have at least {MIN_MTIMES_KEY} characters"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_repository_decides_where_its_times_come_from() {
        let patterns =
            [("acme/*", Mtimes::Content), ("acme/Make-*", Mtimes::Checkout), ("acme/make-no", Mtimes::Content)];
        let mtimes_for = patterns.map(|(pattern, mtimes)| (NamePattern::new(pattern), mtimes)).into();
        let source = Source { mtimes_for, ..Source::default() };
        assert_eq!(["acme/app", "acme/make-no"].map(|name| source.mtimes_of(name)), [Mtimes::Content; 2]);
        assert_eq!(["acme/make-it", "umbrella/app"].map(|name| source.mtimes_of(name)), [Mtimes::Checkout; 2]);
    }
}
