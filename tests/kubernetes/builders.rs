//! `sidebake builder`: creates once, adopts, explains, compares, and changes on request.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::engine::engine;
use crate::harness::{Harness, text};
use crate::namespace::Namespace;

/// A harness with one builder, `default`, in its own namespace.
fn harness_with(more: &str) -> (Harness, Namespace) {
    let mut harness = Harness::open();
    let namespace = Namespace::of(&harness);
    harness.builders = namespace.builder("default", more);
    (harness, namespace)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_ensures_at_once_make_one_deployment() {
    let (harness, namespace) = harness_with("replicas = 2");
    let config = harness.config("");

    let ensure = || {
        let mut sidebake = harness.home.sidebake();
        sidebake.args(["builder", "ensure", "--config"]).arg(&config).stdout(Stdio::piped()).stderr(Stdio::piped());
        sidebake.spawn().unwrap()
    };
    // Starts all of them before it waits for the first.
    let running: Vec<_> = (0..20).map(|_| ensure()).collect();
    let outputs: Vec<_> = running.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", text(output));
    }
    assert_eq!(outputs.iter().filter(|output| text(output).contains("created and ready")).count(), 1);
    assert!(
        text(&harness.run(&["builder", "ensure"], "")).contains("exists and is ready"),
        "and one that comes later finds it"
    );
    assert_eq!(namespace.pods().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_builder_is_adopted_shown_with_its_drift_and_changed_only_by_apply() {
    let mut harness = Harness::open();
    let namespace = Namespace::of(&harness);
    // Like a builder that `docker buildx create` makes.
    let options = format!("image={},replicas=1,namespace={}", engine().told("BUILDKIT_IMAGE"), namespace.name);
    let mut create = Command::new(&world::buildx().path);
    create.args([
        "create",
        "--name",
        "development",
        "--node",
        "development0",
        "--driver",
        "kubernetes",
        "--bootstrap",
        "--use",
    ]);
    create.args(["--driver-opt", &options]).envs(engine().environment()).env("BUILDX_CONFIG", harness.home.path());
    assert!(create.output().unwrap().status.success());
    let before = namespace.json(&["get", "deployment", "development0"]);
    harness.builders = namespace.builder("development", "replicas = 2\nenvironment = { A = \"b\" }");

    let ensured = harness.run(&["builder", "ensure"], "");
    assert!(ensured.status.success(), "{}", text(&ensured));
    assert!(text(&ensured).contains("drift: spec.replicas is 1; configured: 2"), "{}", text(&ensured));
    let after = namespace.json(&["get", "deployment", "development0"]);
    assert_eq!(before["spec"], after["spec"], "adopted, not changed");
    let current = Command::new(&world::buildx().path)
        .arg("inspect")
        .envs(engine().environment())
        .env("BUILDX_CONFIG", harness.home.path())
        .output()
        .unwrap();
    assert!(text(&current).contains("development"), "the owner's current builder stays selected: {}", text(&current));

    let shown = harness.run(&["builder", "status", "--json"], "");
    assert!(shown.status.success(), "{}", text(&shown));
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let pod = &shown[0]["pods"][0];
    assert_eq!((&pod["is_ready"], &pod["n_restarts"]), (&Value::Bool(true), &Value::from(0)), "{shown:#}");
    assert!(pod["node"].is_string() && pod["age_s"].is_number(), "{shown:#}");
    let doctor = text(&harness.run(&["doctor"], ""));
    assert!(doctor.contains("spec.replicas is 1, not 2"), "{doctor}");

    let applied = harness.run(&["builder", "apply"], "");
    assert!(applied.status.success(), "{}", text(&applied));
    let now = namespace.json(&["get", "deployment", "development0"]);
    assert_eq!(now["spec"]["replicas"], 2);
    assert_eq!(now["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "b");
    assert_eq!(
        before["spec"]["template"]["spec"]["containers"][0]["readinessProbe"],
        now["spec"]["template"]["spec"]["containers"][0]["readinessProbe"],
        "apply keeps what the configuration does not set"
    );
    let quiet = text(&harness.run(&["builder", "ensure"], ""));
    assert!(!quiet.contains("drift"), "{quiet}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_does_not_start_is_explained_in_kubernetes_words() {
    let table = [
        ("image = \"registry.invalid/no/image:1\"", "", &["ErrImagePull", "registry.invalid/no/image:1"][..]),
        ("requests = { cpu = \"1000\" }", "", &["Unschedulable", "Insufficient cpu"]),
        (
            "requests = { memory = \"2Mi\" }",
            "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: few}\nspec: {hard: {requests.memory: 1Mi}}\n",
            &["exceeded quota: few"],
        ),
    ];
    for (more, manifest, expected) in table {
        let (mut harness, namespace) = harness_with("");
        let image = format!("image = \"{}\"\n", engine().told("BUILDKIT_IMAGE"));
        // TOML allows a key only once.
        let builders =
            if more.starts_with("image") { harness.builders.replace(&image, "") } else { harness.builders.clone() };
        harness.builders = format!("{builders}{more}\ntimeout = \"15s\"\n");
        if !manifest.is_empty() {
            namespace.apply(manifest);
            // Kubernetes counts before it refuses.
            let counts = || namespace.json(&["get", "resourcequota", "few"])["status"]["hard"].is_object();
            namespace.until("the quota to count", counts).await;
        }
        let output = harness.run(&["builder", "ensure"], "");
        let said = text(&output);
        assert!(!output.status.success() && said.contains("0 of 1 pods of default0"), "{said}");
        for words in expected {
            // Kubernetes retries a pull with back-off, under another name.
            assert!(said.contains(words) || said.contains("ImagePullBackOff"), "{words}: {said}");
        }
    }
}

/// A builder as `docker buildx create` makes it with a persistent volume, from 0.34 on.
fn stateful_set() -> String {
    format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: default0}}\nspec:\n  serviceName: buildkitd\n  \
         podManagementPolicy: Parallel\n  replicas: 1\n  selector: {{matchLabels: {{app: default0}}}}\n  template:\n    \
         metadata: {{labels: {{app: default0}}}}\n    spec:\n      containers:\n      - name: buildkitd\n        image: {}\n        \
         securityContext: {{privileged: true}}\n        readinessProbe: {{exec: {{command: [buildctl, debug, workers]}}}}\n",
        engine().told("BUILDKIT_IMAGE"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_is_adopted_shown_and_changed_and_an_older_buildx_is_told() {
    let (harness, namespace) = harness_with("environment = { A = \"b\" }");
    namespace.apply(&stateful_set());
    let ensured = text(&harness.run(&["builder", "ensure"], ""));
    assert!(ensured.contains("exists and is ready") && ensured.contains("drift"), "{ensured}");
    let applied = harness.run(&["builder", "apply"], "");
    assert!(applied.status.success(), "{}", text(&applied));
    let live = namespace.json(&["get", "statefulset", "default0"]);
    assert_eq!(live["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "b");
    let shown = harness.run(&["builder", "status"], "");
    assert!(shown.status.success() && !text(&shown).contains("drift"), "{}", text(&shown));
    assert_eq!(namespace.json(&["get", "deployments"])["items"], Value::Array(Vec::new()));

    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("RUN true"))]);
    let _worker = harness.worker("");
    let native = harness.native("shop", &sha, &[harness.image("web", &sha)]);
    let jid = harness.redis.push("default", "BuildJob", serde_json::json!([native])).await;
    if world::buildx().version >= (0, 34) {
        assert_eq!(harness.report(&jid).await["status"], "succeeded");
        return;
    }
    harness.until("the job is retried", async || !harness.redis.sorted_set("retry").await.is_empty()).await;
    let (retry, _) = harness.redis.sorted_set("retry").await.remove(0);
    assert!(retry.contains("the builder default is a StatefulSet, which docker-buildx 0."), "{retry}");
}
