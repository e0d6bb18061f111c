//! The heartbeat: the data about a worker that Sidekiq's API reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use sidebake::clock::Epoch;
use sidebake::redis::Redis;
use sidebake::sidekiq::Identity;
use sidebake::sidekiq::heartbeat::{Heart, Process};
use sidebake::sidekiq::inflight::{Token, UnitOfWork};
use sidebake::sidekiq::running::Running;

use crate::harness::{Harness, client, probe};

#[tokio::test(flavor = "multi_thread")]
async fn the_process_is_on_sidekiqs_list_with_what_the_web_ui_reads() {
    let harness = Harness::start();
    let worker = harness.worker("tag = \"shop\"");
    harness.until("the process is listed", async || harness.redis.smembers("processes").await.len() == 1).await;
    let identity = harness.redis.smembers("processes").await.remove(0);
    let fields = harness.redis.hgetall(&identity).await;
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
async fn a_stop_signal_through_redis_stops_the_process() {
    let harness = Harness::start();
    let mut worker = harness.worker("");
    harness.until("the process is listed", async || harness.redis.smembers("processes").await.len() == 1).await;
    let identity = harness.redis.smembers("processes").await.remove(0);
    let mut connection = harness.redis.connection().await;
    redis::cmd("LPUSH").arg(format!("{identity}-signals")).arg("TERM").exec_async(&mut connection).await.unwrap();
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_process_is_removed_from_the_list() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SADD").arg(&["processes", "gone:1:abcdef"]).exec_async(&mut connection).await.unwrap();
    let _worker = harness.worker("jobs.poll_interval = \"200ms\"");
    harness
        .until("only the living process is listed", async || {
            let processes = harness.redis.smembers("processes").await;
            processes.len() == 1 && processes[0] != "gone:1:abcdef"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_on_the_busy_page_of_every_generation() {
    let harness = Harness::start();
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    let _worker = harness.worker("jobs.probe = true");
    harness.until("the process is listed", async || harness.redis.smembers("processes").await.len() == 1).await;
    let identity = harness.redis.smembers("processes").await.remove(0);
    for key in [format!("{identity}:work"), format!("{identity}:workers")] {
        harness.until("the job is shown", async || !harness.redis.hgetall(&key).await.is_empty()).await;
        let entry: Value = serde_json::from_str(harness.redis.hgetall(&key).await.values().next().unwrap()).unwrap();
        let job: Value = serde_json::from_str(entry["payload"].as_str().unwrap()).unwrap();
        assert_eq!((&entry["queue"], &job["jid"]), (&json!("default"), &json!(jid)));
        assert!(entry["run_at"].is_u64(), "{entry:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_written_for_the_web_uis_of_7_and_8() {
    let harness = Harness::start();
    let mut worker = harness.worker("jobs.probe = true");
    for outcome in ["succeed", "succeed", "infrastructure"] {
        harness.redis.push("default", "Sidebake::Probe", probe(outcome, 0.05)).await;
    }
    harness.until("all jobs end", async || harness.redis.get("stat:processed").await.as_deref() == Some("3")).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    // Another heartbeat may happen in between, so the test compares the sum.
    let mut by_form = std::collections::BTreeMap::new();
    for key in harness.redis.keys("j|*").await {
        let (day, minute) = (key.split('|').nth(1).unwrap(), key.rsplit(':').next().unwrap());
        let form = match (day.len(), minute.len()) {
            (8, _) => "Sidekiq 7",
            (_, 2) => "Sidekiq 8",
            _ => "Sidekiq 8, ten minutes",
        };
        let sums: &mut [u64; 3] = by_form.entry(form).or_default();
        let fields = harness.redis.hgetall(&key).await;
        for (sum, field) in sums.iter_mut().zip(["p", "f", "ms"]) {
            let name = format!("Sidebake::Probe|{field}");
            *sum += fields.get(&name).map_or(0, |n| n.parse::<u64>().unwrap());
        }
    }
    assert!(by_form.len() == 3 && by_form.values().all(|[p, f, ms]| (*p, *f) == (3, 1) && *ms >= 100), "{by_form:?}");
    let histograms = [harness.redis.keys("h|Sidebake::Probe-*").await, harness.redis.keys("Sidebake::Probe-*").await];
    assert!(histograms.iter().all(|keys| !keys.is_empty()), "{histograms:?}");
}

/// A process without its tasks. The test sends its heartbeats.
struct Hand {
    server: world::Redis,
    redis: Redis,
    process: Process,
}

impl Hand {
    fn new() -> Self {
        let server = world::Redis::start();
        let redis = client(&server.url());
        let identity = Arc::new(Identity::new("host".into()));
        let (tag, labels, capsules) = (String::new(), Vec::new(), Vec::new());
        Self { server, redis, process: Process { identity, started_at: Epoch::now(), tag, labels, capsules } }
    }

    fn work_keys(&self) -> [String; 2] {
        ["work", "workers"].map(|name| format!("{}:{name}", self.process.identity))
    }

    /// The jobs that both generations of Sidekiq see.
    async fn shown(&self) -> Vec<u64> {
        let mut shown = Vec::new();
        for key in self.work_keys() {
            let entries = self.server.hgetall(&key).await;
            let tokens: BTreeSet<u64> = entries.keys().map(|token| u64::from_str_radix(token, 16).unwrap()).collect();
            shown.push(tokens.into_iter().collect::<Vec<u64>>());
        }
        assert_eq!(shown[0], shown[1]);
        shown.remove(0)
    }

    async fn n_bytes_received(&self) -> u64 {
        let mut connection = self.server.connection().await;
        let info: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await.unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("total_net_input_bytes:"));
        line.unwrap().parse().unwrap()
    }
}

/// Jobs with these numbers, of 20 kB each.
fn jobs(numbers: impl IntoIterator<Item = u64>) -> Vec<Running> {
    let text = "x".repeat(20_000).into_bytes();
    let job = |n| {
        let unit = UnitOfWork {
            token: Token::nth(n, 0),
            queue: "default".into(),
            text: text.clone().into(),
            n_recoveries: 0,
            n_crashes: 0,
            is_idle: false,
            n_interruptions: 0,
        };
        Running::new(unit, Epoch::now())
    };
    numbers.into_iter().map(job).collect()
}

#[tokio::test]
async fn a_running_job_is_sent_once_and_shown_until_it_ends() {
    let hand = Hand::new();
    let mut heart = Heart::new(&hand.redis, &hand.process);
    heart.beat(&jobs(1..=100), false).await.unwrap();
    let before = hand.n_bytes_received().await;
    heart.beat(&jobs(1..=100), false).await.unwrap();
    let n_bytes = hand.n_bytes_received().await - before;
    assert!(n_bytes < 5_000, "{n_bytes} bytes for a hundred known jobs");
    assert_eq!(hand.shown().await, (1..=100).collect::<Vec<_>>());

    heart.beat(&jobs(100..=101), false).await.unwrap();
    assert_eq!(hand.shown().await, [100, 101]);
    heart.beat(&[], false).await.unwrap();
    assert!(hand.shown().await.is_empty());
    heart.beat(&jobs([102]), false).await.unwrap();
    assert_eq!(hand.shown().await, [102]);
}

#[tokio::test]
async fn the_next_heartbeats_repair_what_redis_shows() {
    let hand = Hand::new();
    let mut heart = Heart::new(&hand.redis, &hand.process);
    heart.beat(&jobs(1..=3), false).await.unwrap();
    for key in hand.work_keys() {
        // First removes the keys, then repeats a heartbeat whose reply was lost.
        let mut connection = hand.server.connection().await;
        redis::cmd("DEL").arg(&key).exec_async(&mut connection).await.unwrap();
        redis::cmd("HSET").arg(&[key.as_str(), "000000000063", "{}"]).exec_async(&mut connection).await.unwrap();
        // The heartbeat that detects the difference, and the next one.
        heart.beat(&jobs(1..=4), false).await.unwrap();
        heart.beat(&jobs(1..=4), false).await.unwrap();
        assert_eq!(hand.shown().await, [1, 2, 3, 4]);
    }

    hand.server.stop();
    heart.beat(&jobs(2..=5), false).await.unwrap_err();
    hand.server.restart();
    heart.beat(&jobs(2..=5), false).await.unwrap();
    assert_eq!(hand.shown().await, [2, 3, 4, 5], "one heartbeat writes all jobs when the state of Redis is unknown");
}
