//! What custody knows of contention: the heads of queues with more jobs than free slots, and how tenants stand.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fair::{self, Standing};
use super::inflight::{Token, UnitOfWork};
use super::newest::Edition;
use super::tenant::{self, Candidate};
use super::turn::{Contended, Known, Sharing, Window};
use super::watch;
use crate::bounds;
use crate::settings::{Jobs, Limits, Tenants};

/// How long a window may be used. Under load each turn brings the next one, and a turn takes a millisecond.
const FRESH: Duration = Duration::from_millis(50);

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

/// How many candidates a turn names beyond twice its slots. Other workers take some of them meanwhile.
const SPARE: usize = 8;

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
    /// The heads of queues, and when they were read. A turn returns those of the queues that it has asked.
    windows: BTreeMap<String, (Vec<Arc<Candidate>>, Instant)>,
    /// The jobs of the last windows, which most of the next ones have too.
    read: HashMap<Arc<[u8]>, Arc<Candidate>>,
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

impl Contention {
    pub(super) fn new(jobs: Jobs, tenants: Tenants) -> Self {
        Self {
            contended: contended(&jobs, &tenants),
            jobs,
            tenants,
            standing: Standing::default(),
            windows: BTreeMap::new(),
            read: HashMap::new(),
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
        self.windows.clear();
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

    /// What the next turn says of tenants, for so many free slots. Uses up what is known of windows.
    pub(super) fn sharing(&mut self, n_slots: usize, now: Instant) -> Sharing {
        if self.contended == Contended::Never {
            return Sharing::default();
        }
        self.windows.retain(|_, (_, read_at)| now.duration_since(*read_at) < FRESH);
        let claims = self.windows.values().flat_map(|(window, _)| window).map(|candidate| &candidate.claim);
        let tenants: BTreeSet<&String> = claims.clone().map(|claim| &claim.tenant).collect();
        let counters: BTreeSet<&String> =
            claims.flat_map(|claim| &claim.counters).map(|counter| &counter.name).collect();
        let decided = self.windows.iter().filter(|_| n_slots > 0).map(|(queue, (window, _))| {
            let next = fair::next(window, &self.standing, self.charge_s(), 2 * n_slots + SPARE);
            (queue.clone(), next.into_iter().cloned().collect())
        });
        Sharing {
            contended: self.contended,
            window: (self.tenants.window * self.widening).min(LARGEST),
            window_bytes: bounds::WINDOW * self.widening,
            decided: decided.collect(),
            tenants: tenants.into_iter().cloned().collect(),
            counters: counters.into_iter().cloned().collect(),
            begun: self.due_claims(now),
            charge_s: self.charge_s(),
        }
    }

    /// Takes what a turn found. Returns when to take the next turn: at once, after a pause when nothing may be taken of what waits, or
    /// `None` when nothing waits.
    pub(super) fn take_in(
        &mut self,
        sharing: &Sharing,
        windows: Vec<Window>,
        known: Option<Known>,
        n_fetched: usize,
    ) -> Option<Duration> {
        if n_fetched > 0 || windows.is_empty() {
            self.n_fruitless = 0;
        }
        if windows.is_empty() {
            return None;
        }
        let is_cut = windows.iter().any(|window| window.n_waiting > window.texts.len());
        let before = self.kept_texts();
        for window in windows {
            let candidates: Vec<_> = window.texts.into_iter().map(|text| self.candidate(text, &before)).collect();
            // Reading them may take a while.
            self.windows.insert(window.queue, (without_older(&candidates), Instant::now()));
        }
        let Known { clock, times, counts } = known.unwrap_or_default();
        self.standing = Standing {
            clock,
            times: sharing.tenants.iter().cloned().zip(times).collect(),
            running: sharing.counters.iter().cloned().zip(counts).collect(),
        };
        self.pause_after(sharing, n_fetched, is_cut)
    }

    /// Takes the jobs of the last windows, without those of windows that are used up.
    fn kept_texts(&mut self) -> HashMap<Arc<[u8]>, Arc<Candidate>> {
        let before = std::mem::take(&mut self.read);
        let kept = self.windows.values().flat_map(|(window, _)| window);
        self.read.extend(kept.map(|candidate| (Arc::clone(&candidate.text), Arc::clone(candidate))));
        before
    }

    fn candidate(&mut self, text: Arc<[u8]>, before: &HashMap<Arc<[u8]>, Arc<Candidate>>) -> Arc<Candidate> {
        let known = self.read.get(&text).or_else(|| before.get(&text)).cloned();
        let candidate = known.unwrap_or_else(|| Arc::new(tenant::read(&text, &self.jobs, &self.tenants)));
        self.read.entry(text).or_insert(candidate).clone()
    }

    fn pause_after(&mut self, sharing: &Sharing, n_fetched: usize, is_cut: bool) -> Option<Duration> {
        if self.windows.values().all(|(window, _)| window.is_empty()) {
            return None;
        }
        // Queues behind an undecided one have not been asked, and the next turn decides it. Each such turn adds a window, unless turns
        // take longer than windows are fresh.
        let is_decided = |queue: &String| sharing.decided.iter().any(|(decided, _)| decided == queue);
        let all_decided = self.windows.keys().all(is_decided);
        self.n_undecided = if all_decided { 0 } else { self.n_undecided + 1 };
        if !all_decided && self.n_undecided <= PATIENCE + self.windows.len() as u32 {
            return Some(Duration::ZERO);
        }
        if n_fetched == 0 {
            self.n_fruitless += 1;
        }
        // A choice can come to nothing: other workers were faster, or a job has to wait until nothing else runs.
        let may_run = |window: &[Arc<Candidate>]| !fair::next(window, &self.standing, self.charge_s(), 1).is_empty();
        let may_any = self.windows.values().any(|(window, _)| may_run(window));
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
        let candidates = sharing.decided.iter().flat_map(|(_, candidates)| candidates);
        let claimed: HashSet<&[u8]> = candidates.map(|candidate| &*candidate.text).collect();
        let unclaimed = units.iter().filter(|unit| !claimed.contains(&*unit.text) && !unit.token.is_beside());
        self.unclaimed.extend(unclaimed.map(|unit| (unit.token.clone(), (Arc::clone(&unit.text), now))));
    }

    /// Forgets a job that has ended, after it ran for so long.
    pub(super) fn end(&mut self, token: &Token, took: Option<Duration>) {
        self.unclaimed.remove(token);
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
fn contended(jobs: &Jobs, tenants: &Tenants) -> Contended {
    match (tenants.has_limits() || watch::is_on(jobs, tenants), tenants.fair) {
        (true, _) => Contended::Always,
        (false, true) => Contended::WithoutRoom,
        (false, false) => Contended::Never,
    }
}

/// A window without the jobs that a newer one of it ends.
fn without_older(window: &[Arc<Candidate>]) -> Vec<Arc<Candidate>> {
    let mut newest: HashMap<&str, &Edition> = HashMap::new();
    for edition in window.iter().filter_map(|candidate| candidate.edition.as_ref()) {
        let best = newest.entry(&edition.key).or_insert(edition);
        if edition.order() > best.order() {
            *best = edition;
        }
    }
    let is_older = |edition: &Edition| newest.get(&*edition.key).is_some_and(|best| best.ends(edition));
    let left = window.iter().filter(|candidate| !candidate.edition.as_ref().is_some_and(is_older));
    left.cloned().collect()
}
