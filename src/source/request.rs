//! The messages between the worker and the source child: one JSON object in, lines of JSON out.

use std::io::Write;
use std::path::PathBuf;

use git2::ErrorClass;
use serde::{Deserialize, Serialize};

use super::{Revision, Size, Submodule};
use crate::cache::Changes;
use crate::settings;

/// The request, on the child's standard input.
#[derive(Serialize, Deserialize)]
pub(super) struct CheckoutRequest {
    pub(super) url: String,
    /// Not masked: this object exists only on a pipe.
    pub(super) token: Option<String>,
    pub(super) revision: Revision,
    /// Older commits with which it is compared.
    pub(super) since: Vec<String>,
    /// The account's key, when times derive from content.
    pub(super) mtimes_key: Option<String>,
    /// Whether each object is hashed when it is read.
    pub(super) is_verified: bool,
    /// Directory of the mirror and its locks.
    pub(super) mirror: PathBuf,
    /// An empty directory that only this child writes.
    pub(super) stage: PathBuf,
    pub(super) limits: CheckoutLimits,
    /// PEM files of the certificates that are trusted.
    pub(super) certificates: Vec<PathBuf>,
    /// The proxy of the git host.
    pub(super) proxy: Option<ProxyRequest>,
    /// Whether the files get a `.git`, and which.
    pub(super) git_dir: Option<GitDirRequest>,
}

/// A proxy.
#[derive(Serialize, Deserialize)]
pub(super) struct ProxyRequest {
    /// What names it.
    pub(super) source: String,
    /// With user and password: this object exists only on a pipe.
    pub(super) url: String,
}

/// The `.git` of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitDirRequest {
    /// The job's branch, for `HEAD`.
    pub branch: Option<String>,
    /// The job's tag, by its full name. It is written first when the commit has many.
    pub tag: Option<String>,
}

/// The kernel's errors for a full disk.
const DISK_FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// Why a commit is refused that exhausts its child's memory.
pub(super) const NEEDS_MEMORY: &str = "the commit needs more memory than the worker allows";

/// The worktree's name in the stage.
pub(super) const WORKTREE: &str = "tree";

impl CheckoutRequest {
    pub(super) fn worktree(&self) -> PathBuf {
        self.stage.join(WORKTREE)
    }
}

/// The limits of fetch and checkout.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct CheckoutLimits {
    pub(super) connect_timeout_ms: i32,
    pub(super) stall_timeout_ms: i32,
    pub(super) max_entries: u64,
    pub(super) max_tree_bytes: u64,
    pub(super) max_file_bytes: u64,
    pub(super) max_fetch_bytes: u64,
    /// The time limit of fetch and checkout together. Limits of processor time derive from it.
    pub(super) timeout_s: u64,
    /// The entries and bytes that the build's other commits have taken.
    pub(super) taken: Size,
}

impl From<&settings::Source> for CheckoutLimits {
    fn from(settings: &settings::Source) -> Self {
        let millis = |duration: std::time::Duration| i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
        Self {
            connect_timeout_ms: millis(settings.connect_timeout),
            stall_timeout_ms: millis(settings.stall_timeout),
            max_entries: settings.max_entries,
            max_tree_bytes: settings.max_tree_bytes,
            max_file_bytes: settings.max_file_bytes,
            max_fetch_bytes: settings.max_fetch_bytes,
            timeout_s: settings.timeout.as_secs().max(1),
            taken: Size::default(),
        }
    }
}

/// The child's messages, one per line. The last one is `Done` or `Failed`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    Progress {
        received_bytes: u64,
    },
    /// The commit is complete, and others may fetch.
    Fetched,
    Done {
        sha: String,
        size: Size,
        lfs_pointers: Vec<String>,
        submodules: Vec<Submodule>,
        links: Option<Vec<String>>,
        changes: Vec<Changes>,
        /// Files that git would write in another encoding.
        encoded: Vec<String>,
        /// When the commit was made, in seconds since 1970.
        committed_at_s: i64,
    },
    Failed {
        fault: Fault,
        message: String,
    },
}

