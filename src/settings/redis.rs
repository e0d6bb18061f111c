//! `[redis]`: the connection to Sidekiq's Redis.

use std::path::PathBuf;
use std::str::Utf8Error;
use std::time::Duration;

use percent_encoding::percent_decode_str;
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

/// A user or a password of a URL, as it is sent. As in a form, a plus sign stands for a space.
pub fn decoded(text: &str) -> Result<String, Utf8Error> {
    let text = text.replace('+', " ");
    Ok(percent_decode_str(&text).decode_utf8()?.into_owned())
}

/// The password in a URL of Redis or of a proxy, as written and decoded. A user without a password is the password.
pub fn passwords_of(url: &Secret) -> Vec<Secret> {
    let rest = url.expose().split_once("://").map_or(url.expose(), |(_, rest)| rest);
    let in_query = rest.split(['?', '&']).skip(1).find_map(|field| field.strip_prefix("pass="));
    let of_user = rest.rsplit_once('@').map(|(user, _)| user.split_once(':').map_or(user, |(_, password)| password));
    let Some(password) = of_user.or(in_query).filter(|password| !password.is_empty()) else { return Vec::new() };
    // A password that is not UTF-8 is never sent.
    let sent = decoded(password).ok().filter(|sent| sent != password);
    [Some(password.to_owned()), sent].into_iter().flatten().map(Secret::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_url_is_a_secret_and_the_rest_is_not() {
        for (url, expected) in [
            ("redis://:pa:ss@host:6379/0", &["pa:ss"][..]),
            ("rediss://user:p@ss@host", &["p@ss"]),
            ("redis://:p%40ss+1@host", &["p%40ss+1", "p@ss 1"]),
            ("redis://user@host", &["user"]),
            ("unix:///run/redis.sock?db=1&pass=hunter2", &["hunter2"]),
            ("unix://:hunter2@/run/redis.sock", &["hunter2"]),
            ("/run/redis.sock?pass=hunter2", &["hunter2"]),
            ("redis://host:6379/0", &[]),
        ] {
            let found = passwords_of(&Secret::new(url));
            assert_eq!(found.iter().map(Secret::expose).collect::<Vec<_>>(), expected, "{url}");
        }
    }
}
