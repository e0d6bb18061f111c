//! The record of a build: its report, as far as the events go.

use std::sync::{Mutex, PoisonError};

use super::Listener;
use crate::event::Event;
use crate::report::Report;

/// What all events so far amount to. It outlives a build that is dropped or panics.
#[derive(Debug)]
pub struct Record(Mutex<Report>);

impl Record {
    /// Begins with what is known before the first event.
    pub fn new(report: Report) -> Self {
        Self(Mutex::new(report))
    }

    /// The report as it is now.
    pub fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Listener for Record {
    fn hear(&self, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take_in(event);
    }
}
