//! The order of queues: weights, capsules, paused queues.

use serde_json::{Value, json};

use crate::harness::{CALLBACKS, Harness, probe};

async fn push(harness: &Harness, queue: &str, n: usize, sleep_s: f64) -> Vec<String> {
    let mut jids = Vec::new();
    for _ in 0..n {
        jids.push(harness.redis.push(queue, "Sidebake::Probe", probe("succeed", sleep_s)).await);
    }
    jids
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_shares() {
    let harness = Harness::start();
    let high = push(&harness, "high", 120, 0.0).await;
    push(&harness, "low", 120, 0.0).await;
    let _worker = harness.worker_with(&harness.config("jobs.probe = true"), &["-q", "high,3", "-q", "low,1"]);
    let reports = harness.callbacks(240).await;
    let is_high = |report: &&Value| high.iter().any(|jid| report["jid"] == json!(jid));
    let n_high = reports.iter().take(80).filter(is_high).count();
    // The expected number is sixty, with a standard deviation of four. A strict order would give eighty.
    assert!((40..80).contains(&n_high), "{n_high} of the first 80");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_has_its_own_slots_and_queues() {
    let harness = Harness::start();
    push(&harness, "serial", 2, 4.0).await;
    push(&harness, "default", 1, 0.1).await;
    push(&harness, "default", 5, 4.0).await;
    let more = "jobs.probe = true\n[capsules.serial]\nconcurrency = 1\nqueues = [\"serial,2\", \"other,1\"]\n";
    let _worker = harness.worker(more);
    harness
        .until("the short job is done, and five of seven are in flight", async || {
            // In this order: the short job is one of the five until it is done.
            let is_done = !harness.redis.queue(CALLBACKS).await.is_empty();
            let keys = harness.redis.keys("sidebake:inflight:*").await;
            is_done && keys.len() == 1 && harness.redis.hgetall(&keys[0]).await.len() == 5
        })
        .await;
    let left = [harness.redis.queue("serial").await.len(), harness.redis.queue("default").await.len()];
    assert_eq!(left, [1, 1], "one job in the capsule, four in the rest");
    let identity = harness.redis.smembers("processes").await.remove(0);
    let fields = harness.redis.hgetall(&identity).await;
    let info: Value = serde_json::from_str(&fields["info"]).unwrap();
    assert_eq!(fields["concurrency"], "5");
    assert_eq!(info["queues"], json!(["default", "serial", "other"]));
    let capsule = json!({"concurrency": 1, "mode": "weighted", "weights": {"serial": 2, "other": 1}});
    assert_eq!(info["capsules"]["serial"], capsule);
    harness.callbacks(8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_waits_while_others_are_served() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SADD").arg(&["paused", "default"]).exec_async(&mut connection).await.unwrap();
    push(&harness, "default", 1, 0.0).await;
    let others = push(&harness, "other", 3, 0.0).await;
    let _worker = harness.worker_with(&harness.config("jobs.probe = true"), &["-q", "default", "-q", "other"]);
    let served = harness.callbacks(3).await;
    assert!(served.iter().all(|report| others.iter().any(|jid| report["jid"] == json!(jid))), "{served:#?}");
    assert_eq!(harness.redis.queue("default").await.len(), 1);
    redis::cmd("SREM").arg(&["paused", "default"]).exec_async(&mut connection).await.unwrap();
    harness.callbacks(4).await;
}
