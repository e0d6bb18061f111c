//! Where everything that happens during a build is told.
//!
//! The one way to show progress: stations tell events, and the journal knows who is looking. A worker's journal is its
//! log; `sidebake build` looks at a terminal. What has to be in the report is kept.

mod progress;
mod terminal;

use std::sync::{Arc, Mutex, PoisonError};

use crate::event::Event;
use crate::text::places::Places;
use crate::{bounds, text};

pub use progress::Progress;
pub use terminal::{Terminal, print_report};

/// The journal of one build.
#[derive(Debug)]
pub struct Journal {
    reader: Reader,
    notices: Mutex<Notices>,
    progress: Arc<Progress>,
    places: Places,
}

/// What the person who asked for the build should know.
#[derive(Debug, Default)]
struct Notices {
    first: Vec<String>,
    n_more: usize,
}

#[derive(Debug)]
enum Reader {
    Log,
    Terminal(Box<Terminal>),
}

impl Journal {
    /// For a worker: events go to its log, inside the span of the job, and `progress` follows them. No notice names `places`.
    pub fn to_log(progress: Arc<Progress>, places: Places) -> Self {
        Self { reader: Reader::Log, notices: Mutex::default(), progress, places }
    }

    /// For a person who waits.
    pub fn to_terminal(terminal: Terminal, places: Places) -> Self {
        let reader = Reader::Terminal(Box::new(terminal));
        Self { reader, notices: Mutex::default(), progress: Arc::default(), places }
    }

    /// Tells one event. A notice becomes plain and is cut here, for whoever looks.
    pub fn tell(&self, event: Event) {
        let event = match event {
            Event::Notice(notice) => {
                let notice = text::plain(&notice);
                Event::Notice(text::clip(&self.places.hide(&notice), bounds::NOTICE).into_owned())
            }
            event => event,
        };
        self.progress.follow(&event);
        // Of notices that are not kept only the number is told: a log has no bound of its own.
        if let Event::Notice(notice) = &event
            && !self.notices.lock().unwrap_or_else(PoisonError::into_inner).add(notice)
        {
            return;
        }
        match &self.reader {
            Reader::Log => log(&event),
            Reader::Terminal(terminal) => terminal.show(&event),
        }
    }

    /// What the person who asked for the build should know: at most [`bounds::NOTICES`] texts, the last of which says how many
    /// there are more.
    pub fn notices(&self) -> Vec<String> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).all()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let n_more = self.notices.get_mut().unwrap_or_else(PoisonError::into_inner).n_more;
        if n_more > 0 && matches!(self.reader, Reader::Log) {
            tracing::info!(n_more, "more notices than are shown");
        }
    }
}

impl Notices {
    /// Returns whether it is kept.
    fn add(&mut self, notice: &str) -> bool {
        let is_kept = self.first.len() < bounds::NOTICES;
        if is_kept {
            self.first.push(notice.to_owned());
        } else {
            self.n_more += 1;
        }
        is_kept
    }

    fn all(&self) -> Vec<String> {
        let mut all = self.first.clone();
        if self.n_more > 0 {
            all.pop();
            all.push(format!("and {} more notices", self.n_more + 1));
        }
        all
    }
}

fn log(event: &Event) {
    match event {
        Event::PhaseStarted(phase) => tracing::debug!(phase = phase.name(), "begins"),
        Event::PhaseEnded(phase, took) => {
            tracing::debug!(phase = phase.name(), ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "done");
        }
        Event::Targets(n_targets) => tracing::debug!(n_targets, "will be built"),
        Event::TargetDone(target) => tracing::debug!(target, "is built"),
        Event::Fetching { received_bytes } => tracing::debug!(received_bytes, "fetching"),
        Event::StepStarted(step) => tracing::debug!(step = step.title(), "begins"),
        Event::StepEnded { step, is_cached, took, error } => {
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            tracing::debug!(step = step.title(), is_cached, ms, error, "done");
        }
        Event::StepOutput { step, line } => tracing::trace!(step = step.label(), line),
        Event::Notice(notice) => tracing::info!(notice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_plain_bounded_and_counted() {
        let journal = Journal::to_log(Arc::default(), Places::default());
        for n in 0..bounds::NOTICES + 9 {
            journal.tell(Event::Notice(format!("{n}\0{}", "x".repeat(3000))));
        }
        let notices = journal.notices();
        assert!(notices[0].starts_with("0␀xxx") && notices.iter().all(|notice| notice.len() <= bounds::NOTICE));
        assert_eq!(notices.len(), bounds::NOTICES);
        assert_eq!(notices.last().map(String::as_str), Some("and 10 more notices"));
    }
}
