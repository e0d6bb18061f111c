//! Which settings of a builder go together.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Builder;
use crate::field_error::{FieldError, refuse};
use crate::name::is_name;
use crate::settings::Driver;
use crate::settings::accounts::check_names;

/// Checks every builder, and that no two of them are the same Deployment: their accounts would only seem to be apart.
pub(in crate::settings) fn check_all(builders: &BTreeMap<String, Builder>) -> Result<(), FieldError> {
    let mut deployments = BTreeMap::new();
    for (name, builder) in builders {
        builder.check(name)?;
        let deployment = (&builder.kubeconfig, &builder.context, &builder.namespace, builder.node_name(name));
        if builder.driver == Driver::Kubernetes
            && let Some(other) = deployments.insert(deployment, name)
        {
            return refuse(format!("builders.{name}"), format!("same Deployment as builders.{other}"));
        }
    }
    Ok(())
}

impl Builder {
    fn check(&self, name: &str) -> Result<(), FieldError> {
        let refuse_key = |key: &str, message: &str| refuse(format!("builders.{name}.{key}"), message);
        if !is_name(name) {
            let message = "a builder's name consists of letters, digits, -, _ and .";
            return refuse(format!("builders.{name}"), message);
        }
        let sticky_path = format!("builders.{name}.sticky_path");
        self.sticky_path.iter().try_for_each(|pattern| check_names(&sticky_path, pattern, &[]))?;
        if self.driver != Driver::Kubernetes
            && let Some(key) = self.only_for_kubernetes()
        {
            return refuse_key(key, "applies only to the kubernetes driver");
        }
        match (self.driver, self.endpoint.as_deref()) {
            (Driver::Kubernetes, Some(_)) => {
                refuse_key("endpoint", "does not apply to the kubernetes driver; set kubeconfig")
            }
            (Driver::Kubernetes, None) => self.check_kubernetes(&refuse_key),
            (Driver::Remote, Some(url)) if url.starts_with("tcp://") => Ok(()),
            (Driver::Remote, _) => refuse_key("endpoint", "required for the remote driver: tcp://host:port"),
            (_, Some(url)) if !(url.starts_with("tcp://") || url.starts_with("unix:///")) => {
                refuse_key("endpoint", "must be unix:///path or tcp://host:port")
            }
            _ => Ok(()),
        }
    }

    fn check_kubernetes(&self, refuse_key: &impl Fn(&str, &str) -> Result<(), FieldError>) -> Result<(), FieldError> {
        if !self.options.is_empty() {
            return refuse_key(
                "options",
                "does not apply to the kubernetes driver, whose options are settings of their own",
            );
        }
        if self.replicas == Some(0) {
            return refuse_key("replicas", "must be at least 1");
        }
        if self.context.is_some() && self.kubeconfig.is_none() {
            return refuse_key("context", "requires kubeconfig");
        }
        // docker-buildx and Kubernetes exchange a keepalive every 5 s.
        if self.stall_timeout < Duration::from_secs(10) {
            return refuse_key("stall_timeout", "must be at least 10s");
        }
        Ok(())
    }

    fn only_for_kubernetes(&self) -> Option<&'static str> {
        let set = [
            ("kubeconfig", self.kubeconfig.is_some()),
            ("context", self.context.is_some()),
            ("namespace", self.namespace.is_some()),
            ("replicas", self.replicas.is_some()),
            ("rootless", self.rootless),
            ("requests", !self.requests.is_empty()),
            ("limits", !self.limits.is_empty()),
            ("node_selector", !self.node_selector.is_empty()),
            ("tolerations", !self.tolerations.is_empty()),
            ("annotations", !self.annotations.is_empty()),
            ("environment", !self.environment.is_empty()),
        ];
        set.into_iter().find_map(|(key, is_set)| is_set.then_some(key))
    }
}
