//! Why a step was not cached: what is remembered of the last build, what is known of this one, and the comparison.
//!
//! Pure: plain values in, a [`NotCached`](crate::event::NotCached) out. Names only a cause that the values prove. Follows what
//! BuildKit puts into a cache key (`frontend/dockerfile/dockerfile2llb`, `solver/llbsolver/ops`).

mod compare;
mod files;
mod judge;
mod plan;
mod record;
mod steps;

pub use files::{Change, Changes, ContextChanges};
pub use judge::{Facts, judge};
pub use plan::{BaseImage, Plan, Wanted};
pub use record::{LastBuild, Marker};
pub use steps::{SeenStep, StepState};
