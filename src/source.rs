//! The worktree of one commit: asked for here, made in the source child.
//!
//! libgit2 reads packs that strangers wrote, so it runs in a child of our own binary: sandboxed, with the request and the
//! token on its standard input and nothing in its environment. It sees the mirror and a stage of its own, and connects
//! to the git host's port only. Killing it at any moment is harmless.
//!
//! What it leaves is not trusted. When it has ended, the worker looks at what it has made and moves it to where the build
//! reads it, in which no child can write: so a later child cannot change what was checked, nor lead the worker elsewhere.

mod attributes;
mod budget;
mod checkout;
mod child;
mod effort;
mod fetch;
mod gate;
mod lfs;
mod mirror;
mod mtimes;
mod request;
mod submodules;

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::beneath::{Destination, Directory};
use crate::bounds;
use crate::event::{Event, Phase};
use crate::job::{Build, Repository, Sha, Trust};
use crate::journal::Journal;
use crate::json;
use crate::process::{self, Ended, ProcessError};
use crate::reason::{HasReason, Reason};
use crate::sandbox::{Limits, Sandbox, Sockets, libraries, network_files};
use crate::secret::Secret;
use crate::secret_file;
use crate::settings::{self, MIN_MTIMES_KEY, Mtimes};
use crate::state::{JobDirectory, MirrorDirectory, StateDirectory, StateError};

use gate::Gate;
use request::{Fault, Message, Request, WORKTREE};

pub use child::{VERB, main as child_main};
pub use submodules::{MAX_SUBMODULES, Submodule};

/// Characters that are told of what a child says when it dies.
const MAX_NOISE: usize = 500;

/// The directory of a job in which its source child writes.
const STAGE: &str = "source";

/// How the Rust runtime begins its last words when there is no memory.
const NO_MEMORY: &str = "memory allocation of ";

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
    /// The child has left something that is not a worktree, or the mirror's directory cannot be looked at.
    #[error("{url}: {what}: {source}")]
    Left {
        /// The repository's URL.
        url: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
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
    },
    /// It was stopped.
    #[error("the build was stopped")]
    Stopped,
}

impl SourceError {
    /// Whether the commit may simply not be there: libgit2 reports that as a broken connection.
    pub fn is_unclear(&self) -> bool {
        matches!(self, Self::Fault { fault: Fault::Unclear, .. })
    }

    /// Whether the token was not taken: it may be too new, or too old.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Fault { fault: Fault::Denied, .. })
    }
}

impl HasReason for SourceError {
    fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Url { .. } => Reason::RepositoryNotFound,
            Self::Submodule { .. } => Reason::SourceRefused,
            Self::MtimesKey(_) | Self::State(_) | Self::Process(_) | Self::Left { .. } => Reason::WorkerFailed,
            Self::Stopped => return None,
            Self::Killed { .. } => Reason::GitUnavailable,
            Self::Fault { fault, .. } => match fault {
                Fault::CommitNotFound => Reason::CommitNotFound,
                Fault::Refused => Reason::SourceRefused,
                Fault::Unavailable | Fault::Denied | Fault::Unclear | Fault::Damaged => Reason::GitUnavailable,
                Fault::Full | Fault::Worker => Reason::WorkerFailed,
            },
        })
    }
}

