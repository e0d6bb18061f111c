//! The submodules of a commit, and the repositories to which their URLs refer.
//!
//! A URL only identifies a repository on the git host, which is always reached in the configured way. Follows gitmodules(5), and
//! git-submodule(1) for relative URLs.

use std::collections::HashMap;
use std::path::Path;

use git2::{Config, Index, IndexEntry};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::job::{Repository, Sha};

/// The most submodules of a build, nested ones included.
pub const MAX_SUBMODULES: usize = 100;

/// The file that holds their URLs.
pub(super) const FILE: &str = ".gitmodules";
/// The largest such file that is read, in bytes.
const MAX_FILE: usize = 1 << 20;
/// The longest URL, in bytes. All URLs of a commit go to the worker in one line.
const MAX_URL: usize = 1000;
/// The mode of their entries.
pub(super) const MODE: u32 = 0o160000;

/// A directory of a worktree for a commit of another repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Submodule {
    /// From the root of the worktree.
    pub path: String,
    /// The commit.
    pub sha: Sha,
    /// As in `.gitmodules`.
    url: Option<String>,
}

/// Whether an entry of an index is a submodule.
pub(super) fn is_one(entry: &IndexEntry) -> bool {
    entry.mode == MODE
}

/// The submodules of a worktree, at most one more than [`MAX_SUBMODULES`]. Those that `.gitmodules` does not name have no URL.
pub(super) fn list(index: &Index, worktree: &Path) -> Vec<Submodule> {
    let entries: Vec<_> = index.iter().filter(is_one).take(MAX_SUBMODULES + 1).collect();
    if entries.is_empty() {
        return Vec::new();
    }
    // A link would lead to another file.
    let has_file = index.get_path(Path::new(FILE), 0).is_some_and(|entry| entry.mode & 0o170000 == 0o100000);
    let mut urls = if has_file { urls(&worktree.join(FILE)).unwrap_or_default() } else { HashMap::new() };
    let submodule = |entry: IndexEntry| {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let url = urls.remove(&path);
        Some(Submodule { path, sha: Sha::parse(&entry.id.to_string())?, url })
    };
    entries.into_iter().filter_map(submodule).collect()
}

/// URLs by path. Of two sections with one path the last counts, as in git. A file that git cannot parse yields none: builds that do
/// not need them must not fail. Neither does one with includes, which git ignores and libgit2 follows.
fn urls(file: &Path) -> Result<HashMap<String, String>, git2::Error> {
    if !std::fs::read(file).is_ok_and(|text| text.len() <= MAX_FILE && !has_include(&text)) {
        return Ok(HashMap::new());
    }
    let (mut paths, mut urls) = (Vec::new(), HashMap::new());
    let config = Config::open(file)?;
    let mut entries = config.entries(None)?;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let (Ok(key), Ok(value)) = (entry.name(), entry.value()) else { continue };
        // A name can contain dots.
        let Some((name, what)) = key.strip_prefix("submodule.").and_then(|rest| rest.rsplit_once('.')) else {
            continue;
        };
        let (name, value) = (name.to_owned(), value.trim_end_matches('/').to_owned());
        match what {
            "path" => paths.push((name, value)),
            "url" if value.len() <= MAX_URL => _ = urls.insert(name, value),
            "url" => _ = urls.remove(&name),
            _ => {}
        }
    }
    Ok(paths.into_iter().filter_map(|(name, path)| Some((path, urls.get(&name)?.clone()))).collect())
}

/// Whether any line may begin a section `include` or `includeIf`.
fn has_include(text: &[u8]) -> bool {
    let text = text.to_ascii_lowercase();
    let mut sections = text.split(|byte| *byte == b'[').skip(1);
    sections.any(|section| section.trim_ascii_start().starts_with(b"include"))
}

