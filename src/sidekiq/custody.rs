//! Custody of jobs between fetch and settlement: one task that takes turns with Redis.
//!
//! At most one turn is on its way. It is sent again with the same tokens until Redis answers, so a lost reply loses nothing.
//! Every few seconds custody compares its memory with the in-flight hash ("reconcile"). It adopts a job whose reply was lost,
//! settles again a result that Redis lost, and kills a build whose job was reclaimed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Identity;
use super::contention::Contention;
use super::fence::begin;
use super::inflight::{Token, UnitOfWork};
use super::memory::Memory;
use super::running::{Running, RunningJobs};
use super::settlement::{RunEnd, Settlement};
use super::turn::{FetchRequest, Fetched, Reply, Sharing, Turn, Window};
use crate::bounds;
use crate::clock::Epoch;
use crate::metric;
use crate::redis::Redis;
use crate::settings::{Capsule, Jobs, Limits, Tenants};

/// The poll that guarantees progress when a push that should wake custody is lost.
const POLL: Duration = Duration::from_secs(5);

/// The poll where Redis pushes nothing.
const POLL_WITHOUT_PUSHES: Duration = Duration::from_millis(500);

/// When many processes wait for the same push, each answers it within this time for each of them. So the first one takes the
/// job and settles it before Redis is busy with answers to all others.
const SPREAD: Duration = Duration::from_millis(1);
const MAX_SPREAD: Duration = Duration::from_millis(100);

/// How soon a request that Redis did not answer is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// What custody's task shares with the tasks beside it.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    /// Notified when a queue may have work.
    pub work: Arc<Notify>,
    /// Notified when others may have reclaimed jobs.
    pub reconcile: Arc<Notify>,
    n_unsettled: Arc<AtomicUsize>,
    incarnation: Arc<Mutex<String>>,
    trouble: watch::Sender<Option<String>>,
    long_queues: watch::Sender<BTreeSet<String>>,
    sees_waiting: Arc<AtomicBool>,
    takes_jobs: Arc<AtomicBool>,
    limits: watch::Sender<Vec<Limits>>,
}

impl Handle {
    /// Results that Redis does not have, as of the last turn.
    pub fn n_unsettled(&self) -> usize {
        self.n_unsettled.load(Ordering::Relaxed)
    }

    /// Why the worker gets no jobs from Redis at present; `None` when it may.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Queues with more jobs than a worker looks at, as of the last turn under contention.
    pub fn long_queues(&self) -> &watch::Sender<BTreeSet<String>> {
        &self.long_queues
    }

    /// The limits of tenants, of all workers of the fleet.
    pub fn limits(&self) -> &watch::Sender<Vec<Limits>> {
        &self.limits
    }

    /// Whether jobs waited at the last turn under contention.
    pub fn sees_waiting(&self) -> bool {
        self.sees_waiting.load(Ordering::Relaxed)
    }

    /// Whether the worker took jobs at the last turn: it has room on its disk, and holds no suspect.
    pub fn takes_jobs(&self) -> bool {
        self.takes_jobs.load(Ordering::Relaxed)
    }

    /// The incarnation of the lease at the last renewal; empty before the first one.
    pub fn incarnation(&self) -> String {
        self.incarnation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the incarnation; returns whether it is another one. Jobs may have been reclaimed before it was made.
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
    /// This process.
    pub identity: Arc<Identity>,
    /// Slots and their queues.
    pub capsules: Vec<Capsule>,
    /// Limits of the dead set, and how jobs are read.
    pub jobs: Jobs,
    /// How tenants share the slots.
    pub tenants: Tenants,
    /// How often to reconcile.
    pub reconcile_every: Duration,
    /// Shared with the tasks beside it.
    pub handle: Handle,
    /// What is running.
    pub running: RunningJobs,
    /// Cancelled when no more jobs are to be fetched.
    pub quiet: CancellationToken,
    /// Whether the disk has room. Without room, custody fetches nothing.
    pub has_room: watch::Receiver<bool>,
}

impl Custody {
    /// Takes turns until `settlements` is closed and Redis has answered all of them.
    ///
    /// Sends fetched units to `units`, never more than there are free slots.
    pub async fn run(
        self,
        mut settlements: mpsc::UnboundedReceiver<Settlement>,
        units: mpsc::UnboundedSender<Running>,
    ) {
        let mut memory = Memory::new(Contention::new(self.jobs.clone(), self.tenants.clone()));
        let mut reconcile = interval(self.reconcile_every);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_open, mut has_room, mut limits) = (true, self.has_room.clone(), self.handle.limits.subscribe());
        while is_open {
            let poll = poll_period(self.redis.has_tracking());
            let mut looks_by_itself = false;
            // A branch that is dropped loses nothing: the channel keeps its settlements, `Notify` its permit.
            tokio::select! {
                settlement = settlements.recv() => match settlement {
                    Some(settlement) => self.finish(&mut memory, settlement),
                    None => is_open = false,
                },
                () = self.handle.work.notified() => match spread(memory.n_idlers, rand::random()) {
                    Duration::ZERO => {}
                    delay => {
                        memory.wake_by(Instant::now() + delay);
                        continue;
                    }
                },
                () = sleep_until(memory.wake_at.unwrap_or_else(Instant::now)), if memory.wake_at.is_some() => {}
                () = sleep(poll) => looks_by_itself = true,
                () = self.handle.reconcile.notified() => self.try_to_reconcile(&mut memory, &mut reconcile).await,
                _ = reconcile.tick() => {
                    looks_by_itself = memory.wake_at.is_none();
                    self.try_to_reconcile(&mut memory, &mut reconcile).await;
                }
                () = memory.apart.is_cancelled() => {}
                () = self.quiet.cancelled(), if !memory.slots.is_empty() || memory.apart.is_waiting() => {}
                Ok(()) = has_room.changed() => {}
                Ok(()) = limits.changed() => memory.contention.set_limits(limits.borrow_and_update().clone()),
            }
            self.finish_all(&mut memory, &mut settlements);
            self.prepare(&mut memory, is_open);
            let n_fetched = memory.n_fetched;
            while self.turn(&mut memory, &units).await || self.begin_waiting(&mut memory, &units).await {
                self.finish_all(&mut memory, &mut settlements);
            }
            if looks_by_itself && memory.n_fetched > n_fetched {
                self.redis.note_missed_push();
            }
        }
        self.end(&mut memory, &units).await;
    }

