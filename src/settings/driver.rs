//! buildx's drivers, and the options of them that have a fixed set of values.

use serde::{Deserialize, Serialize};

/// buildx's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// BuildKit in pods.
    Kubernetes,
    /// A BuildKit that you run yourself.
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

/// How the driver chooses a build's pod: its option `loadbalance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The pod that has the repository's cache: the same one as long as the pods stay the same.
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

/// A taint that pods tolerate, with Kubernetes' own fields.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// Key of the taint. Without it, every key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// How key and value are compared. Default: `Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operator: Option<TolerationOperator>,
    /// Value of the taint, for `Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    /// Effect of the taint. Without it, every effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<TaintEffect>,
}

/// How a toleration's key and value are compared with those of a taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum TolerationOperator {
    /// Any value.
    #[serde(rename = "Exists")]
    Exists,
    /// The same value.
    #[serde(rename = "Equal")]
    Equal,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum TaintEffect {
    /// They do not start there.
    #[serde(rename = "NoSchedule")]
    NoSchedule,
    /// They start elsewhere if possible.
    #[serde(rename = "PreferNoSchedule")]
    PreferNoSchedule,
    /// They do not start there, and running ones are evicted.
    #[serde(rename = "NoExecute")]
    NoExecute,
}

/// How pods are spread over the nodes, with Kubernetes' own fields in snake case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologySpread {
    /// Label by which nodes are grouped, such as `topology.kubernetes.io/zone`.
    pub topology_key: String,
    /// How far the numbers of pods in two groups may differ. Default: `1`.
    #[serde(default = "one")]
    pub max_skew: u32,
    /// What happens to a pod that cannot be placed so. Default: `ScheduleAnyway`.
    #[serde(default)]
    pub when_unsatisfiable: WhenUnsatisfiable,
}

/// What happens to a pod that would be spread unevenly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum WhenUnsatisfiable {
    /// It starts all the same.
    #[default]
    #[serde(rename = "ScheduleAnyway")]
    ScheduleAnyway,
    /// It waits.
    #[serde(rename = "DoNotSchedule")]
    DoNotSchedule,
}

fn one() -> u32 {
    1
}
