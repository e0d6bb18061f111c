//! How long steps took when they last ran, from record to record, and so what the cache saves.

use std::collections::HashMap;
use std::time::Duration;

use super::{LastBuild, Mark, MarkedEntry};
use crate::cache::plan::Plan;
use crate::cache::steps::{SeenStep, StepState};

/// What BuildKit reported of a step, on all platforms.
#[derive(Default)]
struct Seen {
    is_cached: bool,
    /// Milliseconds of its longest run; at least 1.
    ran_ms: Option<u32>,
}

impl LastBuild {
    /// Notes how long each step took: in this build, else in an earlier one, of which the first counts. Returns the total time of the
    /// cached steps that the target needs; `None` when it is known of none of them.
    pub(in crate::cache) fn note_times(
        &mut self,
        plan: &Plan,
        steps: &[SeenStep],
        earlier: &[&Self],
    ) -> Option<Duration> {
        let times = earlier.iter().rev().flat_map(|build| build.times()).filter(|(_, ms)| *ms > 0);
        let known: HashMap<Mark, u32> = times.collect();
        let mut seen: HashMap<(&str, u32), Seen> = HashMap::new();
        for step in steps {
            let seen = seen.entry((&step.label, step.number)).or_default();
            seen.is_cached |= step.state == StepState::Cached;
            let ms = u32::try_from(step.took.as_millis()).unwrap_or(u32::MAX).max(1);
            seen.ran_ms = seen.ran_ms.max((step.state == StepState::Ran).then_some(ms));
        }
        let (needed, mut saved) = (plan.needed(), None);
        for (n, stage) in self.stages.iter_mut().flatten().enumerate() {
            let marked = stage.entries.iter_mut().filter_map(|entry| match entry {
                MarkedEntry::Step(mark, _, ms) => Some((*mark, ms)),
                _ => None,
            });
            for ((number, _), (mark, ms)) in plan.steps(n).zip(marked) {
                let seen = seen.get(&(&*plan.stages[n].label, number));
                *ms = seen.and_then(|seen| seen.ran_ms).or_else(|| known.get(&mark).copied()).unwrap_or(0);
                if *ms > 0 && seen.is_some_and(|seen| seen.is_cached) && needed.contains(&n) {
                    *saved.get_or_insert(Duration::ZERO) += Duration::from_millis((*ms).into());
                }
            }
        }
        saved
    }

    /// The steps of all stages, with how long each took when it last ran.
    fn times(&self) -> impl Iterator<Item = (Mark, u32)> {
        let entries = self.stages.iter().flatten().flat_map(|stage| &stage.entries);
        entries.filter_map(|entry| match entry {
            MarkedEntry::Step(mark, _, ms) => Some((*mark, *ms)),
            _ => None,
        })
    }
}
