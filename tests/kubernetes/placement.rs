//! Builds run where their cache is, and their reports name the pod.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::faults::signal_all_of;
use crate::harness::{Harness, scanner, target, text};
use crate::namespace::Namespace;
use crate::registry;

fn harness_with_pods(n: u32, more: &str) -> (Harness, Namespace) {
    let mut harness = Harness::open();
    let namespace = Namespace::of(&harness);
    harness.builders = namespace.builder("default", &format!("replicas = {n}\n{more}"));
    let ensured = harness.run(&["builder", "ensure"], "");
    assert!(ensured.status.success(), "{}", text(&ensured));
    (harness, namespace)
}

/// One image of a repository with two steps. Only the second sees the tag.
fn application(harness: &Harness, repository: &str, tag: &str) -> Value {
    let dockerfile =
        harness.dockerfile("RUN sleep 1 && echo base > /base.txt\nCOPY . /srv\nRUN cat /srv/app.txt > /out.txt");
    let sha = harness
        .commit(repository, &[("web/Dockerfile", &dockerfile), ("web/app.txt", &format!("{repository} {tag}\n"))]);
    let image = json!({"name": "web", "context": "./web", "tags": [harness.reference(repository, tag)]});
    harness.native(repository, &sha, &[image])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_gets_the_same_pod_over_twenty_builds_two_workers_and_a_restart() {
    let (harness, namespace) = harness_with_pods(3, "");
    let disks = ["one", "two"].map(|name| harness.home.path().join(name).display().to_string());
    let start =
        |disk: &str| harness.worker_with_variables(&harness.config(""), &[], &[("SIDEBAKE__STATE__DIRECTORY", disk)]);
    let (mut first, _second) = (start(&disks[0]), start(&disks[1]));

    let mut pods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for round in 0..10 {
        if round == 5 {
            first.terminate().await;
            first = start(&disks[0]);
        }
        for repository in ["shop", "blog"] {
            let before = namespace.execs().len();
            let report = harness.build(application(&harness, repository, &format!("{round}"))).await;
            assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
            pods.entry(repository.into()).or_default().extend(namespace.execs().split_off(before));
            if round > 0 {
                assert_eq!(target(&report, "web")["steps_cached"], 1, "{report:#}");
            }
        }
    }
    for (repository, pods) in pods {
        assert_eq!(pods.len(), 1, "{repository}: {pods:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_names_the_pod_that_the_api_server_saw() {
    let (harness, namespace) = harness_with_pods(3, "");
    let _worker = harness.worker("");
    for repository in ["shop", "blog", "wiki"] {
        let n_before = namespace.execs().len();
        let dockerfile = harness.dockerfile(&format!("RUN sleep 6 && echo {repository}"));
        let sha = harness.commit(repository, &[("web/Dockerfile", &dockerfile)]);
        let image = json!({"name": "web", "context": "./web", "tags": [harness.reference(repository, "1")]});
        let report = harness.build(harness.native(repository, &sha, &[image])).await;
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
        let named =
            report["placement"]["pod"].as_str().unwrap_or_else(|| panic!("no pod in {report:#}\n{}", harness.logs()));
        // One exec of the solve, and one of the query for the pod's name.
        let execs = namespace.execs().split_off(n_before);
        assert!(execs.len() >= 2 && execs.iter().all(|pod| pod == named), "{named}: {execs:?}");
        assert!(report["placement"]["why"].as_str().unwrap().contains("the pod of this repository"), "{report:#}");
    }
}

/// Takes a pod from its builder of two, and waits for the pod in its place.
async fn exclude(namespace: &Namespace, pod: &str) {
    namespace.kubectl(&["label", "pod", pod, "app-"]);
    let n_ready = || {
        let pods = namespace.json(&["get", "pods", "--selector", "app=default0"]);
        let pods = pods["items"].as_array().unwrap().iter();
        pods.filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true).count()
    };
    namespace.until("the builder has another pod", || n_ready() == 2).await;
}

/// The pod of a successful build.
fn pod(report: &Value, harness: &Harness) -> String {
    assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
    report["placement"]["pod"].as_str().unwrap_or_else(|| panic!("no pod in {report:#}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_on_another_pod_says_which_pods_and_why() {
    let (harness, namespace) = harness_with_pods(2, "stall_timeout = \"12s\"");
    let _worker = harness.worker("");
    let dockerfile = harness.dockerfile("RUN sleep 6 && echo shop > /out.txt");
    let sha = harness.commit("shop", &[("web/Dockerfile", &dockerfile)]);
    let build = async || {
        let report = harness.build(harness.native("shop", &sha, &[harness.image("web", &sha)])).await;
        (pod(&report, &harness), target(&report, "web")["why_not_cached"].clone())
    };
    let (first, why) = build().await;
    assert_eq!(why["cause"], "first_build");
    exclude(&namespace, &first).await;
    let (second, why) = build().await;
    let words = |then: &str, now: &str, and: &str| {
        format!("the last build ran on `{then}`, this one on `{now}` (takes every account; {and})")
    };
    let expected = words(&first, &second, "the pod of this repository");
    assert_eq!((&why["cause"], &why["line"]), (&json!("other_pod"), &json!(3)), "{why:#}");
    assert!(why["message"].as_str().unwrap().ends_with(&expected), "{why:#}");

    // It keeps its name and its place among the pods, and does not answer.
    let id = namespace.json(&["get", "pod", &second])["metadata"]["uid"].as_str().unwrap().to_owned();
    signal_all_of(&id, "STOP");
    let (third, why) = build().await;
    let expected = words(&second, &third, "another pod than the one that was lost");
    assert_eq!((&why["cause"], &why["line"]), (&json!("other_pod"), &json!(3)), "{why:#}");
    assert!(why["message"].as_str().unwrap().ends_with(&expected), "{why:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_rollout_builds_go_to_pods_of_the_newest_version() {
    // Beside 32 builds, a pod that starts can be silent for half a minute.
    let (harness, namespace) = harness_with_pods(2, "stall_timeout = \"2m\"");
    let old = namespace.pods();
    // A new pod that is ready does not count as available, so the old ones stay.
    let strategy = r#"{"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}"#;
    let patch =
        format!(r#"{{"spec": {{"minReadySeconds": 1000, "progressDeadlineSeconds": 2000, "strategy": {strategy}}}}}"#);
    namespace.kubectl(&["patch", "deployment", "default0", "-p", &patch]);
    namespace.kubectl(&["set", "env", "deployment", "default0", "A=b"]);
    let new = || {
        let pods = namespace.json(&["get", "pods"]);
        let pods = pods["items"].as_array().unwrap().iter();
        let is_ready = |pod: &&Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        let names = pods.filter(is_ready).map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned());
        names.filter(|name| !old.contains(name)).collect::<Vec<_>>()
    };
    namespace.until("a new pod is ready", || !new().is_empty()).await;
    let _worker = harness.worker("");
    for repository in ["shop", "blog", "wiki"] {
        let report = harness.build(application(&harness, repository, "1")).await;
        assert_eq!(vec![pod(&report, &harness)], new(), "{report:#}\n{}", harness.logs());
        assert_eq!(report["notices"], json!([]), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_has_one_image_on_every_pod_with_and_without_attestations() {
    let (harness, namespace) = harness_with_pods(2, "");
    // The first step on a base without `/proc` makes it, with the time of the build.
    let base = harness.dockerfile("RUN true");
    // The step sets the times of its own files, and the commit's time is in the image.
    let app = format!("FROM {}\nRUN sleep 6 && echo app > /app && touch -d @0 /app\n", harness.reference("base", "1"));
    let sha = harness.commit(
        "shop",
        &[("app/Dockerfile", &app), ("base/Dockerfile", &base), ("scanner/Dockerfile", &scanner(&harness))],
    );
    let [base, generator] = ["base", "scanner"].map(|name| harness.reference(name, "1"));
    let made = [("base", &base), ("scanner", &generator)]
        .map(|(name, tag)| json!({"name": name, "context": format!("./{name}"), "tags": [tag]}));
    let sbom = ("SIDEBAKE__BAKE__SBOM", format!("generator={generator},disabled=true"));
    let _worker = harness.worker_with_variables(&harness.config(""), &[], &[sbom]);
    let made = harness.build(harness.native("shop", &sha, &made)).await;
    assert_eq!(made["status"], "succeeded", "{made:#}");

    let reference = harness.reference("app", &sha);
    let (mut last, mut pods, mut configs) = (None::<String>, BTreeSet::new(), BTreeSet::new());
    for attested in [false, true] {
        let mut native = harness.native("shop", &sha, &[harness.image("app", &sha)]);
        native["source_date_epoch"] = json!("commit");
        if attested {
            (native["provenance"], native["sbom"]) = (json!("mode=max"), json!(true));
        }
        let (mut digests, mut images) = (BTreeSet::new(), BTreeSet::new());
        for n in 0..3 {
            if n == 1 {
                exclude(&namespace, &last.take().expect("a pod")).await;
            }
            let report = harness.build(native.clone()).await;
            let entry = target(&report, "app");
            let digest =
                |field: &str| entry[field].as_str().unwrap_or_else(|| panic!("{field}: {report:#}")).to_owned();
            assert_eq!(registry::digest(&reference).await, Some(digest("digest")));
            assert_eq!(registry::image_digest(&reference).await, Some(digest("image_digest")));
            let attestations = registry::attestations(&reference).await;
            for kind in ["https://slsa.dev/provenance/", "https://spdx.dev/Document"] {
                assert_eq!(attestations.contains(kind), attested, "{attestations}");
            }
            // A new pod has to build the image again.
            let is_cached = n == 2 || (n == 0 && attested);
            assert_eq!(entry["steps_cached"] == entry["steps_total"], is_cached, "{n}: {report:#}");
            digests.insert(digest("digest"));
            images.insert(digest("image_digest"));
            configs.insert(registry::config(&reference).await.to_string());
            last = report["placement"]["pod"].as_str().map(str::to_owned).or(last);
            pods.extend(last.clone());
        }
        // An index has the times of its attestations.
        assert_eq!((images.len(), digests.len()), (1, if attested { 3 } else { 1 }), "{images:#?} {digests:#?}");
    }
    // An old BuildKit gives the manifest of an attested image another media type, so only the rest of it is the same.
    assert_eq!(configs.len(), 1, "{configs:#?}");
    assert!(pods.len() >= 3, "{pods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_builds_at_once_on_one_worker_do_not_touch_each_other() {
    let (harness, _namespace) = harness_with_pods(2, "");
    let _worker = harness.worker_with_variables(&harness.config(""), &[], &[("SIDEBAKE__CONCURRENCY", "32")]);
    let mut jobs = Vec::new();
    for n in 0..32 {
        // The same names of directories and files in different repositories, and one repository twice.
        let repository = format!("shop-{}", n / 2);
        let native = application(&harness, &repository, &n.to_string());
        jobs.push((n, repository, harness.redis.push("default", "BuildJob", json!([native])).await));
    }
    for (n, repository, jid) in &jobs {
        // Not `report`, which forbids a retry: BuildKit's own time limits are short for this many builds on a small
        // machine.
        harness
            .until(&format!("the callback of {jid} arrives"), async || harness.find_report(jid).await.is_some())
            .await;
        let report = harness.find_report(jid).await.unwrap();
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
        let reference = harness.reference(repository, &n.to_string());
        assert_eq!(registry::file(&reference, "out.txt").await, Some(format!("{repository} {n}\n")));
    }
    harness.nothing_is_left().await;
}
