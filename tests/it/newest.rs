//! Newest commit wins: of the jobs that build the same, only the newest one is built.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use world::Script;

use crate::harness::{CALLBACKS, Harness};

const QUEUED: &str = "jobs.probe = true\ntenants.supersede = { \"*\" = \"queued\" }";
const RUNNING: &str = "jobs.probe = true\ntenants.supersede = { \"*\" = \"running\" }";

/// A probe that builds a branch of a repository.
fn probe_of(build_id: &str, sleep_s: f64) -> Value {
    json!({"outcome": "succeed", "sleep_s": sleep_s, "account": "acme", "repository": "acme/app", "ref": "refs/heads/main",
        "build_id": build_id, "callback": {"class": "Done", "queue": CALLBACKS}})
}

async fn push(harness: &Harness, probe: Value) -> String {
    let jid = harness.redis.push("default", "Sidebake::Probe", json!([probe])).await;
    // The next one is created later.
    sleep(Duration::from_millis(3)).await;
    jid
}

/// The final callback of a build.
async fn callback_of(harness: &Harness, build_id: &str) -> Value {
    let find = async || {
        let jobs = harness.redis.queue(CALLBACKS).await;
        let reports = jobs.iter().map(|job| serde_json::from_str::<Value>(job).unwrap()["args"][0].clone());
        let mut ended = reports.filter(|report| report["moment"] == "finished");
        ended.find(|report| report["build_id"] == build_id)
    };
    harness.until("the callback", async || find().await.is_some()).await;
    find().await.unwrap()
}

/// Build id and status of each.
fn ends(callbacks: &[Value]) -> Vec<(&str, &str)> {
    callbacks.iter().map(|report| (report["build_id"].as_str().unwrap(), report["status"].as_str().unwrap())).collect()
}

