//! Builders with shards: each keeps its name and its disk, and builds come back to it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Harness, target, text};
use crate::namespace::Namespace;

/// A builder with shards, and disks for them on this machine.
struct Shards {
    harness: Harness,
    namespace: Namespace,
    n: usize,
}

impl Shards {
    fn create(n: usize, more: &str) -> Self {
        let mut harness = Harness::open();
        let namespace = Namespace::of(&harness);
        // No build takes longer here.
        harness.settings = "bake.timeout = \"4m\"".into();
        let class = namespace.offer_disks(n, "default", &harness);
        let shards = format!("shards = {n}\nvolume = \"1Gi\"\nstorage_class = \"{class}\"\n{more}");
        let builder = namespace.builder("default", &shards);
        harness.builders = builder.replace("grace_period = \"1s\"", "grace_period = \"4m\"");
        let ensured = harness.run(&["builder", "ensure"], "");
        assert!(ensured.status.success(), "{}", text(&ensured));
        Self { harness, namespace, n }
    }

    /// Builds an application with two steps, of which only the second one depends on `content`. Returns its shard, why it was chosen,
    /// and how many steps were cached.
    async fn build(&self, application: &str, content: &str, step: &str) -> (String, String, u64) {
        let jid = self.push(application, content, step).await;
        self.end_of(&jid).await
    }

    /// Enqueues such a build, and returns its jid.
    async fn push(&self, application: &str, content: &str, step: &str) -> String {
        let dockerfile = self.harness.dockerfile(&format!("RUN {step} && echo {application} > /base.txt\nCOPY . /srv"));
        let files = [("web/Dockerfile", dockerfile.as_str()), ("web/app.txt", content)];
        let sha = self.harness.commit(application, &files);
        let image = json!({"name": "web", "context": "./web", "tags": [self.harness.reference(application, "1")]});
        self.harness.redis.push("default", "BuildJob", json!([self.harness.native(application, &sha, &[image])])).await
    }

    async fn end_of(&self, jid: &str) -> (String, String, u64) {
        let report = self.harness.report(jid).await;
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", self.harness.logs());
        let of = |field: &str| report["placement"][field].as_str().unwrap_or_else(|| panic!("{report:#}")).to_owned();
        (of("shard"), of("why"), target(&report, "web")["steps_cached"].as_u64().unwrap())
    }

    fn n_ready(&self) -> usize {
        let pods = self.namespace.json(&["get", "pods", "--selector", "sidebake/builder=default"]);
        let is_ready = |pod: &&Value| {
            pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["containerStatuses"][0]["ready"] == true
        };
        pods["items"].as_array().unwrap().iter().filter(is_ready).count()
    }

