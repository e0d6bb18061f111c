//! Whether a pod has finished a build of a base image: a question to the fleet, and its answer.
//!
//! BuildKit keeps no result of a build while other builds use the same base image for the first time. On a new pod under unbroken load
//! that is always so: nothing is cached until the pod is idle once. A small build of the base image that ends before the others begin
//! mends it.

/// What is known of a base image on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmth {
    /// Nobody has built it there. The one that asks does.
    Cold,
    /// Another build does so now.
    Warming,
    /// It has been built.
    Warm,
}

/// What a build asks of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmthStep {
    /// Takes on what is cold.
    Begin,
    /// It has been built.
    Done,
    /// It could not be built.
    GiveUp,
}

/// A question about base images on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmthQuestion {
    /// The pod, and which of its lives: a container that starts again has no cache.
    pub pod: String,
    /// What stands after `FROM`.
    pub bases: Vec<String>,
    /// What is asked.
    pub step: WarmthStep,
}
