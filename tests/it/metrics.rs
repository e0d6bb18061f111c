//! `/metrics`, `/scale` and StatsD: what they say of a worker is true, and `docs/metrics.md` says what each number means.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sidebake::metric::{self, Kind};
use world::Script;

use crate::harness::{Harness, PATIENCE, probe};

/// The start of `docs/metrics.md`.
const HEADER: &str = "\
# Metrics

<!-- Made from src/metric.rs by `SIDEBAKE_WRITE_DOCS=1 cargo test --workspace --test it -- metrics::the_page`. Edit that. -->

A worker with `health.listen` serves these metrics at `/metrics`, in Prometheus' text format. `/metrics` also has the usual \
metrics of the process, such as `process_resident_memory_bytes`. The page shows names of accounts and queues, so let only \
Prometheus read it.

Some numbers come from Redis and are the same from every worker. One worker reads them at most every 10 seconds, and the others \
reuse them. Nothing is read when nobody scrapes. Aggregate these metrics with `max`: `max by (queue) (sidebake_queue_jobs)`. \
All others are of one worker: `sum(sidebake_running_jobs)` is what the fleet runs.

Every label has few values at a time. Only the ten accounts with the most jobs have series of their own; all others together are \
the account `other`. Which ten these are changes with the jobs. In a label, `_` replaces quotes and backslashes.
";

#[test]
fn the_page_of_the_metrics_is_made_from_their_list() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = document();
    if std::env::var_os("SIDEBAKE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "generate it again: SIDEBAKE_WRITE_DOCS=1 cargo test --workspace --test it -- metrics::the_page"
    );
}

fn document() -> String {
    let mut page = format!("{HEADER}\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for metric::Definition { name, kind, labels, help } in metric::ALL {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
    }
    page
}

/// A scrape: each series, as `name{label="value",…}`, with its value.
async fn scrape(port: u16) -> BTreeMap<String, f64> {
    let page = text(port, "/metrics").await;
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, n)| (name.to_owned(), n.parse().unwrap())).collect()
}

/// The body of an answer, once the worker listens.
async fn text(port: u16, path: &str) -> String {
    answer(port, path).await.text().await.unwrap()
}