    /// Adds what is requeued with this turn.
    fn prepare(&self, memory: &mut Memory, is_open: bool) {
        memory.wake_at = memory.contention.claims_due();
        if self.quiet.is_cancelled() {
            for running in memory.apart.give_up() {
                self.requeue(memory, &running);
            }
        }
        // Killed builds end one by one. Their jobs are requeued together, or the queue would have the order of these ends.
        if !is_open || self.running.n_jobs() == 0 {
            memory.ledger.release_held();
        }
    }

    /// Requeues jobs whose results Redis refuses until the worker ends: they run again. No crash is counted.
    async fn end(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) {
        memory.ledger.retry_all_refused();
        self.turn(memory, units).await;
        let n_jobs = memory.ledger.requeue_refused();
        if n_jobs > 0 {
            tracing::error!(
                event = "refused_results_dropped",
                n_jobs,
                "Redis refused results until the worker ended; requeueing their jobs"
            );
            self.turn(memory, units).await;
        }
    }

    /// Takes the settlements of all runs that have ended.
    fn finish_all(&self, memory: &mut Memory, settlements: &mut mpsc::UnboundedReceiver<Settlement>) {
        while let Ok(settlement) = settlements.try_recv() {
            self.finish(memory, settlement);
        }
    }

    /// Takes the settlement of a run that has ended.
    fn finish(&self, memory: &mut Memory, settlement: Settlement) {
        memory.apart.end(&settlement.token);
        let ended = self.running.remove(&settlement.token);
        let took = ended.map(|running| Epoch::now().since(running.since));
        memory.contention.end(&settlement.token, took.filter(|_| settlement.run_end == RunEnd::Ended));
        match settlement.run_end {
            RunEnd::Returned | RunEnd::Ended => memory.ledger.add(settlement),
            RunEnd::Killed => memory.ledger.hold(settlement),
            // Its token may be another job's by now.
            RunEnd::Reclaimed => {}
        }
    }

    /// Takes a turn if there is anything to settle or to fetch; returns whether there is more to do at once.
    ///
    /// A token that a turn has settled is never filled again: Redis refuses earlier turns, since their numbers are lower or the
    /// lease that they were sent under is gone.
    async fn turn(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) -> bool {
        self.assign_slots(memory);
        let now = Instant::now();
        let has_claims = memory.contention.claims_due().is_some_and(|due| due <= now);
        if !memory.ledger.has_due() && memory.slots.is_empty() && memory.unknown.is_empty() && !has_claims {
            return false;
        }
        memory.ledger.sort();
        memory.n_turns += 1;
        self.handle.n_unsettled.store(memory.ledger.n_unsettled(), Ordering::Relaxed);
        let sharing = memory.contention.sharing(memory.slots.len(), now);
        let (reply, is_resent) = self.send_until_answered(memory, &sharing).await;
        let has_more = self.take_in(memory, reply, is_resent, &sharing, units);
        if let Some(due) = memory.contention.claims_due() {
            memory.wake_by(due);
        }
        self.handle.n_unsettled.store(memory.ledger.n_unsettled(), Ordering::Relaxed);
        has_more
    }

