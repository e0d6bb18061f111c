//! `[health]`: what the worker answers over HTTP.

use std::net::SocketAddr;

use serde::Deserialize;

/// What the worker answers over HTTP: to Kubernetes, Prometheus and autoscalers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Address that serves `/live`, `/ready`, `/metrics` and `/scale`, such as `0.0.0.0:8080`. Without it, the worker serves none of
    /// them and records no metrics. It shows names of accounts to everyone who can connect.
    pub listen: Option<SocketAddr>,
}
