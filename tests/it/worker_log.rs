//! The log of a worker: what an operator reads and a machine parses, at level info.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use world::Script;

use crate::harness::{Harness, Worker, probe};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_two_lines_and_a_warning_only_where_the_platform_failed() {
    let harness = Harness::start();
    // The file is the reason for a notice.
    let attributes = (".gitattributes", "*.txt working-tree-encoding=UTF-16\n");
    let files = [("vote/Dockerfile", "FROM base\n"), ("vote/a.txt", "a\n"), attributes];
    let sha = harness.git.repository("acme/voting-app").commit(&files);
    harness.builder.script(Script::success(&["vote"]));
    harness.builder.script(Script::fails_step("vote", "npm ci", 1, "no such package"));
    let worker = json_worker(&harness, "jobs.probe = true", &[]);
    let native = harness.native(&sha);
    let mut ends = Vec::new();
    let mut n_callbacks = 0;
    for (class, arguments, end, level) in [
        ("BuildJob", json!([native]), "job_done", "INFO"),
        ("BuildJob", json!([native]), "job_failed", "INFO"),
        ("BuildJob", json!([harness.native(&"0".repeat(40))]), "job_failed", "INFO"),
        ("Sidebake::Probe", probe("succeed", 0.0), "job_done", "INFO"),
        ("Sidebake::Probe", probe("infrastructure", 0.0), "job_retried", "WARN"),
    ] {
        ends.push((harness.redis.push("default", class, arguments).await, end, level));
        n_callbacks += usize::from(end != "job_retried");
        harness.callbacks(n_callbacks).await;
        harness.idle().await;
    }
    assert_ne!(harness.reports().await[0]["notices"], json!([]));
    let expired = json!({"class": "BuildJob", "jid": "expired-job", "queue": "default", "args": [native], "expiry": 1});
    harness.redis.push_raw("default", expired.to_string()).await;
    ends.push(("expired-job".into(), "job_stopped", "INFO"));
    let is_end = |line: &Value| event(line).starts_with("job_") && event(line) != "job_started";
    world::wait_for("the last line", || lines(&worker).iter().filter(|line| is_end(line)).count() == ends.len()).await;
    let all = lines(&worker);
    for (jid, end, level) in &ends {
        let of_job: Vec<_> = all.iter().filter(|line| line.to_string().contains(jid.as_str())).collect();
        let shown: Vec<_> = of_job.iter().map(|line| (event(line), line["level"].as_str().unwrap())).collect();
        assert_eq!(shown, [("job_started", "INFO"), (*end, *level)], "{of_job:#?}");
    }
    let after_start = all.iter().skip_while(|line| event(line) != "worker_started").skip(1);
    assert_eq!(after_start.count(), 2 * ends.len(), "{all:#?}");
}

/// The first row of each table in this section of `docs/operating.md`: the names in the first cell, and the second cell.
fn documented() -> Vec<(Vec<String>, String)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md")).unwrap();
    let rows =
        text.lines().skip_while(|line| *line != "### Lines of a job").skip(1).take_while(|line| !line.starts_with('#'));
    let rows = rows.filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split('|').collect::<Vec<_>>());
    cells
        .map(|cells| {
            let names = format!("`{}", cells[0]);
            (names.split('`').skip(1).step_by(2).map(str::to_owned).collect(), cells[1].trim().to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_a_job_have_the_documented_fields() {
    let documented = documented();
    let names = |of: &[&str]| -> BTreeSet<String> {
        let rows = documented.iter().filter(|(_, place)| of.contains(&place.as_str()));
        rows.flat_map(|(names, _)| names.clone()).collect()
    };
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::loses_builder());
    let worker = json_worker(&harness, "", &[]);
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    world::wait_for("the end", || lines(&worker).iter().any(|line| event(line) == "job_retried")).await;
    let fields_of = |of: &str| -> BTreeSet<String> {
        let line = lines(&worker).into_iter().find(|line| event(line) == of).unwrap();
        let fields = line["fields"].as_object().unwrap().keys().cloned();
        fields.filter(|field| !["message", "event"].contains(&field.as_str())).collect()
    };
    assert_eq!(fields_of("job_started"), names(&["both"]));
    // Only Kubernetes has these two.
    let of_kubernetes = ["shard", "pod"].map(str::to_owned).into();
    assert_eq!(fields_of("job_retried"), names(&["both", "end"]).difference(&of_kubernetes).cloned().collect());
}
