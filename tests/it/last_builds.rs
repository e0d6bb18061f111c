//! What Redis remembers of the last builds, and what happens to builds when it cannot.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use world::{Script, Step};

use crate::harness::Harness;

const AT: &str = "2026-11-24T04:05:56Z";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A build of `FROM base`, `COPY . /srv`, in which the COPY ran.
fn copying() -> Script {
    let from = format!("[1/2] FROM docker.io/library/base:latest@{DIGEST}");
    let vertex = |(n, name): (usize, &str)| {
        let digest = format!("sha256:{n}");
        json!({"vertexes": [{"digest": digest, "name": name, "started": AT, "completed": AT, "cached": n == 0}]})
    };
    let names = [from.as_str(), "[2/2] COPY . /srv", "exporting to image"];
    let events = names.into_iter().enumerate().map(vertex).map(|event| Step::Stderr(format!("{event}\n")));
    Script::steps(events.chain([Step::Exit(0)]).collect())
}

/// The cause in the report of a build of this commit, with its message.
async fn cause(harness: &Harness, sha: &str) -> (String, String) {
    cause_of(harness, harness.native(sha)).await
}

async fn cause_of(harness: &Harness, native: Value) -> (String, String) {
    let n_reports = harness.reports().await.len();
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let report = harness.callbacks(n_reports + 1).await.remove(n_reports);
    assert_eq!(report["status"], "succeeded", "{report:#}");
    let why = &report["targets"][0]["why_not_cached"];
    (why["cause"].as_str().unwrap_or_default().to_owned(), why["message"].as_str().unwrap_or_default().to_owned())
}

async fn keys(harness: &Harness) -> Vec<String> {
    harness.redis.keys("sidebake:last:*").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_build_is_remembered_for_a_while_and_without_its_texts() {
    let harness = Harness::start();
    let (repository, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(copying());
    let _worker = harness.worker("last_builds.ttl = \"1h\"");
    let mut native = harness.native(&sha);
    native["application"]["images"][0]["args"] = json!({"TOKEN": "hunter2-is-no-password"});
    assert_eq!(cause_of(&harness, native.clone()).await.0, "first_build");
    let stored = keys(&harness).await;
    assert_eq!(stored.len(), 1, "{stored:?}");
    let mut redis = harness.redis.connection().await;
    let ttl: i64 = redis::cmd("TTL").arg(&stored[0]).query_async(&mut redis).await.unwrap();
    assert!((3500..=3600).contains(&ttl), "{ttl}");
    let record = harness.redis.hgetall(&stored[0]).await.remove("vote").unwrap();
    assert!(record.contains(&sha) && !record.contains("srv") && !record.contains("TOKEN"), "{record}");
    let traces = harness.traces_of("hunter2-is-no-password").await;
    assert!(traces.iter().all(|trace| !trace.starts_with("sidebake:last")), "{traces:?}");

    assert_eq!(cause_of(&harness, native.clone()).await.0, "evicted");
    let sha = repository.commit(&[("vote/app.py", "1"), ("result/other", "1")]);
    native["sha"] = json!(sha);
    let (found, message) = cause_of(&harness, native.clone()).await;
    let expected = "`COPY . /srv` (vote/Dockerfile:2) was not cached: `vote/app.py` changed";
    assert_eq!((found.as_str(), message.as_str()), ("files_changed", expected));
    // A ref has a record of its own, and takes that of the others until then.
    native["ref"] = json!("refs/heads/main");
    assert_eq!(cause_of(&harness, native.clone()).await.0, "evicted");
    assert_eq!(keys(&harness).await.len(), 2);

    let () = redis::cmd("DEL").arg(keys(&harness).await).query_async(&mut redis).await.unwrap();
    assert_eq!(cause_of(&harness, native).await.0, "first_build", "as after the TTL");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_neither_taken_for_the_first_build_nor_for_a_cause() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(copying());
    let _worker = harness.worker("");
    cause(&harness, &sha).await;
    let key = keys(&harness).await.remove(0);
    let mut redis = harness.redis.connection().await;
    for text in ["no record", "{}", "null", &"[".repeat(100_000)] {
        let () = redis::cmd("HSET").arg(&key).arg(&["vote", text]).query_async(&mut redis).await.unwrap();
        assert_eq!(cause(&harness, &sha).await.0, "not_known", "{}", &text[..4]);
        assert_eq!(cause(&harness, &sha).await.0, "evicted", "it was written anew");
    }
    let () = redis::cmd("SET").arg(&[&key, "foreign"]).query_async(&mut redis).await.unwrap();
    assert_eq!(cause(&harness, &sha).await.0, "not_known");
    assert_eq!(harness.redis.get(&key).await.as_deref(), Some("foreign"));
    assert_eq!(harness.logged("last_builds_unavailable").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_ends_while_redis_is_away() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(copying().held());
    let _worker = harness.worker("");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    harness.until("the bake has begun", async || harness.builder.running() > 0).await;
    harness.redis.freeze();
    harness.builder.release();
    let frozen = Instant::now();
    harness.until("the job's directory is gone", async || harness.job_directories().is_empty()).await;
    assert!(frozen.elapsed() < Duration::from_secs(20), "{:?}", frozen.elapsed());
    harness.redis.thaw();
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_remembered_when_it_is_off() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(copying());
    let _worker = harness.worker("last_builds.enabled = false");
    assert_eq!(cause(&harness, &sha).await.0, "");
    assert_eq!(keys(&harness).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_worker_knows_the_build_and_not_the_names_of_its_files() {
    let harness = Harness::start();
    let (repository, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(copying());
    let worker = harness.worker("");
    cause(&harness, &sha).await;
    drop(worker);
    std::fs::remove_dir_all(harness.home.path().join("state/mirrors")).unwrap();
    let _worker = harness.worker("");
    assert_eq!(cause(&harness, &sha).await.0, "evicted", "the same commit has the same files");
    std::fs::remove_dir_all(harness.home.path().join("state/mirrors")).unwrap();
    let sha = repository.commit(&[("vote/app.py", "1")]);
    assert_eq!(cause(&harness, &sha).await.0, "not_known", "no step before shows that the cache is there");
}
