//! Reads a part of a queue, for the one process of the fleet that reads it for a purpose.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::{Identity, keys};
use crate::redis::{Redis, RedisError, Script};

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("part.lua")));

/// Jobs in a part: of a queue from its head on, and of its end, where new jobs are.
pub(super) const PART: usize = 800;
pub(super) const NEWEST: usize = 200;

/// The pause of a process where another one reads the queue.
pub(super) const BESIDE: Duration = Duration::from_secs(2);

/// Bytes of a part.
const PART_BYTES: usize = 512 << 10;

/// Which part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// How many jobs at the head are in front of it.
    pub n_before: usize,
    /// How many jobs it has at most.
    pub n: usize,
    /// The longest text that is returned, in bytes.
    pub longest: usize,
    /// Life of the lock.
    pub locked: Duration,
}

/// A part of a queue.
#[derive(Debug)]
pub(super) struct Part {
    /// The length of the queue.
    pub n_waiting: usize,
    /// How many jobs were read.
    pub n_read: usize,
    /// Their texts, the oldest first, without long ones.
    pub texts: Vec<Arc<[u8]>>,
}

impl Part {
    /// Reads a part of a queue. `None` when another process has the lock.
    pub(super) async fn read(
        redis: &Redis,
        identity: &Identity,
        queue: &str,
        lock: &str,
        extent: Extent,
    ) -> Result<Option<Self>, RedisError> {
        let mut script = READ.key(keys::queue(queue));
        script.key(lock).arg(identity.to_string()).arg(extent.locked.as_millis() as u64);
        script.arg(extent.n_before).arg(extent.n).arg(PART_BYTES).arg(extent.longest);
        let part: Option<(usize, usize, Vec<Vec<u8>>)> = redis.script(&script).await?;
        Ok(part.map(|(n_waiting, n_read, texts)| Self {
            n_waiting,
            n_read,
            texts: texts.into_iter().map(Arc::from).collect(),
        }))
    }
}
