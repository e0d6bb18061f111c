//! Queues with their weights, and capsules: which jobs a worker takes, and in which order.
//!
//! Follows Sidekiq's `-q name,weight` and its capsules.

use serde::{Deserialize, Deserializer};

use crate::bounds;

/// What ends a text or an attribute of a page. A lone `&` does not.
const MARKUP: [char; 4] = ['<', '>', '"', '\''];

/// A queue to take jobs from, written `name` or `name,weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Without prefix.
    pub name: String,
    /// How often it comes first, in proportion to the others; 0 when none was given.
    pub weight: u32,
}

/// In which order queues are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As they are listed: no queue has a weight.
    Strict,
    /// By chance: each has the weight 1.
    Random,
    /// By chance, in proportion to the weights.
    Weighted,
}

impl Mode {
    /// Follows Sidekiq 8.1, `Capsule#queues=`.
    pub fn of(queues: &[Queue]) -> Self {
        if queues.iter().all(|queue| queue.weight == 0) {
            Self::Strict
        } else if queues.iter().all(|queue| queue.weight == 1) {
            Self::Random
        } else {
            Self::Weighted
        }
    }

    /// As Sidekiq's API has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Random => "random",
            Self::Weighted => "weighted",
        }
    }
}

/// Slots with queues of their own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capsule {
    /// Jobs at once.
    pub concurrency: usize,
    /// Its queues.
    #[serde(deserialize_with = "queues")]
    pub queues: Vec<Queue>,
}

impl Queue {
    /// Whether a text can be part of a key, of a line of the log and of a page: Sidekiq's Web UI puts names into its pages as
    /// they are.
    pub fn is_name(text: &str) -> bool {
        let is_allowed = |c: char| !c.is_control() && !MARKUP.contains(&c);
        !text.is_empty() && text.len() <= bounds::NAME && text.chars().all(is_allowed)
    }

    /// Reads `name` or `name,weight`. `None` where the weight is no number.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, weight) = match text.split_once(',') {
            Some((name, weight)) => (name, weight.trim().parse().ok()?),
            None => (text, 0),
        };
        Some(Self { name: name.trim().to_owned(), weight })
    }
}

/// A list of queues. In the environment, where a comma divides entries as well, a number is the weight of the name before it.
pub(super) fn queues<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Queue>, D::Error> {
    let mut queues: Vec<Queue> = Vec::new();
    for text in Vec::<String>::deserialize(deserializer)? {
        match (text.parse(), queues.last_mut()) {
            (Ok(weight), Some(queue)) if queue.weight == 0 => queue.weight = weight,
            _ => queues.push(Queue::parse(&text).ok_or_else(|| {
                serde::de::Error::custom(format!("{text:?}: expected a queue, or a queue, a comma and its weight"))
            })?),
        }
    }
    Ok(queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_follows_from_the_weights() {
        let mode = |list: &[&str]| {
            let queues: Option<Vec<_>> = list.iter().map(|text| Queue::parse(text)).collect();
            Mode::of(&queues.expect("queues"))
        };
        assert_eq!(mode(&["a", "b"]), Mode::Strict);
        assert_eq!(mode(&["a,1", "b,1"]), Mode::Random);
        assert_eq!(mode(&["a,2", "b"]), Mode::Weighted);
        assert_eq!(Queue::parse("a,often"), None);
    }
}
