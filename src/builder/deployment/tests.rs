//! Deployments as configured, as Kubernetes returns them, as owners change them.

use super::configured::{IMAGE, ROOTLESS_IMAGE};
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
    let names: Vec<&Value> = container["env"].as_array().unwrap().iter().map(|variable| &variable["name"]).collect();
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
