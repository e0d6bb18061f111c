//! Bad input gets a clear message that names the cause. No job is lost, and the worker keeps running.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use world::{Answer, Script};

use crate::harness::{Harness, sidebake, text};

/// Enqueues a job, waits for its report, and checks that the worker then builds another one.
async fn report_of(harness: &Harness, native: Value, more: &str) -> Value {
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker(more);
    let report = harness.callbacks(1).await.remove(0);
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    harness.redis.push("default", "Sidebake::Probe", json!([{"outcome": "succeed"}])).await;
    harness.idle().await;
    report
}

const PROBE: &str = "jobs.probe = true";

/// The text in an entry of the class `Sidebake::Malformed`, or any other entry itself.
fn opened(member: &[u8]) -> Vec<u8> {
    let entry: Value = serde_json::from_slice(member).unwrap_or_default();
    if entry["class"] != "Sidebake::Malformed" {
        return member.to_vec();
    }
    match &entry["args"] {
        Value::Array(args) if args.len() == 1 => args[0].as_str().unwrap().as_bytes().to_vec(),
        args => BASE64_STANDARD.decode(args[1].as_str().unwrap()).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_not_a_job_go_to_the_dead_set_in_an_entry_that_sidekiq_can_show() {
    let harness = Harness::start();
    let texts: [&[u8]; 6] = [b"{", b"[1]", b"42", b"", b"\xff\xfe", br#"{"args":[]}"#];
    for text in texts {
        harness.redis.push_raw("default", text).await;
    }
    let _worker = harness.worker("");
    harness
        .until("all texts are in the dead set", async || {
            harness.redis.keys("dead").await.len() == 1 && n_dead(&harness).await == 6
        })
        .await;
    let logged = harness.logged("malformed_job");
    assert!(logged.iter().all(|line| line.contains("queue=\"default\" error=")), "{logged:?}");
    assert_eq!(logged.len(), 6, "{logged:?}");
    assert_eq!(harness.redis.get("stat:processed").await, None);
    let mut originals: Vec<Vec<u8>> = kept(&harness).await.iter().map(|member| opened(member)).collect();
    originals.sort();
    let mut expected = texts.map(<[u8]>::to_vec);
    expected.sort();
    assert_eq!(originals, expected);
}

async fn n_dead(harness: &Harness) -> usize {
    let count: usize =
        redis::cmd("ZCARD").arg("dead").query_async(&mut harness.redis.connection().await).await.unwrap();
    count
}

/// Every member of the dead and the retry set.
async fn kept(harness: &Harness) -> Vec<Vec<u8>> {
    let mut connection = harness.redis.connection().await;
    let mut all = Vec::new();
    for set in ["dead", "retry"] {
        let members: Vec<Vec<u8>> =
            redis::cmd("ZRANGE").arg(set).arg(0).arg(-1).query_async(&mut connection).await.unwrap();
        all.extend(members);
    }
    all
}

/// Whether Sidekiq's own rules let a failed job vanish: `retry: false`, or `dead: false`.
fn may_vanish(text: &[u8]) -> bool {
    let job: Value = serde_json::from_slice(text).unwrap_or_default();
    job["retry"] == json!(false) || job["dead"] == json!(false)
}

/// Whether a set has the text unchanged, a job with its jid, or a job of its class with its arguments.
fn is_kept(text: &[u8], kept: &[Vec<u8>]) -> bool {
    // Replaces bytes that are not UTF-8, because Ruby's parser accepts them.
    let text = &*String::from_utf8_lossy(text);
    let job: Value = serde_json::from_str(text).unwrap_or_default();
    kept.iter().any(|member| {
        let member = opened(member);
        let member = &*String::from_utf8_lossy(&member);
        let other: Value = serde_json::from_str(member).unwrap_or_default();
        let is_same_job = job.is_object() && job["args"] == other["args"] && job["class"] == other["class"];
        // Searches the text, because the parser does not accept every number that Ruby accepts.
        let has_its_jid = jid(text).is_some_and(|own| jid(member) == Some(own));
        member == text || has_its_jid || is_same_job
    })
}

fn jid(text: &str) -> Option<&str> {
    text.split_once("\"jid\":\"")?.1.split('"').next()
}

/// Runs a worker on these texts, checks the location of each, and checks that the worker runs the next job.
async fn none_is_lost(texts: &[Vec<u8>]) {
    let harness = Harness::start();
    for text in texts {
        harness.redis.push_raw("default", text).await;
    }
    let mut worker = harness.worker(PROBE);
    harness.idle().await;
    let kept = kept(&harness).await;
    for text in texts.iter().filter(|text| !may_vanish(text)) {
        assert!(is_kept(text, &kept), "lost: {}", String::from_utf8_lossy(text));
    }
    let callback = json!({"class": "Done", "queue": crate::harness::CALLBACKS});
    harness.redis.push("default", "Sidebake::Probe", json!([{"outcome": "succeed", "callback": callback}])).await;
    harness.callbacks(1).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_unusual_payload_of_sidekiq_ends_at_a_known_location() {
    let fixtures = [
        include_str!("../fixtures/sidekiq/6.4.1-edge-input.jsonl"),
        include_str!("../fixtures/sidekiq/7.3.2-edge-input.jsonl"),
        include_str!("../fixtures/sidekiq/8.1.7-edge-input.jsonl"),
    ];
    for fixture in fixtures {
        let edges = fixture.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let texts: Vec<Vec<u8>> = edges
            .map(|edge| match &edge["payload"] {
                Value::String(text) => text.clone().into_bytes(),
                encoded => BASE64_STANDARD.decode(encoded["base64"].as_str().unwrap()).unwrap(),
            })
            .collect();
        assert!(texts.len() >= 30);
        none_is_lost(&texts).await;
    }
}

/// Any JSON of small depth.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map("[a-z_]{1,8}", inner, 0..5).prop_map(|map| json!(map)),
        ]
    })
}

