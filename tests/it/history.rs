//! The record of each build, and the commands that read it: show, list, why.

use std::process::Output;

use serde_json::{Value, json};
use world::{Redis, Script};

use crate::harness::{HEAVY, Harness, text};

/// Runs a command that reads records.
fn run(harness: &Harness, arguments: &[&str], more: &str) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = harness.run(arguments, more);
    let read = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), read(stdout), read(stderr))
}

/// What a command prints when it succeeds.
fn out(harness: &Harness, arguments: &[&str]) -> String {
    let (code, out, err) = run(harness, arguments, "");
    assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}: {out}");
    out
}

fn show_json(harness: &Harness, build: &str) -> Value {
    serde_json::from_str(&out(harness, &["show", build, "--json"])).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn redis(redis: &Redis, command: &[&str]) -> redis::Value {
    redis::cmd(command[0]).arg(&command[1..]).query_async(&mut redis.connection().await).await.unwrap()
}

/// Bytes that the server has sent so far.
async fn n_sent(server: &Redis) -> u64 {
    let mut connection = server.connection().await;
    let stats: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await.unwrap();
    stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).unwrap().parse().unwrap()
}

async fn ttl_s(server: &Redis, key: &str) -> i64 {
    redis::cmd("TTL").arg(key).query_async(&mut server.connection().await).await.unwrap()
}

/// Pushes a build with this id. Returns its jid.
async fn push(harness: &Harness, build_id: Value) -> String {
    let (_, sha) = harness.voting_app();
    let mut native = harness.native(&sha);
    native["build_id"] = build_id;
    harness.redis.push("default", "BuildJob", json!([native])).await
}

