//! The jobs that are ours: one task that takes turns with Redis, and remembers.
//!
//! At most one turn is on its way, and it is sent again with the same tokens until it is answered; so a lost reply
//! loses nothing. Every few seconds the memory is compared with the in-flight hash ("reconcile"): a job we never heard
//! of is adopted, a result that Redis forgot is settled again, and a build that was taken from us is killed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Identity;
use super::turn::{Effect, Fetched, Reply, Settled, Settlement, Token, Turn, UnitOfWork};
use crate::clock::Epoch;
use crate::redis::{Complaint, Redis, RedisError};
use crate::settings::Jobs;

/// How long a result is remembered, in case Redis forgets that it was settled.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How many at most. A minute of builds is far less; a minute of empty jobs would fill the memory.
const MAX_REMEMBERED: usize = 4096;

/// The slow poll that guarantees progress when a push that should wake us is lost.
const POLL: Duration = Duration::from_secs(5);

/// When many processes wait for the same push, each answers within this long for each of them, so that the first takes the
/// job, and its result, to a Redis that is not busy telling all others that there is nothing left.
const SPREAD: Duration = Duration::from_micros(500);
const MAX_SPREAD: Duration = Duration::from_millis(100);

/// The poll where Redis pushes nothing.
const POLL_UNTOLD: Duration = Duration::from_millis(500);

/// A unit of work that is being processed, as the heartbeat shows it.
#[derive(Clone, Debug)]
pub struct Running {
    /// The unit.
    pub unit: UnitOfWork,
    /// When it began.
    pub since: Epoch,
    /// Cancelled when the job was taken from us: whatever it does has no effect any more.
    pub taken: CancellationToken,
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
    /// Notified when others may have taken what is ours.
    pub reconcile: Arc<Notify>,
    /// The number of the last turn that was sent.
    pub last_turn: Arc<AtomicU64>,
}

/// The task's parts. [`Custody::run`] is the task.
#[derive(Debug)]
pub struct Custody {
    /// A connection of its own, with tracking.
    pub redis: Redis,
    /// Ours.
    pub identity: Arc<Identity>,
    /// Queues, the first one first.
    pub queues: Vec<String>,
    /// Slots.
    pub concurrency: usize,
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
}

/// What the loop keeps between turns.
struct Memory {
    complaint: Complaint,
    n_tokens: u64,
    n_turns: u64,
    /// Settlements that Redis has not answered yet.
    pending: Vec<Settlement>,
    /// Settlements that it has, in case it forgets.
    remembered: Remembered,
    /// How many processes may be waiting for the same push.
    n_idlers: u32,
    /// Tokens of free slots; used again until one is filled.
    slots: Vec<Token>,
}

/// The newest of what was settled.
#[derive(Default)]
struct Remembered {
    settlements: HashMap<Token, Settlement>,
    /// The oldest one first. A token that was settled again is here twice, and counts from the first time.
    order: VecDeque<(Instant, Token)>,
}

impl Remembered {
    fn add(&mut self, settlement: Settlement, now: Instant) {
        self.order.push_back((now, settlement.token.clone()));
        self.settlements.insert(settlement.token.clone(), settlement);
        if self.order.len() > MAX_REMEMBERED {
            self.forget_oldest();
        }
    }

