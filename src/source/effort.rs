//! Processor time: how much of it fetch and checkout may take, by what there is to do.
//!
//! A small commit can be made to cost minutes: patterns with many `*` in `.gitattributes`, large files that are stored as
//! thousands of changes. The kernel ends a child that uses it up. Waiting for the network takes none, so a child that
//! is ended so was ended by its commit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::Size;
use super::request::Limits;

/// Of `source.timeout`, what a fetch may take whatever its size, and what a checkout may.
const FETCH_PART: u64 = 20;
const CHECKOUT_PART: u64 = 60;

/// What is unpacked and hashed in a second at the very least: a tenth of what a slow processor does.
const BYTES_PER_SECOND: u64 = 4 << 20;
const ENTRIES_PER_SECOND: u64 = 1000;

/// Lets this process go on for as long as a fetch of so many bytes may take, from its start.
pub(super) fn allow_fetch(limits: Limits, received_bytes: u64) {
    allow(fetch_seconds(limits, received_bytes));
}

/// Lets it go on, from now, for as long as a checkout of this size may take.
pub(super) fn allow_checkout(limits: Limits, size: Size) {
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec.cast_unsigned() + 1;
    allow(used + checkout_seconds(limits, size));
}

fn fetch_seconds(limits: Limits, received_bytes: u64) -> u64 {
    (limits.timeout_s / FETCH_PART).max(1) + received_bytes / BYTES_PER_SECOND
}

fn checkout_seconds(limits: Limits, size: Size) -> u64 {
    (limits.timeout_s / CHECKOUT_PART).max(1) + size.n_bytes / BYTES_PER_SECOND + size.n_entries / ENTRIES_PER_SECOND
}

/// The kernel's signal at `seconds` says why; at the hard limit, which the worker set, it kills without a word.
fn allow(seconds: u64) {
    let maximum = getrlimit(Resource::Cpu).maximum;
    let below = maximum.map_or(seconds, |maximum| seconds.min(maximum.saturating_sub(1)).max(1));
    // Lowering it is always allowed, and raising it up to the maximum.
    let _ = setrlimit(Resource::Cpu, Rlimit { current: Some(below), maximum });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    #[test]
    fn what_is_allowed_grows_with_the_commit_and_with_the_setting() {
        let limits = Limits::from(&settings::Source::default());
        let size = |n_entries, n_bytes| Size { n_entries, n_bytes };
        assert_eq!(fetch_seconds(limits, 0), 30);
        assert_eq!(fetch_seconds(limits, 400 << 20), 130);
        assert_eq!(checkout_seconds(limits, size(50, 1000)), 10);
        assert_eq!(checkout_seconds(limits, size(4000, 48 << 20)), 10 + 4 + 12);
        let short = Limits { timeout_s: 2, ..limits };
        assert_eq!((fetch_seconds(short, 0), checkout_seconds(short, size(50, 1000))), (1, 1));
    }
}
