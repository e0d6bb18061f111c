//! Checks that Kubernetes and the worker accept the files in `docker/`.
//!
//! `tests/kubernetes/in_cluster.rs` applies them to a real cluster. These tests only read the files, so they run
//! everywhere.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sidebake::bounds;
use sidebake::configuration;
use sidebake::settings::Settings;

#[path = "../kubernetes/manifests.rs"]
pub mod manifests;

use manifests::{document, documents, rules};

/// A document after a round trip through Kubernetes' own types. Those of KEDA and of the Prometheus Operator are not known here.
pub fn understood(document: &Value) -> Value {
    fn through<T: DeserializeOwned + Serialize>(document: &Value) -> Value {
        let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document:#}"));
        serde_json::to_value(typed).unwrap()
    }
    match document["kind"].as_str().unwrap() {
        "ConfigMap" => through::<ConfigMap>(document),
        "Deployment" => through::<Deployment>(document),
        "HorizontalPodAutoscaler" => through::<HorizontalPodAutoscaler>(document),
        "Job" => through::<Job>(document),
        "Namespace" => through::<Namespace>(document),
        "NetworkPolicy" => through::<NetworkPolicy>(document),
        "PodDisruptionBudget" => through::<PodDisruptionBudget>(document),
        "PodMonitor" | "PrometheusRule" | "ScaledObject" => document.clone(),
        "Role" => through::<Role>(document),
        "RoleBinding" => through::<RoleBinding>(document),
        "Service" => through::<Service>(document),
        "ServiceAccount" => through::<ServiceAccount>(document),
        "ValidatingAdmissionPolicy" => through::<ValidatingAdmissionPolicy>(document),
        "ValidatingAdmissionPolicyBinding" => through::<ValidatingAdmissionPolicyBinding>(document),
        other => panic!("{other}: add it here"),
    }
}

#[test]
fn every_field_of_the_manifests_is_one_that_kubernetes_knows() {
    for document in documents() {
        assert_eq!(understood(&document), document);
        // The namespace where the worker may exec contains only roles and BuildKit's pods.
        let (kind, namespace) = (document["kind"].as_str().unwrap(), &document["metadata"]["namespace"]);
        match kind {
            "Namespace" | "ValidatingAdmissionPolicy" | "ValidatingAdmissionPolicyBinding" => {
                assert_eq!(*namespace, Value::Null);
            }
            "Role" | "RoleBinding" if document["metadata"]["name"] != "sidebake-deletion-cost" => {
                assert_eq!(namespace, "release-builder");
            }
            "NetworkPolicy" => assert!(namespace == "sidebake" || namespace == "release-builder"),
            _ => assert_eq!(namespace, "sidebake", "{kind}"),
        }
    }
}

/// The settings of the worker's ConfigMap, as the worker reads them.
fn settings() -> Settings {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let map = document("ConfigMap", "sidebake");
    std::fs::write(file.path(), map["data"]["sidebake.toml"].as_str().unwrap()).unwrap();
    configuration::load(&[file.path().to_owned()], None).unwrap_or_else(|error| panic!("{error}"))
}

/// The pod of a Deployment or Job, and its one container.
fn pod(kind: &str, name: &str) -> (Value, Value) {
    let pod = document(kind, name)["spec"]["template"]["spec"].take();
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    (pod.clone(), containers[0].clone())
}

#[test]
fn all_children_at_their_limits_fit_into_the_pods_memory() {
    // docs/limits.md has the same rule.
    let (own, mib) = (512 << 20, 1_u64 << 20);
    let settings = settings();
    let (_, container) = pod("Deployment", "sidebake");
    let limit = container["resources"]["limits"]["memory"].as_str().unwrap();
    let limit = limit.strip_suffix("Gi").unwrap().parse::<u64>().unwrap() << 30;
    let probe = bounds::PROBE_MEMORY as u64;
    // Each slot counts its largest child, and the probe that runs beside it.
    let child = settings.sandbox.max_data_bytes.max(settings.sandbox.max_data_bytes.min(bounds::PRINT_MEMORY as u64));
    let slots = settings.total_concurrency() as u64;
    let sum = own + slots * (child + probe);
    assert!(sum <= limit, "{} MiB of at most {} MiB", sum / mib, limit / mib);
    let rule = format!("{} MiB + {slots} × ({} MiB + {} MiB) = {} GiB", own / mib, child / mib, probe / mib, sum >> 30);
    assert!(include_str!("../../docs/limits.md").contains(&rule), "docs/limits.md should say: {rule}");
    // Measurements of docker-buildx show a quarter of this (docs/limits.md).
    assert!(child >= 512 << 20);
}

