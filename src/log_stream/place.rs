//! The place of an attempt in the record of its build: two fields of the hash, such as `attempt:000001:1f2e3d4c5b6a` and
//! `summary:000001:1f2e3d4c5b6a`.
//!
//! The number counts the attempts that were begun, also those that a stop interrupted. Each writer has fields of its own, so a worker
//! that comes back late changes nothing of a later attempt.

/// The place of an attempt. A later attempt sorts after an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// From 1.
    pub number: u32,
    /// Tells this attempt's writer from others.
    pub writer: String,
}

const ATTEMPT: &str = "attempt:";
const SUMMARY: &str = "summary:";

impl Place {
    /// The place that an attempt's field names.
    pub(super) fn of_attempt(field: &str) -> Option<Self> {
        Self::parse(field.strip_prefix(ATTEMPT)?)
    }

    /// The place that a summary's field names.
    pub(super) fn of_summary(field: &str) -> Option<Self> {
        Self::parse(field.strip_prefix(SUMMARY)?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, writer) = text.split_once(':')?;
        Some(Self { number: number.parse().ok()?, writer: writer.to_owned() })
    }

    /// The field with all of the attempt.
    pub(super) fn attempt(&self) -> String {
        format!("{ATTEMPT}{:06}:{}", self.number, self.writer)
    }

    /// The field with the build in one line.
    pub(super) fn summary(&self) -> String {
        format!("{SUMMARY}{:06}:{}", self.number, self.writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_from_its_fields_and_later_ones_sort_after_it() {
        let place = |number, writer: &str| Place { number, writer: writer.into() };
        let first = place(9, "b");
        assert_eq!(Place::of_attempt(&first.attempt()), Some(first.clone()));
        assert_eq!(Place::of_summary(&first.summary()), Some(first.clone()));
        assert!(first < place(10, "a") && first < place(1_000_000, "a"));
        assert_eq!(["attempt:x:a", "attempt:1", "other", "attempt"].map(Place::of_attempt), [None, None, None, None]);
    }
}
