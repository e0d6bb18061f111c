//! The Helm chart `docker/helm/sidebake` makes the objects of `docker/kubernetes`, and what its values add is valid.
//!
//! Each test runs Helm 3 and Helm 4, which `tests/peers` provides. No test needs a cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::deployment::manifests::documents;
use crate::deployment::understood;

/// The programs.
static HELMS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    ["helm-3", "helm-4"].map(|peer| {
        let mut peers = Command::new("tests/peers");
        let made = peers.arg(peer).current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output().unwrap();
        assert!(made.status.success(), "tests/peers cannot make {peer}; run docker/install helm");
        PathBuf::from(String::from_utf8(made.stdout).unwrap().trim())
    })
});

fn chart() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "docker", "helm", "sidebake"].iter().collect()
}

/// Runs a command of helm on a chart with values.
fn run(helm: &Path, chart: &Path, command: &[&str], values: &Value) -> Output {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    let mut helm = Command::new(helm);
    helm.args(command).arg(chart).arg("--values").arg(file.path()).stdin(Stdio::null());
    // Helm reads its own settings from these, such as a default namespace.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"HELM_")) {
        helm.env_remove(name);
    }
    helm.env_remove("KUBECONFIG").output().unwrap()
}

/// What a release called `sidebake` in a namespace of that name contains, as both versions of Helm render it.
fn rendered(values: &Value) -> Vec<Value> {
    rendered_as(&chart(), "sidebake", "sidebake", values)
}

fn rendered_as(chart: &Path, release: &str, namespace: &str, values: &Value) -> Vec<Value> {
    let [old, new] = HELMS.each_ref().map(|helm| {
        let output = run(helm, chart, &["template", release, "--namespace", namespace], values);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", helm.display());
        let text = String::from_utf8(output.stdout).unwrap();
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let mut objects: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
        objects.sort_by_key(key);
        objects
    });
    assert_eq!(old, new, "Helm 3 and Helm 4 render differently");
    new
}

/// Why both versions of Helm refuse the values.
fn refusals(values: &Value) -> [String; 2] {
    HELMS.each_ref().map(|helm| {
        let output = run(helm, &chart(), &["template", "sidebake", "--namespace", "sidebake"], values);
        assert!(!output.status.success(), "{} takes {values}", helm.display());
        String::from_utf8(output.stderr).unwrap()
    })
}

/// Kind, namespace and name.
fn key(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

fn by_key(objects: Vec<Value>) -> BTreeMap<(String, String, String), Value> {
    let n_objects = objects.len();
    let by_key: BTreeMap<_, _> = objects.into_iter().map(|object| (key(&object), object)).collect();
    assert_eq!(by_key.len(), n_objects, "two objects have one name");
    by_key
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// An object without the labels and annotations that only Helm's objects have.
fn plain(mut object: Value) -> Value {
    let is_helms = |key: &str| {
        ["app.kubernetes.io/", "helm.sh/"].iter().any(|prefix| key.starts_with(prefix)) || key == "checksum/config"
    };
    for path in ["/metadata", "/spec/template/metadata"] {
        let Some(metadata) = object.pointer_mut(path).and_then(Value::as_object_mut) else { continue };
        for field in ["labels", "annotations"] {
            let Some(map) = metadata.get_mut(field).and_then(Value::as_object_mut) else { continue };
            map.retain(|key, _| !is_helms(key));
            if map.is_empty() {
                metadata.remove(field);
            }
        }
    }
    object
}

/// Values that change what an operator of `docker/kubernetes` changes by hand, and enable each part.
fn values_of_the_manifests(autoscaler: &str) -> Value {
    json!({
        "createNamespace": true,
        "autoscaling": {"by": autoscaler},
        "podDeletionCost": {"enabled": true},
        "podMonitor": {"enabled": true},
        "networkPolicy": {
            "enabled": true,
            "apiServer": {"cidrs": ["192.0.2.1/32"]},
            "redis": {"cidrs": ["192.0.2.2/32"]},
        },
    })
}

#[test]
fn the_chart_makes_the_plain_manifests() {
    let mut charts = by_key(rendered(&values_of_the_manifests("none")));
    for (autoscaler, kind) in [("keda", "ScaledObject"), ("hpa", "HorizontalPodAutoscaler")] {
        let with = rendered(&values_of_the_manifests(autoscaler));
        let deployment = find(&with, "Deployment", "sidebake");
        assert_eq!(deployment["spec"]["replicas"], Value::Null, "an upgrade would undo what {autoscaler} did");
        let scaler = find(&with, kind, "sidebake").clone();
        charts.insert(key(&scaler), scaler);
        assert_eq!(with.len(), charts.len() - usize::from(autoscaler == "hpa"), "{autoscaler} adds one object");
    }
    let mut charts: BTreeMap<_, _> = charts.into_iter().map(|(key, object)| (key, plain(object))).collect();
    for (key, manifest) in by_key(documents()) {
        let chart = charts.remove(&key).unwrap_or_else(|| panic!("the chart has no {key:?}"));
        assert_eq!(chart, manifest, "left: the chart, right: docker/kubernetes");
    }
    assert!(charts.is_empty(), "only the chart has {:?}", charts.keys());
}

#[test]
fn the_defaults_are_the_plain_manifests_without_optional_parts() {
    let objects = rendered(&json!({}));
    let kinds: Vec<String> =
        by_key(objects.clone()).into_keys().map(|(kind, _, name)| format!("{kind} {name}")).collect();
    let expected = [
        "ConfigMap sidebake",
        "Deployment sidebake",
        "Job sidebake-builder",
        "Namespace release-builder",
        "PodDisruptionBudget sidebake",
        "Role sidebake-bootstrap",
        "Role sidebake-run",
        "RoleBinding sidebake-bootstrap",
        "RoleBinding sidebake-run",
        "Service sidebake",
        "ServiceAccount sidebake",
        "ServiceAccount sidebake-bootstrap",
    ];
    assert_eq!(kinds, expected);
    for object in objects.iter().filter(|object| object["kind"] == "Role") {
        assert_eq!(object["metadata"]["namespace"], "release-builder", "the worker has no right in its own namespace");
    }
}

#[test]
fn the_versions_are_the_workers() {
    let text = std::fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(env!("CARGO_PKG_VERSION")), &chart["version"]));
}

