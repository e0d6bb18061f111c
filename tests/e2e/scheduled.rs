//! Checks that a worker moves due jobs of Rails as Sidekiq's own poller (6.4, 7.3, 8.1) does.

use std::collections::BTreeMap;
use std::time::Duration;

use sidebake::json;
use world::Redis;

use crate::peer::{self, Watched, ruby};

/// Fields of each job, by name; the form alone of those that differ between jobs.
fn shape(text: &str) -> BTreeMap<String, String> {
    let is_active_job = text.contains("EchoJob");
    let shown = |name: &str, value: &str| match name {
        "created_at" | "enqueued_at" | "failed_at" => {
            (if value.contains('.') { "seconds" } else { "milliseconds" }).into()
        }
        "jid" => value.len().to_string(),
        // It has ids and times of its own.
        "args" if is_active_job => "the arguments".into(),
        _ => value.to_owned(),
    };
    json::fields(text).map(|(name, value)| (name.to_string(), shown(&name, value))).collect()
}

/// The jobs of the queue, in an order that does not depend on their ids.
fn taken(redis: &Redis, peer: Option<&str>) -> Vec<BTreeMap<String, String>> {
    let texts: Vec<String> = serde_json::from_slice(&ruby(redis, peer, "scheduled.rb", &["take"])).unwrap();
    let mut jobs: Vec<_> = texts.iter().map(|text| shape(text)).collect();
    jobs.sort();
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_moves_due_jobs_of_rails_as_rubys_poller_does() {
    for (peer, version) in peer::ALL {
        let redis = Redis::start();
        ruby(&redis, peer, "scheduled.rb", &["put", "0.1"]);
        tokio::time::sleep(Duration::from_millis(200)).await;
        ruby(&redis, peer, "scheduled.rb", &["poll"]);
        let by_ruby = taken(&redis, peer);
        assert_eq!(by_ruby.len(), 3, "{version}");

        ruby(&redis, peer, "scheduled.rb", &["mark", "0.1"]);
        ruby(&redis, peer, "scheduled.rb", &["put", "0.1"]);
        let watched = Watched::start(redis, "queues = [\"builds\"]");
        let until = async || watched.redis.queue("mails").await.len() == 3;
        watched.home.until("the worker moves the jobs", until).await;
        assert_eq!(taken(&watched.redis, peer), by_ruby, "{version}");
        let left = watched.redis.sorted_set("schedule").await;
        assert!(left.len() == 1 && left[0].0.contains("\"trace\""), "{version}: {left:?}");
        // Ruby moves it.
        ruby(&watched.redis, peer, "scheduled.rb", &["poll"]);
        assert_eq!(taken(&watched.redis, peer).len(), 1, "{version}");
    }
}
