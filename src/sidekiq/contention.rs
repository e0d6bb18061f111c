//! What custody knows of contention: the heads of queues with more jobs than free slots, and how tenants stand.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fair::{self, Far, Standing};
use super::inflight::{Token, UnitOfWork};
use super::newest::Edition;
use super::tenant::{self, Candidate};
use super::turn::{Contended, Decision, Known, Sharing, Window};
use super::watch;
use crate::bounds;
use crate::settings::{Jobs, Limits, Tenants};

/// How long a window may be used. A turn asks for the next one in the second half of this time, or when the choice from this one was poor.
const FRESH: Duration = Duration::from_millis(50);

/// How long a job far behind counts as new where so many tenants have jobs in front: at many jobs a second, it is in front soon. With few
/// tenants it would lose its share in this time.
const NEW: Duration = Duration::from_secs(1);
const CROWD: usize = 32;

/// How long a job runs without a claim when it began without contention. Most turns carry the claims of earlier ones along.
const UNCLAIMED: Duration = Duration::from_millis(20);

/// How many turns in a row may take nothing before custody pauses, and how long. Pauses double. They are random, so that workers do not
/// choose the same jobs at the same time again.
const PATIENCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The largest window, and how often one is doubled because no job in it may run.
const LARGEST: usize = 1000;
const MOST_WIDENING: usize = 8;

/// How many candidates a turn names beyond its slots. Other workers take some of them meanwhile.
const SPARE: usize = 4;

/// How many slots one choice fills. The script compares its candidates with each other.
const MOST_CHOSEN: usize = 128;

/// The least that a job is charged, in seconds. As in `claims.lua`.
const LEAST_CHARGE_S: f64 = 1.0;

/// How far the charge follows a job that took less, and one that took more. It stays near the short jobs: what a job takes beyond its
/// charge is paid at its end, but a tenant that was charged too much may lose the difference to the clock.
const DOWN: f64 = 0.1;
const UP: f64 = 0.02;

/// What custody knows of contention.
#[derive(Debug)]
pub(super) struct Contention {
    jobs: Jobs,
    tenants: Tenants,
    /// When a list is contended, by the settings and the limits of the fleet.
    contended: Contended,
    standing: Standing,
    /// The heads of queues.
    heads: BTreeMap<String, Head>,
    /// Whether the last choice may have been poor: it filled too few slots, or most tenants were unknown.
    is_doubtful: bool,
    /// The jobs of the last window of each queue, most of which the next one has too.
    read: BTreeMap<String, HashMap<Arc<[u8]>, Read>>,
    /// Running jobs that were chosen.
    chosen: HashMap<Token, Arc<Candidate>>,
    /// Jobs that began without a claim, since when.
    unclaimed: BTreeMap<Token, (Arc<[u8]>, Instant)>,
    /// How long a short job takes here; `None` until one has ended.
    short_s: Option<f64>,
    /// Turns in a row that saw waiting jobs and took none.
    n_fruitless: u32,
    /// Turns in a row that brought a window without a choice from it.
    n_undecided: u32,
    /// How many times the usual size a window has: jobs that may not run fill it.
    widening: usize,
}

/// The head of a queue.
#[derive(Debug)]
struct Head {
    /// The next jobs, without those that this worker has taken since.
    window: fair::Window,
    read_at: Instant,
}

/// A waiting job.
#[derive(Clone, Debug)]
struct Read {
    candidate: Arc<Candidate>,
    /// When a window had it first.
    since: Instant,
}

impl Contention {
    pub(super) fn new(jobs: Jobs, tenants: Tenants) -> Self {
        Self {
            contended: contended(&jobs, &tenants),
            jobs,
            tenants,
            standing: Standing::default(),
            heads: BTreeMap::new(),
            is_doubtful: false,
            read: BTreeMap::new(),
            chosen: HashMap::new(),
            unclaimed: BTreeMap::new(),
            short_s: None,
            n_fruitless: 0,
            n_undecided: 0,
            widening: 1,
        }
    }

