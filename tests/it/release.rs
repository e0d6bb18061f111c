//! Returning to Ruby: `release` requeues the in-flight jobs of dead workers when no worker runs.

use std::process::Command;

use crate::harness::{Harness, probe, text};

/// Two jobs in flight of a killed worker with an expired lease.
async fn left_behind() -> Harness {
    let harness = Harness::start();
    for name in ["first", "second"] {
        let mut arguments = probe("succeed", 60.0);
        arguments[0]["message"] = name.into();
        harness.redis.push("default", "Sidebake::Probe", arguments).await;
    }
    let worker = harness.worker("jobs.probe = true\nlease.ttl = \"1s\"");
    harness
        .until("both jobs are in flight", async || {
            let keys = harness.redis.keys("sidebake:inflight:*").await;
            keys.len() == 1 && harness.redis.hgetall(&keys[0]).await.len() == 2
        })
        .await;
    let alive = harness.run(&["release", "--now"], "");
    assert!(text(&alive).contains(": alive, keeps its jobs"), "{}", text(&alive));
    worker.signal("KILL");
    harness.until("its lease expires", async || harness.redis.keys("sidebake:lease:*").await.is_empty()).await;
    harness
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_worker_that_has_just_lost_its_lease_keeps_its_jobs() {
    let harness = Harness::start();
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    let worker = harness.worker("jobs.probe = true\nlease.ttl = \"3s\"");
    harness.is_in_flight().await;
    let lease = harness.redis.keys("sidebake:lease:*").await.remove(0);
    redis::cmd("DEL").arg(&lease).exec_async(&mut harness.redis.connection().await).await.unwrap();
    let output = harness.run(&["release", "--now"], "");
    assert!(text(&output).contains(": alive, keeps its jobs"), "{}", text(&output));
    assert!(harness.redis.queue("default").await.is_empty());
    assert!(worker.logged("job_missing").is_empty() && worker.logged("job_reclaimed").is_empty(), "{}", worker.log());
}

async fn is_requeue(harness: &Harness) {
    let queue = harness.redis.queue("default").await;
    assert!(queue.len() == 2 && queue[0].contains("first") && queue[1].contains("second"), "{queue:?}");
    assert!(harness.redis.keys("sidebake:inflight:*").await.is_empty());
    assert!(harness.redis.smembers("sidebake:owners").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_command() {
    let harness = left_behind().await;
    let output = harness.run(&["release"], "lease.ttl = \"1s\"");
    assert!(output.status.success() && text(&output).contains(": requeued 2 jobs"), "{}", text(&output));
    is_requeue(&harness).await;
    assert_eq!(text(&harness.run(&["release"], "")), "no worker has jobs in flight\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_documented_redis_command() {
    let harness = left_behind().await;
    let document = include_str!("../../docs/operating.md");
    let line = document.lines().find(|line| line.starts_with("redis-cli -u \"$REDIS_URL\" EVAL ")).expect("the line");
    let output = Command::new("sh").args(["-c", line]).env("REDIS_URL", harness.redis.url()).output().unwrap();
    assert_eq!(text(&output).trim(), "2");
    is_requeue(&harness).await;
}
