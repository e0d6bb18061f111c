//! The jobs in custody: one task that takes turns with Redis, and remembers.
//!
//! At most one turn is on its way, and it is sent again with the same tokens until it is answered; so a lost reply
//! loses nothing. Every few seconds the memory is compared with the in-flight hash ("reconcile"): a job that came with a lost
//! reply is adopted, a result that Redis forgot is settled again, and a build whose job was reclaimed is killed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::fence::begin;
use super::iteration::Iteration;
use super::memory::Memory;
use super::turn::{FetchRequest, Fetched, Reply, Settlement, Token, Turn, UnitOfWork};
use super::{Identity, order};
use crate::bounds;
use crate::clock::Epoch;
use crate::redis::Redis;
use crate::settings::{Capsule, Jobs};

/// The slow poll that guarantees progress when a push that should wake us is lost.
const POLL: Duration = Duration::from_secs(5);

/// When many processes wait for the same push, each answers within this long for each of them, so that the first takes the
/// job, and its result, to a Redis that is not busy telling all others that there is nothing left.
const SPREAD: Duration = Duration::from_millis(1);
const MAX_SPREAD: Duration = Duration::from_millis(100);

/// How soon something that Redis did not answer is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// The poll where Redis pushes nothing.
const POLL_UNTOLD: Duration = Duration::from_millis(500);

/// A unit of work in custody, as the heartbeat shows it.
#[derive(Clone, Debug)]
pub struct Running {
    /// The unit.
    pub unit: UnitOfWork,
    /// When it began, or began to wait until nothing else runs.
    pub since: Epoch,
    /// Cancelled when the job was reclaimed: whatever it does has no effect any more.
    pub reclaimed: CancellationToken,
    /// How far it is, and whether somebody has cancelled it.
    pub iteration: Arc<Iteration>,
}

/// What is running, shared with the heartbeat.
#[derive(Clone, Debug, Default)]
pub struct RunningJobs(Arc<Mutex<BTreeMap<Token, Running>>>);

impl RunningJobs {
    /// A copy of the present state, in the order of fetching.
    pub fn snapshot(&self) -> Vec<Running> {
        self.with(|running| running.values().cloned().collect())
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Token, Running>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What custody's task shares with those beside it.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Notified when a queue may have work.
    pub work: Arc<Notify>,
    /// Notified when others may have reclaimed jobs.
    pub reconcile: Arc<Notify>,
    n_unsettled: Arc<AtomicUsize>,
    incarnation: Arc<Mutex<String>>,
}

impl Signals {
    /// Results that Redis has not taken yet, as of the last turn.
    pub fn n_unsettled(&self) -> usize {
        self.n_unsettled.load(Ordering::Relaxed)
    }

