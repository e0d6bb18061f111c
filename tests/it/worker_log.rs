//! The log of a worker: what an operator reads and a machine parses, at level info, and its level while the worker runs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sidebake::settings::LOG_MODULES;
use world::Script;

use crate::harness::{Harness, Worker, probe, sidebake, text};
use crate::layers::rust_files;

/// Starts a worker that logs JSON at level info.
fn json_worker(harness: &Harness, more: &str, variables: &[(&str, &str)]) -> Worker {
    let variables = [&[("SIDEBAKE__LOG__LEVEL", "info"), ("SIDEBAKE__LOG__FORMAT", "json")], variables].concat();
    harness.worker_with_variables(&harness.config(more), &[], &variables)
}

/// The lines of a log in JSON. The last one may be incomplete.
fn lines(worker: &Worker) -> Vec<Value> {
    worker.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn event(line: &Value) -> &str {
    line["fields"]["event"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_ten_lines_that_name_every_system_and_no_secret() {
    let harness = Harness::start();
    let url = harness.redis.url().replace("redis://", "redis://default:hunter2@");
    let variables = [
        ("SIDEBAKE__REDIS__URL", url.as_str()),
        ("SIDEBAKE__GITHUB__API_URL", "https://me:hunter2@github.example/api/v3"),
    ];
    let worker = json_worker(&harness, "", &variables);
    let started = || lines(&worker).iter().any(|line| event(line) == "worker_started");
    world::wait_for("the start", started).await;
    let all = lines(&worker);
    // Such as that this Redis has no append-only file.
    let lines: Vec<_> = all.iter().filter(|line| line["level"] == "INFO").collect();
    let events: Vec<_> = lines.iter().map(|line| event(line)).collect();
    let expected = [
        "worker_starting",
        "start_redis",
        "start_queues",
        "start_builders",
        "start_github",
        "start_sandbox",
        "start_state",
        "start_logs",
        "start_listener",
        "worker_started",
    ];
    assert_eq!(events, expected, "{lines:#?}");
    let fields: BTreeMap<_, _> = lines.iter().map(|line| (event(line), &line["fields"])).collect();
    assert_eq!(fields["worker_starting"]["version"], env!("CARGO_PKG_VERSION"));
    let redis = fields["start_redis"];
    assert_eq!(
        (&redis["address"], &redis["new_jobs"]),
        (&json!(format!("{}/0", harness.redis.url().trim_end_matches("/0"))), &json!("tracking"))
    );
    assert!(redis["version"].as_str().is_some_and(|version| version.contains('.')), "{redis}");
    assert_eq!(fields["start_queues"]["capsules"], "default: 4 slots for default");
    assert_eq!(fields["start_builders"]["builders"], format!("default: remote {}", harness.builder.endpoint()));
    assert_eq!(fields["start_github"]["api_url"], "https://github.example/api/v3");
    assert_eq!(fields["start_sandbox"]["mode"], "required");
    assert!(fields["start_state"]["free_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    assert_eq!((&fields["start_logs"]["live_log"], &fields["start_logs"]["archive"]), (&json!("on"), &json!("off")));
    assert_eq!(fields["start_listener"]["address"], "off");
    assert!(!worker.log().contains("hunter2"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_answer_is_named_and_the_start_goes_on() {
    let harness = Harness::start();
    let worker = json_worker(&harness, "", &[("SIDEBAKE__REDIS__URL", "redis://:hunter2@127.0.0.1:1/3")]);
    world::wait_for("the start", || lines(&worker).iter().any(|line| event(line) == "worker_started")).await;
    let line = lines(&worker).into_iter().find(|line| event(line) == "start_redis").unwrap();
    assert_eq!((&line["fields"]["address"], line["fields"].get("version")), (&json!("redis://127.0.0.1:1/3"), None));
    assert!(!worker.log().contains("hunter2"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_two_lines_and_a_warning_only_where_the_platform_failed() {
    let harness = Harness::start();
    // The file is the reason for a notice.
    let attributes = (".gitattributes", "*.txt working-tree-encoding=UTF-16\n");
    let files = [("vote/Dockerfile", "FROM base\n"), ("vote/a.txt", "a\n"), attributes];
    let sha = harness.git.repository("acme/voting-app").commit(&files);
    harness.builder.script(Script::success(&["vote"]));
    harness.builder.script(Script::fails_step("vote", "npm ci", 1, "no such package"));
    let worker = json_worker(&harness, "jobs.probe = true", &[]);
    let native = harness.native(&sha);
    let mut ends = Vec::new();
    let mut n_callbacks = 0;
    for (class, arguments, end, level) in [
        ("BuildJob", json!([native]), "job_done", "INFO"),
        ("BuildJob", json!([native]), "job_failed", "INFO"),
        ("BuildJob", json!([harness.native(&"0".repeat(40))]), "job_failed", "INFO"),
        ("Sidebake::Probe", probe("succeed", 0.0), "job_done", "INFO"),
        ("Sidebake::Probe", probe("infrastructure", 0.0), "job_retried", "WARN"),
    ] {
        ends.push((harness.redis.push("default", class, arguments).await, end, level));
        n_callbacks += usize::from(end != "job_retried");
        harness.callbacks(n_callbacks).await;
        harness.idle().await;
    }
    assert_ne!(harness.reports().await[0]["notices"], json!([]));
    let expired = json!({"class": "BuildJob", "jid": "expired-job", "queue": "default", "args": [native], "expiry": 1});
    harness.redis.push_raw("default", expired.to_string()).await;
    ends.push(("expired-job".into(), "job_stopped", "INFO"));
    let is_end = |line: &Value| event(line).starts_with("job_") && event(line) != "job_started";
    world::wait_for("the last line", || lines(&worker).iter().filter(|line| is_end(line)).count() == ends.len()).await;
    let all = lines(&worker);
    for (jid, end, level) in &ends {
        let of_job: Vec<_> = all.iter().filter(|line| line.to_string().contains(jid.as_str())).collect();
        let shown: Vec<_> = of_job.iter().map(|line| (event(line), line["level"].as_str().unwrap())).collect();
        assert_eq!(shown, [("job_started", "INFO"), (*end, *level)], "{of_job:#?}");
    }
    let after_start = all.iter().skip_while(|line| event(line) != "worker_started").skip(1);
    assert_eq!(after_start.count(), 2 * ends.len(), "{all:#?}");
}

/// The first row of each table in this section of `docs/operating.md`: the names in the first cell, and the second cell.
fn documented() -> Vec<(Vec<String>, String)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md")).unwrap();
    let rows =
        text.lines().skip_while(|line| *line != "### Lines of a job").skip(1).take_while(|line| !line.starts_with('#'));
    let rows = rows.filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split('|').collect::<Vec<_>>());
    cells
        .map(|cells| {
            let names = format!("`{}", cells[0]);
            (names.split('`').skip(1).step_by(2).map(str::to_owned).collect(), cells[1].trim().to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_a_job_have_the_documented_fields() {
    let documented = documented();
    let names = |of: &[&str]| -> BTreeSet<String> {
        let rows = documented.iter().filter(|(_, place)| of.contains(&place.as_str()));
        rows.flat_map(|(names, _)| names.clone()).collect()
    };
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::loses_builder());
    let worker = json_worker(&harness, "", &[]);
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    world::wait_for("the end", || lines(&worker).iter().any(|line| event(line) == "job_retried")).await;
    let fields_of = |of: &str| -> BTreeSet<String> {
        let line = lines(&worker).into_iter().find(|line| event(line) == of).unwrap();
        let fields = line["fields"].as_object().unwrap().keys().cloned();
        fields.filter(|field| !["message", "event"].contains(&field.as_str())).collect()
    };
    assert_eq!(fields_of("job_started"), names(&["both"]));
    // Only Kubernetes has these two.
    let of_kubernetes = ["shard", "pod"].map(str::to_owned).into();
    assert_eq!(fields_of("job_retried"), names(&["both", "end"]).difference(&of_kubernetes).cloned().collect());
}

#[test]
fn a_level_can_be_set_for_every_module_that_logs() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let logging = rust_files(&source).into_iter().filter(|file| {
        let text = std::fs::read_to_string(file).unwrap();
        ["trace", "debug", "info", "warn", "error"].iter().any(|level| text.contains(&format!("tracing::{level}!")))
    });
    let module = |file: PathBuf| {
        let first = file.strip_prefix(&source).unwrap().iter().next().unwrap().to_string_lossy().into_owned();
        first.trim_end_matches(".rs").to_owned()
    };
    let logging: BTreeSet<String> = logging.map(module).collect();
    assert_eq!(logging, LOG_MODULES.map(str::to_owned).into(), "LOG_MODULES in src/settings/log.rs");
}

#[test]
fn an_unknown_module_or_level_is_refused_with_the_known_ones() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("sidebake.toml");
    for (modules, words) in [
        ("{ queue = \"debug\" }", ["log.modules.queue: unknown module", "processor, redis, sidekiq"]),
        ("{ sidekiq = \"loud\" }", ["log.modules.sidekiq: unknown level \"loud\"", "warn, info, debug"]),
    ] {
        std::fs::write(&config, format!("log.modules = {modules}")).unwrap();
        let output = sidebake().args(["run", "-C"]).arg(&config).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(words.iter().all(|word| text(&output).contains(word)), "{}", text(&output));
    }
}

/// A worker whose level comes from its file, which begins with these lines.
fn worker_by_file(harness: &Harness, log: &str) -> Worker {
    let config = harness.config(&format!("jobs.probe = true\n{log}"));
    let mut command = harness.home.sidebake();
    command.args(["run", "--config"]).arg(config).env_remove("SIDEBAKE__LOG__LEVEL");
    harness.home.spawn(command)
}

async fn run_probe(harness: &Harness) -> String {
    let n_callbacks = harness.callback_jobs_so_far().await.len();
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    harness.callbacks(n_callbacks + 1).await;
    jid
}

#[tokio::test(flavor = "multi_thread")]
async fn hup_reads_the_level_again_and_keeps_it_where_the_file_is_broken() {
    let harness = Harness::start();
    let mut worker = worker_by_file(&harness, "log.level = \"error\"");
    let quiet = run_probe(&harness).await;
    harness
        .config("jobs.probe = true\nlog = { level = \"error\", modules = { processor = \"info\", cli = \"info\" } }");
    worker.signal("HUP");
    world::wait_for("the new level", || worker.logged("log_level_reloaded").len() == 1).await;
    let heard = run_probe(&harness).await;
    world::wait_for("the lines of the job", || worker.logged("job_done").len() == 1).await;
    assert!(!worker.log().contains(&quiet) && worker.log().contains(&heard), "{}", worker.log());

    harness.config("log.level = \"loud\"");
    worker.signal("HUP");
    world::wait_for("the refusal", || worker.logged("log_level_kept").len() == 1).await;
    assert!(worker.logged("log_level_kept")[0].contains("log.level: unknown level"), "{}", worker.log());
    run_probe(&harness).await;
    world::wait_for("the lines of the job", || worker.logged("job_done").len() == 2).await;

    harness.config("log.level = \"off\"");
    worker.signal("HUP");
    world::wait_for("the last line", || worker.logged("log_level_reloaded").len() == 2).await;
    run_probe(&harness).await;
    worker.terminate().await;
    assert_eq!(worker.logged("job_started").len(), 2, "{}", worker.log());
    assert!(worker.logged("worker_ended").is_empty());
}

#[test]
fn hup_ends_every_other_command() {
    // Tests may run where HUP is ignored.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_sidebake"), "enqueue", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // It obeys signals as soon as it catches TERM, the fifteenth.
    let catches_term = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
        u64::from_str_radix(caught, 16).unwrap() & (1 << 14) != 0
    };
    while !catches_term() {
        std::thread::yield_now();
    }
    let sent = Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().signal(), Some(1));
}
