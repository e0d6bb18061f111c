//! A builder's Deployment as configured, in the form that buildx's kubernetes driver expects, and how a live one differs.
//!
//! Pure. The driver attaches to any Deployment with the node's name whose pods have the label `app` and whose first container
//! answers `buildctl dial-stdio`. So ours can be safer than the driver's own: its pods get no service account token, get time
//! to finish their builds, and get no entitlement for the host's network.

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::hex;
use crate::settings::Builder;

/// The default image, as in the driver.
const IMAGE: &str = "moby/buildkit:buildx-stable-1";
const ROOTLESS_IMAGE: &str = "moby/buildkit:buildx-stable-1-rootless";

/// Name of the container, of the file in the ConfigMap, and of the annotation with that file's digest.
const CONTAINER: &str = "buildkitd";
const CONFIG_FILE: &str = "buildkitd.toml";
const CONFIG_DIGEST: &str = "sidebake/buildkitd-config";

/// BuildKit's limits on a step's output, in bytes and bytes a second. By default it passes on the first 2 MiB alone, and the end of a
/// log says why a step failed. The worker has limits of its own.
const STEP_LOG: [(&str, &str); 2] =
    [("BUILDKIT_STEP_LOG_MAX_SIZE", "268435456"), ("BUILDKIT_STEP_LOG_MAX_SPEED", "-1")];

/// How long a terminating pod may finish its builds, by default.
const GRACE_PERIOD_S: u64 = 1800;

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

/// What the configuration is merged into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground<'a> {
    /// Name of the container in which BuildKit runs.
    container: &'a str,
    /// The buildkitd.toml, when one is configured and can be read.
    buildkitd_toml: Option<&'a str>,
}

impl<'a> Ground<'a> {
    /// The ground of a live Deployment. The driver uses the first container, whatever its name.
    pub(super) fn of(live: &'a Value, buildkitd_toml: Option<&'a str>) -> Self {
        let container = live["spec"]["template"]["spec"]["containers"][0]["name"].as_str().unwrap_or(CONTAINER);
        Self { container, buildkitd_toml }
    }
}

/// The complete Deployment, for a builder that does not exist yet.
pub(super) fn whole(node: &str, builder: &Builder, buildkitd_toml: Option<&str>) -> Value {
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
                    "terminationGracePeriodSeconds": GRACE_PERIOD_S,
                    "containers": [{
                        "name": CONTAINER,
                        "image": if builder.rootless { ROOTLESS_IMAGE } else { IMAGE },
                        "readinessProbe": {"exec": {"command": ["buildctl", "debug", "workers"]}},
                        "securityContext": security(builder.rootless),
                        "env": variables(STEP_LOG),
                    }],
                },
            },
        },
    });
    if builder.rootless {
        deployment["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["--oci-worker-no-process-sandbox"]);
    }
    lay_over(&mut deployment, configured(node, builder, Ground { container: CONTAINER, buildkitd_toml }));
    deployment
}

/// A container's `env`.
fn variables(variables: impl IntoIterator<Item = (impl Serialize, impl Serialize)>) -> Value {
    variables.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

fn security(is_rootless: bool) -> Value {
    match is_rootless {
        false => json!({"privileged": true}),
        true => json!({"runAsUser": 1000, "runAsGroup": 1000, "seccompProfile": {"type": "Unconfined"}}),
    }
}

/// Only the configured fields, as a strategic merge patch. The rest of a live Deployment belongs to its owner.
pub(super) fn configured(node: &str, builder: &Builder, ground: Ground<'_>) -> Value {
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
    let mut annotations = json!(builder.annotations);
    let mut pod = Map::new();
    if builder.buildkitd_config.is_some() {
        let folder = if builder.rootless { "/home/user/.config/buildkit" } else { "/etc/buildkit" };
        pod.insert("volumes".into(), json!([{"name": "config", "configMap": {"name": config_map_name(node)}}]));
        container.insert("volumeMounts".into(), json!([{"name": "config", "mountPath": folder}]));
    }
    if let Some(text) = ground.buildkitd_toml {
        // BuildKit reads it once, so a changed file must start new pods.
        annotations[CONFIG_DIGEST] = json!(digest(text));
    }
    if let Some(grace_period) = builder.grace_period {
        pod.insert("terminationGracePeriodSeconds".into(), json!(grace_period.as_secs()));
    }
    pod.insert("containers".into(), json!([container]));
    if !builder.node_selector.is_empty() {
        pod.insert("nodeSelector".into(), json!(builder.node_selector));
    }
    if !builder.tolerations.is_empty() {
        pod.insert("tolerations".into(), json!(builder.tolerations));
    }
    let mut spec = json!({"template": {"spec": pod}});
    if annotations.as_object().is_some_and(|annotations| !annotations.is_empty()) {
        spec["template"]["metadata"] = json!({"annotations": annotations});
    }
    if let Some(replicas) = builder.replicas {
        spec["replicas"] = json!(replicas);
    }
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": node}, "spec": spec})
}

fn digest(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..8])
}

