//! What custody knows of contention: the heads of queues with more jobs than free slots, and how tenants stand.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fair::{self, Standing};
use super::inflight::{Token, UnitOfWork};
use super::tenant::{self, Candidate};
use super::turn::{Contended, Known, Sharing, Window};
use crate::settings::{Jobs, Tenants};

/// How long a window may be used. Under load each turn brings the next one, and a turn takes a millisecond.
const FRESH: Duration = Duration::from_millis(50);

/// How long a job runs without a claim when it began without contention. Most turns carry the claims of earlier ones along.
const UNCLAIMED: Duration = Duration::from_millis(20);

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
    standing: Standing,
    windows: Vec<(String, Vec<Arc<Candidate>>)>,
    seen_at: Instant,
    /// Jobs that began without a claim, since when.
    unclaimed: BTreeMap<Token, (Arc<[u8]>, Instant)>,
    /// How long a short job takes here.
    charge_s: f64,
    has_ended_any: bool,
    is_fruitless: bool,
}

impl Contention {
    pub(super) fn new(jobs: Jobs, tenants: Tenants) -> Self {
        Self {
            jobs,
            tenants,
            standing: Standing::default(),
            windows: Vec::new(),
            seen_at: Instant::now(),
            unclaimed: BTreeMap::new(),
            charge_s: LEAST_CHARGE_S,
            has_ended_any: false,
            is_fruitless: false,
        }
    }

    fn contended(&self) -> Contended {
        match (self.tenants.has_limits(), self.tenants.fair) {
            (true, _) => Contended::Always,
            (false, true) => Contended::WithoutRoom,
            (false, false) => Contended::Never,
        }
    }

    /// What the next turn says of tenants, for so many free slots. Uses up what is known of windows.
    pub(super) fn sharing(&mut self, n_slots: usize, now: Instant) -> Sharing {
        let contended = self.contended();
        if contended == Contended::Never {
            return Sharing::default();
        }
        let windows = std::mem::take(&mut self.windows);
        let claims = windows.iter().flat_map(|(_, window)| window).map(|candidate| &candidate.claim);
        let tenants: BTreeSet<&String> = claims.clone().map(|claim| &claim.tenant).collect();
        let counters: BTreeSet<&String> =
            claims.flat_map(|claim| &claim.counters).map(|counter| &counter.name).collect();
        let is_fresh = n_slots > 0 && now.duration_since(self.seen_at) < FRESH;
        let decided = windows.iter().filter(|_| is_fresh).map(|(queue, window)| {
            let next = fair::next(window, &self.standing, self.charge_s, 2 * n_slots + SPARE);
            (queue.clone(), next.into_iter().cloned().collect())
        });
        Sharing {
            contended,
            window: self.tenants.window,
            decided: decided.collect(),
            tenants: tenants.into_iter().cloned().collect(),
            counters: counters.into_iter().cloned().collect(),
            begun: self.take_unclaimed(now),
            charge_s: self.charge_s,
        }
    }

    /// Takes what a turn found. Returns whether the next turn can do more at once, or `None` when waiting jobs are at their limits.
    pub(super) fn take_in(
        &mut self,
        sharing: &Sharing,
        windows: Vec<Window>,
        known: Option<Known>,
        n_fetched: usize,
        now: Instant,
    ) -> Option<bool> {
        if windows.is_empty() {
            return Some(false);
        }
        let mut read: HashMap<Arc<[u8]>, Arc<Candidate>> = HashMap::new();
        for candidate in sharing.decided.iter().flat_map(|(_, candidates)| candidates) {
            read.insert(Arc::clone(&candidate.text), Arc::clone(candidate));
        }
        let (jobs, tenants) = (&self.jobs, &self.tenants);
        let mut candidate = |text: Arc<[u8]>| {
            let entry = read.entry(text);
            let new = |text: &Arc<[u8]>| Arc::new(tenant::read(text, jobs, tenants));
            Arc::clone(entry.or_insert_with_key(new))
        };
        let candidates =
            |window: Window| (window.queue, window.texts.into_iter().map(&mut candidate).collect::<Vec<_>>());
        self.windows = windows.into_iter().map(candidates).collect();
        self.seen_at = now;
        let Known { clock, times, counts } = known.unwrap_or_default();
        self.standing = Standing {
            clock,
            times: sharing.tenants.iter().cloned().zip(times).collect(),
            running: sharing.counters.iter().cloned().zip(counts).collect(),
        };
        // A choice can come to nothing twice: others were faster, or a job has to wait until nothing else runs.
        let was_fruitless = std::mem::replace(&mut self.is_fruitless, !sharing.decided.is_empty() && n_fetched == 0);
        let may_any =
            self.windows.iter().any(|(_, window)| !fair::next(window, &self.standing, self.charge_s, 1).is_empty());
        let has_waiting = self.windows.iter().any(|(_, window)| !window.is_empty());
        if has_waiting && (!may_any || (was_fruitless && self.is_fruitless)) { None } else { Some(may_any) }
    }

    /// Notes the jobs that a turn fetched. Those that were candidates have their claims.
    pub(super) fn begin(&mut self, sharing: &Sharing, units: &[UnitOfWork], now: Instant) {
        if self.contended() == Contended::Never {
            return;
        }
        let candidates = sharing.decided.iter().flat_map(|(_, candidates)| candidates);
        let claimed: HashSet<&[u8]> = candidates.map(|candidate| &*candidate.text).collect();
        let unclaimed = units.iter().filter(|unit| !claimed.contains(&*unit.text));
        self.unclaimed.extend(unclaimed.map(|unit| (unit.token.clone(), (Arc::clone(&unit.text), now))));
    }

    /// Forgets a job that has ended, after it ran for so long.
    pub(super) fn end(&mut self, token: &Token, took: Option<Duration>) {
        self.unclaimed.remove(token);
        if let Some(took) = took {
            let difference = took.as_secs_f64().max(LEAST_CHARGE_S) - self.charge_s;
            let share = if !self.has_ended_any {
                1.0
            } else if difference < 0.0 {
                DOWN
            } else {
                UP
            };
            self.charge_s += share * difference;
            self.has_ended_any = true;
        }
    }

    /// When the claims of jobs are due that began without one.
    pub(super) fn claims_due(&self) -> Option<Instant> {
        self.unclaimed.values().map(|(_, since)| *since + UNCLAIMED).min()
    }

    fn take_unclaimed(&mut self, now: Instant) -> Vec<(Token, tenant::Claim)> {
        let is_due = |_: &Token, (_, since): &mut (Arc<[u8]>, Instant)| now.duration_since(*since) >= UNCLAIMED;
        let due = self.unclaimed.extract_if(.., is_due).collect::<Vec<_>>();
        due.into_iter()
            .map(|(token, (text, _))| (token, tenant::read(&text, &self.jobs, &self.tenants).claim))
            .collect()
    }
}
