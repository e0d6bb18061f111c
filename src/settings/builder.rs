//! A builder: where BuildKit is, how it is sized, and whose builds it takes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::accounts::check_names;
use super::{NamePattern, Pattern, SettingsError};

/// One builder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builder {
    /// buildx's driver.
    pub driver: Driver,
    /// `docker`, `docker-container`: `unix://` or `tcp://` address of the engine. `remote`: `tcp://` address of BuildKit.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The accounts whose builds it takes.
    #[serde(default = "everybody")]
    pub accounts: Vec<NamePattern>,
    /// Name of the builder's node, and so of its Deployment; default: the builder's name and `0`.
    #[serde(default)]
    pub node: Option<String>,
    /// Working directory of the bake, by which the kubernetes driver chooses the pod. The same on every worker.
    #[serde(default)]
    pub sticky_path: Option<Pattern>,
    /// `kubernetes`: how a build gets its pod.
    #[serde(default)]
    pub balance: Balance,
    /// `kubernetes`: the kubeconfig; without one, the service account of the worker's own pod.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// `kubernetes`: the context of the kubeconfig; default: its current one.
    #[serde(default)]
    pub context: Option<String>,
    /// `kubernetes`: the namespace; default: that of the context or service account.
    #[serde(default)]
    pub namespace: Option<String>,
    /// `kubernetes`: pods.
    #[serde(default)]
    pub replicas: Option<u32>,
    /// BuildKit's image.
    #[serde(default)]
    pub image: Option<String>,
    /// `kubernetes`: without root in the pods.
    #[serde(default)]
    pub rootless: bool,
    /// `kubernetes`: resources that a pod asks for, such as `cpu = "2"`.
    #[serde(default)]
    pub requests: BTreeMap<String, String>,
    /// `kubernetes`: resources that a pod may use.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
    /// `kubernetes`: labels of the nodes that pods may run on.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// `kubernetes`: taints that pods put up with.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// `kubernetes`: annotations of the pods.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// `kubernetes`: environment of BuildKit.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// `kubernetes`, `docker-container`: BuildKit's configuration, buildkitd.toml.
    #[serde(default)]
    pub buildkitd_config: Option<PathBuf>,
    /// `kubernetes`: how long a pod that is to go may finish its builds.
    #[serde(default, with = "humantime_serde")]
    pub grace_period: Option<Duration>,
    /// `kubernetes`: how long a build, or `builder ensure`, waits for a ready pod.
    #[serde(default = "two_minutes", with = "humantime_serde")]
    pub timeout: Duration,
    /// `kubernetes`: how long a pod may not be heard from during a build.
    #[serde(default = "twenty_seconds", with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// `remote`, `docker-container`: further driver options, as in `docker buildx create --driver-opt`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// buildx's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// BuildKit pods.
    Kubernetes,
    /// A BuildKit that somebody runs.
    Remote,
    /// A BuildKit container on a Docker engine.
    DockerContainer,
    /// The BuildKit inside a Docker engine.
    Docker,
}

impl Driver {
    /// Its name for `docker buildx create --driver`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Remote => "remote",
            Self::DockerContainer => "docker-container",
            Self::Docker => "docker",
        }
    }
}

/// How a build gets its pod: the driver option `loadbalance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The same pod for the same repository, as long as the pods stay the same: where its cache is.
    #[default]
    Sticky,
    /// Any pod.
    Random,
}

impl Balance {
    /// The value of the driver option.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sticky => "sticky",
            Self::Random => "random",
        }
    }
}

/// A taint that pods put up with; the fields are Kubernetes' own.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// The taint's key; every key when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// `Exists` or `Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    /// The taint's value, for `Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`; every effect when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<String>,
}

