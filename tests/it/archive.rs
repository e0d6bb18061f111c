//! The archived log of each attempt: a directory, and an object store on the wire that works, refuses, hangs or is away.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use world::{Objects, Script, Step};

use crate::harness::{HEAVY, Harness, text};

const AT: &str = "2026-11-24T04:05:56Z";

fn event(event: &Value) -> Step {
    Step::Stderr(format!("{event}\n"))
}

fn vertex(more: Value) -> Step {
    let mut vertex = json!({"digest": "sha256:a", "name": "[2/2] RUN make", "started": AT});
    vertex.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    event(&json!({"vertexes": [vertex]}))
}

fn prints(text: &str) -> Step {
    let data = BASE64_STANDARD.encode(text);
    event(&json!({"logs": [{"vertex": "sha256:a", "stream": 1, "data": data, "timestamp": AT}]}))
}

/// A build whose step prints numbered lines, and does this before its end.
fn numbered(n_lines: usize, then: Vec<Step>) -> Script {
    let line = |n: usize| format!("line {n} {}\n", "x".repeat(60));
    let thousand = |first: usize| prints(&(first..n_lines.min(first + 1000)).map(line).collect::<String>());
    let lines = (0..n_lines).step_by(1000).map(thousand).collect();
    Script::steps(
        [vec![vertex(json!({}))], lines, then, vec![vertex(json!({"completed": AT})), Step::Exit(0)]].concat(),
    )
}

fn native(harness: &Harness) -> Value {
    let (_, sha) = harness.voting_app();
    let mut native = harness.native(&sha);
    native["build_id"] = json!("build 42/x");
    native
}

async fn push(harness: &Harness) {
    harness.redis.push("default", "BuildJob", json!([native(harness)])).await;
}

/// Runs one build with this archive. Returns its report.
async fn report_with(harness: &Harness, settings: &str) -> Value {
    harness.builder.script(numbered(10, Vec::new()));
    let n_before = harness.reports().await.len();
    let _worker = harness.worker(settings);
    push(harness).await;
    harness.callbacks(n_before + 1).await.remove(n_before)
}

fn s3(objects: &Objects) -> String {
    format!(
        "journal.archive = \"s3://logs/builds\"\njournal.archive_options = {{ aws_endpoint = \"{}\", aws_allow_http = \"true\", \
         aws_access_key_id = \"AKIDEXAMPLE\", aws_secret_access_key = \"s3cret-of-the-archive\", aws_region = \"eu-central-1\" }}",
        objects.url()
    )
}

fn gunzip(content: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(content).read_to_string(&mut text).unwrap();
    text
}

fn read(url: &Value) -> String {
    gunzip(&std::fs::read(url.as_str().unwrap().strip_prefix("file://").unwrap()).unwrap())
}

