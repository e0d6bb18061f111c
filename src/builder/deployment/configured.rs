//! The fields of a Deployment that come from the settings, or from buildx's defaults.

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::config_map_name;
use crate::builder::cluster::is_stateful_set;
use crate::hex;
use crate::settings::{Builder, GRACE_PERIOD, SHARD_OF, TopologySpread};

/// The user and group of BuildKit without root, as its image has them.
const ROOTLESS_ID: u32 = 1000;

/// The default image, as in the driver.
pub(super) const IMAGE: &str = "moby/buildkit:buildx-stable-1";
pub(super) const ROOTLESS_IMAGE: &str = "moby/buildkit:buildx-stable-1-rootless";

/// Name of BuildKit's container.
const CONTAINER: &str = "buildkitd";

/// The annotation of the pods that holds the digest of their buildkitd.toml.
const CONFIG_DIGEST: &str = "sidebake/buildkitd-config";

/// The pod's annotation that lets a container's process mount. BuildKit without root needs it on nodes with AppArmor.
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Where BuildKit has its data.
const DATA: &str = "/var/lib/buildkit";

/// Where BuildKit without root has it. The image's own volume does not work on every node.
const ROOTLESS_DATA: &str = "/home/user/.local/share/buildkit";

/// BuildKit's limits on a step's output, in bytes and bytes a second. By default it passes on the first 2 MiB alone, and the end of a
/// log says why a step failed. The worker has limits of its own.
const STEP_LOG: [(&str, &str); 2] =
    [("BUILDKIT_STEP_LOG_MAX_SIZE", "268435456"), ("BUILDKIT_STEP_LOG_MAX_SPEED", "-1")];

/// What the configuration is merged into.
#[derive(Clone, Debug)]
pub(super) struct Ground<'a> {
    /// Name of the container in which BuildKit runs.
    container: &'a str,
    /// Whether pods get disks from the object itself: it is a StatefulSet.
    has_disks: bool,
    /// Digest of the buildkitd.toml: that of the file, or the live one when the file cannot be read here.
    config_digest: Option<String>,
}

impl<'a> Ground<'a> {
    /// The ground of a live Deployment. The driver uses the first container, whatever its name.
    pub(super) fn of(live: &'a Value, buildkitd_toml: Option<&str>) -> Self {
        let template = &live["spec"]["template"];
        let container = template["spec"]["containers"][0]["name"].as_str().unwrap_or(CONTAINER);
        let known = || template["metadata"]["annotations"][CONFIG_DIGEST].as_str().map(str::to_owned);
        let config_digest = buildkitd_toml.map(digest).or_else(known);
        Self { container, has_disks: is_stateful_set(live), config_digest }
    }
}

/// The Deployment without settings. A removed setting goes back to this.
pub(super) fn base(node: &str, builder: &Builder) -> Value {
    let mut deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": node, "labels": {"app": node}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": node}},
            "template": {
                "metadata": {"labels": {"app": node}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": GRACE_PERIOD.as_secs(),
                    // A node that goes takes one pod with it, where there are several nodes.
                    "topologySpreadConstraints": [spread(node, builder, "kubernetes.io/hostname", 1, "ScheduleAnyway")],
                    "containers": [{
                        "name": CONTAINER,
                        "image": if builder.rootless { ROOTLESS_IMAGE } else { IMAGE },
                        "readinessProbe": {"exec": {"command": ["buildctl", "debug", "workers"]}},
                        "env": variables(STEP_LOG),
                    }],
                },
            },
        },
    });
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    if builder.rootless {
        container["args"] = json!(["--oci-worker-no-process-sandbox"]);
    } else {
        container["securityContext"] = json!({"privileged": true});
    }
    deployment
}

/// A constraint on how the pods of the builder are spread.
fn spread(
    node: &str,
    builder: &Builder,
    topology_key: &str,
    max_skew: u32,
    when_unsatisfiable: impl Serialize,
) -> Value {
    let pods = match builder.group() {
        Some(group) => json!({SHARD_OF: group}),
        None => json!({"app": node}),
    };
    json!({
        "topologyKey": topology_key,
        "maxSkew": max_skew,
        "whenUnsatisfiable": when_unsatisfiable,
        "labelSelector": {"matchLabels": pods},
    })
}

