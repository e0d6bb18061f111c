//! Whether a pod has built a base image: what a build asks Redis, and the answer.
//!
//! BuildKit keeps no result of a build while other builds use the same base image for the first time. On a new pod, builds that
//! overlap without a pause are never cached. A build of the base image alone, which ends before the others begin, prevents this.

use std::fmt;
use std::time::Duration;

/// How long a build waits for base images, all together.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a base image alone may take. No layers are pulled, so a registry that takes longer hangs.
pub const LONGEST: Duration = Duration::from_secs(15);

/// How long the claim of a worker that died lasts.
pub const CLAIM: Duration = Duration::from_secs(20);

/// A base image that can be built alone. It shows as in a Dockerfile, with its platforms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseBuild {
    /// What stands after FROM.
    pub from: String,
    /// The platforms of the target; none for the builder's own.
    pub platforms: Vec<String>,
}

impl fmt::Display for BaseBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FROM {} {}", self.from, self.platforms.join(","))
    }
}

/// What is known of a base image on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmth {
    /// No build has built it there. The caller must.
    Cold,
    /// Another build is building it.
    Warming,
    /// It has been built.
    Warm,
}

/// What a build says of a base image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmthStep {
    /// It will build it, if it is cold.
    Claim,
    /// It has built it.
    Done,
    /// It could not build it.
    GiveUp,
}

/// A question about a base image on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmthQuestion {
    /// The pod's uid and its restart count: a container that starts again may have lost its cache.
    pub pod: String,
    /// The base image as it stands after FROM, and its platforms.
    pub base: String,
    /// What is said of it.
    pub step: WarmthStep,
    /// Random, the same in all questions of one build.
    pub claim: String,
}
