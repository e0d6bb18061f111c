//! The fence: asks Redis whether this process still owns a job, before anything that cannot be taken back.
//!
//! Redis compares token and text. A settlement needs no question: the turn compares them itself.

use std::sync::LazyLock;

use super::inflight::UnitOfWork;
use super::{Identity, keys};
use crate::redis::{Redis, RedisError, Script};

static FENCE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("fence.lua")));
static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("begin.lua")));

/// Whether this process still owns the unit.
pub async fn holds(redis: &Redis, identity: &Identity, unit: &UnitOfWork) -> Result<bool, RedisError> {
    let mut script = FENCE.key(keys::inflight(identity));
    script.arg(unit.token.as_str()).arg(&*unit.text);
    redis.script(&script).await
}

/// Pushes a callback of a running job; returns whether this process still owned the job.
///
/// It is sent once. When the answer is lost, this callback may be lost; the one at the end of the job is not.
pub async fn announce(
    redis: &Redis,
    identity: &Identity,
    unit: &UnitOfWork,
    queue: &str,
    text: &str,
) -> Result<bool, RedisError> {
    let mut script = FENCE.key(keys::inflight(identity));
    script.key(keys::QUEUES).key(keys::queue(queue));
    script.arg(unit.token.as_str()).arg(&*unit.text).arg(text);
    redis.script(&script).await
}

/// Records that idle units begin; returns for each whether this process still owns it, so that it may begin.
///
/// It may be sent any number of times.
pub(super) async fn begin(redis: &Redis, identity: &Identity, units: &[&UnitOfWork]) -> Result<Vec<bool>, RedisError> {
    let mut script = BEGIN.key(keys::inflight(identity));
    for unit in units {
        script.arg(unit.token.as_str()).arg(&*unit.text);
    }
    redis.script(&script).await
}
