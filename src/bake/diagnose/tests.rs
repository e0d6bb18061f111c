//! Recorded failures, and errors in which customers imitate others.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;
use crate::bake::evidence::BUILDKIT;
use crate::bake::mask::Mask;
use crate::bake::progress::Baked;
use crate::bake::shown::Shown;
use crate::reason::Evidence;
use crate::text::paths::WorkerPaths;

fn diagnosis(version: &str, case: &str, targets: &[&str]) -> Option<Failure> {
    let folder = format!("{}/tests/fixtures/buildx/{version}/{case}", env!("CARGO_MANIFEST_DIR"));
    let stderr = std::fs::read(format!("{folder}.stderr")).expect("a fixture");
    let exit: i32 =
        std::fs::read_to_string(format!("{folder}.exit")).expect("a fixture").trim().parse().expect("a number");
    let mut progress = progress(targets, "Dockerfile");
    let lines = stderr.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.for_each(|line| progress.line(line, &mut |_| {}));
    match diagnose(Ended::Exited(ExitStatus::from_raw(exit << 8)), &progress) {
        Some(End::Failed(failure)) => Some(failure),
        Some(End::Stopped) => panic!("no test stops a bake"),
        None => None,
    }
}

fn progress(targets: &[&str], dockerfile: &str) -> Progress {
    let targets = targets.iter().map(|target| ((*target).to_owned(), Vec::new())).collect();
    let baked = Baked { targets, dockerfiles: [dockerfile.to_owned()].into() };
    Progress::new(baked, Shown::new(Mask::new([]), WorkerPaths::default()))
}

/// Why a bake failed that ended with this text.
fn ended_with(dockerfile: &str, text: &str) -> Failure {
    let mut progress = progress(&["web"], dockerfile);
    text.lines().for_each(|line| progress.line(line.as_bytes(), &mut |event| panic!("forged: {event:?}")));
    exited(&progress)
}

#[test]
fn a_file_that_is_called_like_an_error_has_the_error_of_its_content() {
    let rule = "-".repeat(20);
    let own = "failed to solve: dockerfile parse error on line 1: unknown instruction: FRM";
    for name in [
        "ERROR: failed to solve: rpc error: code = Unavailable",
        "ERROR: failed to solve: dockerfile parse error on line 9",
        "WARNING: x",
        "{\"vertexes\":[{\"digest\":\"x\",\"name\":\"[1/1] RUN x\",\"started\":\"2026-11-24T04:05:56Z\"}]}",
    ] {
        let text = format!("WARNING: y\n{name}:1\n{rule}\n   1 | >>> FRM x\n{rule}\nERROR: {own}\n");
        let failure = ended_with(name, &text);
        assert_eq!((failure.reason, &*failure.detail), (Reason::DockerfileInvalid, own), "{name}");
        // Another frontend may call the file as it likes.
        if !name.contains("line 9") {
            assert_eq!(ended_with("Dockerfile", &text).detail, own, "{name}");
        }
    }
}

#[test]
fn a_crash_of_buildx_is_not_told_in_gos_words() {
    let crash =
        "panic: runtime error: index out of range [1]\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:3 +0x1d";
    let failure = ended_with("Dockerfile", crash);
    assert_eq!(
        (failure.reason, &*failure.detail),
        (Reason::BuildFailed, "docker-buildx ended without an error message")
    );
    let klog = "E1124 04:18:04.264391    6145 v2.go:105] \"Unhandled Error\" err=\"EOF\"";
    assert_eq!(ended_with("Dockerfile", klog).detail, "\"Unhandled Error\" err=\"EOF\"");
}

