//! Checks that Sidekiq's own API and Web UI (6.4, 7.3, 8.1) can show what sidebake makes of any text on a queue.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::Value;
use sidebake::json;
use world::Redis;

use crate::peer::{self, Watched};

/// Generated texts. Every run generates the same ones.
const N_GENERATED: usize = 2000;

/// Text that is markup wherever it appears unescaped: in a page, and in an attribute.
const MARKUP: [&str; 2] = [r#""<script>alert(1)</script>""#, r#""x'onx=1 \"onx=2""#];

/// Fields that some page shows, and some that no page shows.
const FIELDS: [&str; 26] = [
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
    "<script>alert(1)</script>",
    "'onx=",
];

/// Values, as JSON.
const CLASSES: [&str; 10] = [
    "\"BuildJob\"",
    "\"EchoJob\"",
    "\"Sidebake::Probe\"",
    "\"MailJob\"",
    MARKUP[0],
    MARKUP[1],
    "\"ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper\"",
    "\"Sidekiq::ActiveJob::Wrapper\"",
    "\"Sidekiq::Extensions::DelayedMailer\"",
    "\"Sidekiq::Extensions::DelayedModel\"",
];

/// Classes in a wrapper, as JSON.
const WRAPPED: [&str; 7] = [
    "\"BuildJob\"",
    "\"MailJob\"",
    "\"ActionMailer::MailDeliveryJob\"",
    "\"ActionMailer::DeliveryJob\"",
    MARKUP[0],
    "42",
    "null",
];

/// A Redis with unusual texts, and the worker that fetches them.
struct Counter(Watched);

impl Counter {
    fn open(redis: Redis) -> Self {
        // What waits in the sets stays there.
        let more = r#"
jobs.poll_others = "none"
concurrency = 20
queues = ["default"]
jobs.classes.BuildJob = {}
jobs.classes.EchoJob = { arguments = "mapped", map = { sha = "/0/sha" }, echo = { whole = "/0", name = "/0/name" }, constants = { "callback.class" = "Done", "callback.queue" = "callbacks" } }
"#;
        Self(Watched::start(redis, more))
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        self.0.home.until(what, is_so).await;
    }

    /// Waits until only the sleeping job is in flight.
    async fn idle(&self) {
        self.until("no other job is queued or in flight", async || {
            let mut n_in_flight = 0;
            for key in self.0.redis.keys("sidebake:inflight:*").await {
                let mut connection = self.0.redis.connection().await;
                n_in_flight += redis::cmd("HLEN").arg(key).query_async::<usize>(&mut connection).await.unwrap();
            }
            n_in_flight <= 1 && self.0.redis.queue("default").await.is_empty()
        })
        .await;
    }

    /// The originals of all malformed entries in the dead set.
    async fn malformed(&self) -> Vec<String> {
        let dead = self.0.redis.sorted_set("dead").await.into_iter().map(|(entry, _)| entry);
        // Other entries have numbers that not every parser reads.
        let malformed = dead.filter(|entry| json::pointer(entry, "/class") == Some("\"Sidebake::Malformed\""));
        let mut originals: Vec<String> =
            malformed.map(|entry| json::pointer(&entry, "/args").unwrap().into()).collect();
        originals.sort();
        originals
    }
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

/// A value alone, and in every other position.
fn around(value: &str) -> [String; 4] {
    [value.into(), format!("[{value}]"), format!(r#"{{"a":{value}}}"#), format!("{{{value}:1}}")]
}

/// Jobs with markup in every field, which go to the retry set.
fn marked() -> Vec<Vec<u8>> {
    let values: Vec<String> = MARKUP.into_iter().flat_map(around).collect();
    let jobs = FIELDS.iter().flat_map(|field| {
        values
            .iter()
            .map(move |value| format!(r#"{{"class":"MailJob","args":[{value}],"{field}":{value}}}"#).into_bytes())
    });
    jobs.collect()
}

/// Each of the arguments, in each class that Sidekiq displays differently.
fn unwrapped() -> Vec<Vec<u8>> {
    let outer = CLASSES.into_iter().filter(|class| class.contains("::"));
    let jobs = outer.flat_map(|class| {
        WRAPPED.into_iter().flat_map(move |wrapped| {
            let texts = odd_args().into_iter().filter(|args| args.contains("arguments"));
            texts.map(move |args| format!(r#"{{"class":{class},"wrapped":{wrapped},"args":{args}}}"#).into_bytes())
        })
    });
    jobs.collect()
}

/// Values of various fields, as JSON text that every parser reads.
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
    values.extend(MARKUP.into_iter().flat_map(around));
    values.extend([nested(98), "9".repeat(400), format!("0.{}", "1".repeat(400))]);
    values
}

/// The same and a few that some parser refuses, with the whole text.
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
        r#"[{"job_class":"MailJob","arguments":["M","m","deliver_now",{"_aj_globalid":"gid://app/User/1"}]}]"#.into(),
        r#"[{"job_class":"MailJob","arguments":["M","m","deliver_now",{"params":7,"args":{"_aj_globalid":"x"}}]}]"#
            .into(),
        r#"[{"job_class":"MailJob","arguments":["M","m","deliver_now",{"_aj_serialized":"X","value":1}]}]"#.into(),
        r#"[{"job_class":"MailJob","arguments":["<script>alert(1)</script>",["<script>alert(1)</script>"]]}]"#.into(),
        r#"[{"job_class":"BuildJob","arguments":[{"_aj_globalid":"x"},["<script>alert(1)</script>"]]}]"#.into(),
        r#"["--- [!binary \"/+4=\", m, [1]]"]"#.into(),
        r#"["--- [<script>alert(1)</script>, m, [1]]"]"#.into(),
        format!("[\"{}\"]", nested(20_000)),
        r#"["M"]"#.into(),
    ];
    args.extend(odd_values());
    args
}

/// Texts that do not need a generator.
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

/// A job with unusual fields, or a part of one.
fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let fields = proptest::sample::subsequence(&FIELDS[..], 0..7);
    let values = proptest::collection::vec(any_value(), 7);
    let args = prop_oneof![4 => Just("[1]".to_owned()), 3 => proptest::sample::select(odd_args()), 1 => any_value()];
    let job = (
        // A job of an unknown class goes to the retry set with all its fields.
        prop_oneof![1 => Just("\"MailJob\""), 2 => proptest::sample::select(&CLASSES[..])],
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

/// A job that runs as long as the test, with fields that no page of Sidekiq expects.
const RUNNING: &str = r#"{"class":"Sidebake::Probe","args":[{"outcome":"succeed","sleep_s":3600}],"jid":42,"tags":"x",
    "created_at":"yesterday","enqueued_at":{},"cattr":7,"wrapped":[],"error_backtrace":1,"encrypt":true,
    "display_class":"<script>alert(1)</script>","bid":"<script>alert(1)</script>","locale":"<script>alert(1)</script>"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn sidekiq_6_7_and_8_can_show_the_outcome_of_any_text() {
    let redis = Redis::start();
    let texts: Vec<Vec<u8>> = [listed(), marked(), unwrapped(), generated()].concat();
    redis.push_raw("default", RUNNING).await;
    let mut connection = redis.connection().await;
    for (i, text) in texts.iter().enumerate() {
        redis.push_raw("default", text).await;
        // The same from the schedule: the poller moves them to a queue without a worker.
        let parked = String::from_utf8_lossy(text).replacen('{', "{\"queue\":\"parked\",", 1);
        if i % 4 == 0 && parked.starts_with('{') {
            redis::cmd("ZADD").arg("schedule").arg(1 + i).arg(parked).exec_async(&mut connection).await.unwrap();
        }
    }
    let counter = Counter::open(redis);
    counter.idle().await;
    counter.until("the poller moves the due jobs", async || !counter.0.redis.queue("parked").await.is_empty()).await;
    counter
        .until("the heartbeat shows the running job", async || !counter.0.redis.keys("*:work").await.is_empty())
        .await;
    // The poller leaves entries in the schedule that are not jobs of this worker unchanged.
    redis::cmd("DEL").arg("schedule").exec_async(&mut connection).await.unwrap();
    // No retry becomes due while Ruby reads: its page would be gone.
    let later =
        "for _, job in ipairs(redis.call('ZRANGE', 'retry', 0, -1)) do redis.call('ZINCRBY', 'retry', 3600, job) end";
    redis::cmd("EVAL").arg(later).arg(0).exec_async(&mut connection).await.unwrap();

    for (peer, version) in peer::ALL {
        let seen: Value = serde_json::from_slice(&counter.0.ruby(peer, "shown.rb", &[])).unwrap();
        assert!(seen["version"].as_str().unwrap().starts_with(version), "{}", seen["version"]);
        assert_eq!(seen["n_failures"], 0, "Sidekiq {version}: {seen:#}");
        let counts = &seen["counts"];
        let n = |place: &str| counts[place].as_u64().unwrap_or(0);
        assert!(n("dead") > 100 && n("retry") > 100 && n("queue:callbacks") > 10, "{counts:#}");
        assert!(n("queue:parked") > 10 && n("work") == 1, "{counts:#}");
    }

    // "Retry now" removes the envelope. The content is as malformed as before, and none of it is lost.
    let before = counter.malformed().await;
    assert!(before.len() > 50, "{} malformed entries", before.len());
    counter.0.ruby(None, "shown.rb", &["retry"]);
    counter.idle().await;
    let after = counter.malformed().await;
    let short = |args: &String| args.chars().take(300).collect::<String>();
    let lost: Vec<String> = before.iter().filter(|args| !after.contains(args)).map(short).take(5).collect();
    let new: Vec<String> = after.iter().filter(|args| !before.contains(args)).map(short).take(5).collect();
    assert!(after == before, "{} and {} entries; lost: {lost:#?} new: {new:#?}", before.len(), after.len());
}
