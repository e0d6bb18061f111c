//! What custody keeps between turns, and what it has said of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::apart::Apart;
use super::remembered::Remembered;
use super::turn::{Settled, Settlement, Token};
use crate::redis::{Complaint, Complaints};

/// What the loop keeps between turns.
pub(super) struct Memory {
    pub complaint: Complaint,
    pub complaint_of_begin: Complaint,
    pub complaint_of_counts: Complaint,
    pub n_tokens: u64,
    pub n_turns: u64,
    /// Settlements that Redis has not answered yet.
    pub pending: Vec<Settlement>,
    /// Those of builds that a stop has killed, until the last one has ended.
    pub killed: Vec<Settlement>,
    /// Settlements that it refused, each with the reason; each keeps its slot, and is tried again at each reconcile.
    pub refused: Vec<(Settlement, String)>,
    /// Those of them that are pending again: their slots are not free before Redis has taken them.
    pub tried_again: Vec<Token>,
    /// Jobs that had ended here when the fence showed that they were lost.
    pub lost: Vec<(Token, Arc<[u8]>)>,
    /// Settlements that it has, in case it forgets.
    pub remembered: Remembered,
    /// Jobs that crashed workers before, or were there when one crashed.
    pub apart: Apart,
    /// Entries of the in-flight hash that came with a lost reply. The next turn says what they are.
    pub unheard: BTreeSet<Token>,
    /// What was logged, once for as long as it lasts.
    pub told: Told,
    /// How many processes may be waiting for the same push.
    pub n_idlers: u32,
    /// Tokens of free slots; used again until one is filled.
    pub slots: Vec<Token>,
    /// When to go on although nothing happens.
    pub wake_at: Option<Instant>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            complaint: Complaint::that("the in-flight hash cannot be read"),
            complaint_of_begin: Complaint::that("jobs that were recovered before cannot begin"),
            complaint_of_counts: Complaint::that("crashes that were none stay counted"),
            n_tokens: 0,
            n_turns: 0,
            pending: Vec::new(),
            killed: Vec::new(),
            refused: Vec::new(),
            tried_again: Vec::new(),
            lost: Vec::new(),
            remembered: Remembered::default(),
            apart: Apart::default(),
            unheard: BTreeSet::new(),
            told: Told::default(),
            n_idlers: 0,
            slots: Vec::new(),
            wake_at: None,
        }
    }

    /// Results that Redis has not taken.
    pub(super) fn n_unsettled(&self) -> usize {
        self.pending.len() + self.refused.len()
    }

    pub(super) fn try_refused_again(&mut self) {
        self.tried_again.extend(self.refused.iter().map(|(settlement, _)| settlement.token.clone()));
        self.pending.extend(self.refused.drain(..).map(|(settlement, _)| settlement));
    }

    /// What became of the pending settlements, in their order.
    pub(super) fn take_in_results(&mut self, settled: Vec<Settled>) {
        let now = Instant::now();
        self.tried_again.clear();
        for (settlement, settled) in std::mem::take(&mut self.pending).into_iter().zip(settled) {
            match settled {
                Settled::Refused(why) => {
                    self.refused.push((settlement, why));
                    continue;
                }
                Settled::Fenced => {
                    tracing::debug!(token = %settlement.token, "the job was settled before, or is not owned any more");
                    // One that goes back unharmed has not begun.
                    if !settlement.is_requeue() || settlement.is_interrupted() {
                        self.lost.push((settlement.token.clone(), settlement.text.clone()));
                    }
                }
                Settled::Done => {}
            }
            self.remembered.add(settlement, now);
        }
        self.told.hear_of_results(&self.refused);
    }
}

/// What was logged, so that it is not logged each time that it is met.
#[derive(Default)]
pub(super) struct Told {
    passed_over: Complaints,
    refused: Complaints,
    is_full: bool,
}

impl Told {
    /// Says what is wrong with queues, until a turn that has asked all of them finds it right.
    pub(super) fn hear_of_queues(&mut self, passed_over: Vec<String>, has_asked_all: bool) {
        let mut now: BTreeSet<String> = passed_over.into_iter().collect();
        if !has_asked_all {
            now.extend(self.passed_over.last().iter().cloned());
        }
        for why in self.passed_over.news(now) {
            tracing::error!(why, "a queue is passed over");
        }
    }

    /// Says why results are refused, by what is refused now.
    pub(super) fn hear_of_results(&mut self, refused: &[(Settlement, String)]) {
        let was_refused = !self.refused.last().is_empty();
        for why in self.refused.news(refused.iter().map(|(_, why)| why.clone()).collect()) {
            let n_results = refused.iter().filter(|(_, other)| *other == why).count();
            tracing::error!(why, n_results, "results are refused, and kept until Redis takes them");
        }
        if was_refused && refused.is_empty() {
            tracing::info!("Redis has taken all results");
        }
    }

    /// Says that Redis is full, and that it is no longer.
    pub(super) fn hear_of_memory(&mut self, is_full: bool) {
        match (self.is_full, is_full) {
            (false, true) => {
                tracing::error!("Redis is at its memory limit: results are settled, nothing is fetched");
            }
            (true, false) => tracing::info!("Redis has memory again"),
            _ => {}
        }
        self.is_full = is_full;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidekiq::turn::{Effect, UnitOfWork};

    #[test]
    fn a_job_that_had_begun_and_that_the_fence_refuses_was_lost() {
        let requeue = |is_interrupted| vec![Effect::Requeue { queue: "default".into(), is_interrupted }];
        for (effects, is_lost) in [(Vec::new(), true), (requeue(true), true), (requeue(false), false)] {
            let mut memory = Memory::new();
            let unit = UnitOfWork::fetched(1, b"a job");
            memory.pending.push(Settlement { effects, ..Settlement::of(&unit) });
            memory.take_in_results(vec![Settled::Fenced]);
            assert_eq!(memory.lost.len(), usize::from(is_lost));
        }
    }
}
