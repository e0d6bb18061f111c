//! `[traces]`: where traces are sent.

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// Traces in the form of OpenTelemetry.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Traces {
    /// Base URL of a collector that takes OTLP over HTTP, such as `http://collector:4318`. Without it, nothing is sent. Headers of the
    /// requests come from the standard variable `OTEL_EXPORTER_OTLP_HEADERS`.
    pub endpoint: Option<String>,
    /// Share of the jobs that are traced when Rails has not decided, from `0.0` to `1.0`.
    pub sample: f64,
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: None, sample: 1.0 }
    }
}

impl Traces {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if let Some(endpoint) = &self.endpoint
            && !["http://", "https://"]
                .iter()
                .any(|scheme| endpoint.len() > scheme.len() && endpoint.starts_with(scheme))
        {
            return refuse(
                "traces.endpoint",
                format!("{endpoint:?} is not a URL that begins with http:// or https://"),
            );
        }
        // Its user and password would be sent to nobody, and shown in the log.
        let host = self.endpoint.as_deref().and_then(|endpoint| endpoint.split('/').nth(2));
        if host.is_some_and(|host| host.contains('@')) {
            return refuse("traces.endpoint", "it must not have a user; set OTEL_EXPORTER_OTLP_HEADERS instead");
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return refuse("traces.sample", format!("{} is not between 0.0 and 1.0", self.sample));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_and_a_share_is_a_part() {
        let refused = |endpoint: Option<&str>, sample| {
            Traces { endpoint: endpoint.map(str::to_owned), sample }.check().err().map(|error| error.to_string())
        };
        for endpoint in [None, Some("http://collector:4318"), Some("https://otlp.example/prefix")] {
            assert_eq!(refused(endpoint, 0.5), None);
        }
        for endpoint in ["collector:4318", "grpc://collector:4317", "http://"] {
            assert!(refused(Some(endpoint), 1.0).is_some_and(|error| error.contains(endpoint)), "{endpoint}");
        }
        let secret = refused(Some("https://user:SECRET@otlp.example"), 1.0).unwrap_or_default();
        assert!(secret.contains("OTEL_EXPORTER_OTLP_HEADERS") && !secret.contains("SECRET"), "{secret}");
        for sample in [-0.1, 1.1, f64::NAN] {
            assert!(refused(None, sample).is_some(), "{sample}");
        }
    }
}
