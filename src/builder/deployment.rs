//! A builder's Deployment as configured, in the form that buildx's kubernetes driver expects, and how a live one differs.
//!
//! Pure. The driver attaches to any Deployment with the node's name whose pods have the label `app` and whose first container
//! answers `buildctl dial-stdio`. So ours can be safer than the driver's own: its pods get no service account token, get time
//! to finish their builds, and get no entitlement for the host's network.
//!
//! An annotation of the Deployment holds what was last configured. So a setting that is removed is known as removed, and the
//! rest of a live Deployment still belongs to its owner.

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::hex;
use crate::json;
use crate::settings::{Builder, TopologySpread, quantity};
use crate::{bounds, text};

/// The default image, as in the driver.
const IMAGE: &str = "moby/buildkit:buildx-stable-1";
const ROOTLESS_IMAGE: &str = "moby/buildkit:buildx-stable-1-rootless";

/// Name of the container, of the file in the ConfigMap, and of the annotation with that file's digest.
const CONTAINER: &str = "buildkitd";
const CONFIG_FILE: &str = "buildkitd.toml";
const CONFIG_DIGEST: &str = "sidebake/buildkitd-config";

/// The Deployment's annotation that holds the `spec` which was last configured, as JSON.
const LAST_CONFIGURED: &str = "sidebake/last-configured";

/// The pod's annotation that lets a container's process mount. BuildKit without root needs it on nodes with AppArmor.
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Where BuildKit without root has its data. The image's own volume does not work on every node.
const ROOTLESS_DATA: &str = "/home/user/.local/share/buildkit";

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
#[derive(Clone, Debug)]
struct Ground<'a> {
    /// Name of the container in which BuildKit runs.
    container: &'a str,
    /// Digest of the buildkitd.toml: that of the file, or the live one when the file cannot be read here.
    config_digest: Option<String>,
}

