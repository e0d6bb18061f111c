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
        let harness = Harness::open();
        let namespace = Namespace::of(&harness);
        Self::create_in(harness, namespace, n, more)
    }

    fn create_in(mut harness: Harness, namespace: Namespace, n: usize, more: &str) -> Self {
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

    /// The pod of a shard.
    fn pod(&self, shard: &str) -> String {
        let pods = self.namespace.json(&["get", "pods", "--selector", &format!("app={shard}")]);
        pods["items"][0]["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// Waits until a build that was enqueued just now runs its steps on a pod.
    async fn until_runs_on(&self, pod: &str, n_before: usize) {
        self.namespace.until("the build runs on its home", || self.n_execs(pod) > n_before).await;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    }

    fn n_execs(&self, pod: &str) -> usize {
        self.namespace.execs().iter().filter(|exec| *exec == pod).count()
    }

    fn n_ready(&self) -> usize {
        let pods = self.namespace.json(&["get", "pods", "--selector", "sidebake/builder=default"]);
        let is_ready = |pod: &&Value| {
            pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["containerStatuses"][0]["ready"] == true
        };
        pods["items"].as_array().unwrap().iter().filter(is_ready).count()
    }

    /// Checks that the next build of an application runs on its home, once every shard is ready.
    async fn comes_home(&self, application: &str, home: &str) {
        self.until_ready().await;
        let (shard, why, _) = self.build(application, "3", "true").await;
        assert_eq!(shard, home, "{why}");
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
    let lost = shards.pod(&home);
    let n_before = shards.n_execs(&lost);
    let build = shards.build("shop", "2", "sleep 8");
    let kill = async {
        shards.until_runs_on(&lost, n_before).await;
        shards.namespace.kubectl(&["delete", "pod", &lost, "--grace-period=0", "--force"]);
    };
    let ((shard, why, _), ()) = tokio::join!(build, kill);
    assert_ne!(shard, home, "{why}");
    assert!(why.ends_with(&format!("its home {home} was lost")), "{why}");
    shards.comes_home("shop", &home).await;
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
async fn a_shard_that_is_drained_loses_no_build_and_its_application_comes_home() {
    let shards = Shards::create(2, "");
    let _worker = shards.harness.worker("");
    let (home, ..) = shards.build("shop", "1", "true").await;
    let drained = shards.pod(&home);
    let n_before = shards.n_execs(&drained);
    let running = shards.push("shop", "2", "sleep 6").await;
    shards.until_runs_on(&drained, n_before).await;
    shards.namespace.evict(&drained, json!({}));
    // BuildKit would finish the build first. The engine that replaces it here ends its steps and exits.
    let (shard, why, _) = shards.end_of(&running).await;
    println!("drained {home}, built on {shard}: {why}");
    shards.until_ready().await;
    let (shard, why, n_cached) = shards.build("shop", "3", "true").await;
    assert_eq!((&shard, n_cached), (&home, 1), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_the_build_nothing_but_time() {
    let harness = Harness::open();
    let namespace = Namespace::of(&harness);
    let disks = ["0", "1"].map(|number| harness.home.path().join(format!("default-{number}")));
    for disk in &disks {
        std::fs::create_dir_all(disk).unwrap();
        namespace.on_node(&["mount", "-t", "tmpfs", "-o", "size=64m", "sidebake-test", disk.to_str().unwrap()]);
    }
    let shards = Shards::create_in(harness, namespace, 2, "");
    let _worker = shards.harness.worker("");
    let (home, ..) = shards.build("shop", "1", "true").await;
    let full = shards.harness.home.path().join(&home).join("full").display().to_string();
    shards.namespace.on_node(&["sh", "-c", &format!("dd if=/dev/zero of={full} bs=1M || true")]);
    let content = "x".repeat(1 << 20);
    let jid = shards.push("shop", &content, "true").await;
    let report = shards.harness.report(&jid).await;
    assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{report:#}");
    assert_ne!(report["placement"]["shard"], json!(home), "{report:#}");
    let notice = format!("the builder default: the disk of the pod {} is full", shards.pod(&home));
    let notices = report["notices"].as_array().unwrap();
    assert!(notices.iter().any(|one| one.as_str().unwrap().starts_with(&notice)), "{report:#}");
    disks.iter().for_each(|disk| shards.namespace.on_node(&["umount", "-l", disk.to_str().unwrap()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_node_is_not_ready_builds_wait_and_none_is_lost() {
    let harness = Harness::open();
    let namespace = Namespace::alone(&harness);
    let shards = Shards::create_in(harness, namespace, 2, "");
    let _worker = shards.harness.worker("");
    let (home, ..) = shards.build("shop", "1", "true").await;
    let pod = shards.pod(&home);
    let n_before = shards.n_execs(&pod);
    let running = shards.push("shop", "2", "sleep 6").await;
    shards.until_runs_on(&pod, n_before).await;
    shards.namespace.part("freeze", "kubelet");
    shards.namespace.until("the node is not ready", || !shards.namespace.is_node_ready()).await;
    let waiting = shards.push("blog", "1", "true").await;
    shards
        .harness
        .until("the builder is not ready", async || shards.harness.logs().contains("builder_not_ready"))
        .await;
    shards.namespace.part("thaw", "kubelet");
    for jid in [running, waiting] {
        let (shard, why, _) = shards.end_of(&jid).await;
        println!("{jid}: {shard}, {why}");
    }
    shards.comes_home("shop", &home).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_times_from_content_a_worker_with_a_new_disk_sends_only_metadata() {
    let shards = Shards::create(2, "");
    let config = shards
        .harness
        .config("[source]\nmtimes = \"content\"\nmtimes_key = \"a key that all workers of the fleet have\"");
    let large = "large ".repeat(100_000);
    for (turn, disk) in ["one", "two"].into_iter().enumerate() {
        let disk = shards.harness.home.path().join(disk).display().to_string();
        let mut worker = shards.harness.worker_with_variables(&config, &[], &[("SIDEBAKE__STATE__DIRECTORY", disk)]);
        let jid = shards.push("shop", &large, "true").await;
        let report = shards.harness.report(&jid).await;
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", shards.harness.logs());
        let sent = report["context_bytes"].as_u64().unwrap();
        assert_eq!(sent >= large.len() as u64, turn == 0, "{sent} bytes: {report:#}");
        assert!(sent < 4096 || turn == 0, "only metadata: {sent} bytes");
        worker.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pod_caches_while_builds_overlap_on_one_base_image() {
    let shards = Shards::create(1, "");
    let _worker = shards.harness.worker("");
    let long = shards.push("long", "1", "sleep 20").await;
    let started = std::time::Instant::now();
    shards.build("shop", "1", "echo first").await;
    let (.., n_cached) = shards.build("shop", "1", "echo first").await;
    assert_eq!(n_cached, 2);
    assert!(started.elapsed().as_secs() < 20, "the builds overlapped");
    shards.end_of(&long).await;
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