/// The records beside a text.
fn records(url: &Value) -> Vec<Value> {
    let url = url.as_str().unwrap().replace(".log.gz", ".jsonl.gz");
    read(&json!(url)).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The settings of an archive in a directory of the test.
fn directory(harness: &Harness) -> (PathBuf, String) {
    let path = harness.home.path().join("archive");
    let settings = format!("journal.archive = \"file://{}\"", path.display());
    (path, settings)
}

fn files(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_log_is_in_the_archive_and_its_url_in_the_callback_and_the_stream() {
    let harness = Harness::start();
    let (path, settings) = directory(&harness);
    let n_lines = 30_000;
    harness.builder.script(numbered(n_lines, vec![Step::Hold]));
    let worker = harness.worker(&settings);
    push(&harness).await;
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    assert!(files(&path).is_empty(), "nothing is archived before the end");
    harness.builder.release();
    let report = harness.callbacks(1).await.remove(0);
    let jid = report["jid"].as_str().unwrap();
    let expected = format!("file://{}/acme/acme/voting-app/build=2042=2Fx/{jid}.1.log.gz", path.display());
    assert_eq!((report["log_url"].as_str(), &report["notices"]), (Some(expected.as_str()), &json!([])));
    let text = read(&report["log_url"]);
    let printed: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("vote 2/2 | line ")).collect();
    assert!(printed.len() == n_lines && printed.iter().enumerate().all(|(n, line)| line.starts_with(&format!("{n} "))));
    assert_eq!(text.lines().last(), Some("build | succeeded"));

    let records = records(&report["log_url"]);
    let of_type = |kind: &str| records.iter().filter(|record| record["type"] == kind).collect::<Vec<_>>();
    let n_printed: usize = of_type("output").iter().map(|record| record["lines"].as_array().unwrap().len()).sum();
    assert_eq!((n_printed, of_type("end").len(), of_type("commit").len()), (n_lines, 1, 1));
    assert!(records.iter().all(|record| record["at_ms"].as_u64().unwrap() > 1_700_000_000_000));

    harness.idle().await;
    const KEY: &str = "sidebake:build:build 42/x:archive";
    harness.until("the stream has the URL", async || harness.redis.get(KEY).await.is_some()).await;
    assert_eq!(harness.redis.get(KEY).await.as_deref(), Some(expected.as_str()));
    let logs = crate::harness::text(&harness.run(&["logs", "build 42/x"], ""));
    assert!(logs.contains(&format!("build | succeeded; the whole log is at {expected}")), "{logs}");
    let mut redis = harness.redis.connection().await;
    redis::cmd("DEL").arg("sidebake:build:build 42/x:events").exec_async(&mut redis).await.unwrap();
    let expired = harness.run(&["logs", jid], "");
    assert_eq!(expired.status.code(), Some(3));
    assert!(
        crate::harness::text(&expired)
            .contains(&format!("has expired; journal.ttl is 1day; the whole log is at {expected}")),
        "{expired:?}"
    );
    assert!(harness.home.job_directories().is_empty(), "{:?}", harness.home.job_directories());
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_beyond_its_cap_has_the_beginning_and_the_last_lines_of_the_step() {
    let harness = Harness::start();
    let (_, settings) = directory(&harness);
    harness.builder.script(numbered(50_000, Vec::new()));
    let _worker = harness.worker(&format!("{settings}\njournal.archive_bytes = 1000000"));
    push(&harness).await;
    let report = harness.callbacks(1).await.remove(0);
    let text = read(&report["log_url"]);
    assert!(
        text.contains("line 0 ") && text.contains("line 49999 ") && !text.contains("line 30000 "),
        "{} bytes",
        text.len()
    );
    assert_eq!(text.matches(" are missing here").count(), 1);
    // Each line has its label.
    assert!((1_000_000..1_600_000).contains(&text.len()), "{}", text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_run_of_a_job_has_its_own_log() {
    let harness = Harness::start();
    let (path, settings) = directory(&harness);
    harness.builder.script(numbered(5, vec![Step::Hang]));
    let mut first = harness.worker(&format!("{settings}\nshutdown.timeout = \"0s\""));
    push(&harness).await;
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    first.terminate().await;
    harness.builder.script(Script::loses_builder());
    harness.builder.script(numbered(7, Vec::new()));
    let _second = harness.worker(&settings);
    harness.callbacks(1).await;
    let names: Vec<String> =
        files(&path).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let jid = harness.reports().await[0]["jid"].as_str().unwrap().to_owned();
    for name in [format!("{jid}.1.log.gz"), format!("{jid}.1-2.log.gz"), format!("{jid}.1.jsonl.gz")] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_log_is_left_behind_after_a_kill() {
    let harness = Harness::start();
    let (_, settings) = directory(&harness);
    harness.builder.script(numbered(3000, vec![Step::Hang]));
    let worker = harness.worker(&settings);
    push(&harness).await;
    harness
        .until("the log grows", async || {
            harness
                .home
                .job_directories()
                .iter()
                .any(|path| path.join("text").metadata().is_ok_and(|file| file.len() > 0))
        })
        .await;
    worker.kill();
    assert!(!harness.home.job_directories().is_empty());
    let _second = harness.worker_with(&harness.config(""), &["-q", "other"]);
    harness.until("the start removes it", async || harness.home.job_directories().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_gets_both_files_signed_and_with_their_types() {
    let (harness, objects) = (Harness::start(), Objects::start());
    let report = report_with(&harness, &s3(&objects)).await;
    let url = report["log_url"].as_str().unwrap();
    let path = url.strip_prefix("s3:/").unwrap();
    assert!(path.starts_with("/logs/builds/acme/acme/voting-app/build=2042=2Fx/"), "{url}");
    let all = objects.all();
    let (text, records) = (&all[path], &all[&path.replace(".log.gz", ".jsonl.gz")]);
    assert!(
        gunzip(&text.content).contains("vote 2/2 | line 9 ") && gunzip(&records.content).contains("\"type\":\"end\"")
    );
    let header = |name: &str| text.headers.get(name).unwrap().to_str().unwrap();
    assert_eq!((header("content-type"), header("content-encoding")), ("text/plain; charset=utf-8", "gzip"));
    assert!(header("authorization").contains("AKIDEXAMPLE"));
    assert_eq!(all.len(), 2);
    assert_eq!(harness.traces_of("s3cret-of-the-archive").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_log_is_uploaded_in_parts() {
    let _alone = HEAVY.lock().await;
    let (harness, objects) = (Harness::start(), Objects::start());
    // Text that does not get smaller: 9 MiB of random digits.
    let noise = |_| {
        prints(
            &(0..500).map(|_| format!("{}\n", BASE64_STANDARD.encode(rand::random::<[u8; 96]>()))).collect::<String>(),
        )
    };
    let steps =
        [vec![vertex(json!({}))], (0..140).map(noise).collect(), vec![vertex(json!({"completed": AT})), Step::Exit(0)]];
    harness.builder.script(Script::steps(steps.concat()));
    let config = harness.config(&format!("{}\njournal.archive_timeout = \"1m\"", s3(&objects)));
    // Without a trace of each line.
    let worker = harness.worker_with_variables(&config, &[], &[("SIDEBAKE__LOG__LEVEL", "info")]);
    push(&harness).await;
    let report = harness.callbacks(1).await.remove(0);
    assert!(report["log_url"].is_string(), "{report:#}");
    assert!(objects.requests().iter().any(|request| request.contains("partNumber=2")), "{:?}", objects.requests());
    let all = objects.all();
    let (_, text) = all.iter().find(|(path, _)| path.ends_with(".log.gz")).unwrap();
    assert_eq!(gunzip(&text.content).lines().filter(|line| line.starts_with("vote 2/2 | ")).count(), 70_000 + 1);
    assert!(worker.peak_kb() < 120_000, "{} kB", worker.peak_kb());
}

/// The words of the one notice.
fn notice(report: &Value) -> &str {
    assert_eq!((&report["status"], &report["log_url"]), (&json!("succeeded"), &Value::Null), "{report:#}");
    let notices = report["notices"].as_array().unwrap();
    assert_eq!(notices.len(), 1, "{report:#}");
    notices[0].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_refuses_is_a_notice() {
    let (harness, objects) = (Harness::start(), Objects::start());
    let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    objects.faults().fail_next("PUT /logs", 9, 403, &[], body);
    let report = report_with(&harness, &s3(&objects)).await;
    assert_eq!(notice(&report), "the log of this build is not archived: the archive refused it");
    let logged = harness.home.logged("log_not_archived");
    assert!(logged.len() == 1 && logged[0].contains("AccessDenied"), "{logged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_away_fails_or_hangs_delays_a_build_by_its_timeout_at_most() {
    let (harness, objects) = (Harness::start(), Objects::start());
    let absent = s3(&objects).replace(&objects.url(), &format!("http://127.0.0.1:{}", world::free_port()));
    let report = report_with(&harness, &absent).await;
    assert_eq!(notice(&report), "the log of this build is not archived: the archive is not available");

    objects.faults().fail_next("PUT /logs", 99, 503, &[], "");
    let report = report_with(&harness, &s3(&objects)).await;
    assert_eq!(notice(&report), "the log of this build is not archived: the archive is not available");
    objects.faults().clear();

    let soon = format!("{}\njournal.archive_timeout = \"2s\"", s3(&objects));
    objects.faults().stall_next("PUT /logs", 9);
    let started = Instant::now();
    let report = report_with(&harness, &soon).await;
    assert_eq!(notice(&report), "the log of this build is not archived: the archive did not take it in time");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    objects.faults().clear();

    objects.faults().delay("PUT /logs", Duration::from_millis(300));
    let report = report_with(&harness, &soon).await;
    assert!(report["log_url"].is_string() && report["notices"] == json!([]), "{report:#}");
    assert!(!harness.home.logs().contains("s3cret-of-the-archive"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_does_not_wait_for_its_archive() {
    let (harness, objects) = (Harness::start(), Objects::start());
    objects.faults().stall_next("PUT /logs", 9);
    harness.builder.script(numbered(5, vec![Step::Hang]));
    let settings = format!("{}\nshutdown.timeout = \"0s\"\njournal.archive_timeout = \"60s\"", s3(&objects));
    let mut worker = harness.worker(&settings);
    push(&harness).await;
    harness.until("the build runs", async || harness.builder.running() == 1).await;
    let started = Instant::now();
    worker.terminate().await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(harness.redis.queue("default").await.len(), 1, "the job is back on its queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn google_and_azure_get_the_log_in_their_own_requests() {
    let (harness, objects) = (Harness::start(), Objects::start());
    let url = objects.url();
    // A key that makes the client send no token, as for every emulator.
    let key = json!({"gcs_base_url": url, "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""});
    let google = format!(
        "journal.archive = \"gs://logs/builds\"\njournal.archive_options = {{ google_allow_http = \"true\", google_service_account_key = '{key}' }}"
    );
    let azure = format!(
        "journal.archive = \"az://logs/builds\"\njournal.archive_options = {{ azure_endpoint = \"{url}\", azure_allow_http = \"true\", \
         azure_storage_account_name = \"acme\", azure_storage_account_key = \"c2VjcmV0\" }}"
    );
    for (settings, scheme) in [(google, "gs://logs/"), (azure, "az://logs/")] {
        let report = report_with(&harness, &settings).await;
        let url = report["log_url"]
            .as_str()
            .unwrap_or_else(|| panic!("{report:#}\n{:?}", harness.home.logged("log_not_archived")));
        assert!(url.starts_with(scheme), "{url}");
    }
    let texts = objects.all().into_iter().filter(|(path, _)| path.ends_with(".log.gz"));
    assert_eq!(texts.map(|(_, object)| gunzip(&object.content)).filter(|text| text.contains("line 9 ")).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_can_come_from_the_environment() {
    let (harness, objects) = (Harness::start(), Objects::start());
    harness.builder.script(numbered(3, Vec::new()));
    let config = harness.config("journal.archive = \"s3://logs\"");
    let url = objects.url();
    let variables = [
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "AKIDOTHER"),
        ("AWS_SECRET_ACCESS_KEY", "s3cret"),
        ("AWS_UNKNOWN_VARIABLE", "x"),
    ];
    let _worker = harness.worker_with_variables(&config, &[], &variables);
    push(&harness).await;
    assert!(harness.callbacks(1).await[0]["log_url"].is_string());
    assert!(
        objects.all().values().all(|object| object.headers["authorization"].to_str().unwrap().contains("AKIDOTHER"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_in_the_environment_are_masked_whatever_a_build_prints() {
    let harness = Harness::start();
    let file = |name: &str, content: &str| {
        let path = harness.home.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let key = ["MIIEvQIBADANBgkqhkiG9w0BAQEFAASC", "BKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"];
    let of_google =
        json!({"type": "service_account", "project_id": "acme-logs", "private_key": key.join("\n")}).to_string();
    let user =
        json!({"client_id": "acme.example", "client_secret": "of-a-person", "refresh_token": "1//again-and-again"});
    let variables = [
        ("AWS_SECRET_ACCESS_KEY", "s3cret/of+aws".to_owned()),
        ("AWS_SESSION_TOKEN", "session-of-aws".into()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file("identity", "identity-of-the-pod\n")),
        ("AWS_REGION", "eu-central-1".into()),
        ("AZURE_STORAGE_ACCOUNT_NAME", "acmelogs".into()),
        ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5LW9mLWF6dXJl".into()),
        ("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sp=rw&sig=c2ln%2Fbm%2BF0dXJl%3D".into()),
        ("AZURE_CLIENT_SECRET", "client~of~azure".into()),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", of_google.clone()),
        ("GOOGLE_APPLICATION_CREDENTIALS", file("user.json", &user.to_string())),
    ];
    let secrets = [
        "s3cret/of+aws",
        "session-of-aws",
        "identity-of-the-pod",
        "a2V5LW9mLWF6dXJl",
        "c2ln%2Fbm%2BF0dXJl%3D",
        "c2ln/bm+F0dXJl=",
        "client~of~azure",
        key[0],
        key[1],
        "of-a-person",
        "1//again-and-again",
    ];
    let ordinary = ["eu-central-1", "acmelogs", "service_account", "acme-logs", "acme.example"];
    let printed = secrets.iter().chain(&ordinary).map(|text| format!("it is {text}\n")).collect::<String>();
    let printed = printed + &of_google + "\n" + &user.to_string() + "\n";
    let error = json!({"completed": AT, "error": format!("process \"{}\" did not complete successfully: exit code: 1", secrets.join(" "))});
    harness.builder.script(Script::steps(vec![
        vertex(json!({})),
        prints(&printed),
        vertex(error),
        Step::Stderr("ERROR: failed to solve: process did not complete\n".into()),
        Step::Exit(1),
    ]));
    let worker = harness.worker_with_variables(&harness.config(""), &[], &variables);
    push(&harness).await;
    let report = harness.callbacks(1).await.remove(0).to_string();
    harness.idle().await;
    let is_complete = async || text(&harness.run(&["logs", "build 42/x"], "")).contains("\nbuild | failed");
    harness.until("the log is complete", is_complete).await;
    let shown = [report, worker.log(), text(&harness.run(&["logs", "build 42/x"], ""))];
    for secret in secrets {
        assert!(shown.iter().all(|shown| !shown.contains(secret)), "{secret} is in {shown:#?}");
    }
    for text in ordinary {
        assert!(shown[2].contains(&format!("it is {text}\n")), "{text} is not in {}", shown[2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_writes_and_deletes_a_probe() {
    let (harness, objects) = (Harness::start(), Objects::start());
    let line = |settings: &str| {
        let output = text(&harness.run(&["doctor"], settings));
        output.lines().find(|line| line.contains("log archive")).map(str::to_owned)
    };
    let found = line(&s3(&objects)).unwrap();
    assert!(found.starts_with("ok ") && found.ends_with("s3://logs/builds takes logs"), "{found}");
    assert!(
        objects.all().is_empty() && objects.requests().iter().any(|request| request.starts_with("PUT /logs/builds/"))
    );
    objects.faults().fail_next("PUT /logs", 9, 403, &[], "<Error><Code>InvalidAccessKeyId</Code></Error>");
    let found = line(&s3(&objects)).unwrap();
    assert!(found.starts_with("FAIL") && found.contains("InvalidAccessKeyId") && !found.contains("s3cret"), "{found}");
    assert_eq!(line(""), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_archive_is_refused_before_the_worker_starts() {
    let harness = Harness::start();
    for (settings, expected) in [
        (
            "journal.archive = \"https://logs.example\"",
            "journal.archive: must begin with s3://, gs://, az://, file:///",
        ),
        (
            "journal.archive = \"s3://logs\"\njournal.archive_options = { aws_secret = \"x\" }",
            "journal.archive: unknown option aws_secret in journal.archive_options",
        ),
    ] {
        let output = harness.run(&["run"], settings);
        assert!(!output.status.success() && text(&output).contains(expected), "{}", text(&output));
    }
}