    /// The incarnation of the lease, by the last renewal; empty before the first one.
    pub fn incarnation(&self) -> String {
        self.incarnation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets it; returns whether it is another one. Jobs may have been reclaimed before it was made.
    pub fn set_incarnation(&self, incarnation: String) -> bool {
        let mut known = self.incarnation.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *known != incarnation;
        *known = incarnation;
        is_new
    }
}

/// The task's parts. [`Custody::run`] is the task.
#[derive(Debug)]
pub struct Custody {
    /// A connection of its own, with tracking.
    pub redis: Redis,
    /// Ours.
    pub identity: Arc<Identity>,
    /// Slots and their queues.
    pub capsules: Vec<Capsule>,
    /// Limits of the dead set.
    pub jobs: Jobs,
    /// How often to reconcile.
    pub reconcile_every: Duration,
    /// What others tell it, and it them.
    pub signals: Signals,
    /// What is running.
    pub running: RunningJobs,
    /// Cancelled when nothing more is to be fetched.
    pub quiet: CancellationToken,
    /// Whether the disk has room for more; while it has none, nothing is fetched.
    pub has_room: watch::Receiver<bool>,
}

impl Custody {
    /// Takes turns until `settlements` is closed and all of them are answered.
    ///
    /// Fetched units go to `units`, never more than there are free slots.
    pub async fn run(
        self,
        mut settlements: mpsc::UnboundedReceiver<Settlement>,
        units: mpsc::UnboundedSender<Running>,
    ) {
        let mut memory = Memory::new();
        let mut reconcile = interval(self.reconcile_every);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_open, mut has_room) = (true, self.has_room.clone());
        while is_open {
            let poll = if self.redis.is_told() { POLL } else { POLL_UNTOLD };
            // A branch that is dropped loses nothing: the channel keeps its settlements, `Notify` its permit.
            tokio::select! {
                settlement = settlements.recv() => match settlement {
                    Some(settlement) => self.finish(&mut memory, settlement),
                    None => is_open = false,
                },
                () = self.signals.work.notified() => match spread(memory.n_idlers) {
                    Duration::ZERO => {}
                    delay => {
                        memory.wake_at.get_or_insert(Instant::now() + delay);
                        continue;
                    }
                },
                () = sleep_until(memory.wake_at.unwrap_or_else(Instant::now)), if memory.wake_at.is_some() => {}
                () = sleep(poll) => {}
                () = self.signals.reconcile.notified() => self.try_to_reconcile(&mut memory, &mut reconcile).await,
                _ = reconcile.tick() => self.try_to_reconcile(&mut memory, &mut reconcile).await,
                () = memory.apart.is_cancelled() => {}
                () = self.quiet.cancelled(), if !memory.slots.is_empty() || memory.apart.is_waiting() => {}
                Ok(()) = has_room.changed() => {}
            }
            while let Ok(settlement) = settlements.try_recv() {
                self.finish(&mut memory, settlement);
            }
            self.prepare(&mut memory, is_open);
            while self.turn(&mut memory, &units).await || self.begin_waiting(&mut memory, &units).await {}
        }
        self.end(&mut memory, &units).await;
    }

    /// What goes back to its queue with this turn.
    fn prepare(&self, memory: &mut Memory, is_open: bool) {
        memory.wake_at = None;
        if self.quiet.is_cancelled() {
            for running in memory.apart.give_up() {
                self.requeue(memory, &running);
            }
        }
        // They end one by one, and go back together, or their order would be that of their ends.
        if !is_open || self.running.with(|running| running.is_empty()) {
            memory.pending.append(&mut memory.killed);
        }
    }

    /// Results that are refused to the end: their jobs go back to their queues, and run again. No crash is counted.
    async fn end(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) {
        memory.try_refused_again();
        self.turn(memory, units).await;
        if !memory.refused.is_empty() {
            let n_jobs = memory.refused.len();
            tracing::error!(n_jobs, "results were refused to the end: their jobs go back to their queues");
            memory.pending.extend(memory.refused.drain(..).map(|(settlement, _)| settlement.requeued()));
            self.turn(memory, units).await;
        }
    }

    /// What the end of a run says whose job was reclaimed is dropped: its token may be another job's by now.
    fn finish(&self, memory: &mut Memory, settlement: Settlement) {
        memory.apart.end(&settlement.token);
        let running = self.running.with(|running| running.remove(&settlement.token));
        if running.is_some_and(|running| running.reclaimed.is_cancelled()) {
            return;
        }
        // Without a stop it is one that the fence has refused, and none will follow.
        let is_killed = settlement.is_interrupted() && self.quiet.is_cancelled();
        if is_killed { memory.killed.push(settlement) } else { memory.pending.push(settlement) }
    }

    /// Takes a turn, when there is anything to say or to ask for; returns whether there is more to do at once.
    ///
    /// A token that a turn has settled is never filled again: turns before it are refused, since their numbers are lower, or
    /// the lease that they were sent under is gone.
    async fn turn(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) -> bool {
        self.assign_slots(memory);
        if memory.pending.is_empty() && memory.slots.is_empty() && memory.unheard.is_empty() {
            return false;
        }
        // The newest first: what is requeued last comes out next.
        memory
            .pending
            .sort_by_cached_key(|settlement| settlement.is_requeue().then(|| Reverse(settlement.token.clone())));
        memory.n_turns += 1;
        self.signals.n_unsettled.store(memory.n_unsettled(), Ordering::Relaxed);
        let reply = self.send_until_answered(memory).await;
        let has_more = self.take_in(memory, reply, units);
        self.signals.n_unsettled.store(memory.n_unsettled(), Ordering::Relaxed);
        has_more
    }

