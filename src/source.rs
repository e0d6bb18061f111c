//! Worktrees: requested here, created in the source child.
//!
//! libgit2 reads packs that strangers wrote, so it runs in a child of our own binary: sandboxed, with the request and the token
//! on standard input and an empty environment. It sees only the mirror and its own stage, and connects only to the git host's
//! port, or to that of its proxy. It can be killed at any moment without harm.
//!
//! Its files are not trusted. After its end, the worker checks them and moves them to where the build reads them and no child
//! can write. So no later child can change what was checked, or lead the worker elsewhere.

mod attributes;
mod budget;
mod changes;
mod checkout;
mod child;
mod effort;
mod encoding;
mod error;
mod fetch;
mod gate;
mod git_dir;
mod lfs;
mod mirror;
mod mtimes;
mod remote;
mod request;
mod submodules;
mod worktree;

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
use crate::job::{Build, Commit, GitRef, Repository, Sha, Trust};
use crate::journal::Journal;
use crate::json;
use crate::network::{self, Proxies, Proxy};
use crate::process::{self, Ended};
use crate::sandbox::{ResourceLimits, Sandbox, Sockets, libraries, network_files};
use crate::secret::Secret;
use crate::secret_file;
use crate::settings::{self, GitDir, MIN_MTIMES_KEY, Mtimes};
use crate::state::{JobDirectory, MirrorDirectory, StateDirectory};

use gate::Gate;
use request::{CheckoutRequest, Fault, Message, NEEDS_MEMORY, ProxyRequest, WORKTREE};

pub use child::{VERB, main as child_main};
pub use encoding::MAX_NAMED as MAX_ENCODED;
pub use error::SourceError;
pub use request::GitDirRequest;
pub use submodules::{MAX_SUBMODULES, Submodule};
pub use worktree::{Size, Spent, Worktree};

/// Characters of a dying child's last output that are reported.
const MAX_NOISE: usize = 500;

/// The directory of a job where its source child writes.
const STAGE: &str = "source";

/// How the Rust runtime reports that memory has run out.
const NO_MEMORY: &str = "memory allocation of ";

/// Which commit to check out, from where and to where.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// URL of the repository, without credentials.
    pub url: String,
    /// Password of `x-access-token`; `None` for a public repository.
    pub token: Option<Secret>,
    /// The name of the mirror: a number that outlives renames, never the repository's name.
    pub mirror: String,
    /// How far the author is trusted. Each trust has its own mirrors, and those of forks are verified when they are read.
    pub trust: Trust,
    /// The job's directory, in which the child gets a stage.
    pub directory: &'a JobDirectory,
    /// The directory to create. BuildKit keys the transfer of a context by its last component.
    pub worktree: &'a Destination,
    /// The requested revision.
    pub revision: Revision,
    /// The account's key, from [`Worktrees::mtimes_key`]; without one, files have the times of the checkout.
    pub mtimes_key: Option<Secret>,
    /// Older commits with which it is compared.
    pub since: Vec<String>,
    /// The `.git` that the files get, from [`Worktrees::git_dir`].
    pub git_dir: Option<GitDirRequest>,
    /// What the build's other commits have taken: the limits apply to all of them together.
    pub spent: Spent,
}

/// The requested revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revision {
    /// Exactly this commit.
    Sha(Sha),
    /// The commit of the remote's branch, tag or `HEAD` of this name.
    Name(String),
}

/// Creates worktrees.
#[derive(Debug)]
pub struct Worktrees {
    settings: settings::Source,
    /// Certificates that are trusted beside the system's.
    ca_file: Option<PathBuf>,
    sandbox: settings::Sandbox,
    git_url: String,
    gate: Gate,
}

impl Worktrees {
    /// Takes the settings.
    pub fn new(settings: &settings::Settings) -> Self {
        Self {
            settings: settings.source.clone(),
            ca_file: settings.ca_file().map(Path::to_owned),
            sandbox: settings.sandbox.clone(),
            git_url: settings.github.git_url.trim_end_matches('/').to_owned(),
            gate: Gate::new(settings.clones),
        }
    }

    /// The time limit of fetch and checkout together.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// The configured git host, as in its URLs.
    pub fn host(&self) -> &str {
        self.git_url.split_once("://").map_or(self.git_url.as_str(), |(_, host)| host)
    }

    /// The URL of a repository on the configured git host.
    pub fn url(&self, repository: &Repository) -> String {
        format!("{}/{repository}.git", self.git_url)
    }

    /// The key that derives times from content in this account's worktrees: HMAC-SHA256 of the configured key over the account's
    /// name, 64 hexadecimal digits. `None` when the repository's files have the times of the checkout.
    ///
    /// The configured key never reaches a child: one that a stranger's pack took over could compute other accounts' times.
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

