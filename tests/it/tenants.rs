//! Tenants that share one queue: fair shares, limits, priorities.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use world::Script;

use crate::harness::{CALLBACKS, Harness};

/// A probe of an account.
fn probe_of(account: &str, build_id: &str, sleep_s: f64) -> Value {
    json!([{"outcome": "succeed", "sleep_s": sleep_s, "account": account, "build_id": build_id,
        "callback": {"class": "Done", "queue": CALLBACKS}}])
}

async fn push(harness: &Harness, account: &str, build_id: &str, sleep_s: f64) {
    harness.redis.push("default", "Sidebake::Probe", probe_of(account, build_id, sleep_s)).await;
}

/// Sends Redis one command.
async fn send(harness: &Harness, words: &[&str]) {
    let mut connection = harness.redis.connection().await;
    redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut connection).await.unwrap();
}

fn build_ids(callbacks: &[Value]) -> Vec<&str> {
    callbacks.iter().map(|report| report["build_id"].as_str().unwrap()).collect()
}

/// How many callbacks each account has.
fn by_account(callbacks: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in build_ids(callbacks) {
        *counts.entry(id.split('-').next().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

async fn nothing_is_left(harness: &Harness) {
    harness
        .until("no claim is left", async || {
            harness.redis.hgetall("sidebake:running").await.is_empty()
                && harness.redis.keys("sidebake:claims:*").await.is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_floods_the_queue_does_not_delay_another() {
    let harness = Harness::start();
    for n in 0..12 {
        push(&harness, "a", &format!("a-{n}"), 0.2).await;
    }
    push(&harness, "b", "b-0", 0.2).await;
    let config = harness.config("jobs.probe = true");
    let _worker = harness.worker_with(&config, &["-c", "2"]);
    let callbacks = harness.callbacks(13).await;
    let place = build_ids(&callbacks).iter().position(|id| *id == "b-0").unwrap();
    assert!(place < 3, "{:?}", build_ids(&callbacks));
    let of_a: Vec<&str> = build_ids(&callbacks).into_iter().filter(|id| id.starts_with('a')).collect();
    let numbers: Vec<usize> = of_a.iter().map(|id| id[2..].parse().unwrap()).collect();
    // Two run at once, so neighbors may end in either order.
    assert!(numbers.iter().enumerate().all(|(place, n)| place.abs_diff(*n) < 2), "{of_a:?}");
    nothing_is_left(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_fairness_the_order_of_the_queue_counts() {
    let harness = Harness::start();
    for n in 0..6 {
        push(&harness, "a", &format!("a-{n}"), 0.0).await;
    }
    push(&harness, "b", "b-0", 0.0).await;
    let _worker = harness.worker_with(&harness.config("jobs.probe = true\ntenants.fair = false"), &["-c", "1"]);
    assert_eq!(build_ids(&harness.callbacks(7).await).pop(), Some("b-0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_follow_the_weights_over_two_workers() {
    let harness = Harness::start();
    // More than a window: most jobs of `a` are behind those of the others.
    for n in 0..320 {
        for account in ["a", "b", "c"] {
            push(&harness, account, &format!("{account}-{n}"), 0.05).await;
        }
    }
    let config = harness.config("jobs.probe = true\ntenants.weights = { a = 3 }");
    let _workers = [harness.worker_with(&config, &["-c", "3"]), harness.worker_with(&config, &["-c", "2"])];
    let callbacks = harness.callbacks(500).await;
    let counts = by_account(&callbacks[..500]);
    for (account, share) in [("a", 300.0), ("b", 100.0), ("c", 100.0)] {
        let relative = counts[account] as f64 / share;
        // A busy machine stretches some builds, and time in slots is what counts. `fair.rs` has the exact shares.
        assert!((0.8..=1.2).contains(&relative), "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_over_the_fleet_and_idle_slots_serve_others() {
    let harness = Harness::start();
    for n in 0..8 {
        push(&harness, "free-x", &format!("free-{n}"), 0.15).await;
    }
    for n in 0..8 {
        push(&harness, "paid", &format!("paid-{n}"), 0.15).await;
    }
    let config = harness.config("jobs.probe = true\ntenants.limits = { \"*\" = 3, \"free-*\" = 1 }");
    let _workers = [harness.worker_with(&config, &["-c", "4"]), harness.worker_with(&config, &["-c", "4"])];
    let most = sample_until_done(&harness, 16).await;
    assert_eq!((most["free-x"], most["paid"]), (1, 3));
    nothing_is_left(&harness).await;
}

/// Where [`sample_until_done`] counts the jobs of all accounts.
const ALL: &str = "";

/// The most jobs of each account that were in flight at once, and of all, while the callbacks arrive.
async fn sample_until_done(harness: &Harness, n_callbacks: usize) -> BTreeMap<String, usize> {
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    let started = Instant::now();
    loop {
        let mut now: BTreeMap<String, usize> = BTreeMap::new();
        // One step, so that no job moves between two reads.
        let script = "local all = {}
            for _, key in ipairs(redis.call('KEYS', 'sidebake:inflight:*')) do
                for _, entry in ipairs(redis.call('HVALS', key)) do all[#all + 1] = entry end
            end
            return all";
        let mut connection = harness.redis.connection().await;
        let entries: Vec<String> = redis::Script::new(script).invoke_async(&mut connection).await.unwrap();
        now.insert(ALL.to_owned(), entries.len());
        for entry in entries {
            let job: Value = serde_json::from_str(entry.split_once('\n').unwrap().1).unwrap();
            *now.entry(job["args"][0]["account"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        for (account, n) in now {
            let known = most.entry(account).or_default();
            *known = n.max(*known);
        }
        if harness.redis.queue(CALLBACKS).await.len() == n_callbacks {
            return most;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "jobs are stuck: {most:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_gives_its_limit_back_with_its_jobs() {
    let harness = Harness::start();
    let config = harness.config("jobs.probe = true\ntenants.limits = { \"*\" = 1 }\nlease.ttl = \"1s\"");
    let first = harness.worker_with(&config, &["-c", "2"]);
    push(&harness, "a", "a-0", 0.5).await;
    harness.is_in_flight().await;
    push(&harness, "a", "a-1", 0.0).await;
    first.signal("KILL");
    let _second = harness.worker_with(&config, &["-c", "2"]);
    assert_eq!(build_ids(&harness.callbacks(2).await), ["a-0", "a-1"], "the job that was recovered is ahead");
    nothing_is_left(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_for_its_limit_leaves_the_worker_quiet() {
    let harness = Harness::start();
    let config = harness.config("jobs.probe = true\ntenants.limits = { \"*\" = 1 }");
    let _worker = harness.worker_with(&config, &["-c", "4"]);
    push(&harness, "a", "a-0", 3.0).await;
    harness.is_in_flight().await;
    push(&harness, "a", "a-1", 0.0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = n_scripts(&harness).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let n_more = n_scripts(&harness).await - before;
    assert!(n_more < 30, "{n_more} scripts in two seconds");
    assert_eq!(harness.callbacks(2).await.len(), 2);
}

/// How many scripts Redis has run.
async fn n_scripts(harness: &Harness) -> u64 {
    let mut connection = harness.redis.connection().await;
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
    line.split(',').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_counts_within_its_account() {
    let harness = Harness::start();
    for (n, priority) in [0, 0, 5].into_iter().enumerate() {
        let mut args = probe_of("a", &format!("a-{n}"), 0.0);
        args[0]["priority"] = json!(priority);
        harness.redis.push("default", "Sidebake::Probe", args).await;
    }
    let _worker = harness.worker_with(&harness.config("jobs.probe = true"), &["-c", "1"]);
    assert_eq!(build_ids(&harness.callbacks(3).await), ["a-2", "a-0", "a-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_that_redis_lost_or_kept_by_mistake_are_corrected() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("HSET").arg(&["sidebake:running", "tenant a", "7"]).exec_async(&mut connection).await.unwrap();
    push(&harness, "a", "a-0", 0.0).await;
    let config = harness.config("jobs.probe = true\ntenants.limits = { \"*\" = 1 }\nlease.ttl = \"1s\"");
    let _worker = harness.worker_with(&config, &["-c", "2"]);
    assert_eq!(harness.callbacks(1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_far_behind_a_flood_is_found() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let job = |account: &str, id: &str, sleep_s: f64| {
        let args = probe_of(account, id, sleep_s);
        json!({"class": "Sidebake::Probe", "jid": id, "queue": "default", "args": args, "retry": true}).to_string()
    };
    let mut flood = redis::cmd("LPUSH");
    flood.arg("queue:default");
    for n in 0..5_000 {
        flood.arg(job("a", &format!("a-{n}"), 0.1));
    }
    flood.arg(job("b", "b-0", 0.0)).exec_async(&mut connection).await.unwrap();
    // A tenant of a larger weight moves the clock in small steps.
    let config = harness.config("jobs.probe = true\ntenants.window = 16\ntenants.weights = { a = 4 }");
    let _worker = harness.worker_with(&config, &["-c", "2"]);
    let is_done = async || build_ids(&harness.callbacks(1).await).contains(&"b-0");
    harness.until("the job behind the flood is done", is_done).await;
    assert!(harness.redis.queue("default").await.len() > 4_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_no_jobs_are_moved_to_the_dead_set_under_contention_too() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    for text in ["{not json", "[]", "\"\"", "{\"class\":7,\"args\":[]}"] {
        redis::cmd("LPUSH").arg(&["queue:default", text]).exec_async(&mut connection).await.unwrap();
    }
    push(&harness, "a", "a-0", 0.0).await;
    let _worker = harness.worker_with(&harness.config("jobs.probe = true"), &["-c", "1"]);
    assert_eq!(harness.callbacks(1).await.len(), 1);
    harness.until("the dead set has the others", async || harness.redis.sorted_set("dead").await.len() == 4).await;
    nothing_is_left(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_who_runs_and_who_waits_for_what() {
    let harness = Harness::start();
    const MORE: &str = "jobs.probe = true\ntenants.limits = { \"free-*\" = 1 }";
    let _worker = harness.worker_with(&harness.config(MORE), &["-c", "2"]);
    for (account, n) in [("free-x", 3), ("acme", 2)] {
        for i in 0..n {
            push(&harness, account, &format!("{account}-{i}"), 30.0).await;
        }
    }
    let rows = async || {
        let output = harness.run(&["queue", "--json"], MORE);
        let lines = String::from_utf8(output.stdout).unwrap();
        let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        rows.iter()
            .map(|row| json!([row["tenant"], row["running"], row["queued"], row["waits_for"]]))
            .collect::<Vec<_>>()
    };
    let limit = "1 running of 1 allowed for free-x";
    let expected = [json!(["acme", 1, 1, "1st in line"]), json!(["free-x", 1, 2, limit])];
    harness.until("both run", async || rows().await == expected).await;
    send(&harness, &["SADD", "paused", "default"]).await;
    assert_eq!(rows().await[1][3], "the queue is paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_build_is_listed_and_shows_what_it_waits_for() {
    const MORE: &str = "tenants.limits = { \"*\" = 1 }";
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    (0..2).for_each(|_| harness.builder.script(Script::hang()));
    let _worker = harness.worker_with(&harness.config(MORE), &["-c", "2"]);
    let mut jids = Vec::new();
    for (account, id) in [("a", "a-0"), ("b", "b-0"), ("a", "a-1"), ("c", "c-0")] {
        let mut job = harness.native(&sha);
        (job["account"], job["build_id"]) = (json!(account), json!(id));
        jids.push(harness.redis.push("default", "BuildJob", json!([job])).await);
    }
    world::wait_for("two builds to run", || harness.builder.running() == 2).await;
    let listed = |args: &[&str]| {
        let output = harness.run(&[&["list", "--queued", "--json"], args].concat(), MORE);
        let lines = String::from_utf8(output.stdout).unwrap();
        let line = |line| serde_json::from_str::<Value>(line).unwrap();
        lines.lines().map(line).map(|line| json!([line["id"], line["place"], line["waits_for"]])).collect::<Vec<_>>()
    };
    let limit = "1 running of 1 allowed for a";
    let expected = [json!(["c-0", 1, "1st in line"]), json!(["a-1", null, limit])];
    harness.until("two wait", async || listed(&[]) == expected).await;
    assert_eq!(listed(&["--account", "C"]), expected[..1]);
    let output = harness.run(&["list", "--queued"], MORE);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("1st in line") && table.starts_with("BUILD  QUEUE"), "{table}");

    let shown = async |n: usize| harness.redis.hgetall(&format!("it-{}", jids[n])).await.remove("c");
    let expected = [limit, "1st in line"].map(|text| Some(json!(text).to_string()));
    harness.until("Sidekiq can show both", async || [shown(2).await, shown(3).await] == expected).await;

    // As Sidekiq::Client#cancel! does: the mark does not change the life of the hash.
    let key = format!("it-{}", jids[2]);
    send(&harness, &["HSETNX", &key, "cancelled", "1795491695"]).await;
    send(&harness, &["EXPIRE", &key, "2592000", "NX"]).await;
    let ttl = async || {
        let mut connection = harness.redis.connection().await;
        redis::cmd("TTL").arg(&key).query_async::<i64>(&mut connection).await.unwrap()
    };
    harness.until("the mark lives as long as Sidekiq's", async || ttl().await > 2_500_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_a_builder_counts_the_builds_of_all_accounts() {
    let harness = Harness::start();
    for n in 0..12 {
        let account = ["a", "b"][n % 2];
        push(&harness, account, &format!("{account}-{n}"), 0.1).await;
    }
    let config = harness.config("jobs.probe = true\ntenants.limits_per_builder = { default = 3 }");
    let _workers = [harness.worker_with(&config, &["-c", "4"]), harness.worker_with(&config, &["-c", "4"])];
    let most = sample_until_done(&harness, 12).await;
    assert_eq!(most[ALL], 3, "{most:?}");
    nothing_is_left(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_at_its_limit_does_not_hold_up_the_queue_behind() {
    let harness = Harness::start();
    let config = harness.config("jobs.probe = true\ntenants.limits = { a = 1 }");
    push(&harness, "a", "a-0", 60.0).await;
    push(&harness, "a", "a-1", 0.0).await;
    let _worker = harness.worker_with(&config, &["-c", "2", "-q", "default", "-q", "second"]);
    harness.is_in_flight().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    harness.redis.push("second", "Sidebake::Probe", probe_of("a", "a-2", 0.0)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    harness.redis.push("second", "Sidebake::Probe", probe_of("b", "b-0", 0.0)).await;
    assert_eq!(build_ids(&harness.callbacks(1).await), ["b-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_jobs_that_wait_are_looked_at_a_few_at_a_time() {
    let harness = Harness::start();
    for n in 0..40 {
        let mut args = probe_of(if n % 2 == 0 { "a" } else { "b" }, &format!("a-{n}"), 0.0);
        args[0]["ballast"] = json!("x".repeat(1 << 20));
        harness.redis.push("default", "Sidebake::Probe", args).await;
    }
    let worker = harness.worker_with(&harness.config("jobs.probe = true"), &["-c", "2"]);
    assert_eq!(harness.callbacks(40).await.len(), 40);
    let peak_kb = worker.peak_kb();
    assert!(peak_kb < 200_000, "{peak_kb} kB");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_workers_with_different_limits_the_stricter_one_holds() {
    let harness = Harness::start();
    let [strict, lax] = ["tenants.limits = { \"*\" = 1 }", ""].map(|limits| {
        let config = harness.config(&format!("jobs.probe = true\n{limits}"));
        let own = config.with_file_name(format!("{}.toml", if limits.is_empty() { "lax" } else { "strict" }));
        std::fs::copy(config, &own).unwrap();
        own
    });
    let _strict = harness.worker_with(&strict, &["-c", "4"]);
    harness.until("the limits are published", async || !harness.redis.keys("sidebake:limits").await.is_empty()).await;
    let _lax = harness.worker_with(&lax, &["-c", "4"]);
    harness.until("both run", async || harness.redis.smembers("sidebake:owners").await.len() == 2).await;
    // The second worker learns the limits when it starts.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for n in 0..8 {
        push(&harness, "acme", &format!("acme-{n}"), 0.2).await;
    }
    assert_eq!(sample_until_done(&harness, 8).await["acme"], 1);
    let mut doctor = crate::harness::sidebake();
    doctor.args(["doctor", "--json", "--config"]).arg(&lax);
    let findings: Value = serde_json::from_slice(&doctor.output().unwrap().stdout).unwrap();
    let found = findings.as_array().unwrap().iter().find(|finding| finding["name"] == "tenant limits").unwrap();
    assert!(found["health"] == "yellow" && found["detail"].as_str().unwrap().contains("\"*\":1"), "{found}");
    nothing_is_left(&harness).await;
}