#[test]
fn a_step_with_a_long_command_says_how_it_ended() {
    let command = "x ".repeat(30_000);
    let line = serde_json::json!({"vertexes": [{
        "digest": "a", "name": format!("[2/2] RUN {command}"), "completed": "2026-11-24T04:05:56Z",
        "error": format!("process \"/bin/sh -c {command}\" did not complete successfully: exit code: 137")}]});
    let mut progress = progress(&["web"], "Dockerfile");
    progress.line(line.to_string().as_bytes(), &mut |_| {});
    let failure = exited(&progress);
    assert!(failure.detail.ends_with("exit code: 137") && failure.detail.len() < 1900, "{failure}");
}

#[test]
fn every_recorded_failure_has_its_reason() {
    for version in ["0.29", "0.36"] {
        for (case, reason) in [
            ("success-push", None),
            ("cached-push", None),
            ("failing-run", Some(Reason::StepFailed)),
            ("one-of-three-fails", Some(Reason::StepFailed)),
            ("missing-dockerfile", Some(Reason::DockerfileNotFound)),
            ("missing-context", Some(Reason::ContextNotFound)),
            ("missing-copy-source", Some(Reason::FileNotFound)),
            ("missing-base-image", Some(Reason::BaseImageNotFound)),
            ("dockerfile-syntax", Some(Reason::DockerfileInvalid)),
            ("unknown-target", Some(Reason::DefinitionInvalid)),
            ("push-refused", Some(Reason::RegistryUnavailable)),
            ("push-unauthorized", Some(Reason::RegistryDenied)),
            ("missing-builder", Some(Reason::BuilderUnavailable)),
        ] {
            let found = diagnosis(version, case, &["api"]).map(|failure| failure.reason);
            assert_eq!(found, reason, "{version}/{case}");
        }
    }
    let lost = diagnosis("0.36", "exec-stream-lost", &["slow"]).expect("a failure");
    assert_eq!(lost.reason, Reason::BuilderLost);
    assert_eq!(diagnosis("0.29", "server-killed", &["slow"]).map(|failure| failure.reason), Some(Reason::BuilderLost));
    assert_eq!(diagnosis("0.29", "success-with-canceled-vertex", &["api"]), None);
    assert_eq!(diagnosis("0.29", "server-graceful-stop", &["slow"]), None);
}

#[test]
fn the_detail_names_target_and_step() {
    let failure = diagnosis("0.36", "one-of-three-fails", &["api", "web", "broken"]).expect("a failure");
    assert!(failure.detail.starts_with("target broken, ["), "{failure}");
    assert!(failure.detail.contains("exit code: 3"), "{failure}");
}

#[test]
fn a_solve_that_buildkit_has_not_begun_in_time_is_not_the_customers_fault() {
    let line = "failed to receive status: rpc error: code = NotFound desc = no such job xtcwi97x2fguo5z68ffeg6v5a";
    for line in [line.to_owned(), format!("target web-58: {line}"), format!("failed to solve: {line}")] {
        assert_eq!(by_error_line(&line, false), Reason::BuilderUnavailable, "{line}");
    }
}

/// Why a bake failed in which this step ended with this error, and nothing but the step said why.
fn failed_step(name: &str, error: &str) -> Reason {
    failure_of_step(name, error).reason
}

fn failure_of_step(name: &str, error: &str) -> Failure {
    let line = serde_json::json!({"vertexes": [{
        "digest": "a", "name": name, "completed": "2026-11-24T04:05:56Z", "error": error}]});
    let mut progress = progress(&["web"], "Dockerfile");
    progress.line(line.to_string().as_bytes(), &mut |_| {});
    progress.line(format!("ERROR: failed to solve: {error}").as_bytes(), &mut |_| {});
    exited(&progress)
}

#[test]
fn a_killed_step_is_evidence_and_a_customers_text_about_one_is_not() {
    let ended = |command: &str, end: &str| {
        let error = format!("process \"/bin/sh -c {command}\" did not complete successfully: {end}");
        let failure = failure_of_step(&format!("[2/2] RUN {command}"), &error);
        assert_eq!(failure.reason, Reason::StepFailed, "{failure}");
        failure.evidence
    };
    let long = "x ".repeat(30_000);
    for command in ["make", &long] {
        assert_eq!(ended(command, "exit code: 137"), Some(Evidence::StepKilled));
        assert_eq!(ended(command, "exit code: 1"), None);
    }
    for command in [
        "echo exit code: 137",
        "echo exit code: 143",
        "echo OOMKilled",
        "echo pods is forbidden: User \\\"me\\\" cannot list",
    ] {
        assert_eq!(ended(command, "exit code: 1"), None, "{command}");
    }
}

