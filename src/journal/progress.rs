//! The progress of a build in one line.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::Listener;
use crate::event::{Event, OpenPhases, Phase};

/// The progress so far.
#[derive(Debug, Default)]
pub struct Progress(Mutex<ProgressState>);

#[derive(Debug, Default)]
struct ProgressState {
    open: OpenPhases,
    phase: Option<Phase>,
    n_targets: usize,
    done: BTreeSet<String>,
}

impl Listener for Progress {
    fn on_event(&self, event: &Event) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::PhaseStarted(_) | Event::PhaseEnded(..) => {
                state.open.take_in(event);
                // Between two phases, the last one is shown.
                state.phase = state.open.innermost().or(state.phase);
            }
            Event::Targets(n) => state.n_targets = *n,
            Event::TargetDone(target) => drop(state.done.insert(target.clone())),
            _ => {}
        }
    }
}

impl Progress {
    /// Such as `fetch` or `bake, 1 of 3 targets`; `None` before anything has begun.
    pub fn text(&self) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let phase = state.phase?.name();
        let (n_done, n_targets) = (state.done.len(), state.n_targets);
        Some(if n_targets == 0 { phase.to_owned() } else { format!("{phase}, {n_done} of {n_targets} targets") })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_phase_and_the_targets_that_are_done_are_told() {
        let progress = Progress::default();
        assert_eq!(progress.text(), None);
        progress.on_event(&Event::PhaseStarted(Phase::Fetch));
        assert_eq!(progress.text().as_deref(), Some("fetch"));
        progress.on_event(&Event::PhaseEnded(Phase::Fetch, Duration::ZERO));
        assert_eq!(progress.text().as_deref(), Some("fetch"));
        progress.on_event(&Event::PhaseStarted(Phase::Bake));
        progress.on_event(&Event::PhaseStarted(Phase::Warm));
        assert_eq!(progress.text().as_deref(), Some("warm"));
        progress.on_event(&Event::PhaseEnded(Phase::Warm, Duration::ZERO));
        progress.on_event(&Event::Targets(2));
        // After a lost pod, a target may be built again.
        for _ in 0..2 {
            progress.on_event(&Event::TargetDone("web".into()));
        }
        assert_eq!(progress.text().as_deref(), Some("bake, 1 of 2 targets"));
    }
}
