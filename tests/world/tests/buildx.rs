//! The scripted `docker-buildx` and its builder, end to end, as a worker would drive them.

#![allow(clippy::unwrap_used)] // A failed expectation ends the test.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use serde_json::{Value, json};
use world::{Builder, Run, Script, Step, image_digest, install, wait_for};

struct Desk {
    dir: tempfile::TempDir,
    builder: Builder,
}

impl Desk {
    fn new() -> Desk {
        let desk = Desk { dir: tempfile::tempdir().unwrap(), builder: Builder::start() };
        install(desk.path());
        let node = json!({"Name": "b0", "Endpoint": desk.builder.endpoint(), "Platforms": null, "DriverOpts": null, "Flags": null, "Files": null});
        let record = json!({"Name": "b", "Driver": "remote", "Nodes": [node], "Dynamic": false});
        std::fs::create_dir(desk.path().join("instances")).unwrap();
        std::fs::write(desk.path().join("instances/b"), record.to_string()).unwrap();
        desk
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn spawn(&self, args: &[&str], stdin: &str) -> Child {
        use std::os::unix::process::CommandExt;
        let mut child = Command::new(self.path().join("docker-buildx"))
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("BUILDX_CONFIG", self.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A child that ends before it reads breaks the pipe, such as with a missing builder.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child
    }

    fn buildx(&self, args: &[&str], stdin: &str) -> Output {
        self.spawn(args, stdin).wait_with_output().unwrap()
    }

    fn spawn_bake(&self) -> Child {
        let args =
            ["bake", "--builder", "b", "--progress=rawjson", "--metadata-file", "m.json", "-f", "-", "vote", "result"];
        self.spawn(&args, &definition().to_string())
    }

    fn bake(&self) -> Output {
        self.spawn_bake().wait_with_output().unwrap()
    }

    fn run(&self, n: usize) -> Run {
        self.builder.runs()[n].clone()
    }
}

fn definition() -> Value {
    json!({"target": {
        "vote": {"context": "/w/vote", "args": {"K": "$${x}"}, "tags": ["r.test/acme/vote:1"]},
        "result": {"tags": ["r.test/acme/result:1", "r.test/acme/result:2"]},
    }})
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn a_bake_pushes_what_the_definition_says() {
    let desk = Desk::new();
    let output = desk.bake();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    let events: Vec<Value> = stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["vertexes"][0]["name"] == "[vote 2/2] COPY . /src"));
    let pushed = format!("pushing manifest for r.test/acme/vote:1@{}", image_digest("vote"));
    assert!(events.iter().any(|event| event["statuses"][0]["id"] == pushed), "{stderr}");
    let metadata: Value = serde_json::from_slice(&std::fs::read(desk.path().join("m.json")).unwrap()).unwrap();
    assert_eq!(metadata["vote"]["containerimage.digest"], image_digest("vote"));
    assert_eq!(metadata["result"]["image.name"], "r.test/acme/result:1,r.test/acme/result:2");

    wait_for("the end of the run", || desk.builder.ended() == 1).await;
    let run = desk.run(0);
    assert_eq!((run.exit, run.was_killed(), run.targets), (Some(0), false, vec!["result".into(), "vote".into()]));
    assert_eq!((run.argv[1].as_str(), run.cwd.as_path()), ("bake", desk.path()));
    assert_eq!(run.env.keys().collect::<Vec<_>>(), ["BUILDX_CONFIG"]);
    assert_eq!(run.text, definition().to_string());
    assert_eq!(run.definition["target"]["vote"]["args"]["K"], "$${x}");
}

#[tokio::test]
async fn scripts_are_taken_in_turn_and_fail_like_buildx() {
    let desk = Desk::new();
    desk.builder.script(Script::fails_step("vote", "make all", 2, "no rule\n"));
    desk.builder.script(Script::replay("ERROR: no space left on device\n", 1));
    let failed = text(&desk.bake().stderr);
    let error = r#"ERROR: target vote: failed to solve: process "/bin/sh -c make all" did not complete successfully: exit code: 2"#;
    assert_eq!(failed.lines().last(), Some(error));
    assert!(failed.contains("pushing manifest for r.test/acme/result:2@"), "{failed}");
    let replayed = desk.bake();
    assert_eq!(
        (text(&replayed.stderr).as_str(), replayed.status.code()),
        ("ERROR: no space left on device\n", Some(1))
    );
    assert!(desk.bake().status.success());
}

#[tokio::test]
async fn a_killed_group_ends_the_connection_without_an_exit() {
    let desk = Desk::new();
    // The sleeper's report shows that the child already ignores TERM. The other one shows that it outlived TERM.
    let outlived = Step::Read("/etc/hostname".into());
    desk.builder.script(Script::steps(vec![
        Step::IgnoreTerm(true),
        Step::SpawnSleeper,
        Step::Hold,
        outlived,
        Step::Hang,
    ]));
    let mut child = desk.spawn_bake();
    wait_for("the sleeper", || desk.builder.runs().first().is_some_and(|run| !run.reports.is_empty())).await;
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    desk.builder.release();
    wait_for("the report after TERM", || desk.run(0).reports.len() == 2).await;
    assert_eq!(desk.builder.running(), 1);
    kill_process_group(pid, Signal::KILL).unwrap();
    child.wait().unwrap();
    wait_for("the end of the run", || desk.builder.ended() == 1).await;
    assert!(desk.run(0).was_killed());
    let sleeper = desk.run(0).reports[0].found.clone().unwrap().parse().unwrap();
    // No process may wait for it here, so a zombie counts as ended.
    wait_for("the sleeper's death", || {
        let stat = std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z") || test_kill_process(Pid::from_raw(sleeper).unwrap()).is_err()
    })
    .await;
}

#[tokio::test]
async fn term_ends_a_bake_with_130_and_a_lost_builder_with_1() {
    let desk = Desk::new();
    desk.builder.script_for_the_rest(Script::hang());
    let child = desk.spawn_bake();
    wait_for("the first run", || desk.builder.running() == 1).await;
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    wait_for("the end of the first run", || desk.builder.ended() == 1).await;

    desk.builder.script(Script::success(&[]).held());
    let child = desk.spawn_bake();
    wait_for("the second run", || desk.builder.runs().len() == 2).await;
    desk.builder.drop_connections();
    let lost = child.wait_with_output().unwrap();
    assert!(text(&lost.stderr).contains("error reading from server: EOF"));
    assert_eq!((lost.status.code(), desk.builder.most_at_once()), (Some(1), 1));
}

#[tokio::test]
async fn held_runs_go_on_one_release_at_a_time() {
    let desk = Desk::new();
    desk.builder.script_for_the_rest(Script::cached(&[]).held());
    let children = [desk.spawn_bake(), desk.spawn_bake()];
    wait_for("both runs", || desk.builder.running() == 2).await;
    desk.builder.release();
    wait_for("the end of one", || desk.builder.ended() == 1).await;
    // A whole run passes meanwhile.
    desk.builder.script(Script::cached(&[]));
    assert!(desk.bake().status.success());
    wait_for("the end of the run between", || desk.builder.ended() == 2).await;
    assert_eq!(desk.builder.running(), 1);
    desk.builder.release();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
}

#[tokio::test]
async fn probes_report_what_they_found() {
    let desk = Desk::new();
    let steps = vec![
        Step::Read("/etc/hostname".into()),
        Step::Read("/nowhere".into()),
        Step::Connect("127.0.0.1:1".into()),
        Step::Exit(0),
    ];
    desk.builder.script(Script::steps(steps));
    assert!(desk.bake().status.success());
    wait_for("the end of the run", || desk.builder.ended() == 1).await;
    let reports = desk.run(0).reports;
    assert!(reports[0].found.is_some());
    assert_eq!((reports[1].errno, reports[2].errno), (Some(2), Some(111)));
    assert_eq!(reports[1].step, json!({"read": "/nowhere"}));
}

#[test]
fn mistakes_have_the_messages_of_buildx() {
    let desk = Desk::new();
    let definition = definition().to_string();
    for (args, error) in [
        (&["bake", "-f", "-", "--print", "nosuch"][..], "ERROR: failed to find target nosuch\n"),
        (&["bake", "-f", "-", "--builder", "nope", "vote"], "ERROR: no builder \"nope\" found\n"),
    ] {
        let output = desk.buildx(args, &definition);
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), error));
    }
}
