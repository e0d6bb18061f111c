//! The fence: whether a job is still owned, asked where something follows that cannot be taken back.
//!
//! Token and text together are the proof; Redis compares both. The end of a job has its fence in the turn.

use std::sync::LazyLock;

use super::Identity;
use super::turn::UnitOfWork;
use crate::redis::{Redis, RedisError, Script};

static FENCE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("fence.lua")));
static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("begin.lua")));

/// Whether the unit is still owned.
pub async fn holds(redis: &Redis, identity: &Identity, unit: &UnitOfWork) -> Result<bool, RedisError> {
    let mut script = FENCE.key(identity.inflight_key());
    script.arg(unit.token.to_string()).arg(&*unit.text);
    redis.script(&script).await
}

/// Pushes a callback in the middle of a job; returns whether the job was still owned.
///
/// Sent once: when the answer is lost, the moment may be lost with it, and the end is told all the same.
pub async fn announce(
    redis: &Redis,
    identity: &Identity,
    unit: &UnitOfWork,
    queue: &str,
    text: &str,
) -> Result<bool, RedisError> {
    let mut script = FENCE.key(identity.inflight_key());
    script.key("queues").key(format!("queue:{queue}"));
    script.arg(unit.token.to_string()).arg(&*unit.text).arg(text);
    redis.script(&script).await
}

/// Puts on record that idle units begin; returns for each whether it is still owned, and so may begin.
///
/// May be sent any number of times.
pub(super) async fn begin(redis: &Redis, identity: &Identity, units: &[&UnitOfWork]) -> Result<Vec<bool>, RedisError> {
    let mut script = BEGIN.key(identity.inflight_key());
    for unit in units {
        script.arg(unit.token.to_string()).arg(&*unit.text);
    }
    redis.script(&script).await
}
