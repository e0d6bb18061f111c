//! `[health]`: what Kubernetes probes.

use std::net::SocketAddr;

use serde::Deserialize;

/// What Kubernetes probes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Address that serves `/live` and `/ready`, such as `0.0.0.0:8080`. Without it, the worker serves neither.
    pub listen: Option<SocketAddr>,
}
