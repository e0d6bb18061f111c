//! `[lease]`: when a silent worker counts as dead.

use std::time::Duration;

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// When a silent worker counts as dead.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lease {
    /// Life of a worker's lease. The worker renews it six times in that period. A worker that is silent for longer is suspected
    /// dead; other workers requeue its jobs after half that time again.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(30) }
    }
}

impl Lease {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.ttl < Duration::from_secs(1) {
            return refuse("lease.ttl", "must be at least 1s");
        }
        Ok(())
    }
}
