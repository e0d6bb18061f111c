//! Client-side tracking: the state that Redis keeps to wake an idle worker, and the events that wake it.

use std::collections::HashMap;

use serde_json::json;

use crate::harness::{CALLBACKS, Harness, probe};

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

#[tokio::test(flavor = "multi_thread")]
async fn fetching_callbacks_wakes_no_worker() {
    let harness = Harness::start();
    let worker = harness.worker("jobs.probe = true\nlease.ttl = \"10m\"\njobs.poll_interval = \"1h\"");
    let mut connection = harness.redis.connection().await;
    let started = std::time::Instant::now();
    let (n_jobs, mut before) = (20, 0);
    for n in 0..=n_jobs {
        harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
        harness.callbacks(1).await;
        // The turn after the last job found no job; then Ruby fetches the callback.
        world::wait_for("the worker to be idle", || worker.logged("job_done").len() == n + 1).await;
        harness.idle().await;
        redis::cmd("RPOP").arg(format!("queue:{CALLBACKS}")).exec_async(&mut connection).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        if n == 0 {
            before = n_scripts(&harness).await;
        }
    }
    let n_scripts = n_scripts(&harness).await - before;
    // Two turns for each job, plus periodic requests. Redis 6 also notifies a script's own client of what it popped.
    let is_6 = info(&harness, "server").await["redis_version"].starts_with("6.");
    let allowed = (if is_6 { 3 } else { 2 }) * n_jobs + 5 + usize::try_from(started.elapsed().as_secs()).unwrap();
    assert!(n_scripts <= allowed, "{n_scripts} scripts, where {allowed} would do");
}

async fn n_scripts(harness: &Harness) -> usize {
    let line = info(harness, "commandstats").await.remove("cmdstat_evalsha").unwrap();
    line.strip_prefix("calls=").unwrap().split(',').next().unwrap().parse().unwrap()
}
