//! Every settlement, from the end of its job until a minute after Redis has it.
//!
//! A settlement is due with the next turn, held until the last killed build has ended, or refused by Redis. A settlement
//! that Redis has taken is remembered, in case Redis loses it.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::inflight::{Token, UnitOfWork};
use super::settlement::{RunEnd, Settled, Settlement};

/// The longest pause before a refused settlement is sent again. Its text may be megabytes.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a settlement is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How many are remembered at most, and how many bytes of text. A minute of builds is far less; a minute of jobs that build
/// nothing would fill the memory.
const MAX_REMEMBERED: usize = 4096;
const MAX_REMEMBERED_BYTES: usize = 8 << 20;

/// The settlements of this process.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    unsettled: Vec<Unsettled>,
    remembered: VecDeque<(Instant, Settlement)>,
    remembered_bytes: usize,
}

/// A settlement that Redis does not have.
#[derive(Debug)]
struct Unsettled {
    settlement: Settlement,
    state: SettlementState,
    /// After refusals: when it is sent again, and the pause after that.
    again: Option<(Instant, Duration)>,
}

#[derive(Debug, PartialEq, Eq)]
enum SettlementState {
    /// It goes with the next turn, which may fill its slot again.
    Due,
    /// The same, after a refusal: its slot is not free before Redis has taken it.
    DueAgain,
    /// Of a build that a stop has killed. All of them go in one turn, when the last one has ended.
    Held,
    /// Redis refused it, for this reason. It keeps its slot, and is due again after longer and longer pauses.
    Refused(String),
}

impl Unsettled {
    fn new(settlement: Settlement, state: SettlementState) -> Self {
        Self { settlement, state, again: None }
    }

    fn is_due(&self) -> bool {
        matches!(self.state, SettlementState::Due | SettlementState::DueAgain)
    }

    fn has_slot(&self) -> bool {
        matches!(self.state, SettlementState::DueAgain | SettlementState::Refused(_))
    }
}

impl Ledger {
    /// Adds a settlement that is due with the next turn.
    pub(super) fn add(&mut self, settlement: Settlement) {
        self.unsettled.push(Unsettled::new(settlement, SettlementState::Due));
    }

    /// Adds a settlement that waits for [`Self::release_held`].
    pub(super) fn hold(&mut self, settlement: Settlement) {
        self.unsettled.push(Unsettled::new(settlement, SettlementState::Held));
    }

    /// Makes all held settlements due.
    pub(super) fn release_held(&mut self) {
        self.unsettled
            .iter_mut()
            .filter(|one| one.state == SettlementState::Held)
            .for_each(|one| one.state = SettlementState::Due);
    }

    /// Makes each refused settlement due again whose pause is over. The first pause is `first`.
    pub(super) fn retry_refused(&mut self, first: Duration, now: Instant) {
        let is_refused = |one: &&mut Unsettled| matches!(one.state, SettlementState::Refused(_));
        for one in self.unsettled.iter_mut().filter(is_refused) {
            let (at, pause) = one.again.unwrap_or((now, first));
            if now >= at {
                one.state = SettlementState::DueAgain;
                one.again = Some((now + pause, (2 * pause).min(LONGEST_PAUSE)));
            }
        }
    }

    /// Makes all refused settlements due again.
    pub(super) fn retry_all_refused(&mut self) {
        self.unsettled.iter_mut().filter(|one| one.has_slot()).for_each(|one| one.state = SettlementState::DueAgain);
    }

    /// Requeues the jobs of all refused settlements; returns how many there are.
    pub(super) fn requeue_refused(&mut self) -> usize {
        let is_refused = |one: &mut Unsettled| matches!(one.state, SettlementState::Refused(_));
        let refused: Vec<Unsettled> = self.unsettled.extract_if(.., is_refused).collect();
        let n_jobs = refused.len();
        refused.into_iter().for_each(|one| self.add(one.settlement.requeued()));
        n_jobs
    }

    /// Looks a unit up among the remembered settlements, by token and text; makes its settlement due again. Returns whether
    /// there was one.
    pub(super) fn settle_again(&mut self, unit: &UnitOfWork) -> bool {
        let found = self.find(unit).cloned();
        let is_found = found.is_some();
        found.into_iter().for_each(|settlement| self.add(settlement));
        is_found
    }

    fn find(&self, unit: &UnitOfWork) -> Option<&Settlement> {
        let mut settlements = self.remembered.iter().map(|(_, settlement)| settlement);
        settlements.find(|settlement| settlement.token == unit.token && settlement.text == unit.text)
    }

    /// Puts settlements into the order of a turn. Requeued units go last, the newest first: what is pushed to the head of a
    /// queue last comes out next.
    pub(super) fn sort(&mut self) {
        self.unsettled
            .sort_by_cached_key(|one| one.settlement.is_requeue().then(|| Reverse(one.settlement.token.clone())));
    }

