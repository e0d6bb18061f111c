//! A builder's Deployment as it should be, in the form that buildx's kubernetes driver expects.
//!
//! Pure. The driver attaches to any Deployment with the node's name whose pods have the label `app` and whose first container
//! answers `buildctl dial-stdio`. So ours can be safer than the driver's own: its pods get no service account token, get time
//! to finish their builds, and get no entitlement for the host's network.
//!
//! An annotation of the Deployment holds what was last configured. So a setting that is removed is known as removed, and the
//! rest of a live Deployment still belongs to its owner.

mod configured;
mod drift;
mod merge;

use serde_json::{Value, json};

use crate::json;
use crate::settings::{Builder, SHARD_OF};
use crate::{bounds, text};

use configured::{Ground, base, configured};
use merge::{difference, item, lay_over, name, withdraw};

pub use drift::Drift;
pub(super) use drift::drift;

/// Name of the file in the ConfigMap.
const CONFIG_FILE: &str = "buildkitd.toml";

/// The configuration of a BuildKit that has a disk of its own. BuildKit 0.17 and newer read these limits, earlier versions ignore
/// them. By default BuildKit uses at most 100 GB of a larger disk.
const OWN_DISK: &str = r#"[worker.oci]
  gc = true
  reservedSpace = "10%"
  maxUsedSpace = "80%"
  minFreeSpace = "10%"
"#;

/// The Deployment's annotation that holds the `spec` which was last configured, as JSON.
const LAST_CONFIGURED: &str = "sidebake/last-configured";

/// The ConfigMap that holds a builder's buildkitd.toml.
pub(super) fn config_map_name(node: &str) -> String {
    format!("{node}-config")
}

/// The ConfigMap itself.
pub(super) fn config_map(node: &str, buildkitd_toml: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": config_map_name(node), "labels": {"app": node}},
        "data": {CONFIG_FILE: buildkitd_toml},
    })
}

/// The configuration of BuildKit: the configured file, else the one for a disk of its own. `None`: BuildKit's defaults.
///
/// # Errors
///
/// When the file cannot be read, with its path.
pub(super) fn buildkitd_toml(builder: &Builder) -> Result<Option<String>, (String, std::io::Error)> {
    match &builder.buildkitd_config {
        Some(path) => std::fs::read_to_string(path).map(Some).map_err(|error| (path.display().to_string(), error)),
        None => Ok(builder.volume.is_some().then(|| OWN_DISK.to_owned())),
    }
}

/// The claim of a shard's disk (`v1.PersistentVolumeClaim`); `None` without `volume`.
pub(super) fn volume_claim(node: &str, builder: &Builder) -> Option<Value> {
    let mut claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": node, "labels": {"app": node, SHARD_OF: builder.group()}},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": builder.volume.as_ref()?}},
        },
    });
    if let Some(class) = &builder.storage_class {
        claim["spec"]["storageClassName"] = json!(class);
    }
    Some(claim)
}

/// The name of the budget of a builder's shards.
pub(super) fn disruption_budget_name(group: &str) -> String {
    format!("{group}-shards")
}

/// Lets Kubernetes evict one shard at a time (`policy/v1.PodDisruptionBudget`).
pub(super) fn disruption_budget(version: &str, group: &str) -> Value {
    json!({
        "apiVersion": version,
        "kind": "PodDisruptionBudget",
        "metadata": {"name": disruption_budget_name(group), "labels": {SHARD_OF: group}},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {SHARD_OF: group}}},
    })
}

/// The complete Deployment, for a builder that does not exist yet.
pub(super) fn whole(node: &str, builder: &Builder, buildkitd_toml: Option<&str>) -> Value {
    let base = base(node, builder);
    let configured = configured(node, builder, Ground::of(&base, buildkitd_toml));
    let mut whole = base;
    lay_over(&mut whole, configured.clone());
    whole["metadata"]["annotations"] = json!({LAST_CONFIGURED: configured["spec"].to_string()});
    whole
}

/// A live Deployment with the configured fields, and without those that were configured before and no longer are.
pub(super) fn desired(node: &str, builder: &Builder, live: &Value, buildkitd_toml: Option<&str>) -> Value {
    let mut configured = configured(node, builder, Ground::of(live, buildkitd_toml));
    // A StatefulSet has the same fields, as far as they are configured here.
    configured["kind"] = live["kind"].clone();
    let mut last = last_configured(live);
    if let Some(last) = last.as_object_mut() {
        // An autoscaler may own them now, and a build must not lose its pod to a setting that says nothing.
        last.remove("replicas");
    }
    let mut desired = live.clone();
    lay_over(&mut desired, configured.clone());
    withdraw(&mut desired["spec"], &last, &configured["spec"], &base(node, builder)["spec"]);
    desired["metadata"]["annotations"][LAST_CONFIGURED] = json!(configured["spec"].to_string());
    desired
}

/// The `spec` that was last configured; null when it is not known.
fn last_configured(live: &Value) -> Value {
    let last = live["metadata"]["annotations"][LAST_CONFIGURED].as_str();
    // Another version may write another form.
    last.and_then(|last| json::read(last.as_bytes()).ok()).unwrap_or_default()
}

/// What is wrong when the container that was configured last is no longer the first one: the settings would go to another.
pub(super) fn displaced(live: &Value) -> Option<String> {
    let last = last_configured(live);
    let own = name(&last["template"]["spec"]["containers"][0])?;
    let containers = &live["spec"]["template"]["spec"]["containers"];
    let first = name(&containers[0]).filter(|first| *first != own)?;
    item(containers, Some(own))?;
    let sentence = format!("buildx connects to the first container, {first}, and the settings are those of {own}");
    Some(text::shown(&format!("{sentence}; put {own} first"), bounds::NOTICE))
}

/// The merge patch that makes the live Deployment the desired one. Kubernetes refuses it when the Deployment has changed meanwhile.
pub(super) fn patch(live: &Value, desired: &Value) -> Value {
    let mut patch = difference(live, desired);
    patch["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    patch
}

#[cfg(test)]
mod tests;
