//! The worker in a pod, with an image that sidebake itself builds, and with `docker/kubernetes` applied.
//!
//! Replaces only what an operator replaces: names, addresses, sizes.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};
use world::File;

use crate::engine::engine;
use crate::harness::{Harness, target};
use crate::manifests;
use crate::namespace::Namespace;
use crate::relay::Relay;

/// Replaces each of `changes`, and fails when one is missing.
fn replaced(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "docker/kubernetes no longer has {from:?}");
        text.replace(from, to)
    })
}

/// The worker's image. A worker on this machine builds it from the three files of `docker/Dockerfile`. Returns its
/// reference.
async fn worker_image(harness: &mut Harness, namespace: &Namespace) -> String {
    harness.builders = namespace.builder("first", "replicas = 1");
    let ensured = harness.run(&["builder", "ensure"], "");
    assert!(ensured.status.success(), "{}", crate::harness::text(&ensured));

    let stripped = harness.home.path().join("sidebake");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(env!("CARGO_BIN_EXE_sidebake"));
    assert!(strip.status().unwrap().success());
    let repository: std::path::PathBuf = [env!("CARGO_MANIFEST_DIR"), "docker", "Dockerfile"].iter().collect();
    let files = [
        File::new("image/Dockerfile", std::fs::read(repository).unwrap()),
        File::executable("image/sidebake", std::fs::read(stripped).unwrap()),
        File::executable("image/docker-buildx", std::fs::read(&world::buildx().path).unwrap()),
        File::new("image/ca-certificates.crt", std::fs::read("/etc/ssl/certs/ca-certificates.crt").unwrap()),
    ];
    let sha = harness.commit_with("sidebake", &files);
    let mut image = harness.image("image", &sha);
    image["args"] = json!({"BASE": engine().base_image});
    let mut worker = harness.worker("");
    let report = harness.build(harness.native("sidebake", &sha, &[image])).await;
    assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
    worker.terminate().await;
    harness.reference("image", &sha)
}

/// A build of one image whose step takes a while.
fn application(harness: &Harness, repository: &str, sleep_s: u32) -> Value {
    let dockerfile = harness.dockerfile(&format!("RUN sleep {sleep_s} && echo {repository} > /out.txt\nCOPY . /srv"));
    let sha = harness.commit(repository, &[("web/Dockerfile", &dockerfile)]);
    harness.native(repository, &sha, &[harness.image("web", &sha)])
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_in_pods_build_with_their_service_account_and_outlive_a_rollout() {
    let mut harness = Harness::open();
    // The namespaces of the builder and the worker.
    let (builders, namespace) = (Namespace::of(&harness), Namespace::beside(&harness, "worker"));
    let image = worker_image(&mut harness, &builders).await;

    // The stand-ins listen only on this machine, so pods reach them through these relays.
    let host = engine().told("HOST_FROM_POD");
    let reach = async |port: u16| Relay::on(host, &format!("127.0.0.1:{port}")).await;
    let (redis, github, git) =
        (reach(harness.redis.port()).await, reach(harness.github.port()).await, reach(harness.git.port()).await);
    let app = format!(
        "app_id = \"{}\"\n    api_url = \"http://{}\"\n    git_url = \"http://{}\"",
        harness.github.app().id,
        github.address,
        git.address
    );
    namespace.kubectl(&[
        "create",
        "secret",
        "generic",
        "sidebake",
        &format!("--from-file=github-app.pem={}/app.pem", harness.home.path().display()),
        &format!("--from-literal=redis-url=redis://{}/0", redis.address),
    ]);
    let in_namespace = format!("namespace: {}", namespace.name);
    let whose = [("release-builder", builders.name.as_str()), ("namespace: sidebake", &in_namespace)];
    let which = ("registry.example/sidebake:0.1.0", image.as_str());
    let small = [
        ("app_id = \"12345\"", app.as_str()),
        ("registry_ports = [443]", &format!("registry_ports = [{}]", engine().registry_port())),
        ("moby/buildkit:buildx-stable-1", engine().told("BUILDKIT_IMAGE")),
        ("cpu = \"4\", memory = \"8Gi\"", "cpu = \"100m\", memory = \"64Mi\""),
        ("grace_period = \"30m\"", "grace_period = \"1s\""),
    ];
    let roles = replaced(&manifests::text("roles.yaml"), &whose);
    // The namespaces already exist under other names.
    let roles: Vec<&str> = roles.split("\n---\n").filter(|document| !document.contains("kind: Namespace")).collect();
    namespace.apply_anywhere(&roles.join("\n---\n"));
    namespace.apply_anywhere(&replaced(&manifests::text("network-policy.yaml"), &whose));
    // This Kubernetes does not know policies of admission.
    let costs = replaced(&manifests::text("optional/deletion-cost.yaml"), &[whose[1]]);
    let costs: Vec<&str> = costs.split("\n---\n").filter(|document| document.contains("rbac.authorization")).collect();
    namespace.apply_anywhere(&costs.join("\n---\n"));
    namespace.apply(&replaced(&manifests::text("worker.yaml"), &[&whose[..], &[which], &small].concat()));
    namespace.apply(&replaced(&manifests::text("builder.yaml"), &[whose[1], which]));
    namespace.kubectl(&["wait", "--for=condition=complete", "job/sidebake-builder", "--timeout=600s"]);
    namespace.kubectl(&["rollout", "status", "deployment/sidebake", "--timeout=600s"]);

    let said = namespace.kubectl(&[
        "exec",
        "deployment/sidebake",
        "--",
        "sidebake",
        "doctor",
        "--config",
        "/etc/sidebake/sidebake.toml",
    ]);
    println!("{said}");
    let report = harness.build(application(&harness, "shop", 0)).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(report["placement"]["builder"], "default", "{report:#}");
    // Sidekiq's page shows each worker under the name of its pod.
    let hosts = async || -> BTreeSet<String> {
        let identities = harness.redis.smembers("processes").await;
        identities.iter().map(|identity| identity.split(':').next().unwrap().to_owned()).collect()
    };
    let workers = || -> BTreeSet<String> {
        let pods = namespace.json(&["get", "pods", "-l", "app=sidebake"]);
        let pods = pods["items"].as_array().unwrap().iter();
        pods.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let old = workers();
    assert_eq!((old.len(), hosts().await), (2, old.clone()));

    // New pods start while the old ones finish their builds.
    let jid = harness.redis.push("default", "BuildJob", json!([application(&harness, "blog", 60)])).await;
    harness.is_in_flight().await;
    // When the Deployment shrinks, Kubernetes ends the other worker.
    let costs = || -> Vec<String> {
        let pods = namespace.json(&["get", "pods", "-l", "app=sidebake"]);
        let pods = pods["items"].as_array().unwrap().iter();
        let cost = |pod: &Value| pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"].clone();
        let mut costs: Vec<_> = pods.filter_map(|pod| cost(pod).as_str().map(str::to_owned)).collect();
        costs.sort();
        costs
    };
    namespace.until("the worker with the build says so", || costs() == ["0", "1"]).await;
    namespace.kubectl(&["rollout", "restart", "deployment/sidebake"]);
    let report = harness.report(&jid).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(report["attempt"], 1, "{report:#}");
    assert_eq!(target(&report, "web")["status"], "succeeded");
    namespace.kubectl(&["rollout", "status", "deployment/sidebake", "--timeout=600s"]);
    namespace.until("the old workers to end", || workers().len() == 2 && workers().is_disjoint(&old)).await;
    assert_eq!(hosts().await, workers(), "the old workers have removed their heartbeats");
}
