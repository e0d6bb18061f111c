//! A worker that dies, and a worker with many jobs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use world::wait_for_within;

use crate::harness::{Harness, PATIENCE};
use crate::{processes, registry};

/// How long other processes may take to notice a death.
const SOON: Duration = Duration::from_secs(5);

/// A build whose only step sleeps. The test can find the step among all processes of the machine.
struct Sleeper {
    step: String,
    sha: String,
    native: Value,
}

impl Sleeper {
    fn new(harness: &Harness, seconds: u32) -> Self {
        let digits = harness.nonce.bytes().fold(7, |number, byte| (number * 31 + u64::from(byte)) % 1_000_000_000);
        let step = format!("sleep {seconds}.{digits:09}");
        let dockerfile = harness.dockerfile(&format!("COPY . /srv\nRUN {step}"));
        let sha = harness.commit("shop", &[("web/Dockerfile", &dockerfile), ("web/app.txt", "survived\n")]);
        let native = harness.native("shop", &sha, &[harness.image("web", &sha)]);
        Self { step, sha, native }
    }

    /// Enqueues the build and waits until BuildKit runs the step.
    async fn running(&self, harness: &Harness) -> String {
        let jid = harness.redis.push("default", "BuildJob", json!([self.native])).await;
        wait_for_within(PATIENCE, "the step to run", || self.is_asleep()).await;
        let buildx = format!("{} ", world::buildx().path.display());
        assert!(harness.children().iter().any(|child| child.starts_with(&buildx)), "{:?}", harness.children());
        jid
    }

    /// Excludes the shell, whose arguments contain the whole line.
    fn is_asleep(&self) -> bool {
        processes::with(&self.step).iter().any(|line| line.starts_with("sleep "))
    }

    /// Waits until the step ends, long before it would end on its own.
    async fn is_woken(&self, harness: &Harness) {
        wait_for_within(SOON, "every child to end", || harness.children().is_empty()).await;
        wait_for_within(SOON, "BuildKit to end the step", || !self.is_asleep()).await;
        assert_eq!(registry::digest(&harness.reference("web", &self.sha)).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_no_process_and_another_one_finishes_its_build() {
    let harness = Harness::open();
    let sleeper = Sleeper::new(&harness, 15);
    let first = harness.worker("lease.ttl = \"1s\"");
    let jid = sleeper.running(&harness).await;

    first.kill();

    sleeper.is_woken(&harness).await;
    let _second = harness.worker("lease.ttl = \"1s\"");
    let report = harness.report(&jid).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    let text = registry::file(&harness.reference("web", &sleeper.sha), "srv/app.txt").await;
    assert_eq!(text.as_deref(), Some("survived\n"));
    harness.nothing_is_left().await;
    assert_eq!(harness.reports().await.len(), 1, "one job, one report");
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_requeues_its_build() {
    let harness = Harness::open();
    let sleeper = Sleeper::new(&harness, 30);
    let mut worker = harness.worker("shutdown.timeout = \"1s\"");
    let jid = sleeper.running(&harness).await;

    worker.terminate().await;

    sleeper.is_woken(&harness).await;
    let queued = harness.redis.queue("default").await;
    assert!(queued.len() == 1 && queued[0].contains(&jid), "{queued:?}");
    assert!(harness.redis.keys("sidebake:inflight:*").await.is_empty() && harness.reports().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_stopped_at_its_time_limit() {
    let harness = Harness::open();
    let mut sleeper = Sleeper::new(&harness, 30);
    sleeper.native["timeout_s"] = json!(4);
    let _worker = harness.worker("");

    let jid = sleeper.running(&harness).await;

    let report = harness.report(&jid).await;
    assert_eq!(report["reason"], "timed_out", "{report:#}");
    sleeper.is_woken(&harness).await;
    harness.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_six_builds_of_two_repositories_gets_its_own_files() {
    let harness = Harness::open();
    let dockerfile = harness.dockerfile("COPY . /srv\nRUN sleep 1 && cp /srv/app.txt /srv/built.txt");
    let mut jobs = Vec::new();
    // The same names and sizes: BuildKit identifies files that it already has by directory name, size and time.
    for repository in ["cats", "dogs"] {
        for version in 1..=3 {
            let text = format!("{repository} {version}\n");
            let sha = harness.commit(repository, &[("app/Dockerfile", &dockerfile), ("app/app.txt", &text)]);
            let reference = harness.reference(repository, &sha);
            let image = json!({"name": "app", "context": "./app", "tags": [reference]});
            jobs.push((text, reference, harness.native(repository, &sha, &[image])));
        }
    }
    let mut jids = Vec::new();
    for (_, _, native) in &jobs {
        jids.push(harness.redis.push("default", "BuildJob", json!([native])).await);
    }

    let _worker = harness.worker("");

    let mut digests = BTreeSet::new();
    for ((text, reference, _), jid) in jobs.iter().zip(&jids) {
        let report = harness.report(jid).await;
        assert_eq!(report["status"], "succeeded", "{report:#}");
        for path in ["srv/app.txt", "srv/built.txt"] {
            assert_eq!(registry::file(reference, path).await.as_ref(), Some(text), "{path} of {reference}");
        }
        let digest = registry::digest(reference).await.unwrap();
        assert_eq!(report["targets"][0]["digest"], json!(digest));
        digests.insert(digest);
    }
    harness.nothing_is_left().await;
    assert_eq!(digests.len(), 6, "{digests:?}");
}