fn both_pods() -> [(Value, Value); 2] {
    [pod("Deployment", "sidebake"), pod("Job", "sidebake-builder")]
}

#[test]
fn the_worker_accepts_its_configuration_and_the_pod_mounts_its_files() {
    let (settings, (pod, container)) = (settings(), pod("Deployment", "sidebake"));

    let grace_s = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace_s >= settings.shutdown.timeout.as_secs() + 30, "Kubernetes kills it while it requeues its jobs");
    let port = settings.health.listen.unwrap().port();
    assert_eq!(container["ports"], json!([{"name": "health", "containerPort": port}]));
    for (probe, path) in [("livenessProbe", "/live"), ("readinessProbe", "/ready")] {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "health"}));
    }

    let is_mounted = |path: &Path| {
        let mounts = container["volumeMounts"].as_array().unwrap().iter();
        mounts.map(|mount| mount["mountPath"].as_str().unwrap()).any(|folder| path.starts_with(folder))
    };
    let builder = &settings.builders["default"];
    let key = settings.github.private_key_file.as_ref().unwrap();
    for path in [key, &settings.state.directory, builder.buildkitd_config.as_ref().unwrap()] {
        assert!(is_mounted(path), "no volume contains {}", path.display());
    }
    let secret = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["secret"].is_object()).unwrap();
    assert_eq!(secret["secret"]["items"][0]["path"], json!(key.file_name().unwrap().to_str()));
    let config = document("ConfigMap", "sidebake");
    assert!(config["data"]["buildkitd.toml"].as_str().unwrap().contains("maxUsedSpace"));

    // Both settings describe the same builds: a pod must not end before its builds.
    assert!(builder.grace_period.unwrap() >= settings.bake.timeout);
    assert!(builder.limits.contains_key("memory") && builder.requests.contains_key("cpu"));
    assert_eq!(builder.annotations["karpenter.sh/do-not-disrupt"], "true");
    assert_eq!((builder.kubeconfig.as_ref(), builder.namespace.as_deref()), (None, Some("release-builder")));
    let policies = || documents().into_iter().filter(|one| one["kind"] == "NetworkPolicy");
    // Whatever the Deployments of builders are called: the namespace has only their pods.
    let of_builders: Vec<Value> =
        policies().filter(|policy| policy["metadata"]["namespace"] == "release-builder").collect();
    assert!(of_builders.iter().any(|policy| policy["metadata"]["name"] == "outside"));
    assert!(of_builders.iter().all(|policy| policy["spec"]["podSelector"] == json!({})), "{of_builders:?}");
    let validated: BTreeSet<(String, String)> = policies()
        .filter_map(|mut policy| {
            let namespace = policy["metadata"]["namespace"].as_str()?.to_owned();
            Some((namespace, policy["spec"]["podSelector"]["matchLabels"]["app"].take().as_str()?.to_owned()))
        })
        .collect();
    assert_eq!(validated, [("sidebake".to_owned(), "sidebake".to_owned())].into());
}

#[test]
fn the_pods_have_no_privileges_and_no_access_to_their_node() {
    let mut images = BTreeSet::new();
    for (pod, container) in both_pods() {
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let own = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
        assert_eq!(container["securityContext"], own);
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            assert_eq!(pod[key], Value::Null, "{key}");
        }
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().all(|volume| volume["hostPath"].is_null()), "no engine's socket, nothing else");
        images.insert(container["image"].as_str().unwrap().to_owned());
    }
    assert_eq!(images.len(), 1, "{images:?}");
    assert!(images.first().unwrap().ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{images:?}");
}

