//! Endless answers use neither unlimited memory nor unlimited time.

use std::io::{Read, Write};
use std::time::Duration;

use serde_json::{Value, json};
use world::{Endless, Pace, Script};

use crate::harness::{Harness, text};

/// More than four limited answers take at once, and far less than an endless answer.
const FLAT_KB: u64 = 80 << 10;

/// Enqueues `n` builds, waits until all are in the retry set, and returns their failures.
async fn failures_of(harness: &Harness, native: &Value, n: usize) -> Vec<Value> {
    for _ in 0..n {
        harness.redis.push("default", "BuildJob", json!([native])).await;
    }
    harness.until("all jobs are in the retry set", async || harness.redis.sorted_set("retry").await.len() == n).await;
    let retries = harness.redis.sorted_set("retry").await;
    retries.iter().map(|(job, _)| serde_json::from_str(job).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_github_takes_unlimited_memory() {
    // Every request that a build makes, and every kind of answer to it.
    for (path, status) in [
        ("/app/installations", 201),
        ("/app/installations", 403),
        ("/app/installations", 422),
        ("/repos/acme/voting-app/installation", 200),
        ("/repos/acme/voting-app/installation", 301),
        ("/repos/acme/voting-app/git/ref/heads", 200),
        ("/repos/acme/voting-app/compare", 200),
        ("/repos/acme/voting-app/compare", 500),
    ] {
        let harness = Harness::start();
        let (repository, sha) = harness.voting_app();
        repository.commit(&[("vote/Dockerfile", "FROM base\n")]);
        let mut native = harness.native(&sha);
        native["ref"] = json!("refs/heads/main");
        harness.github.faults().never_end(path, status, Pace::Flood);
        let worker = harness.worker("");
        let failures = failures_of(&harness, &native, 4).await;
        for failure in &failures {
            assert_eq!(failure["error_class"], "Sidebake::GithubUnavailable", "{path}: {failure:#}");
            let message = failure["error_message"].as_str().unwrap();
            assert!(message.contains(path) && message.ends_with("answered with more than 4194304 bytes"), "{message}");
        }
        let peak_kb = worker.peak_kb();
        assert!(peak_kb < FLAT_KB, "{path} {status}: {peak_kb} kB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_is_given_up_at_the_time_limit() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.github.faults().never_end("/app/installations", 201, Pace::Drip(Duration::from_millis(50)));
    let config = harness.config("");
    let text = std::fs::read_to_string(&config).unwrap().replace("github = { ", "github = { timeout = \"300ms\", ");
    std::fs::write(&config, text).unwrap();
    let _worker = harness.worker_with(&config, &[]);
    let failures = failures_of(&harness, &harness.native(&sha), 1).await;
    assert_eq!(failures[0]["error_class"], "Sidebake::GithubUnavailable", "{:#}", failures[0]);
}

/// A server that answers every connection with `start`, then endlessly with `more`.
fn pours(start: &'static str, more: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(start.as_bytes());
                while stream.write_all(more.as_bytes()).is_ok() {}
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_headers_take_no_memory_either() {
    for (start, more) in [
        ("HTTP/1.1 200 OK\r\n", "x-more: and more\r\n"),
        ("HTTP/1.1 200 OK\r\nx-long: ", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ] {
        let harness = Harness::start();
        let (_, sha) = harness.voting_app();
        let config = harness.config("");
        let api = format!("github = {{ timeout = \"1s\", api_url = \"{}\"", pours(start, more));
        let text = std::fs::read_to_string(&config).unwrap();
        let text = text.replace(&format!("github = {{ api_url = \"{}\"", harness.github.url()), &api);
        assert!(text.contains(&api), "{text}");
        std::fs::write(&config, text).unwrap();
        let worker = harness.worker_with(&config, &[]);
        let failures = failures_of(&harness, &harness.native(&sha), 4).await;
        assert_eq!(failures[0]["error_class"], "Sidebake::GithubUnavailable", "{:#}", failures[0]);
        assert!(worker.peak_kb() < FLAT_KB, "{} kB", worker.peak_kb());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_revoked_costs_no_memory_either() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    harness.github.faults().never_end("/installation/token", 200, Pace::Flood);
    let worker = harness.worker("");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    harness.until("the worker sends the request", async || harness.n_asked("/installation/token") > 0).await;
    assert!(worker.peak_kb() < FLAT_KB, "{} kB", worker.peak_kb());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_a_resolver_takes_unlimited_memory() {
    let (harness, rails) = (Harness::start(), Endless::start(Pace::Flood));
    let url = format!("{}/builds/{{0}}", rails.url());
    let worker = harness.worker(&format!(
        r#"jobs.classes.ById = {{ arguments = "resolved", resolve = {{ url = "{url}", secret = "s3cret" }} }}"#
    ));
    for id in 1..=4 {
        harness.redis.push("default", "ById", json!([id])).await;
    }
    harness.until("all jobs are in the retry set", async || harness.redis.sorted_set("retry").await.len() == 4).await;
    for (job, _) in harness.redis.sorted_set("retry").await {
        assert!(job.contains("Sidebake::ResolverUnavailable"), "{job}");
        assert!(job.contains("answered with more than 1048576 bytes"), "{job}");
    }
    assert!(worker.peak_kb() < FLAT_KB, "{} kB", worker.peak_kb());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_an_api_server_takes_unlimited_memory() {
    let (harness, kubernetes) = (Harness::start(), Endless::start(Pace::Flood));
    let kubeconfig = harness.home.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": kubernetes.url()}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": "builds"}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let builder = format!("builders.pods = {{ driver = \"kubernetes\", kubeconfig = \"{}\" }}", kubeconfig.display());
    let output = harness.run(&["builder", "status", "pods"], &builder);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let sentence = format!("{}/ answered with more than 8388608 bytes", kubernetes.url());
    assert!(said.contains(&sentence), "{said}");
    assert!(said.len() < 2_000, "{} bytes", said.len());
}
