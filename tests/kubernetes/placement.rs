//! Builds run where their cache is, and their reports name the pod.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::{Harness, target, text};
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
