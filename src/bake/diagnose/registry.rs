//! What a registry's answer means: for a base image, a push or a cache.
//!
//! References and URLs in it are ignored: a customer chooses them.

use crate::reason::Reason;

/// Why a base image is not available. Docker Hub gives the same answer for a missing image and a private one.
pub(super) fn base_image(error: &str) -> Option<Reason> {
    let is_missing = error.ends_with(": not found") && !error.contains(" snapshot ")
        || ["pull access denied, repository does not exist", "manifest unknown"]
            .iter()
            .any(|words| error.contains(words));
    if is_missing { Some(Reason::BaseImageNotFound) } else { registry(error) }
}

/// The reason in a registry's answer; `None` when it is not known. Ignores references and URLs.
pub(super) fn registry(error: &str) -> Option<Reason> {
    let words: Vec<&str> = error.split_whitespace().filter(|word| !word.contains('/')).collect();
    let said = words.join(" ").to_ascii_lowercase();
    let says = |patterns: &[&str]| patterns.iter().any(|pattern| said.contains(pattern));
    if says(DENIED) {
        Some(Reason::RegistryDenied)
    } else if says(UNAVAILABLE) {
        Some(Reason::RegistryUnavailable)
    } else {
        None
    }
}

/// What BuildKit reports when a registry refuses the credentials, in lower case.
const DENIED: &[&str] = &[
    "401 unauthorized",
    "403 forbidden",
    "authorization failed",
    "access denied",
    "insufficient_scope",
    "no basic auth",
    // Our own sandbox refused the port: it is not in `sandbox.registry_ports`.
    "connect: permission denied",
];

/// What BuildKit reports when a registry is down, failing or overloaded, in lower case.
const UNAVAILABLE: &[&str] = &[
    "429 too many requests",
    "toomanyrequests",
    "500 internal",
    "502 bad",
    "503 service",
    "504 gateway",
    "connection refused",
    "no such host",
    "i/o timeout",
    "connection reset",
    "tls handshake",
    "dial tcp",
];