/// Waits until the last attempt in the record is over.
async fn is_over(harness: &Harness, build: &str) -> Value {
    let over = async || {
        let (code, out, _) = run(harness, &["show", build, "--json"], "");
        let shown: Option<Value> = serde_json::from_str(&out).ok();
        shown.filter(|shown| code == Some(0) && shown["state"] == "over")
    };
    harness.until("the record has the end", async || over().await.is_some()).await;
    over().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_build_is_shown_by_its_id_and_its_jid_for_seven_days() {
    let harness = Harness::start();
    harness.builder.script(Script::success(&["vote"]));
    let _worker = harness.worker("");
    let jid = push(&harness, json!(42)).await;
    let shown = is_over(&harness, "42").await;
    let report = harness.callbacks(1).await.remove(0);
    let attempt = &shown["attempts"][0];
    for field in ["build_id", "jid", "status", "repository", "sha", "placement", "timings", "notices", "warnings"] {
        assert_eq!(attempt[field], report[field], "{field}");
    }
    let (mut target, steps) = (attempt["targets"][0].clone(), attempt["targets"][0]["slowest_steps"].clone());
    target.as_object_mut().unwrap().remove("slowest_steps");
    assert_eq!(target, report["targets"][0]);
    assert!(!steps.as_array().unwrap().is_empty() && steps.as_array().unwrap().len() <= 5, "{steps:#}");
    assert_eq!((&attempt["account"], &attempt["is_over"]), (&json!("acme"), &json!(true)));
    let times = ["queued_at_ms", "began_at_ms", "ended_at_ms"].map(|field| attempt[field].as_u64().unwrap());
    assert!(times.is_sorted(), "{times:?}");

    let page = out(&harness, &["show", "42"]);
    for words in ["build 42: succeeded\n", "repository  acme/voting-app\n", "target vote: succeeded in ", "sha256:"] {
        assert!(page.contains(words), "{words} is not in {page}");
    }
    assert!(page.lines().all(|line| line.chars().count() <= 80) && !page.contains('\x1b'), "{page}");
    assert_eq!(out(&harness, &["show", &jid]), page);
    let listed = out(&harness, &["list"]);
    let cells: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((cells[0], cells[3], cells[5], cells[7]), ("42", "acme/voting-app", "succeeded", "acme"), "{listed}");
    assert_eq!(cells[4], &report["sha"].as_str().unwrap()[..7]);
    assert!(out(&harness, &["why", &jid]).starts_with("vote: "));
    let why: Value = serde_json::from_str(&out(&harness, &["why", "42", "--json"])).unwrap();
    assert_eq!((&why["id"], &why["targets"][0]["name"]), (&json!("42"), &json!("vote")));

    let week = 7 * 24 * 60 * 60;
    assert!((week - 60..=week).contains(&ttl_s(&harness.redis, "sidebake:build:42:record").await));
    assert!((2 * week - 60..=2 * week).contains(&ttl_s(&harness.redis, "sidebake:build:42:log").await));
    redis(&harness.redis, &["PEXPIRE", "sidebake:build:42:record", "0"]).await;
    for command in ["show", "why"] {
        let (code, out, err) = run(&harness, &[command, "42"], "");
        assert_eq!((code, out.as_str()), (Some(3), ""));
        assert!(err.contains("the record of build 42 has expired; journal.record_ttl is 7days"), "{err}");
        let (code, _, err) = run(&harness, &[command, "43"], "");
        assert!(code == Some(2) && err.contains("no build 43 is known"), "{err}");
    }
    assert_eq!(run(&harness, &["list", "--json"], "").1, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_builds_are_listed_with_their_reason_and_shown_with_their_output() {
    let harness = Harness::start();
    harness.builder.script(Script::fails_step("vote", "make", 2, "cc main.c\n\x1b[31mmain.c:1: error\n"));
    harness.builder.script(Script::success(&["vote"]));
    let _worker = harness.worker("");
    push(&harness, json!("first")).await;
    is_over(&harness, "first").await;
    push(&harness, json!("second")).await;
    is_over(&harness, "second").await;
    let page = out(&harness, &["show", "first"]);
    for words in ["build first: failed (step_failed)\n", "    | main.c:1: error\n", "RUN make"] {
        assert!(page.contains(words), "{words} is not in {page}");
    }
    let ids = |arguments: &[&str]| -> Vec<Value> {
        lines(&run(&harness, &[&["list", "--json"], arguments].concat(), "").1)
            .iter()
            .map(|line| line["id"].clone())
            .collect()
    };
    assert_eq!(ids(&[]), ["second", "first"]);
    assert_eq!(ids(&["--limit", "1"]), ["second"]);
    assert_eq!(ids(&["--failed"]), ["first"]);
    assert_eq!(ids(&["--account", "acme"]), ["second", "first"]);
    assert_eq!(ids(&["--failed", "--account", "other"]), [""; 0]);
    assert_eq!(ids(&["--running"]), [""; 0]);
    assert!(out(&harness, &["list", "--failed"]).contains(" step_failed "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_and_a_build_that_lost_its_worker_are_told_apart() {
    let harness = Harness::start();
    let more = "lease.ttl = \"3s\"";
    harness.builder.script(Script::hang());
    let jid = push(&harness, json!(42)).await;
    let (code, _, err) = run(&harness, &["show", "42"], "");
    assert!(code == Some(2) && err.contains("build 42 has no record yet; it is queued on default"), "{err}");

    let worker = harness.worker(more);
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    harness
        .until("the record has the placement", async || {
            run(&harness, &["show", &jid, "--json"], "").1.contains("\"builder\":\"default\"")
        })
        .await;
    let shown = show_json(&harness, &jid);
    assert_eq!((&shown["state"], &shown["attempts"][0]["status"]), (&json!("running"), &Value::Null));
    let page = out(&harness, &["show", "42"]);
    assert!(page.contains("build 42: running since ") && page.contains("attempt 1: running, bake\n"), "{page}");
    assert!(page.contains("builder default"), "{page}");
    assert!(out(&harness, &["why", "42"]).contains("build 42 runs; its targets are recorded when docker-buildx ends"));
    for arguments in [&["list"][..], &["list", "--running"], &["list", "--running", "--account", "acme"]] {
        let listed = out(&harness, arguments);
        assert!(listed.contains("42 ") && listed.contains(" running "), "{listed}");
    }
    // A record that is gone does not hide a running build.
    redis(&harness.redis, &["UNLINK", "sidebake:build:42:record"]).await;
    let unrecorded = lines(&out(&harness, &["list", "--running", "--json"]));
    assert_eq!(unrecorded, [json!({"id": "42", "state": "running"})]);

    worker.kill();
    harness.until("the lease is gone", async || harness.redis.keys("sidebake:lease:*").await.is_empty()).await;
    let states = |arguments: &[&str]| -> Vec<Value> {
        lines(&run(&harness, arguments, "").1).iter().map(|line| line["state"].clone()).collect()
    };
    assert_eq!(states(&["list", "--running", "--json"]), ["silent"]);
    harness.builder.script(Script::success(&["vote"]));
    let _second = harness.worker(more);
    let shown = is_over(&harness, "42").await;
    assert_eq!(shown["attempts"].as_array().unwrap().last().unwrap()["status"], "succeeded");
    assert_eq!(states(&["list", "--json"]), ["over"]);
    assert_eq!(states(&["list", "--running", "--json"]), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_a_record_that_does_not_claim_that_the_build_runs() {
    let harness = Harness::start();
    harness.builder.script(Script::hang());
    let worker = harness.worker("lease.ttl = \"1s\"");
    push(&harness, json!(42)).await;
    harness
        .until("the record has the placement", async || {
            run(&harness, &["show", "42", "--json"], "").1.contains("\"builder\":\"default\"")
        })
        .await;
    worker.kill();
    harness.until("the lease is gone", async || harness.redis.keys("sidebake:lease:*").await.is_empty()).await;
    let page = out(&harness, &["show", "42"]);
    assert!(
        page.starts_with("build 42: not known to run: ") && page.contains("attempt 1: no end is recorded"),
        "{page}"
    );
    // As `sidebake release` does.
    let released = harness.run(&["release", "--now"], "");
    assert!(text(&released).contains("requeued 1 jobs"), "{}", text(&released));
    let page = out(&harness, &["show", "42"]);
    assert!(page.starts_with("build 42: queued on default; the end of its last attempt is not recorded\n"), "{page}");
    redis(&harness.redis, &["DEL", "queue:default"]).await;
    let page = out(&harness, &["show", "42"]);
    assert!(page.starts_with("build 42: its end is not recorded, and no queue or worker has its job\n"), "{page}");
    let listed = out(&harness, &["list"]);
    assert!(listed.contains(" not running "), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_build_has_all_attempts_up_to_a_bound() {
    let harness = Harness::start();
    harness.builder.script(Script::loses_builder());
    let _worker = harness.worker("");
    let jid = push(&harness, json!(42)).await;
    harness.until("the job waits for a retry", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    let has_ended = async || {
        let shown = show_json(&harness, "42");
        shown["state"] == "waiting" && shown["attempts"][0]["ended_at_ms"].is_number()
    };
    harness.until("the end of the attempt is recorded", has_ended).await;
    let page = out(&harness, &["show", &jid]);
    assert!(page.starts_with("build 42: waiting for a retry\n"), "{page}");
    assert!(out(&harness, &["list"]).contains(" waits after "));
    // Attempts of other workers.
    let record = "sidebake:build:42:record";
    let fields = harness.redis.hgetall(record).await;
    let of = |kind: &str| fields.iter().find(|(field, _)| field.starts_with(kind)).unwrap().1.clone();
    for number in 2..=12 {
        let names = ["attempt", "summary"].map(|kind| format!("{kind}:{number:06}:0123456789ab"));
        redis(&harness.redis, &["HSET", record, &names[0], &of("attempt"), &names[1], &of("summary")]).await;
    }
    let (member, _) = harness.redis.sorted_set("retry").await.remove(0);
    harness.builder.script(Script::success(&["vote"]));
    redis(&harness.redis, &["ZREM", "retry", &member]).await;
    harness.redis.push_raw("default", &member).await;
    let shown = is_over(&harness, "42").await;
    let attempts = shown["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 10);
    assert_eq!((&attempts[9]["attempt"], &attempts[9]["status"]), (&json!(2), &json!("succeeded")));
    let fields = harness.redis.hgetall(record).await;
    assert!(
        fields.len() == 20 && fields.keys().any(|field| field.starts_with("summary:000013:")),
        "{:?}",
        fields.keys()
    );
    assert!(out(&harness, &["show", "42"]).starts_with("build 42: succeeded, 10 attempts\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_runs_is_listed_with_its_own_facts() {
    let harness = Harness::start();
    harness.builder.script(Script::loses_builder());
    let mut worker = harness.worker("");
    let jid = push(&harness, json!(42)).await;
    harness.until("the job waits for a retry", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    let listed = |arguments: &[&str]| -> Value {
        let mut lines = lines(&out(&harness, &[&["list", "--json"], arguments].concat()));
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    };
    harness.until("the end is recorded", async || listed(&[])["ended_at_ms"].is_number()).await;
    let earlier = listed(&[]);
    assert_eq!((&earlier["state"], &earlier["attempt"]), (&json!("waiting"), &json!(1)));
    worker.terminate().await;

    let again = async || {
        let (member, _) = harness.redis.sorted_set("retry").await.remove(0);
        redis(&harness.redis, &["ZREM", "retry", &member]).await;
        harness.redis.push_raw("default", &member).await;
    };
    // A worker that records nothing yet.
    harness.builder.script(Script::hang());
    let mut silent = harness.worker("journal.stream = false\nshutdown.timeout = \"0s\"");
    again().await;
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    for arguments in [&[][..], &["--running"], &["--account", "acme"], &["--running", "--account", "acme"]] {
        let now = listed(arguments);
        assert_eq!((&now["state"], &now["attempt"], &now["jid"]), (&json!("running"), &json!(2), &json!(jid)), "{now}");
        assert_ne!(now["worker"], earlier["worker"]);
        for field in ["began_at_ms", "ended_at_ms", "status", "reason"] {
            assert_eq!(now[field], Value::Null, "{field} is that of the earlier attempt");
        }
        for field in ["id", "build_id", "account", "repository", "sha", "ref", "queued_at_ms"] {
            assert_eq!(now[field], earlier[field], "{field}");
        }
    }
    let table = out(&harness, &["list"]);
    let cells: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((&cells[..3], &cells[4..]), (&["42", "-", "acme/voting-app"][..], &["running", "-", "acme"][..]));
    silent.terminate().await;
    assert_eq!(listed(&[])["began_at_ms"], earlier["began_at_ms"], "nothing runs now");

    // A worker that records its attempt.
    harness.builder.script(Script::hang());
    let _worker = harness.worker("");
    harness.until("the attempt is recorded", async || listed(&[])["began_at_ms"] != earlier["began_at_ms"]).await;
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    let now = listed(&[]);
    assert!(now["began_at_ms"].as_u64() > earlier["ended_at_ms"].as_u64(), "{now}");
    assert_eq!((&now["state"], &now["attempt"], &now["status"]), (&json!("running"), &json!(2), &Value::Null));
    assert_eq!(listed(&["--running"]), now);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_costs_the_log_or_the_record_and_not_the_other() {
    let harness = Harness::start();
    let worker = harness.worker("");
    let types = [
        ("string", &["SET", "KEY", "x"][..]),
        ("list", &["RPUSH", "KEY", "x"]),
        ("set", &["SADD", "KEY", "x"]),
        ("zset", &["ZADD", "KEY", "1", "x"]),
        ("hash", &["HSET", "KEY", "f", "x"]),
        ("stream", &["XADD", "KEY", "*", "f", "x"]),
    ];
    let mut n_complaints = [0, 0];
    for (kind, command) in types {
        for (part, event) in [("events", "log_stream_not_written"), ("record", "build_record_not_written")] {
            let is_own = matches!((part, kind), ("events", "stream") | ("record", "hash"));
            let id = format!("{part}-{kind}");
            let key = format!("sidebake:build:{id}:{part}");
            let command: Vec<&str> = command.iter().map(|word| if *word == "KEY" { &*key } else { word }).collect();
            redis(&harness.redis, &command).await;
            harness.builder.script(Script::success(&["vote"]));
            let jid = push(&harness, json!(id)).await;
            let whole_log = async || text(&harness.run(&["logs", &jid], "")).ends_with("build | succeeded\n");
            if part == "record" || is_own {
                harness.until("the log is complete", async || whole_log().await).await;
            }
            if part == "events" || is_own {
                is_over(&harness, &jid).await;
            }
            if is_own {
                continue;
            }
            n_complaints[usize::from(part == "record")] += 1;
            harness
                .until("the key is named", async || {
                    worker.logged(event).last().is_some_and(|line| line.to_string().contains(&key))
                })
                .await;
            // What another program wrote stays as it is.
            assert_eq!(redis(&harness.redis, &["TYPE", &key]).await, redis::Value::SimpleString(kind.into()));
            assert_eq!(ttl_s(&harness.redis, &key).await, -1, "{key}");
            let command = if part == "events" { "logs" } else { "show" };
            let (code, _, err) = run(&harness, &[command, &id], "");
            assert!(code == Some(1) && err.contains(&format!("key {key} has another type")), "{err}");
        }
    }
    let complaints = ["log_stream_not_written", "build_record_not_written"].map(|event| worker.logged(event).len());
    assert_eq!(complaints, n_complaints, "one for each build");
    assert!(worker.logged("log_stream_lost").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_another_type_cost_the_record_and_not_the_build_or_its_log() {
    let harness = Harness::start();
    harness.builder.script(Script::success(&["vote"]));
    let worker = harness.worker("");
    redis(&harness.redis, &["SET", "sidebake:build:42:record", "x"]).await;
    redis(&harness.redis, &["SET", "sidebake:builds", "x"]).await;
    push(&harness, json!(42)).await;
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    let is_complete = async || text(&harness.run(&["logs", "42"], "")).ends_with("build | succeeded\n");
    harness.until("the log is complete", is_complete).await;
    assert_eq!(worker.logged("build_record_not_written").len(), 1);
    assert!(worker.logged("log_stream_not_written").is_empty());
    assert_eq!(harness.redis.get("sidebake:build:42:record").await.as_deref(), Some("x"));
    assert_eq!(
        ttl_s(&harness.redis, "sidebake:build:42:record").await,
        -1,
        "the key of another program stays as it is"
    );
    for (arguments, key) in [(&["show", "42"][..], "sidebake:build:42:record"), (&["list"], "sidebake:builds")] {
        let (code, _, err) = run(&harness, arguments, "");
        let sentence = format!("key {key} has another type; another program wrote it");
        assert!(code == Some(1) && err.contains(&sentence), "{err}");
    }
    // The list does not take the record with it.
    harness.builder.script(Script::success(&["vote"]));
    push(&harness, json!(43)).await;
    is_over(&harness, "43").await;
    redis(&harness.redis, &["SET", "sidebake:build:42:log", "42"]).await;
    redis(&harness.redis, &["DEL", "sidebake:build:43:log"]).await;
    redis(&harness.redis, &["SADD", "sidebake:build:43:log", "x"]).await;
    let (code, _, err) = run(&harness, &["show", "43"], "");
    assert!(code == Some(1) && err.contains("key sidebake:build:43:log has another type"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_named_and_the_rest_of_it_is_shown() {
    let harness = Harness::start();
    harness.builder.script(Script::success(&["vote"]));
    let _worker = harness.worker("");
    push(&harness, json!(42)).await;
    let shown = is_over(&harness, "42").await;
    let record = "sidebake:build:42:record";
    let field = "attempt:000000:0123456789ab";
    let many = format!("[{}0]", "0,".repeat(60_000));
    for damaged in
        ["", "{", "{}", "[]", "\"x\"", many.as_str(), r#"{"jid":"j","attempt":"1","worker":"w","began_at_ms":1}"#]
    {
        redis(&harness.redis, &["HSET", record, field, damaged, "foreign", damaged]).await;
        let (code, out, err) = run(&harness, &["show", "42"], "");
        assert!(code == Some(1) && out.starts_with("build 42: succeeded\n"), "{out}{err}");
        let sentence = "a part of the record of build 42 cannot be read: attempt:000000:0123456789ab: ";
        assert!(err.contains(sentence), "{damaged}: {err}");
    }
    // Odd values inside, and control characters.
    let mut odd = shown["attempts"][0].clone();
    odd["message"] = json!("\x1b[2Jcleared\u{202e}");
    odd["targets"] =
        json!([7, {"name": ["x"], "tags": "no", "slowest_steps": [null], "log_tail": 3, "duration_ms": -1}]);
    odd["timings"] = json!({"fetch_ms": "x", "y": 1});
    odd["log_url"] = json!({"a": 1});
    redis(&harness.redis, &["HSET", record, field, &odd.to_string()]).await;
    let page = out(&harness, &["show", "42"]);
    assert!(
        page.contains("cleared\u{fffd}") && page.contains("target ?: not reached") && !page.contains('\x1b'),
        "{page}"
    );

    redis(&harness.redis, &["DEL", record]).await;
    redis(&harness.redis, &["HSET", record, "foreign", "x"]).await;
    let (code, out, err) = run(&harness, &["why", "42"], "");
    assert!(code == Some(1) && out.is_empty() && err.contains("cannot be read: it has no attempts"), "{err}");
    let (code, out, err) = run(&harness, &["list"], "");
    assert!(
        code == Some(0) && out.contains("unreadable") && err.contains("build 42: its record has no summary"),
        "{out}{err}"
    );

    harness.redis.stop();
    for arguments in [&["show", "42"][..], &["why", "42"], &["list"], &["list", "--running"]] {
        let (code, out, err) = run(&harness, arguments, "");
        assert!(code == Some(1) && out.is_empty() && err.starts_with("sidebake: failed to "), "{arguments:?}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_id_that_is_another_builds_jid_is_ambiguous_in_either_order() {
    let harness = Harness::start();
    let _worker = harness.worker("");
    let mut pushed = Vec::new();
    for is_jid_first in [true, false] {
        harness.builder.script(Script::success(&["vote"]));
        harness.builder.script(Script::success(&["vote"]));
        let other = json!(if is_jid_first { 42 } else { 43 });
        let name = format!("{:024x}", pushed.len() + 7);
        let (_, sha) = harness.voting_app();
        let by_jid = async {
            let mut native = harness.native(&sha);
            native["build_id"] = other.clone();
            let job = json!({"class": "BuildJob", "queue": "default", "jid": name, "args": [native], "created_at": 1});
            harness.redis.push_raw("default", job.to_string()).await;
            is_over(&harness, &other.to_string()).await;
        };
        let by_id = async {
            let jid = push(&harness, json!(name)).await;
            is_over(&harness, &jid).await;
            jid
        };
        let jid = if is_jid_first {
            by_jid.await;
            by_id.await
        } else {
            let jid = by_id.await;
            by_jid.await;
            jid
        };
        for command in ["show", "why", "logs"] {
            let (code, _, err) = run(&harness, &[command, &name], "");
            let sentence = format!(
                "{name} names two builds: say {jid} for the build with this build_id, or {other} for the build of this job"
            );
            assert!(code == Some(1) && err.contains(&sentence), "{command}: {err}");
        }
        assert_eq!(show_json(&harness, &jid)["id"], json!(name));
        assert_eq!(show_json(&harness, &other.to_string())["id"], json!(other.to_string()));
        pushed.push(name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_a_hundred_thousand_builds_is_bounded_and_read_in_pages() {
    let _alone = HEAVY.lock().await;
    let harness = Harness::start();
    let fill = r#"
        for n = tonumber(ARGV[2]), tonumber(ARGV[2]) + 4999 do
            local key, began = 'sidebake:build:old-' .. n .. ':record', tonumber(ARGV[1]) + n
            local status = n == 1 and 'failed' or 'succeeded'
            redis.call('HSET', key, 'summary:000001:a', '{"build_id":' .. n .. ',"jid":"j' .. n .. '","attempt":1,"worker":"w",'
                .. '"account":"acme","repository":"acme/app","sha":"0123456789","ref":null,"queued_at_ms":1,"began_at_ms":'
                .. string.format('%d', began) .. ',"ended_at_ms":1,"status":"' .. status .. '","reason":null,"is_over":true}')
            redis.call('ZADD', 'sidebake:builds', string.format('%d', began), 'old-' .. n)
        end"#;
    let now_ms = jiff::Timestamp::now().as_millisecond();
    // In parts: while a script runs, Redis answers nobody.
    for first in (1..100_000).step_by(5000) {
        redis(&harness.redis, &["EVAL", fill, "0", &(now_ms - 1_000_000).to_string(), &first.to_string()]).await;
    }
    // One entry has expired, and one is too old.
    redis(&harness.redis, &["DEL", "sidebake:build:old-100000:record"]).await;
    redis(&harness.redis, &["ZADD", "sidebake:builds", "1", "too-old"]).await;

    let before = n_sent(&harness.redis).await;
    let listed = lines(&out(&harness, &["list", "--json"]));
    let n_bytes = n_sent(&harness.redis).await - before;
    assert!(n_bytes < 200_000, "one page of records has {n_bytes} bytes");
    assert_eq!((listed.len(), &listed[0]["id"], &listed[49]["id"]), (50, &json!("old-99999"), &json!("old-99950")));
    let failed = lines(&out(&harness, &["list", "--failed", "--json"]));
    assert_eq!((failed.len(), &failed[0]["id"]), (1, &json!("old-1")));

    harness.builder.script(Script::success(&["vote"]));
    let _worker = harness.worker("");
    push(&harness, json!("new")).await;
    is_over(&harness, "new").await;
    let count = redis(&harness.redis, &["ZCARD", "sidebake:builds"]).await;
    assert_eq!(count, redis::Value::Int(100_000));
    assert_eq!(redis(&harness.redis, &["ZSCORE", "sidebake:builds", "too-old"]).await, redis::Value::Nil);
    assert_eq!(redis(&harness.redis, &["ZSCORE", "sidebake:builds", "old-1"]).await, redis::Value::Nil);
    assert!(ttl_s(&harness.redis, "sidebake:builds").await > 0);
    assert_eq!(lines(&out(&harness, &["list", "--limit", "1", "--json"]))[0]["id"], "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_on_another_redis_are_shown_while_that_of_the_jobs_is_away() {
    let (harness, other) = (Harness::start(), Redis::start());
    let more = format!("journal.redis_url = \"{}\"", other.url());
    harness.builder.script(Script::success(&["vote"]));
    harness.builder.script(Script::hang());
    let _worker = harness.worker(&more);
    push(&harness, json!("done")).await;
    harness.callbacks(1).await;
    push(&harness, json!("open")).await;
    let states = || -> Vec<Value> {
        lines(&run(&harness, &["list", "--json"], &more).1).iter().map(|line| line["state"].clone()).collect()
    };
    harness.until("both are recorded", async || states() == ["running", "over"]).await;
    assert!(harness.redis.keys("sidebake:build*").await.is_empty());

    harness.redis.stop();
    assert_eq!(states(), ["unknown", "over"]);
    let (code, page, err) = run(&harness, &["show", "done"], &more);
    assert!(code == Some(0) && page.starts_with("build done: succeeded\n") && err.is_empty(), "{page}{err}");
    let (code, page, _) = run(&harness, &["show", "open", "--json"], &more);
    let shown: Value = serde_json::from_str(&page).unwrap();
    assert_eq!((code, &shown["state"]), (Some(0), &json!("unknown")));
    let (code, _, err) = run(&harness, &["list"], &more);
    assert!(code == Some(0) && err.contains("which builds run is not known: "), "{err}");
    let (code, _, err) = run(&harness, &["list", "--running"], &more);
    assert!(code == Some(1) && err.contains("failed to ask Redis for the jobs in flight"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_nothing_is_recorded_and_a_running_build_is_still_listed() {
    let harness = Harness::start();
    let more = "journal.stream = false";
    harness.builder.script(Script::success(&["vote"]).held());
    let _worker = harness.worker(more);
    push(&harness, json!(42)).await;
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    let (code, out, _) = run(&harness, &["list", "--running"], more);
    assert!(code == Some(0) && out.contains("\n42 ") && out.contains(" running "), "{out}");
    let (code, _, err) = run(&harness, &["show", "42"], more);
    assert!(code == Some(2) && err.contains("build 42 has no record yet; it is running in "), "{err}");
    assert!(err.contains("journal.stream is off in these settings"), "{err}");
    harness.builder.release();
    harness.callbacks(1).await;
    assert!(harness.redis.keys("sidebake:build*").await.is_empty());
}
