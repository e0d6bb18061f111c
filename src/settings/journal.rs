//! `[journal]`: the live log of each build in Redis.

use std::time::Duration;

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};
use crate::secret::Secret;

/// A smaller stream has no room for both the output and the events of a build.
const LEAST_BUILD_BYTES: usize = 64 << 10;

/// A step with less keeps no useful output.
const LEAST_STEP_BYTES: usize = 4 << 10;

/// The live log of each build: a Redis Stream.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// Whether the worker writes the events and output of each build to a Redis Stream, and its record beside it.
    pub stream: bool,
    /// URL of the Redis for these streams and records. Default: `redis.url`. The other settings of `redis` apply, except `sentinels`.
    pub redis_url: Option<Secret>,
    /// How long a stream stays after the end of its build.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// How long the record of a build stays after its end, for `sidebake show`.
    #[serde(with = "humantime_serde")]
    pub record_ttl: Duration,
    /// Bytes of output that a stream keeps of one step: half for its beginning, half for its end.
    pub step_bytes: usize,
    /// Bytes of the stream of one build, with all its attempts.
    pub build_bytes: usize,
    /// Bytes of all builds of a worker that wait for Redis. When Redis does not take them, more output is left out.
    pub pending_bytes: usize,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            stream: true,
            redis_url: None,
            ttl: Duration::from_secs(24 * 60 * 60),
            record_ttl: Duration::from_secs(7 * 24 * 60 * 60),
            step_bytes: 512 << 10,
            build_bytes: 2 << 20,
            pending_bytes: 8 << 20,
        }
    }
}

impl Journal {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        for (field, ttl) in [("journal.ttl", self.ttl), ("journal.record_ttl", self.record_ttl)] {
            if ttl < Duration::from_secs(1) {
                return refuse(field, "must be at least 1s");
            }
        }
        for (field, value, least) in [
            ("journal.step_bytes", self.step_bytes, LEAST_STEP_BYTES),
            ("journal.build_bytes", self.build_bytes, LEAST_BUILD_BYTES),
            ("journal.pending_bytes", self.pending_bytes, LEAST_BUILD_BYTES),
        ] {
            if value < least {
                return refuse(field, format!("must be at least {least}"));
            }
        }
        Ok(())
    }
}
