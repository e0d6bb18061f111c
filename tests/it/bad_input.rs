//! Bad input is a normal day: a clear message that names the thing, nothing lost, the worker stays up.

use serde_json::{Value, json};
use world::{Answer, Script};

use crate::afternoon::{Afternoon, sidebake, text};

/// Enqueues a job, waits for its report, and then sees the worker build another one.
async fn report_of(afternoon: &Afternoon, native: Value, more: &str) -> Value {
    afternoon.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = afternoon.worker(more);
    let report = afternoon.callbacks(1).await.remove(0);
    afternoon.builder.script_for_the_rest(Script::success(&["vote"]));
    afternoon.redis.push("default", "Sidebake::Probe", json!([{"outcome": "succeed"}])).await;
    afternoon.idle().await;
    report
}

const PROBE: &str = "jobs.probe = true";

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_no_job_go_to_the_dead_set_as_they_are() {
    let afternoon = Afternoon::start();
    let texts: [&[u8]; 6] = [b"{", b"[1]", b"42", b"", b"\xff\xfe", br#"{"args":[]}"#];
    for text in texts {
        afternoon.redis.push_raw("default", text).await;
    }
    let _worker = afternoon.worker("");
    afternoon
        .until("all are dead", async || afternoon.redis.keys("dead").await.len() == 1 && n_dead(&afternoon).await == 6)
        .await;
    let log = afternoon.logs();
    assert!(log.contains("the job is not a JSON object") && log.contains("the job has no class"), "{log}");
    assert_eq!(afternoon.redis.get("stat:processed").await, None);
}

async fn n_dead(afternoon: &Afternoon) -> usize {
    let count: usize =
        redis::cmd("ZCARD").arg("dead").query_async(&mut afternoon.redis.connection().await).await.unwrap();
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn every_odd_payload_that_sidekiq_was_fed_ends_in_a_known_place() {
    let afternoon = Afternoon::start();
    let fixture = include_str!("../fixtures/sidekiq/8.1.7-edge-input.jsonl");
    let payloads: Vec<String> = fixture
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|edge| edge["payload"].as_str().map(str::to_owned))
        .collect();
    for payload in &payloads {
        afternoon.redis.push_raw("default", payload).await;
    }
    let _worker = afternoon.worker("");
    afternoon.idle().await;
    // Members of a sorted set are unique, and `retry: false` drops a job: the sum is what the rules leave.
    let n_kept = n_dead(&afternoon).await + afternoon.redis.sorted_set("retry").await.len();
    assert!(n_kept >= payloads.len() / 2, "{n_kept} of {}", payloads.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_is_not_configured_is_an_error_and_is_retried() {
    let afternoon = Afternoon::start();
    afternoon.redis.push("default", "MailJob", json!([1])).await;
    let _worker = afternoon.worker("");
    afternoon.until("it is in the retry set", async || afternoon.redis.sorted_set("retry").await.len() == 1).await;
    let (member, _) = afternoon.redis.sorted_set("retry").await.remove(0);
    let job: Value = serde_json::from_str(&member).unwrap();
    assert_eq!(job["error_message"], "MailJob is not a class of this worker's configuration");
    assert_eq!(job["retry_count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_sha_and_an_unknown_field_are_named() {
    let afternoon = Afternoon::start();
    let mut native = afternoon.native("x");
    native.as_object_mut().unwrap().remove("sha");
    let report = report_of(&afternoon, native, PROBE).await;
    assert_eq!((&report["reason"], &report["build_id"]), (&json!("invalid_arguments"), &json!(42)));
    assert_eq!(report["message"], "The build request is not valid. .: missing field `sha`");

    let afternoon = Afternoon::start();
    let mut native = afternoon.native("0123456789abcdef0123456789abcdef01234567");
    native["application"]["images"][0]["contxt"] = json!("./vote");
    let report = report_of(&afternoon, native, PROBE).await;
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("application.images[0].contxt: unknown field"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_failure_that_nobody_would_see_goes_to_the_dead_set() {
    let afternoon = Afternoon::start();
    let mut native = afternoon.native("nonsense");
    native.as_object_mut().unwrap().remove("callback");
    afternoon.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = afternoon.worker("");
    afternoon.until("it is dead", async || afternoon.redis.sorted_set("dead").await.len() == 1).await;
    let (member, _) = afternoon.redis.sorted_set("dead").await.remove(0);
    let job: Value = serde_json::from_str(&member).unwrap();
    assert_eq!(job["error_class"], "Sidebake::InvalidArguments");
    assert!(job["error_message"].as_str().unwrap().starts_with("sha: expected 40"), "{job:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_the_app_cannot_see_and_a_sha_that_is_not_there_are_user_failures() {
    let afternoon = Afternoon::start();
    afternoon.voting_app();
    let missing = report_of(&afternoon, afternoon.native("0123456789abcdef0123456789abcdef01234567"), PROBE).await;
    assert_eq!(missing["reason"], "commit_not_found", "{missing:#}");
    assert!(missing["message"].as_str().unwrap().contains("acme/voting-app has no commit 0123456789abcdef"));

    let afternoon = Afternoon::start();
    let mut native = afternoon.native("0123456789abcdef0123456789abcdef01234567");
    native["repository"] = json!("stranger/secret");
    let invisible = report_of(&afternoon, native, PROBE).await;
    assert_eq!(invisible["reason"], "repository_not_found", "{invisible:#}");
    assert!(invisible["message"].as_str().unwrap().contains("stranger/secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_outside_of_the_repository_is_refused_by_its_path() {
    let afternoon = Afternoon::start();
    let (_, sha) = afternoon.voting_app();
    let mut native = afternoon.native(&sha);
    native["application"]["images"][0]["context"] = json!("../..");
    let report = report_of(&afternoon, native, PROBE).await;
    assert_eq!(report["reason"], "policy_refused");
    assert!(
        report["message"].as_str().unwrap().contains("target.vote.context: \"../..\" is outside of the repository"),
        "{report:#}"
    );
    assert!(afternoon.builder.runs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_resolver_can_answer() {
    for (answer, place, words) in [
        (Answer::Status(404), "dead", "answered 404"),
        (Answer::Status(410), "dead", "answered 410"),
        (Answer::Status(500), "retry", "answered 500"),
        (Answer::Status(403), "retry", "refuses our signature with 403"),
        (Answer::Text("<html>".into()), "retry", "what is not JSON"),
        (Answer::Redirect("http://127.0.0.1:1/".into()), "retry", "answered 302"),
        (Answer::Padded(json!({}), 2 << 20), "retry", "more than 1 MiB"),
        (Answer::Object(json!({"sha": 1})), "dead", "expected a string"),
    ] {
        let afternoon = Afternoon::start();
        afternoon.rails.answer(1, answer);
        afternoon.redis.push("default", "ById", json!([1])).await;
        let url = afternoon.rails.url_pattern();
        let _worker = afternoon.worker(&format!(
            r#"jobs.classes.ById = {{ arguments = "resolved", resolve = {{ url = "{url}", secret = "s3cret" }} }}"#
        ));
        afternoon.until(place, async || afternoon.redis.sorted_set(place).await.len() == 1).await;
        let (member, _) = afternoon.redis.sorted_set(place).await.remove(0);
        assert!(member.contains(words), "{words}: {member}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_that_is_not_there_is_infrastructure() {
    let afternoon = Afternoon::start();
    afternoon.redis.push("default", "ById", json!([1])).await;
    let _worker = afternoon.worker(
        r#"jobs.classes.ById = { arguments = "resolved", resolve = { url = "http://127.0.0.1:9/builds/{0}", secret = "x" } }"#,
    );
    afternoon.until("it is retried", async || afternoon.redis.sorted_set("retry").await.len() == 1).await;
    let (member, _) = afternoon.redis.sorted_set("retry").await.remove(0);
    assert!(member.contains("Sidebake::ResolverUnavailable") && member.contains("cannot be reached"), "{member}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_and_a_wrong_private_key_are_said_loudly_and_the_job_is_kept() {
    for (key, words) in
        [(None, "the App's private key cannot be read from"), (Some("nonsense"), "is not a PEM of an RSA key")]
    {
        let afternoon = Afternoon::start();
        let (_, sha) = afternoon.voting_app();
        let path = afternoon.home.path().join("app.pem");
        match key {
            None => std::fs::remove_file(&path).unwrap(),
            Some(text) => std::fs::write(&path, text).unwrap(),
        }
        afternoon.redis.push("default", "BuildJob", json!([afternoon.native(&sha)])).await;
        let worker = afternoon.worker("");
        afternoon.until("it is retried", async || afternoon.redis.sorted_set("retry").await.len() == 1).await;
        let (member, _) = afternoon.redis.sorted_set("retry").await.remove(0);
        assert!(member.contains(words) && member.contains("Sidebake::GithubRefused"), "{member}");
        assert!(worker.log().contains(words), "{}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_apps_key_is_refused_by_github() {
    let afternoon = Afternoon::start();
    let (_, sha) = afternoon.voting_app();
    let other = world::App::generate(7).private_key_pem();
    std::fs::write(afternoon.home.path().join("app.pem"), other).unwrap();
    afternoon.redis.push("default", "BuildJob", json!([afternoon.native(&sha)])).await;
    let _worker = afternoon.worker("");
    afternoon.until("it is retried", async || afternoon.redis.sorted_set("retry").await.len() == 1).await;
    let (member, _) = afternoon.redis.sorted_set("retry").await.remove(0);
    assert!(member.contains("GitHub refuses the App") && member.contains("401"), "{member}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_buildx_the_job_is_kept_and_the_log_says_why() {
    let afternoon = Afternoon::start();
    let (_, sha) = afternoon.voting_app();
    std::fs::remove_file(afternoon.home.path().join("docker-buildx")).unwrap();
    afternoon.redis.push("default", "BuildJob", json!([afternoon.native(&sha)])).await;
    let worker = afternoon.worker("");
    afternoon.until("it is retried", async || afternoon.redis.sorted_set("retry").await.len() == 1).await;
    assert!(worker.log().contains("docker-buildx cannot be executed"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_started_before_redis_waits_for_it() {
    let afternoon = Afternoon::start();
    afternoon.redis.stop();
    let worker = afternoon.worker(PROBE);
    world::wait_for("the log to say it", || worker.log().contains("Redis does not take the turn")).await;
    afternoon.redis.restart();
    afternoon.redis.push("default", "Sidebake::Probe", json!([{"outcome": "succeed"}])).await;
    afternoon
        .until("the probe has run", async || afternoon.redis.get("stat:processed").await.as_deref() == Some("1"))
        .await;
}

#[test]
fn a_typo_in_the_configuration_stops_the_start_and_is_named() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), "[github]\napp_idd = \"1\"\n").unwrap();
    let output = sidebake().args(["run", "--config"]).arg(file.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("the settings cannot be used") && text.contains("app_idd"), "{text}");
}
