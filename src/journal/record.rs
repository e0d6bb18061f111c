//! The record of a build: a report, built from its events.

use std::sync::{Mutex, PoisonError};

use super::Listener;
use crate::event::Event;
use crate::report::Report;

/// The report so far. It outlives a build that is dropped or panics.
#[derive(Debug)]
pub struct Record(Mutex<Report>);

impl Record {
    /// Begins with what is known before the first event.
    pub fn new(report: Report) -> Self {
        Self(Mutex::new(report))
    }

    /// The current report.
    pub fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Listener for Record {
    fn on_event(&self, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take_in(event);
    }
}
