//! What happens during a build, as values.
//!
//! Stations hand these to the journal and do not care who looks. Events carry no secret of the worker's: none reaches a
//! child whose output becomes one.

use std::time::Duration;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A phase of the build began.
    PhaseStarted(Phase),
    /// A phase ended; how long it took on the monotonic clock.
    PhaseEnded(Phase, Duration),
    /// So many targets will be built.
    Targets(usize),
    /// A target is built, and pushed when asked.
    TargetDone(String),
    /// Bytes of the repository received so far.
    Fetching {
        /// Bytes over the wire.
        received_bytes: u64,
    },
    /// A step began.
    StepStarted(Step),
    /// A step ended.
    StepEnded {
        /// Which one.
        step: Step,
        /// Whether its result was in the cache.
        is_cached: bool,
        /// Wall time on the builder's clock.
        took: Duration,
        /// BuildKit's error, when it failed.
        error: Option<String>,
    },
    /// A line that a step printed.
    StepOutput {
        /// Which step.
        step: Step,
        /// The line, without its end.
        line: String,
    },
    /// Something that the person who asked for the build should know.
    Notice(String),
}

/// A step of a target, as BuildKit names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The target, as far as the name tells.
    pub target: Option<String>,
    /// What the step does, such as `[2/3] RUN make`.
    pub name: String,
}

/// The phases of a build, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Asking Rails for the job's rows.
    Resolve,
    /// Minting the installation token.
    Token,
    /// Fetching the commit.
    Fetch,
    /// Writing the worktree.
    Checkout,
    /// `docker-buildx bake --print` and policing.
    Print,
    /// `docker-buildx bake`.
    Bake,
}

impl Phase {
    /// Lower case, as in log fields.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Token => "token",
            Self::Fetch => "fetch",
            Self::Checkout => "checkout",
            Self::Print => "print",
            Self::Bake => "bake",
        }
    }
}
