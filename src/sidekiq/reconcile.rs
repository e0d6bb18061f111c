//! Reconcile: custody compares its memory with the in-flight hash, after each outage and every few seconds.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval};

use super::custody::{Custody, RETRY};
use super::inflight::{Token, UnitOfWork, entries};
use super::memory::Memory;
use super::recovery::withdraw;
use super::running::Running;
use super::settlement::Settlement;
use crate::redis::RedisError;

/// The most jobs whose false crash counts are kept for correction.
const MAX_LOST: usize = 100;

impl Custody {
    /// Reconciles. A failure is tried again soon: builds whose jobs were reclaimed may be running.
    pub(super) async fn try_to_reconcile(&self, memory: &mut Memory, next: &mut Interval) {
        let reconciled = self.reconcile(memory).await;
        if memory.complaint_of_reading.hear(reconciled).is_none() {
            next.reset_after(RETRY);
        }
    }

    async fn reconcile(&self, memory: &mut Memory) -> Result<(), RedisError> {
        let inflight = entries(&self.redis, &self.identity).await?;
        let inflight: HashMap<Token, Vec<u8>> = inflight.into_iter().map(|entry| (entry.token(), entry.text)).collect();
        let running = self.running.snapshot();
        let is_lost = |running: &&Running| {
            let text = inflight.get(&running.unit.token);
            !running.reclaimed.is_cancelled() && text.is_none_or(|text| **text != *running.unit.text)
        };
        let lost: Vec<&Running> = running.iter().filter(is_lost).collect();
        for running in &lost {
            let (token, jid) = (&running.unit.token, running.iteration.jid());
            tracing::warn!(event = "job_reclaimed", %token, jid, "job reclaimed by another worker; killing the local build");
            running.reclaimed.cancel();
        }
        let begun = lost.iter().filter(|running| !running.iteration.is_waiting());
        memory.lost.extend(begun.map(|running| (running.unit.token.clone(), running.unit.text.clone())));
        self.correct_crash_counts(memory).await;
        memory.ledger.retry_refused();
        memory.unknown = inflight.into_keys().collect();
        for token in running.iter().map(|running| &running.unit.token).chain(memory.ledger.tokens()) {
            memory.unknown.remove(token);
        }
        // Only now: after an outage, what Redis lost meanwhile had to be compared first.
        if memory.unknown.is_empty() {
            memory.ledger.forget(Instant::now());
        }
        Ok(())
    }

    /// Takes back the crashes that the reclaiming worker counted against jobs that had begun here.
    async fn correct_crash_counts(&self, memory: &mut Memory) {
        if memory.lost.is_empty() {
            return;
        }
        let withdrawn = withdraw(&self.redis, &self.identity, &memory.lost).await;
        if memory.complaint_of_counts.hear(withdrawn).is_some() {
            memory.lost.clear();
        }
        // The newest stay, where Redis refuses for a long time.
        let n_too_many = memory.lost.len().saturating_sub(MAX_LOST);
        memory.lost.drain(..n_too_many);
    }

    /// Takes up an entry that this process did not know: its reply was lost, or Redis lost its result.
    pub(super) fn adopt(&self, memory: &mut Memory, unit: UnitOfWork, units: &mpsc::UnboundedSender<Running>) {
        if memory.ledger.settle_again(&unit) {
            return;
        }
        let index = unit.token.capsule;
        let has_slot = self.capsules.get(index).is_some_and(|its| self.running.n_jobs_of(index) < its.concurrency);
        memory.slots.retain(|token| *token != unit.token);
        if has_slot && self.takes_jobs(memory) {
            tracing::warn!(event = "job_adopted", token = %unit.token, "job adopted: it was fetched, and the reply was lost");
            self.begin(memory, unit, units);
        } else {
            memory.ledger.add(Settlement::requeue(&unit));
        }
    }
}
