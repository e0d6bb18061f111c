//! Which shard of a builder takes a build: one with the application's cache and with room, its home first. Else the shard with the
//! fewest builds.
//!
//! Pure. A shard may run a bounded multiple of the mean, as in consistent hashing with bounded loads (Mirrokni, Thorup and
//! Zadimoghaddam, 2016). But homes are remembered and not hashed: then the load is more even, and a shard that is added moves
//! no application (the tests compare both). A hash decides only between shards with equally few builds, by rendezvous hashing
//! (Thaler and Ravishankar, 1998).

use std::cmp::Reverse;

use sha2::{Digest, Sha256};

use crate::shard::Bound;

/// How many builds a shard may run, in percent of the mean. In the simulation of the tests, 97 of 100 builds then find their
/// cache, and no shard gets more than 1.4 times the mean.
const PERCENT_OF_MEAN: u32 = 175;

/// How many builds a shard may run, of which it may run `least` in any case.
pub(super) fn bound(least: u32) -> Bound {
    Bound { least, percent: PERCENT_OF_MEAN }
}

/// The order of the shards for an application when nothing else distinguishes them: places in `shards`.
pub(super) fn order(application: &str, shards: &[&str]) -> Vec<usize> {
    let weight = |shard: &str| <[u8; 32]>::from(Sha256::digest(format!("{application}\n{shard}")));
    let mut order: Vec<usize> = (0..shards.len()).collect();
    order.sort_by_cached_key(|place| Reverse(weight(shards[*place])));
    order
}

/// The place of the shard that takes a build. `running`: the builds of each shard that takes builds, in the application's order.
/// `known`: the places of those that have its cache, its home first.
///
/// A worker without Redis knows none. With Redis, `shard.lua` in [`crate::sidekiq`] chooses the same way.
pub fn choose(running: &[u32], known: &[usize], bound: Bound) -> usize {
    let most = bound.of(running.iter().sum(), running.len());
    let has_room = |place: &usize| running.get(*place).is_some_and(|n| *n < most);
    let least_loaded = || (0..running.len()).min_by_key(|place| running[*place]).unwrap_or(0);
    known.iter().copied().find(has_room).unwrap_or_else(least_loaded)
}

#[cfg(test)]
mod tests;
