//! Limits of processor time for fetch and checkout, by the size of the commit.
//!
//! A small commit can cost minutes: patterns with many `*` in `.gitattributes`, or large files stored as thousands of deltas. The
//! kernel ends a child at its limit. Waiting for the network uses no processor time, so a child ends this way only because
//! of its commit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::Size;
use super::request::CheckoutLimits;

/// The parts of `source.timeout` that any fetch and any checkout may take.
const FETCH_PART: u64 = 20;
const CHECKOUT_PART: u64 = 60;

/// The slowest acceptable unpacking and hashing: a tenth of what a slow processor does.
const BYTES_PER_SECOND: u64 = 4 << 20;
const ENTRIES_PER_SECOND: u64 = 1000;

/// Sets the limit of this process to what a fetch of this size may take, counted from its start.
pub(super) fn allow_fetch(limits: CheckoutLimits, received_bytes: u64) {
    allow(fetch_seconds(limits, received_bytes));
}

/// Sets the limit to what a checkout of this size may take, counted from now.
pub(super) fn allow_checkout(limits: CheckoutLimits, size: Size) {
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec.cast_unsigned() + 1;
    allow(used + checkout_seconds(limits, size));
}

fn fetch_seconds(limits: CheckoutLimits, received_bytes: u64) -> u64 {
    (limits.timeout_s / FETCH_PART).max(1) + received_bytes / BYTES_PER_SECOND
}

fn checkout_seconds(limits: CheckoutLimits, size: Size) -> u64 {
    (limits.timeout_s / CHECKOUT_PART).max(1) + size.n_bytes / BYTES_PER_SECOND + size.n_entries / ENTRIES_PER_SECOND
}

/// At `seconds` the kernel sends a signal that tells the cause. At the hard limit, which the worker set, it kills.
fn allow(seconds: u64) {
    let maximum = getrlimit(Resource::Cpu).maximum;
    let below = maximum.map_or(seconds, |maximum| seconds.min(maximum.saturating_sub(1)).max(1));
    // A process may lower its limit, and raise it up to the maximum.
    let _ = setrlimit(Resource::Cpu, Rlimit { current: Some(below), maximum });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    #[test]
    fn what_is_allowed_grows_with_the_commit_and_with_the_setting() {
        let limits = CheckoutLimits::from(&settings::Source::default());
        let size = |n_entries, n_bytes| Size { n_entries, n_bytes };
        assert_eq!(fetch_seconds(limits, 0), 30);
        assert_eq!(fetch_seconds(limits, 400 << 20), 130);
        assert_eq!(checkout_seconds(limits, size(50, 1000)), 10);
        assert_eq!(checkout_seconds(limits, size(4000, 48 << 20)), 10 + 4 + 12);
        let short = CheckoutLimits { timeout_s: 2, ..limits };
        assert_eq!((fetch_seconds(short, 0), checkout_seconds(short, size(50, 1000))), (1, 1));
    }
}
