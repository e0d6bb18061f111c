//! `[redis]`: the connection to Sidekiq's Redis.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::SHORTEST;
use crate::field_error::{FieldError, refuse};
use crate::secret::Secret;

/// The connection to Sidekiq's Redis.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// `redis://`, `rediss://` (TLS) or `unix://` URL, with user and password where needed, as Ruby's redis-client reads it.
    /// `REDIS_URL`, or the variable that `REDIS_PROVIDER` names, also sets it. With `sentinels`, the host is the name of the master.
    pub url: Secret,
    /// `redis://` or `rediss://` URLs of Redis Sentinel, each with its own user and password.
    pub sentinels: Vec<Secret>,
    /// PEM file of the certificates that sign the server's certificate, or of that certificate itself. Replaces the system's
    /// certificates.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate, for a server that asks for one. Requires `client_key_file`.
    pub client_certificate_file: Option<PathBuf>,
    /// PEM file of the client certificate's key.
    pub client_key_file: Option<PathBuf>,
    /// Timeout of one command. After it, the worker closes the connection and opens a new one.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: Secret::new("redis://127.0.0.1:6379/0"),
            sentinels: Vec::new(),
            ca_file: None,
            client_certificate_file: None,
            client_key_file: None,
            timeout: Duration::from_secs(5),
        }
    }
}

impl Redis {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.client_certificate_file.is_some() != self.client_key_file.is_some() {
            return refuse("redis", "set both client_certificate_file and client_key_file, or neither");
        }
        if self.timeout < SHORTEST {
            return refuse("redis.timeout", "must be at least 50ms");
        }
        Ok(())
    }
}
