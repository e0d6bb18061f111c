//! Quiet, stop, and immediate stop.

use serde_json::{Value, json};
use world::{Answer, Script};

use crate::harness::{CALLBACKS, Harness, probe};

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fits_into_the_time_is_finished_and_settled() {
    let harness = Harness::start();
    let mut worker = harness.worker("jobs.probe = true");
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 3.0)).await;
    harness.is_in_flight().await;
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    harness.callbacks(1).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(harness.callbacks(2).await.len(), 2);
    for key in ["processes", "sidebake:owners"] {
        assert!(harness.redis.smembers(key).await.is_empty(), "the worker removes itself from {key}");
    }
    assert!(harness.redis.keys("sidebake:lease:*").await.is_empty(), "the worker removes its lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn job_killed_at_the_deadline_is_back_on_its_queue() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::hang());
    let mut worker = harness.worker_with(&harness.config(""), &["-t", "1"]);
    let jid = harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    world::wait_for("the build to run", || harness.builder.running() == 1).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    let queue = harness.redis.queue("default").await;
    assert!(queue.len() == 1 && queue[0].contains(&jid), "{queue:?}");
    assert!(!queue[0].contains("retry_count"), "an interruption does not count as a failure");
    assert!(harness.redis.keys("sidebake:inflight:*").await.is_empty());
    assert!(harness.builder.ended_runs(1).await[0].was_killed());
    assert!(harness.job_directories().is_empty());
    assert_eq!(harness.redis.get("stat:processed").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_term_means_now() {
    let harness = Harness::start();
    let mut worker = harness.worker("jobs.probe = true");
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    harness.is_in_flight().await;
    worker.signal("TERM");
    world::wait_for("the log message", || !worker.logged("worker_stopping").is_empty()).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(harness.redis.queue("default").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_requeued_by_a_stop_keep_the_order_of_their_fetch() {
    let harness = Harness::start();
    let mut worker = harness.worker_with(&harness.config("jobs.probe = true"), &["-c", "10", "-t", "0"]);
    for _ in 0..12 {
        harness.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    }
    let pushed = async || harness.redis.queue("default").await;
    world::wait_for("ten jobs to run", || worker.logged("job_started").len() == 10).await;
    let inflight = harness.redis.hgetall(&harness.redis.keys("sidebake:inflight:*").await[0]).await;
    let mut expected: Vec<_> = inflight.into_iter().collect();
    expected.sort();
    let expected = expected.iter().map(|(_, entry)| entry.strip_prefix("default\n").unwrap().to_owned());
    let expected: Vec<String> = expected.chain(pushed().await).collect();
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(pushed().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_worker_finishes_and_fetches_nothing_new() {
    let harness = Harness::start();
    let mut worker = harness.worker("jobs.probe = true");
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 3.0)).await;
    harness.is_in_flight().await;
    worker.signal("TSTP");
    harness.callbacks(1).await;
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(harness.redis.queue("default").await.len(), 1);
    assert_eq!(worker.logged("job_started").len(), 1, "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_takes_its_children_with_it() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::hang());
    let worker = harness.worker("");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    world::wait_for("the build to run", || harness.builder.running() == 1).await;
    worker.signal("KILL");
    world::wait_for("the child to end", || harness.builder.ended() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_three_stops_have_killed_waits_in_the_retry_set() {
    let harness = Harness::start();
    let args = json!([{"outcome": "succeed", "sleep_s": 60.0, "callback": {"class": "Done", "queue": CALLBACKS, "on": ["retrying", "finished"]}}]);
    let jid = harness.redis.push("default", "Sidebake::Probe", args).await;
    for n in 1..=3 {
        let mut worker = harness.worker("jobs.probe = true\nshutdown.timeout = \"0s\"");
        // A stop before that interrupts nothing.
        world::wait_for("the job to start", || !worker.logged("job_started").is_empty()).await;
        worker.signal("TERM");
        assert_eq!(worker.ended().await, Some(0));
        let n_queued = harness.redis.queue("default").await.len();
        assert_eq!((n, n_queued), (n, usize::from(n < 3)));
    }
    let (retry, _) = harness.redis.sorted_set("retry").await.remove(0);
    let retry: Value = serde_json::from_str(&retry).unwrap();
    assert_eq!(
        (retry["jid"].as_str(), retry["error_class"].as_str()),
        (Some(jid.as_str()), Some("Sidebake::Interrupted"))
    );
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((report["moment"].as_str(), report["reason"].as_str()), (Some("retrying"), Some("interrupted")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waits_for_github_ends_at_once_when_its_worker_does() {
    for path in ["/app/installations", "/repos/acme/voting-app/git/ref"] {
        let harness = Harness::start();
        let (_, sha) = harness.voting_app();
        harness.github.faults().stall_next(path, 1);
        let mut native = harness.native(&sha);
        native["ref"] = json!("refs/heads/main");
        harness.redis.push("default", "BuildJob", json!([native])).await;
        let mut worker = harness.worker("shutdown.timeout = \"1ms\"");
        harness
            .until("the build waits", async || harness.github.calls().iter().any(|call| call.path.starts_with(path)))
            .await;
        worker.signal("TERM");
        worker.ended().await;
        assert!(worker.logged("stop_ignored").is_empty(), "{path}: {}", worker.log());
        assert_eq!(harness.redis.queue("default").await.len(), 1, "the job is on its queue");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waits_for_rails_ends_soon_after_a_stop() {
    let harness = Harness::start();
    harness.rails.answer(4711, Answer::Hang);
    let resolve = format!(
        r#"jobs.classes.BuildByIdJob = {{ arguments = "resolved", resolve = {{ url = "{}", secret = "s3cret" }} }}"#,
        harness.rails.url_pattern()
    );
    harness.redis.push("default", "BuildByIdJob", json!([4711])).await;
    let mut worker = harness.worker(&format!("shutdown.timeout = \"1ms\"\n{resolve}"));
    harness.until("the build waits", async || !harness.rails.requests().is_empty()).await;
    worker.signal("TERM");
    worker.ended().await;
    assert!(worker.logged("stop_ignored").is_empty(), "{}", worker.log());
    assert_eq!(harness.redis.queue("default").await.len(), 1, "the job is on its queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_loses_no_result_when_redis_is_down() {
    let harness = Harness::start();
    let mut worker = harness.worker("jobs.probe = true");
    world::wait_for("the worker to start", || !worker.logged("worker_started").is_empty()).await;
    harness
        .until("the worker sends its first heartbeat", async || !harness.redis.smembers("processes").await.is_empty())
        .await;
    harness.redis.freeze();
    worker.signal("TERM");
    worker.ended().await;
    assert!(worker.logged("results_not_taken").is_empty(), "{}", worker.log());
}
