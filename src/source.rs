//! The worktree of one commit: asked for here, made in the source child.
//!
//! libgit2 reads packs that strangers wrote, so it runs in a child of our own binary: sandboxed, with the request and the
//! token on its standard input and nothing in its environment. It sees the mirror and the new directory, and connects
//! to the git host's port only. Killing it at any moment is harmless.

mod attributes;
mod budget;
mod checkout;
mod child;
mod fetch;
mod gate;
mod lfs;
mod mirror;
mod mtimes;
mod request;
mod submodules;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::event::Event;
use crate::job::{Build, Repository, Sha};
use crate::journal::Journal;
use crate::process::{self, Ended, ProcessError};
use crate::reason::{Failure, Reason};
use crate::sandbox::{Limits, Sandbox, Sockets, libraries, network_files};
use crate::secret::Secret;
use crate::settings::{self, MIN_MTIMES_KEY, Mtimes};
use crate::state::{StateDirectory, StateError};

use gate::Gate;
use request::{Fault, Message, Request};

pub use child::{VERB, main as child_main};
pub use submodules::{MAX_SUBMODULES, Submodule};

/// Characters that are told of what a child says when it dies.
const MAX_NOISE: usize = 500;

/// The worktree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The URL of the repository cannot be used.
    #[error("{url}: {message}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        message: String,
    },
    /// The key of content's times cannot be used.
    #[error("source.mtimes_key: {0}")]
    MtimesKey(String),
    /// A directory cannot be made.
    #[error(transparent)]
    State(#[from] StateError),
    /// A submodule is not one that we fetch.
    #[error("the submodule {path:?} {message}")]
    Submodule {
        /// Where it is in the worktree.
        path: String,
        /// Why.
        message: String,
    },
    /// The child cannot be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The child says what went wrong.
    #[error("{url}: {message}")]
    Fault {
        /// The repository's URL, which holds no credentials.
        url: String,
        /// Which kind.
        fault: Fault,
        /// In words.
        message: String,
    },
    /// The child was killed by us, or ended without a word.
    #[error("{url}: fetching {what}")]
    Killed {
        /// The repository's URL.
        url: String,
        /// Why.
        what: &'static str,
        /// Whether somebody cancelled it.
        is_stopped: bool,
    },
}

impl SourceError {
    fn cancelled(origin: &Origin) -> Self {
        Self::Killed { url: origin.url.clone(), what: "was cancelled", is_stopped: true }
    }

    /// The entry of the closed list.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Url { .. } => Reason::RepositoryNotFound,
            Self::Submodule { .. } => Reason::SourceRefused,
            Self::MtimesKey(_) | Self::State(_) | Self::Process(_) => Reason::WorkerFailed,
            Self::Killed { is_stopped: true, .. } => Reason::Interrupted,
            Self::Killed { .. } => Reason::GitUnavailable,
            Self::Fault { fault, .. } => match fault {
                Fault::CommitNotFound => Reason::CommitNotFound,
                Fault::Refused => Reason::SourceRefused,
                Fault::Unavailable | Fault::Denied | Fault::Unclear | Fault::Damaged => Reason::GitUnavailable,
                Fault::Full | Fault::Worker => Reason::WorkerFailed,
            },
        }
    }

    /// Whether the commit may simply not be there: libgit2 reports that as a broken connection.
    pub fn is_unclear(&self) -> bool {
        matches!(self, Self::Fault { fault: Fault::Unclear, .. })
    }

    /// Whether the token was not taken: it may be too new, or too old.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Fault { fault: Fault::Denied, .. })
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// Where a commit is to be had.
#[derive(Clone, Debug)]
pub struct Origin {
    /// URL of the repository, without credentials.
    pub url: String,
    /// Password of `x-access-token`; none for a repository that anybody may read.
    pub token: Option<Secret>,
    /// What the mirror is kept under: a number that outlives renames, never the name.
    pub mirror: String,
    /// The directory to make, in one that is there. BuildKit's transfer of a context is keyed by its last component.
    pub worktree: PathBuf,
    /// What is asked for.
    pub revision: Revision,
    /// The account's key, from [`Source::mtimes_key`]; none leaves files the times of the checkout.
    pub mtimes_key: Option<Secret>,
    /// What other commits of the same build have taken: the limits are for all of them together.
    pub spent: Spent,
}

