//! The order in which a turn asks the queues: strict, random or weighted, as Sidekiq's `BasicFetch` has it for each job.

use super::turn::FetchRequest;
use crate::settings::{Capsule, Mode, Queue};

/// What a turn asks for the `n_slots` free slots of a capsule.
///
/// With weights each slot draws its own order; with one order, a turn for many slots would empty one queue. Slots with equal
/// orders share a fetch request.
pub fn fetch_requests(capsule: &Capsule, n_slots: usize) -> Vec<FetchRequest> {
    if Mode::of(&capsule.queues) == Mode::Strict {
        let queues = capsule.queues.iter().map(|queue| queue.name.clone()).collect();
        return vec![FetchRequest { n_slots, queues }];
    }
    let mut fetch_requests: Vec<FetchRequest> = Vec::new();
    for _ in 0..n_slots {
        let queues = drawn(&capsule.queues);
        match fetch_requests.iter_mut().find(|fetch_request| fetch_request.queues == queues) {
            Some(fetch_request) => fetch_request.n_slots += 1,
            None => fetch_requests.push(FetchRequest { n_slots: 1, queues }),
        }
    }
    fetch_requests
}

/// Draws an order. Each queue comes first with a probability of its share of the weights, and so on for the rest.
///
/// Equals Sidekiq's shuffle of a list that has each name as often as its weight: it sorts by exponential random times.
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

    /// The number of slots for which each of `names` comes first.
    fn firsts(fetch_requests: &[FetchRequest], names: [&str; 3]) -> [usize; 3] {
        names.map(|name| {
            fetch_requests
                .iter()
                .filter(|fetch_request| fetch_request.queues[0] == name)
                .map(|fetch_request| fetch_request.n_slots)
                .sum()
        })
    }

    #[test]
    fn a_strict_list_keeps_its_order() {
        let queues = ["b", "a", "c"].map(str::to_owned).to_vec();
        assert_eq!(fetch_requests(&capsule(&["b", "a", "c"]), 7), [FetchRequest { n_slots: 7, queues }]);
    }

    #[test]
    fn weights_are_shares_within_a_turn_for_many_slots_and_over_turns_for_one() {
        let (weighted, names) = (capsule(&["a,6", "b,3", "c"]), ["a", "b", "c"]);
        let one_turn = firsts(&fetch_requests(&weighted, 1000), names);
        let many_turns: Vec<FetchRequest> = (0..1000).flat_map(|_| fetch_requests(&weighted, 1)).collect();
        for shares in [one_turn, firsts(&many_turns, names)] {
            assert_eq!(shares.iter().sum::<usize>(), 1000);
            // Six standard deviations.
            for (share, expected) in shares.into_iter().zip([600_usize, 300, 100]) {
                assert!(share.abs_diff(expected) < 95, "{shares:?}");
            }
        }
        let seconds =
            fetch_requests(&weighted, 1000).into_iter().filter(|fetch_request| fetch_request.queues[0] == "a");
        let after_a: Vec<_> =
            seconds.map(|fetch_request| (fetch_request.queues[1].clone(), fetch_request.n_slots)).collect();
        let b_after_a: usize = after_a.iter().filter(|(name, _)| name == "b").map(|(_, n)| n).sum();
        let n_after_a: usize = after_a.iter().map(|(_, n)| n).sum();
        assert!(
            (n_after_a * 6 / 10..n_after_a * 9 / 10).contains(&b_after_a),
            "three of four: {b_after_a} of {n_after_a}"
        );
    }

    #[test]
    fn every_queue_is_in_every_order_once() {
        for fetch_request in fetch_requests(&capsule(&["a,100", "b,1", "c,1"]), 500) {
            let mut queues = fetch_request.queues;
            queues.sort();
            assert_eq!(queues, ["a", "b", "c"]);
        }
    }
}
