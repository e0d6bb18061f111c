//! Results that Redis has, in case it forgets them.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::turn::{Settlement, UnitOfWork};

/// How long a result is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How many at most, and how many bytes of text. A minute of builds is far less; one of empty jobs would fill the memory.
const MAX_REMEMBERED: usize = 4096;
const MAX_REMEMBERED_BYTES: usize = 8 << 20;

/// The newest of what was settled, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    settlements: VecDeque<(Instant, Settlement)>,
    n_bytes: usize,
}

impl Remembered {
    /// Remembers one more, and no more than the bounds.
    pub(super) fn add(&mut self, settlement: Settlement, now: Instant) {
        self.n_bytes += settlement.size();
        self.settlements.push_back((now, settlement));
        while self.settlements.len() > MAX_REMEMBERED || self.n_bytes > MAX_REMEMBERED_BYTES {
            self.forget_oldest();
        }
    }

    /// The result of this very job.
    pub(super) fn find(&self, unit: &UnitOfWork) -> Option<&Settlement> {
        let mut settlements = self.settlements.iter().map(|(_, settlement)| settlement);
        settlements.find(|settlement| settlement.token == unit.token && settlement.text == unit.text)
    }

    /// Forgets what is too old at `now`.
    pub(super) fn forget(&mut self, now: Instant) {
        while self.settlements.front().is_some_and(|(since, _)| now.duration_since(*since) > REMEMBERED) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, settlement)) = self.settlements.pop_front() {
            self.n_bytes -= settlement.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidekiq::turn::Effect;

    const TEXT: &[u8] = b"a job";

    fn settlement(n: u64, text: &str) -> Settlement {
        let effects = vec![Effect::Push { queue: "done".into(), text: text.into() }];
        Settlement { is_processed: true, effects, ..Settlement::of(&UnitOfWork::fetched(n, TEXT)) }
    }

    fn holds(remembered: &Remembered, n: u64) -> bool {
        remembered.find(&UnitOfWork::fetched(n, TEXT)).is_some()
    }

    #[test]
    fn the_oldest_results_are_forgotten_by_number_by_age_and_by_size() {
        let (mut remembered, start) = (Remembered::default(), Instant::now());
        let n_jobs = MAX_REMEMBERED as u64 + 10;
        (0..n_jobs).for_each(|n| remembered.add(settlement(n, "x"), start + Duration::from_millis(n)));
        assert_eq!((holds(&remembered, 9), holds(&remembered, 10)), (false, true));

        remembered.forget(start + REMEMBERED + Duration::from_millis(n_jobs - 1));
        assert_eq!(remembered.settlements.len(), 1);
        assert!(holds(&remembered, n_jobs - 1));

        let large = "x".repeat(MAX_REMEMBERED_BYTES - 10 - 2 * TEXT.len());
        remembered.add(settlement(n_jobs, &large), start);
        assert!(holds(&remembered, n_jobs - 1) && holds(&remembered, n_jobs));
        remembered.add(settlement(n_jobs + 1, "a dozen bytes"), start);
        assert_eq!((remembered.settlements.len(), remembered.n_bytes), (1, 13 + TEXT.len()));
    }

    #[test]
    fn a_result_is_not_remembered_for_another_job_under_the_same_token() {
        let mut remembered = Remembered::default();
        remembered.add(settlement(1, "x"), Instant::now());
        assert!(holds(&remembered, 1));
        assert_eq!(remembered.find(&UnitOfWork::fetched(1, b"another job")), None);
    }
}
