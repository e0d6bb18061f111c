//! `[shutdown]`: how the worker stops.

use std::time::Duration;

use serde::Deserialize;

/// How the worker stops.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long running builds may continue after TERM. Then the worker kills them and requeues their jobs, which takes a few
    /// seconds: allow ten seconds more before you kill the worker.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(15 * 60) }
    }
}
