//! The worker retries infrastructure failures by Sidekiq's rules.

use serde_json::{Value, json};
use world::Script;

use crate::harness::{CALLBACKS, Harness, probe};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_builder_is_retried_with_a_callback_where_rails_asks_for_it() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::loses_builder());
    harness.builder.script(Script::success(&["vote"]));
    let mut native = harness.native(&sha);
    native["callback"]["on"] = json!(["retrying", "finished"]);
    let jid = harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker("jobs.poll_interval = \"200ms\"");
    let retrying = harness.callbacks(1).await.remove(0);
    assert_eq!(
        (&retrying["moment"], &retrying["reason"]),
        (&json!("retrying"), &json!("builder_lost")),
        "{retrying:#}"
    );

    // Makes the entry due, as "retry now" in the Web UI does, instead of waiting fifteen seconds.
    let (member, score) = harness.redis.sorted_set("retry").await.remove(0);
    let job: Value = serde_json::from_str(&member).unwrap();
    assert_eq!((&job["jid"], &job["retry_count"]), (&json!(jid), &json!(0)));
    assert!(score > job["failed_at"].as_f64().unwrap() / 1000.0 + 14.0, "Sidekiq's curve");
    let mut connection = harness.redis.connection().await;
    redis::cmd("ZADD").arg("retry").arg(1).arg(&member).exec_async(&mut connection).await.unwrap();

    let finished = harness.callbacks(2).await.remove(1);
    assert_eq!((&finished["status"], &finished["attempt"]), (&json!("succeeded"), &json!(2)), "{finished:#}");
    assert!(harness.redis.sorted_set("retry").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_job_dies_and_the_callback_reports_it() {
    let harness = Harness::start();
    let job = json!({
        "class": "Sidebake::Probe", "retry": 0, "jid": "j", "queue": "default", "created_at": 1_795_491_695.5,
        "args": [{"outcome": "infrastructure", "message": "gone", "callback": {"class": "Done", "queue": CALLBACKS}}]
    });
    harness.redis.push_raw("default", job.to_string()).await;
    let _worker = harness.worker("jobs.probe = true");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!("builder_unavailable")));
    let (member, _) = harness.redis.sorted_set("dead").await.remove(0);
    let dead: Value = serde_json::from_str(&member).unwrap();
    assert!(dead["failed_at"].is_f64(), "times have the form of the job: {member}");
    assert_eq!(dead["error_message"], "gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn due_jobs_of_other_classes_are_left_to_ruby() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    for class in ["MailJob", "Sidebake::Probe"] {
        let job = json!({"class": class, "queue": "default", "args": [{"outcome": "succeed"}], "jid": class});
        redis::cmd("ZADD").arg("schedule").arg(1).arg(job.to_string()).exec_async(&mut connection).await.unwrap();
    }
    let _worker = harness.worker("jobs.probe = true\njobs.poll_interval = \"100ms\"");
    harness
        .until("the worker's own job ends", async || harness.redis.get("stat:processed").await.as_deref() == Some("1"))
        .await;
    let schedule = harness.redis.sorted_set("schedule").await;
    assert!(schedule.len() == 1 && schedule[0].0.contains("MailJob"), "{schedule:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callback_of_an_older_sidekiqs_job_has_times_in_its_form() {
    let harness = Harness::start();
    let job =
        json!({"class": "Sidebake::Probe", "jid": "j", "created_at": 1_795_491_695.5, "args": probe("succeed", 0.0)});
    harness.redis.push_raw("default", job.to_string()).await;
    let _worker = harness.worker("jobs.probe = true");
    let callback = harness.callback_jobs(1).await.remove(0);
    assert!(callback["created_at"].is_f64() && callback["enqueued_at"].is_f64(), "{callback:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_job_is_not_run() {
    let harness = Harness::start();
    let job = json!({"class": "Sidebake::Probe", "jid": "j", "expiry": 1_795_491_695.5, "args": probe("succeed", 0.0)});
    harness.redis.push_raw("default", job.to_string()).await;
    let _worker = harness.worker("jobs.probe = true");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["status"], &report["reason"]), (&json!("cancelled"), &json!("expired")));
    assert_eq!(harness.redis.get("stat:failed").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_failure_counts_as_failed() {
    let harness = Harness::start();
    for (outcome, rules) in [
        ("succeed", json!({})),
        ("infrastructure", json!({"retry": false})),
        ("infrastructure", json!({"retry": 0, "dead": false})),
        ("user", json!({"dead": false})),
    ] {
        let mut job = json!({"class": "Sidebake::Probe", "jid": "j", "args": [{"outcome": outcome}]});
        job.as_object_mut().unwrap().extend(rules.as_object().unwrap().clone());
        harness.redis.push_raw("default", job.to_string()).await;
    }
    let mut worker = harness.worker("jobs.probe = true");
    harness.until("all jobs end", async || harness.redis.get("stat:processed").await.as_deref() == Some("4")).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(harness.redis.get("stat:failed").await.as_deref(), Some("3"));
    let mut n_in_metrics = 0;
    for key in harness.redis.keys("j|????????|*").await {
        let failed = harness.redis.hgetall(&key).await.remove("Sidebake::Probe|f");
        n_in_metrics += failed.map_or(0, |n| n.parse().unwrap());
    }
    assert_eq!(n_in_metrics, 3);
    for set in ["retry", "dead"] {
        assert!(harness.redis.sorted_set(set).await.is_empty(), "no set has them");
    }
}
