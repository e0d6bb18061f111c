//! Twins build once: of jobs with the same inputs that wait or run at once, one is built, and the others get its result.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use world::Script;

use crate::harness::Harness;

const COALESCE: &str = "tenants.coalesce = true\nlease.ttl = \"1s\"";

/// Pushes twins with these build ids.
async fn push(harness: &Harness, sha: &str, ids: std::ops::Range<u32>) {
    for id in ids {
        let mut request = harness.native(sha);
        (request["build_id"], request["priority"]) = (json!(id), json!(id % 3));
        harness.redis.push("default", "BuildJob", json!([request])).await;
    }
}

fn workers(harness: &Harness, config: &Path, n: usize) -> Vec<world::Worker> {
    (0..n).map(|_| harness.worker_with(config, &["-c", "3"])).collect()
}

/// The final reports, each of another build.
async fn reports(harness: &Harness, n: usize) -> Vec<Value> {
    let reports = harness.callbacks(n).await;
    let ids: BTreeSet<u64> = reports.iter().map(|report| report["build_id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), n, "each has its own callback");
    reports
}

/// The build ids of reports by the build that they name: their own, where they name none.
fn leaders(reports: &[Value]) -> BTreeSet<u64> {
    let leader = |report: &Value| report["coalesced_with"]["build_id"].as_u64();
    reports.iter().map(|report| leader(report).or(report["build_id"].as_u64()).unwrap()).collect()
}

/// How many tokens were minted.
fn n_minted(harness: &Harness) -> usize {
    harness.github.calls().iter().filter(|call| call.path.ends_with("/access_tokens")).count()
}

async fn is_over(harness: &Harness) {
    harness.idle().await;
    let is_empty = async || harness.redis.hgetall("sidebake:running").await.is_empty();
    harness.until("no claim is left", is_empty).await;
    for set in ["retry", "dead"] {
        assert!(harness.redis.sorted_set(set).await.is_empty(), "{set}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_twins_over_three_workers_one_is_built() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]).held());
    let _workers = workers(&harness, &harness.config(COALESCE), 3);
    push(&harness, &sha, 0..50).await;
    world::wait_for("a build to run", || harness.builder.running() == 1).await;
    // A job with other inputs does not wait for it.
    harness.builder.script(Script::success(&["vote"]));
    let mut other = harness.native(&sha);
    (other["build_id"], other["no_cache"]) = (json!(1000), json!(true));
    harness.redis.push("default", "BuildJob", json!([other])).await;
    assert_eq!(harness.callbacks(1).await[0]["build_id"], 1000);
    assert_eq!(harness.builder.running(), 1);
    harness.builder.release();
    let reports = reports(&harness, 51).await;
    assert!(reports.iter().all(|report| report["status"] == "succeeded"), "{reports:#?}");
    assert_eq!(harness.builder.runs().len(), 2, "the other one, and one of the twins");
    let twins = &reports[1..];
    assert_eq!(leaders(twins).len(), 1);
    assert_eq!(twins.iter().filter(|report| report["coalesced_with"].is_null()).count(), 1);
    let images: BTreeSet<String> = twins.iter().map(|report| report["targets"].to_string()).collect();
    assert_eq!(images.len(), 1, "{images:#?}");
    assert!(twins[0]["targets"][0]["digest"].is_string());
    assert_eq!(n_minted(&harness), 51, "each is authorized by itself");
    is_over(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_worker_of_the_one_that_is_built_is_killed_another_is_built() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::hang());
    let config = harness.config(COALESCE);
    let leader = harness.worker_with(&config, &["-c", "3"]);
    push(&harness, &sha, 0..20).await;
    world::wait_for("a build to run", || harness.builder.running() == 1).await;
    let _others = workers(&harness, &config, 2);
    harness.builder.script(Script::success(&["vote"]));
    leader.signal("KILL");
    let reports = reports(&harness, 20).await;
    assert!(reports.iter().all(|report| report["status"] == "succeeded"), "{reports:#?}");
    assert_eq!((leaders(&reports).len(), harness.builder.runs().len()), (1, 2));
    is_over(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_one_that_is_built_is_cancelled_another_is_built() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::hang());
    let _worker = harness.worker(COALESCE);
    push(&harness, &sha, 0..1).await;
    world::wait_for("a build to run", || harness.builder.running() == 1).await;
    harness.builder.script(Script::success(&["vote"]));
    push(&harness, &sha, 1..4).await;
    let entry = harness.redis.hgetall(&harness.redis.keys("sidebake:inflight:*").await[0]).await.into_values().next();
    let job: Value = serde_json::from_str(entry.unwrap().split_once('\n').unwrap().1).unwrap();
    let mark = [&format!("it-{}", job["jid"].as_str().unwrap()), "cancelled", "1"];
    redis::cmd("HSET").arg(&mark).exec_async(&mut harness.redis.connection().await).await.unwrap();
    let reports = reports(&harness, 4).await;
    assert_eq!((&reports[0]["build_id"], &reports[0]["status"]), (&json!(0), &json!("cancelled")));
    assert!(reports[1..].iter().all(|report| report["status"] == "succeeded"), "{reports:#?}");
    assert_eq!((leaders(&reports[1..]).len(), harness.builder.runs().len()), (1, 2));
    is_over(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_customer_is_shared_and_a_later_job_is_built_again() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::fails_step("vote", "make", 2, "no rule to make target").held());
    let _worker = harness.worker(COALESCE);
    push(&harness, &sha, 0..5).await;
    world::wait_for("a build to run", || harness.builder.running() == 1).await;
    harness.builder.release();
    let reports = reports(&harness, 5).await;
    let messages: BTreeSet<&str> = reports.iter().map(|report| report["message"].as_str().unwrap()).collect();
    assert!(messages.len() == 1 && messages.first().unwrap().contains("exited with 2"), "{messages:?}");
    assert!(
        reports.iter().all(|report| report["reason"] == "step_failed" && report["targets"][0]["log_tail"].is_string())
    );
    assert_eq!((leaders(&reports).len(), harness.builder.runs().len()), (1, 1));
    is_over(&harness).await;

    harness.builder.script(Script::success(&["vote"]));
    push(&harness, &sha, 5..6).await;
    let later = harness.callbacks(6).await.remove(5);
    assert_eq!((&later["status"], &later["coalesced_with"]), (&json!("succeeded"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_lost_its_access_does_not_get_the_result() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]).held());
    let _worker = harness.worker(COALESCE);
    push(&harness, &sha, 0..3).await;
    world::wait_for("a build to run", || harness.builder.running() == 1).await;
    harness.github.suspend(7_000_001, true);
    harness.builder.release();
    let reports = reports(&harness, 3).await;
    let statuses: Vec<&str> = reports.iter().map(|report| report["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["succeeded", "failed", "failed"]);
    assert!(
        reports[1..].iter().all(|report| report["targets"] == json!([]) && report["reason"] == "repository_denied"),
        "{reports:#?}"
    );
    is_over(&harness).await;
}
