//! Where everything that happens during a build is told.
//!
//! The one way to show progress: stations tell events, and the journal knows who is looking. A worker's journal is its
//! log; `sidebake build` looks at a terminal. What has to be in the report is kept.

mod progress;
mod terminal;

use std::sync::{Arc, Mutex, PoisonError};

use crate::event::{Event, Step};

pub use progress::Progress;
pub use terminal::{Terminal, print_report};

/// What a report may carry of them, in number and in characters each.
const MAX_NOTICES: usize = 50;
const MAX_NOTICE: usize = 1000;

/// The journal of one build.
#[derive(Debug)]
pub struct Journal {
    reader: Reader,
    notices: Mutex<Vec<String>>,
    progress: Arc<Progress>,
}

#[derive(Debug)]
enum Reader {
    Log,
    Terminal(Box<Terminal>),
}

impl Journal {
    /// For a worker: events go to its log, inside the span of the job, and `progress` follows them.
    pub fn to_log(progress: Arc<Progress>) -> Self {
        Self { reader: Reader::Log, notices: Mutex::default(), progress }
    }

    /// For a person who waits.
    pub fn to_terminal(terminal: Terminal) -> Self {
        let reader = Reader::Terminal(Box::new(terminal));
        Self { reader, notices: Mutex::default(), progress: Arc::default() }
    }

    /// Tells one event.
    pub fn tell(&self, event: Event) {
        match &self.reader {
            Reader::Log => log(&event),
            Reader::Terminal(terminal) => terminal.show(&event),
        }
        self.progress.follow(&event);
        if let Event::Notice(notice) = event {
            let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
            if notices.len() < MAX_NOTICES {
                notices.push(notice.chars().take(MAX_NOTICE).collect());
            }
        }
    }

    /// What the person who asked for the build should know.
    pub fn notices(&self) -> Vec<String> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        Event::StepStarted(step) => tracing::debug!(step = label(step), "begins"),
        Event::StepEnded { step, is_cached, took, error } => {
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            tracing::debug!(step = label(step), is_cached, ms, error, "done");
        }
        Event::StepOutput { step, line } => tracing::trace!(step = label(step), line),
        Event::Notice(notice) => tracing::info!(notice),
    }
}

/// A step as people read it: `vote [2/3] RUN make`.
fn label(step: &Step) -> String {
    step.target.as_ref().map_or_else(|| step.name.clone(), |target| format!("{target} {}", step.name))
}
