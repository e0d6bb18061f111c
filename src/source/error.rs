//! Why a worktree could not be created, with its reason.

use super::request::Fault;
use crate::process::ProcessError;
use crate::reason::{HasReason, Reason};
use crate::state::StateError;

/// The worktree could not be created.
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
    /// The key of content times cannot be used.
    #[error("source.mtimes_key: {0}")]
    MtimesKey(String),
    /// A directory cannot be created.
    #[error(transparent)]
    State(#[from] StateError),
    /// A submodule cannot be fetched.
    #[error("the submodule {path:?} {message}")]
    Submodule {
        /// Where it is in the worktree.
        path: String,
        /// Why.
        message: String,
    },
    /// The child left something other than a worktree, or the mirror's directory cannot be read.
    #[error("{url}: {what}: {source}")]
    Left {
        /// The repository's URL.
        url: String,
        /// The part that failed.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The child cannot be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The child reported a failure.
    #[error("{url}: {message}")]
    Fault {
        /// The repository's URL, which holds no credentials.
        url: String,
        /// Its kind.
        fault: Fault,
        /// Its message.
        message: String,
    },
    /// The child was killed by us, or ended without a result.
    #[error("{url}: fetching {what}")]
    Killed {
        /// The repository's URL.
        url: String,
        /// Why.
        what: &'static str,
    },
    /// The build was stopped.
    #[error("the build was stopped")]
    Stopped,
}

impl SourceError {
    /// Whether the commit may be missing: the git host answers as for any other error.
    pub fn is_unclear(&self) -> bool {
        matches!(self, Self::Fault { fault: Fault::Unclear, .. })
    }

    /// Whether the git host answered in words of git or of HTTP.
    pub fn is_answer(&self) -> bool {
        let answers = [Fault::CommitNotFound, Fault::Denied, Fault::Unclear, Fault::Refused];
        matches!(self, Self::Fault { fault, .. } if answers.contains(fault))
    }

    /// Whether the token was refused: it may be too new, or revoked.
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
                Fault::Full | Fault::Client | Fault::Worker => Reason::WorkerFailed,
            },
        })
    }
}