/// What commits have taken of a build's limits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Of entries and bytes.
    pub size: Size,
    /// Of the time for fetch and checkout.
    pub time: Duration,
}

impl Spent {
    /// Takes in what a worktree has taken.
    pub fn add(&mut self, worktree: &Worktree) {
        self.size.n_entries = self.size.n_entries.saturating_add(worktree.size.n_entries);
        self.size.n_bytes = self.size.n_bytes.saturating_add(worktree.size.n_bytes);
        self.time += worktree.fetch + worktree.checkout;
    }
}

/// How large a commit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Files and directories.
    pub n_entries: u64,
    /// Bytes of all files.
    pub n_bytes: u64,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revision {
    /// Exactly this commit.
    Sha(Sha),
    /// What the remote's branch, tag or `HEAD` of this name points to.
    Name(String),
}

/// A commit's files.
#[derive(Clone, Debug)]
pub struct Worktree {
    /// Its root.
    pub path: PathBuf,
    /// The commit.
    pub sha: Option<Sha>,
    /// How long fetching took; zero when nothing had to be fetched.
    pub fetch: Duration,
    /// How long writing the files took.
    pub checkout: Duration,
    /// How large the commit is, without its submodules.
    pub size: Size,
    /// Files in it, by their paths from the root, that are Git LFS pointers and not what they stand for.
    pub lfs_pointers: Vec<PathBuf>,
    /// Its submodules, which are empty directories: one more than [`MAX_SUBMODULES`] at most.
    pub submodules: Vec<Submodule>,
}

impl Worktree {
    /// Where a submodule's files go: its empty directory, which is removed.
    ///
    /// # Errors
    ///
    /// `Submodule` when there is none, or when it leads out of the worktree.
    pub fn make_room(&self, submodule: &Submodule) -> Result<PathBuf, SourceError> {
        let refused = |message: String| SourceError::Submodule { path: submodule.path.clone(), message };
        let place = self.path.join(&submodule.path);
        let is_inside = || {
            let parent = place.parent()?.canonicalize().ok()?;
            Some(parent.starts_with(self.path.canonicalize().ok()?))
        };
        if is_inside() != Some(true) {
            return Err(refused("has no place in the worktree".into()));
        }
        std::fs::remove_dir(&place).map_err(|error| refused(format!("has no empty directory: {error}")))?;
        Ok(place)
    }

    /// Takes all its paths as those of the worktree that has this one as a submodule at `path`.
    pub fn move_below(&mut self, path: &str) {
        for pointer in &mut self.lfs_pointers {
            *pointer = Path::new(path).join(&*pointer);
        }
        for submodule in &mut self.submodules {
            submodule.path = format!("{path}/{}", submodule.path);
        }
    }
}

/// Makes worktrees.
#[derive(Debug)]
pub struct Source {
    settings: settings::Source,
    sandbox: settings::Sandbox,
    git_url: String,
    gate: Gate,
}

impl Source {
    /// Takes the settings.
    pub fn new(settings: &settings::Settings) -> Self {
        Self {
            settings: settings.source.clone(),
            sandbox: settings.sandbox.clone(),
            git_url: settings.github.git_url.trim_end_matches('/').to_owned(),
            gate: Gate::new(settings.clones),
        }
    }

    /// How long fetch and checkout may take together.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// The URL of a repository on the configured git host.
    pub fn url(&self, repository: &Repository) -> String {
        format!("{}/{repository}.git", self.git_url)
    }

