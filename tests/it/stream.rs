//! The output of docker-buildx: its memory, and how customers, operators and programs see it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use world::{Run, Script, Step};

use crate::harness::{HEAVY, Harness, Worker, text};

/// The limit of a worker's resident memory in bytes, with three hostile builds and a harmless one.
const MEMORY: u64 = 100_000_000;

const AT: &str = "2026-11-24T04:05:56Z";

/// Without a trace of each line: the test does not measure the log.
const QUIET: [(&str, &str); 1] = [("SIDEBAKE__LOG__LEVEL", "info")];

/// The peak of resident memory.
fn peak(worker: &Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn vertex(digest: &str, name: &str, more: Value) -> Value {
    let mut vertex = json!({"digest": digest, "name": name, "started": AT});
    vertex.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    json!({"vertexes": [vertex]})
}

fn log(digest: &str, data: &[u8]) -> Value {
    json!({"logs": [{"vertex": digest, "stream": 1, "data": BASE64_STANDARD.encode(data), "timestamp": AT}]})
}

fn events(events: &[Value]) -> Step {
    Step::Stderr(events.iter().map(|event| format!("{event}\n")).collect())
}

/// The output of a `RUN` of 60 kB that prints a million empty lines, without its end.
fn million_lines() -> Vec<Step> {
    let name = format!("[2/2] RUN yes '' | head -n 1000000; true >/dev/null {}", "word ".repeat(12_000));
    let mut steps = vec![events(&[vertex("sha256:a", &name, json!({}))])];
    let lines = log("sha256:a", &vec![b'\n'; 8192]);
    steps.extend((0..1_000_000 / 8192).map(|_| events(std::slice::from_ref(&lines))));
    steps
}

/// The path of the context, as the worker names it.
fn context(run: &Run) -> String {
    run.definition["target"]["vote"]["context"].as_str().unwrap().to_owned()
}

/// The report of a build of the voting app with this script, and the worker's log.
async fn report_of(script: Script) -> (Value, String) {
    report_of_native(script, |_| {}).await
}

async fn report_of_native(script: Script, change: impl FnOnce(&mut Value)) -> (Value, String) {
    report_of_files(&[], script, change).await
}

/// The same, with more files in the repository.
async fn report_of_files(files: &[(&str, &str)], script: Script, change: impl FnOnce(&mut Value)) -> (Value, String) {
    let harness = Harness::start();
    let (repository, sha) = harness.voting_app();
    let sha = if files.is_empty() { sha } else { repository.commit(files) };
    harness.builder.script(script);
    let mut native = harness.native(&sha);
    native["callback"]["on"] = json!(["retrying", "finished"]);
    change(&mut native);
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let worker = harness.worker("");
    let job = harness.callback_jobs(1).await.remove(0);
    let text = job.to_string();
    assert!(text.len() <= 300_000, "a callback of {} bytes", text.len());
    assert!(!text.contains("\\u0000"), "PostgreSQL refuses it");
    (job["args"][0].clone(), worker.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_builds_with_a_million_lines_neither_grow_the_worker_nor_delay_another_build() {
    let _alone = HEAVY.lock().await;
    let harness = Harness::start();
    let flood = [million_lines(), vec![Step::Hold, Step::Exit(0)]].concat();
    harness.builder.script_for_the_rest(Script::new(move |run| {
        if run.targets == ["vote"] { vec![Step::Exit(0)] } else { flood.clone() }
    }));
    let (_, sha) = harness.voting_app();
    for name in ["result", "worker", "result"] {
        let mut native = harness.native(&sha);
        native["application"]["images"][0]["name"] = json!(name);
        harness.redis.push("default", "BuildJob", json!([native])).await;
    }
    let config = harness.config("");
    let worker = harness.worker_with_variables(&config, &[], &QUIET);
    harness.until("three builds run", async || harness.builder.running() == 3).await;
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let innocent = harness.callbacks(1).await.remove(0);
    assert_eq!((&innocent["status"], &innocent["targets"][0]["name"]), (&json!("succeeded"), &json!("vote")));
    (0..3).for_each(|_| harness.builder.release());
    for report in harness.callbacks(4).await {
        assert_eq!(report["status"], "succeeded", "{report:#}");
    }
    assert!(peak(&worker) <= MEMORY, "the worker took {} bytes", peak(&worker));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_docker_buildx_cannot_grow_the_worker() {
    let _alone = HEAVY.lock().await;
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let (long, short) = ("x".repeat(40_000), "x".repeat(100));
    let failed = |n: usize| {
        let name = if n.is_multiple_of(50) { &long } else { &short };
        vertex(&format!("sha256:{n}"), &format!("[{n}/9] RUN {name}"), json!({"error": format!("process \"{name}\"")}))
    };
    let lines = |n: usize| events(&(n * 50..n * 50 + 50).map(failed).collect::<Vec<_>>());
    let mut steps: Vec<Step> = (0..12_000 / 50).map(lines).collect();
    steps.extend((0..300).map(|n| events(&[log(&format!("sha256:{n}"), &[b'y'; 30_000])])));
    // A line without an end.
    steps.extend((0..12).map(|_| Step::Stderr("z".repeat(1 << 20))));
    steps.push(Step::Stderr("\nERROR: failed to solve: not found\n".into()));
    steps.push(Step::Exit(1));
    harness.builder.script(Script::steps(steps));
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let worker = harness.worker_with_variables(&harness.config(""), &[], &QUIET);
    let report = harness.callbacks(1).await.remove(0);
    let notices = report["notices"].as_array().unwrap();
    let has = |words: &str| notices.iter().filter(|notice| notice.as_str().unwrap().contains(words)).count();
    assert_eq!((has("more than 10000 steps"), has("longer than 4194304 bytes")), (1, 1), "{notices:?}");
    assert!(peak(&worker) <= MEMORY, "the worker took {} bytes", peak(&worker));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_masked_across_a_cut_and_in_the_last_line_of_a_step() {
    let harness = Harness::start();
    let secret = "q7Zp_XvK2_Wm9T_hR4d_Lc6Y_Ns8B";
    std::fs::create_dir_all(harness.home.path().join("secrets")).unwrap();
    std::fs::write(harness.home.path().join("secrets/npm"), secret).unwrap();
    let line = format!("{}{secret}{}\n", ".".repeat(8192 - 20), "=".repeat(12_000));
    let colored = format!("the end\x1b[1m of \x1b[31m{}\x1b[0m{}", &secret[..7], &secret[7..]);
    let step = "[2/2] RUN --mount=type=secret,id=npm make";
    harness.builder.script(Script::steps(vec![
        events(&[
            vertex("a", step, json!({})),
            log("a", line.as_bytes()),
            log("a", colored.as_bytes()),
            vertex("a", step, json!({"completed": AT})),
        ]),
        Step::Exit(0),
    ]));
    let (_, sha) = harness.voting_app();
    let mut native = harness.native(&sha);
    native["application"]["images"][0]["secrets"] = json!([{"id": "npm"}]);
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let home = harness.home.path().display().to_string();
    let worker = harness.worker(&format!("accounts.secrets = \"{home}/secrets/{{name}}\""));
    harness.callbacks(1).await;
    let log = worker.log();
    for part in secret.as_bytes().windows(5).map(|part| std::str::from_utf8(part).unwrap()) {
        assert!(!log.contains(part), "{part:?} appears in the log");
    }
    assert!(
        log.contains("***====") && log.contains("the end of ***"),
        "the log shows the whole line and the last line"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn long_errors_are_cut_in_the_callback_and_in_the_log() {
    let long = "e".repeat(640_000);
    let (report, log) = report_of(Script::new(move |_| {
        let error = format!("process \"{long}\" did not complete successfully: exit code: 137");
        let failed =
            |n: usize| vertex(&n.to_string(), &format!("[{n}/9] RUN {long}"), json!({"completed": AT, "error": error}));
        let ending = Step::Stderr(format!("ERROR: failed to solve: {error}\n"));
        vec![events(&(1..=10).map(failed).collect::<Vec<_>>()), ending, Step::Exit(1)]
    }))
    .await;
    let message = report["message"].as_str().unwrap();
    assert!(
        message.len() <= 2048 && message.contains(" exited with 137") && message.contains(" more bytes)"),
        "{message}"
    );
    let error = report["targets"][0]["error"].as_str().unwrap();
    assert!(error.len() <= 4096 && error.starts_with("exited with 137"), "{error}");
    let longest = log.lines().map(str::len).max().unwrap();
    assert!(longest <= 8192, "a log line of {longest} bytes");

    let (report, log) = report_of_native(Script::success(&[]), |native| {
        native["application"]["images"][0]["context"] = json!("../".repeat(300_000));
    })
    .await;
    assert!(report["message"].as_str().unwrap().len() <= 2048, "{report:#}");
    assert!(log.lines().map(str::len).max().unwrap() <= 8192);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_control_character_reaches_the_callback() {
    let (report, log) = report_of(Script::new(|_| {
        let error = "process \"\0\x1b[2J\x08\u{202e}\" did not complete successfully: exit code: 1";
        vec![
            events(&[vertex("a", "[2/2] RUN \0\x1b]0;x\x07", json!({"completed": AT, "error": error}))]),
            Step::Exit(1),
        ]
    }))
    .await;
    assert_eq!(report["reason"], "step_failed", "{report:#}");
    for shown in [&report["message"], &report["targets"][0]["failed_step"]["instruction"]] {
        let shown = shown.as_str().unwrap();
        assert!(shown.contains('␀') && !shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown:?}");
    }
    assert!(!log.contains(['\0', '\x08', '\u{202e}']));
    let tag = "registry.example/acme/vote:\0";
    let (report, _) = report_of_native(Script::success(&[]), |native| {
        native["application"]["images"][0]["tags"] = json!([tag]);
    })
    .await;
    assert!(!report.to_string().contains("\\u00"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_paths_of_the_repository_and_no_internals() {
    let said = "E1124 04:18:04.264391    6145 v2.go:105] \"Copying stdin failed\" err=\"EOF\"\n";
    let scripts: [fn(&Run) -> String; 4] = [
        |run| {
            format!(
                "ERROR: failed to solve: failed to read dockerfile: open {}/Dockerfile: no such file\n",
                context(run)
            )
        },
        |run| {
            format!("ERROR: failed to solve: error from sender: open {}: permission denied\n", run.env["BUILDX_CONFIG"])
        },
        |_| {
            "ERROR: failed to solve: failed to push r.example/x:1: unexpected status from PUT request to \
             https://r.example/v2/x/blobs/uploads/1?_state=s3ss10n&digest=sha256%3Aab: 500 Internal Server Error\n"
                .into()
        },
        |_| {
            "panic: runtime error: index out of range [3]\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:7 +0x1d\n".into()
        },
    ];
    let expected = [
        "open vote/Dockerfile: no such file",
        "open a file of the worker: permission",
        "uploads/1: 500",
        "docker-buildx",
    ];
    for (script, expected) in scripts.into_iter().zip(expected) {
        let ending = move |run: &Run| vec![Step::Stderr(format!("{said}{}", script(run))), Step::Exit(1)];
        let (report, _) = report_of(Script::new(ending)).await;
        let message = report["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
        for trace in ["/run/", "/tmp", "state", ".go:", "goroutine", "s3ss10n", "panic"] {
            assert!(!report.to_string().contains(trace), "{trace} is in {report:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_named_like_an_error_or_a_warning_is_judged_by_its_content() {
    let rule = "-".repeat(20);
    let own = "failed to solve: dockerfile parse error on line 1: unknown instruction: FRM";
    for name in ["ERROR: failed to solve: rpc error: code = Unavailable", "WARNING: x"] {
        let text =
            format!("WARNING: No output specified\n{name}:1\n{rule}\n   1 | >>> FRM base\n{rule}\nERROR: {own}\n");
        let script = Script::steps(vec![
            events(&[vertex("a", "[internal] load", json!({}))]),
            Step::Stderr(text),
            Step::Exit(1),
        ]);
        let files = [(&*format!("vote/{name}"), "FRM base\n")];
        let (report, _) = report_of_files(&files, script, |native| {
            native["application"]["images"][0]["dockerfile"] = json!(name);
        })
        .await;
        assert_eq!((&report["reason"], &report["notices"]), (&json!("dockerfile_invalid"), &json!([])), "{report:#}");
        assert!(report["message"].as_str().unwrap().ends_with("1: unknown instruction: FRM"), "{report:#}");
    }
}

/// A directory with one image and the template of it.
fn tree_of_vote() -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("Dockerfile"), "FROM base\n").unwrap();
    let template = json!({"images": [{"name": "vote", "context": "."}]});
    std::fs::write(tree.path().join("template.json"), template.to_string()).unwrap();
    tree
}

/// The command that builds such a directory.
fn build(harness: &Harness, tree: &tempfile::TempDir) -> std::process::Command {
    let mut command = harness.home.sidebake();
    command.arg("build").arg(tree.path()).arg("--template").arg(tree.path().join("template.json"));
    command.arg("--config").arg(harness.config("")).stdin(std::process::Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_shows_short_lines_without_control_characters() {
    let harness = Harness::start();
    let name = format!("[2/2] RUN true {}", "word ".repeat(12_000));
    harness.builder.script(Script::steps(vec![
        events(&[
            vertex("a", &name, json!({})),
            log("a", b"\x1b[2Jcleared\x07\nsecond\nlast"),
            vertex("a", &name, json!({"completed": AT, "error": "process \"\x1b[8m\" did not complete: exit code: 1"})),
        ]),
        Step::Stderr("ERROR: failed\n".into()),
        Step::Exit(1),
    ]));
    let tree = tree_of_vote();
    let output = build(&harness, &tree).output().unwrap();
    let text = text(&output);
    for line in ["vote 2/2 | cleared␇", "vote 2/2 | second", "vote 2/2 | last"] {
        assert!(text.lines().any(|shown| shown == line), "{line} is missing in {text}");
    }
    assert!(!text.contains('\x1b') && text.lines().all(|line| line.len() < 2500), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_outputs_are_closed_succeeds() {
    let harness = Harness::start();
    harness.builder.script(Script::success(&["vote"]));
    let tree = tree_of_vote();
    let closed = || std::io::pipe().unwrap().1;
    let status = build(&harness, &tree).stdout(closed()).stderr(closed()).status().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(harness.builder.runs().len(), 1);
}