#[test]
fn what_a_step_is_called_makes_it_no_base_image_and_no_echo() {
    let file = "lstat /root/buildkit/cachemounts/buildkit3359588902/x/] FROM connection refused: not a directory";
    for (name, error, reason) in [
        ("[3/3] WORKDIR /x/] FROM connection refused", file, Reason::StepFailed),
        (
            "[2/2] ADD [http://127.0.0.1:1/x] FROM y,/x]",
            "failed to load cache key: Get \"http://127.0.0.1:1/x%5D%20FROM%20y\": dial tcp: connect: connection refused",
            Reason::StepFailed,
        ),
        (
            "[3/3] WORKDIR /x/context canceled",
            "lstat /buildkit1768283894/x/context canceled: not a directory",
            Reason::StepFailed,
        ),
        (
            "[2/2] ADD http://127.0.0.1:1/x /",
            "Get \"http://127.0.0.1:1/x\": dial tcp 127.0.0.1:1: connect: connection refused",
            Reason::StepFailed,
        ),
        (
            "resolve image config for docker-image://r.example/x:1",
            "failed to do request: Head \"https://r.example/v2/x/manifests/1\": dial tcp: no such host",
            Reason::RegistryUnavailable,
        ),
        ("[stage 1/2] FROM r.example/x:1", "r.example/x:1: not found", Reason::BaseImageNotFound),
        ("[1/2] FROM r.example/x:1", "dial tcp 10.0.0.1:99: connect: connection refused", Reason::RegistryUnavailable),
    ] {
        assert_eq!(failed_step(name, error), reason, "{name}");
    }
}

#[test]
fn a_path_that_leads_through_a_file_is_the_customers() {
    for (name, error) in [
        ("[3/3] WORKDIR /x/y", "lstat /buildkit/buildkit680002012/x/y: not a directory"),
        ("[3/3] COPY Dockerfile /x/y", "mkdir /buildkit/buildkit274374101/x: not a directory"),
        ("[3/3] COPY . /x", "cannot copy to non-directory: /buildkit/buildkit4198201488/x"),
        (
            "[3/3] COPY Dockerfile /x/",
            "cannot replace to directory /buildkit/buildkit3449644680/x/Dockerfile with file",
        ),
    ] {
        assert_eq!(failed_step(name, error), Reason::StepFailed, "{name}");
    }
    for (name, error) in [
        ("[3/3] WORKDIR /x/y", "mkdir /buildkit/buildkit680002012/x/y: no space left on device"),
        ("[2/3] RUN make", "failed to mount /buildkit/buildkit1: not a directory"),
    ] {
        assert_eq!(failed_step(name, error), Reason::BuildFailed, "{name}");
    }
}

#[test]
fn a_bake_of_which_nothing_but_echoes_is_known_is_judged_by_its_error() {
    for (error, reason) in
        [("Canceled: context canceled", Reason::BuildFailed), ("context canceled", Reason::BuildFailed)]
    {
        assert_eq!(failed_step("[2/3] RUN make", error), reason, "{error}");
    }
}

