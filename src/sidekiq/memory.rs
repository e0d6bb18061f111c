//! What custody keeps between turns, and which conditions it has logged.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::apart::Apart;
use super::contention::Contention;
use super::inflight::{Token, UnitOfWork};
use super::ledger::Ledger;
use super::order::Orders;
use super::settlement::{Settled, Settlement};
use crate::redis::{Complaint, Complaints};

/// What the loop keeps between turns.
pub(super) struct Memory {
    pub complaint_of_reading: Complaint,
    pub complaint_of_begin: Complaint,
    pub complaint_of_counts: Complaint,
    pub n_tokens: u64,
    pub n_turns: u64,
    /// Jobs that turns have fetched.
    pub n_fetched: u64,
    /// Every settlement that Redis may not have.
    pub ledger: Ledger,
    /// Jobs that others reclaimed after they had begun here. A crash was counted against them, and there was none.
    pub lost: Vec<(Token, Arc<[u8]>)>,
    /// Jobs that were recovered from dead workers, as long as they wait.
    pub apart: Apart,
    /// Entries of the in-flight hash that this process does not know: their reply was lost. The next turn reads them.
    pub unknown: BTreeSet<Token>,
    /// Conditions that are logged once for as long as they last.
    pub conditions: Conditions,
    /// How many processes may wait for the same push.
    pub n_idlers: u32,
    /// Tokens of free slots. A token stays until a job fills its slot.
    pub slots: Vec<Token>,
    /// The order in which each of them asks the queues.
    pub orders: Orders,
    /// When to take the next turn although nothing happens.
    pub wake_at: Option<Instant>,
    /// How tenants share the slots.
    pub contention: Contention,
}

impl Memory {
    /// Takes a turn at this time at the latest.
    pub(super) fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Returns a job to its queue that does not run here.
    pub(super) fn give_back(&mut self, unit: &UnitOfWork) {
        self.contention.end(&unit.token, None);
        self.ledger.add(Settlement::requeue(unit));
    }

    pub(super) fn new(contention: Contention) -> Self {
        Self {
            complaint_of_reading: Complaint::new("inflight_not_read", "the in-flight hash cannot be read"),
            complaint_of_begin: Complaint::new("recovered_jobs_wait", "recovered jobs cannot begin"),
            complaint_of_counts: Complaint::new("crash_counts_not_corrected", "false crash counts cannot be corrected"),
            n_tokens: 0,
            n_turns: 0,
            n_fetched: 0,
            ledger: Ledger::default(),
            lost: Vec::new(),
            apart: Apart::default(),
            unknown: BTreeSet::new(),
            conditions: Conditions::default(),
            n_idlers: 0,
            slots: Vec::new(),
            orders: Orders::default(),
            wake_at: None,
            contention,
        }
    }

    /// Takes what Redis did with the settlements that were due.
    pub(super) fn take_results(&mut self, settled: Vec<Settled>, is_resent: bool) {
        self.lost.extend(self.ledger.take_results(settled, is_resent, Instant::now()));
        self.conditions.log_refusals(&self.ledger.refusals());
    }
}

/// Conditions that are logged when they begin and when they end.
#[derive(Default)]
pub(super) struct Conditions {
    passed_over: Complaints,
    refused: Complaints,
    is_full: bool,
}

impl Conditions {
    /// Logs what is wrong with queues. A queue is right again only when a turn that asked all queues says so.
    pub(super) fn log_queues(&mut self, passed_over: Vec<String>, has_asked_all: bool) {
        let mut now: BTreeSet<String> = passed_over.into_iter().collect();
        if !has_asked_all {
            now.extend(self.passed_over.last().iter().cloned());
        }
        for why in self.passed_over.news(now) {
            tracing::error!(event = "queue_skipped", why, "queue skipped: Redis refuses to fetch from it");
        }
    }

    /// Logs why Redis refuses results; one reason for each refused result.
    pub(super) fn log_refusals(&mut self, refusals: &[&str]) {
        let was_refused = !self.refused.last().is_empty();
        for why in self.refused.news(refusals.iter().map(|why| (*why).to_owned()).collect()) {
            let n_results = refusals.iter().filter(|other| **other == why).count();
            tracing::error!(
                event = "results_refused",
                why,
                n_results,
                "Redis refused results; keeping them for a retry"
            );
        }
        if was_refused && refusals.is_empty() {
            tracing::info!(event = "results_accepted", "Redis accepted all results that it had refused");
        }
    }

    /// Logs that Redis is full, and that it no longer is.
    pub(super) fn log_memory(&mut self, is_full: bool) {
        match (self.is_full, is_full) {
            (false, true) => tracing::error!(
                event = "redis_full",
                "Redis is at its memory limit; settling results, fetching no jobs"
            ),
            (true, false) => tracing::info!(event = "redis_has_memory", "Redis has memory again; fetching jobs"),
            _ => {}
        }
        self.is_full = is_full;
    }
}
