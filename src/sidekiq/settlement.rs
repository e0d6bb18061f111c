//! Settlements: the end of a unit of work with everything that follows from it, applied in one step by a turn.

use std::sync::Arc;

use super::inflight::{Token, UnitOfWork};
use crate::clock::Epoch;

/// The end of a unit of work, and everything that follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settlement {
    /// The unit's token.
    pub token: Token,
    /// The queue that the unit came from.
    pub queue: String,
    /// The unit's text. A Redis that lost data may have given the same token to another job.
    pub text: Arc<[u8]>,
    /// How this worker's run of the unit ended.
    pub run_end: RunEnd,
    /// Whether the attempt counts as processed.
    pub is_processed: bool,
    /// Whether it counts as failed.
    pub is_failed: bool,
    /// What happens in the same step.
    pub effects: Vec<Effect>,
}

impl Settlement {
    /// Of a unit that ended and counts in no statistic, without effects yet.
    pub fn of(unit: &UnitOfWork) -> Self {
        let (token, queue, text) = (unit.token.clone(), unit.queue.clone(), unit.text.clone());
        let (run_end, effects) = (RunEnd::Ended, Vec::new());
        Self { token, queue, text, run_end, is_processed: false, is_failed: false, effects }
    }

    /// Requeues a unit at the head of its queue, as if it had never been fetched.
    pub fn requeue(unit: &UnitOfWork) -> Self {
        Self::of(unit).requeued()
    }

    /// Requeues the same unit at the head of its queue, in place of all other effects.
    pub(super) fn requeued(self) -> Self {
        let effects = vec![Effect::Requeue { queue: self.queue.clone(), is_interrupted: false }];
        Self { run_end: RunEnd::Returned, is_processed: false, is_failed: false, effects, ..self }
    }

    /// Bytes of the texts in it.
    pub fn size_bytes(&self) -> usize {
        let sizes = self.effects.iter().map(|effect| match effect {
            Effect::Push { text, .. } | Effect::Retry { text, .. } => text.len(),
            Effect::Dead { text } => text.len(),
            Effect::Share { result, .. } => result.len(),
            Effect::Requeue { .. } | Effect::Unlink { .. } => 0,
        });
        self.text.len() + sizes.sum::<usize>()
    }

    /// Whether the unit goes back to the head of its queue.
    pub fn is_requeue(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Requeue { .. }))
    }
}

/// How a worker's run of a unit ended. Redis does not see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// It returns to its queue as if it had never been fetched: it has not begun, or Redis refused its result.
    Returned,
    /// It ended, and its settlement is due.
    Ended,
    /// A stop of the worker killed it. All killed units are settled together.
    Killed,
    /// Another worker owns the unit, so nothing is settled. Only the slot becomes free.
    Reclaimed,
}

/// One thing that follows from the end of a unit of work.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Keep the result for jobs with the same inputs.
    Share {
        /// Its key.
        key: String,
        /// As JSON.
        result: String,
    },
    /// Push a new job to a queue.
    Push {
        /// Name without prefix.
        queue: String,
        /// The job's text.
        text: String,
    },
    /// Requeue the unit's own text at the head of the queue that it came from.
    Requeue {
        /// That queue.
        queue: String,
        /// Whether a running build was killed, which is counted.
        is_interrupted: bool,
    },
    /// Add to the retry set.
    Retry {
        /// When it is due.
        at: Epoch,
        /// The job's text.
        text: String,
    },
    /// Add to the dead set.
    Dead {
        /// The job's text, or bytes that are not a job.
        text: Vec<u8>,
    },
    /// Remove a key together with the job.
    Unlink {
        /// Its name.
        key: String,
    },
}

/// What Redis did with a settlement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It happened.
    Done,
    /// This process does not own token and text any more: nothing happened.
    Fenced,
    /// Redis refused it, for this reason, which names the keys: nothing happened.
    Refused(String),
}
