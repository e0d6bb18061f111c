//! A job's JSON object: its fields in order, each with the text of its value.
//!
//! Fields that do not change are written back byte for byte, so unknown fields, big integers and the form of floats survive.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;

use crate::bounds;
use crate::clock::Epoch;
use crate::json;

/// The largest integer that counts as seconds. As milliseconds it would be a day of 1973.
const MAX_SECONDS: f64 = 1e11;

/// Times that every Sidekiq can show, as seconds and as milliseconds.
pub(super) const TIMES: RangeInclusive<f64> = 0.0..=1e14;

/// The fields, with the text of each value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Splits a JSON text; `None` when it is not an object, or has more fields than [`bounds::FIELDS`].
    pub(super) fn of(text: &str) -> Option<Self> {
        let is_small = text.trim_start().starts_with('{') && json::fields(text).nth(bounds::FIELDS).is_none();
        is_small.then(|| Self(json::fields(text).map(|(name, value)| (name.into_owned(), value.to_owned())).collect()))
    }

    /// The text of the last field of that name: in JSON the last duplicate counts.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(field, _)| field == name).map(|(_, value)| &**value)
    }

    /// The names, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// The field's value; `None` when it is missing or of another type.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        json::read(self.raw(name)?.as_bytes()).ok()
    }

    /// The same for a string.
    pub(super) fn string(&self, name: &str) -> Option<String> {
        self.read(name)
    }

    /// A time: Sidekiq 8 reads an integer as milliseconds and a float as seconds. `None` for a time that it cannot show.
    pub(super) fn timestamp(&self, name: &str) -> Option<Epoch> {
        let number: f64 = self.read(name).filter(|number| TIMES.contains(number))?;
        let is_seconds = !is_integer(self.raw(name)?) || number < MAX_SECONDS;
        Some(Epoch::from_secs_f64(if is_seconds { number } else { number / 1000.0 }))
    }

    /// Replaces a value, or adds it at the end.
    pub(super) fn set(&mut self, name: &str, value: &impl serde::Serialize) {
        let text = serde_json::to_string(value).expect("strings, numbers and maps of them are JSON");
        match self.0.iter_mut().rev().find(|(field, _)| field == name) {
            Some((_, old)) => *old = text,
            None => self.0.push((name.to_owned(), text)),
        }
    }

    /// Removes the fields for whose name and text `is_it` holds, and returns them.
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

/// Whether a number's text has no fraction and no exponent.
pub(super) fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}
