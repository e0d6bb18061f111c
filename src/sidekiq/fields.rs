//! A job's JSON object: its fields in order, each with the text of its value.
//!
//! What is not changed is written back to the byte, so unknown fields, big integers and the form of floats survive.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;

use crate::bounds;
use crate::clock::Epoch;
use crate::json;

/// The largest integer that is taken for seconds: as milliseconds it would be a day of 1973.
const MAX_SECONDS: f64 = 1e11;

/// Times that every Sidekiq can show, from the epoch on, whether it takes them for seconds or for milliseconds.
pub(super) const TIMES: RangeInclusive<f64> = 0.0..=1e14;

/// The fields, with the text of each value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Takes a text that is JSON apart; `None` when it is not an object, or has more than [`bounds::FIELDS`].
    pub(super) fn of(text: &str) -> Option<Self> {
        let is_small = text.trim_start().starts_with('{') && json::fields(text).nth(bounds::FIELDS).is_none();
        is_small.then(|| Self(json::fields(text).map(|(name, value)| (name.into_owned(), value.to_owned())).collect()))
    }

    /// The text of the last field of that name, as JSON has it for duplicates.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(field, _)| field == name).map(|(_, value)| &**value)
    }

    /// The field, when it is there and of that type.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        json::read(self.raw(name)?.as_bytes()).ok()
    }

    /// The same for a text.
    pub(super) fn string(&self, name: &str) -> Option<String> {
        self.read(name)
    }

    /// Sidekiq 8 takes an integer for milliseconds and a float for seconds. `None` for what is not a time that it can show.
    pub(super) fn timestamp(&self, name: &str) -> Option<Epoch> {
        let number: f64 = self.read(name).filter(|number| TIMES.contains(number))?;
        let is_seconds = !is_integer(self.raw(name)?) || number < MAX_SECONDS;
        Some(Epoch::from_secs_f64(if is_seconds { number } else { number / 1000.0 }))
    }

    /// Puts a value in the place of the old one, or at the end.
    pub(super) fn set(&mut self, name: &str, value: &impl serde::Serialize) {
        let text = serde_json::to_string(value).expect("strings, numbers and maps of them are JSON");
        match self.0.iter_mut().rev().find(|(field, _)| field == name) {
            Some((_, old)) => *old = text,
            None => self.0.push((name.to_owned(), text)),
        }
    }

    /// Takes the fields out for whose name and text `is_it` holds, and returns them.
    pub(super) fn take(&mut self, is_it: impl Fn(&str, &str) -> bool) -> Vec<(String, String)> {
        self.0.extract_if(.., |(name, text)| is_it(name, text)).collect()
    }

    /// The object as text.
    pub(super) fn text(&self) -> String {
        let fields: Vec<String> = self
            .0
            .iter()
            .map(|(name, value)| format!("{}:{value}", serde_json::to_string(name).expect("a string is JSON")))
            .collect();
        format!("{{{}}}", fields.join(","))
    }
}

/// Whether a number's text has neither fraction nor exponent.
pub(super) fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}
