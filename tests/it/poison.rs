//! Poison: only a job that crashes its worker three times while it runs alone.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{CALLBACKS, Harness, Worker, probe};

const QUICK: &str = "jobs.probe = true\nlease.ttl = \"1s\"";

/// The text of a probe that succeeds after `sleep_s`.
pub(crate) fn job(jid: &str, sleep_s: f64) -> String {
    let args = probe("succeed", sleep_s);
    json!({"class": "Sidebake::Probe", "queue": "default", "jid": jid, "retry": true, "args": args}).to_string()
}

/// Records that a job was recovered. `numbers` has the form of the hash, without the time.
async fn has_history(harness: &Harness, text: &str, numbers: &str) {
    let note = "local now = redis.call('TIME')[1]
        redis.call('HSET', KEYS[1], redis.sha1hex(ARGV[1]), ARGV[2] .. ' ' .. now)";
    let mut connection = harness.redis.connection().await;
    let command = redis::cmd("EVAL").arg(&[note, "1", "sidebake:recoveries", text, numbers]).to_owned();
    command.exec_async(&mut connection).await.unwrap();
}

/// The history of a job: the numbers in the hash, without the time.
async fn history(harness: &Harness, key: &str, text: &str) -> Option<String> {
    let look = "return redis.call('HGET', KEYS[1], redis.sha1hex(ARGV[1]))";
    let mut connection = harness.redis.connection().await;
    let command = redis::cmd("EVAL").arg(&[look, "1", key, text]).to_owned();
    let value: Option<String> = command.query_async(&mut connection).await.unwrap();
    let n_numbers = if key == "sidebake:recoveries" { 2 } else { 1 };
    value.map(|value| value.split(' ').take(n_numbers).collect::<Vec<_>>().join(" "))
}

/// The jobs in flight: field → jid.
async fn inflight(harness: &Harness) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for key in harness.redis.keys("sidebake:inflight:*").await {
        for (field, entry) in harness.redis.hgetall(&key).await {
            let job: Value = serde_json::from_str(entry.split_once('\n').unwrap().1).unwrap();
            found.insert(field, job["jid"].as_str().unwrap().to_owned());
        }
    }
    found
}

fn has_begun(worker: &Worker, jid: &str) -> bool {
    worker.logged("job_started").iter().any(|line| line.contains(jid))
}

