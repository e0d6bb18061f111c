//! `[builders.NAME]`: where BuildKit is, how it is sized, and whose builds it runs.

mod check;
mod kubernetes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Balance, Driver, NamePattern, TextPattern, Toleration, TopologySpread};

pub(super) use check::check_all;
pub use kubernetes::quantity;

/// The label that the pods of all shards of a builder have.
pub const SHARD_OF: &str = "sidebake/builder";

/// How long a pod may finish its builds, by default: as long as a build may take.
pub const GRACE_PERIOD: Duration = Duration::from_secs(30 * 60);

/// One builder. A job runs on the builder that it names; otherwise on the one whose `accounts` match its account most
/// specifically, and among equals on the one called `default`. Accounts that share a builder can read each other's layers and
/// cached files: give an account with secrets worth protecting a builder of its own. `sidebake builder ensure` creates a
/// Deployment, `apply` changes it; an existing Deployment is used unchanged.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builder {
    /// buildx's driver.
    pub driver: Driver,
    /// `docker` and `docker-container`: `unix://` or `tcp://` address of the engine. `remote`: `tcp://` address of BuildKit.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Accounts whose builds run here; `*` matches anything. Default: `["*"]`.
    #[serde(default = "all_accounts")]
    pub accounts: Vec<NamePattern>,
    /// Name of the builder's node, which is also that of its Deployment. Default: the builder's name and `0`. With `shards`, the
    /// name of each is this and its number, such as `default-0`. Then the default is the builder's name.
    #[serde(default)]
    pub node: Option<String>,
    /// `kubernetes`: working directory of the bake, by which the driver chooses the pod. It must be the same on every worker.
    /// Default: a directory below `state.directory`.
    #[serde(default)]
    pub sticky_path: Option<TextPattern>,
    /// `kubernetes`: how the driver chooses a build's pod. Default: `sticky`.
    #[serde(default)]
    pub balance: Balance,
    /// `kubernetes`: path of the kubeconfig. Without it, the worker uses the service account of its own pod.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// `kubernetes`: context of the kubeconfig. Default: its current context.
    #[serde(default)]
    pub context: Option<String>,
    /// `kubernetes`: namespace of the pods. Default: that of the context or service account.
    #[serde(default)]
    pub namespace: Option<String>,
    /// `kubernetes`: number of pods. `ensure` creates them, `apply` changes it.
    #[serde(default)]
    pub replicas: Option<u32>,
    /// `kubernetes`: number of shards, which are Deployments of one pod each. Takes the place of `replicas`. Each shard keeps its
    /// name and its disk, and the worker chooses among them. Requires `volume`.
    #[serde(default)]
    pub shards: Option<u32>,
    /// With `shards`: how many builds a shard may run before others take builds of its applications. While all shards run more, the
    /// bound is 175 % of their mean. Default: `4`.
    #[serde(default = "four")]
    pub shard_builds: u32,
    /// With `shards`: size of the disk of each, such as `"200Gi"`. `apply` can only increase it.
    #[serde(default)]
    pub volume: Option<String>,
    /// With `shards`: storage class of the disks. Default: that of the cluster.
    #[serde(default)]
    pub storage_class: Option<String>,
    /// Whether targets may name platforms of other processors than the builder's: QEMU emulates them, or a Dockerfile compiles for
    /// them. Default: `false`, and a target that names one is refused.
    #[serde(default)]
    pub emulation: bool,
    /// `kubernetes`: whether a pod builds each base image alone before it takes the first build that uses it. Without that, BuildKit
    /// caches nothing on a new pod as long as builds overlap there. Default: `true`.
    #[serde(default = "yes")]
    pub warm: bool,
    /// Image of BuildKit. Default: buildx's own.
    #[serde(default)]
    pub image: Option<String>,
    /// `kubernetes`: whether BuildKit runs without root. Default: `false`.
    #[serde(default)]
    pub rootless: bool,
    /// `kubernetes`: resources that a pod requests, such as `{ cpu = "4", memory = "8Gi" }`.
    #[serde(default)]
    pub requests: BTreeMap<String, String>,
    /// `kubernetes`: resource limits of a pod, such as `{ memory = "16Gi" }`.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
    /// `kubernetes`: labels of the nodes that pods may run on, such as `{ "kubernetes.io/arch" = "amd64" }`.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// `kubernetes`: taints that pods tolerate.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// `kubernetes`: how pods are spread. Default: over nodes where that is possible. `[]` spreads nothing.
    #[serde(default)]
    pub topology_spread: Option<Vec<TopologySpread>>,
    /// `kubernetes`: affinity of the pods, in Kubernetes' own form, such as
    /// `{ nodeAffinity = { requiredDuringSchedulingIgnoredDuringExecution = { nodeSelectorTerms = [...] } } }`.
    #[serde(default)]
    pub affinity: Option<serde_json::Value>,
    /// `kubernetes`: priority class of the pods. It must exist.
    #[serde(default)]
    pub priority_class: Option<String>,
    /// `kubernetes`: service account of the pods. They get no token of it.
    #[serde(default)]
    pub service_account: Option<String>,
    /// `kubernetes`: names of Secrets with which nodes pull the image.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// `kubernetes`: labels of the pods, such as `{ team = "builds" }`. The label `app` is the Deployment's name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `kubernetes`: annotations of the pods, such as `{ "karpenter.sh/do-not-disrupt" = "true" }`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// `kubernetes`: environment variables of BuildKit, such as `{ HTTPS_PROXY = "http://proxy:3128" }`.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// `kubernetes` and `docker-container`: path of BuildKit's configuration, a `buildkitd.toml`.
    #[serde(default)]
    pub buildkitd_config: Option<PathBuf>,
    /// `kubernetes`: how long a pod may finish its builds after Kubernetes tells it to stop. Default: `30m`.
    #[serde(default, with = "humantime_serde")]
    pub grace_period: Option<Duration>,
    /// `kubernetes`: command that runs in BuildKit's container before BuildKit gets SIGTERM, such as `["sleep", "10"]`. Its time
    /// counts toward `grace_period`.
    #[serde(default)]
    pub pre_stop: Vec<String>,
    /// `kubernetes`: how long a build, or `builder ensure`, waits for a ready pod. Default: `2m`.
    #[serde(default = "two_minutes", with = "humantime_serde")]
    pub timeout: Duration,
    /// `kubernetes`: how long a pod may be silent during a build; at least `10s`. Default: `20s`.
    #[serde(default = "twenty_seconds", with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// `remote` and `docker-container`: more driver options, as in `docker buildx create --driver-opt`. `remote` with TLS:
    /// `{ cacert = "/ca.pem", cert = "/cert.pem", key = "/key.pem" }`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl Builder {
    /// A builder with the defaults.
    pub fn new(driver: Driver, endpoint: Option<String>) -> Self {
        Self {
            driver,
            endpoint,
            accounts: all_accounts(),
            node: None,
            sticky_path: None,
            balance: Balance::Sticky,
            kubeconfig: None,
            context: None,
            namespace: None,
            replicas: None,
            shards: None,
            shard_builds: four(),
            volume: None,
            storage_class: None,
            emulation: false,
            warm: yes(),
            image: None,
            rootless: false,
            requests: BTreeMap::new(),
            limits: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            topology_spread: None,
            affinity: None,
            priority_class: None,
            service_account: None,
            image_pull_secrets: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            environment: BTreeMap::new(),
            buildkitd_config: None,
            grace_period: None,
            pre_stop: Vec::new(),
            timeout: two_minutes(),
            stall_timeout: twenty_seconds(),
            options: BTreeMap::new(),
        }
    }

    /// Name of the node and of the Deployment: buildx's own default unless it is set.
    pub fn node_name(&self, name: &str) -> String {
        self.node.clone().unwrap_or_else(|| format!("{name}0"))
    }

    /// The settings of each node of the builder called `name`. A shard is a node of its own, with a number after the builder's
    /// name.
    pub fn nodes(&self, name: &str) -> Vec<Self> {
        let Some(n_shards) = self.shards else { return vec![self.clone()] };
        let shard = |number: u32| {
            let mut labels = self.labels.clone();
            labels.insert(SHARD_OF.into(), self.shard_group(name).into());
            Self { node: Some(self.shard_name(name, number)), replicas: Some(1), labels, ..self.clone() }
        };
        (0..n_shards).map(shard).collect()
    }

    /// The value of the label that all shards of a builder have, if this is one.
    pub fn group(&self) -> Option<&str> {
        self.labels.get(SHARD_OF).map(String::as_str)
    }

    /// What the names of all shards begin with.
    fn shard_group<'a>(&'a self, name: &'a str) -> &'a str {
        self.node.as_deref().unwrap_or(name)
    }

    fn shard_name(&self, name: &str, number: u32) -> String {
        format!("{}-{number}", self.shard_group(name))
    }

    /// How long a pod may finish its builds.
    pub fn grace_period(&self) -> Duration {
        self.grace_period.unwrap_or(GRACE_PERIOD)
    }
}

