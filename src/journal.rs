//! The journal of a build: receives all its events and passes them to listeners.
//!
//! The only way for events: integrations emit them, and the journal passes each to every listener in turn. Listeners are the worker's
//! log, its metrics, the terminal, the progress in Sidekiq's Web UI, the live log, the archived log, and the record from which the
//! report is made.

mod meter;
mod progress;
mod record;
mod terminal;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::event::{Event, Phase, Placement, millis};
use crate::text::paths::WorkerPaths;
use crate::{bounds, text};

pub use meter::Meter;
pub use progress::Progress;
pub use record::Record;
pub use terminal::{Terminal, Wishes, print_report};

/// Receives all events of a build. It must not block for long: the emitting code waits.
pub trait Listener: fmt::Debug + Send + Sync {
    /// Receives one event.
    fn on_event(&self, event: &Event);
}

/// The journal of one build.
#[derive(Debug)]
pub struct Journal {
    listeners: Vec<Arc<dyn Listener>>,
    worker_paths: WorkerPaths,
    n_notices: AtomicUsize,
}

impl Journal {
    /// A journal with these listeners. Its notices never show `worker_paths`.
    pub fn new(listeners: Vec<Arc<dyn Listener>>, worker_paths: WorkerPaths) -> Self {
        Self { listeners, worker_paths, n_notices: AtomicUsize::new(0) }
    }

    /// Emits one event. Notices are made plain and cut here, for all listeners. After [`bounds::NOTICES`] of them, only their number is
    /// emitted: a log has no bound of its own.
    pub fn emit(&self, event: Event) {
        let event = match event {
            Event::Notice(_) if self.n_notices.fetch_add(1, Ordering::Relaxed) >= bounds::NOTICES => {
                Event::NoticeLeftOut
            }
            Event::Notice(notice) => {
                let notice = text::plain(&notice);
                Event::Notice(text::clip(&self.worker_paths.hide(&notice), bounds::NOTICE).into_owned())
            }
            event => event,
        };
        self.listeners.iter().for_each(|listener| listener.on_event(&event));
    }

    /// Begins a phase. Dropping the guard ends it, so the phase of a killed build ends too.
    pub fn begin(&self, phase: Phase) -> Begun<'_> {
        self.emit(Event::PhaseStarted(phase));
        Begun { phase, since: Instant::now(), journal: self }
    }
}

/// A running phase. Dropping it ends the phase.
#[derive(Debug)]
pub struct Begun<'a> {
    phase: Phase,
    since: Instant,
    journal: &'a Journal,
}

impl Begun<'_> {
    /// Ends the phase and begins the next one.
    pub fn turn_into(&mut self, phase: Phase) {
        self.emit_end();
        self.journal.emit(Event::PhaseStarted(phase));
        (self.phase, self.since) = (phase, Instant::now());
    }

    fn emit_end(&self) {
        self.journal.emit(Event::PhaseEnded(self.phase, self.since.elapsed()));
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.emit_end();
    }
}

/// The log of a worker, inside the job's span.
#[derive(Debug, Default)]
pub struct Log {
    has_left_out: AtomicBool,
}

impl Listener for Log {
    fn on_event(&self, event: &Event) {
        match event {
            Event::NoticeLeftOut if self.has_left_out.swap(true, Ordering::Relaxed) => {}
            Event::NoticeLeftOut => {
                tracing::debug!(event = "notices_left_out", "more notices left out; the report has their count")
            }
            event => log(event),
        }
    }
}

fn log(event: &Event) {
    match event {
        Event::PhaseStarted(phase) => tracing::debug!(phase = phase.name(), "phase started"),
        Event::PhaseEnded(phase, took) => {
            tracing::debug!(phase = phase.name(), ms = millis(*took), "phase ended");
        }
        Event::Targets(n_targets) => tracing::debug!(n_targets, "targets resolved"),
        Event::TargetDone(target) => tracing::debug!(target, "target built"),
        Event::Fetching { received_bytes } => tracing::debug!(received_bytes, "fetching"),
        Event::StepStarted(step) => tracing::debug!(step = step.title(), "step started"),
        Event::StepEnded { step, is_cached, took, error } => {
            let ms = millis(*took);
            tracing::debug!(event = "step_ended", step = step.title(), is_cached, ms, error, "step ended");
        }
        Event::StepOutput { step, lines } => {
            if tracing::enabled!(tracing::Level::TRACE) {
                lines.iter().for_each(|line| tracing::trace!(step = step.label(), line));
            }
        }
        Event::Notice(notice) => tracing::debug!(notice),
        Event::Warning(warning) => tracing::debug!(%warning),
        Event::Placed(placement) => {
            let Placement { builder, shard, pod, why } = placement;
            tracing::debug!(builder, shard, pod, why, "placed");
        }
        Event::Caching { target, not_cached: Some(step), .. } => {
            tracing::debug!(target, cause = step.cause.name(), message = step.message, "step not cached");
        }
        Event::PodLost { builder } => tracing::debug!(builder, "pod lost; building on another one"),
        // The log line at the end of the job has them.
        Event::BuildId(_)
        | Event::Commit { .. }
        | Event::TargetEnded(_)
        | Event::Caching { .. }
        | Event::CachesMoved { .. }
        | Event::Superseded(_)
        | Event::Coalesced(_)
        | Event::ContextSent { .. }
        | Event::NoticeLeftOut
        | Event::Ended { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::Report;

    #[test]
    fn notices_are_plain_bounded_and_without_the_workers_paths() {
        let record = Arc::new(Record::new(Report::default()));
        let journal = Journal::new(vec![record.clone()], WorkerPaths::new(std::path::Path::new("/var/lib/worker")));
        journal.emit(Event::Notice(format!("\0 /var/lib/worker/x {}", "x".repeat(3000))));
        let notice = record.report().notices.remove(0);
        assert!(notice.starts_with("␀ a file of the worker xxx") && notice.len() <= bounds::NOTICE, "{notice}");
    }

    #[test]
    fn after_so_many_notices_only_their_number_is_told() {
        let record = Arc::new(Record::new(Report::default()));
        let journal = Journal::new(vec![record.clone()], WorkerPaths::default());
        (0..bounds::NOTICES + 9).for_each(|n| journal.emit(Event::Notice(n.to_string())));
        let notices = record.report().notices;
        assert_eq!((notices.len(), notices.last().map(String::as_str)), (bounds::NOTICES, Some("and 10 more notices")));
    }

    #[test]
    fn a_phase_ends_when_its_guard_is_dropped_whatever_drops_it() {
        let record = Arc::new(Record::new(Report::default()));
        let journal = Arc::new(Journal::new(vec![record.clone()], WorkerPaths::default()));
        let journal_of_panic = Arc::clone(&journal);
        let panicked = std::thread::spawn(move || {
            let mut phase = journal_of_panic.begin(Phase::Fetch);
            std::thread::sleep(Duration::from_millis(2));
            phase.turn_into(Phase::Checkout);
            std::thread::sleep(Duration::from_millis(2));
            panic!("in the middle of it");
        });
        assert!(panicked.join().is_err());
        let timings = record.report().timings;
        assert!(
            timings.fetch >= Duration::from_millis(2) && timings.checkout >= Duration::from_millis(2),
            "{timings:?}"
        );
    }
}
