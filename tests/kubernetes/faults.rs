//! Faults of pods, and of the connections to them, in the middle of a build.

use serde_json::{Value, json};
use world::wait_for_within;

use crate::engine::engine;
use crate::harness::{Harness, PATIENCE, text};
use crate::namespace::Namespace;
use crate::relay::Relay;
use crate::{processes, registry};

/// A build whose step sleeps. The test can find the step among all processes of the machine.
struct Sleeper {
    harness: Harness,
    namespace: Namespace,
    step: String,
    sha: String,
    jid: String,
    _worker: crate::harness::Worker,
}

impl Sleeper {
    /// Starts a builder and a build on it, and waits until the step runs.
    async fn start(n_pods: u32, seconds: u64, more: &str) -> Self {
        let harness = Harness::open();
        let namespace = Namespace::of(&harness);
        let builders = namespace.builder("default", &format!("replicas = {n_pods}\n{more}"));
        Self::start_in(harness, namespace, builders, seconds).await
    }

    /// Starts one pod in a cluster that no other test uses meanwhile.
    async fn start_alone(seconds: u64) -> Self {
        let harness = Harness::open();
        let namespace = Namespace::alone(&harness);
        let builders = namespace.builder("default", "replicas = 1");
        Self::start_in(harness, namespace, builders, seconds).await
    }

    async fn start_in(mut harness: Harness, namespace: Namespace, builders: String, seconds: u64) -> Self {
        harness.builders = builders;
        let ensured = harness.run(&["builder", "ensure"], "");
        assert!(ensured.status.success(), "{}", text(&ensured));
        let digits = harness.nonce.bytes().fold(7, |number, byte| (number * 31 + u64::from(byte)) % 1_000_000_000);
        let step = format!("sleep {seconds}.{digits:09}");
        let dockerfile = harness.dockerfile(&format!("COPY . /srv\nRUN {step}"));
        let sha = harness.commit("shop", &[("web/Dockerfile", &dockerfile), ("web/app.txt", "survived\n")]);
        let worker = harness.worker("");
        let native = harness.native("shop", &sha, &[harness.image("web", &sha)]);
        let jid = harness.redis.push("default", "BuildJob", json!([native])).await;
        let sleeper = Self { harness, namespace, step, sha, jid, _worker: worker };
        sleeper.harness.until("the step runs", async || sleeper.is_asleep()).await;
        sleeper
    }

    /// Waits until the job is in the retry set because of its builder, and returns it.
    async fn is_retried(&self) -> Value {
        let redis = &self.harness.redis;
        self.harness.until("the job is in the retry set", async || !redis.sorted_set("retry").await.is_empty()).await;
        let (retry, _) = redis.sorted_set("retry").await.remove(0);
        let retry: Value = serde_json::from_str(&retry).unwrap();
        assert_eq!(retry["error_class"], "Sidebake::BuilderUnavailable", "{retry:#}");
        retry
    }

    fn is_asleep(&self) -> bool {
        processes::with(&self.step).iter().any(|line| line.starts_with("sleep "))
    }

    /// The pod that runs the step.
    fn pod(&self) -> String {
        self.namespace.execs().pop().unwrap()
    }

