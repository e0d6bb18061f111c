//! Which waiting jobs begin next: weighted fair queueing between tenants.
//!
//! Follows start-time fair queueing (Goyal, Vin and Cheng, 1996). A tenant's virtual time grows by the seconds of its slots, divided by
//! its weight. The tenant that is furthest behind comes next. One that was away begins at the clock, the start of the job that began
//! last: it neither saves time up nor pays for time that nobody else wanted.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use super::tenant::{Candidate, Claim, Counter};

/// How tenants stand, as far as a worker knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The virtual time at which the job began that began last.
    pub clock: f64,
    /// The virtual time of each tenant.
    pub times: HashMap<String, f64>,
    /// Running jobs by counter.
    pub running: HashMap<String, u32>,
}

impl Standing {
    /// Counts a job that begins, which is charged so many seconds.
    pub fn begin(&mut self, claim: &Claim, charge_s: f64) {
        self.clock = self.times.get(&claim.tenant).map_or(self.clock, |time| time.max(self.clock));
        self.times.insert(claim.tenant.clone(), self.clock + charge_s / claim.weight);
        for counter in &claim.counters {
            *self.running.entry(counter.name.clone()).or_default() += 1;
        }
    }

    /// Counts a job that has ended. Its tenant's time changes in Redis.
    pub fn end(&mut self, claim: &Claim) {
        for counter in &claim.counters {
            if let Some(n) = self.running.get_mut(&counter.name) {
                *n = n.saturating_sub(1);
            }
        }
    }
}

/// A standing, and what a choice has added to it.
struct Outlook<'a> {
    standing: &'a Standing,
    clock: f64,
    times: HashMap<&'a str, f64>,
    n_begun: HashMap<&'a str, u32>,
}

impl<'a> Outlook<'a> {
    fn of(standing: &'a Standing) -> Self {
        Self { standing, clock: standing.clock, times: HashMap::new(), n_begun: HashMap::new() }
    }

    /// When a job of the tenant would begin.
    fn start(&self, tenant: &str) -> f64 {
        let time = self.times.get(tenant).or_else(|| self.standing.times.get(tenant));
        time.map_or(self.clock, |time| time.max(self.clock))
    }

    fn n_running(&self, counter: &Counter) -> u32 {
        let n_begun = self.n_begun.get(&*counter.name).copied().unwrap_or(0);
        n_begun + self.standing.running.get(&counter.name).copied().unwrap_or(0)
    }

    fn has_room(&self, claim: &Claim) -> bool {
        claim.counters.iter().all(|counter| counter.limit.is_none_or(|limit| self.n_running(counter) < limit))
    }

    fn begin(&mut self, claim: &'a Claim, charge_s: f64) {
        self.clock = self.start(&claim.tenant);
        self.times.insert(&claim.tenant, self.clock + charge_s / claim.weight);
        for counter in &claim.counters {
            *self.n_begun.entry(&counter.name).or_default() += 1;
        }
    }
}

/// Waiting jobs of one queue, among which a worker chooses.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// The next ones, the oldest first.
    pub near: Vec<Arc<Candidate>>,
    /// Jobs far behind, of tenants that have none in front.
    pub far: Vec<Far>,
}

/// A job far behind.
#[derive(Clone, Debug)]
pub struct Far {
    /// The job.
    pub job: Arc<Candidate>,
    /// Whether its tenant has to be a whole job behind the others. Redis reads the list up to the job, which takes long.
    pub is_new: bool,
}

impl Window {
    /// All jobs, the oldest first.
    pub fn jobs(&self) -> impl Iterator<Item = &Arc<Candidate>> + Clone {
        self.near.iter().chain(self.far.iter().map(|far| &far.job))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.near.is_empty() && self.far.is_empty()
    }

    /// Keeps the jobs that `is_kept` names.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&Arc<Candidate>) -> bool) {
        self.near.retain(|job| is_kept(job));
        self.far.retain(|far| is_kept(&far.job));
    }

    /// Removes a job once.
    pub fn remove(&mut self, job: &Arc<Candidate>) {
        let mut is_removed = false;
        self.retain(|other| {
            let is_kept = is_removed || !Arc::ptr_eq(other, job);
            is_removed |= !is_kept;
            is_kept
        });
    }
}

