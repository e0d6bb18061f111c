//! Where applications build, and a simulation of a busy builder.

use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::*;

/// Uniform numbers from 0 to 1 (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The time to the next event of this rate.
    fn pause(&mut self, rate: f64) -> f64 {
        -(1.0 - self.next()).ln() / rate
    }
}

const N_APPLICATIONS: usize = 200;
const N_BUILDS: usize = 8_000;
/// The first builds, before which no application has a home.
const N_FIRST: usize = 2_000;

/// What a simulation found.
#[derive(Debug)]
struct Found {
    /// The builds of the busiest shard, as a multiple of the mean.
    max_to_mean: f64,
    /// The part of the builds on a shard that had one of the application's last five builds.
    with_cache: f64,
    /// The part of the builds on the shard of the last one.
    on_last: f64,
}

/// How an application's shards are known.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// As the worker does: its home is the first shard that it got.
    Remembered,
    /// By rendezvous hashing alone.
    Hashed,
}

/// Builds of applications with Zipf's distribution that arrive at random and take one unit of time on average.
fn simulate(seed: u64, n_running: f64, bound: Bound, rule: Rule) -> Found {
    const N_SHARDS: usize = 5;
    let names: Vec<String> = (0..N_SHARDS).map(|n| format!("default-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let orders: Vec<Vec<usize>> = (0..N_APPLICATIONS).map(|n| order(&format!("{seed}/{n}"), &names)).collect();
    let harmonic: f64 = (1..=N_APPLICATIONS).map(|n| 1.0 / n as f64).sum();
    let mut numbers = Numbers(seed);
    let (mut running, mut ends) = ([0_u32; N_SHARDS], BinaryHeap::<Reverse<(u64, usize)>>::new());
    let mut known = vec![Vec::<usize>::new(); N_APPLICATIONS];
    let mut last = vec![VecDeque::<usize>::new(); N_APPLICATIONS];
    let (mut now, mut built, mut n_cached, mut n_on_last) = (0.0, [0_usize; N_SHARDS], 0, 0);
    for number in 0..N_BUILDS {
        now += numbers.pause(n_running);
        // Times are kept as integers, which have an order.
        while let Some(Reverse((end, shard))) = ends.peek().copied()
            && end as f64 / 1e9 <= now
        {
            ends.pop();
            running[shard] -= 1;
        }
        let mut rest = numbers.next() * harmonic;
        let rank = (1..N_APPLICATIONS).find(|n| {
            rest -= 1.0 / *n as f64;
            rest < 0.0
        });
        let application = rank.map_or(N_APPLICATIONS - 1, |n| n - 1);
        let order = &orders[application];
        let in_order = order.iter().map(|shard| running[*shard]).collect::<Vec<_>>();
        let places: Vec<usize> = match rule {
            Rule::Hashed => (0..N_SHARDS).collect(),
            Rule::Remembered => {
                let place = |shard: &usize| order.iter().position(|other| other == shard).expect("a shard");
                known[application].iter().map(place).collect()
            }
        };
        let shard = order[choose(&in_order, &places, bound)];
        assert!(running[shard] < bound.of(running.iter().sum(), N_SHARDS), "over its bound");
        if number >= N_FIRST {
            built[shard] += 1;
            n_cached += usize::from(last[application].contains(&shard));
            n_on_last += usize::from(last[application].back() == Some(&shard));
        }
        if !known[application].contains(&shard) {
            known[application].push(shard);
        }
        last[application].push_back(shard);
        if last[application].len() > 5 {
            last[application].pop_front();
        }
        running[shard] += 1;
        ends.push(Reverse((((now + numbers.pause(1.0)) * 1e9) as u64, shard)));
    }
    let n_built = (N_BUILDS - N_FIRST) as f64;
    Found {
        max_to_mean: *built.iter().max().expect("shards") as f64 * N_SHARDS as f64 / n_built,
        with_cache: n_cached as f64 / n_built,
        on_last: n_on_last as f64 / n_built,
    }
}

/// The worst of twenty simulations.
fn worst(n_running: f64, percent: u32, rule: Rule) -> Found {
    let all: Vec<Found> = (1..=20).map(|seed| simulate(seed, n_running, Bound { least: 1, percent }, rule)).collect();
    let least = |value: fn(&Found) -> f64| all.iter().map(value).fold(f64::INFINITY, f64::min);
    Found {
        max_to_mean: all.iter().map(|found| found.max_to_mean).fold(0.0, f64::max),
        with_cache: least(|found| found.with_cache),
        on_last: least(|found| found.on_last),
    }
}

#[test]
fn builds_find_their_cache_and_no_shard_is_overloaded() {
    for n_running in [20.0, 50.0] {
        let found = worst(n_running, PERCENT_OF_MEAN, Rule::Remembered);
        assert!(found.max_to_mean <= 1.5 && found.with_cache >= 0.96 && found.on_last >= 0.9, "{n_running}: {found:?}");
        // Where hashed homes have as even a load, fewer builds find their cache.
        let hashed = worst(n_running, 125, Rule::Hashed);
        assert!(hashed.with_cache < found.with_cache && hashed.on_last < found.on_last, "{n_running}: {hashed:?}");
    }
}

#[test]
fn a_shard_more_or_less_moves_only_what_it_gets_or_had() {
    let names: Vec<String> = (0..6).map(|n| format!("default-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut n_moved = 0;
    for application in (0..1000).map(|n| format!("acme/{n}")) {
        let (five, six) = (order(&application, &names[..5]), order(&application, &names));
        let without: Vec<usize> = six.iter().copied().filter(|shard| *shard != 5).collect();
        assert_eq!(five, without, "the others keep their order");
        n_moved += usize::from(five[0] != six[0]);
    }
    assert!(n_moved <= 220, "{n_moved}");
}

#[test]
fn a_full_home_is_left_and_an_unknown_application_goes_where_little_runs() {
    let bound = Bound { least: 2, percent: 150 };
    assert_eq!(choose(&[0, 0, 0], &[], bound), 0, "the first of its order");
    assert_eq!(choose(&[1, 0, 0], &[], bound), 1);
    assert_eq!(choose(&[1, 0, 0], &[0], bound), 0, "its home has room");
    assert_eq!(choose(&[2, 0, 1], &[0], bound), 1, "its home is full");
    assert_eq!(choose(&[2, 0, 1], &[0, 2], bound), 2, "the other shard with its cache has room");
    assert_eq!(choose(&[9, 9, 9], &[1], bound), 1, "150 % of the mean");
    assert_eq!(bound.of(27, 3), 14);
    assert_eq!(choose(&[0], &[3], bound), 0, "a shard that takes no builds");
}

#[test]
fn a_hundred_shards_get_equally_many_applications() {
    let names: Vec<String> = (0..100).map(|n| format!("default-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut homes = BTreeMap::<usize, usize>::new();
    for application in (0..10_000).map(|n| format!("acme/{n}")) {
        *homes.entry(order(&application, &names)[0]).or_default() += 1;
    }
    assert!(homes.len() == 100 && homes.values().all(|n| (50..200).contains(n)), "{homes:?}");
}
