//! The live log of a build: a Redis Stream.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use world::{Redis, Script, Step, Worker};

use crate::harness::Harness;

const AT: &str = "2026-11-24T04:05:56Z";
const STEP: &str = "[2/2] RUN make";

/// What XREAD returns: streams, with ids and fields of their entries.
type Streams = Vec<(String, Vec<(String, HashMap<String, String>)>)>;

/// An entry: its id and its records.
type Entry = (String, Vec<Value>);

fn event(event: &Value) -> Step {
    Step::Stderr(format!("{event}\n"))
}

fn vertex(more: Value) -> Step {
    let mut vertex = json!({"digest": "sha256:a", "name": STEP, "started": AT});
    vertex.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    event(&json!({"vertexes": [vertex]}))
}

fn prints(text: &str) -> Step {
    let data = BASE64_STANDARD.encode(text);
    event(&json!({"logs": [{"vertex": "sha256:a", "stream": 1, "data": data, "timestamp": AT}]}))
}

/// A build with one step that does this.
fn step_of(does: Vec<Step>) -> Script {
    Script::steps([vec![vertex(json!({}))], does, vec![vertex(json!({"completed": AT})), Step::Exit(0)]].concat())
}

/// A build of many steps, one after the other, each with thousands of lines.
fn many_long_steps(n_steps: usize) -> Script {
    let line = "x".repeat(90) + "\n";
    let data = BASE64_STANDARD.encode(line.repeat(100));
    let step = |n: usize| {
        let digest = format!("sha256:{n}");
        let vertex = |completed| json!({"vertexes": [{"digest": digest, "name": format!("[{n}/{n_steps}] RUN make"), "started": AT, "completed": completed}]});
        let log = json!({"logs": [{"vertex": digest, "stream": 1, "data": data, "timestamp": AT}]});
        [vec![event(&vertex(None))], vec![event(&log); 50], vec![event(&vertex(Some(AT))), Step::WaitMs(20)]].concat()
    };
    Script::steps((0..n_steps).flat_map(step).chain([Step::Exit(0)]).collect())
}

/// Output of numbered lines, in events of a thousand.
fn numbered(n_lines: usize) -> Vec<Step> {
    let thousand =
        |first: usize| prints(&(first..n_lines.min(first + 1000)).map(|n| format!("line {n}\n")).collect::<String>());
    (0..n_lines).step_by(1000).map(thousand).collect()
}

/// The entries after an id, as a reader gets them with XREAD.
async fn read(redis: &Redis, key: &str, after: &str) -> Vec<Entry> {
    let mut connection = redis.connection().await;
    let reply: Option<Streams> =
        redis::cmd("XREAD").arg(&["COUNT", "10000", "STREAMS", key, after]).query_async(&mut connection).await.unwrap();
    let entries = reply.into_iter().flatten().flat_map(|(_, entries)| entries);
    entries.map(|(id, fields)| (id, serde_json::from_str(&fields["records"]).unwrap())).collect()
}

async fn records(redis: &Redis, key: &str) -> Vec<Value> {
    read(redis, key, "0").await.into_iter().flat_map(|(_, records)| records).collect()
}

/// Every line of output, in order.
fn lines<'a>(records: impl IntoIterator<Item = &'a Value>) -> Vec<&'a str> {
    let output = records.into_iter().filter(|record| record["type"] == "output");
    output.flat_map(|record| record["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap())).collect()
}

fn of_type<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["type"] == kind).collect()
}

fn n_missing(records: &[Value]) -> u64 {
    let left_out = of_type(records, "missing").into_iter().chain(of_type(records, "left_out"));
    left_out.map(|record| record["lines"].as_u64().unwrap()).sum()
}

/// Pushes a build of the voting app. Returns the key of its stream.
async fn push(harness: &Harness) -> String {
    let (_, sha) = harness.voting_app();
    let mut native = harness.native(&sha);
    native["build_id"] = json!(42);
    harness.redis.push("default", "BuildJob", json!([native])).await;
    "sidebake:build:42:events".into()
}

/// Waits until the stream has the end of the build.
async fn wait_for_end(harness: &Harness, redis: &Redis, key: &str) -> Vec<Value> {
    let has_end =
        async || records(redis, key).await.iter().any(|record| record["type"] == "end" && record["is_over"] == true);
    harness.until("the stream has its end", has_end).await;
    records(redis, key).await
}

async fn run(redis: &Redis, command: &[&str]) -> Value {
    let mut call = redis::cmd(command[0]);
    let reply: redis::Value = call.arg(&command[1..]).query_async(&mut redis.connection().await).await.unwrap();
    match reply {
        redis::Value::Int(number) => json!(number),
        _ => Value::Null,
    }
}