    /// What the next turn sends, in order.
    pub(super) fn due(&self) -> Vec<&Settlement> {
        self.unsettled.iter().filter(|one| one.is_due()).map(|one| &one.settlement).collect()
    }

    /// Whether the next turn sends anything.
    pub(super) fn has_due(&self) -> bool {
        self.unsettled.iter().any(Unsettled::is_due)
    }

    /// Takes what Redis did with the settlements that were due; returns those that the fence refused. A turn that was sent before may
    /// have been applied then.
    pub(super) fn take_results(
        &mut self,
        settled: Vec<Settled>,
        is_resent: bool,
        now: Instant,
    ) -> Vec<(Token, Arc<[u8]>)> {
        let (mut settled, mut fenced) = (settled.into_iter(), Vec::new());
        for one in std::mem::take(&mut self.unsettled) {
            let result = if one.is_due() { settled.next() } else { None };
            match result {
                None => self.unsettled.push(one),
                Some(Settled::Refused(why)) => {
                    self.unsettled.push(Unsettled { state: SettlementState::Refused(why), ..one });
                }
                Some(Settled::Done) => self.remember(one.settlement, now),
                Some(Settled::Fenced) => {
                    let token = &one.settlement.token;
                    if is_resent {
                        tracing::warn!(event = "result_dropped", %token, "result settled by the first sending, or lost by Redis");
                    } else {
                        tracing::warn!(event = "result_dropped", %token, "Redis has no such job in flight here; its result is dropped");
                    }
                    if one.settlement.run_end != RunEnd::Returned {
                        fenced.push((one.settlement.token.clone(), one.settlement.text.clone()));
                    }
                    self.remember(one.settlement, now);
                }
            }
        }
        fenced
    }

    /// Why Redis refuses settlements, one reason for each of them.
    pub(super) fn refusals(&self) -> Vec<&str> {
        let states = self.unsettled.iter().map(|one| &one.state);
        let whys = states.filter_map(|state| match state {
            SettlementState::Refused(why) => Some(why.as_str()),
            _ => None,
        });
        whys.collect()
    }

    /// How many settlements Redis does not have.
    pub(super) fn n_unsettled(&self) -> usize {
        self.unsettled.len()
    }

    /// How many slots of a capsule refused settlements keep.
    pub(super) fn n_slots_of(&self, capsule: usize) -> usize {
        self.unsettled.iter().filter(|one| one.has_slot() && one.settlement.token.capsule == capsule).count()
    }