impl<'a> Ground<'a> {
    /// The ground of a live Deployment. The driver uses the first container, whatever its name.
    fn of(live: &'a Value, buildkitd_toml: Option<&str>) -> Self {
        let template = &live["spec"]["template"];
        let container = template["spec"]["containers"][0]["name"].as_str().unwrap_or(CONTAINER);
        let known = || template["metadata"]["annotations"][CONFIG_DIGEST].as_str().map(str::to_owned);
        Self { container, config_digest: buildkitd_toml.map(digest).or_else(known) }
    }
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

/// The Deployment without settings. A removed setting goes back to this.
fn base(node: &str, builder: &Builder) -> Value {
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
                    // A node that goes takes one pod with it, where there are several nodes.
                    "topologySpreadConstraints": [spread(node, "kubernetes.io/hostname", 1, "ScheduleAnyway")],
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

/// A constraint on how the pods are spread.
fn spread(node: &str, topology_key: &str, max_skew: u32, when_unsatisfiable: impl Serialize) -> Value {
    json!({
        "topologyKey": topology_key,
        "maxSkew": max_skew,
        "whenUnsatisfiable": when_unsatisfiable,
        "labelSelector": {"matchLabels": {"app": node}},
    })
}

/// A container's `env`.
fn variables(variables: impl IntoIterator<Item = (impl Serialize, impl Serialize)>) -> Value {
    variables.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

/// Only the configured fields. The rest of a live Deployment belongs to its owner.
fn configured(node: &str, builder: &Builder, ground: Ground<'_>) -> Value {
    let mut pod = scheduling(node, builder);
    let mut volumes = Vec::new();
    if builder.buildkitd_config.is_some() {
        volumes.push(json!({"name": "config", "configMap": {"name": config_map_name(node)}}));
    }
    if builder.rootless {
        volumes.push(json!({"name": CONTAINER, "emptyDir": {}}));
    }
    if !volumes.is_empty() {
        pod.insert("volumes".into(), json!(volumes));
    }
    if let Some(grace_period) = builder.grace_period {
        pod.insert("terminationGracePeriodSeconds".into(), json!(grace_period.as_secs()));
    }
    pod.insert("containers".into(), json!([container(builder, ground.container)]));
    let mut annotations = json!(builder.annotations);
    if builder.buildkitd_config.is_some()
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
        let of = |one: &TopologySpread| spread(node, &one.topology_key, one.max_skew, one.when_unsatisfiable);
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

/// The configured fields of BuildKit's container.
fn container(builder: &Builder, name: &str) -> Value {
    let mut container = Map::from_iter([("name".to_owned(), json!(name))]);
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
    if builder.buildkitd_config.is_some() {
        let folder = if builder.rootless { "/home/user/.config/buildkit" } else { "/etc/buildkit" };
        mounts.push(json!({"name": "config", "mountPath": folder}));
    }
    if builder.rootless {
        container.insert("securityContext".into(), json!({"seccompProfile": {"type": "Unconfined"}}));
        mounts.push(json!({"name": CONTAINER, "mountPath": ROOTLESS_DATA}));
    }
    if !mounts.is_empty() {
        container.insert("volumeMounts".into(), json!(mounts));
    }
    Value::Object(container)
}

fn digest(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..8])
}

/// A live Deployment with the configured fields, and without those that were configured before and no longer are.
pub(super) fn desired(node: &str, builder: &Builder, live: &Value, buildkitd_toml: Option<&str>) -> Value {
    let configured = configured(node, builder, Ground::of(live, buildkitd_toml));
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

/// What differs, as a JSON merge patch (RFC 7396): lists are whole, and null removes a field.
fn difference(live: &Value, desired: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (live, desired) else { return desired.clone() };
    let removed = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    let changed = changed.map(|(key, value)| (key.clone(), difference(&live[key.as_str()], value)));
    Value::Object(removed.chain(changed).collect())
}

/// Sets what was configured at `last`, and is not in `configured`, back to `base`, or removes it.
fn withdraw(desired: &mut Value, last: &Value, configured: &Value, base: &Value) {
    match (desired, last) {
        (Value::Object(desired), Value::Object(last)) => {
            for (key, last) in last {
                let (now, base) = (&configured[key.as_str()], &base[key.as_str()]);
                let has_parts = last.is_object() || is_named_list(last);
                match desired.get_mut(key) {
                    // Kubernetes does not keep an empty value.
                    None if is_blank(last) && now.is_null() && !base.is_null() => {
                        desired.insert(key.clone(), base.clone());
                    }
                    None => {}
                    Some(part) if has_parts => {
                        withdraw(part, last, now, base);
                        if now.is_null() && is_empty(part) {
                            desired.remove(key);
                        }
                    }
                    Some(_) if !now.is_null() => {}
                    Some(part) if !base.is_null() => *part = base.clone(),
                    Some(_) => drop(desired.remove(key)),
                }
            }
        }
        (Value::Array(desired), Value::Array(last)) => {
            for last in last {
                let Some(at) = desired.iter().position(|item| name(item) == name(last)) else { continue };
                match (item(configured, name(last)), item(base, name(last))) {
                    (Some(now), base) => withdraw(&mut desired[at], last, now, base.unwrap_or(&Value::Null)),
                    (None, Some(base)) => desired[at] = base.clone(),
                    (None, None) => drop(desired.remove(at)),
                }
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// Whether a value is a list of items with names, which are merged one by one.
fn is_named_list(value: &Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty() && items.iter().all(|item| name(item).is_some()))
}

/// The item of a list that has this name.
fn item<'a>(list: &'a Value, wanted: Option<&str>) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| name(item) == wanted)
}

/// Merges `upper` into `lower`: objects by key, lists of named items by name; replaces everything else.
fn lay_over(lower: &mut Value, upper: Value) {
    let is_named = is_named_list(&upper);
    match (lower, upper) {
        (Value::Object(lower), Value::Object(upper)) => {
            if upper.contains_key("value") {
                // A variable has a value or a source.
                lower.remove("valueFrom");
            }
            for (key, value) in upper {
                lay_over(lower.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(lower), Value::Array(upper)) if is_named => {
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
    /// What the configuration says; `none` when it no longer says anything.
    pub configured: String,
}

/// Where the live Deployment differs from the [`desired`] one.
pub(super) fn drift(live: &Value, desired: &Value) -> Vec<Drift> {
    let mut found = Vec::new();
    compare("spec", &live["spec"], &desired["spec"], &mut found);
    found
}

fn compare(path: &str, live: &Value, desired: &Value, found: &mut Vec<Drift>) {
    let is_object = |value: &Value| value.is_object() || value.is_null();
    let is_list = |value: &Value| is_named_list(value) || value.is_null();
    if live == desired || (is_blank(live) && is_blank(desired) && !is_in_map(path)) {
        return;
    }
    if is_object(live) && is_object(desired) {
        for key in keys(live, desired) {
            compare(&format!("{path}.{key}"), &live[key], &desired[key], found);
        }
    } else if is_list(live) && is_list(desired) {
        for own in names(live, desired) {
            let (live, desired) = (item(live, Some(own)), item(desired, Some(own)));
            let is_in_both = live.is_some() && desired.is_some();
            let [live, desired] = [live, desired].map(|one| one.map_or(Value::Null, |one| fields(one, is_in_both)));
            compare(&format!("{path}.{own}"), &live, &desired, found);
        }
    } else if !is_equal(path, live, desired) {
        found.push(Drift { path: path.to_owned(), live: show(live), configured: show(desired) });
    }
}

/// The keys of two objects: those of the second one first.
fn keys<'a>(live: &'a Value, desired: &'a Value) -> impl Iterator<Item = &'a str> {
    let of = |value: &'a Value| value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    of(desired).chain(of(live).filter(|key| desired.get(key).is_none()))
}

/// The names in two lists: those of the second one first.
fn names<'a>(live: &'a Value, desired: &'a Value) -> impl Iterator<Item = &'a str> {
    let of = |value: &'a Value| value.as_array().into_iter().flatten().filter_map(name);
    of(desired).chain(of(live).filter(|own| item(desired, Some(own)).is_none()))
}

/// What an item has besides its name. Of an item that is only in one list, the name itself when that is all.
fn fields(item: &Value, is_in_both: bool) -> Value {
    let mut fields = item.as_object().cloned().unwrap_or_default();
    let name = fields.remove("name");
    if !is_in_both && fields.values().all(is_blank) { name.unwrap_or_default() } else { Value::Object(fields) }
}

/// Whether Kubernetes omits a value: it keeps no empty list or text.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Whether a field is in a map of texts, where an empty one counts.
fn is_in_map(path: &str) -> bool {
    [".nodeSelector.", ".labels.", ".annotations.", ".matchLabels."].iter().any(|map| path.contains(map))
}

/// A list or value without the fields that Kubernetes omits.
fn without_blanks(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !is_blank(value));
            Value::Object(kept.map(|(key, value)| (key.clone(), without_blanks(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_blanks).collect(),
        other => other.clone(),
    }
}

/// Kubernetes writes `1000m` as `1`, and `1024Mi` as `1Gi`.
fn is_equal(path: &str, live: &Value, configured: &Value) -> bool {
    if !path.contains(".resources.") {
        return without_blanks(live) == without_blanks(configured);
    }
    match (live.as_str().and_then(quantity), configured.as_str().and_then(quantity)) {
        (Some(live), Some(configured)) => (live - configured).abs() <= configured.abs() * 1e-9,
        _ => live == configured,
    }
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

    /// The drift of a live Deployment, a line each.
    fn lines(live: &Value, builder: &Builder, buildkitd_toml: Option<&str>) -> Vec<String> {
        let found = drift(live, &desired("d0", builder, live, buildkitd_toml));
        found.iter().map(|drift| format!("{} {} {}", drift.path, drift.live, drift.configured)).collect()
    }

    /// What Kubernetes makes of a merge patch.
    fn patched(live: &Value, patch: &Value) -> Value {
        let (Value::Object(_), Value::Object(fields)) = (live, patch) else { return patch.clone() };
        let mut made = live.clone();
        for (key, value) in fields {
            match value {
                Value::Null => drop(made.as_object_mut().expect("an object").remove(key)),
                value if live.get(key).is_some_and(Value::is_object) => made[key] = patched(&live[key], value),
                value => made[key] = value.clone(),
            }
        }
        made
    }

    /// What `apply` makes of a live Deployment.
    fn applied(live: &Value, builder: &Builder) -> Value {
        patched(live, &patch(live, &desired("d0", builder, live, None)))
    }

    #[test]
    fn the_whole_has_what_the_driver_looks_for_and_what_is_configured() {
        let made = whole("d0", &builder(), None);
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
        assert_eq!(lines(&made, &builder(), None), [""; 0]);
        assert_eq!(spec["template"]["spec"]["terminationGracePeriodSeconds"], 1800);
        let spread = &spec["template"]["spec"]["topologySpreadConstraints"];
        assert_eq!(spread[0]["topologyKey"], "kubernetes.io/hostname");
    }

    #[test]
    fn drift_names_the_field_and_both_values_and_leaves_the_owners_fields_alone() {
        // What buildx itself made, with another name for the container and Kubernetes' form of quantities.
        let live = json!({"spec": {"replicas": 3, "paused": true, "template": {"spec": {"dnsPolicy": "ClusterFirst", "containers": [
            {"name": "other", "image": "x", "resources": {"requests": {"cpu": "1000m"}}, "env": [{"name": "A", "value": "c"}]}]}}}});
        let expected = ["spec.replicas 3 5", "spec.template.spec.containers.other.env.A.value c b"];
        assert_eq!(lines(&live, &builder(), None), expected);
    }

    #[test]
    fn a_changed_buildkitd_toml_or_grace_period_is_drift() {
        let mut builder = builder();
        builder.buildkitd_config = Some("/etc/buildkitd.toml".into());
        let made = whole("d0", &builder, Some("debug = true"));
        builder.grace_period = Some(std::time::Duration::from_secs(60));
        let found = drift(&made, &desired("d0", &builder, &made, Some("debug = false")));
        let paths: Vec<&str> = found.iter().map(|drift| drift.path.as_str()).collect();
        let annotation = "spec.template.metadata.annotations.sidebake/buildkitd-config";
        assert_eq!(paths.len(), 2, "{paths:?}");
        assert!(paths.contains(&"spec.template.spec.terminationGracePeriodSeconds") && paths.contains(&annotation));
        builder.grace_period = None;
        assert_eq!(lines(&made, &builder, None), [""; 0], "a file that cannot be read here says nothing");
    }

    #[test]
    fn a_removed_setting_is_drift_and_apply_removes_it_and_nothing_else() {
        let mut full = builder();
        full.environment.insert("B".into(), "c".into());
        full.environment.insert("BUILDKIT_STEP_LOG_MAX_SPEED".into(), "1".into());
        full.limits = [("memory".into(), "1Gi".into())].into();
        full.node_selector = [("pool".into(), "builds".into())].into();
        full.labels = [("team".into(), "builds".into())].into();
        full.annotations = [("a".into(), "b".into())].into();
        full.buildkitd_config = Some("/etc/buildkitd.toml".into());
        full.image = Some("x".into());
        full.grace_period = Some(std::time::Duration::from_secs(60));
        full.affinity = Some(json!({"nodeAffinity": {}}));
        full.pre_stop = vec!["true".into()];
        full.service_account = Some("builds".into());
        full.image_pull_secrets = vec!["one".into(), "two".into()];
        full.topology_spread = Some(Vec::new());
        let owned = |live: &mut Value| {
            let pod = &mut live["spec"]["template"]["spec"];
            pod["nodeSelector"]["owned"] = json!("yes");
            let variables = pod["containers"][0]["env"].as_array_mut().expect("variables");
            variables.push(json!({"name": "OWNED", "value": "yes"}));
        };
        let (mut live, mut expected) = (whole("d0", &full, Some("")), whole("d0", &builder(), None));
        owned(&mut live);
        owned(&mut expected);

        let found = lines(&live, &builder(), None);
        for line in [
            "spec.template.spec.containers.buildkitd.env.B.value c none",
            "spec.template.spec.containers.buildkitd.env.BUILDKIT_STEP_LOG_MAX_SPEED.value 1 -1",
            "spec.template.spec.containers.buildkitd.resources.limits.memory 1Gi none",
            "spec.template.spec.nodeSelector.pool builds none",
            "spec.template.spec.terminationGracePeriodSeconds 60 1800",
        ] {
            assert!(found.iter().any(|drift| drift == line), "{line}: {found:#?}");
        }
        let now = applied(&live, &builder());
        assert_eq!(lines(&now, &builder(), None), [""; 0]);
        assert_eq!(now["spec"]["template"]["spec"]["nodeSelector"], json!({"owned": "yes"}));
        assert_eq!(drift(&now, &expected), []);
    }

    #[test]
    fn an_adopted_deployment_keeps_what_was_never_configured() {
        let live = json!({"metadata": {"resourceVersion": "7"}, "spec": {"replicas": 1, "template": {"spec": {"containers": [
            {"name": "buildkitd", "image": "x", "args": ["--debug"], "env": [{"name": "OWNED", "value": "yes"}]}]}}}});
        let once = applied(&live, &builder());
        assert_eq!(once["spec"]["template"]["spec"]["containers"][0]["args"], json!(["--debug"]));
        let nothing = Builder::new(Driver::Kubernetes, None);
        assert_eq!(lines(&live, &nothing, None), [""; 0]);
        let twice = applied(&once, &nothing);
        let container = &twice["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["env"], json!([{"name": "OWNED", "value": "yes"}]));
        assert_eq!((&container["image"], &twice["spec"]["replicas"]), (&json!("x"), &json!(5)));
        assert_eq!(patch(&live, &desired("d0", &nothing, &live, None))["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn replicas_that_are_not_configured_are_left_to_an_autoscaler() {
        let mut live = whole("d0", &builder(), None);
        live["spec"]["replicas"] = json!(20);
        let mut without = builder();
        without.replicas = None;
        assert_eq!(lines(&live, &without, None), [""; 0]);
        assert_eq!(applied(&live, &without)["spec"]["replicas"], 20);
    }

    #[test]
    fn what_kubernetes_does_not_keep_is_no_drift() {
        let mut builder = builder();
        builder.topology_spread = Some(Vec::new());
        builder.environment.insert("EMPTY".into(), String::new());
        builder.affinity = Some(json!({"x": [{"key": "a", "values": []}]}));
        let made = whole("d0", &builder, None);
        let mut live = made.clone();
        let pod = &mut live["spec"]["template"]["spec"];
        pod.as_object_mut().expect("a pod").remove("topologySpreadConstraints");
        pod["affinity"] = json!({"x": [{"key": "a"}]});
        let variables = pod["containers"][0]["env"].as_array_mut().expect("variables");
        let empty = variables.iter_mut().find(|one| one["name"] == "EMPTY").expect("the variable");
        empty.as_object_mut().expect("a variable").remove("value");
        assert_eq!(lines(&live, &builder, None), [""; 0]);

        builder.topology_spread = None;
        let spread = &made["spec"]["template"]["spec"]["topologySpreadConstraints"];
        assert_eq!(spread, &json!([]));
        let restored = applied(&live, &builder)["spec"]["template"]["spec"]["topologySpreadConstraints"].clone();
        assert_eq!(restored[0]["topologyKey"], "kubernetes.io/hostname");
        builder.environment.insert("ANOTHER".into(), String::new());
        builder.node_selector = [("pool".into(), String::new())].into();
        let found = lines(&applied(&live, &super::tests::builder()), &builder, None);
        for part in ["env.ANOTHER", "env.EMPTY", "nodeSelector.pool"] {
            assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:#?}");
        }
    }

    #[test]
    fn a_proxy_in_front_of_the_configured_container_is_told() {
        let mut live = whole("d0", &builder(), None);
        assert_eq!(displaced(&live), None);
        let proxy = json!({"name": "a-proxy", "image": "p"});
        live["spec"]["template"]["spec"]["containers"].as_array_mut().expect("a list").insert(0, proxy);
        let words = "buildx connects to the first container, a-proxy, and the settings are those of buildkitd";
        assert_eq!(displaced(&live), Some(format!("{words}; put buildkitd first")));
        live["spec"]["template"]["spec"]["containers"].as_array_mut().expect("a list").remove(1);
        assert_eq!(displaced(&live), None, "the owner renamed it");
    }

    #[test]
    fn rootless_pods_are_as_buildx_makes_them() {
        let mut builder = builder();
        builder.rootless = true;
        let template = &whole("d0", &builder, None)["spec"]["template"];
        let annotation = "container.apparmor.security.beta.kubernetes.io/buildkitd";
        assert_eq!(template["metadata"]["annotations"][annotation], "unconfined");
        assert_eq!(template["spec"]["volumes"], json!([{"name": "buildkitd", "emptyDir": {}}]));
        let container = &template["spec"]["containers"][0];
        assert_eq!(container["securityContext"], json!({"seccompProfile": {"type": "Unconfined"}}));
        assert_eq!(container["args"], json!(["--oci-worker-no-process-sandbox"]));
        let mount = json!({"name": "buildkitd", "mountPath": "/home/user/.local/share/buildkit"});
        assert_eq!(container["volumeMounts"], json!([mount]));
        assert_eq!(container["image"], ROOTLESS_IMAGE);
    }

    #[test]
    fn every_setting_of_the_pods_is_in_their_template_and_its_change_is_drift() {
        let mut builder = builder();
        builder.labels = [("team".into(), "builds".into())].into();
        builder.image_pull_secrets = vec!["registry".into()];
        builder.priority_class = Some("high".into());
        builder.service_account = Some("builds".into());
        builder.pre_stop = vec!["sleep".into(), "10".into()];
        builder.affinity = Some(json!({"nodeAffinity": {"x": ["y"]}}));
        let zone = r#"{"topology_key": "topology.kubernetes.io/zone", "when_unsatisfiable": "DoNotSchedule"}"#;
        builder.topology_spread = Some(vec![serde_json::from_str(zone).expect("a constraint")]);
        let made = whole("d0", &builder, None);
        let (template, pod) = (&made["spec"]["template"], &made["spec"]["template"]["spec"]);
        assert_eq!(template["metadata"]["labels"], json!({"app": "d0", "team": "builds"}));
        assert_eq!(made["spec"]["selector"]["matchLabels"], json!({"app": "d0"}));
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!((&pod["priorityClassName"], &pod["serviceAccountName"]), (&json!("high"), &json!("builds")));
        assert_eq!(pod["affinity"], json!({"nodeAffinity": {"x": ["y"]}}));
        let spread = json!([{"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1,
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "d0"}}}]);
        assert_eq!(pod["topologySpreadConstraints"], spread);
        assert_eq!(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"], json!(["sleep", "10"]));
        let before = whole("d0", &super::tests::builder(), None);
        // Seven settings; the account has two fields, and the constraint is one list.
        assert_eq!(lines(&before, &builder, None).len(), 8, "{:#?}", lines(&before, &builder, None));
        assert_eq!(lines(&applied(&before, &builder), &builder, None), [""; 0]);
    }
}
