//! Custody compares what it knows with the in-flight hash: after each outage, and every few seconds.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval};

use super::custody::{Custody, RETRY, Running};
use super::memory::Memory;
use super::recovery::withdraw;
use super::turn::{Settlement, Token, UnitOfWork, read_entry};
use crate::redis::RedisError;

/// Jobs whose false counts are to be taken back.
const MAX_LOST: usize = 100;

impl Custody {
    /// Soon again when it fails: builds whose jobs were reclaimed may be running.
    pub(super) async fn try_to_reconcile(&self, memory: &mut Memory, next: &mut Interval) {
        let reconciled = self.reconcile(memory).await;
        if memory.complaint.hear(reconciled).is_none() {
            next.reset_after(RETRY);
        }
    }

    async fn reconcile(&self, memory: &mut Memory) -> Result<(), RedisError> {
        let inflight: HashMap<String, Vec<u8>> =
            self.redis.query(redis::cmd("HGETALL").arg(self.identity.inflight_key())).await?;
        let inflight =
            inflight.iter().filter_map(|(field, entry)| Some((Token::of_field(field), read_entry(entry)?.1)));
        let inflight: HashMap<Token, &[u8]> = inflight.collect();
        let running = self.running.snapshot();
        let is_lost = |running: &&Running| {
            let text = inflight.get(&running.unit.token);
            !running.reclaimed.is_cancelled() && text.is_none_or(|text| *text != &*running.unit.text)
        };
        let lost: Vec<&Running> = running.iter().filter(is_lost).collect();
        for running in &lost {
            tracing::warn!(token = %running.unit.token, "job reclaimed by another worker: killing the local build");
            running.reclaimed.cancel();
        }
        let begun = lost.iter().filter(|running| !running.iteration.is_waiting());
        memory.lost.extend(begun.map(|running| (running.unit.token.clone(), running.unit.text.clone())));
        self.has_not_crashed(memory).await;
        memory.try_refused_again();
        memory.unheard = inflight.into_keys().collect();
        let settled = memory.pending.iter().chain(&memory.killed).map(|settlement| &settlement.token);
        for token in running.iter().map(|running| &running.unit.token).chain(settled) {
            memory.unheard.remove(token);
        }
        // Only now: after an outage, what Redis forgot meanwhile had to be compared first.
        if memory.unheard.is_empty() {
            memory.remembered.forget(Instant::now());
        }
        Ok(())
    }

    /// The worker that reclaimed these jobs has counted a crash against those that had begun.
    async fn has_not_crashed(&self, memory: &mut Memory) {
        if memory.lost.is_empty() {
            return;
        }
        let withdrawn = withdraw(&self.redis, &self.identity, &memory.lost).await;
        if memory.complaint_of_counts.hear(withdrawn).is_some() {
            memory.lost.clear();
        }
        // The newest, where Redis refuses for a long time.
        let n_too_many = memory.lost.len().saturating_sub(MAX_LOST);
        memory.lost.drain(..n_too_many);
    }

    /// A job in the in-flight hash that came with a lost reply, or whose result Redis forgot.
    pub(super) fn adopt(&self, memory: &mut Memory, unit: UnitOfWork, units: &mpsc::UnboundedSender<Running>) {
        if let Some(settlement) = memory.remembered.find(&unit) {
            return memory.pending.push(settlement.clone());
        }
        let capsule = unit.token.capsule;
        let has_slot = self.capsules.get(capsule).is_some_and(|its| self.n_running(capsule) < its.concurrency);
        memory.slots.retain(|token| *token != unit.token);
        if has_slot && self.takes_jobs(memory) {
            tracing::warn!(token = %unit.token, "job adopted: it was fetched, and the reply was lost");
            self.begin(memory, unit, units);
        } else {
            memory.pending.push(Settlement::requeue(&unit));
        }
    }
}
