//! The order in which a turn asks the queues: strict, random or weighted, as Sidekiq's `BasicFetch` has it for each job.

use std::collections::HashMap;

use super::inflight::Token;
use super::turn::FetchRequest;
use crate::settings::{Capsule, Mode, Queue};

/// The orders in which free slots ask the queues.
///
/// With weights each slot draws its own order; with one order, a turn for many slots would empty one queue. A slot keeps its order until a
/// job fills it: a turn may only look, and with a new order the next one would take from another queue.
#[derive(Clone, Debug, Default)]
pub struct Orders(HashMap<Token, Vec<String>>);

impl Orders {
    /// What a turn asks for the free slots. Slots with equal orders share a fetch request, so this sorts the slots by the requests.
    pub fn fetch_requests(&mut self, capsules: &[Capsule], slots: &mut Vec<Token>) -> Vec<FetchRequest> {
        let (mut drawn, mut groups) = (std::mem::take(&mut self.0), Vec::<(Vec<String>, Vec<Token>)>::new());
        slots.sort_by_key(|token| token.capsule);
        for token in slots.drain(..) {
            let order = drawn.remove(&token).unwrap_or_else(|| order(&capsules[token.capsule]));
            self.0.insert(token.clone(), order.clone());
            let is_same = |tokens: &[Token]| tokens.first().is_some_and(|first| first.capsule == token.capsule);
            match groups.iter_mut().find(|(known, tokens)| *known == order && is_same(tokens)) {
                Some((_, tokens)) => tokens.push(token),
                None => groups.push((order, vec![token])),
            }
        }
        let request = |(queues, tokens): (Vec<String>, Vec<Token>)| {
            let n_slots = tokens.len();
            slots.extend(tokens);
            FetchRequest { n_slots, queues }
        };
        groups.into_iter().map(request).collect()
    }
}

fn order(capsule: &Capsule) -> Vec<String> {
    match Mode::of(&capsule.queues) {
        Mode::Strict => capsule.queues.iter().map(|queue| queue.name.clone()).collect(),
        Mode::Random | Mode::Weighted => drawn(&capsule.queues),
    }
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

    /// What a turn asks for so many free slots.
    fn requests(capsule: &Capsule, n_slots: u64) -> Vec<FetchRequest> {
        let mut slots = (0..n_slots).map(|n| Token::nth(n, 0)).collect();
        Orders::default().fetch_requests(std::slice::from_ref(capsule), &mut slots)
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
        assert_eq!(requests(&capsule(&["b", "a", "c"]), 7), [FetchRequest { n_slots: 7, queues }]);
    }

    #[test]
    fn weights_are_shares_within_a_turn_for_many_slots_and_over_turns_for_one() {
        let (weighted, names) = (capsule(&["a,6", "b,3", "c"]), ["a", "b", "c"]);
        let one_turn = firsts(&requests(&weighted, 1000), names);
        let many_turns: Vec<FetchRequest> = (0..1000).flat_map(|_| requests(&weighted, 1)).collect();
        for shares in [one_turn, firsts(&many_turns, names)] {
            assert_eq!(shares.iter().sum::<usize>(), 1000);
            // Six standard deviations.
            for (share, expected) in shares.into_iter().zip([600_usize, 300, 100]) {
                assert!(share.abs_diff(expected) < 95, "{shares:?}");
            }
        }
        let seconds = requests(&weighted, 1000).into_iter().filter(|fetch_request| fetch_request.queues[0] == "a");
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
    fn a_slot_keeps_its_order_until_a_job_fills_it() {
        let capsules = [capsule(&["a,1", "b,1", "c,1"]), capsule(&["b", "a"])];
        let tokens =
            |of: std::ops::Range<u64>| of.flat_map(|n| [Token::nth(n, 0), Token::nth(n, 1)]).collect::<Vec<_>>();
        let (mut orders, mut slots) = (Orders::default(), tokens(0..40));
        let order_of = |requests: &[FetchRequest], slots: &[Token]| {
            let queues = requests.iter().flat_map(|request| vec![&request.queues; request.n_slots]);
            slots.iter().cloned().zip(queues.cloned()).collect::<HashMap<_, _>>()
        };
        let first = orders.fetch_requests(&capsules, &mut slots);
        let drawn = order_of(&first, &slots);
        assert_eq!((drawn.len(), &drawn[&Token::nth(7, 1)]), (80, &vec!["b".to_owned(), "a".to_owned()]));
        // The first ten are filled, and ten others are free.
        let mut slots = tokens(10..50);
        let second = orders.fetch_requests(&capsules, &mut slots);
        let kept = order_of(&second, &slots);
        assert!(tokens(10..40).iter().all(|token| kept[token] == drawn[token]));
        assert_eq!((kept.len(), orders.0.len()), (80, 80));
    }

    #[test]
    fn every_queue_is_in_every_order_once() {
        for fetch_request in requests(&capsule(&["a,100", "b,1", "c,1"]), 500) {
            let mut queues = fetch_request.queues;
            queues.sort();
            assert_eq!(queues, ["a", "b", "c"]);
        }
    }
}
