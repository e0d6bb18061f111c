//! What Sidekiq's API reads about a worker.

use serde_json::{Value, json};

use crate::afternoon::{Afternoon, probe};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_on_the_busy_page_of_every_generation() {
    let afternoon = Afternoon::start();
    let jid = afternoon.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    let _worker = afternoon.worker("jobs.probe = true");
    afternoon.until("it is on the list", async || afternoon.redis.smembers("processes").await.len() == 1).await;
    let identity = afternoon.redis.smembers("processes").await.remove(0);
    for key in [format!("{identity}:work"), format!("{identity}:workers")] {
        afternoon.until("it is shown", async || !afternoon.redis.hgetall(&key).await.is_empty()).await;
        let entry: Value = serde_json::from_str(afternoon.redis.hgetall(&key).await.values().next().unwrap()).unwrap();
        let job: Value = serde_json::from_str(entry["payload"].as_str().unwrap()).unwrap();
        assert_eq!((&entry["queue"], &job["jid"]), (&json!("default"), &json!(jid)));
        assert!(entry["run_at"].is_u64(), "{entry:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_written_for_the_web_uis_of_7_and_8() {
    let afternoon = Afternoon::start();
    let mut worker = afternoon.worker("jobs.probe = true");
    for outcome in ["succeed", "succeed", "infrastructure"] {
        afternoon.redis.push("default", "Sidebake::Probe", probe(outcome, 0.05)).await;
    }
    afternoon.until("all have run", async || afternoon.redis.get("stat:processed").await.as_deref() == Some("3")).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    // A beat may have come in between: what counts is the sum.
    let mut by_form = std::collections::BTreeMap::new();
    for key in afternoon.redis.keys("j|*").await {
        let (day, minute) = (key.split('|').nth(1).unwrap(), key.rsplit(':').next().unwrap());
        let form = match (day.len(), minute.len()) {
            (8, _) => "Sidekiq 7",
            (_, 2) => "Sidekiq 8",
            _ => "Sidekiq 8, ten minutes",
        };
        let sums: &mut [u64; 3] = by_form.entry(form).or_default();
        let fields = afternoon.redis.hgetall(&key).await;
        for (sum, field) in sums.iter_mut().zip(["p", "f", "ms"]) {
            let name = format!("Sidebake::Probe|{field}");
            *sum += fields.get(&name).map_or(0, |n| n.parse::<u64>().unwrap());
        }
    }
    assert!(by_form.len() == 3 && by_form.values().all(|[p, f, ms]| (*p, *f) == (3, 1) && *ms >= 100), "{by_form:?}");
    let histograms =
        [afternoon.redis.keys("h|Sidebake::Probe-*").await, afternoon.redis.keys("Sidebake::Probe-*").await];
    assert!(histograms.iter().all(|keys| !keys.is_empty()), "{histograms:?}");
}