/// Starts workers one after another and kills each when this job starts in it, until the job has ended. Returns the
/// number of kills.
async fn killed_by(harness: &Harness, jid: &str, arguments: &[&str], n_ends: usize) -> usize {
    let mut n_killed = 0;
    loop {
        let mut worker = harness.worker_with(&harness.config(QUICK), arguments);
        let mut is_over = false;
        harness
            .until("the job starts, or all jobs end", async || {
                has_begun(&worker, jid) || harness.redis.queue(CALLBACKS).await.len() == n_ends
            })
            .await;
        if !has_begun(&worker, jid) {
            is_over = true;
        }
        worker.signal(if is_over { "TERM" } else { "KILL" });
        worker.ended().await;
        if is_over {
            return n_killed;
        }
        n_killed += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_one_of_ten_jobs_that_kills_its_worker_is_poison() {
    let harness = Harness::start();
    for n in 0..10 {
        let (jid, sleep_s) = if n == 4 { ("killer".to_owned(), 60.0) } else { (format!("healthy{n}"), 0.5) };
        harness.redis.push_raw("default", job(&jid, sleep_s)).await;
    }
    let n_killed = killed_by(&harness, "killer", &["-c", "10"], 10).await;
    // The job may crash twice beside others. With fewer crashes, it would already be a suspect.
    assert!((3..=5).contains(&n_killed), "{n_killed}");
    let reports = harness.callbacks(10).await;
    let ends: BTreeMap<&str, &Value> =
        reports.iter().map(|report| (report["jid"].as_str().unwrap(), &report["status"])).collect();
    assert_eq!((ends.len(), ends.values().filter(|status| **status == "succeeded").count()), (10, 9), "{reports:#?}");
    let poison = reports.iter().find(|report| report["jid"] == "killer").unwrap();
    assert_eq!((&poison["status"], &poison["reason"]), (&json!("failed"), &json!("poison")));
    let dead = harness.redis.sorted_set("dead").await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    let dead: Value = serde_json::from_str(&dead[0].0).unwrap();
    assert_eq!((&dead["jid"], &dead["error_class"]), (&json!("killer"), &json!("Sidebake::Poison")));
    for text in [&dead["error_message"], &poison["message"]] {
        assert!(text.as_str().unwrap().contains("crashed its worker 3 times while it ran alone"), "{text}");
    }
    assert!(inflight(&harness).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_down_three_workers_alone_is_poison() {
    let harness = Harness::start();
    harness.redis.push_raw("default", job("killer", 60.0)).await;
    assert_eq!(killed_by(&harness, "killer", &[], 1).await, 3);
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["reason"], "poison", "{report:#}");
    assert_eq!(harness.redis.sorted_set("dead").await.len(), 1);
}

/// A worker in which one job runs for a minute while a suspect waits for its end.
async fn waiting(more: &str) -> (Harness, Worker) {
    let harness = Harness::start();
    harness.redis.push_raw("default", job("runs", 60.0)).await;
    let worker = harness.worker(&format!("{QUICK}\n{more}"));
    world::wait_for("the job to run", || has_begun(&worker, "runs")).await;
    let suspect = job("suspect", 0.0);
    has_history(&harness, &suspect, "2 1").await;
    harness.redis.push_raw("default", suspect).await;
    harness.until("the suspect is fetched", async || inflight(&harness).await.len() == 2).await;
    (harness, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_runs_alone_and_nothing_is_fetched_until_it_ends() {
    let (harness, worker) = waiting("").await;
    let fields: Vec<(String, String)> = inflight(&harness).await.into_iter().collect();
    assert!(!fields[0].0.ends_with(":idle") && fields[1].0.ends_with(":idle"), "{fields:?}");
    harness
        .until("Redis shows the wait", async || {
            let shown = harness.redis.hgetall("it-suspect").await;
            shown.get("c").is_some_and(|text| text.contains("waits to run alone"))
        })
        .await;
    harness.redis.push_raw("default", job("later", 0.0)).await;
    let output = harness.run(&["cancel", "suspect-that-is-not-there"], QUICK);
    assert!(!output.status.success());
    harness.redis.cancel("runs").await;
    let ends: Vec<Value> = harness.callbacks(3).await.into_iter().map(|mut report| report["jid"].take()).collect();
    assert_eq!(ends, ["runs", "suspect", "later"]);
    let log = worker.log();
    let at = |event: &str, jid: &str| {
        let fields = [format!("event=\"{event}\""), format!("jid=\"{jid}\"")];
        log.lines().position(|line| fields.iter().all(|field| line.contains(field))).unwrap()
    };
    assert!(at("job_done", "suspect") < at("job_started", "later"), "{log}");
    assert!(!harness.redis.keys("it-*").await.contains(&"it-suspect".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_not_counted_against_a_job_that_waited() {
    let (harness, mut worker) = waiting("").await;
    worker.signal("KILL");
    worker.ended().await;
    harness.until("its lease expires", async || harness.redis.keys("sidebake:lease:*").await.is_empty()).await;
    assert!(harness.run(&["release", "--now"], QUICK).status.success());
    assert_eq!(harness.redis.queue("default").await, [job("runs", 60.0), job("suspect", 0.0)]);
    let on_record = async |text: String| history(&harness, "sidebake:recoveries", &text).await;
    assert_eq!(on_record(job("suspect", 0.0)).await.as_deref(), Some("2 1"));
    assert_eq!(on_record(job("runs", 60.0)).await.as_deref(), Some("1 1"), "the job ran alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_requeues_a_waiting_job_uncounted() {
    let (harness, mut worker) = waiting("shutdown.timeout = \"0s\"").await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(harness.redis.queue("default").await, [job("runs", 60.0), job("suspect", 0.0)]);
    let interrupted = async |text: String| history(&harness, "sidebake:interruptions", &text).await;
    assert_eq!(interrupted(job("suspect", 0.0)).await, None);
    assert_eq!(interrupted(job("runs", 60.0)).await.as_deref(), Some("1"));
    assert!(inflight(&harness).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_worker_requeues_waiting_jobs() {
    let (harness, worker) = waiting("").await;
    worker.signal("TSTP");
    harness
        .until("the job is on its queue", async || harness.redis.queue("default").await == [job("suspect", 0.0)])
        .await;
    assert_eq!(inflight(&harness).await.into_values().collect::<Vec<_>>(), ["runs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_can_be_cancelled_while_others_run() {
    let (harness, worker) = waiting("").await;
    let output = harness.run(&["cancel", "suspect"], QUICK);
    let said = crate::harness::text(&output);
    assert!(said.contains("which does not run it now"), "{said}");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["jid"], &report["status"]), (&json!("suspect"), &json!("cancelled")), "{report:#}");
    assert!(!has_begun(&worker, "suspect"));
    // The worker then fetches jobs again.
    harness.redis.push_raw("default", job("later", 0.0)).await;
    harness.callbacks(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_that_was_reclaimed_frees_its_worker() {
    let (harness, worker) = waiting("").await;
    let key = harness.redis.keys("sidebake:inflight:*").await.remove(0);
    let field = inflight(&harness).await.into_keys().find(|field| field.ends_with(":idle")).unwrap();
    redis::cmd("HDEL").arg(&[&key, &field]).exec_async(&mut harness.redis.connection().await).await.unwrap();
    world::wait_for("the log message", || !worker.logged("job_missing").is_empty()).await;
    harness.redis.push_raw("default", job("later", 0.0)).await;
    assert_eq!(harness.callbacks(1).await[0]["jid"], "later");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_also_waits_for_the_other_capsules() {
    let harness = Harness::start();
    harness.redis.push_raw("serial", job("runs", 60.0)).await;
    let more = format!("{QUICK}\n[capsules.serial]\nconcurrency = 1\nqueues = [\"serial\"]\n");
    let worker = harness.worker(&more);
    world::wait_for("the job to run", || has_begun(&worker, "runs")).await;
    let suspect = job("suspect", 0.0);
    has_history(&harness, &suspect, "2 0").await;
    harness.redis.push_raw("default", suspect).await;
    harness.until("the suspect is fetched", async || inflight(&harness).await.len() == 2).await;
    harness.redis.cancel("runs").await;
    let ends: Vec<Value> = harness.callbacks(2).await.into_iter().map(|mut report| report["jid"].take()).collect();
    assert_eq!(ends, ["runs", "suspect"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_of_an_earlier_version_make_a_suspect_but_not_poison() {
    let harness = Harness::start();
    let suspect = job("suspect", 0.0);
    has_history(&harness, &suspect, "7").await;
    harness.redis.push_raw("default", suspect).await;
    let _worker = harness.worker(QUICK);
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_that_is_killed_has_not_crashed() {
    let harness = Harness::start();
    harness.redis.push_raw("default", job("runs", 60.0)).await;
    let mut worker = harness.worker(QUICK);
    world::wait_for("the job to run", || has_begun(&worker, "runs")).await;
    worker.signal("TERM");
    harness
        .until("the run is recorded", async || {
            harness.redis.hgetall("sidebake:suspects").await.into_values().any(|since| since == "0")
        })
        .await;
    worker.signal("KILL");
    worker.ended().await;
    let _second = harness.worker(QUICK);
    harness.until("the job runs again", async || harness.logged("job_started").len() == 2).await;
    assert!(harness.redis.hgetall("sidebake:recoveries").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_and_continued_worker_has_not_crashed() {
    // One job continues with its worker, and one has ended by then.
    for sleep_s in [60.0, 0.5] {
        let harness = Harness::start();
        let text = job("runs", sleep_s);
        harness.redis.push_raw("default", &text).await;
        let first = harness.worker(QUICK);
        world::wait_for("the job to run", || has_begun(&first, "runs")).await;
        first.signal("STOP");
        harness.until("its lease expires", async || harness.redis.keys("sidebake:lease:*").await.is_empty()).await;
        let recovered = async || {
            let _ = harness.run(&["release", "--now"], QUICK);
            history(&harness, "sidebake:recoveries", &text).await
        };
        assert_eq!(recovered().await.as_deref(), Some("1 1"));
        first.signal("CONT");
        let on_record = async || history(&harness, "sidebake:recoveries", &text).await;
        harness.until("no crash is recorded", async || on_record().await.is_none()).await;
    }
}

#[tokio::test]
async fn only_the_crash_count_of_a_workers_own_run_is_removed() {
    let server = world::Redis::start();
    let mut connection = server.connection().await;
    let withdraw = redis::Script::new(include_str!("../../src/sidekiq/withdraw.lua"));
    let text = job("counted", 0.0);
    for (value, left) in [
        ("1 1 99 1 me 000000000001", None),
        ("3 2 99 1 me 000000000001", Some("2 1 99")),
        ("3 2 99 0 me 000000000001", Some("2 2 99")),
        ("3 2 99 1 me 000000000002", Some("3 2 99 1 me 000000000002")),
        ("1 1 99 1 another 000000000001", Some("1 1 99 1 another 000000000001")),
        ("2 1 99", Some("2 1 99")),
        ("2 99", Some("2 99")),
    ] {
        let note = "return redis.call('HSET', KEYS[1], redis.sha1hex(ARGV[1]), ARGV[2])";
        let note = redis::cmd("EVAL").arg(&[note, "1", "sidebake:recoveries", &text, value]).to_owned();
        note.exec_async(&mut connection).await.unwrap();
        // The second time, the record is already gone. A full Redis is no reason to keep it.
        for _ in 0..2 {
            let full = redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).to_owned();
            full.exec_async(&mut connection).await.unwrap();
            let mut call = withdraw.key("sidebake:recoveries");
            call.arg("me").arg("000000000001").arg(sha1_smol::Sha1::from(&text).digest().to_string());
            call.invoke_async::<u32>(&mut connection).await.unwrap();
        }
        let whole = redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).to_owned();
        whole.exec_async(&mut connection).await.unwrap();
        let now: Vec<String> = server.hgetall("sidebake:recoveries").await.into_values().collect();
        assert_eq!(now, Vec::from_iter(left.map(str::to_owned)), "{value}");
    }
}
