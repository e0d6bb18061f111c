//! The log of a worker: what an operator reads and a machine parses, at level info.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Harness, Worker};

/// Starts a worker that logs JSON at level info.
fn json_worker(harness: &Harness, more: &str, variables: &[(&str, &str)]) -> Worker {
    let variables = [&[("SIDEBAKE__LOG__LEVEL", "info"), ("SIDEBAKE__LOG__FORMAT", "json")], variables].concat();
    harness.worker_with_variables(&harness.config(more), &[], &variables)
}

/// The lines of a log in JSON. The last one may be incomplete.
fn lines(worker: &Worker) -> Vec<Value> {
    worker.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn event(line: &Value) -> &str {
    line["fields"]["event"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_ten_lines_that_name_every_system_and_no_secret() {
    let harness = Harness::start();
    let url = harness.redis.url().replace("redis://", "redis://default:hunter2@");
    let variables = [
        ("SIDEBAKE__REDIS__URL", url.as_str()),
        ("SIDEBAKE__GITHUB__API_URL", "https://me:hunter2@github.example/api/v3"),
    ];
    let worker = json_worker(&harness, "", &variables);
    let started = || lines(&worker).iter().any(|line| event(line) == "worker_started");
    world::wait_for("the start", started).await;
    let all = lines(&worker);
    // Such as that this Redis has no append-only file.
    let lines: Vec<_> = all.iter().filter(|line| line["level"] == "INFO").collect();
    let events: Vec<_> = lines.iter().map(|line| event(line)).collect();
    let expected = [
        "worker_starting",
        "start_redis",
        "start_queues",
        "start_builders",
        "start_github",
        "start_sandbox",
        "start_state",
        "start_logs",
        "start_listener",
        "worker_started",
    ];
    assert_eq!(events, expected, "{lines:#?}");
    let fields: BTreeMap<_, _> = lines.iter().map(|line| (event(line), &line["fields"])).collect();
    assert_eq!(fields["worker_starting"]["version"], env!("CARGO_PKG_VERSION"));
    let redis = fields["start_redis"];
    assert_eq!(
        (&redis["address"], &redis["new_jobs"]),
        (&json!(format!("{}/0", harness.redis.url().trim_end_matches("/0"))), &json!("tracking"))
    );
    assert!(redis["version"].as_str().is_some_and(|version| version.contains('.')), "{redis}");
    assert_eq!(fields["start_queues"]["capsules"], "default: 4 slots for default");
    assert_eq!(fields["start_builders"]["builders"], format!("default: remote {}", harness.builder.endpoint()));
    assert_eq!(fields["start_github"]["api_url"], "https://github.example/api/v3");
    assert_eq!(fields["start_sandbox"]["mode"], "required");
    assert!(fields["start_state"]["free_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    assert_eq!((&fields["start_logs"]["live_log"], &fields["start_logs"]["archive"]), (&json!("on"), &json!("off")));
    assert_eq!(fields["start_listener"]["address"], "off");
    assert!(!worker.log().contains("hunter2"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_answer_is_named_and_the_start_goes_on() {
    let harness = Harness::start();
    let worker = json_worker(&harness, "", &[("SIDEBAKE__REDIS__URL", "redis://:hunter2@127.0.0.1:1/3")]);
    world::wait_for("the start", || lines(&worker).iter().any(|line| event(line) == "worker_started")).await;
    let line = lines(&worker).into_iter().find(|line| event(line) == "start_redis").unwrap();
    assert_eq!((&line["fields"]["address"], line["fields"].get("version")), (&json!("redis://127.0.0.1:1/3"), None));
    assert!(!worker.log().contains("hunter2"), "{}", worker.log());
}
