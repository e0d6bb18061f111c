//! The jobs that are ours: one task that takes turns with Redis, and remembers.
//!
//! At most one turn is on its way, and it is sent again with the same tokens until it is answered; so a lost reply
//! loses nothing. Every few seconds the memory is compared with the in-flight hash ("reconcile"): a job we never heard
//! of is adopted, a result that Redis forgot is settled again, and a build that was taken from us is killed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::iteration::Iteration;
use super::turn::{Demand, Effect, Fetched, Fingerprint, Reply, Settled, Settlement, Token, Turn, UnitOfWork};
use super::{Identity, order};
use crate::clock::Epoch;
use crate::redis::{Complaint, Redis, RedisError};
use crate::settings::{Capsule, Jobs};

/// How long a result is remembered, in case Redis forgets that it was settled.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How many at most, and how many bytes of text. A minute of builds is far less; one of empty jobs would fill the memory.
const MAX_REMEMBERED: usize = 4096;
const MAX_REMEMBERED_BYTES: usize = 8 << 20;

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

/// A unit of work that is being processed, as the heartbeat shows it.
#[derive(Clone, Debug)]
pub struct Running {
    /// The unit.
    pub unit: UnitOfWork,
    /// When it began.
    pub since: Epoch,
    /// Cancelled when the job was taken from us: whatever it does has no effect any more.
    pub taken: CancellationToken,
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

/// What the loop keeps between turns.
struct Memory {
    complaint: Complaint,
    n_tokens: u64,
    n_turns: u64,
    /// Settlements that Redis has not answered yet.
    pending: Vec<Settlement>,
    /// Those of builds that a stop has killed, until the last one has ended.
    killed: Vec<Settlement>,
    /// Settlements that it refused; each keeps its slot, and is tried again when we reconcile.
    refused: Vec<Settlement>,
    /// Those of them that are pending again: their slots are not free before Redis has taken them.
    tried_again: Vec<Token>,
    /// Settlements that it has, in case it forgets.
    remembered: Remembered,
    /// What was said of queues that cannot be asked.
    passed_over: Vec<String>,
    /// How many processes may be waiting for the same push.
    n_idlers: u32,
    /// Tokens of free slots; used again until one is filled.
    slots: Vec<Token>,
}

impl Memory {
    /// Says once what is wrong with queues, until a turn that has asked all of them finds it right.
    fn tell_of_queues(&mut self, passed_over: Vec<String>, has_asked_all: bool) {
        for why in &passed_over {
            if !self.passed_over.contains(why) {
                tracing::error!(why, "a queue is passed over");
                self.passed_over.push(why.clone());
            }
        }
        if has_asked_all {
            self.passed_over = passed_over;
        }
    }
}

/// The newest of what was settled, the oldest first.
#[derive(Default)]
struct Remembered {
    settlements: VecDeque<(Instant, Settlement)>,
    n_bytes: usize,
}

impl Remembered {
    fn add(&mut self, settlement: Settlement, now: Instant) {
        self.n_bytes += settlement.size();
        self.settlements.push_back((now, settlement));
        while self.settlements.len() > MAX_REMEMBERED || self.n_bytes > MAX_REMEMBERED_BYTES {
            self.forget_oldest();
        }
    }

    fn find(&self, token: &Token, fingerprint: Fingerprint) -> Option<&Settlement> {
        let mut settlements = self.settlements.iter().map(|(_, settlement)| settlement);
        settlements.find(|settlement| settlement.token == *token && settlement.fingerprint == fingerprint)
    }

