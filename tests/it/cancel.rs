//! A cancelled build ends in any state, with a callback. Until then, Redis shows its progress.

use serde_json::{Value, json};
use sidebake::redis::Redis;
use sidebake::sidekiq::cancel::{JobLocation, find};
use sidebake::sidekiq::payload::Payload;
use world::{Answer, Script, Step};

use crate::harness::{Harness, client, probe, text};

/// The mark that `Sidekiq::Client#cancel!` sets, or a line of Ruby before 7.3.3.
async fn mark(harness: &Harness, jid: &str) {
    let mut connection = harness.redis.connection().await;
    redis::cmd("HSETNX")
        .arg(&[&format!("it-{jid}"), "cancelled", "1795491695"])
        .exec_async(&mut connection)
        .await
        .unwrap();
}

async fn has_callback(harness: &Harness, build_id: Value) {
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(
        (&report["moment"], &report["status"], &report["reason"]),
        (&json!("finished"), &json!("cancelled"), &json!("cancelled")),
        "{report:#}"
    );
    assert_eq!(report["message"], "The build was cancelled.");
    assert_eq!(report["build_id"], build_id, "the callback identifies the build");
    assert!(harness.redis.keys("it-*").await.is_empty(), "the end of the job removes the mark");
    for set in ["retry", "schedule", "dead"] {
        assert!(harness.redis.sorted_set(set).await.is_empty(), "{set}");
    }
    assert_eq!(harness.redis.get("stat:failed").await, None);
}