    /// What a job is charged when it begins.
    fn charge_s(&self) -> f64 {
        self.short_s.unwrap_or(LEAST_CHARGE_S)
    }

    /// Takes the limits of the fleet. Waiting jobs are read again.
    pub(super) fn set_limits(&mut self, fleet: Vec<Limits>) {
        self.tenants.others = fleet;
        self.read.clear();
        self.heads.clear();
        self.contended = contended(&self.jobs, &self.tenants);
        if self.contended == Contended::Never {
            self.unclaimed.clear();
        }
    }

    /// Lets claims that are due wait: Redis does not take them now.
    pub(super) fn postpone_claims(&mut self, until: Instant) {
        for (_, since) in self.unclaimed.values_mut() {
            *since = (*since).max(until);
        }
    }

    /// What the next turn says of tenants, for so many free slots.
    pub(super) fn sharing(&mut self, n_slots: usize, now: Instant) -> Sharing {
        if self.contended == Contended::Never {
            return Sharing::default();
        }
        self.heads.retain(|_, head| now.duration_since(head.read_at) < FRESH);
        let heads = self.heads.iter().filter(|_| n_slots > 0);
        let decided: Vec<Decision> = heads.map(|(queue, head)| self.decide(queue, head, n_slots, now)).collect();
        // Numbers come with windows, and an undecided list returns its window unasked. Most tenants were in the last windows as well, so
        // the worker knows how they stand when it chooses.
        let may_learn = n_slots > 0 && (decided.is_empty() || decided.iter().any(|decision| decision.asks_window));
        let (tenants, counters) = if may_learn { self.names() } else { Default::default() };
        Sharing {
            contended: self.contended,
            window: (self.tenants.window * self.widening).min(LARGEST),
            window_bytes: bounds::WINDOW * self.widening,
            tenants: tenants.into_iter().cloned().collect(),
            counters: counters.into_iter().cloned().collect(),
            decided,
            begun: self.due_claims(now),
            charge_s: self.charge_s(),
        }
    }

    /// The tenants and the counters of the last windows.
    fn names(&self) -> (BTreeSet<&String>, BTreeSet<&String>) {
        let claims = self.read.values().flat_map(HashMap::values).map(|read| &read.candidate.claim);
        let counters = claims.clone().flat_map(|claim| &claim.counters);
        (claims.map(|claim| &claim.tenant).collect(), counters.map(|counter| &counter.name).collect())
    }

    fn decide(&self, queue: &str, head: &Head, n_slots: usize, now: Instant) -> Decision {
        let n_wanted = n_slots.min(MOST_CHOSEN) + SPARE;
        let next = fair::next(&head.window, &self.standing, self.charge_s(), n_wanted);
        let is_old = now.duration_since(head.read_at) >= FRESH / 2;
        // The choice must not come to jobs far behind because those in front are used up.
        let is_used_up = head.window.near.len() < 2 * n_wanted;
        Decision {
            queue: queue.to_owned(),
            asks_window: self.is_doubtful || is_old || is_used_up || next.len() < n_wanted,
            candidates: next.into_iter().cloned().collect(),
        }
    }

    /// Takes what a turn found for so many slots. Returns when to take the next turn: at once, after a pause when nothing may be taken
    /// of what waits, or `None` when nothing waits.
    pub(super) fn take_in(
        &mut self,
        sharing: &Sharing,
        windows: Vec<Window>,
        known: Option<Known>,
        fetched: &[UnitOfWork],
        n_slots: usize,
    ) -> Option<Duration> {
        let has_asked = sharing.asks_all_windows();
        if !fetched.is_empty() || windows.is_empty() && has_asked {
            self.n_fruitless = 0;
        }
        let is_short = fetched.len() < n_slots;
        self.is_doubtful = is_short;
        self.take(fetched, known.is_none().then_some(sharing.charge_s));
        if windows.is_empty() {
            if n_slots > 0 && self.heads.is_empty() {
                // Nothing contends any more.
                (self.read, self.standing) = Default::default();
            }
            return (is_short && !has_asked).then_some(Duration::ZERO);
        }
        let is_cut = windows.iter().any(|window| window.n_waiting > window.near.len());
        for window in windows {
            let (queue, head) = (window.queue.clone(), self.head(window));
            self.heads.insert(queue, head);
        }
        let are_new = self.learn(sharing, known.unwrap_or_default());
        self.is_doubtful |= are_new;
        if are_new && is_short {
            return Some(Duration::ZERO);
        }
        self.pause_after(sharing, fetched.len(), is_cut)
    }