    pub(super) fn takes_jobs(&self, memory: &Memory) -> bool {
        !self.quiet.is_cancelled() && *self.has_room.borrow() && !memory.apart.has_suspect()
    }

    /// One token for each free slot, capsule by capsule; none when quiet, without room, or beside a suspect.
    fn assign_slots(&self, memory: &mut Memory) {
        let old = std::mem::take(&mut memory.slots);
        if !self.takes_jobs(memory) {
            return;
        }
        for (place, capsule) in self.capsules.iter().enumerate() {
            let is_here = |token: &&Token| token.capsule == place;
            let refused = memory.refused.iter().map(|(settlement, _)| &settlement.token);
            let n_taken = self.n_running(place) + refused.chain(&memory.tried_again).filter(is_here).count();
            let n_free = capsule.concurrency.saturating_sub(n_taken);
            let kept = old.iter().filter(is_here).take(n_free);
            let before = memory.slots.len();
            memory.slots.extend(kept.cloned());
            while memory.slots.len() < before + n_free {
                memory.n_tokens += 1;
                memory.slots.push(Token::nth(memory.n_tokens, place));
            }
        }
    }

    pub(super) fn n_running(&self, capsule: usize) -> usize {
        self.running.with(|running| running.keys().filter(|token| token.capsule == capsule).count())
    }

    /// What is asked for the free slots, which are in the order of their capsules.
    fn fetch_requests(&self, slots: &[Token]) -> Vec<FetchRequest> {
        let capsules = self.capsules.iter().enumerate();
        let n_free = |place| slots.iter().filter(|token| token.capsule == place).count();
        capsules.flat_map(|(place, capsule)| order::fetch_requests(capsule, n_free(place))).collect()
    }