#[test]
fn a_field_that_buildx_quotes_is_not_searched_for_words() {
    for (line, reason) in [
        ("invalid host foo=code = Unavailable", Reason::DefinitionInvalid),
        ("invalid tag \"connection refused\": invalid reference format", Reason::DefinitionInvalid),
        ("unable to prepare context: path \"code = Unavailable\" not found", Reason::ContextNotFound),
        ("failed to get build context unexpected EOF: stat x: no such file or directory", Reason::ContextNotFound),
        ("network mode \"closing transport\" not supported by buildkit - you can define", Reason::DefinitionInvalid),
        ("error from sender: open x/context deadline exceeded: permission denied", Reason::BuildFailed),
        (
            "unable to derive the IP value for host-gateway: host-gateway is not supported by the kubernetes driver",
            Reason::DefinitionInvalid,
        ),
        ("failed to receive status: rpc error: code = Unavailable desc = EOF", Reason::BuilderLost),
        ("listing workers for Build: failed to list workers: Unavailable: closing", Reason::BuilderUnavailable),
    ] {
        assert_eq!(by_error_line(line, false), reason, "{line}");
        assert_eq!(by_error_line(&format!("target web: {line}"), false), reason, "{line}");
    }
}

#[test]
fn a_customers_own_words_are_not_matched() {
    for (line, reason) in [
        (
            r#"process "/bin/sh -c false # connection refused, code = Unavailable" did not complete successfully: exit code: 1"#,
            Reason::StepFailed,
        ),
        (r#"failed to process "${NOPE:?no": NOPE: connection refused"#, Reason::DockerfileInvalid),
        (
            r#"failed to process "\"${B:?x: no space left on device}\"": B: x: no space left on device"#,
            Reason::DockerfileInvalid,
        ),
        (
            r#"failed to process "${B:?a: failed to resolve source metadata for x: 503 service}": B: a: failed to resolve source metadata for x: 503 service"#,
            Reason::DockerfileInvalid,
        ),
        ("invalid signal: dial tcp: connection refused", Reason::DockerfileInvalid),
        ("invalid signal: x: no space left on device", Reason::DockerfileInvalid),
        (r#"target stage "x: no space left on device" could not be found"#, Reason::DockerfileInvalid),
        ("invalid boolean value for multi-platform: x: no space left on device", Reason::DefinitionInvalid),
        ("index annotations not supported for single platform export", Reason::DefinitionInvalid),
        ("mkdir /var/lib/buildkit/snapshots/9: no space left on device", Reason::BuildFailed),
        ("failed to prepare x: write /var/lib/buildkit/x: input/output error", Reason::BuildFailed),
        ("failed to parse platform dial tcp: connection refused: not an OS", Reason::DockerfileInvalid),
        ("Invalid containerPort: a", Reason::DockerfileInvalid),
        ("failed to load LLB: network.host is not allowed", Reason::PolicyRefused),
        (
            "r.example/toomanyrequests:1: failed to resolve source metadata for r.example/toomanyrequests:1: not found",
            Reason::BaseImageNotFound,
        ),
        (
            r#"failed to push r.example/x:1: failed to do request: Head "http://r.example/v2": dial tcp r.example: connect: connection refused"#,
            Reason::RegistryUnavailable,
        ),
        ("ResourceExhausted: grpc: received message larger than max (7531213 vs. 4194304)", Reason::DockerfileInvalid),
        ("Internal: something broke", Reason::BuildFailed),
        ("DeadlineExceeded: context deadline exceeded", Reason::BuilderUnavailable),
        (
            r#"Internal: rpc error: code = Internal desc = header key "followpaths" contains value with non-printable ASCII characters"#,
            Reason::FileNotFound,
        ),
        (
            "r.example/x:1: failed to resolve source metadata for r.example/x:1: failed to fetch anonymous token: dial tcp 10.0.0.1:99: connect: permission denied",
            Reason::RegistryDenied,
        ),
        (
            "x: failed to resolve source metadata for docker.io/library/x:latest: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
            Reason::BaseImageNotFound,
        ),
    ] {
        for begin in BUILDKIT {
            assert_eq!(by_error_line(&format!("{begin}{line}"), false), reason, "{line}");
            assert_eq!(by_error_line(&format!("target web: {begin}{line}"), false), reason, "{line}");
        }
    }
}