/// A container's `env`.
fn variables(variables: impl IntoIterator<Item = (impl Serialize, impl Serialize)>) -> Value {
    variables.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

/// Only the configured fields. The rest of a live Deployment belongs to its owner.
pub(super) fn configured(node: &str, builder: &Builder, ground: Ground<'_>) -> Value {
    let mut pod = scheduling(node, builder);
    let mut volumes = Vec::new();
    if has_config(builder) {
        volumes.push(json!({"name": "config", "configMap": {"name": config_map_name(node)}}));
    }
    if builder.volume.is_some() {
        volumes.push(json!({"name": CONTAINER, "persistentVolumeClaim": {"claimName": node}}));
        if builder.rootless {
            // A new disk is root's. Files of images keep their groups.
            let policy = "OnRootMismatch";
            pod.insert("securityContext".into(), json!({"fsGroup": ROOTLESS_ID, "fsGroupChangePolicy": policy}));
        }
    } else if builder.rootless && !ground.has_disks {
        volumes.push(json!({"name": CONTAINER, "emptyDir": {}}));
    }
    if !volumes.is_empty() {
        pod.insert("volumes".into(), json!(volumes));
    }
    if let Some(grace_period) = builder.grace_period {
        pod.insert("terminationGracePeriodSeconds".into(), json!(grace_period.as_secs()));
    }
    pod.insert("containers".into(), json!([container(builder, &ground)]));
    let mut annotations = json!(builder.annotations);
    if has_config(builder)
        && let Some(digest) = &ground.config_digest
    {
        // BuildKit reads it once, so a changed file must start new pods.
        annotations[CONFIG_DIGEST] = json!(digest);
    }
    if builder.rootless {
        annotations[format!("{APP_ARMOR}{}", ground.container)] = json!("unconfined");
    }
    let mut template = json!({"spec": pod});
    for (key, values) in [("annotations", annotations), ("labels", json!(builder.labels))] {
        if values.as_object().is_some_and(|values| !values.is_empty()) {
            template["metadata"][key] = values;
        }
    }
    let mut spec = json!({"template": template});
    if builder.volume.is_some() {
        // The disk of a shard is for one pod at a time.
        spec["strategy"] = json!({"type": "Recreate", "rollingUpdate": null});
    }
    if let Some(replicas) = builder.replicas {
        spec["replicas"] = json!(replicas);
    }
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": node}, "spec": spec})
}

/// The configured fields of the pod that decide where it runs, and as what.
fn scheduling(node: &str, builder: &Builder) -> Map<String, Value> {
    let mut pod = Map::new();
    if !builder.node_selector.is_empty() {
        pod.insert("nodeSelector".into(), json!(builder.node_selector));
    }
    if !builder.tolerations.is_empty() {
        pod.insert("tolerations".into(), json!(builder.tolerations));
    }
    if let Some(constraints) = &builder.topology_spread {
        let of = |one: &TopologySpread| spread(node, builder, &one.topology_key, one.max_skew, one.when_unsatisfiable);
        pod.insert("topologySpreadConstraints".into(), constraints.iter().map(of).collect());
    }
    if let Some(affinity) = &builder.affinity {
        pod.insert("affinity".into(), affinity.clone());
    }
    if let Some(class) = &builder.priority_class {
        pod.insert("priorityClassName".into(), json!(class));
    }
    if let Some(account) = &builder.service_account {
        // Kubernetes keeps the field's old name with the same value, and would restore the account from it.
        pod.insert("serviceAccountName".into(), json!(account));
        pod.insert("serviceAccount".into(), json!(account));
    }
    if !builder.image_pull_secrets.is_empty() {
        let secrets = builder.image_pull_secrets.iter().map(|name| json!({"name": name}));
        pod.insert("imagePullSecrets".into(), secrets.collect());
    }
    pod
}

/// Whether BuildKit gets a configuration.
fn has_config(builder: &Builder) -> bool {
    builder.buildkitd_config.is_some() || builder.volume.is_some()
}

/// The configured fields of BuildKit's container.
fn container(builder: &Builder, ground: &Ground<'_>) -> Value {
    let mut container = Map::from_iter([("name".to_owned(), json!(ground.container))]);
    if let Some(image) = &builder.image {
        container.insert("image".into(), json!(image));
    }
    let mut resources = Map::new();
    for (kind, amounts) in [("requests", &builder.requests), ("limits", &builder.limits)] {
        if !amounts.is_empty() {
            resources.insert(kind.into(), json!(amounts));
        }
    }
    if !resources.is_empty() {
        container.insert("resources".into(), Value::Object(resources));
    }
    if !builder.environment.is_empty() {
        container.insert("env".into(), variables(&builder.environment));
    }
    if !builder.pre_stop.is_empty() {
        container.insert("lifecycle".into(), json!({"preStop": {"exec": {"command": builder.pre_stop}}}));
    }
    let mut mounts = Vec::new();
    if has_config(builder) {
        let folder = if builder.rootless { "/home/user/.config/buildkit" } else { "/etc/buildkit" };
        mounts.push(json!({"name": "config", "mountPath": folder}));
    }
    if builder.rootless {
        container.insert("securityContext".into(), json!({"seccompProfile": {"type": "Unconfined"}}));
    }
    if builder.rootless && !ground.has_disks || builder.volume.is_some() {
        mounts.push(json!({"name": CONTAINER, "mountPath": if builder.rootless { ROOTLESS_DATA } else { DATA }}));
    }
    if !mounts.is_empty() {
        container.insert("volumeMounts".into(), json!(mounts));
    }
    Value::Object(container)
}

fn digest(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..8])
}
