//! In which order a turn asks the queues: strict, random or weighted, as Sidekiq's `BasicFetch` does for each job.

use super::turn::Demand;
use crate::settings::{Capsule, Mode, Queue};

/// What a turn asks for the `n_slots` free slots of a capsule.
///
/// With weights each slot has an order of its own, or a turn for many would empty one queue. Equal ones are asked together.
pub fn demands(capsule: &Capsule, n_slots: usize) -> Vec<Demand> {
    if Mode::of(&capsule.queues) == Mode::Strict {
        let queues = capsule.queues.iter().map(|queue| queue.name.clone()).collect();
        return vec![Demand { n_slots, queues }];
    }
    let mut demands: Vec<Demand> = Vec::new();
    for _ in 0..n_slots {
        let queues = drawn(&capsule.queues);
        match demands.iter_mut().find(|demand| demand.queues == queues) {
            Some(demand) => demand.n_slots += 1,
            None => demands.push(Demand { n_slots: 1, queues }),
        }
    }
    demands
}

/// An order in which the first queue is each one with the probability of its share of the weights, and so on for the rest.
///
/// As Sidekiq's shuffle of a list that has each name as often as it weighs: the first of races whose times are exponential.
fn drawn(queues: &[Queue]) -> Vec<String> {
    let mut times: Vec<(f64, &Queue)> = queues
        .iter()
        .map(|queue| (-(1.0 - rand::random::<f64>()).ln() / f64::from(queue.weight.max(1)), queue))
        .collect();
    times.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    times.into_iter().map(|(_, queue)| queue.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capsule(queues: &[&str]) -> Capsule {
        let queues = queues.iter().map(|text| Queue::parse(text).expect("a queue")).collect();
        Capsule { concurrency: 1000, queues }
    }

    /// For how many slots each of `names` is asked first.
    fn firsts(demands: &[Demand], names: [&str; 3]) -> [usize; 3] {
        names.map(|name| demands.iter().filter(|demand| demand.queues[0] == name).map(|demand| demand.n_slots).sum())
    }

    #[test]
    fn a_strict_list_is_asked_as_it_is() {
        let queues = ["b", "a", "c"].map(str::to_owned).to_vec();
        assert_eq!(demands(&capsule(&["b", "a", "c"]), 7), [Demand { n_slots: 7, queues }]);
    }

    #[test]
    fn weights_are_shares_within_a_turn_for_many_slots_and_over_turns_for_one() {
        let (weighted, names) = (capsule(&["a,6", "b,3", "c"]), ["a", "b", "c"]);
        let one_turn = firsts(&demands(&weighted, 1000), names);
        let many_turns: Vec<Demand> = (0..1000).flat_map(|_| demands(&weighted, 1)).collect();
        for shares in [one_turn, firsts(&many_turns, names)] {
            assert_eq!(shares.iter().sum::<usize>(), 1000);
            // Six standard deviations.
            for (share, expected) in shares.into_iter().zip([600_usize, 300, 100]) {
                assert!(share.abs_diff(expected) < 95, "{shares:?}");
            }
        }
        let seconds = demands(&weighted, 1000).into_iter().filter(|demand| demand.queues[0] == "a");
        let after_a: Vec<_> = seconds.map(|demand| (demand.queues[1].clone(), demand.n_slots)).collect();
        let b_after_a: usize = after_a.iter().filter(|(name, _)| name == "b").map(|(_, n)| n).sum();
        let n_after_a: usize = after_a.iter().map(|(_, n)| n).sum();
        assert!(
            (n_after_a * 6 / 10..n_after_a * 9 / 10).contains(&b_after_a),
            "three of four: {b_after_a} of {n_after_a}"
        );
    }

    #[test]
    fn every_queue_is_in_every_order_once() {
        for demand in demands(&capsule(&["a,100", "b,1", "c,1"]), 500) {
            let mut queues = demand.queues;
            queues.sort();
            assert_eq!(queues, ["a", "b", "c"]);
        }
    }
}
