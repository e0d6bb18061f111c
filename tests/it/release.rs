//! Going back to Ruby: what dead workers have left is put on its queues with no worker left to do it.

use std::path::Path;
use std::process::Command;

use crate::afternoon::{Afternoon, probe, text};

/// Two jobs in flight of a worker that was killed, and whose lease has run out.
async fn left_behind() -> Afternoon {
    let afternoon = Afternoon::start();
    for name in ["first", "second"] {
        let mut arguments = probe("succeed", 60.0);
        arguments[0]["message"] = name.into();
        afternoon.redis.push("default", "Sidebake::Probe", arguments).await;
    }
    let worker = afternoon.worker("jobs.probe = true\nlease.ttl = \"1s\"");
    afternoon
        .until("both are in flight", async || {
            let keys = afternoon.redis.keys("sidebake:inflight:*").await;
            keys.len() == 1 && afternoon.redis.hgetall(&keys[0]).await.len() == 2
        })
        .await;
    let alive = afternoon.run(&["release", "--now"], "");
    assert!(text(&alive).contains("is alive, and keeps its jobs"), "{}", text(&alive));
    worker.signal("KILL");
    afternoon.until("its lease has run out", async || afternoon.redis.keys("sidebake:lease:*").await.is_empty()).await;
    afternoon
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lives_and_has_just_lost_its_lease_keeps_its_jobs() {
    let afternoon = Afternoon::start();
    afternoon.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    let worker = afternoon.worker("jobs.probe = true\nlease.ttl = \"3s\"");
    afternoon.is_in_flight().await;
    let lease = afternoon.redis.keys("sidebake:lease:*").await.remove(0);
    redis::cmd("DEL").arg(&lease).exec_async(&mut afternoon.redis.connection().await).await.unwrap();
    let output = afternoon.run(&["release", "--now"], "");
    assert!(text(&output).contains("is alive, and keeps its jobs"), "{}", text(&output));
    assert!(afternoon.redis.queue("default").await.is_empty());
    assert!(!worker.log().contains("ours is killed"), "{}", worker.log());
}

async fn is_put_back(afternoon: &Afternoon) {
    let queue = afternoon.redis.queue("default").await;
    assert!(queue.len() == 2 && queue[0].contains("first") && queue[1].contains("second"), "{queue:?}");
    assert!(afternoon.redis.keys("sidebake:inflight:*").await.is_empty());
    assert!(afternoon.redis.smembers("sidebake:owners").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_command() {
    let afternoon = left_behind().await;
    let output = afternoon.run(&["release"], "lease.ttl = \"1s\"");
    assert!(output.status.success() && text(&output).contains(": 2 jobs are back"), "{}", text(&output));
    is_put_back(&afternoon).await;
    assert_eq!(text(&afternoon.run(&["release"], "")), "no worker has left anything\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_line_of_the_readme_without_sidebake() {
    let afternoon = left_behind().await;
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let line = readme.lines().find(|line| line.starts_with("redis-cli -u \"$REDIS_URL\" EVAL ")).expect("the line");
    let output = Command::new("sh").args(["-c", line]).env("REDIS_URL", afternoon.redis.url()).output().unwrap();
    assert_eq!(text(&output).trim(), "2");
    is_put_back(&afternoon).await;
}
