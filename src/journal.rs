//! Where everything that happens during a build is told.
//!
//! The one way for events: integrations tell them, and the journal hands each to whoever listens, in turn. The log of a worker, a
//! terminal, the progress that Sidekiq shows and the record that becomes the report are listeners.

mod progress;
mod record;
mod terminal;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::event::{Event, Phase};
use crate::text::places::Places;
use crate::{bounds, text};

pub use progress::Progress;
pub use record::Record;
pub use terminal::{Terminal, print_report};

/// Who hears of all events of a build. It must not block for long: whoever tells an event waits.
pub trait Listener: fmt::Debug + Send + Sync {
    /// Hears one event.
    fn hear(&self, event: &Event);
}

/// The journal of one build.
#[derive(Debug)]
pub struct Journal {
    listeners: Vec<Arc<dyn Listener>>,
    places: Places,
    n_notices: AtomicUsize,
}

impl Journal {
    /// For these listeners. No notice names `places`.
    pub fn new(listeners: Vec<Arc<dyn Listener>>, places: Places) -> Self {
        Self { listeners, places, n_notices: AtomicUsize::new(0) }
    }

    /// Tells one event. A notice becomes plain and is cut here, for whoever looks. After [`bounds::NOTICES`] only their number is
    /// told: a log has no bound of its own.
    pub fn tell(&self, event: Event) {
        let event = match event {
            Event::Notice(_) if self.n_notices.fetch_add(1, Ordering::Relaxed) >= bounds::NOTICES => {
                Event::NoticeLeftOut
            }
            Event::Notice(notice) => {
                let notice = text::plain(&notice);
                Event::Notice(text::clip(&self.places.hide(&notice), bounds::NOTICE).into_owned())
            }
            event => event,
        };
        self.listeners.iter().for_each(|listener| listener.hear(&event));
    }

    /// Tells that a phase begins; that it ends is told when the guard is dropped, so also of a build that is killed.
    pub fn begin(&self, phase: Phase) -> Begun<'_> {
        self.tell(Event::PhaseStarted(phase));
        Begun { phase, since: Instant::now(), journal: self }
    }
}

/// A phase that has begun. Dropping it ends the phase.
#[derive(Debug)]
pub struct Begun<'a> {
    phase: Phase,
    since: Instant,
    journal: &'a Journal,
}

impl Begun<'_> {
    /// Ends the phase, and begins the next one.
    pub fn turn_into(&mut self, phase: Phase) {
        self.tell_end();
        self.journal.tell(Event::PhaseStarted(phase));
        (self.phase, self.since) = (phase, Instant::now());
    }

    fn tell_end(&self) {
        self.journal.tell(Event::PhaseEnded(self.phase, self.since.elapsed()));
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.tell_end();
    }
}

/// The log of a worker, inside the span of the job.
#[derive(Debug, Default)]
pub struct Log {
    has_left_out: AtomicBool,
}

impl Listener for Log {
    fn hear(&self, event: &Event) {
        match event {
            Event::NoticeLeftOut if self.has_left_out.swap(true, Ordering::Relaxed) => {}
            Event::NoticeLeftOut => tracing::info!("there are more notices; the report has their number"),
            event => log(event),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn log(event: &Event) {
    match event {
        Event::PhaseStarted(phase) => tracing::debug!(phase = phase.name(), "begins"),
        Event::PhaseEnded(phase, took) => {
            tracing::debug!(phase = phase.name(), ms = millis(*took), "done");
        }
        Event::Targets(n_targets) => tracing::debug!(n_targets, "will be built"),
        Event::TargetDone(target) => tracing::debug!(target, "is built"),
        Event::Fetching { received_bytes } => tracing::debug!(received_bytes, "fetching"),
        Event::StepStarted(step) => tracing::debug!(step = step.title(), "begins"),
        Event::StepEnded { step, is_cached, took, error } => {
            let ms = millis(*took);
            tracing::debug!(step = step.title(), is_cached, ms, error, "done");
        }
        Event::StepOutput { step, line } => tracing::trace!(step = step.label(), line),
        Event::Notice(notice) => tracing::info!(notice),
        Event::Placed(placement) => {
            tracing::debug!(builder = placement.builder, pod = placement.pod, why = placement.why, "placed");
        }
        // The end of the job has them.
        Event::BuildId(_)
        | Event::Commit { .. }
        | Event::TargetEnded(_)
        | Event::ContextSent { .. }
        | Event::NoticeLeftOut => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    #[test]
    fn notices_are_plain_bounded_and_without_the_workers_paths() {
        let record = Arc::new(Record::new(Report::default()));
        let journal = Journal::new(vec![record.clone()], Places::new(std::path::Path::new("/var/lib/worker")));
        journal.tell(Event::Notice(format!("\0 /var/lib/worker/x {}", "x".repeat(3000))));
        let notice = record.report().notices.remove(0);
        assert!(notice.starts_with("␀ a file of the worker xxx") && notice.len() <= bounds::NOTICE, "{notice}");
    }

    #[test]
    fn after_so_many_notices_only_their_number_is_told() {
        let record = Arc::new(Record::new(Report::default()));
        let journal = Journal::new(vec![record.clone()], Places::default());
        (0..bounds::NOTICES + 9).for_each(|n| journal.tell(Event::Notice(n.to_string())));
        let notices = record.report().notices;
        assert_eq!((notices.len(), notices.last().map(String::as_str)), (bounds::NOTICES, Some("and 10 more notices")));
    }

    #[test]
    fn a_phase_ends_when_its_guard_is_dropped_whatever_drops_it() {
        let record = Arc::new(Record::new(Report::default()));
        let journal = Arc::new(Journal::new(vec![record.clone()], Places::default()));
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