async fn answer(port: u16, path: &str) -> reqwest::Response {
    let started = Instant::now();
    loop {
        match reqwest::get(format!("http://127.0.0.1:{port}{path}")).await {
            Ok(answer) => return answer,
            Err(error) if error.is_connect() && started.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }
}

async fn scale(port: u16) -> Value {
    serde_json::from_str(&text(port, "/scale").await).unwrap()
}

/// The settings of a worker that serves metrics, and its port.
fn listening(more: &str) -> (String, u16) {
    let port = world::free_port();
    (format!("jobs.probe = true\nhealth.listen = \"127.0.0.1:{port}\"\n{more}"), port)
}

fn of_account(account: &str, sleep_s: f64) -> Value {
    json!([{"outcome": "succeed", "sleep_s": sleep_s, "account": account}])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_and_what_waits_is_shown_by_queue_and_account() {
    let harness = Harness::start();
    let (settings, port) = listening("tenants.limits = { blocked = 1 }");
    for n in 1..=2 {
        harness.redis.push("default", "Sidebake::Probe", of_account("blocked", 600.0 + f64::from(n))).await;
    }
    for n in 1..=14 {
        harness.redis.push("default", "Sidebake::Probe", of_account(&format!("account-{n:02}"), 600.0)).await;
    }
    harness.redis.push("low", "Sidebake::Probe", of_account("patient", 600.0)).await;
    let _worker = harness.worker_with(&harness.config(&settings), &["-q", "default", "-q", "low"]);
    harness
        .until("all slots are busy", async || {
            scrape(port).await.get("sidebake_slots{capsule=\"default\"}") == Some(&4.0)
                && scale(port).await["running"] == 4
        })
        .await;
    let series = scrape(port).await;
    let value = |name: &str| series.get(name).copied();
    let starts = |start: &str| series.iter().filter(|(name, _)| name.starts_with(start)).map(|(_, n)| n).sum::<f64>();
    assert_eq!(starts("sidebake_running_jobs{"), 4.0, "{series:#?}");
    assert_eq!(value("sidebake_running_jobs{account=\"blocked\"}"), Some(1.0), "{series:#?}");
    assert_eq!(value("sidebake_queue_jobs{queue=\"default\"}"), Some(12.0));
    assert_eq!(value("sidebake_queue_jobs{queue=\"low\"}"), Some(1.0));
    assert!(value("sidebake_queue_oldest_seconds{queue=\"default\"}").unwrap() < 60.0);
    assert_eq!(starts("sidebake_waiting_jobs{queue=\"default\""), 12.0);
    let n_accounts = series.keys().filter(|name| name.starts_with("sidebake_waiting_jobs{queue=\"default\"")).count();
    assert_eq!(n_accounts, metric::TOP + 1, "{series:#?}");
    assert_eq!(value("sidebake_waiting_jobs{queue=\"default\",account=\"other\"}"), Some(2.0));
    assert_eq!(value("sidebake_blocked_jobs{queue=\"default\"}"), Some(1.0));
    assert_eq!((value("sidebake_redis_up"), value("sidebake_accepting_jobs")), (Some(1.0), Some(1.0)));
    assert_eq!(value("sidebake_wanted_workers"), Some(4.0));
    let scale = scale(port).await;
    assert_eq!(
        scale,
        json!({"wanted_workers": 4, "workers": 1, "slots": 4, "running": 4, "waiting": 12, "blocked": 1, "wanted_shards": {}})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_of_several_workers_reads_the_queues_once() {
    let harness = Harness::start();
    let config = harness.config("");
    let ports: Vec<u16> = (0..3).map(|_| world::free_port()).collect();
    let start = |port: &u16| {
        let listen = [("SIDEBAKE__HEALTH__LISTEN", format!("127.0.0.1:{port}"))];
        harness.home.worker(&config, &["-q", "elsewhere"], &listen)
    };
    let _workers: Vec<_> = ports.iter().map(start).collect();
    harness.until("all three are known", async || scale(ports[0]).await["workers"] == 3).await;
    assert_eq!(harness.redis.keys("sidebake:load:*").await.len(), 1);
    for port in &ports {
        assert_eq!(scale(*port).await["slots"], 12);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcomes_phases_and_steps_of_builds_are_counted() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let (settings, port) = listening("");
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let _worker = harness.worker(&settings);
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    harness.callbacks(1).await;
    for outcome in ["user", "infrastructure"] {
        harness.redis.push("default", "Sidebake::Probe", probe(outcome, 0.0)).await;
    }
    harness.redis.push_raw("default", "not a job").await;
    harness
        .until("all have ended", async || {
            let ended = scrape(port).await.into_iter().filter(|(name, _)| name.starts_with("sidebake_jobs_total"));
            ended.map(|(_, n)| n).sum::<f64>() == 4.0
        })
        .await;
    let series = scrape(port).await;
    let value = |name: &str| series.get(name).copied();
    for (labels, n) in [
        ("queue=\"default\",class=\"BuildJob\",outcome=\"succeeded\"", 1.0),
        (
            "queue=\"default\",class=\"Sidebake::Probe\",outcome=\"failed\",reason=\"step_failed\",reason_class=\"user\"",
            1.0,
        ),
        (
            "queue=\"default\",class=\"Sidebake::Probe\",outcome=\"retrying\",reason=\"builder_unavailable\",reason_class=\"infrastructure\"",
            1.0,
        ),
        ("queue=\"default\",outcome=\"failed\",reason=\"invalid_arguments\",reason_class=\"user\"", 1.0),
    ] {
        assert_eq!(value(&format!("sidebake_jobs_total{{{labels}}}")), Some(n), "{labels}: {series:#?}");
    }
    for phase in ["queued", "token", "fetch", "checkout", "bake", "settle"] {
        let count = value(&format!("sidebake_phase_duration_seconds_count{{phase=\"{phase}\"}}"));
        assert!(count.is_some_and(|n| n >= 1.0), "{phase}: {series:#?}");
    }
    assert_eq!(value("sidebake_installation_tokens_total"), Some(1.0));
    assert!(value("sidebake_github_requests_total{status=\"201\"}").is_some(), "{series:#?}");
    assert!(value("sidebake_fetched_bytes_total").unwrap() > 0.0, "{series:#?}");
    assert!(value("sidebake_steps_total{cached=\"false\"}").is_some(), "{series:#?}");
    assert!(value("sidebake_child_memory_peak_bytes").unwrap() > 1_000_000.0, "{series:#?}");
    assert!(value("sidebake_redis_round_trips_total").unwrap() > 1.0);
    assert!(value("sidebake_turn_duration_seconds_count").unwrap() > 1.0);

    let mut promtool = Command::new("promtool");
    let promtool =
        promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool runs: docker/install observability");
    promtool.stdin.take().unwrap().write_all(text(port, "/metrics").await.as_bytes()).unwrap();
    let found = promtool.wait_with_output().unwrap();
    assert!(found.status.success() && found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_the_page_has_what_the_worker_knows_and_autoscalers_get_no_number() {
    let harness = Harness::start();
    let (settings, port) = listening("redis.timeout = \"1s\"");
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 600.0)).await;
    let _worker = harness.worker(&settings);
    harness.is_in_flight().await;
    harness
        .until("the page has the queue", async || {
            scrape(port).await.contains_key("sidebake_queue_jobs{queue=\"default\"}")
        })
        .await;
    harness.redis.freeze();
    harness.until("the page says so", async || scrape(port).await.get("sidebake_redis_up") == Some(&0.0)).await;
    let series = scrape(port).await;
    assert!(!series.keys().any(|name| name.starts_with("sidebake_queue_")), "{series:#?}");
    assert!(series.keys().any(|name| name.starts_with("sidebake_running_jobs")), "{series:#?}");
    assert_eq!(answer(port, "/scale").await.status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn statsd_gets_the_names_of_sidekiq_pro() {
    let harness = Harness::start();
    let agent = UdpSocket::bind("127.0.0.1:0").unwrap();
    agent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let settings = format!(
        "jobs.probe = true\n[statsd]\naddress = \"{}\"\nnamespace = \"builds\"\ntags = [\"env:test\", \"canary\"]",
        agent.local_addr().unwrap()
    );
    let _worker = harness.worker(&settings);
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.05)).await;
    harness.redis.push("default", "Sidebake::Probe", probe("infrastructure", 0.0)).await;
    let mut received = Vec::new();
    let mut packet = [0; 4096];
    while received.len() < 8 {
        let n = agent.recv(&mut packet).expect("packets arrive");
        received.extend(String::from_utf8(packet[..n].to_vec()).unwrap().lines().map(str::to_owned));
    }
    let tags = "|#env:test,canary,worker:Sidebake::Probe,queue:default";
    let count = |start: &str, end: &str| {
        received.iter().filter(|line| line.starts_with(start) && line.ends_with(&format!("{end}{tags}"))).count()
    };
    assert_eq!(count("builds.jobs.count:1", "|c"), 2, "{received:#?}");
    assert_eq!(count("builds.jobs.success:1", "|c"), 1, "{received:#?}");
    assert_eq!(count("builds.jobs.failure:1", "|c"), 1, "{received:#?}");
    assert_eq!(count("builds.jobs.perform:", "|ms"), 2, "{received:#?}");
    assert_eq!(count("builds.jobs.perform_dist:", "|d"), 2, "{received:#?}");
}
