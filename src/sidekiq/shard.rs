//! Which shard of a builder a build gets, by the running builds of all workers.

use std::sync::LazyLock;

use super::inflight::UnitOfWork;
use super::{Identity, keys};
use crate::redis::{Redis, RedisError, Script};
use crate::shard::{ShardAnswer, ShardQuestion};

static SHARD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("shard.lua")));

/// Chooses the shard of a running build, and counts the build there in place of an earlier shard. `None` when this process no
/// longer owns the job.
///
/// It may be sent any number of times.
pub async fn choose(
    redis: &Redis,
    identity: &Identity,
    unit: &UnitOfWork,
    question: &ShardQuestion,
) -> Result<Option<ShardAnswer>, RedisError> {
    let ShardQuestion { builder, application, shards, n_able, bound } = question;
    let mut script = SHARD.key(keys::shards(builder));
    script.key(keys::home(builder, application)).key(keys::inflight(identity));
    script
        .arg(identity.to_string())
        .arg(unit.token.as_str())
        .arg(bound.least)
        .arg(bound.percent)
        .arg(n_able)
        .arg(shards);
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