/// Where a commit is to be had, and where it goes.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// URL of the repository, without credentials.
    pub url: String,
    /// Password of `x-access-token`; none for a repository that anybody may read.
    pub token: Option<Secret>,
    /// What the mirror is kept under: a number that outlives renames, never the name.
    pub mirror: String,
    /// How far its author is trusted: mirrors are apart by that, and that of forks is verified when it is read.
    pub trust: Trust,
    /// The job's, in which the child gets a stage.
    pub directory: &'a JobDirectory,
    /// The directory to make. BuildKit's transfer of a context is keyed by its last component.
    pub worktree: &'a Destination,
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
    /// `Submodule` when there is none, or when a link is on the way to it.
    pub fn make_room(&self, submodule: &Submodule) -> Result<Destination, SourceError> {
        let refused = |message: String| SourceError::Submodule { path: submodule.path.clone(), message };
        let place = Path::new(&submodule.path);
        let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else {
            return Err(refused("has no place in the worktree".into()));
        };
        let opened = Directory::open(&self.path).and_then(|root| root.directory(parent));
        let parent = opened.map_err(|error| refused(format!("has no place in the worktree: {error}")))?;
        parent.remove_empty(name).map_err(|error| refused(format!("has no empty directory: {error}")))?;
        Ok(Destination { path: self.path.join(place), parent })
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

    /// The key of all accounts. Its file is read for each job, so that it can be replaced.
    ///
    /// # Errors
    ///
    /// `MtimesKey` when its file cannot be read, or holds a key that could be guessed.
    pub fn configured_mtimes_key(&self) -> Result<Secret, SourceError> {
        let source = self.settings.mtimes_key().ok_or_else(|| SourceError::MtimesKey("is not set".into()))?;
        let key = secret_file::read(&source).map_err(|error| SourceError::MtimesKey(error.to_string()))?;
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
        origin: &Origin<'_>,
        state: &StateDirectory,
        journal: &Journal,
        stop: &CancellationToken,
    ) -> Result<Worktree, SourceError> {
        let (host, port) = host_and_port(&origin.url)?;
        // Held until the child has ended.
        let mirror = hold(origin, &host, state).await?;
        let stage = origin.directory.fresh(STAGE).await?;
        let request = Request {
            url: origin.url.clone(),
            token: origin.token.as_ref().map(|token| token.expose().to_owned()),
            revision: origin.revision.clone().into(),
            mtimes_key: origin.mtimes_key.as_ref().map(|key| key.expose().to_owned()),
            // Strangers write the mirror of forks, each for all others. It costs half of a checkout's processor time again.
            is_verified: origin.trust == Trust::Fork,
            mirror: mirror.content().to_owned(),
            stage: stage.clone(),
            limits: request::Limits { taken: origin.spent.size, ..(&self.settings).into() },
            ca_file: self.settings.ca_file.clone(),
        };
        let made = self.make(&request, port, origin, journal, stop).await.and_then(|worktree| {
            let left = |source| SourceError::Left { url: origin.url.clone(), what: "the worktree", source };
            let stage = Directory::open(&stage).map_err(left)?;
            stage.move_to(OsStr::new(WORKTREE), origin.worktree).map_err(left)?;
            Ok(worktree)
        });
        origin.directory.clear(STAGE).await?;
        made
    }

    /// Runs a source child; what it says of itself is the result.
    async fn make(
        &self,
        request: &Request,
        port: u16,
        origin: &Origin<'_>,
        journal: &Journal,
        stop: &CancellationToken,
    ) -> Result<Worktree, SourceError> {
        let mut phase = journal.begin(Phase::Fetch);
        let entered = stop.run_until_cancelled(self.gate.enter(&request.mirror)).await;
        let Some(mut entry) = entered else {
            return Err(SourceError::Stopped);
        };
        let command = self.sandbox(request, port).reexec(VERB);
        let input = serde_json::to_vec(request).expect("a request is plain data");
        let limits = process::Limits {
            timeout: self.settings.timeout.saturating_sub(origin.spent.time),
            silence: self.settings.timeout,
            max_output_bytes: bounds::SOURCE_OUTPUT,
            stop: stop.clone(),
        };
        let (started, mut said) = (Instant::now(), Said::default());
        let ended = process::run(command, &input, &limits, |stream, line| match (stream, json::read(line)) {
            (process::Stream::Out, Ok(Message::Progress { received_bytes })) => {
                journal.tell(Event::Fetching { received_bytes })
            }
            (process::Stream::Out, Ok(Message::Fetched)) => {
                if entry.turn.take().is_some() {
                    phase.turn_into(Phase::Checkout);
                }
            }
            (process::Stream::Out, Ok(message)) => said.last = Some(message),
            // What a dying child says: a panic, or the launcher's error.
            _ => said.noise = String::from_utf8_lossy(line).chars().take(MAX_NOISE).collect(),
        })
        .await?;
        said.has_fetched = entry.turn.is_none();
        conclude(origin, ended, said, started.elapsed())
    }

    fn sandbox(&self, request: &Request, port: u16) -> Sandbox {
        let mut system = libraries();
        system.extend(network_files(&self.settings.ca_file));
        Sandbox {
            enforcement: self.sandbox.mode.into(),
            system,
            execute: Vec::new(),
            read: Vec::new(),
            write: vec![request.mirror.clone(), request.stage.clone(), "/dev/null".into()],
            sockets: Sockets::Tcp(vec![port]),
            limits: Limits {
                data_bytes: self.sandbox.max_data_bytes,
                // It lowers that for itself when it knows what there is to do: `effort`.
                cpu_seconds: Some(request.limits.timeout_s),
                // libgit2 counts after it has written.
                file_bytes: self.settings.max_fetch_bytes.max(self.settings.max_file_bytes) + (1 << 20),
                stack_bytes: None,
            },
        }
    }
}