    /// Checks that the build succeeds in one attempt, with a notice that names what was lost.
    async fn survives(&self, name: &str) -> Value {
        let report = self.harness.report(&self.jid).await;
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", self.harness.logs());
        assert_eq!(report["attempt"], 1, "{report:#}");
        let notices = report["notices"].as_array().unwrap();
        let is_told = notices.iter().any(|notice| notice.as_str().unwrap().contains(name));
        assert!(is_told, "{name:?} is not in {notices:?}\n{}", self.harness.logs());
        let file = registry::file(&self.harness.reference("web", &self.sha), "srv/app.txt").await;
        assert_eq!(file.as_deref(), Some("survived\n"));
        self.harness.nothing_is_left().await;
        report
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_killed_at_once_costs_the_build_nothing_but_time() {
    let sleeper = Sleeper::start(2, 6, "").await;
    let pod = sleeper.pod();
    sleeper.namespace.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force", "--wait=false"]);
    let report = sleeper.survives(&pod).await;
    assert_ne!(report["placement"]["pod"], json!(pod), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_buildkit_dies_costs_the_build_nothing_but_time() {
    let sleeper = Sleeper::start(2, 6, "").await;
    let pod = sleeper.pod();
    let id = sleeper.namespace.json(&["get", "pod", &pod])["metadata"]["uid"].as_str().unwrap().to_owned();
    signal_all_of(&id, "KILL");
    sleeper.survives(&pod).await;
}

/// Sends a signal to every process of a pod except the one that holds its network.
pub fn signal_all_of(pod: &str, signal: &str) {
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = process.path();
        let cgroup = std::fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let command = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        if cgroup.contains(pod) && !command.contains("pause") {
            let pid = process.file_name().to_string_lossy().into_owned();
            let _ = std::process::Command::new("kill").args(["-s", signal, &pid]).status();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_costs_the_build_nothing_but_time() {
    let sleeper = Sleeper::start(2, 5, "").await;
    let pod = sleeper.pod();
    sleeper.namespace.kubectl(&["delete", "pod", &pod, "--grace-period=60", "--wait=false"]);
    let report = sleeper.harness.report(&sleeper.jid).await;
    assert_eq!(report["status"], "succeeded", "{report:#}\n{}", sleeper.harness.logs());
    // BuildKit would finish first. The engine that replaces it here ends its steps and exits, so the build loses it.
    assert_eq!(report["attempt"], 1, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_pod_costs_the_build_nothing_but_time() {
    let sleeper = Sleeper::start(2, 6, "").await;
    let pod = sleeper.pod();
    sleeper.namespace.evict(&pod, json!({"gracePeriodSeconds": 0}));
    sleeper.survives(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_removed_by_scaling_down_moves_the_build() {
    let sleeper = Sleeper::start(3, 6, "").await;
    let pod = sleeper.pod();
    let others: Vec<String> = sleeper.namespace.pods().into_iter().filter(|other| *other != pod).collect();
    // Kubernetes removes unready pods first, then the youngest. Makes the build's pod the first candidate.
    for other in &others {
        sleeper.namespace.kubectl(&["annotate", "pod", other, "controller.kubernetes.io/pod-deletion-cost=1000"]);
    }
    sleeper.namespace.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force", "--wait=false"]);
    sleeper.namespace.kubectl(&["scale", "deployment", "default0", "--replicas=2"]);
    sleeper.survives(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_builder_ends_in_a_retry_that_names_it() {
    let sleeper = Sleeper::start(1, 20, "timeout = \"20s\"").await;
    sleeper.namespace.kubectl(&["delete", "deployment", "default0", "--wait=false"]);
    sleeper.namespace.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false"]);
    let retry = sleeper.is_retried().await;
    assert!(retry["error_message"].as_str().unwrap().contains("default0"), "{retry:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_noticed_although_buildx_hangs() {
    let harness = Harness::open();
    let namespace = Namespace::of(&harness);
    let relay = Relay::to(engine().told("API")).await;
    let kubeconfig = namespace.kubeconfig_via(&relay.address.to_string(), &harness);
    let builders = namespace.builder_by("default", &kubeconfig, "replicas = 2");
    let sleeper = Sleeper::start_in(harness, namespace, builders, 6).await;
    relay.cut();
    sleeper.survives("default").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_connection_is_given_up_after_the_configured_time() {
    let harness = Harness::open();
    let namespace = Namespace::of(&harness);
    let relay = Relay::to(engine().told("API")).await;
    let kubeconfig = namespace.kubeconfig_via(&relay.address.to_string(), &harness);
    let builders =
        namespace.builder_by("default", &kubeconfig, "replicas = 2\nstall_timeout = \"12s\"\ntimeout = \"20s\"");
    let sleeper = Sleeper::start_in(harness, namespace, builders, 60).await;
    relay.stall();
    sleeper.is_retried().await;
    relay.pass();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_briefly_frozen_api_server_does_no_harm() {
    let sleeper = Sleeper::start_alone(8).await;
    sleeper.namespace.part("freeze", "apiserver");
    sleeper.harness.until("the step ends", async || !sleeper.is_asleep()).await;
    sleeper.namespace.part("thaw", "apiserver");
    let report = sleeper.harness.report(&sleeper.jid).await;
    assert_eq!(report["status"], "succeeded", "{report:#}\n{}", sleeper.harness.logs());
    assert_eq!(report["notices"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_api_server_cuts_every_connection_and_the_build_continues_on_the_next() {
    let sleeper = Sleeper::start_alone(6).await;
    sleeper.namespace.part("restart", "apiserver");
    sleeper.survives("default").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_never_ready_is_skipped() {
    // One of two pods runs and is not ready. buildx selects it anyway.
    let mut harness = Harness::open();
    let namespace = Namespace::of(&harness);
    harness.builders = namespace.builder("default", "replicas = 1");
    assert!(harness.run(&["builder", "ensure"], "").status.success());
    let image = engine().told("BUILDKIT_IMAGE");
    namespace.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: default0-wedged, labels: {{app: default0}}}}\n\
         spec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: buildkitd, image: \"{image}\", command: [/bin/busybox, sleep, \"1000\"], \
         readinessProbe: {{exec: {{command: [/bin/busybox, \"false\"]}}}}}}\n"
    ));
    namespace.until("the pod to run", || namespace.pods().len() == 2).await;
    let _worker = harness.worker("");
    let dockerfile = harness.dockerfile("COPY . /srv");
    // With this many repositories, some prefer the wedged pod.
    for n in 0..4 {
        let repository = format!("shop-{n}");
        let sha = harness.commit(&repository, &[("web/Dockerfile", &dockerfile)]);
        let image = json!({"name": "web", "context": "./web", "tags": [harness.reference(&repository, "1")]});
        let jid = harness.redis.push("default", "BuildJob", json!([harness.native(&repository, &sha, &[image])])).await;
        let report = harness.report(&jid).await;
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
        assert_eq!(report["notices"], json!([]), "no build went there first");
        let pod = report["placement"]["pod"].as_str().unwrap_or_else(|| panic!("{report:#}\n{}", harness.logs()));
        assert_ne!(pod, "default0-wedged", "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_is_missing_for_a_while_is_waited_for_and_told_once() {
    let mut harness = Harness::open();
    let namespace = Namespace::of(&harness);
    harness.builders = namespace.builder("default", "replicas = 1");
    let worker = harness.worker("");
    let dockerfile = harness.dockerfile("COPY . /srv");
    let mut jids = Vec::new();
    for n in 0..3 {
        let repository = format!("shop-{n}");
        let sha = harness.commit(&repository, &[("web/Dockerfile", &dockerfile)]);
        let image = json!({"name": "web", "context": "./web", "tags": [harness.reference(&repository, "1")]});
        jids.push(
            harness.redis.push("default", "BuildJob", json!([harness.native(&repository, &sha, &[image])])).await,
        );
    }
    harness.until("the wait is told", async || !worker.logged("builder_not_ready").is_empty()).await;
    let status = text(&harness.run(&["builder", "status"], ""));
    assert!(status.contains("missing"), "{status}");
    let ensured = harness.run(&["builder", "ensure"], "");
    assert!(ensured.status.success(), "{}", text(&ensured));
    for jid in jids {
        let report = harness.report(&jid).await;
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
        assert_eq!((&report["attempt"], &report["notices"]), (&json!(1), &json!([])), "{report:#}");
    }
    let told = worker.logged("builder_not_ready");
    assert_eq!((told.len(), worker.logged("builder_ready").len()), (1, 1), "{told:#?}");
    assert!(told[0].to_string().contains("no Deployment default0"), "{told:#?}");

    namespace.kubectl(&["scale", "deployment", "default0", "--replicas=0"]);
    let status = harness.run(&["builder", "status"], "");
    assert!(!status.status.success() && text(&status).contains("the Deployment has 0 replicas"), "{}", text(&status));
}

/// The child ends, whatever the fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_takes_its_buildx_and_the_step_with_it() {
    let sleeper = Sleeper::start(1, 60, "").await;
    let Sleeper { _worker: worker, ref step, .. } = sleeper;
    worker.kill();
    let is_asleep = || processes::with(step).iter().any(|line| line.starts_with("sleep "));
    wait_for_within(PATIENCE, "the step to end", || !is_asleep()).await;
}