/// A job that waits in a set until the year 2100.
async fn put(harness: &Harness, set: &str, jid: &str, native: &Value) {
    let job = json!({"class": "BuildJob", "queue": "default", "jid": jid, "args": [native], "retry_count": 0});
    let mut connection = harness.redis.connection().await;
    redis::cmd("ZADD").arg(set).arg(4e9).arg(job.to_string()).exec_async(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_is_stopped() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::hang());
    let _worker = harness.worker("");
    let jid = harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    world::wait_for("the build to run", || harness.builder.running() == 1).await;
    mark(&harness, &jid).await;
    assert!(harness.builder.ended_runs(1).await[0].was_killed());
    has_callback(&harness, json!(42)).await;
    assert!(harness.job_directories().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_build_does_not_begin() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let jid = harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    mark(&harness, &jid).await;
    let _worker = harness.worker("");
    has_callback(&harness, json!(42)).await;
    assert!(harness.builder.runs().is_empty() && harness.github.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_build_is_cancelled_before_its_time() {
    for set in ["schedule", "retry"] {
        let harness = Harness::start();
        put(&harness, set, "0123", &harness.native("x")).await;
        mark(&harness, "0123").await;
        let _worker = harness.worker("jobs.poll_interval = \"200ms\"");
        has_callback(&harness, json!(42)).await;
    }
}

/// Ruby's processes do not look for cancelled builds, so their number delays nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_build_is_cancelled_by_the_next_poll_beside_many_listed_processes() {
    let harness = Harness::start();
    harness.list_ruby_processes(200).await;
    let _workers = [(); 2].map(|()| harness.worker("jobs.poll_interval = \"1s\""));
    harness.until("a worker is listed", async || harness.redis.smembers("processes").await.len() > 200).await;
    put(&harness, "retry", "0123", &harness.native("x")).await;
    // Every worker has polled, at least without the turn of another one.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let marked = std::time::Instant::now();
    mark(&harness, "0123").await;
    has_callback(&harness, json!(42)).await;
    assert!(marked.elapsed() < std::time::Duration::from_secs(10), "{:?}", marked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_far_behind_others_is_found() {
    let harness = Harness::start();
    let mut others = redis::cmd("ZADD");
    others.arg("retry");
    for n in 0..3_000 {
        others.arg(3e9).arg(json!({"class": "MailJob", "queue": "mails", "jid": format!("{n:024x}")}).to_string());
    }
    others.exec_async(&mut harness.redis.connection().await).await.unwrap();
    put(&harness, "retry", "0123", &harness.native("x")).await;
    mark(&harness, "0123").await;
    let _worker = harness.worker("jobs.poll_interval = \"200ms\"");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["jid"], &report["status"]), (&json!("0123"), &json!("cancelled")), "{report:#}");
    assert_eq!(harness.redis.sorted_set("retry").await.len(), 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_build_that_cannot_be_read_or_moved_hides_no_other() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SET").arg(&["it-odd", "x"]).exec_async(&mut connection).await.unwrap();
    redis::cmd("SET").arg(&["queue:odd", "x"]).exec_async(&mut connection).await.unwrap();
    let stuck = json!({"class": "BuildJob", "queue": "odd", "jid": "stuck", "args": []}).to_string();
    redis::cmd("ZADD").arg("retry").arg(3e9).arg(stuck).exec_async(&mut connection).await.unwrap();
    for jid in ["odd", "0123", "4567", "89ab"] {
        put(&harness, "retry", jid, &harness.native("x")).await;
    }
    for jid in ["stuck", "0123", "4567", "89ab"] {
        mark(&harness, jid).await;
    }
    let _worker = harness.worker("jobs.poll_interval = \"200ms\"");
    harness.callbacks(3).await;
    assert_eq!(harness.redis.sorted_set("retry").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_takes_a_build_id_or_a_jid() {
    for (set, build) in [("schedule", "42"), ("retry", "0123")] {
        let harness = Harness::start();
        put(&harness, set, "0123", &harness.native("x")).await;
        let output = harness.run(&["cancel", build], "");
        assert!(output.status.success() && text(&output).starts_with("0123 "), "{}", text(&output));
        let _worker = harness.worker("");
        has_callback(&harness, json!(42)).await;
    }

    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::hang());
    let worker = harness.worker("");
    let jid = harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    world::wait_for("the build to run", || harness.builder.running() == 1).await;
    let unknown = harness.run(&["cancel", "41"], "");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown).contains("no build 41 is queued"), "{}", text(&unknown));
    let output = harness.run(&["cancel", "42"], "");
    assert!(text(&output).contains(&format!("{jid} running in ")), "{}", text(&output));
    has_callback(&harness, json!(42)).await;
    drop(worker);

    let queued = harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let output = harness.run(&["cancel", &queued], "");
    assert_eq!(text(&output), format!("{queued} queued on default\n"));
}

/// A Redis with one job in flight, and a client for the search.
async fn one_in_flight() -> (world::Redis, Redis) {
    let server = world::Redis::start();
    let redis = client(&server.url());
    server.push("default", "MailJob", json!([])).await;
    let mut connection = server.connection().await;
    let mut take = redis::pipe();
    take.cmd("SADD").arg(&["sidebake:owners", "host"]);
    take.cmd("HSET").arg(&["sidebake:inflight:host", "000000000001", &format!("default\n{MEANT}")]);
    take.exec_async(&mut connection).await.unwrap();
    (server, redis)
}

const MEANT: &str = r#"{"class":"BuildJob","queue":"default","jid":"0123"}"#;

#[tokio::test]
async fn a_job_that_moves_back_during_the_search_is_found() {
    let (server, redis) = one_in_flight().await;
    // The search reads the queues after the retry set and before the in-flight hashes.
    let fails_meanwhile = |payload: &Payload| {
        if payload.class == "MailJob" {
            let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
            let mut retry = redis::pipe();
            retry.cmd("DEL").arg("sidebake:inflight:host").cmd("ZADD").arg(&["retry", "4e9", MEANT]);
            retry.exec(&mut connection).unwrap();
        }
        payload.jid == "0123"
    };
    let found = find(&redis, fails_meanwhile).await.unwrap();
    assert_eq!(found.iter().map(|job| &job.location).collect::<Vec<_>>(), [&JobLocation::Retry]);
}

#[tokio::test]
async fn a_job_that_ends_during_the_search_is_not_marked() {
    let (server, redis) = one_in_flight().await;
    let ends_meanwhile = |payload: &Payload| {
        let is_meant = payload.jid == "0123";
        if is_meant {
            let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
            redis::cmd("DEL").arg("sidebake:inflight:host").exec(&mut connection).unwrap();
        }
        is_meant
    };
    assert_eq!(find(&redis, ends_meanwhile).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_interrupted_and_cancelled_is_cancelled_by_the_next_worker() {
    let harness = Harness::start();
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    let mut worker = harness.worker("jobs.probe = true\nshutdown.timeout = \"0s\"");
    harness.is_in_flight().await;
    worker.signal("TERM");
    worker.ended().await;
    mark(&harness, &jid).await;
    let _worker = harness.worker("jobs.probe = true");
    has_callback(&harness, Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_mark_is_removed_with_an_ended_job_and_kept_for_a_retried_one() {
    let harness = Harness::start();
    let mut jids = Vec::new();
    // The job ends before the worker checks for cancelled jobs.
    for outcome in ["succeed", "user", "infrastructure"] {
        jids.push(harness.redis.push("default", "Sidebake::Probe", probe(outcome, 0.0)).await);
        mark(&harness, jids.last().unwrap()).await;
    }
    let _worker = harness.worker("jobs.probe = true\njobs.poll_interval = \"1h\"");
    harness.callbacks(2).await;
    harness.until("one job is in the retry set", async || !harness.redis.sorted_set("retry").await.is_empty()).await;
    harness.idle().await;
    assert_eq!(harness.redis.keys("it-*").await, [format!("it-{}", jids[2])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_busy_page_shows_the_phase_and_the_finished_targets() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let done = json!({"vertexes": [{
        "digest": "sha256:x", "name": "[vote] exporting to image",
        "started": "2026-11-24T04:05:55Z", "completed": "2026-11-24T04:05:56Z"
    }]});
    harness.builder.script(Script::steps(vec![Step::Stderr(format!("{done}\n")), Step::Hold, Step::Exit(1)]));
    let mut native = harness.native(&sha);
    let images = native["application"]["images"].as_array_mut().unwrap();
    images.push(json!({"name": "result", "context": "./result", "tags": ["registry.example/acme/result:1"]}));
    let jid = harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker("");
    let key = format!("it-{jid}");
    harness
        .until("one of two targets is done", async || {
            let shown = harness.redis.hgetall(&key).await;
            shown.get("c").map(String::as_str) == Some("\"bake, 1 of 2 targets\"")
        })
        .await;
    let shown = harness.redis.hgetall(&key).await;
    assert_eq!(shown["ex"], "1");
    assert!(shown["rt"].parse::<f64>().unwrap() < 60.0);
    harness.builder.release();
    harness.until("the job is in the retry set", async || !harness.redis.sorted_set("retry").await.is_empty()).await;
    assert_eq!(harness.redis.hgetall(&key).await["c"], shown["c"], "the Retries page shows its progress");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_of_an_id_has_the_callback_that_rails_names() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.rails.answer(4711, Answer::Object(harness.native(&sha)));
    let resolve = format!(
        r#"jobs.classes.BuildByIdJob = {{ arguments = "resolved", resolve = {{ url = "{}", secret = "s3cret" }} }}"#,
        harness.rails.url_pattern()
    );
    let jid = harness.redis.push("default", "BuildByIdJob", json!([4711])).await;
    let output = harness.run(&["cancel", "4711"], &resolve);
    assert!(text(&output).starts_with(&jid), "{}", text(&output));
    let _worker = harness.worker(&resolve);
    has_callback(&harness, json!(42)).await;
}
