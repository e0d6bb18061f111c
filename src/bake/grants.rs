//! What the configuration grants one build: names of images and caches, secrets, and fields that its definition may use.

use std::io::{ErrorKind, Read};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{BakeError, BakeRequest};
use crate::environment;
use crate::hex;
use crate::job::{Naming, Recipe, RepositoryFiles, Trust};
use crate::name::is_name;
use crate::secret::SecretBytes;
use crate::settings::{Accounts, NamePattern, Policy, TextPattern};

/// Characters of a branch that are kept in the name of an image or a cache.
const MAX_BRANCH: usize = 80;

/// Bytes of the hash that makes a changed name unique.
const HASH_BYTES: usize = 8;

/// The largest secret that BuildKit accepts.
const MAX_SECRET: usize = 500 << 10;

/// The part of the configuration that applies to one build.
pub(super) struct Grants<'a> {
    accounts: &'a Accounts,
    request: &'a BakeRequest<'a>,
    pub(super) policy: &'a Policy,
}

impl<'a> Grants<'a> {
    pub(super) fn new(accounts: &'a Accounts, request: &'a BakeRequest<'a>) -> Self {
        Self { accounts, request, policy: accounts.policy_of(&request.build.account) }
    }

    /// The tags of a target of a repository's own definition: the job's, else the configuration's.
    ///
    /// A fork's build gets only the job's tags: any other would overwrite an image of the repository.
    pub(super) fn tags(&self, target: &str) -> Vec<String> {
        match self.tags_of_job(target) {
            Some(tags) => tags.to_vec(),
            None if self.is_fork() => Vec::new(),
            None => self.named(&self.accounts.tags, target, self.request.build.branch.as_deref()),
        }
    }

    /// The tags that the job lists for a target of a repository's file.
    pub(super) fn tags_of_job(&self, target: &str) -> Option<&[String]> {
        match &self.request.build.recipe {
            Recipe::Files(RepositoryFiles { naming: Naming::Job(tags), .. }) => tags.get(target).map(Vec::as_slice),
            _ => None,
        }
    }

    /// Where the cached steps of a target are imported from: first its own branch, then the default branch.
    pub(super) fn cache_from(&self, target: &str) -> Vec<Value> {
        let build = self.request.build;
        let mut all = Vec::new();
        for branch in [build.branch.as_deref(), build.default_branch.as_deref()] {
            for name in self.named(&self.accounts.cache.from, target, branch) {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
        all.iter().map(|name| options(name)).collect()
    }

    /// The configured cache of a target.
    pub(super) fn cache_reference(&self, target: &str) -> Option<String> {
        self.named(self.accounts.cache.reference.as_slice(), target, None).pop()
    }

    /// Whether this is a build of the default branch, and not of a fork.
    pub(super) fn is_default_branch(&self) -> bool {
        let build = self.request.build;
        !self.is_fork() && build.branch.is_some() && build.branch == build.default_branch
    }

    /// Where the cached steps of a target are exported to.
    pub(super) fn cache_to(&self, target: &str) -> Vec<Value> {
        let (build, cache) = (self.request.build, &self.accounts.cache);
        if self.is_fork() || (cache.only_default_branch && !self.is_default_branch()) {
            return Vec::new();
        }
        self.named(&cache.to, target, build.branch.as_deref()).iter().map(|name| options(name)).collect()
    }

    /// The secret of this name; `None` when it is not granted.
    ///
    /// # Errors
    ///
    /// `Secret` when it is granted but cannot be read, or is larger than BuildKit accepts. Only the log names its location.
    pub(super) fn secret(&self, name: &str) -> Result<Option<SecretBytes>, BakeError> {
        let build = self.request.build;
        // A name becomes part of a path.
        if self.is_fork() || !is_name(name) {
            return Ok(None);
        }
        let refused = |message: String| BakeError::Secret { name: name.to_owned(), message };
        let full_name = format!("{}/{name}", build.account);
        if let Some((_, variable)) = NamePattern::most_specific(&self.accounts.secret_variables, &full_name) {
            let value = environment::secret(variable);
            return value.map(Some).ok_or_else(|| {
                tracing::error!(
                    event = "build_secret_refused",
                    secret = full_name,
                    variable,
                    "build secret refused: its variable is not set"
                );
                refused("its variable is not set in the worker's environment".into())
            });
        }
        let Some(pattern) = &self.accounts.secrets else { return Ok(None) };
        let path = pattern.expand(&[&build.names()[..], &[("name", name)]].concat());
        match read_secret(&path) {
            Ok(Some(bytes)) if bytes.len() > MAX_SECRET => {
                tracing::error!(
                    event = "build_secret_refused",
                    secret = full_name,
                    path,
                    "build secret refused: too large"
                );
                Err(refused(format!("it is larger than {MAX_SECRET} bytes")))
            }
            Ok(bytes) => Ok(bytes.map(SecretBytes::new)),
            Err(error) => {
                tracing::error!(event = "build_secret_refused", secret = full_name, path, %error, "build secret refused: its file cannot be read");
                Err(refused("its file cannot be read".into()))
            }
        }
    }

    /// The configured name of a secret with this id: only the platform's template can map it to another name.
    pub(super) fn name_of_secret<'b>(&'b self, target: &str, id: &'b str) -> &'b str {
        let Recipe::Application(template) = &self.request.build.recipe else { return id };
        let images = template.images.iter().filter(|image| image.name == target);
        let mut secrets = images.flat_map(|image| &image.secrets);
        secrets.find(|secret| secret.id == id).and_then(|secret| secret.from.as_deref()).unwrap_or(id)
    }

    pub(super) fn is_fork(&self) -> bool {
        self.request.build.trust == Trust::Fork
    }

    /// The patterns for one target, without those that need an unknown branch or commit.
    fn named(&self, patterns: &[TextPattern], target: &str, branch: Option<&str>) -> Vec<String> {
        let names = self.request.build.names().map(|(name, value)| (name, value.to_ascii_lowercase()));
        let branch = branch.map(as_tag);
        let sha = self.request.commit.map(|commit| commit.sha.to_string());
        let of_target = [("target", Some(target.to_ascii_lowercase())), ("branch", branch), ("sha", sha)];
        let is_known =
            |pattern: &&TextPattern| of_target.iter().all(|(name, value)| value.is_some() || !pattern.has(name));
        let all: Vec<(&str, &str)> = names
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .chain(of_target.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))))
            .collect();
        patterns.iter().filter(is_known).map(|pattern| pattern.expand(&all)).collect()
    }
}

