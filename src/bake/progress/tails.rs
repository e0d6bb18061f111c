//! The output of running steps, in case that they fail.

use std::collections::BTreeMap;

use crate::bounds;
use crate::text::excerpt::Excerpt;
use crate::text::lines::Lines;

/// Excerpts by step, of [`bounds::LOG_TAILS`] bytes at most.
#[derive(Debug, Default)]
pub(super) struct Tails {
    of_steps: BTreeMap<u32, Excerpt>,
    n_bytes: usize,
}

impl Tails {
    /// Adds lines of a step's output. When all together are too long, the longest become shorter.
    pub(super) fn push(&mut self, step: u32, lines: &Lines) {
        let excerpt = self.of_steps.entry(step).or_default();
        self.n_bytes -= excerpt.size();
        excerpt.push(lines);
        self.n_bytes += excerpt.size();
        if self.n_bytes > bounds::LOG_TAILS {
            self.make_room();
        }
    }

    /// Shrinks the longest excerpts. There is room for many lines afterwards, so that few lines look at all excerpts.
    fn make_room(&mut self) {
        let mut longest: Vec<&mut Excerpt> = self.of_steps.values_mut().collect();
        longest.sort_unstable_by_key(|excerpt| std::cmp::Reverse(excerpt.size()));
        for excerpt in longest {
            if self.n_bytes <= bounds::LOG_TAILS / 2 {
                return;
            }
            self.n_bytes -= excerpt.size();
            excerpt.shrink();
            self.n_bytes += excerpt.size();
        }
    }

    /// Forgets a step that did not fail.
    pub(super) fn forget(&mut self, step: u32) {
        self.n_bytes -= self.of_steps.remove(&step).map_or(0, |excerpt| excerpt.size());
    }

    /// The output of a step.
    pub(super) fn of(&self, step: u32) -> Option<&Excerpt> {
        self.of_steps.get(&step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_steps_that_print_much_stay_within_the_bound() {
        let mut tails = Tails::default();
        for n in 0..30_000_u32 {
            tails.push(n % 1500, &format!("line {n} {}", "x".repeat(200)).as_str().into());
        }
        let n_bytes: usize = tails.of_steps.values().map(Excerpt::size).sum();
        assert!(n_bytes == tails.n_bytes && n_bytes <= bounds::LOG_TAILS, "{n_bytes} {}", tails.n_bytes);
        let last = tails.of(1499).and_then(|excerpt| excerpt.text()).expect("output");
        assert!(last.contains("line 29999 "), "{last}");
        (0..1500).for_each(|step| tails.forget(step));
        assert_eq!(tails.n_bytes, 0);
    }
}
