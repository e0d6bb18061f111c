//! What the worker and the source child say to each other: one JSON object in, lines of JSON out.

use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Revision, Size, Submodule};
use crate::settings;

/// What the child is asked, on its standard input.
#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) url: String,
    /// In the clear: this object exists on a pipe only.
    pub(super) token: Option<String>,
    pub(super) revision: Asked,
    /// The account's key, when times are to follow from content.
    pub(super) mtimes_key: Option<String>,
    /// Whether each object is hashed when it is read.
    pub(super) is_verified: bool,
    /// Directory of the mirror and its locks.
    pub(super) mirror: PathBuf,
    /// An empty directory in which nobody else writes.
    pub(super) stage: PathBuf,
    pub(super) limits: Limits,
    pub(super) ca_file: PathBuf,
}

/// What the worktree is called in the stage.
pub(super) const WORKTREE: &str = "tree";

impl Request {
    pub(super) fn worktree(&self) -> PathBuf {
        self.stage.join(WORKTREE)
    }
}

/// [`Revision`] on the wire.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Asked {
    Sha(String),
    Name(String),
}

impl From<Revision> for Asked {
    fn from(revision: Revision) -> Self {
        match revision {
            Revision::Sha(sha) => Self::Sha(sha.to_string()),
            Revision::Name(name) => Self::Name(name),
        }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) connect_timeout_ms: i32,
    pub(super) stall_timeout_ms: i32,
    pub(super) max_entries: u64,
    pub(super) max_tree_bytes: u64,
    pub(super) max_file_bytes: u64,
    pub(super) max_fetch_bytes: u64,
    /// For fetch and checkout together, of the clock; processor time is derived from it.
    pub(super) timeout_s: u64,
    /// What other commits of the build have taken of the entries and the bytes.
    pub(super) taken: Size,
}

impl From<&settings::Source> for Limits {
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

/// What the child says, a line each; the last one is `Done` or `Failed`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    Progress {
        received_bytes: u64,
    },
    /// All is here, and others may fetch.
    Fetched,
    Done {
        sha: String,
        fetch_ms: u64,
        checkout_ms: u64,
        size: Size,
        lfs_pointers: Vec<String>,
        submodules: Vec<Submodule>,
    },
    Failed {
        fault: Fault,
        message: String,
    },
}

/// The kinds of failure, as far as the child can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The remote has no such branch, tag or commit.
    CommitNotFound,
    /// The content is over a limit, or something that git forbids.
    Refused,
    /// The remote cannot be reached, refuses, stalls or breaks off.
    Unavailable,
    /// The remote does not take the token, or shows it nothing.
    Denied,
    /// The commit is not there, or the connection broke: libgit2 does not say which.
    Unclear,
    /// What git keeps on our disk is damaged; the mirror is made anew.
    Damaged,
    /// The disk takes no more.
    Full,
    /// Anything else of this machine's.
    Worker,
}

/// What went wrong, as it is told to the worker.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) fault: Fault,
    pub(super) message: String,
}

impl Failed {
    pub(super) fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }

    /// The same, with the paths of files as their owner knows them, and none of the worker's.
    pub(super) fn without_paths(self, request: &Request) -> Self {
        let mut message = self.message;
        for (path, name) in [(&request.worktree(), ""), (&request.stage, ""), (&request.mirror, "mirror/")] {
            message = message.replace(&format!("{}/", path.display()), name);
        }
        Self { message, ..self }
    }

    /// A failure of the mirror or the disk.
    pub(super) fn worker(error: impl std::fmt::Display) -> Self {
        Self::new(Fault::Worker, error.to_string())
    }
}

/// Writes one line to the worker. When nobody reads it any more, the kernel is about to end us.
pub(super) fn say(message: &Message) {
    let line = serde_json::to_string(message).expect("a message is plain data");
    let _ = writeln!(std::io::stdout(), "{line}");
}
