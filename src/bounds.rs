//! How long and how many: every fixed bound on what a stranger can make long or many.
//!
//! They stand together so that a reviewer sees what is multiplied by what. `docs/limits.md` shows the same table, and
//! `tests/it/limits.rs` compares the two. Bounds that an operator may change are settings and stand in that document too.

/// Declares the table once: constant, value, unit, what it bounds, what happens beyond it.
macro_rules! bounds {
    ($($name:ident: $value:expr, $unit:ident, $what:literal, $beyond:literal;)+) => {
        $(#[doc = concat!($what, ". Beyond it: ", $beyond, ".")] pub const $name: usize = $value;)+

        /// Every bound, in the order of the table.
        pub const ALL: &[Bound] = &[$(Bound { what: $what, value: $value, unit: Unit::$unit, beyond: $beyond },)+];
    };
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// What it bounds.
    pub what: &'static str,
    /// How much is allowed.
    pub value: usize,
    /// Of what.
    pub unit: Unit,
    /// What happens to the rest.
    pub beyond: &'static str,
}

/// What a bound counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

impl Bound {
    /// The bound for a person: `8 KiB`, `256`.
    pub fn size(&self) -> String {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match self.unit {
            Unit::Count => self.value.to_string(),
            Unit::Bytes => units
                .iter()
                .find(|(size, _)| self.value >= *size && self.value.is_multiple_of(*size))
                .map_or_else(|| format!("{} B", self.value), |(size, unit)| format!("{} {unit}", self.value / size)),
        }
    }
}

bounds! {
    MESSAGE: 2 << 10, Bytes, "`message` of a report, and the error message in Redis", "cut, with a mark";
    ERROR: 4 << 10, Bytes, "`error` of a target", "cut, with a mark";
    NOTICE: 1 << 10, Bytes, "One notice", "cut, with a mark";
    NOTICES: 50, Count, "Notices of a build", "counted, and the count is the last notice";
    REPORT: 256 << 10, Bytes, "A report as JSON: the argument of a callback job", "the longest texts are cut further";
    RECOVERIES: 1, Count, "Recoveries from dead workers, in three days, of a job that runs beside others", "it runs apart from others";
    CRASHES: 2, Count, "Of these, crashes of a worker in which only this job ran, before it runs again", "dead set, with the reason `poison`";
}