    fn forget_before(&mut self, time: Instant) {
        while self.settlements.front().is_some_and(|(since, _)| *since < time) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, settlement)) = self.settlements.pop_front() {
            self.n_bytes -= settlement.size();
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
            killed: Vec::new(),
            refused: Vec::new(),
            tried_again: Vec::new(),
            remembered: Remembered::default(),
            passed_over: Vec::new(),
            n_idlers: 0,
            slots: Vec::new(),
        };
        let mut reconcile = interval(self.reconcile_every);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_open, mut woken_at, mut has_room) = (true, None, self.has_room.clone());
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
                () = self.signals.reconcile.notified() => self.try_to_reconcile(&mut memory, &units, &mut reconcile).await,
                _ = reconcile.tick() => self.try_to_reconcile(&mut memory, &units, &mut reconcile).await,
                () = self.quiet.cancelled(), if !memory.slots.is_empty() => {}
                Ok(()) = has_room.changed() => {}
            }
            while let Ok(settlement) = settlements.try_recv() {
                self.finish(&mut memory, settlement);
            }
            // They end one by one, and go back together, or their order would be that of their ends.
            if !is_open || self.running.with(|running| running.is_empty()) {
                memory.pending.append(&mut memory.killed);
            }
            woken_at = None;
            while self.turn(&mut memory, &units).await {}
        }
    }

    /// Soon again when it fails: builds that are not ours any more may be running.
    async fn try_to_reconcile(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>, next: &mut Interval) {
        let reconciled = self.reconcile(memory, units).await;
        if memory.complaint.hear(reconciled).is_none() {
            next.reset_after(RETRY);
        }
    }

    /// What the end of a run that was taken from us says is dropped: its token may be another job's by now.
    fn finish(&self, memory: &mut Memory, settlement: Settlement) {
        let running = self.running.with(|running| running.remove(&settlement.token));
        if running.is_some_and(|running| running.taken.is_cancelled()) {
            return;
        }
        // Without a stop it is one that the fence has refused, and none will follow.
        let is_killed = settlement.is_interrupted() && self.quiet.is_cancelled();
        if is_killed { memory.killed.push(settlement) } else { memory.pending.push(settlement) }
    }

    /// Takes a turn, when there is anything to say or to ask for; returns whether all that was asked for was there.
    ///
    /// A token that a turn has settled is never filled again: turns before it are refused, since their numbers are lower.
    async fn turn(&self, memory: &mut Memory, units: &mpsc::UnboundedSender<Running>) -> bool {
        self.assign_slots(memory);
        if memory.pending.is_empty() && memory.slots.is_empty() {
            return false;
        }
        // The newest first: what is put back last comes out next.
        memory
            .pending
            .sort_by_cached_key(|settlement| settlement.is_put_back().then(|| Reverse(settlement.token.clone())));
        memory.n_turns += 1;
        self.signals.last_turn.store(memory.n_turns, Ordering::Relaxed);
        let reply = self.send_until_answered(memory).await;
        // A lease that is made anew from here on refuses copies of this turn.
        self.signals.last_turn.store(memory.n_turns + 1, Ordering::Relaxed);
        self.take_in(memory, reply, units)
    }

    fn takes_jobs(&self) -> bool {
        !self.quiet.is_cancelled() && *self.has_room.borrow()
    }

    /// One token for each free slot, capsule by capsule; none when quiet, or without room.
    fn assign_slots(&self, memory: &mut Memory) {
        let old = std::mem::take(&mut memory.slots);
        if !self.takes_jobs() {
            return;
        }
        for (place, capsule) in self.capsules.iter().enumerate() {
            let is_here = |token: &&Token| token.capsule == place;
            let refused = memory.refused.iter().map(|settlement| &settlement.token);
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

    fn n_running(&self, capsule: usize) -> usize {
        self.running.with(|running| running.keys().filter(|token| token.capsule == capsule).count())
    }

    /// What is asked for the free slots, which are in the order of their capsules.
    fn demands(&self, slots: &[Token]) -> Vec<Demand> {
        let capsules = self.capsules.iter().enumerate();
        let n_free = |place| slots.iter().filter(|token| token.capsule == place).count();
        capsules.flat_map(|(place, capsule)| order::demands(capsule, n_free(place))).collect()
    }

    async fn send_until_answered(&self, memory: &Memory) -> Reply {
        let demands = self.demands(&memory.slots);
        let turn =
            Turn { number: memory.n_turns, settlements: &memory.pending, slots: &memory.slots, demands: &demands };
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
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Brings the memory up to date with an answer; returns whether every slot that was asked for was filled.
    fn take_in(&self, memory: &mut Memory, reply: Reply, units: &mpsc::UnboundedSender<Running>) -> bool {
        let since = Instant::now();
        memory.n_idlers = reply.n_idlers;
        memory.tried_again.clear();
        for (settlement, settled) in std::mem::take(&mut memory.pending).into_iter().zip(reply.settled) {
            if let Settled::Refused(why) = settled {
                tracing::error!(why, token = %settlement.token, "the result is refused, and kept until it is taken");
                memory.refused.push(settlement);
                continue;
            }
            if settled == Settled::Fenced {
                tracing::debug!(token = %settlement.token, "the job was settled before, or is not ours any more");
            }
            memory.remembered.add(settlement, since);
        }
        let fetched = match reply.fetched {
            Fetched::Units(units) => units,
            // The lease's thread wakes us when it has made one; what others took meanwhile, reconcile will find.
            Fetched::NoLease => return false,
            Fetched::Full => {
                tracing::error!("Redis is at its memory limit: results are settled, nothing is fetched");
                return false;
            }
        };
        let (n_fetched, n_slots) = (fetched.len(), memory.slots.len());
        // One that was given enough has not asked every queue.
        memory.tell_of_queues(reply.passed_over, n_fetched < n_slots);
        for unit in fetched {
            memory.slots.retain(|token| *token != unit.token);
            self.begin(memory, unit, units);
        }
        n_fetched > 0 && n_fetched == n_slots
    }

    /// Hands a unit to the processors; back on its queue, together with what came with it, when they begin nothing more.
    fn begin(&self, memory: &mut Memory, unit: UnitOfWork, units: &mpsc::UnboundedSender<Running>) {
        if self.quiet.is_cancelled() {
            memory.pending.push(put_back(unit));
            return;
        }
        let running = Running { unit, since: Epoch::now(), taken: CancellationToken::new(), iteration: Arc::default() };
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
        let inflight = inflight.iter().filter_map(|(token, entry)| read_entry(Token::parse(token), entry));
        let inflight: HashMap<Token, UnitOfWork> = inflight.map(|unit| (unit.token.clone(), unit)).collect();
        let running = self.running.snapshot();
        for running in running.iter().filter(|running| !running.taken.is_cancelled()) {
            let is_ours = inflight.get(&running.unit.token).is_some_and(|unit| unit.text == running.unit.text);
            if !is_ours {
                tracing::warn!(token = %running.unit.token, "the job was given to another worker: ours is killed");
                running.taken.cancel();
            }
        }
        memory.tried_again.extend(memory.refused.iter().map(|settlement| settlement.token.clone()));
        memory.pending.append(&mut memory.refused);
        for (token, unit) in inflight {
            let is_known = running.iter().any(|running| running.unit.token == token)
                || memory.pending.iter().chain(&memory.killed).any(|settlement| settlement.token == token);
            if is_known {
                continue;
            }
            if let Some(settlement) = memory.remembered.find(&token, Fingerprint::of(&unit.text)) {
                memory.pending.push(settlement.clone());
            } else {
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
        let capsule = unit.token.capsule;
        let has_slot = self.capsules.get(capsule).is_some_and(|its| self.n_running(capsule) < its.concurrency);
        let is_free = has_slot && self.takes_jobs();
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
    let fingerprint = Fingerprint::of(&unit.text);
    let effects = vec![Effect::PutBack { queue: unit.queue, is_interrupted: false }];
    Settlement { token: unit.token, fingerprint, is_processed: false, is_failed: false, effects }
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

    fn settlement(n: u64, text: &str) -> Settlement {
        Settlement {
            token: Token::nth(n, 0),
            fingerprint: Fingerprint::of(b"a job"),
            is_processed: true,
            is_failed: false,
            effects: vec![Effect::Push { queue: "done".into(), text: text.into() }],
        }
    }

    fn holds(remembered: &Remembered, n: u64) -> bool {
        remembered.find(&Token::nth(n, 0), Fingerprint::of(b"a job")).is_some()
    }

    #[test]
    fn the_oldest_results_are_forgotten_by_number_by_age_and_by_size() {
        let (mut remembered, start) = (Remembered::default(), Instant::now());
        let n_jobs = MAX_REMEMBERED as u64 + 10;
        (0..n_jobs).for_each(|n| remembered.add(settlement(n, "x"), start + Duration::from_millis(n)));
        assert_eq!((holds(&remembered, 9), holds(&remembered, 10)), (false, true));

        remembered.forget_before(start + Duration::from_millis(n_jobs - 1));
        assert_eq!(remembered.settlements.len(), 1);
        assert!(holds(&remembered, n_jobs - 1));

        let large = "x".repeat(MAX_REMEMBERED_BYTES - 10);
        remembered.add(settlement(n_jobs, &large), start);
        assert!(holds(&remembered, n_jobs - 1) && holds(&remembered, n_jobs));
        remembered.add(settlement(n_jobs + 1, "a dozen bytes"), start);
        assert_eq!((remembered.settlements.len(), remembered.n_bytes), (1, 13));
    }

    #[test]
    fn a_result_is_not_remembered_for_another_job_under_the_same_token() {
        let mut remembered = Remembered::default();
        remembered.add(settlement(1, "x"), Instant::now());
        assert!(holds(&remembered, 1));
        assert_eq!(remembered.find(&Token::nth(1, 0), Fingerprint::of(b"another job")), None);
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