/// A waiting job.
#[derive(Clone, Copy)]
struct Waiting<'a> {
    job: &'a Arc<Candidate>,
    /// Its tenant, counted by their first places.
    nth_tenant: usize,
    place: usize,
    /// How far its tenant has to be behind the others, in seconds per weight.
    toll_s: f64,
}

/// What is left of the waiting jobs of one tenant, by priority, then by place in the window.
struct Line<'a, 'b>(&'b [Waiting<'a>]);

impl Line<'_, '_> {
    /// Where the tenant stands among others, if it has a job that may run. Jobs in front of that one are left out for good: a choice
    /// frees no limit.
    fn rank(&mut self, outlook: &Outlook<'_>) -> Option<Rank> {
        let n_over = self.0.iter().position(|waiting| outlook.has_room(&waiting.job.claim));
        self.0 = &self.0[n_over.unwrap_or(self.0.len())..];
        self.0.first().map(|waiting| waiting.rank(outlook))
    }
}

impl Waiting<'_> {
    fn rank(&self, outlook: &Outlook<'_>) -> Rank {
        let claim = &self.job.claim;
        let load = f64::from(outlook.n_running(&claim.counters[0])) / claim.weight;
        Rank { start: outlook.start(&claim.tenant) + self.toll_s / claim.weight, load, place: self.place }
    }
}

/// The least one comes next.
#[derive(Clone, Copy, Debug)]
struct Rank {
    start: f64,
    load: f64,
    place: usize,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_time = self.start.total_cmp(&other.start);
        by_time.then(self.load.total_cmp(&other.load)).then(self.place.cmp(&other.place))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

/// The next `n` jobs of a window, in order. Jobs whose limits are reached are left out.
///
/// Jobs of one tenant keep their order, but for their priorities. A new job far behind comes when its tenant is a whole job behind the
/// others. Between tenants that are all served this makes no difference, and a moment later it counts like the others.
pub fn next<'a>(window: &'a Window, standing: &Standing, charge_s: f64, n: usize) -> Vec<&'a Arc<Candidate>> {
    let mut outlook = Outlook::of(standing);
    let waiting = waiting(window, charge_s);
    let mut lines: Vec<_> = waiting.chunk_by(|a, b| a.nth_tenant == b.nth_tenant).map(Line).collect();
    // A job that begins changes the rank of its own tenant, and it may use up a limit that another tenant's first job has in common
    // with it. So a rank of the heap may be too low, and is computed again.
    let ranks = lines.iter_mut().enumerate().filter_map(|(nth, line)| Some(Reverse((line.rank(&outlook)?, nth))));
    let mut ranks: BinaryHeap<_> = ranks.collect();
    let mut chosen = Vec::new();
    while chosen.len() < n {
        let Some(Reverse((rank, nth))) = ranks.pop() else { break };
        let line = &mut lines[nth];
        let now = line.rank(&outlook);
        if now.is_some_and(|now| now == rank) {
            let job = line.0[0].job;
            line.0 = &line.0[1..];
            outlook.begin(&job.claim, charge_s);
            chosen.push(job);
        }
        ranks.extend(line.rank(&outlook).map(|rank| Reverse((rank, nth))));
    }
    chosen
}