/// How specifically these patterns match an account; `None` when none does.
pub fn match_of(accounts: &[NamePattern], account: &str) -> Option<(bool, usize)> {
    let accounts = accounts.iter().map(|pattern| (pattern, ()));
    NamePattern::most_specific(accounts, account).map(|(pattern, ())| pattern.specificity())
}

/// The builder that takes the builds of an account, of builders with the accounts that they take: the most specific match; among equals
/// the one named `default`, else the first by name. With how specifically it matches.
pub fn for_account<'a>(
    builders: impl Iterator<Item = (&'a str, &'a [NamePattern])>,
    account: &str,
) -> Option<(&'a str, (bool, usize))> {
    let taking = builders.filter_map(|(name, accounts)| Some((name, match_of(accounts, account)?)));
    taking.max_by(|(name, specificity), (other, others)| {
        let is_default = |name: &str| name == "default";
        specificity.cmp(others).then(is_default(name).cmp(&is_default(other))).then(other.cmp(name))
    })
}

fn all_accounts() -> Vec<NamePattern> {
    vec![NamePattern::new("*")]
}

fn yes() -> bool {
    true
}

fn four() -> u32 {
    4
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
    fn the_most_specific_pattern_counts() {
        let mut builder = Builder::new(Driver::Docker, None);
        assert_eq!(match_of(&builder.accounts, "acme"), Some((false, 1)));
        builder.accounts = ["ac*", "acme", "other"].map(NamePattern::new).into();
        assert_eq!(match_of(&builder.accounts, "acme"), Some((true, 4)));
        assert_eq!(match_of(&builder.accounts, "acorn"), Some((false, 3)));
        assert_eq!(match_of(&builder.accounts, "umbrella"), None);
    }
}