impl Builder {
    /// A builder with every default.
    pub fn new(driver: Driver, endpoint: Option<String>) -> Self {
        Self {
            driver,
            endpoint,
            accounts: everybody(),
            node: None,
            sticky_path: None,
            balance: Balance::Sticky,
            kubeconfig: None,
            context: None,
            namespace: None,
            replicas: None,
            image: None,
            rootless: false,
            requests: BTreeMap::new(),
            limits: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            annotations: BTreeMap::new(),
            environment: BTreeMap::new(),
            buildkitd_config: None,
            grace_period: None,
            timeout: two_minutes(),
            stall_timeout: twenty_seconds(),
            options: BTreeMap::new(),
        }
    }

    /// The node's name, and so that of the Deployment: buildx's own default unless it is set.
    pub fn node_name(&self, name: &str) -> String {
        self.node.clone().unwrap_or_else(|| format!("{name}0"))
    }

    /// How closely the configuration says that this builder takes the account's builds; `None` when it does not.
    pub fn takes(&self, account: &str) -> Option<(bool, usize)> {
        self.accounts.iter().filter(|pattern| pattern.matches(account)).map(NamePattern::closeness).max()
    }

    pub(super) fn check(&self, name: &str) -> Result<(), SettingsError> {
        let refuse = |key: &str, message: &str| {
            Err(SettingsError::Key { path: format!("builders.{name}.{key}"), message: message.into() })
        };
        if !crate::job::is_name(name) {
            let message = "a builder's name has letters, digits, -, _ and .".into();
            return Err(SettingsError::Key { path: format!("builders.{name}"), message });
        }
        let sticky_path = format!("builders.{name}.sticky_path");
        self.sticky_path.iter().try_for_each(|pattern| check_names(&sticky_path, pattern, &[]))?;
        if self.driver != Driver::Kubernetes
            && let Some(key) = self.only_for_kubernetes()
        {
            return refuse(key, "is for the kubernetes driver");
        }
        match (self.driver, self.endpoint.as_deref()) {
            (Driver::Kubernetes, Some(_)) => {
                refuse("endpoint", "is not for the kubernetes driver, which has a kubeconfig")
            }
            (Driver::Kubernetes, None) => self.check_kubernetes(&refuse),
            (Driver::Remote, Some(url)) if url.starts_with("tcp://") => Ok(()),
            (Driver::Remote, _) => refuse("endpoint", "is needed for the remote driver: tcp://host:port"),
            (_, Some(url)) if !(url.starts_with("tcp://") || url.starts_with("unix:///")) => {
                refuse("endpoint", "must be unix:///path or tcp://host:port")
            }
            _ => Ok(()),
        }
    }

    fn check_kubernetes(&self, refuse: &impl Fn(&str, &str) -> Result<(), SettingsError>) -> Result<(), SettingsError> {
        if !self.options.is_empty() {
            return refuse("options", "is not for the kubernetes driver: each of its options is a setting of its own");
        }
        if self.replicas == Some(0) {
            return refuse("replicas", "must be at least 1");
        }
        if self.context.is_some() && self.kubeconfig.is_none() {
            return refuse("context", "is one of a kubeconfig, and there is none");
        }
        // docker-buildx and Kubernetes exchange a sign of life every 5 s.
        if self.stall_timeout < Duration::from_secs(10) {
            return refuse("stall_timeout", "must be at least 10s");
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

fn everybody() -> Vec<NamePattern> {
    vec![NamePattern::new("*")]
}

fn two_minutes() -> Duration {
    Duration::from_secs(2 * 60)
}

fn twenty_seconds() -> Duration {
    Duration::from_secs(20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_pattern_counts() {
        let mut builder = Builder::new(Driver::Docker, None);
        assert_eq!(builder.takes("acme"), Some((false, 1)));
        builder.accounts = ["ac*", "acme", "other"].map(NamePattern::new).into();
        assert_eq!(builder.takes("acme"), Some((true, 4)));
        assert_eq!(builder.takes("acorn"), Some((false, 3)));
        assert_eq!(builder.takes("umbrella"), None);
    }
}