/// The content of a secret's file, at most one byte more than allowed. `None` when the path is not a regular file: a
/// customer's name may lead to a directory or through a file, and a pipe would never end.
fn read_secret(path: &str) -> std::io::Result<Option<Vec<u8>>> {
    let is_nothing = |error: &std::io::Error| {
        matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
    };
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Ok(None),
        Err(error) if is_nothing(&error) => return Ok(None),
        _ => {}
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_SECRET as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// A branch as part of a tag. A changed name gets a hash, so it differs from that of every other branch.
fn as_tag(branch: &str) -> String {
    let is_kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let kept: String = branch.chars().map(|c| if is_kept(c) { c } else { '-' }).take(MAX_BRANCH).collect();
    let is_hash = |end: &str| end.len() == 2 * HASH_BYTES && end.bytes().all(|byte| byte.is_ascii_hexdigit());
    let looks_changed = kept.rsplit_once('-').is_some_and(|(_, end)| is_hash(end));
    if kept == branch && !kept.starts_with(['.', '-']) && !looks_changed {
        return kept;
    }
    let hash = hex::encode(&Sha256::digest(branch)[..HASH_BYTES]);
    format!("{}-{hash}", kept.trim_start_matches(['.', '-']))
}

/// `type=registry,ref=…` as buildx prints it.
fn options(text: &str) -> Value {
    let pairs = text.split(',').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().into())).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_becomes_a_tag_that_no_other_branch_has() {
        assert_eq!(as_tag("main"), "main");
        assert_eq!(as_tag("release-1.2"), "release-1.2");
        let (slash, dash) = (as_tag("feature/a"), as_tag("feature-a"));
        assert!(slash.starts_with("feature-a-") && slash != dash, "{slash} {dash}");
        assert!(as_tag(&"x".repeat(300)).len() < 128);
        assert_ne!(as_tag(&slash), slash, "a branch cannot take the name that another was given");
        assert_eq!(as_tag("-x").chars().next(), Some('x'));
    }

    #[test]
    fn a_secret_is_a_regular_file() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("file"), "hunter2").expect("written");
        std::os::unix::fs::symlink("file", path("link")).expect("linked");
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("made");
        for name in ["file", "link"] {
            assert_eq!(read_secret(&path(name)).expect("read").as_deref(), Some(&b"hunter2"[..]), "{name}");
        }
        for name in [".", "pipe", "nothing", "file/below", &"x".repeat(300)] {
            assert_eq!(read_secret(&path(name)).expect("not an error"), None, "{name}");
        }
    }

    #[test]
    fn options_are_read_as_buildx_prints_them() {
        let expected = serde_json::json!({"type": "registry", "ref": "r/x:y", "mode": "max"});
        assert_eq!(options("type=registry,ref=r/x:y,mode=max"), expected);
    }
}
