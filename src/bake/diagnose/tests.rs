//! Recorded failures, and errors in which customers imitate others.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;
use crate::bake::evidence::BUILDKIT;
use crate::bake::mask::Mask;
use crate::bake::own_registries::OwnRegistries;
use crate::bake::progress::Baked;
use crate::bake::shown::Shown;
use crate::reason::Evidence;
use crate::text::paths::WorkerPaths;

const NO_LINE: fn(&str, &FailedStep) -> Option<u32> = |_, _| None;

fn diagnosis(version: &str, case: &str, targets: &[&str]) -> Option<Failure> {
    let folder = format!("{}/tests/fixtures/buildx/{version}/{case}", env!("CARGO_MANIFEST_DIR"));
    let stderr = std::fs::read(format!("{folder}.stderr")).expect("a fixture");
    let exit: i32 =
        std::fs::read_to_string(format!("{folder}.exit")).expect("a fixture").trim().parse().expect("a number");
    let mut progress = progress(targets, "Dockerfile");
    let lines = stderr.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.for_each(|line| progress.line(line, &mut |_| {}));
    match diagnose(Ended::Exited(ExitStatus::from_raw(exit << 8)), &progress, &NO_LINE) {
        Some(End::Failed(failure)) => Some(failure),
        Some(End::Stopped) => panic!("no test stops a bake"),
        None => None,
    }
}

fn progress(targets: &[&str], dockerfile: &str) -> BakeProgress {
    let targets = targets.iter().map(|target| ((*target).to_owned(), Vec::new())).collect();
    let own_registries = OwnRegistries::new([], ["pushed.example/shop/web:1"]);
    let baked = Baked { targets, dockerfile_names: [dockerfile.to_owned()].into(), own_registries, ..Baked::default() };
    BakeProgress::new(baked, Shown::new(Mask::new([]), WorkerPaths::default()))
}

/// Why a bake failed that ended with this text.
fn ended_with(dockerfile: &str, text: &str) -> Failure {
    let mut progress = progress(&["web"], dockerfile);
    text.lines().for_each(|line| progress.line(line.as_bytes(), &mut |event| panic!("forged: {event:?}")));
    exited(&progress, &NO_LINE)
}