/// The jobs of a window by tenant; those of one tenant by priority, then by place.
fn waiting(window: &Window, charge_s: f64) -> Vec<Waiting<'_>> {
    let mut tenants: HashMap<&str, usize> = HashMap::new();
    let far = window.far.iter().map(|far| (&far.job, if far.is_new { charge_s } else { 0.0 }));
    let jobs = window.near.iter().map(|job| (job, 0.0)).chain(far).enumerate().map(|(place, (job, toll_s))| {
        let n_tenants = tenants.len();
        let nth_tenant = *tenants.entry(&job.claim.tenant).or_insert(n_tenants);
        Waiting { job, nth_tenant, place, toll_s }
    });
    let mut waiting: Vec<_> = jobs.collect();
    waiting.sort_by_key(|waiting| (waiting.nth_tenant, Reverse(waiting.job.priority)));
    waiting
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sidekiq::tenant;

    fn candidate(n: usize, tenant: &str, weight: f64, limit: Option<u32>) -> Arc<Candidate> {
        let counters = vec![Counter { name: tenant::counter(tenant), limit }];
        let claim = Claim { tenant: tenant.into(), weight, counters };
        Arc::new(Candidate {
            text: Arc::from(n.to_string().as_bytes()),
            claim,
            priority: 0,
            edition: None,
            twin: None,
            queued_us: None,
            builder: None,
            has_inputs: true,
            expiry: None,
        })
    }

    /// A window of the jobs in front.
    fn near(jobs: &[Arc<Candidate>]) -> Window {
        Window { near: jobs.to_vec(), far: Vec::new() }
    }

    fn tenants(chosen: &[&Arc<Candidate>]) -> String {
        chosen.iter().map(|candidate| candidate.claim.tenant.as_str()).collect()
    }

    #[test]
    fn a_tenant_that_floods_does_not_delay_another() {
        let mut window: Vec<_> = (0..12).map(|n| candidate(n, "a", 1.0, None)).collect();
        window.push(candidate(12, "b", 1.0, None));
        let mut standing = Standing::default();
        for _ in 0..5 {
            standing.begin(&window[0].claim, 10.0);
        }
        assert_eq!(tenants(&next(&near(&window), &standing, 10.0, 4)), "baaa");
        assert_eq!(tenants(&next(&near(&window[..12]), &standing, 10.0, 4)), "aaaa", "one tenant alone has every slot");
    }

    #[test]
    fn shares_follow_the_weights_for_any_number_of_slots() {
        let weights = [("a", 3.0), ("b", 1.0), ("c", 1.0)];
        for n_slots in [1, 2, 4, 7, 10] {
            let window: Vec<_> = (0..90).map(|n| candidate(n, weights[n / 30].0, weights[n / 30].1, None)).collect();
            let (mut standing, mut counts) = (Standing::default(), HashMap::<String, f64>::new());
            let mut running: std::collections::VecDeque<Claim> = std::collections::VecDeque::new();
            for _ in 0..500 {
                if running.len() == n_slots {
                    let ended = running.pop_front().expect("a running job");
                    *standing.running.get_mut(&ended.counters[0].name).expect("it is counted") -= 1;
                }
                let claim = next(&near(&window), &standing, 5.0, 1)[0].claim.clone();
                standing.begin(&claim, 5.0);
                *counts.entry(claim.tenant.clone()).or_default() += 1.0;
                running.push_back(claim);
            }
            for (tenant, weight) in weights {
                let share = counts[tenant] / (100.0 * weight);
                assert!((0.9..=1.1).contains(&share), "{n_slots} slots: {counts:?}");
            }
        }
    }

    #[test]
    fn a_tenant_at_its_limit_waits_and_its_other_repository_does_not() {
        let of = |n, repository: &str| {
            let mut one = (*candidate(n, "a", 1.0, None)).clone();
            one.claim.counters.push(Counter { name: repository.into(), limit: Some(1) });
            Arc::new(one)
        };
        let window = [of(0, "r"), of(1, "r"), of(2, "s"), candidate(3, "b", 1.0, Some(0))];
        let window = near(&window);
        let chosen = next(&window, &Standing::default(), 1.0, 4);
        let texts: Vec<&[u8]> = chosen.iter().map(|candidate| &*candidate.text).collect();
        assert_eq!(texts, [b"0", b"2"]);
    }

    #[test]
    fn a_priority_counts_within_its_tenant_only() {
        let with = |n, tenant, priority| Arc::new(Candidate { priority, ..(*candidate(n, tenant, 1.0, None)).clone() });
        let window =
            [with(0, "b", 0), with(1, "a", 0), with(2, "a", 9), with(3, "a", i64::MIN), with(4, "a", i64::MAX)];
        let window = near(&window);
        let chosen = next(&window, &Standing::default(), 1.0, 5);
        let texts: Vec<&[u8]> = chosen.iter().map(|candidate| &*candidate.text).collect();
        assert_eq!(texts, [b"0", b"4", b"2", b"1", b"3"]);
    }

    proptest! {
        /// Whatever waits and runs: nobody is chosen over a limit, nothing twice, jobs of a tenant in order, and no slot stays
        /// empty while a job may run.
        #[test]
        fn a_choice_is_sound(
            jobs in prop::collection::vec((0..5_usize, prop::option::of(1..4_u32)), 0..40),
            times in prop::collection::vec(0.0..100.0_f64, 5),
            running in prop::collection::vec(0..4_u32, 5),
            n in 0..30_usize,
        ) {
            let names = ["a", "b", "c", "d", "e"];
            // A limit is the tenant's, not the job's.
            let limits: Vec<Option<u32>> =
                (0..5).map(|t| jobs.iter().find(|(tenant, _)| *tenant == t).and_then(|(_, limit)| *limit)).collect();
            let window: Vec<_> =
                jobs.iter().enumerate().map(|(i, (t, _))| candidate(i, names[*t], 1.0, limits[*t])).collect();
            let standing = Standing {
                clock: 10.0,
                times: names.iter().map(|name| (*name).to_owned()).zip(times).collect(),
                running: names.iter().map(|name| tenant::counter(name)).zip(running.iter().copied()).collect(),
            };
            let window = near(&window);
            let chosen = next(&window, &standing, 5.0, n);
            let mut n_possible = 0;
            for (t, name) in names.iter().enumerate() {
                let of_tenant: Vec<usize> = chosen.iter().filter(|c| c.claim.tenant == *name)
                    .map(|c| std::str::from_utf8(&c.text).expect("digits").parse().expect("a number")).collect();
                prop_assert!(of_tenant.is_sorted() && of_tenant.windows(2).all(|pair| pair[0] < pair[1]));
                let n_waiting = jobs.iter().filter(|(tenant, _)| *tenant == t).count();
                let room = limits[t].map_or(n_waiting, |limit| n_waiting.min(limit.saturating_sub(running[t]) as usize));
                prop_assert!(of_tenant.len() <= room);
                n_possible += room;
            }
            prop_assert_eq!(chosen.len(), n.min(n_possible));
        }

        /// Each choice is the best one of its moment, also where tenants have limits in common.
        #[test]
        fn a_choice_takes_the_best_job_again_and_again(
            jobs in prop::collection::vec((0..4_usize, 0..3_usize), 0..30),
            times in prop::collection::vec(0.0..20.0_f64, 4),
            weights in prop::collection::vec(1..4_u8, 4),
            limits in prop::collection::vec(0..6_u32, 3),
            n_near in 0..30_usize,
            is_new in prop::bool::ANY,
            n in 0..30_usize,
        ) {
            let names = ["a", "b", "c", "d"];
            let mut near: Vec<_> = jobs.iter().enumerate().map(|(i, (t, repository))| {
                let mut one = (*candidate(i, names[*t], f64::from(weights[*t]), None)).clone();
                let limit = Some(limits[*repository]);
                one.claim.counters.push(Counter { name: format!("repository {repository}"), limit });
                Arc::new(one)
            }).collect();
            let standing = Standing {
                clock: 10.0,
                times: names.iter().map(|name| (*name).to_owned()).zip(times).collect(),
                running: HashMap::new(),
            };
            let far = near.split_off(n_near.min(near.len()));
            let far = far.into_iter().map(|job| Far { job, is_new }).collect();
            let window = Window { near, far };
            let (mut left, mut now, mut expected) = (window.jobs().enumerate().collect::<Vec<_>>(), standing.clone(), vec![]);
            while expected.len() < n {
                let outlook = Outlook::of(&now);
                let ready = left.iter().enumerate().filter(|(_, (_, job))| outlook.has_room(&job.claim));
                let ranks = ready.map(|(nth, (place, job))| {
                    let toll_s = if is_new && *place >= window.near.len() { 5.0 } else { 0.0 };
                    (Waiting { job, nth_tenant: 0, place: *place, toll_s }.rank(&outlook), nth)
                });
                let Some((_, nth)) = ranks.min() else { break };
                let (_, job) = left.remove(nth);
                now.begin(&job.claim, 5.0);
                expected.push(job);
            }
            prop_assert_eq!(next(&window, &standing, 5.0, n), expected);
        }
    }
}
