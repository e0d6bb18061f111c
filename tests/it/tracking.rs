//! Client-side tracking: the state that Redis keeps to wake an idle worker, and the events that wake it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sidebake::redis::Redis;
use sidebake::secret::Secret;
use sidebake::settings::{self, Settings};
use sidebake::sidekiq::keys;
use sidebake::sidekiq::settlement::Effect;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::harness::{CALLBACKS, Harness, probe};
use crate::turn::Hand;

/// A section of `INFO`.
async fn info(harness: &Harness, section: &str) -> HashMap<String, String> {
    let mut connection = harness.redis.connection().await;
    let text: String = redis::cmd("INFO").arg(section).query_async(&mut connection).await.unwrap();
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.into(), value.into())).collect()
}

async fn n_tracked(harness: &Harness) -> [u32; 2] {
    let stats = info(harness, "stats").await;
    ["tracking_total_keys", "tracking_total_items"].map(|name| stats[name].parse().unwrap())
}

/// Pushes this many probes with a callback, every hundredth to its own queue, and waits until all have ended.
async fn run(harness: &Harness, n: usize, n_ended: usize) {
    let numbers: Vec<usize> = (n_ended..n_ended + n).collect();
    for numbers in numbers.chunks(1000) {
        let mut push = redis::cmd("LPUSH");
        push.arg("queue:default");
        for number in numbers {
            let mut args = probe("succeed", 0.0);
            if number % 100 == 99 {
                args[0]["callback"]["queue"] = json!(format!("callbacks{number}"));
            }
            push.arg(json!({"class": "Sidebake::Probe", "jid": format!("{number:024x}"), "args": args}).to_string());
        }
        push.exec_async(&mut harness.redis.connection().await).await.unwrap();
    }
    let expected = (n_ended + n).to_string();
    let limit = std::time::Duration::from_secs(180);
    let started = std::time::Instant::now();
    while harness.redis.get("stat:processed").await.as_ref() != Some(&expected) {
        assert!(started.elapsed() < limit, "{:?} of {expected}", harness.redis.get("stat:processed").await);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_that_redis_tracks_do_not_grow_with_the_jobs() {
    let harness = Harness::start();
    let variables = [("SIDEBAKE__LOG__LEVEL", "warn")];
    let config = harness.config("jobs.probe = true");
    let _worker = harness.worker_with_variables(&config, &["-c", "10"], &variables);
    run(&harness, 200, 0).await;
    let [n_keys, n_items] = n_tracked(&harness).await;
    run(&harness, 19_800, 200).await;
    let [n_keys_later, n_items_later] = n_tracked(&harness).await;
    assert!(n_keys_later <= n_keys + 2, "{n_keys} keys became {n_keys_later}");
    assert!(n_items_later <= n_items + 2, "{n_items} items became {n_items_later}");
    assert!(n_keys_later < 20, "{n_keys_later}");
}

/// A process whose connection notifies `Notify` as a worker's does.
async fn waking() -> (Hand, Arc<Notify>) {
    let mut hand = Hand::with("").await;
    let settings = settings::Redis { url: Secret::new(hand.server.url()), ..Settings::default().redis };
    let (woken, keys) = (Arc::<Notify>::default(), vec![keys::queue("default"), keys::PAUSED.to_owned()]);
    hand.redis = Redis::waking(&settings, keys, Arc::clone(&woken)).unwrap();
    (hand, woken)
}

/// Whether Redis has notified the process since the last call. Redis sends each notification before the answer to PING.
async fn is_woken(hand: &Hand, woken: &Notify) -> bool {
    let _: String = hand.redis.query(&redis::cmd("PING")).await.unwrap();
    timeout(Duration::ZERO, woken.notified()).await.is_ok()
}

#[tokio::test]
async fn fetching_callbacks_wakes_no_worker() {
    let (hand, woken) = waking().await;
    hand.push().await;
    hand.fetch(1, 1).await.unwrap();
    hand.settle(2, 1, vec![Effect::Push { queue: CALLBACKS.into(), text: "{}".into() }]).await.unwrap();
    hand.fetch(3, 2).await.unwrap();
    is_woken(&hand, &woken).await;
    hand.run(&["RPOP", &keys::queue(CALLBACKS)]).await;
    assert!(!is_woken(&hand, &woken).await, "by the callback");
    hand.push().await;
    assert!(is_woken(&hand, &woken).await, "by the job");
}
