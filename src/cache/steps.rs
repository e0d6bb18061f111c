//! The steps of a target as BuildKit reported them.

use std::time::Duration;

/// A step of a Dockerfile. FROM is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenStep {
    /// The stage in its name: without the platform, and empty when the Dockerfile has one stage.
    pub label: String,
    /// Its number in the stage.
    pub number: u32,
    /// The steps of the stage.
    pub total: u32,
    /// Its instruction as BuildKit shows it, such as `RUN make`.
    pub instruction: String,
    /// What became of it.
    pub state: StepState,
    /// How long it ran, on the builder's clock.
    pub took: Duration,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Its result was in the cache, or that of a later step.
    Cached,
    /// It ran to its end.
    Ran,
    /// It began, and did not succeed.
    Failed,
    /// It did not begin.
    Planned,
}

impl StepState {
    /// Whether its result was not in the cache.
    pub(super) fn has_begun(self) -> bool {
        matches!(self, Self::Ran | Self::Failed)
    }
}