/// Almost a job: the fields of a Sidekiq job, with values that they sometimes have.
fn any_job() -> impl Strategy<Value = Vec<u8>> {
    let class = prop_oneof![
        Just(json!("BuildJob")),
        Just(json!("Nope")),
        Just(json!("Sidekiq::ActiveJob::Wrapper")),
        any_json()
    ];
    let retry = prop_oneof![Just(json!(true)), Just(json!(0)), Just(json!("5")), any_json()];
    let fields = (class, retry, any_json(), any_json(), any_json(), "[0-9a-f]{24}");
    fields.prop_map(|(class, retry, args, times, extra, jid)| {
        let job = json!({"class": class, "args": args, "retry": retry, "jid": jid, "queue": extra, "created_at": times,
            "enqueued_at": times, "retry_count": extra, "tags": times, "wrapped": class, "foreign": extra});
        job.to_string().into_bytes()
    })
}

#[test]
fn no_generated_payload_is_lost_or_stops_the_worker() {
    let text = prop_oneof![
        4 => any_job(),
        1 => (any_job(), any::<prop::sample::Index>()).prop_map(|(job, at)| job[..at.index(job.len())].to_vec()),
        1 => any_json().prop_map(|json| json.to_string().into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..80),
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Hundreds of texts at once and few cases, because each case starts a worker.
    let config =
        ProptestConfig { cases: 4, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let run = |texts: Vec<Vec<u8>>| {
        runtime.block_on(none_is_lost(&texts));
        Ok(())
    };
    runner.run(&proptest::collection::vec(text, 200..300), run).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_is_not_configured_is_an_error_and_is_retried() {
    let harness = Harness::start();
    harness.redis.push("default", "MailJob", json!([1])).await;
    let _worker = harness.worker("");
    harness.until("the job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    let (member, _) = harness.redis.sorted_set("retry").await.remove(0);
    let job: Value = serde_json::from_str(&member).unwrap();
    assert_eq!(job["error_class"], "Sidebake::WorkerFailed");
    assert!(job["error_message"].as_str().unwrap().contains("MailJob"), "{job:#}");
    assert_eq!(job["retry_count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_sha_and_an_unknown_field_are_named() {
    let harness = Harness::start();
    let mut native = harness.native("x");
    native.as_object_mut().unwrap().remove("sha");
    let report = report_of(&harness, native, PROBE).await;
    assert_eq!((&report["reason"], &report["build_id"]), (&json!("invalid_arguments"), &json!(42)));
    assert!(report["message"].as_str().unwrap().contains("`sha`"), "{report:#}");

    let harness = Harness::start();
    let mut native = harness.native("0123456789abcdef0123456789abcdef01234567");
    native["application"]["images"][0]["contxt"] = json!("./vote");
    let report = report_of(&harness, native, PROBE).await;
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("application.images[0].contxt: "), "{message}");
}

/// Invalid values of a build request, as JSON text: no program, key or path can use them.
fn impossible(native: &Value) -> Vec<(&'static str, String)> {
    let long = format!("\"{}\"", "x".repeat(3_000_000));
    let fields: [&'static str; 14] = [
        "/ref",
        "/builder",
        "/account",
        "/default_branch",
        "/build_id",
        "/targets/0",
        "/variables/FOO",
        "/application/images/0/context",
        "/application/images/0/dockerfile",
        "/application/images/0/args/FOO",
        "/application/images/0/tags/0",
        "/application/images/0/labels/a",
        "/application/images/0/cache_from/0",
        "/application/images/0/secrets/0/id",
    ];
    let values = ["\"a\\u0000b\"".to_owned(), long, nested(130), nested(10_000), "1e400".into(), "\"\\ud800\"".into()];
    let mut whole = native.clone();
    (whole["targets"], whole["variables"]) = (json!(["vote"]), json!({"FOO": "x"}));
    for field in ["args", "labels"] {
        whole["application"]["images"][0][field] = json!({"FOO": "x", "a": "x"});
    }
    whole["application"]["images"][0]["cache_from"] = json!(["x"]);
    whole["application"]["images"][0]["secrets"] = json!([{"id": "x"}]);
    let mut texts = Vec::new();
    for field in fields {
        for value in &values {
            let mut changed = whole.clone();
            put(&mut changed, field, json!("PLACE"));
            texts.push((field, changed.to_string().replace("\"PLACE\"", value)));
        }
    }
    texts
}

/// Sets the value at a JSON Pointer. Only its last part may be missing.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match object.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[name.parse::<usize>().unwrap()] = value,
        parent => parent[name] = value,
    }
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

/// An earlier version retried some of these jobs and moved others to the dead set without a callback.
#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_argument_is_invalid_and_rails_is_notified() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let texts = impossible(&harness.native(&sha));
    for (i, (_, native)) in texts.iter().enumerate() {
        let job = format!(r#"{{"class":"BuildJob","args":[{native}],"jid":"job-{i}","queue":"default"}}"#);
        harness.redis.push_raw("default", job).await;
    }
    let _worker = harness.worker("");
    let mut reports = harness.callbacks(texts.len()).await;
    reports.sort_by_key(|report| report["jid"].as_str().unwrap().split('-').nth(1).unwrap().parse::<usize>().unwrap());
    for (report, (field, native)) in reports.iter().zip(&texts) {
        let what = format!("{field}, {}…", &native[native.len() - 40..]);
        assert_eq!(report["reason"], "invalid_arguments", "{what}: {report:#}");
        let message = report["message"].as_str().unwrap();
        assert!(message.len() <= 2_100 && !message.contains('\0'), "{what}: {message}");
        let is_of_the_id = *field == "/build_id";
        assert!(is_of_the_id || report["build_id"] == 42, "{what}: {report:#}");
    }
    assert!(harness.redis.sorted_set("retry").await.is_empty());
    assert_eq!(n_dead(&harness).await, 0);
    for (field, path) in
        [("/variables/FOO", " variables.FOO: "), ("/application/images/0/tags/0", " application.images[0].tags[0]: ")]
    {
        let (report, _) = reports.iter().zip(&texts).find(|(_, (name, _))| *name == field).unwrap();
        assert!(report["message"].as_str().unwrap().contains(path), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_no_file_has_is_invalid() {
    for (field, path) in [("compose", "a\0.yml".to_owned()), ("bake", format!("{}.hcl", "x".repeat(200_000)))] {
        let harness = Harness::start();
        let (_, sha) = harness.voting_app();
        let mut native = harness.native(&sha);
        native["application"] = Value::Null;
        native[field] = json!(path);
        let report = report_of(&harness, native, PROBE).await;
        assert_eq!(report["reason"], "invalid_arguments", "{report:#}");
        assert!(report["message"].as_str().unwrap().contains(&format!("{field}: ")), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_maximum_number_of_variables_reaches_buildx() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let mut native = harness.native(&sha);
    let (large, small) = ("x".repeat((128 << 10) - "V0".len() - 2), "x".repeat(1000));
    let few = (0..3).map(|n| (format!("V{n}"), json!(large)));
    let many = (3..120).map(|n| (format!("V{n}"), json!(small)));
    native["variables"] = Value::Object(few.chain(many).collect());
    let report = report_of(&harness, native, PROBE).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_failure_without_a_callback_goes_to_the_dead_set() {
    let harness = Harness::start();
    let mut native = harness.native("nonsense");
    native.as_object_mut().unwrap().remove("callback");
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker("");
    harness.until("the job is in the dead set", async || harness.redis.sorted_set("dead").await.len() == 1).await;
    let (member, _) = harness.redis.sorted_set("dead").await.remove(0);
    let job: Value = serde_json::from_str(&member).unwrap();
    assert_eq!(job["error_class"], "Sidebake::InvalidArguments");
    assert!(job["error_message"].as_str().unwrap().starts_with("sha: "), "{job:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_the_app_cannot_see_and_a_sha_that_is_not_there_are_user_failures() {
    let harness = Harness::start();
    harness.voting_app();
    let missing = report_of(&harness, harness.native("0123456789abcdef0123456789abcdef01234567"), PROBE).await;
    assert_eq!(missing["reason"], "commit_not_found", "{missing:#}");
    for name in ["acme/voting-app", "0123456789abcdef0123456789abcdef01234567"] {
        assert!(missing["message"].as_str().unwrap().contains(name), "{missing:#}");
    }

    let harness = Harness::start();
    let mut native = harness.native("0123456789abcdef0123456789abcdef01234567");
    native["repository"] = json!("stranger/secret");
    let invisible = report_of(&harness, native, PROBE).await;
    assert_eq!(invisible["reason"], "repository_not_found", "{invisible:#}");
    assert!(invisible["message"].as_str().unwrap().contains("stranger/secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_outside_of_the_repository_is_refused_by_its_path() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let mut native = harness.native(&sha);
    native["application"]["images"][0]["context"] = json!("../..");
    let report = report_of(&harness, native, PROBE).await;
    assert_eq!(report["reason"], "policy_refused");
    assert!(report["message"].as_str().unwrap().contains("target.vote.context: \"../..\""), "{report:#}");
    assert!(harness.builder.runs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_of_a_resolver_has_its_outcome() {
    for (answer, place, class, name) in [
        (Answer::Status(404), "dead", "Gone", "404"),
        (Answer::Status(410), "dead", "Gone", "410"),
        (Answer::Status(500), "retry", "ResolverUnavailable", "500"),
        (Answer::Status(403), "retry", "ResolverRefused", "403"),
        (Answer::Text("<html>".into()), "retry", "ResolverUnavailable", "JSON"),
        (Answer::Redirect("http://127.0.0.1:1/".into()), "retry", "ResolverUnavailable", "302"),
        (Answer::Padded(json!({}), 2 << 20), "retry", "ResolverUnavailable", "1048576"),
        (Answer::Object(json!({"sha": 1})), "dead", "InvalidArguments", "sha: "),
    ] {
        let harness = Harness::start();
        harness.rails.answer(1, answer);
        harness.redis.push("default", "ById", json!([1])).await;
        let url = harness.rails.url_pattern();
        let _worker = harness.worker(&format!(
            r#"jobs.classes.ById = {{ arguments = "resolved", resolve = {{ url = "{url}", secret = "s3cret" }} }}"#
        ));
        harness.until(place, async || harness.redis.sorted_set(place).await.len() == 1).await;
        let (member, _) = harness.redis.sorted_set(place).await.remove(0);
        let job: Value = serde_json::from_str(&member).unwrap();
        assert_eq!(job["error_class"], format!("Sidebake::{class}"), "{name}: {job:#}");
        assert!(job["error_message"].as_str().unwrap().contains(name), "{name}: {job:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_resolver_is_an_infrastructure_failure() {
    let harness = Harness::start();
    harness.redis.push("default", "ById", json!([1])).await;
    let _worker = harness.worker(
        r#"jobs.classes.ById = { arguments = "resolved", resolve = { url = "http://127.0.0.1:9/builds/{0}", secret = "x" } }"#,
    );
    harness.until("the job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    let (member, _) = harness.redis.sorted_set("retry").await.remove(0);
    assert!(member.contains("Sidebake::ResolverUnavailable") && member.contains("127.0.0.1:9"), "{member}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_invalid_private_key_is_reported_and_the_job_is_kept() {
    for (key, name) in [(None, "os error 2"), (Some("nonsense"), "PEM")] {
        let harness = Harness::start();
        let (_, sha) = harness.voting_app();
        let path = harness.home.path().join("app.pem");
        match key {
            None => std::fs::remove_file(&path).unwrap(),
            Some(text) => std::fs::write(&path, text).unwrap(),
        }
        harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
        let worker = harness.worker("");
        harness.until("the job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1).await;
        let (member, _) = harness.redis.sorted_set("retry").await.remove(0);
        assert!(member.contains(name) && member.contains("Sidebake::GithubRefused"), "{member}");
        let logged = worker.logged("job_retried");
        assert!(logged.len() == 1 && logged[0].contains(name), "{}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_apps_key_is_refused_by_github() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let other = world::App::generate(7).private_key_pem();
    std::fs::write(harness.home.path().join("app.pem"), other).unwrap();
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let _worker = harness.worker("");
    harness.until("the job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    let (member, _) = harness.redis.sorted_set("retry").await.remove(0);
    assert!(member.contains("Sidebake::GithubRefused") && member.contains("401"), "{member}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_buildx_the_job_is_kept_and_the_log_has_the_cause() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    std::fs::remove_file(harness.home.path().join("docker-buildx")).unwrap();
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let worker = harness.worker("");
    harness.until("the job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    let is_named = |line: &String| line.contains("reason=worker_failed") && line.contains("docker-buildx");
    world::wait_for("the log message", || worker.logged("job_retried").iter().any(is_named)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_started_before_redis_waits_for_it() {
    let harness = Harness::start();
    harness.redis.stop();
    let worker = harness.worker(PROBE);
    world::wait_for("the log message", || !worker.logged("redis_unavailable").is_empty()).await;
    harness.redis.restart();
    harness.redis.push("default", "Sidebake::Probe", json!([{"outcome": "succeed"}])).await;
    harness.until("the probe ends", async || harness.redis.get("stat:processed").await.as_deref() == Some("1")).await;
}

#[test]
fn a_typo_in_the_configuration_stops_the_start_and_is_named() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), "[github]\napp_idd = \"1\"\n").unwrap();
    let output = sidebake().args(["run", "--config"]).arg(file.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("app_idd"), "{text}");
}
