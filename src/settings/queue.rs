//! Queues with their weights, and capsules: which jobs a worker fetches, and in which order.
//!
//! Follows Sidekiq's `-q name,weight` and its capsules.

use serde::{Deserialize, Deserializer};

use crate::bounds;
use crate::field_error::{FieldError, refuse};

/// What ends a text or an attribute of a page. A lone `&` does not.
const MARKUP: [char; 4] = ['<', '>', '"', '\''];

/// A queue that the worker fetches jobs from, written `name` or `name,weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The name, without the prefix `queue:`.
    pub name: String,
    /// How often the queue comes first, in proportion to the others; 0 when it has no weight.
    pub weight: u32,
}

/// The order in which the worker looks at its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The order of the list: no queue has a weight.
    Strict,
    /// Random: each queue has the weight 1.
    Random,
    /// Random, in proportion to the weights.
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

    /// The name in Sidekiq's API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Random => "random",
            Self::Weighted => "weighted",
        }
    }
}

/// Slots with queues of their own, beside `concurrency` and `queues`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capsule {
    /// Builds at once in this capsule.
    pub concurrency: usize,
    /// Queues of the capsule, in the form of the setting `queues`.
    #[serde(deserialize_with = "queues")]
    pub queues: Vec<Queue>,
}

impl Queue {
    /// Whether a text can be part of a Redis key, a log line and a page: Sidekiq's Web UI does not escape names of queues.
    pub fn is_name(text: &str) -> bool {
        let is_allowed = |c: char| !c.is_control() && !MARKUP.contains(&c);
        !text.is_empty() && text.len() <= bounds::NAME && text.chars().all(is_allowed)
    }

    /// Reads `name` or `name,weight`. `None` when the weight is not a number.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, weight) = match text.split_once(',') {
            Some((name, weight)) => (name, weight.trim().parse().ok()?),
            None => (text, 0),
        };
        Some(Self { name: name.trim().to_owned(), weight })
    }
}

impl Capsule {
    /// `section` is empty, or ends with a dot.
    pub(super) fn check(&self, section: &str) -> Result<(), FieldError> {
        if self.concurrency == 0 {
            return refuse(format!("{section}concurrency"), "must be from 1 to 1000");
        }
        if self.queues.is_empty() {
            return refuse(format!("{section}queues"), "must name at least one queue");
        }
        if let Some(queue) = self.queues.iter().find(|queue| !Queue::is_name(&queue.name)) {
            let message = format!("{:?} is not a valid name of a queue", queue.name);
            return refuse(format!("{section}queues"), message);
        }
        Ok(())
    }
}

/// Reads a list of queues.
pub(super) fn queues<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Queue>, D::Error> {
    let queue = |text: &String| {
        let message = || format!("expected NAME or NAME,WEIGHT, found {text:?}");
        Queue::parse(text).ok_or_else(|| serde::de::Error::custom(message()))
    };
    Vec::<String>::deserialize(deserializer)?.iter().map(queue).collect()
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