#[test]
fn the_pod_that_runs_hostile_builds_can_change_nothing() {
    let (run, bootstrap) = (rules("sidebake-run"), rules("sidebake-bootstrap"));
    let changing: Vec<_> =
        run.iter().filter(|(_, _, verb)| !["get", "list", "watch"].contains(&verb.as_str())).collect();
    assert_eq!(changing, [&(String::new(), "pods/exec".to_owned(), "create".to_owned())]);
    assert!(bootstrap.iter().all(|(_, resource, _)| resource != "pods/exec" && resource != "secrets"));
    for (account, role) in [("sidebake", "sidebake-run"), ("sidebake-bootstrap", "sidebake-bootstrap")] {
        let binding = document("RoleBinding", role);
        assert_eq!((&binding["roleRef"]["name"], &binding["subjects"][0]["name"]), (&json!(role), &json!(account)));
    }
    let accounts = both_pods().map(|(pod, _)| pod["serviceAccountName"].clone());
    assert_eq!(accounts, [json!("sidebake"), json!("sidebake-bootstrap")]);
}

#[test]
fn the_right_to_patch_pods_is_optional_and_comes_after_the_policy_that_restricts_it() {
    assert_eq!(rules("sidebake-deletion-cost"), [(String::new(), "pods".to_owned(), "patch".to_owned())]);
    let file = "optional/deletion-cost.yaml";
    let documents: Vec<Value> = serde_saphyr::from_multiple(&manifests::text(file)).unwrap();
    let kinds: Vec<&str> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    let order = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "Role", "RoleBinding"];
    assert_eq!(kinds, order, "{file}");
    let (policy, subject) = (&documents[0]["spec"], &documents[3]["subjects"][0]);
    let account = format!(
        "system:serviceaccount:{}:{}",
        subject["namespace"].as_str().unwrap(),
        subject["name"].as_str().unwrap()
    );
    let condition = policy["matchConditions"][0]["expression"].as_str().unwrap();
    assert_eq!(condition, format!("request.userInfo.username == \"{account}\""));
    assert_eq!(
        (&policy["failurePolicy"], &documents[1]["spec"]["validationActions"]),
        (&json!("Fail"), &json!(["Deny"]))
    );
    assert_eq!(documents[1]["spec"]["policyName"], documents[0]["metadata"]["name"]);
}

#[test]
fn the_autoscalers_ask_the_workers_port_and_remove_workers_slowly() {
    let service = document("Service", "sidebake");
    let (_, container) = pod("Deployment", "sidebake");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], container["ports"][0]["name"]);
    assert_eq!(service["spec"]["selector"], document("Deployment", "sidebake")["spec"]["selector"]["matchLabels"]);
    let scaled = document("ScaledObject", "sidebake");
    let port = &service["spec"]["ports"][0]["port"];
    assert_eq!(scaled["spec"]["triggers"][0]["metadata"]["url"], format!("http://sidebake.sidebake.svc:{port}/scale"));
    let hpa = document("HorizontalPodAutoscaler", "sidebake");
    let scale_down = &hpa["spec"]["behavior"]["scaleDown"];
    assert_eq!(*scale_down, scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]);
    assert!(scale_down["stabilizationWindowSeconds"].as_u64().unwrap() >= 600);
    for bound in ["min", "max"] {
        assert_eq!(hpa["spec"][format!("{bound}Replicas")], scaled["spec"][format!("{bound}ReplicaCount")]);
    }
    let env = container["env"].as_array().unwrap();
    for (name, field) in [("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace")] {
        let expected = json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}});
        assert!(env.contains(&expected), "{env:?}");
    }
}

#[test]
fn the_image_has_every_file_at_the_path_that_the_worker_uses() {
    let dockerfile = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/Dockerfile")).unwrap();
    let settings = settings();
    let ends_with = |path: &Path| {
        let path = path.display().to_string();
        assert!(dockerfile.lines().any(|line| line.ends_with(&format!(" {path}"))), "{path}");
    };
    ends_with(&settings.buildx.binary);
    ends_with(Path::new("/etc/ssl/certs/ca-certificates.crt"));
    ends_with(&settings.state.directory);
    let is_step = |line: &&str| !line.starts_with('#') && line.split(' ').next() == Some("RUN");
    assert_eq!(dockerfile.lines().find(is_step), None, "a step needs the network or a shell");
}