/// The kinds of failure that the child can distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The remote has no such branch, tag or commit.
    CommitNotFound,
    /// The content exceeds a limit, or git forbids it.
    Refused,
    /// The remote cannot be reached, refuses, stalls or disconnects.
    Unavailable,
    /// The remote refuses the token, or shows nothing with it.
    Denied,
    /// The commit is missing, or the remote failed: its answer does not distinguish them.
    Unclear,
    /// The mirror is damaged; it is emptied.
    Damaged,
    /// The disk is full.
    Full,
    /// This machine cannot send requests: its certificates or its proxy cannot be used.
    Client,
    /// Any other failure of this machine.
    Worker,
}

/// A failure, as reported to the worker.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) fault: Fault,
    pub(super) message: String,
}

impl Failed {
    pub(super) fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }

    /// The same with the repository's relative paths, and without the worker's.
    pub(super) fn without_paths(self, request: &CheckoutRequest) -> Self {
        let mut message = self.message;
        for (path, name) in [(&request.worktree(), ""), (&request.stage, ""), (&request.mirror, "mirror/")] {
            message = message.replace(&format!("{}/", path.display()), name);
        }
        Self { message, ..self }
    }

    /// A failure of libgit2 to read or write objects. What is not this machine's is in the objects: in a pack, or in the mirror
    /// that it refers to.
    pub(super) fn of_objects(error: &git2::Error) -> Self {
        Self::of_git(error, Fault::Damaged)
    }

    /// A failure of libgit2, with the fault that it has when it is not this machine's.
    pub(super) fn of_git(error: &git2::Error, otherwise: Fault) -> Self {
        let fault = match (error.class(), error.message()) {
            // Only the kernel's words say so.
            (ErrorClass::Os, message) if DISK_FULL.iter().any(|words| message.contains(words)) => Fault::Full,
            (ErrorClass::Os | ErrorClass::Filesystem, _) => Fault::Worker,
            (ErrorClass::NoMemory, _) => return Self::new(Fault::Refused, NEEDS_MEMORY),
            _ => otherwise,
        };
        Self::new(fault, error.message())
    }

    /// A failure of this machine, most often of the mirror or the disk.
    pub(super) fn worker(error: impl std::fmt::Display) -> Self {
        Self::new(Fault::Worker, error.to_string())
    }
}

/// Writes one line to the worker. When the worker is gone, the kernel is about to end this process.
pub(super) fn say(message: &Message) {
    let line = serde_json::to_string(message).expect("a message is plain data");
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use git2::ErrorCode;

    use super::super::{changes, encoding, lfs};
    use super::*;
    use crate::cache::Change;
    use crate::{bounds, json};

    #[test]
    fn a_failure_of_libgit2_is_the_machines_or_the_objects() {
        let of = |class, message| Failed::of_objects(&git2::Error::new(ErrorCode::GenericError, class, message));
        let os = |message| of(ErrorClass::Os, message).fault;
        assert_eq!(os("cannot extend packfile '/x': No space left on device"), Fault::Full);
        assert_eq!(os("failed to create temporary file: Permission denied"), Fault::Worker);
        assert_eq!(of(ErrorClass::Zlib, "error inflating zlib stream").fault, Fault::Damaged);
        let exhausted = of(ErrorClass::NoMemory, "out of memory");
        assert_eq!((exhausted.fault, &*exhausted.message), (Fault::Refused, NEEDS_MEMORY));
    }

    #[test]
    fn the_worker_reads_the_longest_message() {
        let path = || "x".to_owned();
        let change = || Change { path: path(), is_removed: true, is_special: true };
        let list = || Changes {
            since: "1".repeat(40),
            paths: std::iter::repeat_with(change).take(changes::MAX_PATHS).collect(),
            is_complete: true,
        };
        let n_pointers = lfs::MAX_PATHS / (lfs::PER_PATH + 1);
        let longest = Message::Done {
            sha: "1".repeat(40),
            size: Size::default(),
            lfs_pointers: std::iter::repeat_with(path).take(n_pointers).collect(),
            submodules: Vec::new(),
            links: Some(std::iter::repeat_with(path).take(changes::MAX_LINKS).collect()),
            changes: std::iter::repeat_with(list).take(bounds::CACHE_COMMITS).collect(),
            encoded: std::iter::repeat_with(path).take(encoding::MAX_NAMED + 1).collect(),
            committed_at_s: i64::MIN,
        };
        let line = serde_json::to_vec(&longest).expect("a message is plain data");
        let read = json::read::<Message>(&line).map_err(|error| error.to_string());
        assert!(matches!(read, Ok(Message::Done { .. })), "{:?}", read.err());
    }
}