    /// The configured key of all accounts. Its file is read again each time, so that it can be replaced.
    ///
    /// # Errors
    ///
    /// `MtimesKey` when its file cannot be read, or when the key is short enough to guess.
    pub fn configured_mtimes_key(&self) -> Result<Secret, SourceError> {
        let source = self.settings.mtimes_key().ok_or_else(|| SourceError::MtimesKey("is not set".into()))?;
        let key = secret_file::read(&source).map_err(|error| SourceError::MtimesKey(error.to_string()))?;
        if key.expose().len() < MIN_MTIMES_KEY {
            return Err(SourceError::MtimesKey(format!("is shorter than {MIN_MTIMES_KEY} characters")));
        }
        Ok(key)
    }

    /// The `.git` that the files of a job's commit get.
    pub fn git_dir(&self, git_ref: Option<&GitRef>) -> Option<GitDirRequest> {
        let branch = git_ref.and_then(GitRef::branch).map(str::to_owned);
        let tag = git_ref.filter(|_| branch.is_none()).map(GitRef::to_string);
        (self.settings.git_dir == GitDir::Minimal).then_some(GitDirRequest { branch, tag })
    }

    /// Whether submodules of this repository are fetched.
    pub fn takes_submodules_of(&self, repository: &Repository) -> bool {
        let name = repository.to_string();
        self.settings.submodules.iter().any(|pattern| pattern.matches(&name))
    }

    /// The repository on the git host to which a submodule of `parent` refers.
    ///
    /// # Errors
    ///
    /// `Submodule` when it has no URL, or when its URL is not that of a repository on the git host.
    pub fn repository_of(&self, submodule: &Submodule, parent: &Repository) -> Result<Repository, SourceError> {
        let refused = |message| SourceError::Submodule { path: submodule.path.clone(), message };
        submodule.repository(parent, &self.git_url).map_err(refused)
    }

