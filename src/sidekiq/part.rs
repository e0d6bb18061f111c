//! Reads a part of a queue, for the one process of the fleet that reads it for a purpose.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::{Identity, keys};
use crate::redis::{Redis, RedisError, Script};

static PART: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("part.lua")));

/// Life of the lock.
const LOCKED: Duration = Duration::from_secs(5);

/// Bytes of a part, and of the longest text that is looked at. Longer ones wait until they are in front.
const PART_BYTES: usize = 512 << 10;
const LONGEST: usize = 32 << 10;

/// A part of a queue.
pub(super) struct Part {
    /// The length of the queue.
    pub n_waiting: usize,
    /// How many jobs were read.
    pub n_read: usize,
    /// Their texts, the oldest first, without long ones.
    pub texts: Vec<Arc<[u8]>>,
}

impl Part {
    /// Reads `n` jobs of a queue behind the first `n_before`. `None` when another process has the lock.
    pub(super) async fn read(
        redis: &Redis,
        identity: &Identity,
        queue: &str,
        lock: String,
        n_before: usize,
        n: usize,
    ) -> Result<Option<Self>, RedisError> {
        let mut script = PART.key(keys::queue(queue));
        script.key(lock).arg(identity.to_string()).arg(LOCKED.as_millis() as u64);
        script.arg(n_before).arg(n).arg(PART_BYTES).arg(LONGEST);
        let part: Option<(usize, usize, Vec<Vec<u8>>)> = redis.script(&script).await?;
        Ok(part.map(|(n_waiting, n_read, texts)| Self {
            n_waiting,
            n_read,
            texts: texts.into_iter().map(Arc::from).collect(),
        }))
    }
}