    /// The key by which times follow from content in this account's worktrees: HMAC-SHA256 of the configured key over the
    /// account's name, 64 hexadecimal digits. `None` when the repository's files have the times of the checkout.
    ///
    /// The configured key stays here: a child that a stranger's pack took over could work out other accounts' times with it.
    ///
    /// # Errors
    ///
    /// Those of [`Self::configured_mtimes_key`].
    pub fn mtimes_key(&self, build: &Build) -> Result<Option<Secret>, SourceError> {
        if self.settings.mtimes_of(&build.repository.to_string()) == Mtimes::Checkout {
            return Ok(None);
        }
        Ok(Some(mtimes::account_key(&self.configured_mtimes_key()?, &build.account)))
    }

    /// The key of all accounts. Its file is read anew each time, so that it can be put right.
    ///
    /// # Errors
    ///
    /// `MtimesKey` when its file cannot be read, or holds a key that could be guessed.
    pub fn configured_mtimes_key(&self) -> Result<Secret, SourceError> {
        let key = match (&self.settings.mtimes_key, &self.settings.mtimes_key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => std::fs::read_to_string(path)
                .map(|text| Secret::new(text.trim()))
                .map_err(|error| SourceError::MtimesKey(format!("{}: {error}", path.display())))?,
            (None, None) => Secret::new(""),
        };
        if key.expose().len() < MIN_MTIMES_KEY {
            return Err(SourceError::MtimesKey(format!("is shorter than {MIN_MTIMES_KEY} characters")));
        }
        Ok(key)
    }

    /// Whether submodules of this repository are fetched.
    pub fn takes_submodules_of(&self, repository: &Repository) -> bool {
        let name = repository.to_string();
        self.settings.submodules.iter().any(|pattern| pattern.matches(&name))
    }

    /// The repository on the git host that a submodule of `parent` means.
    ///
    /// # Errors
    ///
    /// `Submodule` when it has no URL, or one of another host or of something that is no repository.
    pub fn repository_of(&self, submodule: &Submodule, parent: &Repository) -> Result<Repository, SourceError> {
        let refused = |message| SourceError::Submodule { path: submodule.path.clone(), message };
        submodule.repository(parent, &self.git_url).map_err(refused)
    }

    /// Makes a worktree, when its turn comes.
    ///
    /// The child is killed when `stop` is cancelled, when the time is over, or when this future is dropped.
    pub async fn check_out(
        &self,
        origin: &Origin,
        state: &StateDirectory,
        journal: &Journal,
        stop: &CancellationToken,
    ) -> Result<Worktree, SourceError> {
        let (host, port) = host_and_port(&origin.url)?;
        // Held until the child has ended.
        let mirror = state.mirror(&host, &origin.mirror)?;
        let request = Request {
            url: origin.url.clone(),
            token: origin.token.as_ref().map(|token| token.expose().to_owned()),
            revision: origin.revision.clone().into(),
            mtimes_key: origin.mtimes_key.as_ref().map(|key| key.expose().to_owned()),
            mirror: mirror.path().to_owned(),
            worktree: origin.worktree.clone(),
            limits: request::Limits { taken: origin.spent.size, ..(&self.settings).into() },
            ca_file: self.settings.ca_file.clone(),
        };
        let entered = stop.run_until_cancelled(self.gate.enter(&request.mirror)).await;
        let Some(mut entry) = entered else {
            return Err(SourceError::cancelled(origin));
        };
        let command = self.sandbox(&request, port).reexec(VERB);
        let input = serde_json::to_vec(&request).expect("a request is plain data");
        let limits = process::Limits {
            timeout: self.settings.timeout.saturating_sub(origin.spent.time),
            silence: self.settings.timeout,
            max_output_bytes: usize::MAX,
            stop: stop.clone(),
        };
        let (mut last, mut noise) = (None, String::new());
        let ended =
            process::run(command, &input, &limits, |stream, line| match (stream, serde_json::from_slice(line)) {
                (process::Stream::Out, Ok(Message::Progress { received_bytes })) => {
                    journal.tell(Event::Fetching { received_bytes })
                }
                (process::Stream::Out, Ok(Message::Fetched)) => entry.turn = None,
                (process::Stream::Out, Ok(message)) => last = Some(message),
                // What a dying child says: a panic, or the launcher's error.
                _ => noise = String::from_utf8_lossy(line).chars().take(MAX_NOISE).collect(),
            })
            .await?;
        self.conclude(origin, request.worktree, ended, last, noise)
    }