/// Every value with something other than its default.
fn all_values() -> Value {
    serde_saphyr::from_str(include_str!("helm.yaml")).unwrap()
}

#[test]
fn each_value_is_where_kubernetes_reads_it() {
    let objects = rendered(&all_values());
    for object in &objects {
        assert_eq!(understood(object), *object, "Kubernetes does not know a field of this");
        let metadata = &object["metadata"];
        assert_eq!(
            (&metadata["labels"]["team"], &metadata["annotations"]["owner"]),
            (&json!("builds"), &json!("platform"))
        );
        assert_eq!(metadata["labels"]["app.kubernetes.io/name"], "builds");
    }
    let values = all_values();
    let deployment = find(&objects, "Deployment", "sidebake");
    let template = &deployment["spec"]["template"];
    // The selector needs this label, so no value replaces it.
    let labels = json!({"app": "sidebake", "team": "builds", "azure.workload.identity/use": "true", "app.kubernetes.io/name": "builds"});
    assert_eq!(
        (&template["metadata"]["labels"], &template["metadata"]["annotations"]),
        (&labels, &values["podAnnotations"])
    );
    let pod = &template["spec"];
    for (field, value) in [
        ("imagePullSecrets", "imagePullSecrets"),
        ("nodeSelector", "nodeSelector"),
        ("tolerations", "tolerations"),
        ("affinity", "affinity"),
        ("priorityClassName", "priorityClassName"),
        ("terminationGracePeriodSeconds", "terminationGracePeriodSeconds"),
    ] {
        assert_eq!(pod[field], values[value]);
    }
    let selectors: Vec<&Value> = pod["topologySpreadConstraints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["labelSelector"]["matchLabels"])
        .collect();
    assert_eq!(selectors, [&json!({"app": "sidebake"}), &json!({"team": "builds"})]);
    let container = &pod["containers"][0];
    assert_eq!(container["image"], format!("registry.example:5000/acme/sidebake@sha256:{}", "0".repeat(64)));
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(container["env"][0]["valueFrom"]["secretKeyRef"], json!({"name": "redis", "key": "url"}));
    assert!(container["env"].as_array().unwrap().contains(&values["extraEnv"][0]));
    assert!(container["volumeMounts"].as_array().unwrap().contains(&values["extraVolumeMounts"][0]));
    assert_eq!(container["ports"][0]["containerPort"], 9090);
    let volume = |name: &str| pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).unwrap();
    assert_eq!(volume("config")["configMap"]["name"], "settings");
    assert_eq!(volume("state")["ephemeral"], values["state"]["volume"]["ephemeral"]);
    assert_eq!(*volume("ca"), values["extraVolumes"][0]);
    assert_eq!(volume("github-app")["secret"]["secretName"], "app");
    assert_eq!(volume("github-app")["secret"]["items"], json!([{"key": "key.pem", "path": "github-app.pem"}]));
    assert!(objects.iter().all(|object| object["kind"] != "ConfigMap"));

    let job = &find(&objects, "Job", "sidebake-builder")["spec"]["template"]["spec"];
    assert_eq!((&job["serviceAccountName"], &pod["serviceAccountName"]), (&json!("admin"), &json!("worker")));
    assert_eq!(job["containers"][0]["args"][1], "apply");
    assert_eq!((&job["tolerations"], &job["imagePullSecrets"]), (&values["tolerations"], &values["imagePullSecrets"]));
    for (name, account) in [("worker", "serviceAccount"), ("admin", "bootstrapServiceAccount")] {
        let annotations = find(&objects, "ServiceAccount", name)["metadata"]["annotations"].as_object().unwrap();
        let (key, value) = values[account]["annotations"].as_object().unwrap().iter().next().unwrap();
        assert_eq!(annotations[key], *value);
    }
    for namespace in ["fast-builder", "slow-builder"] {
        for kind in ["Role", "RoleBinding", "NetworkPolicy"] {
            let is_here = |object: &&Value| object["kind"] == kind && object["metadata"]["namespace"] == namespace;
            assert_ne!(objects.iter().filter(is_here).count(), 0, "{kind} in {namespace}");
        }
        let keeps = &find(&objects, "Namespace", namespace)["metadata"]["annotations"]["helm.sh/resource-policy"];
        assert_eq!(*keeps, "keep");
    }
    let has_sets = |role: &str, verbs: Value| {
        let rules = find(&objects, "Role", role)["rules"].as_array().unwrap();
        rules.iter().any(|rule| rule["resources"] == json!(["statefulsets"]) && rule["verbs"] == verbs)
    };
    assert!(has_sets("sidebake-run", json!(["get"])) && has_sets("sidebake-bootstrap", json!(["get", "patch"])));
    let policy = find(&objects, "ValidatingAdmissionPolicy", "sidebake-deletion-cost");
    let condition = policy["spec"]["matchConditions"][0]["expression"].as_str().unwrap();
    assert_eq!(condition, "request.userInfo.username == \"system:serviceaccount:sidebake:worker\"");
    let egress = |namespace: &str| {
        let is_it = |object: &&Value| key(object) == ("NetworkPolicy".into(), namespace.into(), "outside".into());
        objects.iter().find(is_it).unwrap()["spec"]["egress"][1].clone()
    };
    assert_eq!(egress("sidebake"), values["networkPolicy"]["workerEgress"][0]);
    assert_eq!(egress("slow-builder"), values["networkPolicy"]["builderEgress"][0]);
    let health = find(&objects, "NetworkPolicy", "health");
    assert_eq!(health["spec"]["ingress"][0]["ports"][0]["port"], 9090);
    assert_eq!(find(&objects, "PodMonitor", "sidebake")["metadata"]["labels"]["prometheus"], "main");
    let metric = &find(&objects, "HorizontalPodAutoscaler", "sidebake")["spec"]["metrics"][0]["external"]["metric"];
    assert_eq!(metric["selector"]["matchLabels"], json!({"fleet": "one"}));
}

