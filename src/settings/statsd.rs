//! `[statsd]`: metrics for StatsD and DogStatsD, by the names of Sidekiq Pro.

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// Metrics for StatsD and DogStatsD, by the names of Sidekiq Pro. Prometheus' are at `health.listen`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Statsd {
    /// Where the agent listens on UDP, such as `127.0.0.1:8125`. Without it, nothing is sent. A name is looked up once.
    pub address: Option<String>,
    /// The start of every name: with `builds`, the worker sends `builds.jobs.count`.
    pub namespace: String,
    /// Tags of every metric, such as `["env:production"]`.
    pub tags: Vec<String>,
}

impl Statsd {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if let Some(address) = &self.address
            && !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return refuse("statsd.address", format!("{address:?} is not HOST:PORT"));
        }
        // The characters that separate the parts of a packet.
        let is_part = |text: &str| !text.contains(['|', ',', '@', '\n', '#']);
        if !is_part(&self.namespace) || self.namespace.contains(':') {
            return refuse(
                "statsd.namespace",
                format!("{:?} has a character that StatsD does not allow", self.namespace),
            );
        }
        match self.tags.iter().find(|tag| tag.is_empty() || !is_part(tag)) {
            Some(tag) => refuse("statsd.tags", format!("{tag:?} is not a valid tag; write NAME:VALUE")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_and_a_tag_has_no_separator() {
        let refused = |statsd: Statsd| statsd.check().err().map(|error| error.to_string());
        let at = |address: &str| Statsd { address: Some(address.into()), ..Statsd::default() };
        for (address, is_good) in [
            ("127.0.0.1:8125", true),
            ("agent:8125", true),
            ("[::1]:8125", true),
            ("agent", false),
            (":1", false),
            ("a:99999", false),
        ] {
            assert_eq!(refused(at(address)).is_none(), is_good, "{address}");
        }
        for (tag, is_good) in [("env:production", true), ("canary", true), ("", false), ("a,b", false), ("a|b", false)]
        {
            assert_eq!(refused(Statsd { tags: vec![tag.into()], ..Statsd::default() }).is_none(), is_good, "{tag}");
        }
        assert!(refused(Statsd { namespace: "a:b".into(), ..Statsd::default() }).is_some());
    }
}