/// Merges `upper` into `lower`: objects by key, lists of named items by name; replaces everything else.
fn lay_over(lower: &mut Value, upper: Value) {
    match (lower, upper) {
        (Value::Object(lower), Value::Object(upper)) => {
            for (key, value) in upper {
                lay_over(lower.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(lower), Value::Array(upper)) if upper.iter().all(|item| name(item).is_some()) => {
            for item in upper {
                match lower.iter_mut().find(|other| name(other) == name(&item)) {
                    Some(other) => lay_over(other, item),
                    None => lower.push(item),
                }
            }
        }
        (lower, upper) => *lower = upper,
    }
}

fn name(item: &Value) -> Option<&str> {
    item.get("name")?.as_str()
}

/// A field that differs from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Its path in the Deployment, such as `spec.replicas`.
    pub path: String,
    /// What it is; `none` when it is not there.
    pub live: String,
    /// What the configuration says.
    pub configured: String,
}

/// Where the live Deployment differs from [`configured`]. Fields that are not configured do not count.
pub(super) fn drift(live: &Value, configured: &Value) -> Vec<Drift> {
    let mut found = Vec::new();
    compare("spec", &live["spec"], &configured["spec"], &mut found);
    found
}

fn compare(path: &str, live: &Value, configured: &Value, found: &mut Vec<Drift>) {
    match configured {
        Value::Object(fields) => {
            for (key, value) in fields {
                compare(&format!("{path}.{key}"), &live[key.as_str()], value, found);
            }
        }
        Value::Array(items) if items.iter().all(|item| name(item).is_some()) => {
            for item in items {
                let own = name(item).unwrap_or_default();
                let other = live.as_array().and_then(|all| all.iter().find(|other| name(other) == Some(own)));
                let mut fields = item.clone();
                if let Value::Object(fields) = &mut fields {
                    fields.remove("name");
                }
                compare(&format!("{path}.{own}"), other.unwrap_or(&Value::Null), &fields, found);
            }
        }
        _ if is_equal(path, live, configured) => {}
        _ => found.push(Drift { path: path.to_owned(), live: show(live), configured: show(configured) }),
    }
}

/// Kubernetes writes `1000m` as `1`, and `1024Mi` as `1Gi`.
fn is_equal(path: &str, live: &Value, configured: &Value) -> bool {
    if !path.contains(".resources.") {
        return live == configured;
    }
    match (live.as_str().and_then(amount), configured.as_str().and_then(amount)) {
        (Some(live), Some(configured)) => (live - configured).abs() <= configured.abs() * 1e-9,
        _ => live == configured,
    }
}

/// A quantity of `k8s.io/apimachinery`, such as `500m`, `2`, `4Gi` or `1e3`.
fn amount(text: &str) -> Option<f64> {
    const UNITS: &[(&str, f64)] = &[
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
    ];
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    UNITS.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Driver;

    fn builder() -> Builder {
        let mut builder = Builder::new(Driver::Kubernetes, None);
        builder.replicas = Some(5);
        builder.requests = [("cpu".into(), "1".into())].into();
        builder.environment = [("A".into(), "b".into())].into();
        builder
    }

    #[test]
    fn the_whole_has_what_the_driver_looks_for_and_what_is_configured() {
        let made = whole("development0", &builder(), None);
        let spec = &made["spec"];
        assert_eq!(spec["replicas"], 5);
        assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
        let container = &spec["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], IMAGE);
        let names: Vec<&Value> =
            container["env"].as_array().unwrap().iter().map(|variable| &variable["name"]).collect();
        assert_eq!(names, ["BUILDKIT_STEP_LOG_MAX_SIZE", "BUILDKIT_STEP_LOG_MAX_SPEED", "A"]);
        assert_eq!(container["resources"], json!({"requests": {"cpu": "1"}}));
        assert_eq!(spec["template"]["spec"]["automountServiceAccountToken"], false);
        assert_eq!(drift(&made, &configured("development0", &builder(), Ground::of(&made, None))), []);
        assert_eq!(spec["template"]["spec"]["terminationGracePeriodSeconds"], 1800);
    }

    #[test]
    fn drift_names_the_field_and_both_values_and_leaves_the_owners_fields_alone() {
        // What buildx itself made, with another name for the container and Kubernetes' form of quantities.
        let live = json!({"spec": {"replicas": 3, "paused": true, "template": {"spec": {"dnsPolicy": "ClusterFirst", "containers": [
            {"name": "other", "image": "x", "resources": {"requests": {"cpu": "1000m"}}, "env": [{"name": "A", "value": "c"}]}]}}}});
        let found = drift(&live, &configured("d0", &builder(), Ground::of(&live, None)));
        let lines: Vec<String> =
            found.iter().map(|drift| format!("{} {} {}", drift.path, drift.live, drift.configured)).collect();
        assert_eq!(lines, ["spec.template.spec.containers.other.env.A.value c b", "spec.replicas 3 5"]);
    }

    #[test]
    fn a_changed_buildkitd_toml_or_grace_period_is_drift() {
        let mut builder = builder();
        builder.buildkitd_config = Some("/etc/buildkitd.toml".into());
        let made = whole("d0", &builder, Some("debug = true"));
        builder.grace_period = Some(std::time::Duration::from_secs(60));
        let found = drift(&made, &configured("d0", &builder, Ground::of(&made, Some("debug = false"))));
        let paths: Vec<&str> = found.iter().map(|drift| drift.path.as_str()).collect();
        let annotation = "spec.template.metadata.annotations.sidebake/buildkitd-config";
        assert_eq!(paths, ["spec.template.spec.terminationGracePeriodSeconds", annotation]);
    }

    #[test]
    fn quantities_are_compared_by_what_they_mean() {
        let table = [("1000m", "1"), ("1Gi", "1024Mi"), ("1e3", "1k"), ("0.5", "500m")];
        for (one, other) in table {
            assert_eq!(amount(one), amount(other), "{one} {other}");
        }
        assert_eq!(amount("lots"), None);
    }
}