#[test]
fn helm_finds_nothing_to_correct() {
    for helm in HELMS.iter() {
        for values in [json!({}), values_of_the_manifests("keda"), all_values()] {
            let output = run(helm, &chart(), &["lint", "--strict", "--quiet"], &values);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{}: {said}", helm.display());
        }
    }
}

#[test]
fn the_settings_are_in_the_config_map_as_given() {
    let settings =
        "  # first\n\n[log]\nformat = \"{{ .Values.replicas }}\"   \n\ttab = '''\n: - | # > \"\u{e9}\"\n\n'''\n";
    let objects = rendered(&json!({"settings": settings, "buildkitd": ""}));
    assert_eq!(find(&objects, "ConfigMap", "sidebake")["data"], json!({"sidebake.toml": settings}));
    // A change of the settings replaces the pods.
    let checksum = |objects: &[Value]| {
        let template = &find(objects, "Deployment", "sidebake")["spec"]["template"];
        template["metadata"]["annotations"]["checksum/config"].as_str().unwrap().to_owned()
    };
    let others = rendered(&json!({"settings": "concurrency = 1\n"}));
    assert_ne!(checksum(&objects), checksum(&others));
}

#[test]
fn wrong_values_are_refused_with_their_name() {
    let outside = json!({"enabled": true, "apiServer": {"cidrs": ["192.0.2.1/32"]}});
    for (values, word) in [
        (json!({"replica": 1}), "replica"),
        (json!({"networkPolicy": {"redis": {"cidr": "192.0.2.2/32"}}}), "cidr"),
        (json!({"resources": {"limit": {}}}), "limit"),
        (json!({"replicas": "2"}), "replicas"),
        (json!({"settings": ""}), "settings"),
        (json!({"podLabels": {"a": true}}), "podLabels"),
        (json!({"image": {"digest": "sha256:0"}}), "digest"),
        (json!({"autoscaling": {"by": "both"}}), "by"),
        (json!({"autoscaling": {"minReplicas": 0}}), "minReplicas"),
        (json!({"autoscaling": {"minReplicas": 11}}), "maxReplicas, 10"),
        (json!({"autoscaling": {"by": "keda"}, "service": {"enabled": false}}), "KEDA asks the Service"),
        (json!({"networkPolicy": outside}), "networkPolicy.redis.cidrs"),
        (json!({"builderNamespaces": {"names": ["sidebake"]}}), "the namespace of the worker"),
    ] {
        for refusal in refusals(&values) {
            assert!(refusal.contains(word), "{values}: {refusal}");
        }
    }
}