async fn succeeds(harness: &Harness) {
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["status"], "succeeded", "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_resumes_at_any_entry_gets_each_line_once_and_in_order() {
    let harness = Harness::start();
    let line = |n: usize| vec![prints(&format!("line {n}\n")), Step::WaitMs(40)];
    harness.builder.script(step_of([(0..40).flat_map(line).collect(), vec![Step::Hold]].concat()));
    let _worker = harness.worker("");
    let key = push(&harness).await;
    let expected: Vec<String> = (0..40).map(|n| format!("line {n}")).collect();
    harness
        .until("the lines are there before the step ends", async || {
            lines(&records(&harness.redis, &key).await) == expected
        })
        .await;
    harness.builder.release();
    wait_for_end(&harness, &harness.redis, &key).await;
    let all = read(&harness.redis, &key, "0").await;
    assert!(all.len() > 8, "a batch lasts 150 ms, and all took two seconds: {all:#?}");
    for (n_read, (id, _)) in all.iter().enumerate() {
        let rest = read(&harness.redis, &key, id).await;
        let resumed = all[..=n_read].iter().chain(&rest).flat_map(|(_, records)| records);
        assert_eq!(lines(resumed), expected, "after {id}");
    }
    let records = records(&harness.redis, &key).await;
    assert_eq!((&records[0]["type"], &records[0]["number"]), (&json!("attempt"), &json!(1)));
    let kinds: Vec<&str> = records.iter().map(|record| record["type"].as_str().unwrap()).collect();
    for kind in ["commit", "phase", "phase_end", "targets", "placed", "step", "output", "step_end", "target_end", "end"]
    {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }
    assert_eq!(of_type(&records, "output")[0]["step"], STEP);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_a_hundred_thousand_lines_keeps_its_beginning_and_its_end() {
    let harness = Harness::start();
    harness.builder.script(step_of(numbered(100_000)));
    let _worker = harness.worker("journal.build_bytes = 300000");
    let key = push(&harness).await;
    let records = wait_for_end(&harness, &harness.redis, &key).await;
    let lines = lines(&records);
    assert_eq!((lines[0], lines[1], lines[lines.len() - 1]), ("line 0", "line 1", "line 99999"));
    assert_eq!((of_type(&records, "missing").len(), n_missing(&records)), (1, 100_000 - lines.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_many_long_steps_stays_within_its_bound() {
    let harness = Harness::start();
    harness.builder.script(many_long_steps(60));
    let _worker = harness.worker("journal.build_bytes = 1000000");
    let key = push(&harness).await;
    let records = wait_for_end(&harness, &harness.redis, &key).await;
    assert_eq!(lines(&records).len() as u64 + n_missing(&records), 60 * 5000);
    let bytes = run(&harness.redis, &["MEMORY", "USAGE", &key, "SAMPLES", "0"]).await.as_u64().unwrap();
    assert!((500_000..=1_250_000).contains(&bytes), "the stream takes {bytes} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_expires_after_its_build_and_also_without_a_worker() {
    let harness = Harness::start();
    harness.builder.script(step_of(vec![prints("a line\n"), Step::Hold]));
    let worker = harness.worker("journal.ttl = \"90s\"");
    let key = push(&harness).await;
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    let ttl_s = run(&harness.redis, &["TTL", &key]).await.as_i64().unwrap();
    assert!((80_000..=86_400).contains(&ttl_s), "{ttl_s}");
    harness.builder.release();
    wait_for_end(&harness, &harness.redis, &key).await;
    let ttl_s = run(&harness.redis, &["TTL", &key]).await.as_i64().unwrap();
    assert!((30..=90).contains(&ttl_s), "{ttl_s}");
    for key in harness.redis.keys("sidebake:build:*:log").await {
        assert_eq!(harness.redis.get(&key).await.as_deref(), Some("42"), "{key}");
        let ttl_s = run(&harness.redis, &["TTL", &key]).await.as_i64().unwrap();
        assert!((1_200_000..=1_209_600).contains(&ttl_s), "{ttl_s}");
    }
    assert_eq!(worker.logged("log_stream_not_written").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_step_shows_its_progress_and_each_of_its_lines_once() {
    let harness = Harness::start();
    let slowly = (0..4).flat_map(|_| [numbered(1000), vec![Step::WaitMs(1500)]].concat()).collect();
    harness.builder.script(step_of([numbered(5000), slowly, vec![Step::Hold]].concat()));
    let _worker = harness.worker("journal.step_bytes = 16384");
    let key = push(&harness).await;
    let progress = async || of_type(&records(&harness.redis, &key).await, "progress").len();
    harness.until("the step tells its progress again", async || progress().await >= 2).await;
    let n_shown = lines(&records(&harness.redis, &key).await).len();
    assert!(n_shown < 1000, "{n_shown}");
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        harness.builder.release();
    };
    let ((code, out, err), ()) = tokio::join!(logs(&harness, &["42", "--follow"]), release);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("vote 2/2 | … still printing: "), "{out}");
    let records = wait_for_end(&harness, &harness.redis, &key).await;
    let told: Vec<u64> = of_type(&records, "progress").iter().map(|record| record["lines"].as_u64().unwrap()).collect();
    assert!(told.is_sorted() && told.iter().all(|told| *told <= 9000 - n_shown as u64), "{told:?}");
    let n_lines = lines(&records).len() as u64;
    assert_eq!((n_lines + n_missing(&records), out.matches("vote 2/2 | line ").count() as u64), (9000, n_lines));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attempt_begins_with_a_record_and_only_the_last_is_over() {
    let harness = Harness::start();
    harness.builder.script(step_of(vec![prints("the first\n"), Step::Hang]));
    harness.builder.script(step_of(vec![prints("the second\n")]));
    let mut worker = harness.worker("shutdown.timeout = \"0s\"");
    let key = push(&harness).await;
    harness.until("the line is there", async || lines(&records(&harness.redis, &key).await) == ["the first"]).await;
    worker.terminate().await;
    let _second = harness.worker("");
    let records = wait_for_end(&harness, &harness.redis, &key).await;
    let kinds = ["attempt", "end"].map(|kind| of_type(&records, kind).len());
    assert_eq!((kinds, lines(&records)), ([2, 2], vec!["the first", "the second"]));
    let is_over: Vec<&Value> = of_type(&records, "end").into_iter().map(|end| &end["is_over"]).collect();
    assert_eq!(is_over, [false, true]);
}

/// Takes a right from the worker's user for as long as a build prints. Returns the records after the right came back.
async fn records_after_refusal(harness: &Harness, n_lines: usize) -> (Vec<Value>, Worker) {
    harness.builder.script(step_of([numbered(n_lines), vec![Step::Hold]].concat()));
    run(&harness.redis, &["ACL", "SETUSER", "narrow", "on", ">secret", "~*", "&*", "+@all", "-xadd"]).await;
    let url = harness.redis.url().replace("redis://", "redis://narrow:secret@");
    let config = harness.config("journal.pending_bytes = 65536");
    let worker = harness.worker_with_variables(&config, &[], &[("SIDEBAKE__REDIS__URL", url)]);
    let key = push(harness).await;
    harness.until("a write is refused", async || !worker.logged("log_stream_not_written").is_empty()).await;
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    assert!(harness.redis.keys("sidebake:build:*").await.is_empty(), "all or nothing is written");
    harness.builder.release();
    succeeds(harness).await;
    run(&harness.redis, &["ACL", "SETUSER", "narrow", "+xadd"]).await;
    (wait_for_end(harness, &harness.redis, &key).await, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_wait_while_redis_refuses_them() {
    let harness = Harness::start();
    let (records, _worker) = records_after_refusal(&harness, 100).await;
    assert_eq!((lines(&records).len(), n_missing(&records)), (100, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_cannot_wait_are_counted() {
    let harness = Harness::start();
    let (records, _worker) = records_after_refusal(&harness, 20_000).await;
    let n_lines = lines(&records).len() as u64;
    assert!(n_lines > 10 && n_lines < 5000, "{n_lines}");
    assert_eq!(n_lines + n_missing(&records), 20_000);
}

/// Runs a build that prints, with a Redis for streams that cannot be used. Returns the worker.
async fn build_with(harness: &Harness, url: &str) -> Worker {
    harness.builder.script(step_of(numbered(20_000)));
    let worker = harness.worker(&format!("journal.redis_url = \"{url}\""));
    let started = Instant::now();
    push(harness).await;
    succeeds(harness).await;
    // A try to write takes up to five seconds, and there would be several.
    assert!(started.elapsed() < Duration::from_secs(60));
    assert!(harness.redis.keys("sidebake:build:*").await.is_empty());
    worker
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redis_for_streams_fails_or_delays_a_build() {
    let full = Redis::start_with(&["--maxmemory", "1"]);
    let frozen = Redis::start();
    frozen.freeze();
    let absent = format!("redis://127.0.0.1:{}/0", world::free_port());
    for url in [full.url(), frozen.url(), absent] {
        let harness = Harness::start();
        let mut worker = build_with(&harness, &url).await;
        harness.until("the failure is logged", async || worker.logged("log_stream_not_written").len() == 1).await;
        let started = Instant::now();
        worker.terminate().await;
        assert!(started.elapsed() < Duration::from_secs(20), "{url}");
    }
    frozen.thaw();
    assert!(full.keys("*").await.is_empty() && frozen.keys("*").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_can_be_on_another_redis() {
    let (harness, other) = (Harness::start(), Redis::start());
    harness.builder.script(step_of(vec![prints("a line\n")]));
    let _worker = harness.worker(&format!("journal.redis_url = \"{}\"", other.url()));
    let key = push(&harness).await;
    let records = wait_for_end(&harness, &other, &key).await;
    assert_eq!(lines(&records), ["a line"]);
    assert!(harness.redis.keys("sidebake:build:*").await.is_empty());
}

/// Runs `sidebake logs` while the test goes on.
async fn logs(harness: &Harness, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = crate::harness::sidebake();
    command.arg("logs").args(arguments).arg("--config").arg(harness.config("journal.ttl = \"90s\""));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_follows_a_build_from_its_queue_to_its_end() {
    let harness = Harness::start();
    let line = |n: usize| vec![prints(&format!("line {n}\n")), Step::WaitMs(100)];
    harness.builder.script(step_of((0..10).flat_map(line).collect()));
    push(&harness).await;
    let (code, out, err) = logs(&harness, &["42"]).await;
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("build 42 has no log yet; it is queued on default"), "{err}");
    let start = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        harness.worker("")
    };
    let ((code, out, err), _worker) = tokio::join!(logs(&harness, &["42", "--follow"]), start);
    let printed: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("vote 2/2 | line ")).collect();
    assert_eq!((code, printed), (Some(0), vec!["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]), "{out}{err}");
    assert_eq!(out.lines().last(), Some("build | succeeded"));
    for needed in
        ["build | attempt 1 of job ", "build | acme/voting-app at ", "vote 2/2 | [2/2] RUN make", "vote | succeeded"]
    {
        assert!(out.contains(needed), "{needed} is not in {out}");
    }

    let jid = harness.redis.keys("sidebake:build:*:log").await.into_iter().find(|key| !key.contains(":42:")).unwrap();
    let (code, by_jid, _) = logs(&harness, &[jid.split(':').nth(2).unwrap()]).await;
    assert_eq!((code, by_jid), (Some(0), out));
    let (code, out, _) = logs(&harness, &["42", "--json", "--target", "vote"]).await;
    let records: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(code == Some(0) && !records.is_empty(), "{out}");
    assert!(records.iter().all(|record| record["id"].as_str().unwrap().contains('-')));
    assert_eq!(
        (lines(&records).len(), of_type(&records, "target_end").len(), of_type(&records, "phase").len()),
        (10, 1, 0)
    );
    let (code, out, err) = logs(&harness, &["42", "--target", "web"]).await;
    assert!(
        code == Some(1) && out.is_empty() && err.contains("build 42 has no target web; its targets: vote"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_tells_unknown_expired_deleted_and_trimmed_logs_apart() {
    let harness = Harness::start();
    let (code, _, err) = logs(&harness, &["42", "--follow"]).await;
    assert!(code == Some(2) && err.contains("no build 42 is known"), "{code:?} {err}");

    let line = |n: usize| vec![prints(&format!("line {n}\n")), Step::WaitMs(200)];
    harness.builder.script(step_of([(0..5).flat_map(line).collect(), vec![Step::Hold]].concat()));
    let _worker = harness.worker("");
    let key = push(&harness).await;
    harness.until("the lines are there", async || lines(&records(&harness.redis, &key).await).len() == 5).await;
    let delete = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        run(&harness.redis, &["DEL", &key]).await;
    };
    let ((code, out, err), ()) = tokio::join!(logs(&harness, &["42", "--follow"]), delete);
    assert!(code == Some(4) && out.contains("line 4"), "{code:?} {out}");
    assert!(err.contains("the log of build 42 was deleted while it was read"), "{err}");

    harness.builder.release();
    wait_for_end(&harness, &harness.redis, &key).await;
    let (code, out, err) = logs(&harness, &["42", "--follow"]).await;
    assert!(code == Some(4) && out.ends_with("build | succeeded\n"), "{code:?} {out}");
    assert!(err.contains("entries of the log of build 42 were removed before they were read"), "{err}");

    run(&harness.redis, &["PEXPIRE", &key, "0"]).await;
    let (code, out, err) = logs(&harness, &["42"]).await;
    assert!(code == Some(3) && out.is_empty(), "{code:?} {out}");
    assert!(err.contains("the log of build 42 has expired; journal.ttl is 1m 30s"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_without_the_setting() {
    let harness = Harness::start();
    harness.builder.script(step_of(vec![prints("a line\n")]));
    let mut worker = harness.worker("journal.stream = false");
    push(&harness).await;
    succeeds(&harness).await;
    worker.terminate().await;
    assert!(harness.redis.keys("sidebake:build:*").await.is_empty());
}
