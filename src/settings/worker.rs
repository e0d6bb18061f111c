//! `[state]`, `[shutdown]`, `[health]` and `[lease]`: the worker as a process on its machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// Where the worker keeps files.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Directory of mirrors, worktrees and working directories. It is a cache: it may be lost at any time. Machines must not
    /// share it.
    pub directory: PathBuf,
    /// Bytes on disk of all mirrors together. Above it, the worker removes the least recently used mirrors, never one in use.
    pub mirrors_max_bytes: u64,
    /// Free bytes on that disk. Below it, the worker removes mirrors, then fetches no jobs until there is room.
    pub min_free_bytes: u64,
}

/// How the worker stops.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long running builds may continue after TERM. Then the worker kills them and requeues their jobs, which takes a few
    /// seconds: allow ten seconds more before you kill the worker.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

/// What Kubernetes probes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Address that serves `/live` and `/ready`, such as `0.0.0.0:8080`. Without it, the worker serves neither.
    pub listen: Option<SocketAddr>,
}

/// When a silent worker counts as dead.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lease {
    /// Life of a worker's lease. The worker renews it six times in that period. A worker that is silent for longer is suspected
    /// dead; other workers requeue its jobs after half that time again.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

impl Default for State {
    fn default() -> Self {
        Self { directory: "/var/lib/sidebake".into(), mirrors_max_bytes: 20 << 30, min_free_bytes: 2 << 30 }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(15 * 60) }
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(30) }
    }
}

impl State {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if !self.directory.is_absolute() {
            return refuse("state.directory", "must be an absolute path");
        }
        Ok(())
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