    /// Removes what a turn took from the heads. With a charge it is counted as well, as the script did: the turn brings no numbers.
    fn take(&mut self, fetched: &[UnitOfWork], charge_s: Option<f64>) {
        for unit in fetched {
            let Some(candidate) = self.chosen.get(&unit.token) else { continue };
            if let Some(head) = self.heads.get_mut(&unit.queue) {
                head.window.remove(candidate);
            }
            if let Some(charge_s) = charge_s {
                self.standing.begin(&candidate.claim, charge_s);
            }
        }
    }

    /// Reads a window. Most of its jobs were in the last one of the queue.
    fn head(&mut self, window: Window) -> Head {
        let before = self.read.remove(&window.queue).unwrap_or_default();
        let mut now = HashMap::new();
        let mut read = |text: Arc<[u8]>| -> Read {
            let new =
                || Read { candidate: Arc::new(tenant::read(&text, &self.jobs, &self.tenants)), since: Instant::now() };
            let known = || before.get(&text).cloned().unwrap_or_else(new);
            now.entry(Arc::clone(&text)).or_insert_with(known).clone()
        };
        // A copy may be of a job that is in front by now.
        let in_front: HashSet<Arc<[u8]>> = window.near.iter().cloned().collect();
        let near: Vec<_> = window.near.into_iter().map(|text| read(text).candidate).collect();
        let is_crowded = near.iter().map(|job| &job.claim.tenant).collect::<HashSet<_>>().len() >= CROWD;
        let far = window.far.into_iter().filter(|text| !in_front.contains(text)).map(read);
        let far = far.map(|read| Far { is_new: is_crowded && read.since.elapsed() < NEW, job: read.candidate });
        let mut jobs = fair::Window { near, far: far.collect() };
        remove_older(&mut jobs);
        self.read.insert(window.queue, now);
        // Reading them may take a while.
        Head { window: jobs, read_at: Instant::now() }
    }

    /// Takes what Redis says of the tenants that the turn named. Others keep what was known of them; those that are new count as away.
    /// Returns whether most of them are new. The next turn names them.
    fn learn(&mut self, sharing: &Sharing, known: Known) -> bool {
        let mut standing = std::mem::take(&mut self.standing);
        standing.clock = known.clock;
        standing.times.extend(sharing.tenants.iter().cloned().zip(known.times));
        standing.running.extend(sharing.counters.iter().cloned().zip(known.counts));
        let (tenants, counters) = self.names();
        standing.times.retain(|tenant, _| tenants.contains(tenant));
        standing.running.retain(|counter, _| counters.contains(counter));
        self.standing = standing;
        let waiting = || self.heads.values().flat_map(|head| head.window.jobs());
        let is_new = |candidate: &&Arc<Candidate>| !self.standing.times.contains_key(&candidate.claim.tenant);
        2 * waiting().filter(is_new).count() > waiting().count()
    }