#[test]
fn a_file_that_is_called_like_an_error_has_the_error_of_its_content() {
    let rule = "-".repeat(20);
    let own = "dockerfile parse error on line 1: unknown instruction: FRM";
    for name in [
        "ERROR: failed to solve: rpc error: code = Unavailable",
        "ERROR: failed to solve: dockerfile parse error on line 9",
        "WARNING: x",
        "{\"vertexes\":[{\"digest\":\"x\",\"name\":\"[1/1] RUN x\",\"started\":\"2026-11-24T04:05:56Z\"}]}",
    ] {
        let text = format!("WARNING: y\n{name}:1\n{rule}\n   1 | >>> FRM x\n{rule}\nERROR: failed to solve: {own}\n");
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
    let failure = exited(&progress, &NO_LINE);
    assert!(failure.detail.contains(" exited with 137") && failure.detail.len() < 1900, "{failure}");
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
fn every_failure_of_a_real_engine_has_its_reason() {
    for (case, reason) in [
        ("copy-selflink", Reason::StepFailed),
        ("workdir-on-file", Reason::StepFailed),
        ("copy-into-file", Reason::StepFailed),
        ("copy-from-missing", Reason::FileNotFound),
        ("add-checksum", Reason::StepFailed),
        ("add-truncated", Reason::StepFailed),
        ("ssh-required", Reason::StepFailed),
        ("exit137", Reason::OutOfMemory),
        ("syntax-nosuch", Reason::FrontendNotFound),
        ("syntax-away", Reason::RegistryUnavailable),
        ("syntax-not-frontend", Reason::FrontendNotFound),
        ("utf16", Reason::DockerfileInvalid),
        ("dockerfile-too-large", Reason::BuildTooLarge),
        ("stage-typo", Reason::BaseImageNotFound),
        ("from-nohost", Reason::BaseImageNotFound),
        ("push400", Reason::RegistryRejected),
        ("push404", Reason::RegistryRejected),
        ("push405", Reason::RegistryRejected),
        ("push412", Reason::RegistryRejected),
        ("push413", Reason::RegistryRejected),
        ("push415", Reason::RegistryRejected),
        ("push429", Reason::RegistryRateLimited),
        ("push403", Reason::RegistryDenied),
        ("push500", Reason::RegistryUnavailable),
        ("pull400", Reason::RegistryRejected),
        ("pull403", Reason::BaseImageDenied),
        ("pull429", Reason::RegistryRateLimited),
        ("from-truncated", Reason::RegistryUnavailable),
        ("from-wrongdigest", Reason::RegistryUnavailable),
        ("from-html", Reason::RegistryUnavailable),
        ("from-blob429", Reason::RegistryRateLimited),
    ] {
        let failure = diagnosis("engine-26.1", case, &["web"]).expect("a failure");
        assert_eq!(failure.reason, reason, "{case}: {failure}");
    }
    let detail = |case: &str| diagnosis("engine-26.1", case, &["web"]).expect("a failure").detail;
    assert_eq!(
        detail("copy-from-missing"),
        "Step 2/2 of `web` failed: `COPY --from=registry.example.test/base:1 /missing /x` (line 3): \
         lstat /missing: no such file or directory"
    );
    assert_eq!(detail("copy-selflink"), "Step 2/2 of `web` failed: `COPY a /x` (line 3): too many symlinks: /a");
    assert!(detail("stage-typo").ends_with("no stage or image is called biuld; did you mean build?"));
    assert!(detail("ssh-required").ends_with("builds get no SSH agent; use a build secret"));
    assert!(detail("from-nohost").ends_with("no registry is called no-such-host.invalid"));
    assert!(detail("dockerfile-too-large").ends_with("has 17512501 bytes; the limit is 16777216"));
    assert!(detail("utf16").ends_with("the Dockerfile is not UTF-8"));
    let killed = diagnosis("0.36", "memory-limited-step-killed", &["mem"]).expect("a failure");
    assert_eq!((killed.reason, killed.evidence), (Reason::OutOfMemory, Some(Evidence::OutOfMemory)));
}

#[test]
fn every_failure_of_a_new_buildkit_has_its_reason_and_names_what_to_change() {
    for (case, reason, detail) in [
        (
            "push-unknown-repository",
            Reason::RegistryRejected,
            "unknown: The repository with name 'shop/web' does not exist",
        ),
        ("push-immutable-tag", Reason::RegistryRejected, "cannot be overwritten because the tag is immutable."),
        (
            "push-denied",
            Reason::RegistryDenied,
            "denied: Permission \"artifactregistry.repositories.uploadArtifacts\" denied",
        ),
        ("push-quota", Reason::RegistryRejected, "denied: Quota has been exceeded on namespace"),
        ("push-two-errors", Reason::RegistryDenied, "errors: denied: first; unsupported: second"),
        ("push-failing", Reason::RegistryUnavailable, "failed to push other.example.test/z-500unk:1: unknown"),
        ("push-unsupported", Reason::RegistryRejected, "unsupported: The repository is in read-only mode"),
        ("push-limited", Reason::RegistryRateLimited, "toomanyrequests: Rate exceeded"),
        (
            "mount-source-missing",
            Reason::FileNotFound,
            "target=/p cat /p` (line 2): open /nope: no such file or directory",
        ),
        ("copy-into-file", Reason::StepFailed, "`COPY dir /file` (line 3): cannot copy to non-directory: /file"),
        ("from-chart", Reason::BaseImageNotFound, "it is not an image that BuildKit can use"),
        ("from-schema1", Reason::BaseImageNotFound, "it is not an image that BuildKit can use"),
        ("from-other-platform", Reason::BaseImageNotFound, "the image does not exist for the platform of the build"),
        ("syntax-chart", Reason::FrontendNotFound, "frontend `other.example.test/m-artifact:1` of `web`: "),
        ("add-git-missing", Reason::StepFailed, "git stderr: remote: 404 page not found; fatal: repository "),
        ("chmod-invalid", Reason::DockerfileInvalid, "invalid syntax"),
        ("security-insecure", Reason::PolicyRefused, "not allowed: remove `--security=insecure` from the Dockerfile"),
        ("copy-excluded-pattern", Reason::FileNotFound, "(line 2): lstat /nowhere: no such file or directory"),
        ("every-lint-rule", Reason::FileNotFound, "`COPY secret.txt /x` (line 15): \"/secret.txt\": not found"),
    ] {
        let failure = diagnosis("buildkit-2026-11", case, &["web"]).expect("a failure");
        assert_eq!(failure.reason, reason, "{case}: {failure}");
        assert!(failure.detail.contains(detail), "{case}: {failure}");
        for noise in ["failed to solve", "snapshots", "of ref ", "[internal]"] {
            assert!(!failure.detail.contains(noise), "{case}: {failure}");
        }
    }
}

#[test]
fn an_error_of_a_dockerfile_says_where_it_is_and_the_base_image_is_named_once() {
    let files = BTreeMap::from([("web".to_owned(), "web/Dockerfile".to_owned())]);
    let targets = BTreeMap::from([("web".to_owned(), Vec::new())]);
    let detail = |lines: &[String]| {
        let baked = Baked {
            targets: targets.clone(),
            dockerfiles: files.clone(),
            dockerfile_names: ["Dockerfile".to_owned()].into(),
            ..Baked::default()
        };
        let mut progress = BakeProgress::new(baked, Shown::new(Mask::new([]), WorkerPaths::default()));
        lines.iter().for_each(|line| progress.line(line.as_bytes(), &mut |_| {}));
        exited(&progress, &NO_LINE).detail
    };
    let rule = "-".repeat(20);
    let block = ["Dockerfile:3", &rule, "   3 | >>> COPY --chmod=abc x /x", &rule].map(str::to_owned);
    let ended = |error: &str| [&block[..], &[format!("ERROR: failed to solve: {error}")]].concat();
    assert_eq!(detail(&ended("invalid syntax")), "web/Dockerfile:3: invalid syntax");
    let numbered = "dockerfile parse error on line 3: unknown flag: chmd";
    assert_eq!(detail(&ended(numbered)), "web/Dockerfile:3: unknown flag: chmd");
    assert_eq!(
        detail(&ended("dockerfile parse error on line x: y")),
        "web/Dockerfile:3: dockerfile parse error on line x: y"
    );
    // Not of the Dockerfile.
    assert_eq!(detail(&["ERROR: failed to solve: syntax error in pattern".to_owned()]), "syntax error in pattern");
    let vertex = |name: &str, error: &str| {
        let events = serde_json::json!({"vertexes": [
            {"digest": "b", "name": "[internal] load build definition from Dockerfile", "completed": "2026-11-24T04:05:56Z"},
            {"digest": "a", "name": name, "completed": "2026-11-24T04:05:56Z", "error": error}]});
        [&[events.to_string()], &ended(error)[..]].concat()
    };
    assert_eq!(
        detail(&vertex("[internal] load metadata for r.example/x:1", "r.example/x:1: not found")),
        "base image `r.example/x:1` of `web` (web/Dockerfile:3): not found"
    );
    assert_eq!(
        detail(&vertex("resolve image config for docker-image://r.example/x:1", "r.example/x:1: not found")),
        "frontend `r.example/x:1` of `web` (web/Dockerfile:3): not found"
    );
}

#[test]
fn a_step_has_the_line_that_its_dockerfile_shows_when_buildx_shows_none() {
    let line = serde_json::json!({"vertexes": [{"digest": "a", "name": "[2/2] ADD http://x.example/a /x",
        "completed": "2026-11-24T04:05:56Z", "error": "invalid response status 404"}]});
    let mut progress = progress(&["web"], "Dockerfile");
    progress.line(line.to_string().as_bytes(), &mut |_| {});
    progress.line(b"ERROR: failed to solve: failed to load cache key: invalid response status 404", &mut |_| {});
    let line_of = |target: &str, step: &FailedStep| (target == "web" && step.number == 2).then_some(7);
    assert!(exited(&progress, &line_of).detail.ends_with("(line 7): invalid response status 404"));
}

#[test]
fn the_detail_names_target_and_step() {
    let failure = diagnosis("0.36", "one-of-three-fails", &["api", "web", "broken"]).expect("a failure");
    assert_eq!(
        failure.message(),
        "Step 2/2 of `broken` failed: `RUN sleep 0.2 && exit 3` (line 2) exited with 3 and printed nothing"
    );
}

#[test]
fn a_solve_that_buildkit_has_not_begun_in_time_is_not_the_customers_fault() {
    let line = "failed to receive status: rpc error: code = NotFound desc = no such job xtcwi97x2fguo5z68ffeg6v5a";
    for line in [line.to_owned(), format!("target web-58: {line}"), format!("failed to solve: {line}")] {
        assert_eq!(of_line(&line), Reason::BuilderUnavailable, "{line}");
    }
    // buildx 0.36, and an older one.
    for code in ["NotFound: ", "rpc error: code = NotFound desc = "] {
        for begin in ["", "failed to solve: ", "target web-58: failed to solve: "] {
            let line = format!("{begin}{code}forwarding Ping: no such job 68h083wyaow192sgvmb9xf16k");
            assert_eq!(of_line(&line), Reason::BuilderUnavailable, "{line}");
        }
    }
    let quoted = "failed to solve: NotFound: forwarding `x y`: no such job 1";
    assert_ne!(of_line(quoted), Reason::BuilderUnavailable);
}

/// The reason that buildx's last line gives, when no vertex says why.
fn of_line(line: &str) -> Reason {
    let seen = Seen { has_failed_vertex: false, has_steps: false, own: &OwnRegistries::default() };
    by_error_line(line, evidence::Line::parse(line).evidence(), &seen).reason
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
    exited(&progress, &NO_LINE)
}

#[test]
fn a_killed_step_is_evidence_and_a_customers_text_about_one_is_not() {
    let ended = |command: &str, end: &str| {
        let error = format!("process \"/bin/sh -c {command}\" did not complete successfully: {end}");
        let failure = failure_of_step(&format!("[2/2] RUN {command}"), &error);
        (failure.reason, failure.evidence)
    };
    let long = "x ".repeat(30_000);
    for command in ["make", &long] {
        assert_eq!(ended(command, "exit code: 137"), (Reason::OutOfMemory, Some(Evidence::OutOfMemory)));
        assert_eq!(ended(command, "cannot allocate memory"), (Reason::OutOfMemory, Some(Evidence::OutOfMemory)));
        assert_eq!(ended(command, "exit code: 143"), (Reason::StepFailed, Some(Evidence::StepKilled)));
        assert_eq!(ended(command, "exit code: 1"), (Reason::StepFailed, None));
        let full = "failed to create shim task: mkdir /run/x: no space left on device";
        assert_eq!(ended(command, full), (Reason::BuilderDiskFull, None));
    }
    for command in [
        "echo exit code: 137",
        "echo exit code: 143",
        "echo OOMKilled",
        "echo mkdir /x: no space left on device",
        "echo unexpected status from PUT request to https://r/v2/: 429 Too Many Requests",
        "echo pods is forbidden: User \\\"me\\\" cannot list",
    ] {
        assert_eq!(ended(command, "exit code: 1"), (Reason::StepFailed, None), "{command}");
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
            Reason::FrontendNotFound,
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
}

#[test]
fn a_step_is_the_customers_unless_its_cause_is_known_to_be_the_builders() {
    let copy = "[3/3] COPY a /x";
    let checksum = "failed to calculate checksum of ref vn7i::qmx: ";
    for (name, error, reason) in [
        ("[3/3] WORKDIR /w/x", "too many links", Reason::StepFailed),
        (copy, "too many links", Reason::StepFailed),
        (copy, "can't find uid for user nobody-here: no such user: nobody-here", Reason::StepFailed),
        (copy, "invalid user index: -1", Reason::StepFailed),
        ("[2/2] ADD a.tar.gz /x", "unexpected EOF", Reason::StepFailed),
        ("[2/2] ADD a.tar.gz /x", "archive/tar: invalid tar header", Reason::StepFailed),
        ("[2/2] ADD https://x.example/a /x", "digest mismatch sha256:1: sha256:2", Reason::StepFailed),
        ("[2/2] ADD https://x.example/a /x", "invalid response status 404", Reason::StepFailed),
        (
            "[2/2] ADD https://x.example/a.git /x",
            "failed to fetch remote https://x.example/a.git: not found",
            Reason::StepFailed,
        ),
        ("[2/2] RUN --mount=type=ssh true", "no SSH key \"x\" forwarded from the client", Reason::StepFailed),
        ("[2/2] RUN --mount=type=secret,id=x true", "secret x: not found", Reason::StepFailed),
        (copy, "lstat /tmp/buildkit-mount38/a: no such file or directory", Reason::FileNotFound),
        (copy, "/a not found", Reason::FileNotFound),
        ("[2/2] RUN --mount=from=x,source=/a true", &format!("{checksum}\"/a\": not found"), Reason::FileNotFound),
        (copy, &format!("{checksum}lstat /a: no such file or directory"), Reason::FileNotFound),
        (copy, "write /var/lib/buildkit/x: no space left on device", Reason::BuilderDiskFull),
        (
            copy,
            "failed to copy files: userspace copy failed: write /x: no space left on device",
            Reason::BuilderDiskFull,
        ),
        ("[2/2] WORKDIR /x", "mkdir /x: disk quota exceeded", Reason::BuilderDiskFull),
        (copy, &format!("{checksum}failed to prepare x: no space left on device"), Reason::BuilderDiskFull),
        (copy, "write /var/lib/buildkit/x: input/output error", Reason::BuildFailed),
        ("[2/3] RUN make", "failed to mount /buildkit/buildkit1: not a directory", Reason::BuildFailed),
        ("[2/3] RUN make", "unexpected EOF", Reason::BuildFailed),
        ("[2/3] RUN make", "rpc error: code = Unavailable desc = error reading from server: EOF", Reason::BuilderLost),
        (
            "[1/2] FROM r.example/x:1",
            "failed to extract layer sha256:1: mount callback failed on /x: write /y: no space left on device",
            Reason::BuilderDiskFull,
        ),
        ("exporting to image", "write /var/lib/docker/x: no space left on device", Reason::BuilderDiskFull),
        // A layer that is pulled only when a step needs it.
        (
            "[2/3] RUN make",
            "failed to copy: httpReadSeeker: failed open: unexpected status code https://r.example/v2/x/blobs/sha256:1: 429 Too Many Requests",
            Reason::RegistryRateLimited,
        ),
        (
            copy,
            &format!(
                "{checksum}failed to copy: httpReadSeeker: failed open: unexpected status code https://r.example/v2/x/blobs/sha256:1: 403 Forbidden"
            ),
            Reason::BaseImageDenied,
        ),
        (copy, "failed to read expected number of bytes: unexpected EOF", Reason::RegistryUnavailable),
    ] {
        assert_eq!(failed_step(name, error), reason, "{name}: {error}");
    }
}

#[test]
fn an_error_that_is_not_known_does_not_prove_that_the_builder_was_there() {
    let evidence = |name: &str, error: &str| failure_of_step(name, error).evidence;
    assert_eq!(evidence("[2/2] COPY a /x", "something new"), Some(Evidence::UnknownError));
    assert_eq!(evidence("[2/2] COPY a /x", "lstat /a: no such file or directory"), None);
    let exited = "process \"/bin/sh -c make\" did not complete successfully: exit code: 2";
    assert_eq!(evidence("[2/2] RUN make", exited), None);
}

#[test]
fn a_path_or_a_name_that_imitates_a_cause_is_the_customers() {
    let checksum = "failed to calculate checksum of ref vn7i::qmx: ";
    for imitated in [
        "no space left on device",
        "unexpected status from PUT request to https://r/v2/: 429 Too Many Requests",
        "rpc error: code = Unavailable",
        "context canceled",
        "connection refused",
    ] {
        for error in [
            format!("lstat /buildkit/buildkit1/x: {imitated}: not a directory"),
            format!("cannot copy to non-directory: /buildkit/buildkit1/x: {imitated}"),
            format!("cannot replace to directory /buildkit/buildkit1/x: {imitated} with file"),
            format!("{checksum}too many symlinks: /x: {imitated}"),
            format!("unset ssh forward key x: {imitated}"),
            format!("Get \"https://x.example/{imitated}\": EOF"),
        ] {
            assert_eq!(failed_step("[2/2] ADD x /x", &error), Reason::StepFailed, "{error}");
        }
        for error in [
            format!("lstat /tmp/buildkit-mount1/x: {imitated}: no such file or directory"),
            format!("{checksum}\"/x: {imitated}\": not found"),
        ] {
            assert_eq!(failed_step("[2/2] COPY x /x", &error), Reason::FileNotFound, "{error}");
        }
    }
}

#[test]
fn a_message_that_is_too_large_is_the_customers_and_has_its_limit() {
    for line in [
        "failed to solve: ResourceExhausted: grpc: received message larger than max (18874368 vs. 16777216)",
        "failed to receive status: rpc error: code = ResourceExhausted desc = grpc: trying to send message larger than max (18874368 vs. 16777216)",
        "target web: failed to solve: rpc error: code = ResourceExhausted desc = grpc: received message larger than max (18874368 vs. 16777216)",
    ] {
        let failure = ended_with("Dockerfile", &format!("ERROR: {line}"));
        assert_eq!(failure.reason, Reason::BuildTooLarge, "{line}");
        assert!(failure.detail.ends_with("18874368 bytes; the limit is 16777216"), "{failure}");
    }
    for line in [
        "failed to solve: dockerfile parse error on line 1: grpc: received message larger than max (2 vs. 1)",
        "failed to solve: process \"ResourceExhausted: grpc: received message larger than max (2 vs. 1)",
    ] {
        assert_ne!(of_line(line), Reason::BuildTooLarge, "{line}");
    }
}

#[test]
fn a_stream_that_breaks_is_the_dockerfiles_only_before_it_was_read() {
    let error = "Internal: Internal: stream terminated by RST_STREAM with error code: INTERNAL_ERROR";
    assert_eq!(of_line(&format!("failed to solve: {error}")), Reason::DockerfileInvalid);
    let marshal =
        "Internal: rpc error: code = Internal desc = grpc: error while marshaling: string field contains invalid UTF-8";
    assert_eq!(of_line(&format!("failed to solve: {marshal}")), Reason::DockerfileInvalid);
    assert_eq!(failed_step("[2/2] RUN make", error), Reason::BuildFailed);
    assert_eq!(of_line("failed to solve: Internal: something broke"), Reason::BuildFailed);
}

#[test]
fn only_a_name_that_can_be_a_stage_has_a_near_one() {
    let away = "failed to resolve source metadata for docker.io/library/biuld:latest: failed to do request: Head \"https://registry-1.docker.io/v2/\": dial tcp: no such host";
    let line = format!("failed to solve: biuld: {away} (did you mean build?)");
    assert_eq!(near_name(&line), Some(("biuld", "build")));
    for other in [
        format!("failed to solve: biuld: {away}"),
        format!("failed to solve: biuld:1: {away} (did you mean build?)"),
        format!("failed to solve: r.example/biuld: {away} (did you mean build?)"),
        format!("biuld: {away} (did you mean build?)"),
        "failed to solve: dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)".into(),
    ] {
        assert_eq!(near_name(&other), None, "{other}");
    }
}

#[test]
fn the_target_whose_dockerfile_does_not_parse_has_failed_and_the_others_have_no_result() {
    let report = |name: &str| TargetReport { name: name.to_owned(), ..TargetReport::default() };
    let blamed = |names: &[&str], line: &str| {
        let mut progress = progress(names, "Dockerfile");
        progress.line(line.as_bytes(), &mut |_| {});
        let mut targets: Vec<TargetReport> = names.iter().map(|name| report(name)).collect();
        blame(&mut targets, &exited(&progress, &NO_LINE), progress.blamed());
        let failed = targets.into_iter().filter(|target| target.status == Some(Status::Failed));
        failed.map(|target| (target.name, target.error)).collect::<Vec<_>>()
    };
    let line = "target b: failed to solve: dockerfile parse error on line 2: unknown instruction: RUNN";
    let failed = vec![("b".to_owned(), Some(line.replace("failed to solve: ", "")))];
    assert_eq!(blamed(&["a", "b", "c"], &format!("ERROR: {line}")), failed);
    let (_, unnamed) = evidence::split_target(line);
    assert_eq!(blamed(&["a", "b", "c"], &format!("ERROR: {unnamed}")), []);
    assert_eq!(
        blamed(&["a"], &format!("ERROR: {unnamed}")),
        [("a".to_owned(), Some(unnamed.replace("failed to solve: ", "")))]
    );
    for lost in ["target b: failed to solve: rpc error: code = Unavailable", "context deadline exceeded"] {
        assert_eq!(blamed(&["b"], &format!("ERROR: {lost}")), [], "{lost}");
    }
}

#[test]
fn a_builder_that_is_away_fails_no_target() {
    let line = serde_json::json!({"vertexes": [{
        "digest": "a", "name": "[internal] waiting for connection", "started": "2026-11-24T04:05:36Z",
        "completed": "2026-11-24T04:05:56Z", "error": "context deadline exceeded"}]});
    let mut progress = progress(&["web"], "Dockerfile");
    progress.line(line.to_string().as_bytes(), &mut |_| {});
    progress.line(b"ERROR: context deadline exceeded", &mut |_| {});
    assert_eq!(exited(&progress, &NO_LINE).reason, Reason::BuilderUnavailable);
    assert_eq!(progress.reports(false)[0].status, None);
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
        assert_eq!(of_line(line), reason, "{line}");
        assert_eq!(of_line(&format!("target web: {line}")), reason, "{line}");
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
        ("mkdir /var/lib/buildkit/snapshots/9: no space left on device", Reason::BuilderDiskFull),
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
        ("ResourceExhausted: grpc: received message larger than max (7531213 vs. 4194304)", Reason::BuildTooLarge),
        ("Internal: something broke", Reason::BuildFailed),
        (
            "rpc error: code = Unknown desc = invalid excludepatterns: [*.log [a]: syntax error in pattern",
            Reason::DockerfileInvalid,
        ),
        (
            "rpc error: code = Unknown desc = invalid includepatterns: [[a-z]: syntax error in pattern",
            Reason::DockerfileInvalid,
        ),
        ("illegal exclusion pattern: \"!\"", Reason::DockerfileInvalid),
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
            assert_eq!(of_line(&format!("{begin}{line}")), reason, "{line}");
            assert_eq!(of_line(&format!("target web: {begin}{line}")), reason, "{line}");
        }
    }
}

fn statuses(reason: Reason, named: Option<&str>, targets: &[(&str, Option<Status>)]) -> Vec<Option<Status>> {
    let target = |(name, status): &(&str, Option<Status>)| TargetReport {
        name: (*name).to_owned(),
        status: *status,
        ..TargetReport::default()
    };
    let mut targets: Vec<TargetReport> = targets.iter().map(target).collect();
    blame(&mut targets, &Failure::new(reason, "x"), named);
    targets.into_iter().map(|target| target.status).collect()
}

#[test]
fn a_failure_is_blamed_on_the_target_that_it_is_about() {
    let (failed, reached) = (Some(Status::Failed), Some(Status::Succeeded));
    let two = [("api", reached), ("web", None)];
    assert_eq!(statuses(Reason::DockerfileInvalid, Some("web"), &two), [reached, failed]);
    assert_eq!(statuses(Reason::DockerfileInvalid, None, &two), [reached, None]);
    assert_eq!(statuses(Reason::DockerfileInvalid, None, &[("web", None)]), [failed]);
    assert_eq!(statuses(Reason::StepFailed, Some("web"), &[("api", failed), ("web", None)]), [failed, None]);
    assert_eq!(statuses(Reason::BuilderUnavailable, None, &[("web", failed)]), [None]);
    assert_eq!(statuses(Reason::RegistryUnavailable, None, &[("web", None)]), [None]);
}