    fn forget_before(&mut self, time: Instant) {
        while self.order.front().is_some_and(|(since, _)| *since < time) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, token)) = self.order.pop_front() {
            self.settlements.remove(&token);
        }
    }
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
        let mut memory = Memory {
            complaint: Complaint::that("the in-flight hash cannot be read"),
            n_tokens: 0,
            n_turns: 0,
            pending: Vec::new(),
            remembered: Remembered::default(),
            n_idlers: 0,
            slots: Vec::new(),
        };
        let mut reconcile = interval(self.reconcile_every);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_open, mut woken_at) = (true, None);
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
                        woken_at.get_or_insert(Instant::now() + delay);
                        continue;
                    }
                },
                () = sleep_until(woken_at.unwrap_or_else(Instant::now)), if woken_at.is_some() => {}
                () = sleep(poll) => {}
                () = self.signals.reconcile.notified() => self.try_to_reconcile(&mut memory, &units).await,
                _ = reconcile.tick() => self.try_to_reconcile(&mut memory, &units).await,
                () = self.quiet.cancelled(), if !memory.slots.is_empty() => {}
            }
            while let Ok(settlement) = settlements.try_recv() {
                self.finish(&mut memory, settlement);
            }
            woken_at = None;
            self.take_turns(&mut memory, &units).await;
        }
    }

    async fn try_to_reconcile(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) {
        let reconciled = self.reconcile(memory, units).await;
        memory.complaint.hear(reconciled);
    }

    fn finish(&self, memory: &mut Memory, settlement: Settlement) {
        self.running.with(|running| running.remove(&settlement.token));
        memory.pending.push(settlement);
    }

    /// Takes turns as long as they move something.
    async fn take_turns(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) {
        loop {
            self.assign_slots(memory);
            if memory.pending.is_empty() && memory.slots.is_empty() {
                return;
            }
            memory.n_turns += 1;
            self.signals.last_turn.store(memory.n_turns, Ordering::Relaxed);
            let reply = self.send_until_answered(memory).await;
            let n_slots = memory.slots.len();
            match self.take_in(memory, reply, units) {
                Some(n_fetched) if n_fetched > 0 && n_fetched == n_slots => {}
                Some(_) => return,
                // The lease's thread wakes us when it has made one; what others took meanwhile, reconcile will find.
                None => return,
            }
        }
    }

    /// One token for each free slot; none when quiet, but for those of an unanswered turn, which were never sent twice
    /// under another name.
    fn assign_slots(&self, memory: &mut Memory) {
        if self.quiet.is_cancelled() {
            memory.slots.clear();
            return;
        }
        let n_free = self.concurrency.saturating_sub(self.running.with(|running| running.len()));
        memory.slots.truncate(n_free);
        while memory.slots.len() < n_free {
            memory.n_tokens += 1;
            memory.slots.push(Token::nth(memory.n_tokens));
        }
    }

    async fn send_until_answered(&self, memory: &Memory) -> Reply {
        let turn =
            Turn { number: memory.n_turns, settlements: &memory.pending, slots: &memory.slots, queues: &self.queues };
        let (started, mut complaint) = (Instant::now(), None);
        loop {
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
                    sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    /// Brings the memory up to date with an answer; returns how many units were fetched, `None` without a lease.
    fn take_in(&self, memory: &mut Memory, reply: Reply, units: &mpsc::UnboundedSender<Running>) -> Option<usize> {
        let since = Instant::now();
        memory.n_idlers = reply.n_idlers;
        for (settlement, settled) in std::mem::take(&mut memory.pending).into_iter().zip(reply.settled) {
            match settled {
                Settled::Done => {}
                Settled::Fenced => {
                    tracing::debug!(token = %settlement.token, "the job was settled before, or is not ours any more")
                }
                Settled::WrongType(key) => {
                    tracing::error!(key, token = %settlement.token, "a key has the wrong type: the result is kept until it is gone");
                }
            }
            memory.remembered.add(settlement, since);
        }
        if let Some(key) = reply.wrong_queue {
            tracing::error!(key, "a queue is not a list, and is passed over");
        }
        let fetched = match reply.fetched {
            Fetched::Units(units) => units,
            Fetched::NoLease => return None,
            Fetched::Full => {
                tracing::error!("Redis is at its memory limit: results are settled, nothing is fetched");
                return Some(0);
            }
        };
        let n_fetched = fetched.len();
        for unit in fetched {
            memory.slots.retain(|token| *token != unit.token);
            self.begin(memory, unit, units);
        }
        Some(n_fetched)
    }

    /// Hands a unit to the processors; back on its queue when they have stopped listening.
    fn begin(&self, memory: &mut Memory, unit: UnitOfWork, units: &mpsc::UnboundedSender<Running>) {
        let running = Running { unit, since: Epoch::now(), taken: CancellationToken::new() };
        let token = running.unit.token.clone();
        self.running.with(|all| all.insert(token.clone(), running.clone()));
        if let Err(mpsc::error::SendError(running)) = units.send(running) {
            self.running.with(|all| all.remove(&token));
            memory.pending.push(put_back(running.unit));
        }
    }

    async fn reconcile(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) -> Result<(), RedisError> {
        let inflight: HashMap<String, Vec<u8>> =
            self.redis.query(redis::cmd("HGETALL").arg(self.identity.inflight_key())).await?;
        let inflight: HashMap<Token, Vec<u8>> =
            inflight.into_iter().map(|(token, entry)| (Token::parse(&token), entry)).collect();
        for running in self.running.snapshot() {
            if !inflight.contains_key(&running.unit.token) && !running.taken.is_cancelled() {
                tracing::warn!(token = %running.unit.token, "the job was given to another worker: ours is killed");
                running.taken.cancel();
            }
        }
        let running: Vec<Token> = self.running.with(|running| running.keys().cloned().collect());
        for (token, entry) in inflight {
            if running.contains(&token) || memory.pending.iter().any(|settlement| settlement.token == token) {
                continue;
            }
            if let Some(settlement) = memory.remembered.settlements.get(&token) {
                memory.pending.push(settlement.clone());
            } else if let Some(unit) = read_entry(token, &entry) {
                self.adopt(memory, unit, units);
            }
        }
        // Only now: after an outage, what Redis forgot meanwhile had to be compared first.
        if let Some(time) = Instant::now().checked_sub(REMEMBERED) {
            memory.remembered.forget_before(time);
        }
        Ok(())
    }

    /// A job in our hash that we never heard of: the reply that brought it was lost.
    fn adopt(&self, memory: &mut Memory, unit: UnitOfWork, units: &mpsc::UnboundedSender<Running>) {
        let is_free = self.running.with(|running| running.len()) < self.concurrency && !self.quiet.is_cancelled();
        memory.slots.retain(|token| *token != unit.token);
        if is_free {
            tracing::warn!(token = %unit.token, "a job that was fetched without our knowing is taken up");
            self.begin(memory, unit, units);
        } else {
            memory.pending.push(put_back(unit));
        }
    }
}

/// How long to wait with the answer to a push that woke so many others as well.
fn spread(n_idlers: u32) -> Duration {
    let widest = SPREAD.saturating_mul(n_idlers.saturating_sub(1)).min(MAX_SPREAD);
    widest.mul_f64(rand::random())
}

/// A unit's way back to the head of its queue, as if it had never been fetched.
pub fn put_back(unit: UnitOfWork) -> Settlement {
    let effects = vec![Effect::PutBack { queue: unit.queue, is_interrupted: false }];
    Settlement { token: unit.token, is_processed: false, is_failed: false, effects }
}

/// An entry of an in-flight hash: queue, newline, text.
pub(super) fn read_entry(token: Token, entry: &[u8]) -> Option<UnitOfWork> {
    let end = entry.iter().position(|byte| *byte == b'\n')?;
    let queue = String::from_utf8(entry[..end].to_vec()).ok()?;
    Some(UnitOfWork { token, queue, text: entry[end + 1..].to_vec(), n_recoveries: 0, n_interruptions: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settlement(n: u64) -> Settlement {
        Settlement { token: Token::nth(n), is_processed: true, is_failed: false, effects: Vec::new() }
    }

    #[test]
    fn the_oldest_results_are_forgotten_by_number_and_by_age() {
        let (mut remembered, start) = (Remembered::default(), Instant::now());
        let n_jobs = MAX_REMEMBERED as u64 + 10;
        (0..n_jobs).for_each(|n| remembered.add(settlement(n), start + Duration::from_millis(n)));
        let holds = |remembered: &Remembered, n| remembered.settlements.contains_key(&Token::nth(n));
        assert_eq!((holds(&remembered, 9), holds(&remembered, 10)), (false, true));

        remembered.forget_before(start + Duration::from_millis(n_jobs - 1));
        assert_eq!(remembered.settlements.len(), 1);
        assert!(holds(&remembered, n_jobs - 1));
    }

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
