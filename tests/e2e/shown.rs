//! Whatever is pushed on a queue, Sidekiq's own API and Web UI (6.4, 7.3, 8.1) can show what sidebake makes of it.

use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::Value;
use sidebake::json;
use world::Redis;

use crate::house::PATIENCE;
use crate::judged::made;

/// Texts that are generated, always the same ones.
const N_GENERATED: usize = 800;

/// A Redis with odd texts and the worker that takes them; killed when it is dropped.
struct Counter {
    redis: Redis,
    worker: Child,
    home: tempfile::TempDir,
}

impl Counter {
    fn open(redis: Redis) -> Self {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("sidebake.toml");
        let text = format!(
            r#"
concurrency = 20
queues = ["default"]
redis.url = "{}"
state.directory = "{}/state"
jobs.probe = true
jobs.poll_interval = "200ms"
jobs.classes.BuildJob = {{}}
jobs.classes.EchoJob = {{ arguments = "mapped", map = {{ sha = "/0/sha" }}, echo = {{ whole = "/0", name = "/0/name" }}, constants = {{ "callback.class" = "Done", "callback.queue" = "callbacks" }} }}
"#,
            redis.url(),
            home.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(home.path().join("log")).unwrap();
        let mut run = Command::new(env!("CARGO_BIN_EXE_sidebake"));
        run.args(["run", "-C"]).arg(config).env_remove("REDIS_URL").env_remove("REDIS_PROVIDER");
        let worker = run.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        Self { redis, worker, home }
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let since = std::time::Instant::now();
        while !is_so().await {
            let log = || std::fs::read_to_string(self.home.path().join("log")).unwrap();
            assert!(since.elapsed() < PATIENCE, "waited in vain until {what}; the log says:\n{}", log());
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    /// Waits until only the job that sleeps is in flight.
    async fn idle(&self) {
        self.until("nothing is queued or in flight", async || {
            let mut n_in_flight = 0;
            for key in self.redis.keys("sidebake:inflight:*").await {
                let mut connection = self.redis.connection().await;
                n_in_flight += redis::cmd("HLEN").arg(key).query_async::<usize>(&mut connection).await.unwrap();
            }
            n_in_flight <= 1 && self.redis.queue("default").await.is_empty()
        })
        .await;
    }

    /// The originals of all malformed entries of the dead set.
    async fn malformed(&self) -> Vec<String> {
        let dead = self.redis.sorted_set("dead").await.into_iter().map(|(entry, _)| entry);
        // Others have numbers that not every parser reads.
        let malformed = dead.filter(|entry| json::pointer(entry, "/class") == Some("\"Sidebake::Malformed\""));
        let mut originals: Vec<String> =
            malformed.map(|entry| json::pointer(&entry, "/args").unwrap().into()).collect();
        originals.sort();
        originals
    }

    fn ruby(&self, peer: Option<&str>, arguments: &[&str]) -> Vec<u8> {
        let ruby = peer.map_or_else(|| "ruby".to_owned(), made);
        let output = Command::new(&ruby)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/ruby/shown.rb"))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("REDIS_URL", self.redis.url())
            .env("LANG", "C.UTF-8")
            .env_remove("REDIS_PROVIDER")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot run {ruby} ({error}); get it: docker/install"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.worker.kill();
        let _ = self.worker.wait();
    }
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

/// Values that some field has somewhere, as JSON text that every parser reads.
fn odd_values() -> Vec<String> {
    let mut values: Vec<String> = [
        "null",
        "true",
        "false",
        "0",
        "-1",
        "42",
        "1.5",
        "1e400",
        "-1e400",
        "1e13",
        "1795491695123",
        "1795491695.5",
        r#""""#,
        r#""x""#,
        r#""a\nb""#,
        r#""\u0000""#,
        r#""\ud83d\ude00""#,
        r#""<b>&amp;""#,
        "[]",
        "[1]",
        r#"[null,"a",[2],{"b":3}]"#,
        "{}",
        r#"{"a":1}"#,
        r#""eJyLVkpUitUBAAb3AfU=""#,
        r#"["a line"]"#,
    ]
    .map(str::to_owned)
    .into();
    values.extend([nested(98), "9".repeat(400), format!("0.{}", "1".repeat(400))]);
    values
}

/// Those and a few that some parser refuses, with the whole text.
fn any_value() -> impl Strategy<Value = String> {
    let refused = [r#""\ud800""#, r#"{"a":1,"a":2}"#, r#"{"\udc00":1}"#].map(str::to_owned);
    let refused: Vec<String> = refused.into_iter().chain([nested(101), nested(10_000)]).collect();
    prop_oneof![30 => proptest::sample::select(odd_values()), 1 => proptest::sample::select(refused)]
}

/// Arguments of all kinds, as JSON text.
fn odd_args() -> Vec<String> {
    let native = |callback: &str| {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        format!(r#"{{"repository":"acme/app","sha":"{sha}","build_id":"b","definition":{{}}{callback}}}"#)
    };
    let callback = r#","callback":{"class":"Done","queue":"callbacks"}"#;
    let mut args = vec![
        format!("[{}]", native("")),
        format!("[{}]", native(callback)),
        format!("[{},2]", native(callback)),
        format!("[{}]", native(callback).replace("{}", &nested(130))),
        format!("[{}]", native(callback).replace("acme/app", "a\\u0000b")),
        format!(
            "[{}]",
            native(r#","callback":{"class":"ActionMailer::MailDeliveryJob","queue":"callbacks","active_job":true}"#)
        ),
        format!("[{}]", native(r#","callback":{"class":"Done","queue":"","on":["finished"]}"#)),
        format!("[{}]", native(r#","callback":{"class":"Done","queue":"callbacks","active_job":true},"timeout_s":0"#)),
        r#"[{"job_class":"BuildJob","arguments":[]}]"#.into(),
        format!(r#"[{{"job_class":"BuildJob","arguments":[{},{{"_aj_symbol_keys":[]}}]}}]"#, native(callback)),
        r#"[{"job_class":"BuildJob","arguments":null}]"#.into(),
        r#"[{"job_class":"MailJob","arguments":["M","m","deliver_now",{"args":[]}]}]"#.into(),
        r#"[{"job_class":"MailJob","arguments":["M"]}]"#.into(),
        r#"["M"]"#.into(),
    ];
    args.extend(odd_values());
    args
}

/// Texts that need no generator.
fn listed() -> Vec<Vec<u8>> {
    let mut texts: Vec<Vec<u8>> = [
        "null",
        "42",
        "[1,2,3]",
        "\"x\"",
        "",
        " ",
        "{",
        "{}",
        "NaN",
        "not JSON",
        "\0",
        "\u{feff}{}",
        r#"{"args":[]}"#,
        r#"{"class":42,"args":[]}"#,
        r#"{"class":"","args":[]}"#,
        r#"{"class":null}"#,
        r#"{"class":"BuildJob"}"#,
        r#"{"class":"BuildJob","class":"MailJob","args":[1]}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    texts.extend([
        b"\xff\xfe".to_vec(),
        b"{\"class\":\"MailJob\",\"args\":[\"\xff\xfe\"],\"tags\":[\"\xff\"]}".to_vec(),
    ]);
    texts.extend([nested(10_000), nested(100_000)].map(String::into_bytes));
    let long = "x".repeat(3_000_000);
    texts.extend([long.clone(), format!(r#"{{"class":"MailJob","args":["{long}"]}}"#)].map(String::into_bytes));
    texts.push(format!(r#"{{"class":"BuildJob","args":["{long}"],"jid":"long"}}"#).into_bytes());
    texts.push(format!(r#"{{"class":"MailJob","args":[{}]}}"#, "9".repeat(400)).into_bytes());
    texts.push([&[0xff; 100_000][..], b"\xc3"].concat());
    texts
}

/// A job with odd fields, or what is left of one.
fn any_text() -> impl Strategy<Value = Vec<u8>> {
    const CLASSES: [&str; 8] = [
        "\"BuildJob\"",
        "\"EchoJob\"",
        "\"Sidebake::Probe\"",
        "\"MailJob\"",
        "\"<i>\"",
        "\"ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper\"",
        "\"Sidekiq::ActiveJob::Wrapper\"",
        "\"Sidekiq::Extensions::DelayedMailer\"",
    ];
    const WRAPPED: [&str; 6] = [
        "\"BuildJob\"",
        "\"MailJob\"",
        "\"ActionMailer::MailDeliveryJob\"",
        "\"ActionMailer::DeliveryJob\"",
        "42",
        "null",
    ];
    const FIELDS: [&str; 24] = [
        "jid",
        "queue",
        "retry_queue",
        "retry",
        "retry_for",
        "retry_count",
        "tags",
        "cattr",
        "display_class",
        "encrypt",
        "bid",
        "error_message",
        "error_class",
        "error_backtrace",
        "backtrace",
        "failed_at",
        "retried_at",
        "created_at",
        "enqueued_at",
        "at",
        "locale",
        "sidebake_set_aside",
        "sidebake_original",
        "unknown",
    ];
    let fields = proptest::sample::subsequence(&FIELDS[..], 0..7);
    let values = proptest::collection::vec(any_value(), 7);
    let args = prop_oneof![2 => Just("[1]".to_owned()), 3 => proptest::sample::select(odd_args()), 1 => any_value()];
    let job = (
        proptest::sample::select(&CLASSES[..]),
        proptest::option::of(proptest::sample::select(&WRAPPED[..])),
        args,
        fields,
        values,
        any::<u32>(),
    );
    let job = job.prop_map(|(class, wrapped, args, fields, values, n)| {
        let mut text = format!(r#"{{"class":{class},"args":{args},"n":{n}"#);
        text.extend(wrapped.map(|wrapped| format!(r#","wrapped":{wrapped}"#)));
        text.extend(fields.iter().zip(values).map(|(field, value)| format!(r#","{field}":{value}"#)));
        (text + "}").into_bytes()
    });
    let job = job.boxed();
    prop_oneof![
        8 => job.clone(),
        1 => (job.clone(), any::<prop::sample::Index>()).prop_map(|(job, at)| job[..at.index(job.len())].to_vec()),
        1 => (job, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut job, at, byte)| {
            let at = at.index(job.len());
            job[at] = byte;
            job
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..80),
    ]
}

fn generated() -> Vec<Vec<u8>> {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[21; 32]));
    let strategy = any_text();
    (0..N_GENERATED).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Runs for as long as the test does, with fields that no page of Sidekiq's expects.
const RUNNING: &str = r#"{"class":"Sidebake::Probe","args":[{"outcome":"succeed","sleep_s":3600}],"jid":42,"tags":"x",
    "created_at":"yesterday","enqueued_at":{},"cattr":7,"wrapped":[],"error_backtrace":1,"encrypt":true}"#;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_pushed_sidekiq_6_7_and_8_can_show_what_becomes_of_it() {
    let redis = Redis::start();
    let texts: Vec<Vec<u8>> = listed().into_iter().chain(generated()).collect();
    redis.push_raw("default", RUNNING).await;
    let mut connection = redis.connection().await;
    for (i, text) in texts.iter().enumerate() {
        redis.push_raw("default", text).await;
        // The same from the schedule, by the poller, to a queue without a worker.
        let parked = String::from_utf8_lossy(text).replacen('{', "{\"queue\":\"parked\",", 1);
        if i % 4 == 0 && parked.starts_with('{') {
            redis::cmd("ZADD").arg("schedule").arg(1 + i).arg(parked).exec_async(&mut connection).await.unwrap();
        }
    }
    let counter = Counter::open(redis);
    counter.idle().await;
    counter.until("the poller has moved what is due", async || !counter.redis.queue("parked").await.is_empty()).await;
    counter.until("the heartbeat shows what runs", async || !counter.redis.keys("*:work").await.is_empty()).await;
    // What others pushed into the schedule, and is not a job of this worker's, stays as they pushed it.
    redis::cmd("DEL").arg("schedule").exec_async(&mut connection).await.unwrap();

    for (peer, version) in [(None, "6.4"), (Some("sidekiq-7"), "7.3"), (Some("sidekiq-8"), "8.1")] {
        let seen: Value = serde_json::from_slice(&counter.ruby(peer, &[])).unwrap();
        assert!(seen["version"].as_str().unwrap().starts_with(version), "{}", seen["version"]);
        assert_eq!(seen["n_failures"], 0, "Sidekiq {version}: {seen:#}");
        let counts = &seen["counts"];
        let n = |place: &str| counts[place].as_u64().unwrap_or(0);
        assert!(n("dead") > 100 && n("retry") > 100 && n("queue:callbacks") > 10, "{counts:#}");
        assert!(n("queue:parked") > 10 && n("work") == 1, "{counts:#}");
    }

    // "Retry now" opens the envelope; what is in it is as malformed as it was, and nothing of it is lost.
    let before = counter.malformed().await;
    assert!(before.len() > 50, "{} malformed entries", before.len());
    counter.ruby(None, &["retry"]);
    counter.idle().await;
    assert!(counter.malformed().await == before, "an entry has changed on its way");
}
