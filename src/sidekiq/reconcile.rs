//! Reconcile: custody compares its memory with the in-flight hash, after each outage and every few seconds.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval};

use super::custody::{Custody, RETRY};
use super::inflight::{Fingerprint, Token, UnitOfWork, list};
use super::memory::Memory;
use super::recovery::{are_recovered, withdraw};
use super::running::Running;
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
        let inflight = list(&self.redis, &self.identity).await?;
        let inflight: HashMap<Token, Fingerprint> =
            inflight.into_iter().map(|entry| (entry.token(), entry.fingerprint)).collect();
        let running = self.running.snapshot();
        let is_lost = |running: &&Running| {
            let found = inflight.get(&running.unit.token);
            !running.reclaimed.is_cancelled() && found.is_none_or(|found| *found != Fingerprint::of(&running.unit.text))
        };
        let lost: Vec<&Running> = running.iter().filter(is_lost).collect();
        self.kill(&lost).await;
        let begun = lost.iter().filter(|running| !running.iteration.is_waiting());
        memory.lost.extend(begun.map(|running| running.unit.fence()));
        self.correct_crash_counts(memory).await;
        memory.ledger.retry_refused(self.reconcile_every, Instant::now());
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

    /// Kills builds whose jobs Redis no longer has in flight here, and logs what Redis tells of each job.
    async fn kill(&self, lost: &[&Running]) {
        lost.iter().for_each(|running| running.reclaimed.cancel());
        let fences: Vec<_> = lost.iter().map(|running| running.unit.fence()).collect();
        let recovered = are_recovered(&self.redis, &self.identity, &fences).await.unwrap_or_default();
        for (index, running) in lost.iter().enumerate() {
            let (token, jid) = (&running.unit.token, running.iteration.jid());
            if recovered.get(index) == Some(&true) {
                tracing::warn!(event = "job_reclaimed", %token, jid, "job reclaimed by another worker; killing the local build");
            } else {
                tracing::warn!(event = "job_missing", %token, jid, "Redis has no entry of this running job; killing the local build");
            }
        }
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
        let is_beside = unit.token.is_beside();
        if !(has_slot || is_beside) || !self.takes_jobs(memory) {
            return memory.give_back(&unit);
        }
        if !is_beside {
            tracing::warn!(event = "job_adopted", token = %unit.token, "job adopted: it was fetched, and the reply was lost");
        }
        self.begin(memory, unit, units);
    }
}
