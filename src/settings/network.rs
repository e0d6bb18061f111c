//! `[network]`: what connections to other systems have in common.

use std::path::PathBuf;

use serde::Deserialize;

/// What connections to GitHub, the git host, registries, Rails and the log archive have in common. Which of them go through a
/// proxy is in the environment: see docs/operating.md, "Proxies".
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// PEM file of certificates that the worker and its `docker-buildx` trust beside the system's. A private authority goes here:
    /// of GitHub Enterprise Server, of a registry, or of a proxy that opens TLS connections. Redis and Kubernetes have files of
    /// their own.
    pub ca_file: Option<PathBuf>,
}
