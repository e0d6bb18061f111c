//! What Sidekiq's API reads about a worker.

use serde_json::{Value, json};

use crate::afternoon::Afternoon;

#[tokio::test(flavor = "multi_thread")]
async fn the_process_is_on_sidekiqs_list_with_what_the_web_ui_reads() {
    let afternoon = Afternoon::start();
    let worker = afternoon.worker("tag = \"shop\"");
    afternoon.until("it is on the list", async || afternoon.redis.smembers("processes").await.len() == 1).await;
    let identity = afternoon.redis.smembers("processes").await.remove(0);
    let fields = afternoon.redis.hgetall(&identity).await;
    let info: Value = serde_json::from_str(&fields["info"]).unwrap();
    assert_eq!((&info["pid"], &info["tag"], &info["concurrency"]), (&json!(worker.pid()), &json!("shop"), &json!(4)));
    assert_eq!((&info["queues"], &info["identity"]), (&json!(["default"]), &json!(identity)));
    assert_eq!(info["capsules"]["default"]["weights"], json!({"default": 0}));
    assert_eq!(
        (fields["concurrency"].as_str(), fields["busy"].as_str(), fields["quiet"].as_str()),
        ("4", "0", "false")
    );
    assert!(fields["rss"].parse::<u64>().unwrap() > 1000 && fields["beat"].parse::<f64>().unwrap() > 1e9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_told_to_stop_through_redis_stops() {
    let afternoon = Afternoon::start();
    let mut worker = afternoon.worker("");
    afternoon.until("it is on the list", async || afternoon.redis.smembers("processes").await.len() == 1).await;
    let identity = afternoon.redis.smembers("processes").await.remove(0);
    let mut connection = afternoon.redis.connection().await;
    redis::cmd("LPUSH").arg(format!("{identity}-signals")).arg("TERM").exec_async(&mut connection).await.unwrap();
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_has_gone_without_a_word_is_taken_off_the_list() {
    let afternoon = Afternoon::start();
    let mut connection = afternoon.redis.connection().await;
    redis::cmd("SADD").arg(&["processes", "gone:1:abcdef"]).exec_async(&mut connection).await.unwrap();
    let _worker = afternoon.worker("jobs.poll_interval = \"200ms\"");
    afternoon
        .until("it is off and the living one is on", async || {
            let processes = afternoon.redis.smembers("processes").await;
            processes.len() == 1 && processes[0] != "gone:1:abcdef"
        })
        .await;
}
