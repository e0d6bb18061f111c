//! Why Kubernetes did not do what a builder needs.

use std::sync::Arc;

use crate::builder::access::AccessError;
use crate::network::Unreachable;

/// Kubernetes did not do what was asked, or has no pod for a build.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server's address or the credentials are not available.
    #[error(transparent)]
    Access(#[from] Arc<AccessError>),
    /// The API server cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The API server refused or did not answer.
    #[error("Kubernetes could not {what}: {message}")]
    Api {
        /// The request, such as `get the Deployment development0 in release-builder`.
        what: String,
        /// Kubernetes' own message: a refusal names the verb and the resource.
        message: String,
        /// What a later request may do about it.
        cause: Cause,
    },
    /// The Deployment does not exist.
    #[error("no Deployment {deployment} in the namespace {namespace}; create it with `sidebake builder ensure`")]
    Missing {
        /// Its name.
        deployment: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// A shard has the name of a builder that buildx made with persistent volumes.
    #[error(
        "{name} in the namespace {namespace} is a StatefulSet, and a shard is a Deployment; give the builder another `node`"
    )]
    StatefulSet {
        /// Its name.
        name: String,
        /// Where it is.
        namespace: String,
    },
    /// No pod answered a build.
    #[error("no pod of {deployment} answered within {waited_s} s")]
    NoAnswer {
        /// The Deployment.
        deployment: String,
        /// How long.
        waited_s: u64,
    },
    /// BuildKit is not in the first container.
    #[error("the Deployment {deployment}: {what}")]
    Misplaced {
        /// The Deployment.
        deployment: String,
        /// Which containers.
        what: String,
    },
    /// Not enough pods became ready.
    #[error("{n_ready} of {n_wanted} pods of {deployment} are ready after {waited_s} s: {why}")]
    NotReady {
        /// The Deployment.
        deployment: String,
        /// Ready pods.
        n_ready: usize,
        /// Pods that were waited for.
        n_wanted: usize,
        /// How long.
        waited_s: u64,
        /// Kubernetes' own reasons.
        why: String,
    },
    /// A file of the builder cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Why the API server did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is away or busy: a later request may succeed.
    Passing,
    /// It does not accept the credentials: newer ones may succeed.
    Unauthorized,
    /// It refuses.
    Refused,
}

impl From<AccessError> for ClusterError {
    fn from(error: AccessError) -> Self {
        Self::Access(Arc::new(error))
    }
}

impl ClusterError {
    /// Whether the API server or the credentials for it are away: a later request may succeed.
    pub(in crate::builder) fn is_away(&self) -> bool {
        match self {
            Self::Api { cause, .. } => *cause != Cause::Refused,
            Self::Access(error) => error.is_passing(),
            Self::Unreachable(_) => true,
            _ => false,
        }
    }

    /// Whether a build waits: Kubernetes or an operator may end this state at any time.
    pub(in crate::builder) fn may_pass(&self) -> bool {
        self.is_away() || matches!(self, Self::Missing { .. } | Self::NotReady { .. } | Self::NoAnswer { .. })
    }

    /// Whether the credentials were not accepted.
    pub(in crate::builder) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Api { cause: Cause::Unauthorized, .. })
    }
}