    async fn until_ready(&self) {
        self.namespace.until("every shard is ready", || self.n_ready() == self.n).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_keeps_its_name_its_disk_and_its_applications_when_its_pod_is_replaced() {
    let shards = Shards::create(3, "");
    let _worker = shards.harness.worker("");
    let mut homes = BTreeMap::new();
    for application in ["shop", "blog", "wiki", "docs"] {
        let (shard, why, _) = shards.build(application, "1", "sleep 1").await;
        assert!(why.ends_with("it had the fewest builds"), "{why}");
        homes.insert(application, shard);
    }
    let before = shards.namespace.pods();
    shards.namespace.kubectl(&["delete", "pods", "--all", "--wait=true"]);
    shards.until_ready().await;
    assert!(shards.namespace.pods().iter().all(|pod| !before.contains(pod)), "all pods are new");
    for (application, home) in homes {
        let (shard, why, n_cached) = shards.build(application, "2", "sleep 1").await;
        assert_eq!((shard, n_cached), (home, 1), "{application}: {why}");
        assert!(why.ends_with("the home of this repository"), "{why}");
    }
    let budget = shards.namespace.json(&["get", "poddisruptionbudget", "default-shards"]);
    assert_eq!(budget["status"]["disruptionsAllowed"], 1, "{budget:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_shard_is_lost_ends_on_another_one_and_the_application_comes_home() {
    let shards = Shards::create(2, "");
    let _worker = shards.harness.worker("");
    let (home, ..) = shards.build("shop", "1", "true").await;
    let pod = || {
        let pods = shards.namespace.json(&["get", "pods", "--selector", &format!("app={home}")]);
        pods["items"][0]["metadata"]["name"].as_str().unwrap().to_owned()
    };
    let lost = pod();
    let n_execs = || shards.namespace.execs().iter().filter(|pod| **pod == lost).count();
    let n_before = n_execs();
    let build = shards.build("shop", "2", "sleep 8");
    let kill = async {
        shards.namespace.until("the build runs on its home", || n_execs() > n_before).await;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        shards.namespace.kubectl(&["delete", "pod", &lost, "--grace-period=0", "--force"]);
    };
    let ((shard, why, _), ()) = tokio::join!(build, kill);
    assert_ne!(shard, home, "{why}");
    assert!(why.ends_with(&format!("its home {home} was lost")), "{why}");
    shards.until_ready().await;
    let (shard, why, _) = shards.build("shop", "3", "true").await;
    assert_eq!(shard, home, "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_without_a_pod_takes_no_builds_and_a_full_one_gives_them_to_another() {
    let shards = Shards::create(3, "shard_builds = 1");
    let _worker = shards.harness.worker("");
    let (home, ..) = shards.build("shop", "1", "true").await;
    shards.namespace.kubectl(&["scale", "deployment", &home, "--replicas=0"]);
    shards.namespace.until("the home has no pod", || shards.n_ready() == 2).await;
    let (shard, why, _) = shards.build("shop", "2", "true").await;
    assert_ne!(shard, home, "{why}");
    assert!(why.ends_with(&format!("its home {home} takes no builds now")), "{why}");

    let applied = shards.harness.run(&["builder", "apply"], "");
    assert!(applied.status.success(), "{}", text(&applied));
    assert!(text(&applied).contains("spec.replicas: changed from 0 to 1"), "{}", text(&applied));
    let third = async {
        let n_counted = async || {
            let counted = shards.harness.redis.hgetall("sidebake:shards:default").await;
            counted.values().filter(|shard| **shard == home).count()
        };
        shards.harness.until("two builds run", async || n_counted().await == 2).await;
        shards.build("shop", "5", "true").await
    };
    let long = |content| shards.build("shop", content, "sleep 6");
    let ((one, ..), (other, ..), (third, why, _)) = tokio::join!(long("3"), long("4"), third);
    assert_eq!([&one, &other], [&home; 2]);
    assert_ne!(third, home, "{why}");
    assert!(why.ends_with(&format!("its home {home} runs 2 builds and may run 2")), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_replaces_every_shard_under_load_and_no_build_is_lost() {
    let mut shards = Shards::create(3, "");
    shards.harness.settings += "\nconcurrency = 16";
    let _worker = shards.harness.worker("");
    let applications: Vec<String> = (0..8).map(|n| format!("app{n}")).collect();
    let mut homes = BTreeMap::new();
    for application in &applications {
        homes.insert(application, shards.build(application, "0", "true").await.0);
    }
    let before = shards.namespace.pods();
    shards.harness.builders += "environment = { A = \"b\" }\n";
    let load = async |rounds: std::ops::Range<usize>| {
        let mut jids = Vec::new();
        for round in rounds {
            for application in &applications {
                jids.push(shards.push(application, &round.to_string(), &format!("sleep {}", 6 + round)).await);
            }
        }
        jids
    };
    let mut jids = load(1..3).await;
    let n_counted = async || shards.harness.redis.hgetall("sidebake:shards:default").await.len();
    shards.harness.until("two builds of each run", async || n_counted().await == 16).await;
    jids.extend(load(3..4).await);
    let applied = tokio::task::block_in_place(|| shards.harness.run(&["builder", "apply"], ""));
    assert!(applied.status.success(), "{}", text(&applied));
    for jid in jids {
        let (shard, why, _) = shards.end_of(&jid).await;
        println!("{jid}: {shard}, {why}");
    }
    shards.until_ready().await;
    assert!(shards.namespace.pods().iter().all(|pod| !before.contains(pod)), "every pod was replaced");
    for (application, home) in homes {
        let (shard, why, _) = shards.build(application, "9", "true").await;
        assert_eq!(shard, home, "{application}: {why}");
    }
}
