//! Failures of a step.

use super::*;
use crate::reason::Evidence;

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
fn a_bake_of_which_nothing_but_echoes_is_known_is_judged_by_its_error() {
    for (error, reason) in
        [("Canceled: context canceled", Reason::BuildFailed), ("context canceled", Reason::BuildFailed)]
    {
        assert_eq!(failed_step("[2/3] RUN make", error), reason, "{error}");
    }
}
