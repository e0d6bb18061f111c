//! Which shard of a builder a build gets, by the running builds of all workers.

use std::sync::LazyLock;

use super::inflight::UnitOfWork;
use super::{Identity, keys};
use crate::redis::{Redis, RedisError, Script};

static SHARD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("shard.lua")));

/// What chooses a shard.
#[derive(Clone, Copy, Debug)]
pub struct ShardQuestion<'a> {
    /// The builder's name in the configuration.
    pub builder: &'a str,
    /// Names the application, whose builds share their cache.
    pub application: &'a str,
    /// All shards of the builder; those that take the build come first.
    pub shards: &'a [String],
    /// How many of them take it; at least one.
    pub n_able: usize,
    /// How many builds a shard may run: so many in any case, and this percentage of the mean.
    pub bound: [u32; 2],
}

/// The shard that a build got. Places are those in the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardAnswer {
    /// Its place.
    pub place: usize,
    /// The place of the application's home; `None` if it had none.
    pub home: Option<usize>,
    /// How many other builds the home runs.
    pub n_on_home: u32,
    /// How many builds each shard may run.
    pub most: u32,
}

/// Chooses the shard of a running build, and counts the build there in place of an earlier shard. `None` when this process no
/// longer owns the job.
///
/// It may be sent any number of times.
pub async fn choose(
    redis: &Redis,
    identity: &Identity,
    unit: &UnitOfWork,
    question: ShardQuestion<'_>,
) -> Result<Option<ShardAnswer>, RedisError> {
    let ShardQuestion { builder, application, shards, n_able, bound } = question;
    let mut script = SHARD.key(keys::shards(builder));
    script.key(keys::home(builder, application)).key(keys::inflight(identity));
    script.arg(identity.to_string()).arg(unit.token.as_str()).arg(&bound).arg(n_able).arg(shards);
    let answer: Vec<i64> = redis.script(&script).await?;
    let count = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
    let place = |number: i64| usize::try_from(number).ok().filter(|place| *place < shards.len());
    Ok(match answer[..] {
        [chosen, home, n_on_home, most] => place(chosen).map(|chosen| ShardAnswer {
            place: chosen,
            home: place(home),
            n_on_home: count(n_on_home),
            most: count(most),
        }),
        _ => None,
    })
}