#[test]
fn two_releases_can_share_a_builder_namespace() {
    let values = json!({"builderNamespaces": {"create": false}, "podDeletionCost": {"enabled": true}});
    let of = |release: &str, namespace: &str| by_key(rendered_as(&chart(), release, namespace, &values));
    let first = of("sidebake", "sidebake");
    for other in [of("other", "sidebake"), of("other", "elsewhere")] {
        assert!(first.keys().all(|key| !other.contains_key(key)), "{:?}", other.keys());
    }
    // Objects of the whole cluster differ also for releases of the same name.
    let same = of("sidebake", "elsewhere");
    let shared: Vec<_> = first.keys().filter(|key| same.contains_key(key)).collect();
    assert!(
        shared.iter().all(|(kind, namespace, _)| namespace == "release-builder" && kind.starts_with("Role")),
        "{shared:?}"
    );
}

#[test]
fn every_value_has_a_comment_and_a_schema_that_refuses_unknown_keys() {
    let text = std::fs::read_to_string(chart().join("values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let schema: Value = serde_json::from_slice(&std::fs::read(chart().join("values.schema.json")).unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut from = 0;
    compare(&values, &schema, &mut from, &lines, "");
}

/// Checks one section and its own sections. `from` is the line where the next key may be.
fn compare(values: &Value, schema: &Value, from: &mut usize, lines: &[&str], path: &str) {
    let keys = schema["properties"].as_object().unwrap();
    assert_eq!(schema["additionalProperties"], false, "{path} may have unknown keys");
    let values = values.as_object().unwrap();
    let extra: Vec<&String> = keys.keys().filter(|key| !values.contains_key(*key) && *key != "global").collect();
    assert!(extra.is_empty(), "values.yaml has no default of {extra:?} in {path:?}");
    let indent = "  ".repeat(path.matches('.').count());
    for (key, value) in values {
        let below = format!("{path}{key}.");
        let line = format!("{indent}{key}:");
        let is_it = |text: &&str| **text == line || text.starts_with(&format!("{line} "));
        *from +=
            lines[*from..].iter().position(is_it).unwrap_or_else(|| panic!("values.yaml: {below} is out of order"));
        assert!(lines[*from - 1].starts_with(&format!("{indent}# ")), "values.yaml: {below} has no comment");
        *from += 1;
        let of_key = keys.get(key).unwrap_or_else(|| panic!("values.schema.json has no {below}"));
        if of_key["properties"].is_object() {
            compare(value, of_key, from, lines, &below);
        }
    }
}

#[test]
fn the_alert_rules_are_those_of_the_observability_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if let Ok(rules) = std::fs::read_to_string(root.join("docker/observability/alerts.yaml")) {
        let charts = std::fs::read_to_string(chart().join("files/alerts.yaml")).unwrap_or_default();
        assert!(
            charts == rules,
            "docker/helm/sidebake/files/alerts.yaml must be a link to, or a copy of, docker/observability/alerts.yaml"
        );
    }

    // Prometheus' own braces reach Prometheus.
    let other = tempfile::tempdir().unwrap();
    copy_tree(&chart(), other.path());
    let rules = "# A comment.\ngroups:\n- name: sidebake\n  rules:\n  - alert: Down\n    expr: up == 0\n    annotations:\n      \
                 summary: \"{{ $labels.pod }} is down\"\n";
    std::fs::create_dir_all(other.path().join("files")).unwrap();
    std::fs::write(other.path().join("files/alerts.yaml"), rules).unwrap();
    let values = json!({"prometheusRule": {"enabled": true, "labels": {"prometheus": "main"}}});
    let objects = rendered_as(other.path(), "sidebake", "sidebake", &values);
    let rule = find(&objects, "PrometheusRule", "sidebake");
    assert_eq!(rule["spec"], serde_saphyr::from_str::<Value>(rules).unwrap());
    assert_eq!(rule["metadata"]["labels"]["prometheus"], "main");

    std::fs::remove_file(other.path().join("files/alerts.yaml")).unwrap();
    for helm in HELMS.iter() {
        let output = run(helm, other.path(), &["template", "sidebake"], &values);
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("copy docker/observability/alerts.yaml"),
            "{output:?}"
        );
    }
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
