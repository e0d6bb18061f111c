//! Checks how Sidekiq itself sees a worker: its client, its API and its Web UI, in versions 6.4, 7.3 and 8.1.

use serde_json::{Value, json};
use world::Redis;

use crate::harness::PATIENCE;
use crate::peer::{self, Watched};

/// A worker, and the Sidekiq that inspects it.
struct Court {
    peer: Option<&'static str>,
    watched: Watched,
}

impl Court {
    fn open(peer: Option<&'static str>) -> Self {
        let more = "concurrency = 5\ntag = \"shop\"\nqueues = [\"default,3\", \"slow,1\"]";
        Self { peer, watched: Watched::start(Redis::start(), more) }
    }

    fn run(&self, arguments: &[&str]) -> Vec<u8> {
        self.watched.ruby(self.peer, "judge.rb", arguments)
    }

    fn look(&self) -> Value {
        serde_json::from_slice(&self.run(&["look"])).unwrap()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let since = std::time::Instant::now();
        loop {
            let seen = self.look();
            if is_so(&seen) {
                return seen;
            }
            assert!(since.elapsed() < PATIENCE, "timed out waiting until {what}: {seen:#}");
        }
    }
}

fn text<'a>(seen: &'a Value, page: &str) -> &'a str {
    assert_eq!(seen["pages"][page]["status"], 200, "{page}: {}", seen["pages"][page]["text"]);
    seen["pages"][page]["text"].as_str().unwrap()
}

async fn judge(peer: Option<&'static str>, version: &'static str) {
    let mut court = Court::open(peer);
    court.run(&["push", "long", "succeed", "600"]);
    court.run(&["push", "bad", "infrastructure", "0.1"]);
    let mut connection = court.watched.redis.connection().await;
    let progress = ["it-long", "ex", "1", "c", "\"bake, 1 of 3 targets\"", "rt", "2.5"];
    redis::cmd("HSET").arg(&progress).exec_async(&mut connection).await.unwrap();

    // A heartbeat may come between the two jobs. Then the next one has the metrics.
    let has_metrics = |seen: &Value| {
        let page = seen["pages"]["/metrics"]["text"].as_str();
        version == "6.4" || page.is_some_and(|page| page.contains("Sidebake::Probe"))
    };
    let is_shown = |seen: &Value| seen["running"] == json!(["long"]) && has_metrics(seen);
    let seen = court.until("the long job and the metrics are shown", is_shown).await;
    assert!(seen["version"].as_str().unwrap().starts_with(version), "{}", seen["version"]);
    let process = &seen["processes"][0];
    assert_eq!((&process["tag"], &process["labels"]), (&json!("shop"), &json!(["sidebake"])));
    assert_eq!((&process["busy"], &process["queues"]), (&json!(1), &json!(["default", "slow"])));
    assert_eq!(process["concurrency"], 5);
    assert_eq!((&seen["processed"], &seen["failed"], &seen["busy"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(seen["retries"][0]["error_class"], "Sidebake::BuilderUnavailable");
    let busy = text(&seen, "/busy");
    assert!(busy.contains("shop") && busy.contains(process["identity"].as_str().unwrap()) && busy.contains("long"));
    let retries = text(&seen, "/retries");
    assert!(retries.contains("Sidebake::Probe") && retries.contains("as asked"));
    assert!(text(&seen, "entry").contains("builder_unavailable: "), "Sidekiq reads the backtrace");
    for page in ["/", "/queues", "/scheduled", "/morgue"] {
        text(&seen, page);
    }
    if version == "8.1" {
        assert!(busy.contains("bake, 1 of 3 targets"), "{busy}");
    }
    if version != "6.4" {
        text(&seen, "/metrics/Sidebake::Probe");
    }

    court.run(&["retry", "bad"]);
    let failed_again =
        |seen: &Value| seen["failed"] == 2 && seen["retries"].as_array().is_some_and(|all| all.len() == 1);
    court.until("it has failed again", failed_again).await;
    court.run(&["kill", "bad"]);
    court.until("it is dead", |seen| seen["dead"][0]["jid"] == "bad").await;

    court.run(&["cancel", "long"]);
    let report = || async { court.watched.redis.queue("callbacks").await.into_iter().next_back() };
    let arrival = async {
        while report().await.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrival).await.expect("the callback");
    let job: Value = serde_json::from_str(&report().await.unwrap()).unwrap();
    assert_eq!((&job["args"][0]["jid"], &job["args"][0]["status"]), (&json!("long"), &json!("cancelled")), "{job:#}");
    assert_eq!(job["created_at"].is_f64(), version != "8.1", "each Sidekiq has its own form");

    court.run(&["quiet"]);
    court.until("it is quiet", |seen| seen["processes"][0]["stopping"] == true).await;
    court.run(&["stop"]);
    assert_eq!(court.watched.worker.ended().await, Some(0));
}

/// Each version waits for four heartbeats, ten seconds apart, so the versions run at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn by_sidekiq_6_7_and_8() {
    let courts = peer::ALL.map(|(peer, version)| tokio::spawn(judge(peer, version)));
    for court in courts {
        court.await.unwrap();
    }
}