    async fn send_until_answered(&self, memory: &Memory) -> Reply {
        let slots: Vec<Token> = memory.unheard.iter().chain(&memory.slots).cloned().collect();
        let unheard = FetchRequest { n_slots: memory.unheard.len(), queues: Vec::new() };
        let fetch_requests: Vec<FetchRequest> =
            [unheard].into_iter().chain(self.fetch_requests(&memory.slots)).collect();
        let n_held_bytes = self.running.with(|running| running.values().map(|its| its.unit.text.len()).sum());
        let (started, mut complaint) = (Instant::now(), None);
        loop {
            let incarnation = self.signals.incarnation();
            let turn = Turn {
                incarnation: &incarnation,
                number: memory.n_turns,
                settlements: &memory.pending,
                slots: &slots,
                fetch_requests: &fetch_requests,
                max_bytes: bounds::JOBS.saturating_sub(n_held_bytes),
            };
            match turn.send(&self.redis, &self.identity, &self.jobs, Epoch::now()).await {
                Ok(reply) => {
                    if complaint.is_some() {
                        tracing::info!(downtime_s = started.elapsed().as_secs_f64(), "Redis is back");
                        self.signals.reconcile.notify_one();
                    }
                    return reply;
                }
                Err(error) => {
                    // An outage has its stages: refused, not there, loading. Each is said once.
                    let what = error.to_string();
                    if complaint.as_ref() != Some(&what) {
                        tracing::error!(error = what, "Redis does not take the turn; running builds go on");
                        complaint = Some(what);
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Brings the memory up to date with an answer; returns whether there is more to do at once.
    fn take_in(&self, memory: &mut Memory, reply: Reply, units: &mpsc::UnboundedSender<Running>) -> bool {
        memory.n_idlers = reply.n_idlers;
        memory.take_in_results(reply.settled);
        for what in reply.oversized {
            let max_bytes = bounds::JOB;
            tracing::error!(event = "oversized_job", what, max_bytes, "oversized job moved to the dead set");
        }
        let has_asked = !memory.slots.is_empty();
        let fetched = match reply.fetched {
            Fetched::Units(units) => units,
            Fetched::Full => {
                memory.told.hear_of_memory(true);
                return false;
            }
            // The lease's thread wakes us when it has made one; what others reclaimed meanwhile, reconcile will find.
            Fetched::NoLease => return false,
        };
        if has_asked {
            memory.told.hear_of_memory(false);
        }
        let unheard = std::mem::take(&mut memory.unheard);
        let (adopted, fetched): (Vec<_>, Vec<_>) = fetched.into_iter().partition(|unit| unheard.contains(&unit.token));
        let (n_fetched, n_slots) = (fetched.len(), memory.slots.len());
        // One that was given enough has not asked every queue, and a suspect is the last that is fetched.
        let is_cut = fetched.iter().any(|unit| unit.is_suspect() || unit.is_poison());
        memory.told.hear_of_queues(reply.passed_over, n_fetched < n_slots && !is_cut);
        for unit in fetched {
            memory.slots.retain(|token| *token != unit.token);
            self.begin(memory, unit, units);
        }
        adopted.into_iter().for_each(|unit| self.adopt(memory, unit, units));
        !memory.pending.is_empty() || n_fetched > 0 && n_fetched == n_slots
    }

    /// Hands a unit to the processors, or has it wait until it may begin; back on its queue, together with what came with it,
    /// when they begin nothing more.
    pub(super) fn begin(&self, memory: &mut Memory, unit: UnitOfWork, units: &mpsc::UnboundedSender<Running>) {
        if self.quiet.is_cancelled() {
            memory.pending.push(Settlement::requeue(&unit));
            return;
        }
        let running =
            Running { unit, since: Epoch::now(), reclaimed: CancellationToken::new(), iteration: Arc::default() };
        if !running.unit.is_idle && !running.unit.is_suspect() {
            return self.hand_over(memory, running, units);
        }
        running.iteration.wait(&self.jobs, &running.unit.text);
        self.running.with(|all| all.insert(running.unit.token.clone(), running.clone()));
        memory.apart.wait(running);
    }

    fn hand_over(&self, memory: &mut Memory, running: Running, units: &mpsc::UnboundedSender<Running>) {
        self.running.with(|all| all.insert(running.unit.token.clone(), running.clone()));
        if let Err(mpsc::error::SendError(running)) = units.send(running) {
            self.requeue(memory, &running);
        }
    }

    fn requeue(&self, memory: &mut Memory, running: &Running) {
        self.release(memory, running);
        memory.pending.push(Settlement::requeue(&running.unit));
    }

    /// Its slot is free.
    fn release(&self, memory: &mut Memory, running: &Running) {
        memory.apart.end(&running.unit.token);
        self.running.with(|all| all.remove(&running.unit.token));
    }

    /// Begins what waits, as far as it may; returns whether there is more to do at once.
    async fn begin_waiting(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) -> bool {
        let due = memory.apart.due(self.running.with(|running| running.len()));
        let mut is_free = !due.reclaimed.is_empty();
        due.reclaimed.iter().for_each(|running| self.release(memory, running));
        due.over.into_iter().for_each(|running| self.hand_over(memory, running, units));
        if due.ready.is_empty() {
            return is_free;
        }
        let begun: Vec<&UnitOfWork> = due.ready.iter().map(|running| &running.unit).collect();
        let begun = begin(&self.redis, &self.identity, &begun).await;
        let Some(begun) = memory.complaint_of_begin.hear(begun) else {
            due.ready.into_iter().for_each(|running| memory.apart.wait(running));
            memory.wake_at = Some(Instant::now() + RETRY);
            return is_free;
        };
        for (running, is_owned) in due.ready.into_iter().zip(begun) {
            if is_owned {
                running.iteration.go_on();
                self.hand_over(memory, Running { since: Epoch::now(), ..running }, units);
            } else {
                self.release(memory, &running);
                is_free = true;
            }
        }
        is_free || !memory.pending.is_empty()
    }
}

/// How long to wait with the answer to a push that woke so many others as well.
fn spread(n_idlers: u32) -> Duration {
    let widest = SPREAD.saturating_mul(n_idlers.saturating_sub(1)).min(MAX_SPREAD);
    widest.mul_f64(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_answers_a_push_at_once_and_a_herd_spreads() {
        assert_eq!([0, 1].map(spread), [Duration::ZERO; 2]);
        let delays: Vec<Duration> = (0..1000).map(|_| spread(100)).collect();
        assert!(delays.iter().all(|delay| *delay < SPREAD * 99));
        // The first of a hundred is as good as there at once.
        assert!(delays.iter().any(|delay| *delay < SPREAD));
        assert!((0..1000).all(|_| spread(u32::MAX) <= MAX_SPREAD));
    }
}