    fn conclude(
        &self,
        origin: &Origin,
        path: PathBuf,
        ended: Ended,
        last: Option<Message>,
        noise: String,
    ) -> Result<Worktree, SourceError> {
        let url = origin.url.clone();
        match (last, ended) {
            (Some(Message::Done { sha, fetch_ms, checkout_ms, size, lfs_pointers, submodules }), Ended::Exited(_)) => {
                Ok(Worktree {
                    path,
                    sha: Sha::parse(&sha),
                    fetch: Duration::from_millis(fetch_ms),
                    checkout: Duration::from_millis(checkout_ms),
                    size,
                    lfs_pointers: lfs_pointers.into_iter().map(PathBuf::from).collect(),
                    submodules,
                })
            }
            (Some(Message::Failed { fault, message }), Ended::Exited(_)) => {
                Err(SourceError::Fault { url, fault, message })
            }
            (_, Ended::Stopped) => Err(SourceError::cancelled(origin)),
            (_, Ended::TimedOut | Ended::Silent | Ended::TooMuchOutput) => {
                Err(SourceError::Killed { url, what: "took too long", is_stopped: false })
            }
            (_, Ended::Exited(status)) => {
                let message = format!("the source child ended with {status}: {noise}");
                Err(SourceError::Fault { url, fault: Fault::Worker, message })
            }
        }
    }

    fn sandbox(&self, request: &Request, port: u16) -> Sandbox {
        let mut read = libraries();
        read.extend(network_files(&self.settings.ca_file));
        let tree = request.worktree.parent().unwrap_or(Path::new("/")).to_owned();
        Sandbox {
            enforcement: self.sandbox.mode.into(),
            read,
            execute: Vec::new(),
            write: vec![request.mirror.clone(), tree, "/dev/null".into()],
            sockets: Sockets::Tcp(vec![port]),
            limits: Limits {
                data_bytes: self.sandbox.max_data_bytes,
                cpu_seconds: None,
                // libgit2 counts after it has written.
                file_bytes: self.settings.max_fetch_bytes.max(self.settings.max_file_bytes) + (1 << 20),
            },
        }
    }
}

/// Host (with the port when it is not the usual one) and port of an `https` or `http` URL.
///
/// Everything else that libgit2 understands (paths, `file:`, `git:`, `ssh:`) and credentials in the URL are refused.
fn host_and_port(url: &str) -> Result<(String, u16), SourceError> {
    let refused = |message: &str| SourceError::Url { url: url.to_owned(), message: message.into() };
    let parsed = reqwest::Url::parse(url).map_err(|error| refused(&error.to_string()))?;
    if !matches!(parsed.scheme(), "https" | "http") {
        return Err(refused("expected an https URL"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(SourceError::Url { url: "the URL".into(), message: "must not contain credentials".into() });
    }
    let host = parsed.host_str().ok_or_else(|| refused("expected a host"))?;
    let port = parsed.port_or_known_default().ok_or_else(|| refused("expected a port"))?;
    let key = parsed.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok((key, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_urls_without_credentials_are_fetched() {
        assert_eq!(host_and_port("https://github.com/a/b.git").expect("valid"), ("github.com".into(), 443));
        assert_eq!(host_and_port("http://127.0.0.1:8080/a/b.git").expect("valid"), ("127.0.0.1:8080".into(), 8080));
        for url in ["file:///etc", "/etc", "ssh://git@github.com/a/b", "git://github.com/a/b", "ext::sh -c x"] {
            assert!(host_and_port(url).is_err(), "{url}");
        }
        let error = host_and_port("https://user:hunter2@github.com/a/b").expect_err("refused").to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