impl Submodule {
    /// The repository on `git_url` to which it refers, or what is wrong with its URL.
    pub(super) fn repository(&self, parent: &Repository, git_url: &str) -> Result<Repository, String> {
        let url = self.url.as_deref().ok_or_else(|| format!("has no URL in {FILE}"))?;
        let path = match url.strip_prefix("./").or_else(|| url.starts_with("../").then_some(url)) {
            Some(relative) => beside(parent, relative),
            None => on_host(url, git_url),
        };
        path.and_then(|path| Repository::parse(&path)).ok_or_else(|| {
            // The part before an @ may be a secret.
            let shown: String = url.rsplit('@').next().unwrap_or_default().chars().take(200).collect();
            format!("has a URL that is not a repository on {git_url}: {shown:?}")
        })
    }
}

/// `owner/name` of a relative URL: each `../` removes a component of the parent's.
fn beside(parent: &Repository, mut relative: &str) -> Option<String> {
    let mut components = vec![parent.owner.as_str(), parent.name.as_str()];
    loop {
        if let Some(rest) = relative.strip_prefix("../") {
            components.pop()?;
            relative = rest;
        } else if let Some(rest) = relative.strip_prefix("./") {
            relative = rest;
        } else {
            components.extend(relative.split('/'));
            return Some(components.join("/"));
        }
    }
}

/// `owner/name` of a URL of this host, whatever its protocol.
fn on_host(url: &str, git_url: &str) -> Option<String> {
    let host = Url::parse(git_url).ok()?;
    if !url.contains("://") {
        // In scp's form: git@host:owner/name.
        let (user_and_host, path) = url.split_once(':')?;
        let name = user_and_host.rsplit('@').next()?;
        return (host.host_str()? == name).then(|| path.trim_start_matches('/').to_owned());
    }
    let url = Url::parse(url).ok()?;
    let has_own_port = matches!(url.scheme(), "ssh" | "git");
    let is_known = has_own_port || matches!(url.scheme(), "https" | "http");
    let is_host = url.host_str() == host.host_str() && (has_own_port || url.port() == host.port());
    let is_plain = url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    (is_known && is_host && is_plain).then(|| url.path().trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(url: &str) -> Result<String, String> {
        let parent = Repository::parse("acme/app").expect("valid");
        let submodule =
            Submodule { path: "lib".into(), sha: Sha::parse(&"0".repeat(40)).expect("valid"), url: Some(url.into()) };
        submodule.repository(&parent, "https://github.com").map(|repository| repository.to_string())
    }

    #[test]
    fn a_url_means_a_repository_on_the_git_host() {
        let table = [
            ("../lib", "acme/lib"),
            ("../lib.git", "acme/lib"),
            ("./../lib", "acme/lib"),
            ("../../other/lib.git", "other/lib"),
            ("https://github.com/other/lib", "other/lib"),
            ("https://github.com/other/lib.git", "other/lib"),
            ("https://git@github.com/other/lib.git", "other/lib"),
            ("http://github.com/other/lib", "other/lib"),
            ("git@github.com:other/lib.git", "other/lib"),
            ("ssh://git@github.com/other/lib.git", "other/lib"),
            ("ssh://git@github.com:22/other/lib.git", "other/lib"),
            ("git://github.com/other/lib.git", "other/lib"),
        ];
        for (url, expected) in table {
            assert_eq!(repository(url).as_deref(), Ok(expected), "{url}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let refused = [
            "",
            "lib",
            "/etc/passwd",
            "file:///etc/passwd",
            "ext::sh -c touch% /tmp/pwned",
            "--upload-pack=touch pwned",
            "-u./payload:other/lib",
            "../../../etc/passwd",
            "./lib",
            "../lib/more",
            "../../other/..",
            "https://github.com.evil.example/other/lib",
            "https://evil.example/other/lib",
            "https://github.com:8443/other/lib",
            "https://github.com/other/lib/../../x",
            "https://github.com/other/lib?x=1",
            "https://github.com/other/%2e%2e",
            "https://github.com@evil.example/other/lib",
            "git@evil.example:other/lib",
            "github.com/other/lib",
        ];
        for url in refused {
            assert!(repository(url).is_err(), "{url}: {:?}", repository(url));
        }
        let error = repository("https://user:hunter2@github.com/other/lib").expect_err("refused");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