    /// The tokens of all settlements that Redis does not have.
    pub(super) fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.unsettled.iter().map(|one| &one.settlement.token)
    }

    /// Forgets what is too old at `now`.
    pub(super) fn forget(&mut self, now: Instant) {
        while self.remembered.front().is_some_and(|(since, _)| now.duration_since(*since) > REMEMBERED) {
            self.forget_oldest();
        }
    }

    fn remember(&mut self, settlement: Settlement, now: Instant) {
        self.remembered_bytes += settlement.size_bytes();
        self.remembered.push_back((now, settlement));
        while self.remembered.len() > MAX_REMEMBERED || self.remembered_bytes > MAX_REMEMBERED_BYTES {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, settlement)) = self.remembered.pop_front() {
            self.remembered_bytes -= settlement.size_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidekiq::settlement::Effect;

    const TEXT: &[u8] = b"a job";

    fn settlement(n: u64, text: &str) -> Settlement {
        let effects = vec![Effect::Push { queue: "done".into(), text: text.into() }];
        Settlement { is_processed: true, effects, ..Settlement::of(&UnitOfWork::fetched(n, TEXT)) }
    }

    fn requeue(n: u64, is_interrupted: bool) -> Settlement {
        let effects = vec![Effect::Requeue { queue: "default".into(), is_interrupted }];
        let run_end = if is_interrupted { RunEnd::Killed } else { RunEnd::Returned };
        Settlement { run_end, effects, ..Settlement::of(&UnitOfWork::fetched(n, TEXT)) }
    }

    fn has(ledger: &Ledger, n: u64) -> bool {
        ledger.find(&UnitOfWork::fetched(n, TEXT)).is_some()
    }

    /// The tokens of the settlements that are due.
    fn due(ledger: &Ledger) -> Vec<Token> {
        ledger.due().iter().map(|settlement| settlement.token.clone()).collect()
    }

    fn tokens(numbers: impl IntoIterator<Item = u64>) -> Vec<Token> {
        numbers.into_iter().map(|n| Token::nth(n, 0)).collect()
    }

    #[test]
    fn the_oldest_results_are_forgotten_by_number_by_age_and_by_size() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let n_jobs = MAX_REMEMBERED as u64 + 10;
        (0..n_jobs).for_each(|n| ledger.remember(settlement(n, "x"), start + Duration::from_millis(n)));
        assert_eq!((has(&ledger, 9), has(&ledger, 10)), (false, true));

        ledger.forget(start + REMEMBERED + Duration::from_millis(n_jobs - 1));
        assert_eq!(ledger.remembered.len(), 1);
        assert!(has(&ledger, n_jobs - 1));

        let large = "x".repeat(MAX_REMEMBERED_BYTES - 10 - 2 * TEXT.len());
        ledger.remember(settlement(n_jobs, &large), start);
        assert!(has(&ledger, n_jobs - 1) && has(&ledger, n_jobs));
        ledger.remember(settlement(n_jobs + 1, "a dozen bytes"), start);
        assert_eq!((ledger.remembered.len(), ledger.remembered_bytes), (1, 13 + TEXT.len()));
    }

    #[test]
    fn a_result_that_redis_lost_is_due_again_but_not_for_another_job_under_the_same_token() {
        let mut ledger = Ledger::default();
        ledger.remember(settlement(1, "x"), Instant::now());
        assert!(!ledger.settle_again(&UnitOfWork::fetched(1, b"another job")) && !ledger.has_due());
        assert!(ledger.settle_again(&UnitOfWork::fetched(1, TEXT)));
        assert_eq!(due(&ledger), tokens([1]));
    }

    #[test]
    fn a_refused_result_keeps_its_slot_until_redis_takes_it() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        (1..=2).for_each(|n| ledger.add(settlement(n, "x")));
        assert_eq!(ledger.n_slots_of(0), 0, "the turn that settles them fills their slots");
        assert!(ledger.take_results(vec![Settled::Done, Settled::Refused("why".into())], false, now).is_empty());
        assert_eq!((ledger.refusals(), ledger.n_slots_of(0), ledger.has_due()), (vec!["why"], 1, false));
        for result in [Settled::Refused("why".into()), Settled::Done] {
            ledger.retry_all_refused();
            assert_eq!((due(&ledger), ledger.n_slots_of(0)), (tokens([2]), 1));
            ledger.take_results(vec![result], false, now);
        }
        assert_eq!((ledger.n_unsettled(), ledger.n_slots_of(0)), (0, 0));
        assert!(has(&ledger, 1) && has(&ledger, 2));
    }

    #[test]
    fn each_refused_result_is_sent_again_after_longer_and_longer_pauses_of_its_own() {
        let (mut ledger, start, second) = (Ledger::default(), Instant::now(), Duration::from_secs(1));
        let (mut old, mut new) = (Vec::new(), Vec::new());
        ledger.add(settlement(1, "x"));
        for n in 0..150 {
            if n == 100 {
                ledger.add(settlement(2, "x"));
            }
            for token in due(&ledger) {
                if token == Token::nth(1, 0) { &mut old } else { &mut new }.push(n);
            }
            let refused = ledger.due().iter().map(|_| Settled::Refused("why".into())).collect();
            ledger.take_results(refused, false, start);
            ledger.retry_refused(second, start + n * second);
        }
        assert_eq!(old, [0, 1, 2, 4, 8, 16, 32, 64, 124]);
        assert_eq!(new, [100, 101, 102, 104, 108, 116, 132]);
    }

    #[test]
    fn what_is_refused_to_the_end_is_requeued() {
        let mut ledger = Ledger::default();
        ledger.add(settlement(1, "x"));
        ledger.take_results(vec![Settled::Refused("why".into())], false, Instant::now());
        assert_eq!((ledger.requeue_refused(), ledger.requeue_refused()), (1, 0));
        assert_eq!(ledger.due(), [&requeue(1, false)]);
    }

    #[test]
    fn killed_jobs_are_held_together_and_go_last_with_the_newest_first() {
        let mut ledger = Ledger::default();
        [1, 3, 2].into_iter().for_each(|n| ledger.hold(requeue(n, true)));
        ledger.add(settlement(4, "x"));
        ledger.sort();
        assert_eq!((due(&ledger), ledger.n_unsettled()), (tokens([4]), 4));
        ledger.release_held();
        assert_eq!(due(&ledger), tokens([4, 3, 2, 1]));
    }

    #[test]
    fn a_job_that_had_begun_and_that_the_fence_refuses_was_lost() {
        for (settlement, is_lost) in [(settlement(1, "x"), true), (requeue(1, true), true), (requeue(1, false), false)]
        {
            let mut ledger = Ledger::default();
            ledger.add(settlement);
            let fenced = ledger.take_results(vec![Settled::Fenced], false, Instant::now());
            assert_eq!((fenced.len(), ledger.n_unsettled()), (usize::from(is_lost), 0));
        }
    }
}