/// The mirror's directory, in a state that a child can use.
async fn hold(origin: &Origin<'_>, host: &str, state: &StateDirectory) -> Result<MirrorDirectory, SourceError> {
    let held = state.mirror(origin.trust, host, &origin.mirror)?;
    if mirror::is_sound(held.content()).unwrap_or(false) {
        return Ok(held);
    }
    tracing::warn!(path = %held.content().display(), event = "mirror_discarded", "mirror discarded: a child left something else in it");
    held.discard(state).await?;
    Ok(state.mirror(origin.trust, host, &origin.mirror)?)
}

/// What a child has said.
#[derive(Default)]
struct Said {
    last: Option<Message>,
    has_fetched: bool,
    noise: String,
}

/// What comes of a child's words and its end. What it could make up is taken only where that harms no other build.
fn conclude(origin: &Origin<'_>, ended: Ended, said: Said, elapsed: Duration) -> Result<Worktree, SourceError> {
    let url = origin.url.clone();
    match (said.last, ended) {
        (Some(Message::Done { sha, fetch_ms, checkout_ms, size, lfs_pointers, submodules }), Ended::Exited(_)) => {
            let sha = match &origin.revision {
                Revision::Sha(sha) => Some(sha.clone()),
                Revision::Name(_) => Sha::parse(&sha),
            };
            Ok(Worktree {
                path: origin.worktree.path.clone(),
                sha,
                fetch: Duration::from_millis(fetch_ms).min(elapsed),
                checkout: Duration::from_millis(checkout_ms).min(elapsed),
                size,
                lfs_pointers: lfs_pointers.into_iter().map(PathBuf::from).collect(),
                submodules,
            })
        }
        (Some(Message::Failed { fault, message }), Ended::Exited(_)) => Err(SourceError::Fault { url, fault, message }),
        (_, Ended::Stopped) => Err(SourceError::Stopped),
        (_, Ended::TimedOut | Ended::Silent) => Err(SourceError::Killed { url, what: "took too long" }),
        (_, Ended::TooMuchOutput) => Err(SourceError::Killed { url, what: "said too much" }),
        (_, Ended::Exited(status)) => Err(died(url, status, said.has_fetched, &said.noise)),
    }
}

/// A child that ended without its last word.
fn died(url: String, status: ExitStatus, has_fetched: bool, noise: &str) -> SourceError {
    let refused = |message: &str| (Fault::Refused, message.to_owned());
    let (fault, message) = match status.signal() {
        Some(libc::SIGXCPU) if has_fetched => refused(
            "writing the files takes too much processor time: look for patterns with several * in .gitattributes",
        ),
        Some(libc::SIGXCPU) => refused("unpacking the commit takes too much processor time"),
        _ if noise.starts_with(NO_MEMORY) => refused("the commit takes more memory than a worker gives to it"),
        _ => (Fault::Worker, format!("the source child ended with {status}: {noise}")),
    };
    SourceError::Fault { url, fault, message }
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
