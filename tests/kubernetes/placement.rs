//! Builds go where their cache is, and say where that was.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::house::{House, target, text};
use crate::namespace::Namespace;
use crate::registry;

fn house_with_pods(n: u32, more: &str) -> (House, Namespace) {
    let mut house = House::open();
    let namespace = Namespace::of(&house);
    house.builders = namespace.builder("default", &format!("replicas = {n}\n{more}"));
    let ensured = house.run(&["builder", "ensure"]);
    assert!(ensured.status.success(), "{}", text(&ensured));
    (house, namespace)
}

/// One image of a repository, with two steps, of which the second sees the tag.
fn application(house: &House, repository: &str, tag: &str) -> Value {
    let dockerfile =
        house.dockerfile("RUN sleep 1 && echo base > /base.txt\nCOPY . /srv\nRUN cat /srv/app.txt > /out.txt");
    let sha =
        house.commit(repository, &[("web/Dockerfile", &dockerfile), ("web/app.txt", &format!("{repository} {tag}\n"))]);
    let image = json!({"name": "web", "context": "./web", "tags": [house.reference(repository, tag)]});
    house.native(repository, &sha, &[image])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_meets_the_same_pod_over_twenty_builds_two_workers_and_a_restart() {
    let (house, namespace) = house_with_pods(3, "");
    let disks = ["one", "two"].map(|name| house.home.path().join(name).display().to_string());
    let start = |disk: &str| house.worker_with("", &[("SIDEBAKE__STATE__DIRECTORY", disk)]);
    let (mut first, _second) = (start(&disks[0]), start(&disks[1]));

    let mut pods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for round in 0..10 {
        if round == 5 {
            first.terminate().await;
            first = start(&disks[0]);
        }
        for repository in ["shop", "blog"] {
            let before = namespace.execs().len();
            let report = house.build(application(&house, repository, &format!("{round}"))).await;
            assert_eq!(report["status"], "succeeded", "{report:#}\n{}", house.logs());
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
async fn the_pod_of_a_build_is_named_and_it_is_the_one_that_the_api_server_saw() {
    let (house, namespace) = house_with_pods(3, "");
    let _worker = house.worker("");
    for repository in ["shop", "blog", "wiki"] {
        let n_before = namespace.execs().len();
        let dockerfile = house.dockerfile(&format!("RUN sleep 6 && echo {repository}"));
        let sha = house.commit(repository, &[("web/Dockerfile", &dockerfile)]);
        let image = json!({"name": "web", "context": "./web", "tags": [house.reference(repository, "1")]});
        let report = house.build(house.native(repository, &sha, &[image])).await;
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", house.logs());
        let named =
            report["placement"]["pod"].as_str().unwrap_or_else(|| panic!("no pod in {report:#}\n{}", house.logs()));
        // The solve's, and that of the question for the name.
        let execs = namespace.execs().split_off(n_before);
        assert!(execs.len() >= 2 && execs.iter().all(|pod| pod == named), "{named}: {execs:?}");
        assert!(report["placement"]["why"].as_str().unwrap().contains("the pod of this repository"), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_builds_at_once_on_one_worker_do_not_touch_each_other() {
    let (house, _namespace) = house_with_pods(2, "");
    let _worker = house.worker_with("", &[("SIDEBAKE__CONCURRENCY", "32")]);
    let mut jobs = Vec::new();
    for n in 0..32 {
        // Equal names of directories and files in different repositories, and the same repository twice.
        let repository = format!("shop-{}", n / 2);
        let native = application(&house, &repository, &n.to_string());
        jobs.push((n, repository, house.redis.push("default", "BuildJob", json!([native])).await));
    }
    for (n, repository, jid) in &jobs {
        // Not `report`, which forbids a retry: for this many builds on a small machine BuildKit's own time limits are short.
        house.until(&format!("the callback of {jid} has come"), async || house.find_report(jid).await.is_some()).await;
        let report = house.find_report(jid).await.unwrap();
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", house.logs());
        let reference = house.reference(repository, &n.to_string());
        assert_eq!(registry::file(&reference, "out.txt").await, Some(format!("{repository} {n}\n")));
    }
    house.nothing_is_left().await;
}