    pub(super) fn takes_jobs(&self, memory: &Memory) -> bool {
        !self.quiet.is_cancelled() && *self.has_room.borrow() && !memory.apart.has_suspect()
    }

    /// Assigns one token to each free slot, capsule by capsule; none when quiet, without room, or beside a suspect.
    fn assign_slots(&self, memory: &mut Memory) {
        let old = std::mem::take(&mut memory.slots);
        let takes_jobs = self.takes_jobs(memory);
        self.handle.takes_jobs.store(takes_jobs, Ordering::Relaxed);
        if !takes_jobs {
            return;
        }
        for (index, capsule) in self.capsules.iter().enumerate() {
            let n_taken = self.running.n_jobs_of(index) + memory.ledger.n_slots_of(index);
            let n_free = capsule.concurrency.saturating_sub(n_taken);
            let before = memory.slots.len();
            memory.slots.extend(old.iter().filter(|token| token.capsule == index).take(n_free).cloned());
            while memory.slots.len() < before + n_free {
                memory.n_tokens += 1;
                memory.slots.push(Token::nth(memory.n_tokens, index));
            }
        }
    }

    /// Returns the reply, and whether Redis may have applied the turn before.
    async fn send_until_answered(&self, memory: &mut Memory, sharing: &Sharing) -> (Reply, bool) {
        let requests = memory.orders.fetch_requests(&self.capsules, &mut memory.slots);
        let slots: Vec<Token> = memory.unknown.iter().chain(&memory.slots).cloned().collect();
        let unknown = FetchRequest { n_slots: memory.unknown.len(), queues: Vec::new() };
        let fetch_requests: Vec<FetchRequest> = [unknown].into_iter().chain(requests).collect();
        let settlements = memory.ledger.due();
        let (started, mut logged, mut n_sent) = (Instant::now(), None, 0);
        loop {
            let incarnation = self.handle.incarnation();
            let turn = Turn {
                incarnation: &incarnation,
                number: memory.n_turns,
                settlements: &settlements,
                slots: &slots,
                fetch_requests: &fetch_requests,
                max_bytes: bounds::JOBS.saturating_sub(self.running.size_bytes()),
                sharing,
            };
            // A turn does not leave without a connection.
            let sent = match self.redis.connect_if_needed().await {
                Ok(()) => {
                    n_sent += 1;
                    let sent = Instant::now();
                    let reply = turn.send(&self.redis, &self.identity, &self.jobs, Epoch::now()).await;
                    if reply.is_ok() {
                        metric::TURN_DURATION.record([], sent.elapsed());
                    }
                    reply
                }
                Err(error) => Err(error),
            };
            match sent {
                Ok(reply) => {
                    if logged.is_some() {
                        let downtime_s = started.elapsed().as_secs_f64();
                        tracing::info!(event = "redis_back", downtime_s, "Redis is back");
                        self.handle.reconcile.notify_one();
                    }
                    return (reply, n_sent > 1);
                }
                Err(error) => {
                    // An outage has stages: connection refused, no answer, loading. Each is logged once.
                    let error = error.to_string();
                    if logged.as_ref() != Some(&error) {
                        tracing::error!(
                            event = "redis_unavailable",
                            error,
                            "Redis does not take the turn; running builds go on"
                        );
                        let trouble = format!("Redis does not take the turn: {error}");
                        self.handle.trouble.send_replace(Some(trouble));
                        logged = Some(error);
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Updates the memory with a reply; returns whether there is more to do at once.
    fn take_in(
        &self,
        memory: &mut Memory,
        reply: Reply,
        is_resent: bool,
        sharing: &Sharing,
        units: &mpsc::UnboundedSender<Running>,
    ) -> bool {
        memory.n_idlers = reply.n_idlers;
        memory.take_results(reply.settled, is_resent);
        for what in reply.oversized {
            let max_bytes = bounds::JOB;
            tracing::error!(event = "oversized_job", what, max_bytes, "oversized job moved to the dead set");
        }
        let has_asked = !memory.slots.is_empty();
        let fetched = match reply.fetched {
            Fetched::Units(units) => units,
            Fetched::Full => {
                memory.conditions.log_memory(true);
                memory.contention.postpone_claims(Instant::now() + RETRY);
                self.handle.trouble.send_replace(Some("Redis is full: fetching no jobs".into()));
                return false;
            }
            // The lease's thread notifies custody when there is a lease. Reconcile finds what others reclaimed meanwhile.
            Fetched::NoLease => {
                self.handle.trouble.send_replace(Some("Redis has no lease of this worker".into()));
                memory.contention.postpone_claims(Instant::now() + RETRY);
                return false;
            }
        };
        self.handle.trouble.send_replace(None);
        if has_asked {
            memory.conditions.log_memory(false);
        }
        let unknown = std::mem::take(&mut memory.unknown);
        let (adopted, fetched): (Vec<_>, Vec<_>) = fetched.into_iter().partition(|unit| unknown.contains(&unit.token));
        let (n_fetched, n_slots) = (fetched.len(), memory.slots.len());
        memory.n_fetched += n_fetched as u64;
        let now = Instant::now();
        memory.contention.begin(sharing, &fetched, now);
        memory.contention.begin(sharing, &adopted, now);
        self.note_long_queues(&reply.windows);
        if n_slots > 0 && sharing.asks_all_windows() {
            let sees_waiting = reply.windows.iter().any(|window| window.n_waiting > 0);
            self.handle.sees_waiting.store(sees_waiting, Ordering::Relaxed);
        }
        let pause = memory.contention.take_in(sharing, reply.windows, reply.known, &fetched, n_slots);
        if let Some(pause) = pause {
            memory.wake_by(now + pause);
        }
        // A turn that filled all slots has not asked every queue. A suspect ends the fetch as well.
        let is_cut = fetched.iter().any(|unit| unit.is_suspect() || unit.is_poison());
        memory.conditions.log_queues(reply.passed_over, n_fetched < n_slots && !is_cut);
        for unit in fetched {
            memory.slots.retain(|token| *token != unit.token);
            self.begin(memory, unit, units);
        }
        adopted.into_iter().for_each(|unit| self.adopt(memory, unit, units));
        memory.ledger.has_due() || n_fetched > 0 && n_fetched == n_slots || pause == Some(Duration::ZERO)
    }

    /// Notes the queues that the scout has to look at.
    fn note_long_queues(&self, windows: &[Window]) {
        self.handle.long_queues.send_if_modified(|long| {
            let before = long.clone();
            for window in windows {
                // Long texts fill a window too.
                if window.n_waiting > window.near.len() {
                    long.insert(window.queue.clone());
                } else {
                    long.remove(&window.queue);
                }
            }
            before != *long
        });
    }

    /// Sends a unit to the processors, or lets it wait until it may begin. A quiet worker requeues it, together with what was
    /// fetched with it.
    pub(super) fn begin(&self, memory: &mut Memory, unit: UnitOfWork, units: &mpsc::UnboundedSender<Running>) {
        if self.quiet.is_cancelled() {
            return memory.give_back(&unit);
        }
        let running = Running::new(unit, Epoch::now());
        // Beside the slots, a job only ends.
        if running.unit.token.is_beside() || !running.unit.is_idle && !running.unit.is_suspect() {
            return self.hand_over(memory, running, units);
        }
        running.iteration.wait(&self.jobs, &running.unit.text);
        self.running.insert(running.clone());
        memory.apart.wait(running);
    }

    fn hand_over(&self, memory: &mut Memory, running: Running, units: &mpsc::UnboundedSender<Running>) {
        self.running.insert(running.clone());
        if let Err(mpsc::error::SendError(running)) = units.send(running) {
            self.requeue(memory, &running);
        }
    }

    fn requeue(&self, memory: &mut Memory, running: &Running) {
        self.release(memory, running);
        memory.give_back(&running.unit);
    }

    /// Frees the slot of a unit.
    fn release(&self, memory: &mut Memory, running: &Running) {
        memory.apart.end(&running.unit.token);
        memory.contention.end(&running.unit.token, None);
        self.running.remove(&running.unit.token);
    }

    /// Begins the waiting units that may begin; returns whether there is more to do at once.
    async fn begin_waiting(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) -> bool {
        let due = memory.apart.due(self.running.n_jobs());
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
        is_free || memory.ledger.has_due()
    }
}

/// How long to wait before answering a push that woke so many processes. `jitter` is in 0..1.
fn spread(n_idlers: u32, jitter: f64) -> Duration {
    let widest = SPREAD.saturating_mul(n_idlers.saturating_sub(1)).min(MAX_SPREAD);
    widest.mul_f64(jitter)
}

/// How long an idle worker waits for a push before it looks by itself.
fn poll_period(has_tracking: bool) -> Duration {
    if has_tracking { POLL } else { POLL_WITHOUT_PUSHES }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_process_answers_a_push_at_once_and_many_spread() {
        for (n_idlers, jitter, delay) in [
            (0, 0.9, Duration::ZERO),
            (1, 0.9, Duration::ZERO),
            (3, 0.0, Duration::ZERO),
            (3, 0.5, SPREAD),
            (u32::MAX, 0.5, MAX_SPREAD / 2),
        ] {
            assert_eq!(spread(n_idlers, jitter), delay, "{n_idlers} processes, {jitter}");
        }
    }

    #[test]
    fn a_worker_that_redis_does_not_wake_looks_twice_a_second() {
        assert_eq!(poll_period(false), Duration::from_millis(500));
        assert!(poll_period(true) > poll_period(false));
    }
}
