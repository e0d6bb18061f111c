//! Custody: a job is in exactly one of queue, in-flight hash, retry set and dead set, whatever process dies.

use serde_json::{Value, json};
use world::{Script, Step};

use crate::harness::{CALLBACKS, Harness, probe};

const QUICK: &str = "jobs.probe = true\nlease.ttl = \"1s\"";

#[tokio::test(flavor = "multi_thread")]
async fn probes_of_every_outcome_end_as_the_rules_say() {
    let harness = Harness::start();
    for outcome in ["succeed", "user", "infrastructure", "panic"] {
        harness.redis.push("default", "Sidebake::Probe", probe(outcome, 0.0)).await;
    }
    let _worker = harness.worker("jobs.probe = true");
    let reports = harness.callbacks(2).await;
    let mut ends: Vec<String> =
        reports.iter().map(|report| format!("{} {}", report["status"], report["reason"])).collect();
    ends.sort();
    assert_eq!(ends, [r#""failed" "step_failed""#, r#""succeeded" null"#]);
    harness.until("the others are in the retry set", async || harness.redis.sorted_set("retry").await.len() == 2).await;
    let classes: Vec<Value> = harness
        .redis
        .sorted_set("retry")
        .await
        .iter()
        .map(|(member, _)| serde_json::from_str::<Value>(member).unwrap()["error_class"].clone())
        .collect();
    assert!(
        classes.contains(&json!("Sidebake::Panicked")) && classes.contains(&json!("Sidebake::BuilderUnavailable")),
        "{classes:?}"
    );
    harness.idle().await;
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("4"));
    assert_eq!(harness.redis.get("stat:failed").await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_job_probe_is_unwrapped() {
    let harness = Harness::start();
    let wrapped = json!([{"job_class": "Sidebake::Probe", "arguments": probe("succeed", 0.0)}]);
    let job = json!({"class": "Sidekiq::ActiveJob::Wrapper", "wrapped": "Sidebake::Probe", "args": wrapped, "jid": "a", "retry": true, "queue": "default"});
    harness.redis.push_raw("default", job.to_string()).await;
    let _worker = harness.worker("jobs.probe = true");
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_killed_worker_are_run_by_another() {
    let harness = Harness::start();
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 3.0)).await;
    let mut first = harness.worker(QUICK);
    harness.is_in_flight().await;
    first.signal("KILL");
    first.ended().await;
    let _second = harness.worker(QUICK);
    let reports = harness.callbacks(1).await;
    assert_eq!(reports[0]["jid"], json!(jid));
    harness.idle().await;
    assert_eq!(harness.callbacks(1).await.len(), 1);
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_continues_while_redis_is_down_and_is_settled_afterwards() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]).held());
    let worker = harness.worker("redis.timeout = \"1s\"");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    world::wait_for("the build to run", || harness.builder.running() == 1).await;
    harness.redis.freeze();
    harness.builder.release();
    world::wait_for("the build to end", || harness.builder.ended() == 1).await;
    world::wait_for("the log message", || !worker.logged("redis_unavailable").is_empty()).await;
    harness.redis.thaw();
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["status"], "succeeded");
    harness.idle().await;
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("1"));
    assert_eq!(harness.builder.runs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_job_was_reclaimed_is_killed_without_a_callback() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::hang());
    let _worker = harness.worker("lease.ttl = \"3s\"");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    world::wait_for("the build to run", || harness.builder.running() == 1).await;
    let key = harness.redis.keys("sidebake:inflight:*").await.remove(0);
    redis::cmd("DEL").arg(&key).exec_async(&mut harness.redis.connection().await).await.unwrap();
    assert!(harness.builder.ended_runs(1).await[0].was_killed());
    world::wait_for("the removal of its directory", || harness.job_directories().is_empty()).await;
    assert!(harness.redis.queue(CALLBACKS).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_queue_of_the_wrong_type_keeps_results_and_their_slots_until_it_is_repaired() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SET").arg(&["queue:callbacks", "x"]).exec_async(&mut connection).await.unwrap();
    // With one slot, the number of jobs that end at the same time does not depend on chance.
    let worker = harness.worker_with(&harness.config(QUICK), &["-c", "1"]);
    for _ in 0..7 {
        harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    }
    // Each of them has been retried more than once.
    harness.until("the results were retried", async || n_failed(&harness, "lpush").await >= 16).await;
    assert_eq!(worker.logged("results_refused").len(), 1, "{}", worker.log());
    let key = harness.redis.keys("sidebake:inflight:*").await.remove(0);
    // The turn that delivers the first result also fetches for its slot, where the worker has seen the head of the queue a moment before.
    let n_held = harness.redis.hgetall(&key).await.len();
    assert!((1..=2).contains(&n_held), "none of its effects happened");
    assert_eq!(harness.redis.queue("default").await.len(), 7 - n_held, "no more jobs are fetched");
    redis::cmd("DEL").arg("queue:callbacks").exec_async(&mut connection).await.unwrap();
    let reports = harness.callbacks(7).await;
    assert!(reports.iter().all(|report| report["status"] == "succeeded"), "{reports:?}");
    harness.idle().await;
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("7"));
}