    fn pause_after(&mut self, sharing: &Sharing, n_fetched: usize, is_cut: bool) -> Option<Duration> {
        if self.heads.values().all(|head| head.window.is_empty()) {
            return None;
        }
        // Queues behind an undecided one have not been asked, and the next turn decides it. Each such turn adds a window, unless turns
        // take longer than windows are fresh.
        let is_decided = |queue: &String| sharing.decided.iter().any(|decision| decision.queue == *queue);
        let all_decided = self.heads.keys().all(is_decided);
        self.n_undecided = if all_decided { 0 } else { self.n_undecided + 1 };
        if !all_decided && self.n_undecided <= PATIENCE + self.heads.len() as u32 {
            return Some(Duration::ZERO);
        }
        if n_fetched == 0 {
            self.n_fruitless += 1;
        }
        // A choice can come to nothing: other workers were faster, or a job has to wait until nothing else runs.
        let may_run = |head: &Head| !fair::next(&head.window, &self.standing, self.charge_s(), 1).is_empty();
        let may_any = self.heads.values().any(may_run);
        // Jobs behind the window may.
        let widens = !may_any && is_cut && self.widening < MOST_WIDENING;
        self.widening = match widens {
            true => self.widening * 2,
            // What was taken made room.
            false if n_fetched > 0 => (self.widening / 2).max(1),
            false => self.widening,
        };
        if widens || self.n_fruitless < PATIENCE && may_any {
            return Some(Duration::ZERO);
        }
        self.n_undecided = 0;
        let pause = FIRST_PAUSE.saturating_mul(1 << self.n_fruitless.min(10)).min(LONGEST_PAUSE);
        Some(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0))
    }

    /// Notes the jobs that a turn fetched. Those that were candidates have their claims.
    pub(super) fn begin(&mut self, sharing: &Sharing, units: &[UnitOfWork], now: Instant) {
        if self.contended == Contended::Never {
            return;
        }
        for (token, _) in &sharing.begun {
            self.unclaimed.remove(token);
        }
        let candidates = sharing.decided.iter().flat_map(|decision| &decision.candidates);
        let candidates: HashMap<&[u8], _> = candidates.map(|candidate| (&*candidate.text, candidate)).collect();
        for unit in units.iter().filter(|unit| !unit.token.is_beside()) {
            if let Some(candidate) = candidates.get(&*unit.text) {
                self.chosen.insert(unit.token.clone(), Arc::clone(candidate));
            } else {
                self.unclaimed.insert(unit.token.clone(), (Arc::clone(&unit.text), now));
            }
        }
    }

    /// Forgets a job that has ended, after it ran for so long.
    pub(super) fn end(&mut self, token: &Token, took: Option<Duration>) {
        self.unclaimed.remove(token);
        if let Some(candidate) = self.chosen.remove(token) {
            self.standing.end(&candidate.claim);
        }
        if let Some(took) = took.filter(|_| !token.is_beside()) {
            let took_s = took.as_secs_f64().max(LEAST_CHARGE_S);
            let follow = |short_s: f64| short_s + if took_s < short_s { DOWN } else { UP } * (took_s - short_s);
            self.short_s = Some(self.short_s.map_or(took_s, follow));
        }
    }

    /// When the claims of jobs are due that began without one.
    pub(super) fn claims_due(&self) -> Option<Instant> {
        self.unclaimed.values().map(|(_, since)| *since + UNCLAIMED).min()
    }

    /// The claims that are due. They are due again until a turn has taken them.
    fn due_claims(&self, now: Instant) -> Vec<(Token, tenant::Claim)> {
        let due = self.unclaimed.iter().filter(|(_, (_, since))| now.duration_since(*since) >= UNCLAIMED);
        due.map(|(token, (text, _))| (token.clone(), tenant::read(text, &self.jobs, &self.tenants).claim)).collect()
    }
}

/// When a list is contended.
pub(super) fn contended(jobs: &Jobs, tenants: &Tenants) -> Contended {
    match (tenants.has_limits() || watch::is_on(jobs, tenants), tenants.fair) {
        (true, _) => Contended::Always,
        (false, true) => Contended::WithoutRoom,
        (false, false) => Contended::Never,
    }
}

/// Removes the jobs that a newer one of the window ends.
pub(super) fn remove_older(window: &mut fair::Window) {
    let mut newest: HashMap<String, Edition> = HashMap::new();
    for edition in window.jobs().filter_map(|candidate| candidate.edition.as_ref()) {
        if newest.get(&edition.key).is_none_or(|best| edition.order() > best.order()) {
            newest.insert(edition.key.clone(), edition.clone());
        }
    }
    let is_older = |edition: &Edition| newest.get(&*edition.key).is_some_and(|best| best.ends(edition));
    window.retain(|candidate| !candidate.edition.as_ref().is_some_and(is_older));
}

#[cfg(test)]
mod tests;
