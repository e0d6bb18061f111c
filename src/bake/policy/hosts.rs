//! Names that a definition gives to addresses.
//!
//! buildx reads them only during the build, and quotes the field in its error. So each is checked before, as buildx's
//! `toBuildkitExtraHosts` does.

use std::net::IpAddr;

use serde_json::Value;

use super::{FieldError, Rules};

/// The address of the builder's host.
const GATEWAY: &str = "host-gateway";

impl Rules<'_> {
    pub(super) fn extra_hosts(&self, value: Value) -> Result<Value, FieldError> {
        let Value::Object(hosts) = &value else { return Err(self.refusal("extra-hosts", "expected an object")) };
        for (name, addresses) in hosts {
            let refused = |message: &str| self.refusal(&format!("extra-hosts.{}", name.escape_debug()), message);
            // buildx ignores a name without a value.
            if addresses.is_null() {
                continue;
            }
            if !is_host(name) {
                return Err(refused("expected a host name of letters, digits, -, _ and ."));
            }
            let text = addresses.as_str().ok_or_else(|| refused("expected a string"))?;
            if text != GATEWAY && !text.split(',').all(is_address) {
                return Err(refused(&format!("expected an IP address or {GATEWAY}, found {text:?}")));
            }
        }
        Ok(value)
    }
}

fn is_host(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// An IPv4 or IPv6 address, also in brackets.
fn is_address(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().is_ok()
}
