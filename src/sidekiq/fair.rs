//! Which waiting jobs begin next: weighted fair queueing between tenants.
//!
//! Follows start-time fair queueing (Goyal, Vin and Cheng, 1996). A tenant's virtual time grows by the seconds of its slots, divided by
//! its weight. The tenant that is furthest behind comes next. One that was away begins at the clock, the start of the job that began
//! last: it neither saves time up nor pays for time that nobody else wanted.

use std::collections::{BTreeMap, HashMap};
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
    /// When a job of the tenant would begin.
    fn start(&self, tenant: &str) -> f64 {
        self.times.get(tenant).map_or(self.clock, |time| time.max(self.clock))
    }

    fn n_running(&self, counter: &Counter) -> u32 {
        self.running.get(&counter.name).copied().unwrap_or(0)
    }

    fn has_room(&self, claim: &Claim) -> bool {
        claim.counters.iter().all(|counter| counter.limit.is_none_or(|limit| self.n_running(counter) < limit))
    }

    /// Counts a job that begins, which is charged so many seconds.
    fn begin(&mut self, claim: &Claim, charge_s: f64) {
        self.clock = self.start(&claim.tenant);
        self.times.insert(claim.tenant.clone(), self.clock + charge_s / claim.weight);
        for counter in &claim.counters {
            *self.running.entry(counter.name.clone()).or_default() += 1;
        }
    }
}

/// The next `n` jobs of a window, in order. The window has the oldest job first. Jobs whose limits are reached are left out.
///
/// Jobs of one tenant keep their order, but for their priorities.
pub fn next<'a>(window: &'a [Arc<Candidate>], standing: &Standing, charge_s: f64, n: usize) -> Vec<&'a Arc<Candidate>> {
    let mut standing = standing.clone();
    let mut waiting: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, candidate) in window.iter().enumerate() {
        waiting.entry(&candidate.claim.tenant).or_default().push(place);
    }
    for places in waiting.values_mut() {
        places.sort_by_key(|place| -window[*place].priority.clamp(-i64::MAX, i64::MAX));
    }
    let mut chosen = Vec::new();
    while chosen.len() < n {
        let firsts = waiting.iter().filter_map(|(tenant, places)| {
            let nth = places.iter().position(|place| standing.has_room(&window[*place].claim))?;
            let claim = &window[places[nth]].claim;
            let load = f64::from(standing.n_running(&claim.counters[0])) / claim.weight;
            Some((standing.start(tenant), load, places[nth], *tenant, nth))
        });
        let best = firsts.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        let Some((_, _, place, tenant, nth)) = best else { break };
        if let Some(places) = waiting.get_mut(tenant) {
            places.remove(nth);
        }
        standing.begin(&window[place].claim, charge_s);
        chosen.push(&window[place]);
    }
    chosen
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
            has_inputs: true,
            expiry: None,
        })
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
        assert_eq!(tenants(&next(&window, &standing, 10.0, 4)), "baaa");
        assert_eq!(tenants(&next(&window[..12], &standing, 10.0, 4)), "aaaa", "one tenant alone has every slot");
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
                let claim = next(&window, &standing, 5.0, 1)[0].claim.clone();
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
        let chosen = next(&window, &Standing::default(), 1.0, 4);
        let texts: Vec<&[u8]> = chosen.iter().map(|candidate| &*candidate.text).collect();
        assert_eq!(texts, [b"0", b"2"]);
    }

    #[test]
    fn a_priority_counts_within_its_tenant_only() {
        let with = |n, tenant, priority| Arc::new(Candidate { priority, ..(*candidate(n, tenant, 1.0, None)).clone() });
        let window =
            [with(0, "b", 0), with(1, "a", 0), with(2, "a", 9), with(3, "a", i64::MIN), with(4, "a", i64::MAX)];
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
    }
}