/// How many times Redis refused a command.
async fn n_failed(harness: &Harness, command: &str) -> usize {
    let mut connection = harness.redis.connection().await;
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
    let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    let n = line.and_then(|line| line.split("failed_calls=").nth(1)?.parse().ok());
    n.unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_clean_stops_with_a_refused_result_make_no_poison_and_lose_no_success() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SET").arg(&["queue:callbacks", "x"]).exec_async(&mut connection).await.unwrap();
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    for _ in 0..3 {
        let mut worker = harness.worker(QUICK);
        world::wait_for("the log message", || !worker.logged("results_refused").is_empty()).await;
        worker.signal("TERM");
        assert_eq!(worker.ended().await, Some(0));
        let queue = harness.redis.queue("default").await;
        assert!(queue.len() == 1 && queue[0].contains(&jid), "{queue:?}");
        // How much time each tenant has had outlives a worker.
        let keys = harness.redis.keys("sidebake:*").await;
        assert!(
            keys.iter().all(|key| ["sidebake:shares", "sidebake:scan"].contains(&key.as_str())),
            "no stop is counted, and no worker waits for a lease: {keys:?}"
        );
    }
    redis::cmd("DEL").arg("queue:callbacks").exec_async(&mut connection).await.unwrap();
    let _worker = harness.worker(QUICK);
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["jid"], &report["status"]), (&json!(jid), &json!("succeeded")), "{report:#}");
    harness.idle().await;
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_crash_counts_against_a_job_whose_result_was_refused() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SET").arg(&["queue:callbacks", "x"]).exec_async(&mut connection).await.unwrap();
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    let mut worker = harness.worker(QUICK);
    world::wait_for("the log message", || !worker.logged("results_refused").is_empty()).await;
    worker.signal("KILL");
    worker.ended().await;
    redis::cmd("DEL").arg("queue:callbacks").exec_async(&mut connection).await.unwrap();
    let _second = harness.worker(QUICK);
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    assert!(harness.redis.hgetall("sidebake:recoveries").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ended_normally_is_not_a_suspect() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    // Its entry was listed, but the process left before the scan reached it.
    let script = redis::Script::new(crate::scripts::RECOVER);
    let mut recover = script.key("sidebake:owners");
    for key in [
        "sidebake:suspects",
        "sidebake:lease:gone",
        "sidebake:inflight:gone",
        "sidebake:recoveries",
        "queues",
        "sidebake:apart",
        "sidebake:claims:gone",
    ] {
        recover.key(key);
    }
    let n_jobs: u32 = recover.arg("gone").arg(0).arg(1000).invoke_async(&mut connection).await.unwrap();
    assert_eq!((n_jobs, harness.redis.keys("sidebake:*").await.len()), (0, 0));
    // The scan also removes a suspect of an earlier version.
    redis::cmd("HSET").arg(&["sidebake:suspects", "gone", "1"]).exec_async(&mut connection).await.unwrap();
    let _worker = harness.worker(QUICK);
    harness.until("the suspect is removed", async || harness.redis.hgetall("sidebake:suspects").await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_workers_jobs_of_a_forbidden_queue_hold_up_no_others() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let rights = "on >secret +@all ~sidebake:* ~queues ~retry ~schedule ~dead ~processes ~process_cleanup ~paused ~it-* \
                  ~stat:* ~j|* ~h|* ~Sidebake::Probe-* ~*:*:* ~queue:default ~queue:callbacks -@dangerous +info +client";
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("narrow").arg(rights.split_whitespace().collect::<Vec<_>>());
    user.exec_async(&mut connection).await.unwrap();
    redis::cmd("SADD").arg(&["sidebake:owners", "gone"]).exec_async(&mut connection).await.unwrap();
    redis::cmd("HSET").arg(&["sidebake:suspects", "gone", "1"]).exec_async(&mut connection).await.unwrap();
    for (token, queue) in [("000000000001", "default"), ("000000000002", "forbidden"), ("000000000003", "default")] {
        let entry = format!("{queue}\n{}", crate::poison::job(token, 0.0));
        redis::cmd("HSET").arg(&["sidebake:inflight:gone", token, &entry]).exec_async(&mut connection).await.unwrap();
    }
    let url = harness.redis.url().replace("redis://", "redis://narrow:secret@");
    let variables = [("SIDEBAKE__REDIS__URL", url.as_str())];
    let worker = harness.worker_with_variables(&harness.config(QUICK), &[], &variables);
    assert_eq!(harness.callbacks(2).await.len(), 2);
    let left = harness.redis.hgetall("sidebake:inflight:gone").await;
    assert_eq!(left.into_keys().collect::<Vec<_>>(), ["000000000002"]);
    let n_logged = || worker.logged("recovery_failed").iter().filter(|line| line.contains("queue:forbidden")).count();
    world::wait_for("the log message with its name", || n_logged() > 0).await;
    redis::cmd("ACL").arg(&["SETUSER", "narrow", "allkeys"]).exec_async(&mut connection).await.unwrap();
    harness.until("the job is on its queue", async || harness.redis.queue("forbidden").await.len() == 1).await;
    assert_eq!(n_logged(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_queues_hold_up_no_other_jobs() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let rights = "on >secret +@all ~sidebake:* ~queues ~retry ~schedule ~dead ~processes ~process_cleanup ~paused ~it-* \
                  ~stat:* ~j|* ~h|* ~Sidebake::Probe-* ~*:*:* ~queue:default ~queue:callbacks";
    let rights: Vec<&str> = rights.split(' ').collect();
    redis::cmd("ACL").arg(&["SETUSER", "narrow"]).arg(rights).exec_async(&mut connection).await.unwrap();
    let url = harness.redis.url().replace("redis://", "redis://narrow:secret@");
    let arguments = ["-c", "2", "-q", "elsewhere", "-q", "default"];
    let worker =
        harness.worker_with_variables(&harness.config(QUICK), &arguments, &[("SIDEBAKE__REDIS__URL", url.as_str())]);
    let told_to = |queue: &str| json!([{"outcome": "succeed", "callback": {"class": "Done", "queue": queue}}]);
    let jid = harness.redis.push("default", "Sidebake::Probe", told_to("forbidden")).await;
    world::wait_for("the log message with its name", || worker.log().contains("queue:forbidden")).await;
    assert!(worker.log().contains("queue:elsewhere"));
    for _ in 0..5 {
        harness.redis.push("default", "Sidebake::Probe", told_to(CALLBACKS)).await;
    }
    harness.callbacks(5).await;
    let key = harness.redis.keys("sidebake:inflight:*").await.remove(0);
    assert!(
        harness.redis.hgetall(&key).await.values().any(|entry| entry.contains(&jid)),
        "the worker keeps its result"
    );

    redis::cmd("ACL").arg(&["SETUSER", "narrow", "~queue:*"]).exec_async(&mut connection).await.unwrap();
    harness.redis.push("elsewhere", "Sidebake::Probe", told_to(CALLBACKS)).await;
    harness.callbacks(6).await;
    harness.until("the callback arrives", async || harness.redis.queue("forbidden").await.len() == 1).await;
    harness.idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_build_leaves_no_child_and_no_directory() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let course = vec![Step::IgnoreTerm(true), Step::SpawnSleeper, Step::Hang];
    harness.builder.script_for_the_rest(Script::steps(course));
    // The child executes the sleeper as a program, which the sandbox would forbid.
    let _worker = harness.worker("sandbox.mode = \"off\"");
    let mut hanging = None;
    // On a busy machine the time can be up before the sleeper runs. Then another build has twice the time.
    for n in 0..6 {
        let mut native = harness.native(&sha);
        native["timeout_s"] = json!(1 << n);
        harness.redis.push("default", "BuildJob", json!([native])).await;
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!(report["reason"], "timed_out", "{report:#}");
        assert!(harness.job_directories().is_empty());
        let n_runs = harness.builder.runs().len();
        hanging = harness.builder.ended_runs(n_runs).await.into_iter().find(|run| !run.reports.is_empty());
        if hanging.is_some() {
            break;
        }
    }
    let run = hanging.expect("a build that hangs");
    let sleeper = run.reports[0].found.clone().unwrap();
    for pid in [run.pid.to_string(), sleeper] {
        world::wait_for("the process to end", || is_gone(&pid)).await;
    }
}

fn is_gone(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_not_a_list_is_skipped_and_named() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    redis::cmd("SET").arg(&["queue:broken", "x"]).exec_async(&mut connection).await.unwrap();
    let worker = harness.worker_with(&harness.config("jobs.probe = true"), &["-q", "broken", "-q", "default"]);
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    assert!(worker.log().contains("queue:broken"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_counts_are_dropped_where_there_are_many() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let fill = "local now = redis.call('TIME')[1] - 10
        for i = 1, 900 do redis.call('HSET', KEYS[1], 'old' .. i, '2 ' .. (now - 72 * 3600)) end
        for i = 1, 200 do redis.call('HSET', KEYS[1], 'new' .. i, '1 ' .. now) end";
    for key in ["sidebake:recoveries", "sidebake:interruptions"] {
        redis::cmd("EVAL").arg(&[fill, "1", key]).exec_async(&mut connection).await.unwrap();
    }
    let _worker = harness.worker(QUICK);
    for key in ["sidebake:recoveries", "sidebake:interruptions"] {
        harness.until("the old counts are removed", async || harness.redis.hgetall(key).await.len() <= 200).await;
        assert_eq!(harness.redis.hgetall(key).await.len(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_redis_is_full_results_are_settled_and_nothing_is_fetched() {
    let harness = Harness::start();
    let worker = harness.worker_with(&harness.config("jobs.probe = true"), &["-c", "1"]);
    for sleep_s in [2.0, 0.0] {
        harness.redis.push("default", "Sidebake::Probe", probe("succeed", sleep_s)).await;
    }
    harness.is_in_flight().await;
    let mut connection = harness.redis.connection().await;
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec_async(&mut connection).await.unwrap();
    assert_eq!(harness.callbacks(1).await.len(), 1);
    world::wait_for("the log message", || !worker.logged("redis_full").is_empty()).await;
    assert_eq!(harness.redis.queue("default").await.len(), 1);
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).exec_async(&mut connection).await.unwrap();
    harness.callbacks(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_killed_worker_are_requeued_when_redis_is_full() {
    let harness = Harness::start();
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    let mut first = harness.worker(QUICK);
    harness.is_in_flight().await;
    let _second = harness.worker(QUICK);
    harness.until("both are owners", async || harness.redis.smembers("sidebake:owners").await.len() == 2).await;
    let mut connection = harness.redis.connection().await;
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec_async(&mut connection).await.unwrap();
    first.signal("KILL");
    first.ended().await;
    harness.until("the job is on its queue", async || harness.redis.queue("default").await.len() == 1).await;
    assert!(harness.redis.queue("default").await[0].contains(&jid));
    assert!(harness.redis.keys("sidebake:inflight:*").await.is_empty(), "the job is nowhere else");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_entry_comes_back_runs_again_beside_another() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    harness.git.faults().delay("/", std::time::Duration::from_millis(500));
    let worker = harness.worker("jobs.probe = true");
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 600.0)).await;
    let jid = harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    harness.until("the worker fetches the source", async || !worker.source_children().is_empty()).await;
    let key = harness.redis.keys("sidebake:inflight:*").await.remove(0);
    let inflight = harness.redis.hgetall(&key).await;
    let (token, entry) = inflight.iter().find(|(_, entry)| entry.contains("BuildJob")).unwrap();
    let mut connection = harness.redis.connection().await;
    redis::cmd("HDEL").arg(&[&key, token]).exec_async(&mut connection).await.unwrap();
    harness
        .until("the build ends", async || {
            ["job_dropped", "job_missing"].iter().any(|event| !harness.logged(event).is_empty())
        })
        .await;
    redis::cmd("HSET").arg(&[&key, token, entry]).exec_async(&mut connection).await.unwrap();
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["jid"], &report["status"]), (&json!(jid), &json!("succeeded")), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_job_that_redis_forgot_claims_nothing_that_did_not_happen() {
    let harness = Harness::start();
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    let worker = harness.worker("jobs.probe = true\nlease.ttl = \"1s\"");
    harness.is_in_flight().await;
    redis::cmd("FLUSHALL").exec_async(&mut harness.redis.connection().await).await.unwrap();
    // The build is killed before Redis is asked what happened to its job.
    let n_logged = || ["job_missing", "job_dropped"].map(|event| worker.logged(event).len());
    world::wait_for("the end of the run", || n_logged() == [1, 1]).await;
    for claim in ["job_reclaimed", "job_requeued", "result_dropped"] {
        assert!(worker.logged(claim).is_empty(), "{claim}: {}", worker.log());
    }
    // The worker goes on.
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    harness.callbacks(1).await;
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_whose_entry_is_gone_is_reported_in_the_log() {
    let harness = Harness::start();
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 600.0)).await;
    // Reconcile would find the loss first.
    let worker = harness.worker("jobs.probe = true\nlease.ttl = \"60s\"");
    harness.is_in_flight().await;
    let key = harness.redis.keys("sidebake:inflight:*").await.remove(0);
    redis::cmd("DEL").arg(&key).exec_async(&mut harness.redis.connection().await).await.unwrap();
    harness.redis.cancel(&jid).await;
    harness.until("the end of the run", async || !worker.logged("result_dropped").is_empty()).await;
    assert!(harness.callback_jobs_so_far().await.is_empty());
    assert_eq!(worker.logged("result_dropped").len(), 1, "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_another_worker_recovered_is_reported_as_reclaimed() {
    let harness = Harness::start();
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 600.0)).await;
    let config = harness.config("jobs.probe = true\nlease.ttl = \"1s\"");
    let first = harness.worker_with(&config, &["-c", "1"]);
    harness.is_in_flight().await;
    let key = harness.redis.keys("sidebake:inflight:*").await.remove(0);
    first.signal("STOP");
    let _second = harness.worker_with(&config, &["-c", "1"]);
    harness
        .until("the first worker's jobs are recovered", async || !harness.redis.keys("*").await.contains(&key))
        .await;
    first.signal("CONT");
    world::wait_for("the log message", || !first.logged("job_reclaimed").is_empty()).await;
    assert!(first.logged("job_missing").is_empty(), "{}", first.log());
}
