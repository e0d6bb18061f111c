//! `[last_builds]`: what is remembered of each build, to tell why a step of the next one was not cached.

use std::time::Duration;

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// What is remembered of each build.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LastBuilds {
    /// Whether the worker remembers in Redis what the last build of each target depended on. The next report then says why a step
    /// was not cached. Needs the App's private key, which keys the hashes.
    pub enabled: bool,
    /// How long a build is remembered.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

impl Default for LastBuilds {
    fn default() -> Self {
        Self { enabled: true, ttl: Duration::from_secs(14 * 24 * 60 * 60) }
    }
}

impl LastBuilds {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.ttl < Duration::from_secs(1) {
            return refuse("last_builds.ttl", "must be at least 1s");
        }
        Ok(())
    }
}