    /// Creates a worktree, once a slot is free.
    ///
    /// The child is killed when `stop` is cancelled, at the time limit, or when this future is dropped.
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
        let proxies = Proxies::of_process();
        let proxy = proxies.of(&origin.url);
        let port = proxy.map_or(port, Proxy::port);
        let request = CheckoutRequest {
            url: origin.url.clone(),
            token: origin.token.as_ref().map(|token| token.expose().to_owned()),
            revision: origin.revision.clone(),
            since: origin.since.clone(),
            mtimes_key: origin.mtimes_key.as_ref().map(|key| key.expose().to_owned()),
            // Strangers write into the mirrors of forks. Verifying adds half of a checkout's processor time.
            is_verified: origin.trust == Trust::Fork,
            mirror: mirror.content().to_owned(),
            stage: stage.clone(),
            limits: request::CheckoutLimits { taken: origin.spent.size, ..(&self.settings).into() },
            certificates: [network::system_certificates()].into_iter().chain(self.ca_file.clone()).collect(),
            proxy: proxy.map(|proxy| ProxyRequest { source: proxy.source.clone(), url: proxy.url.expose().to_owned() }),
            git_dir: origin.git_dir.clone(),
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

    /// Asks the git host for a repository that need not exist, in the way that a job's commit is fetched.
    ///
    /// # Errors
    ///
    /// Why the git host does not answer. A refusal is an answer.
    pub async fn reach(&self, state: &StateDirectory, directory: &JobDirectory) -> Result<(), SourceError> {
        let destination = directory.vacancy("tree", "doctor")?;
        let origin = Origin {
            url: format!("{}/sidebake/doctor.git", self.git_url),
            token: None,
            mirror: "doctor".into(),
            trust: Trust::Fork,
            directory,
            worktree: &destination,
            revision: Revision::Name("HEAD".into()),
            mtimes_key: None,
            since: Vec::new(),
            git_dir: None,
            spent: Spent::default(),
        };
        let journal = Journal::new(Vec::new(), directory.worker_paths());
        match self.check_out(&origin, state, &journal, &CancellationToken::new()).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_answer() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Runs a source child and returns its result.
    async fn make(
        &self,
        request: &CheckoutRequest,
        port: u16,
        origin: &Origin<'_>,
        journal: &Journal,
        stop: &CancellationToken,
    ) -> Result<Worktree, SourceError> {
        let mut phase = journal.begin(Phase::Fetch);
        let entered = stop.run_until_cancelled(self.gate.enter(&request.mirror)).await;
        let Some(mut admission) = entered else {
            return Err(SourceError::Stopped);
        };
        let command = self.sandbox(request, port).reexec(VERB);
        let input = serde_json::to_vec(request).expect("a request is plain data");
        let limits = process::RunLimits {
            timeout: Some(self.settings.timeout.saturating_sub(origin.spent.time)),
            silence: None,
            max_output_bytes: bounds::SOURCE_OUTPUT,
            stop: stop.clone(),
        };
        let (started, mut output) = (Instant::now(), ChildOutput::default());
        let ended = process::run(command, &input, &limits, |stream, line| match (stream, json::read(line)) {
            (process::Stream::Out, Ok(Message::Progress { received_bytes })) => {
                journal.emit(Event::Fetching { received_bytes })
            }
            (process::Stream::Out, Ok(Message::Fetched)) => {
                if admission.turn.take().is_some() {
                    phase.turn_into(Phase::Checkout);
                }
            }
            (process::Stream::Out, Ok(message)) => output.last = Some(message),
            // Last output of a dying child: a panic, or the launcher's error.
            _ => output.noise = String::from_utf8_lossy(line).chars().take(MAX_NOISE).collect(),
        })
        .await?;
        output.has_fetched = admission.turn.is_none();
        conclude(origin, ended, output, started.elapsed())
    }

    fn sandbox(&self, request: &CheckoutRequest, port: u16) -> Sandbox {
        let mut system = libraries();
        system.extend(request.certificates.iter().flat_map(|path| network_files(path)));
        Sandbox {
            enforcement: self.sandbox.mode.into(),
            system,
            execute: Vec::new(),
            read: Vec::new(),
            write: vec![request.mirror.clone(), request.stage.clone(), "/dev/null".into()],
            sockets: Sockets::Tcp(vec![port]),
            limits: ResourceLimits {
                data_bytes: self.sandbox.max_data_bytes,
                // The child lowers it once it knows the commit's size: `effort`.
                cpu_seconds: Some(request.limits.timeout_s),
                // libgit2 checks the size after writing.
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
    tracing::warn!(path = %held.content().display(), event = "mirror_discarded", "mirror discarded: a child left unexpected files in it");
    held.discard(state).await?;
    Ok(state.mirror(origin.trust, host, &origin.mirror)?)
}

/// What a child has reported.
#[derive(Default)]
struct ChildOutput {
    last: Option<Message>,
    has_fetched: bool,
    noise: String,
}

/// The result of a child, from its messages and its end. A message that it could forge counts only where that harms no other build.
fn conclude(
    origin: &Origin<'_>,
    ended: Ended,
    output: ChildOutput,
    elapsed: Duration,
) -> Result<Worktree, SourceError> {
    let url = origin.url.clone();
    match (output.last, ended) {
        (
            Some(Message::Done {
                sha: claimed,
                size,
                lfs_pointers,
                submodules,
                committed_at_s,
                links,
                changes,
                encoded,
            }),
            Ended::Exited(_),
        ) => {
            let sha = match &origin.revision {
                Revision::Sha(sha) => Some(sha.clone()),
                Revision::Name(_) => Sha::parse(&claimed),
            };
            let is_tag = matches!(&origin.revision, Revision::Sha(asked) if asked.as_str() != claimed);
            let committed_at = Commit::time(committed_at_s);
            Ok(Worktree {
                path: origin.worktree.path.clone(),
                commit: sha.map(|sha| Commit { sha, url, committed_at }),
                took: elapsed,
                size,
                lfs_pointers: lfs_pointers.into_iter().map(PathBuf::from).collect(),
                submodules,
                links,
                changes,
                is_tag,
                encoded,
            })
        }
        (Some(Message::Failed { fault, message }), Ended::Exited(_)) => Err(SourceError::Fault { url, fault, message }),
        (_, Ended::Stopped) => Err(SourceError::Stopped),
        (_, Ended::TimedOut | Ended::Silent) => Err(SourceError::Killed { url, what: "took too long" }),
        (_, Ended::TooMuchOutput) => Err(SourceError::Killed { url, what: "printed too much" }),
        (_, Ended::Exited(status)) => Err(died(url, status, output.has_fetched, &output.noise)),
    }
}

/// The error of a child that ended without a result.
fn died(url: String, status: ExitStatus, has_fetched: bool, noise: &str) -> SourceError {
    let refused = |message: &str| (Fault::Refused, message.to_owned());
    let (fault, message) = match status.signal() {
        Some(libc::SIGXCPU) if has_fetched => refused(
            "writing the files took too much processor time; simplify patterns with several * in .gitattributes, or commit smaller files",
        ),
        Some(libc::SIGXCPU) => refused("unpacking the commit took too much processor time"),
        _ if noise.starts_with(NO_MEMORY) => refused(NEEDS_MEMORY),
        _ => (Fault::Worker, format!("the source child ended with {status}: {noise}")),
    };
    SourceError::Fault { url, fault, message }
}

/// The host (with its port unless it is the default) and the port of an `https` or `http` URL.
///
/// Refuses everything else (paths, `file:`, `git:`, `ssh:`), and credentials in the URL.
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
