//! Names that a definition gives to addresses.
//!
//! buildx reads them only during the build, and quotes the field in its error. So each is checked before, as buildx's
//! `toBuildkitExtraHosts` does. Only an engine on the same machine knows the address of `host-gateway`.

use std::net::IpAddr;

use serde_json::Value;

use super::{Refusal, Rules};

/// The address of the builder's host.
const GATEWAY: &str = "host-gateway";

impl Rules<'_> {
    pub(super) fn extra_hosts(&mut self, value: Value) -> Result<Value, Refusal> {
        let Value::Object(hosts) = &value else { return Err(self.invalid("extra-hosts", "expected an object")) };
        for (name, addresses) in hosts {
            let refused = |message: &str| self.invalid(&format!("extra-hosts.{}", name.escape_debug()), message);
            // buildx ignores a name without a value.
            if addresses.is_null() {
                continue;
            }
            if !is_host(name) {
                return Err(refused("expected a host name of letters, digits, -, _ and ."));
            }
            let text = addresses.as_str().ok_or_else(|| refused("expected a string"))?;
            if text != GATEWAY && !text.split(',').all(is_address) {
                let example = format!("write the address of {name}, such as 10.0.0.7");
                return Err(refused(&format!("expected an IP address or {GATEWAY}, found {text:?}; {example}")));
            }
            if text == GATEWAY {
                let local =
                    refused(&format!("{GATEWAY} is not known on this builder; write the IP address of the host"));
                self.validated.local.get_or_insert(local);
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