async fn is_over(harness: &Harness) {
    harness.idle().await;
    for set in ["retry", "schedule", "dead"] {
        assert!(harness.redis.sorted_set(set).await.is_empty(), "{set}");
    }
    let is_empty = async || harness.redis.hgetall("sidebake:running").await.is_empty();
    harness.until("no claim is left", is_empty).await;
    assert_eq!(harness.redis.get("stat:failed").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_pushes_the_first_and_the_last_are_built_although_slots_are_free() {
    let harness = Harness::start();
    let _worker = harness.worker_with(&harness.config(QUEUED), &["-c", "4"]);
    let first = push(&harness, probe_of("1", 600.0)).await;
    harness.is_in_flight().await;
    for n in 2..=20 {
        push(&harness, probe_of(&n.to_string(), 0.0)).await;
    }
    let mut callbacks = harness.callbacks(18).await;
    for report in &callbacks {
        let (id, newer) = (number(&report["build_id"]), number(&report["superseded_by"]["build_id"]));
        assert!((2..20).contains(&id) && (3..=20).contains(&newer) && newer > id, "{report:#}");
        assert_eq!((&report["status"], &report["reason"]), (&json!("superseded"), &json!("superseded")));
        assert_eq!(report["message"], "A newer build of the same branch replaced this one.");
    }
    assert_eq!(harness.redis.queue("default").await.len(), 1, "the newest one waits for the one that runs");
    harness.redis.cancel(&first).await;
    callbacks = harness.callbacks(20).await.split_off(18);
    assert_eq!(ends(&callbacks), [("1", "cancelled"), ("20", "succeeded")]);
    is_over(&harness).await;
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("20"));
}

fn number(id: &Value) -> u32 {
    id.as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_job_ends_the_one_that_runs_and_takes_its_slot() {
    let harness = Harness::start();
    let worker = harness.worker_with(&harness.config(RUNNING), &["-c", "1"]);
    push(&harness, probe_of("old", 600.0)).await;
    harness.is_in_flight().await;
    let jid = push(&harness, probe_of("new", 0.0)).await;
    let callbacks = harness.callbacks(2).await;
    assert_eq!(ends(&callbacks), [("old", "superseded"), ("new", "succeeded")]);
    assert_eq!(callbacks[0]["superseded_by"], json!({"jid": jid, "build_id": "new"}));
    assert_eq!(callbacks[1]["superseded_by"], Value::Null);
    is_over(&harness).await;
    assert_eq!(worker.logged("job_superseded").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_of_a_class_is_stopped_with_its_children() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::hang());
    let _worker = harness.worker("jobs.classes.BuildJob.supersede = \"running\"");
    let request = |id: &str| {
        let mut request = harness.native(&sha);
        (request["build_id"], request["ref"]) = (json!(id), json!("refs/heads/main"));
        json!([request])
    };
    harness.redis.push("default", "BuildJob", request("old")).await;
    world::wait_for("the build to run", || harness.builder.running() == 1).await;
    sleep(Duration::from_millis(3)).await;
    harness.builder.script(Script::success(&["vote"]));
    harness.redis.push("default", "BuildJob", request("new")).await;
    assert!(harness.builder.ended_runs(1).await[0].was_killed());
    assert_eq!(ends(&harness.callbacks(2).await), [("old", "superseded"), ("new", "succeeded")]);
    is_over(&harness).await;
    assert!(harness.job_directories().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_an_old_job_never_beats_a_newer_one() {
    let harness = Harness::start();
    let _worker = harness.worker_with(&harness.config(RUNNING), &["-c", "1"]);
    let mut old = probe_of("old", 0.0);
    old["outcome"] = json!("infrastructure");
    push(&harness, old).await;
    harness.until("the old job waits", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    harness.idle().await;
    push(&harness, probe_of("new", 0.0)).await;
    callback_of(&harness, "new").await;
    harness.idle().await;
    // As a poller moves it.
    let (text, _) = harness.redis.sorted_set("retry").await.remove(0);
    redis::cmd("DEL").arg("retry").exec_async(&mut harness.redis.connection().await).await.unwrap();
    harness.redis.push_raw("default", text).await;
    let report = callback_of(&harness, "old").await;
    assert_eq!((&report["status"], &report["superseded_by"]["build_id"]), (&json!("superseded"), &json!("new")));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_build_something_else_or_take_no_part_do_not_end_each_other() {
    let harness = Harness::start();
    let _worker = harness.worker_with(&harness.config(RUNNING), &["-c", "8"]);
    let with = |id: &str, field: &str, value: Value| {
        let mut probe = probe_of(id, 1.0);
        probe[field] = value;
        probe
    };
    push(&harness, probe_of("plain", 1.0)).await;
    push(&harness, with("ref", "ref", json!("refs/heads/Main"))).await;
    push(&harness, with("account", "account", json!("other"))).await;
    push(&harness, with("repository", "repository", json!("acme/other"))).await;
    push(&harness, with("key", "supersede_key", json!("nightly"))).await;
    push(&harness, with("off", "supersede", json!("off"))).await;
    push(&harness, with("no ref", "ref", Value::Null)).await;
    let mut callbacks = harness.callbacks(7).await;
    assert!(callbacks.iter().all(|report| report["status"] == "succeeded"), "{:?}", ends(&callbacks));
    // The same key, whatever is built.
    push(&harness, with("key 1", "supersede_key", json!("nightly"))).await;
    let mut other = with("key 2", "supersede_key", json!("nightly"));
    other["repository"] = json!("acme/other");
    push(&harness, other).await;
    callbacks = harness.callbacks(9).await.split_off(7);
    assert_eq!(ends(&callbacks), [("key 1", "superseded"), ("key 2", "succeeded")]);
    is_over(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_jobs_that_wait_when_a_worker_starts_only_the_newest_is_built() {
    let harness = Harness::start();
    for n in 1..=5 {
        push(&harness, probe_of(&n.to_string(), 0.5)).await;
    }
    let _worker = harness.worker_with(&harness.config(QUEUED), &["-c", "4"]);
    let callbacks = harness.callbacks(5).await;
    let built: Vec<_> = ends(&callbacks).into_iter().filter(|(_, status)| *status == "succeeded").collect();
    assert_eq!(built, [("5", "succeeded")], "{:?}", ends(&callbacks));
    is_over(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_job_takes_the_place_of_the_one_that_it_ends() {
    let harness = Harness::start();
    let of_branch = |id: &str, branch: &str, sleep_s: f64| {
        let mut probe = probe_of(id, sleep_s);
        probe["ref"] = json!(branch);
        probe
    };
    let _worker = harness.worker_with(&harness.config(QUEUED), &["-c", "1"]);
    let first = push(&harness, of_branch("first", "refs/heads/first", 600.0)).await;
    harness.is_in_flight().await;
    push(&harness, of_branch("old", "refs/heads/main", 0.0)).await;
    for n in 0..3 {
        push(&harness, of_branch(&format!("other {n}"), &format!("refs/heads/{n}"), 0.0)).await;
    }
    push(&harness, of_branch("new", "refs/heads/main", 0.0)).await;
    assert_eq!(ends(&harness.callbacks(1).await), [("old", "superseded")]);
    let waiting: Vec<Value> =
        harness.redis.queue("default").await.iter().map(|job| serde_json::from_str(job).unwrap()).collect();
    let waiting: Vec<&str> = waiting.iter().map(|job| job["args"][0]["build_id"].as_str().unwrap()).collect();
    assert_eq!(waiting, ["new", "other 0", "other 1", "other 2"]);
    harness.redis.cancel(&first).await;
    assert_eq!(harness.callbacks(6).await[2]["build_id"], "new");
    is_over(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_jobs_of_one_branch_do_not_hold_up_others() {
    let harness = Harness::start();
    let _worker = harness.worker_with(&harness.config(QUEUED), &["-c", "2"]);
    let first = push(&harness, probe_of("0", 600.0)).await;
    harness.is_in_flight().await;
    for n in 1..=12 {
        let mut probe = probe_of(&n.to_string(), 0.0);
        probe["variables"] = json!({"TEXT": "x".repeat(60_000)});
        push(&harness, probe).await;
    }
    let mut other = probe_of("other", 0.0);
    other["account"] = json!("other");
    push(&harness, other).await;
    let callbacks = harness.callbacks(12).await;
    let of = |wanted: &str| ends(&callbacks).iter().filter(|(_, status)| *status == wanted).count();
    assert_eq!((of("superseded"), of("succeeded")), (11, 1), "{:?}", ends(&callbacks));
    harness.redis.cancel(&first).await;
    assert_eq!(ends(&harness.callbacks(14).await[12..]), [("0", "cancelled"), ("12", "succeeded")]);
    is_over(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_job_on_a_paused_queue_ends_nothing_and_an_older_one_stays_there() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SADD").arg(&["paused", "paused"]).exec_async(&mut connection).await.unwrap();
    harness.redis.push("paused", "Sidebake::Probe", json!([probe_of("older", 0.0)])).await;
    sleep(Duration::from_millis(3)).await;
    let _worker = harness.worker_with(&harness.config(RUNNING), &["-c", "2", "-q", "default", "-q", "paused"]);
    push(&harness, probe_of("runs", 2.0)).await;
    harness.is_in_flight().await;
    harness.redis.push("paused", "Sidebake::Probe", json!([probe_of("newer", 0.0)])).await;
    assert_eq!(ends(&harness.callbacks(1).await), [("runs", "succeeded")]);
    assert_eq!(harness.redis.queue("paused").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_while_they_end_older_jobs_lose_none() {
    let harness = Harness::start();
    let config = harness.config(&format!("{QUEUED}\nlease.ttl = \"1s\""));
    let first = push(&harness, probe_of("0", 600.0)).await;
    let mut worker = harness.worker_with(&config, &["-c", "1"]);
    harness.is_in_flight().await;
    for n in 1..=60 {
        push(&harness, probe_of(&n.to_string(), 0.0)).await;
        if n % 20 == 0 {
            let before = harness.redis.queue(CALLBACKS).await.len();
            harness.until("jobs end", async || harness.redis.queue(CALLBACKS).await.len() > before).await;
            worker.signal("KILL");
            worker.ended().await;
            worker = harness.worker_with(&config, &["-c", "1"]);
        }
    }
    // The first job may have been taken again, or ended by a newer one when it began again.
    harness.redis.cancel(&first).await;
    let callbacks = harness.callbacks(61).await;
    let mut ids: Vec<u32> = callbacks.iter().map(|report| number(&report["build_id"])).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..=60).collect::<Vec<_>>(), "each once");
    assert_eq!(ends(&callbacks).iter().filter(|(id, status)| (*id, *status) == ("60", "succeeded")).count(), 1);
    is_over(&harness).await;
}
