//! Failures as docker-buildx reports them.

mod blame;
mod lines;
mod recorded;
mod steps;

use std::collections::BTreeMap;

use super::*;
use crate::bake::mask::Mask;
use crate::bake::own_registries::OwnRegistries;
use crate::bake::progress::Baked;
use crate::bake::shown::Shown;
use crate::text::paths::WorkerPaths;

const NO_LINE: fn(&str, &FailedStep) -> Option<u32> = |_, _| None;

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
fn a_stream_that_breaks_is_the_dockerfiles_only_before_it_was_read() {
    let error = "Internal: Internal: stream terminated by RST_STREAM with error code: INTERNAL_ERROR";
    assert_eq!(of_line(&format!("failed to solve: {error}")), Reason::DockerfileInvalid);
    let marshal =
        "Internal: rpc error: code = Internal desc = grpc: error while marshaling: string field contains invalid UTF-8";
    assert_eq!(of_line(&format!("failed to solve: {marshal}")), Reason::DockerfileInvalid);
    assert_eq!(failed_step("[2/2] RUN make", error), Reason::BuildFailed);
    assert_eq!(of_line("failed to solve: Internal: something broke"), Reason::BuildFailed);
}
