//! The metrics of one attempt, from its events.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Listener;
use crate::event::Event;
use crate::metric;
use crate::reason::Reason;

/// Records the metrics of one attempt.
#[derive(Debug)]
pub struct Meter {
    queue: String,
    class: String,
    since: Instant,
    /// Bytes of the present fetch that are counted.
    n_fetched: AtomicU64,
}

impl Meter {
    /// Of an attempt that begins now. `class`: one of the settings, or empty: there must not be a series for each name that a client
    /// invents.
    pub fn new(queue: String, class: String, queued: Option<Duration>) -> Self {
        if let Some(queued) = queued {
            metric::PHASE_DURATION.record(["queued"], queued);
        }
        Self { queue, class, since: Instant::now(), n_fetched: AtomicU64::new(0) }
    }

    /// Counts the end of the attempt. `outcome`: what happened to the job, as in [`metric::JOBS`].
    pub fn end(&self, outcome: &str, reason: Option<Reason>) {
        let (queue, class) = (self.queue.as_str(), self.class.as_str());
        metric::JOB_DURATION.record([queue, class], self.since.elapsed());
        let (name, reason_class) = reason.map_or(("", ""), |reason| (reason.name(), reason.class().name()));
        metric::JOBS.add([queue, class, outcome, name, reason_class], 1);
    }
}

impl Listener for Meter {
    fn on_event(&self, event: &Event) {
        match event {
            Event::PhaseEnded(phase, took) => metric::PHASE_DURATION.record([phase.name()], *took),
            Event::StepEnded { is_cached, .. } => metric::STEPS.add([if *is_cached { "true" } else { "false" }], 1),
            Event::Fetching { received_bytes } => {
                let before = self.n_fetched.swap(*received_bytes, Ordering::Relaxed);
                // The child of another fetch, such as that of a submodule, counts from zero.
                metric::FETCHED_BYTES.add([], received_bytes.checked_sub(before).unwrap_or(*received_bytes));
            }
            Event::PodLost { builder } => metric::POD_RETRIES.add([builder], 1),
            Event::ContextSent { n_bytes } => metric::CONTEXT_BYTES.add([], *n_bytes),
            _ => {}
        }
    }
}
