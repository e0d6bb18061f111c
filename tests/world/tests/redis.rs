//! A Redis for one test, in Sidekiq's terms.

#![allow(clippy::unwrap_used)] // A failed expectation ends the test.

use redis::AsyncCommands;
use serde_json::{Value, json};
use world::Redis;

#[tokio::test]
async fn a_pushed_job_is_on_its_queue_the_next_one_first() {
    let redis = Redis::start();
    let jid = redis.push("builds", "BuildJob", json!([{"build_id": 42}])).await;
    redis.push_raw("builds", "not json").await;
    let queue = redis.queue("builds").await;
    let job: Value = serde_json::from_str(&queue[0]).unwrap();
    assert_eq!((&job["jid"], &job["args"], &job["retry"]), (&json!(jid), &json!([{"build_id": 42}]), &json!(true)));
    assert!(jid.len() == 24 && job["created_at"].is_i64());
    assert_eq!(queue[1], "not json");
    assert_eq!(redis.jobs_of_class("builds", "BuildJob").await, [job]);
    assert_eq!(redis.smembers("queues").await, ["builds"]);
    assert_eq!(redis.keys("queue:*").await, ["queue:builds"]);
}

#[tokio::test]
async fn a_restart_keeps_the_port_and_the_appended_commands() {
    let volatile = Redis::start();
    let durable = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    for redis in [&volatile, &durable] {
        let _: () = redis.connection().await.zadd("retry", "job", 1.5).await.unwrap();
        redis.stop();
        assert!(redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.is_err());
        redis.restart();
    }
    assert_eq!(volatile.sorted_set("retry").await, []);
    assert_eq!(durable.sorted_set("retry").await, [("job".to_owned(), 1.5)]);
}

#[tokio::test]
async fn a_frozen_server_answers_no_client_until_it_is_thawed() {
    let redis = Redis::start();
    let mut connection = redis.connection().await;
    connection.set_response_timeout(std::time::Duration::from_millis(500));
    redis.freeze();
    assert!(connection.get::<_, Option<String>>("k").await.unwrap_err().is_timeout());
    redis.thaw();
    assert_eq!(redis.get("k").await, None);
}
