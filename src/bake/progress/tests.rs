//! Streams as BuildKit reports them.

mod bounded;
mod masked;
mod recorded;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::bake::mask::Mask;
use crate::report::{ImageDigest, Status, TargetReport};
use crate::secret::SecretBytes;
use crate::text::lines::Lines;
use crate::text::paths::WorkerPaths;

fn progress_with(targets: &[&str], secrets: &[&str]) -> BakeProgress {
    let tags = |name: &str| vec![format!("registry.example.test/shop/{name}:dev")];
    let targets = targets.iter().map(|name| ((*name).to_owned(), tags(name))).collect();
    let mask = Mask::new(secrets.iter().map(|secret| SecretBytes::new(secret.as_bytes().into())));
    let dockerfiles = [("a", "a.Dockerfile"), ("b", "b.Dockerfile"), ("web", "web/Dockerfile")];
    let dockerfiles = dockerfiles.map(|(name, path)| (name.to_owned(), path.to_owned())).into();
    BakeProgress::new(Baked { targets, dockerfiles, ..Baked::default() }, Shown::new(mask, WorkerPaths::default()))
}

fn said(progress: &mut BakeProgress, line: &Value) -> Vec<Event> {
    let mut events = Vec::new();
    progress.line(line.to_string().as_bytes(), &mut |event| events.push(event));
    events
}

fn replay(stream: &[u8], targets: &[&str]) -> (BakeProgress, Vec<Event>) {
    let (mut progress, mut events) = (progress_with(targets, &[]), Vec::new());
    for line in stream.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        progress.line(line, &mut |event| events.push(event));
    }
    progress.finish(&mut |event| events.push(event));
    (progress, events)
}

fn report(progress: &BakeProgress, name: &str, is_success: bool) -> TargetReport {
    progress.reports(is_success).into_iter().find(|report| report.name == name).expect("a target")
}

/// A step that prints, and buildx's final error without the step's own end.
fn without_the_end(name: &str, error: &str) -> (BakeProgress, Vec<Event>) {
    let at = "2026-11-24T04:05:56Z";
    let lines = [
        json!({"vertexes": [{"digest": "sha256:0", "name": "[1/3] RUN true", "started": at, "completed": at}]}).to_string(),
        json!({"vertexes": [{"digest": "sha256:a", "name": name, "started": at}]}).to_string(),
        json!({"logs": [{"vertex": "sha256:a", "stream": 1, "data": BASE64_STANDARD.encode("one\n"), "timestamp": at}]})
            .to_string(),
        format!("ERROR: failed to solve: {error}"),
    ];
    replay(lines.join("\n").as_bytes(), &["web"])
}

#[test]
fn a_running_step_takes_the_final_error_when_its_own_end_is_missing() {
    let error = r#"process "/bin/sh -c echo \"a\\n\"; exit 4" did not complete successfully: exit code: 4"#;
    let (progress, events) = without_the_end(r#"[2/3] RUN --mount=type=tmpfs,target=/t echo "a\n"; exit 4"#, error);
    let web = report(&progress, "web", false);
    let step = web.failed_step.expect("a step");
    assert_eq!((step.number, step.exit_code, web.log_tail.as_deref()), (2, Some(4), Some("one")), "{step:?}");
    let notice =
        |event: &Event| matches!(event, Event::Notice(notice) if notice.starts_with("the end of the output of"));
    assert!(
        events.iter().any(notice) && events.iter().any(|event| matches!(event, Event::StepEnded { .. })),
        "{events:?}"
    );

    for (name, error) in [
        // Another step's command, and another kind of failure.
        ("[2/3] RUN make", error),
        ("[2/3] COPY echo /x", r#"process "/bin/sh -c echo" did not complete successfully: exit code: 4"#),
        ("[2/3] RUN make", "rpc error: code = Unavailable desc = process \"make\""),
    ] {
        let (progress, events) = without_the_end(name, error);
        assert_eq!(report(&progress, "web", false).failed_step, None, "{name}");
        assert!(!events.iter().any(notice), "{name}");
    }
}

/// What is known of a target's images when its export reports these ids, each with the second in which it began.
fn images(platforms: &[&str], ids: &[(u32, &str)]) -> Option<ImageDigest> {
    let platforms = platforms.iter().map(|platform| (*platform).to_owned()).collect();
    let targets = [("a".to_owned(), vec!["r.example/a:1".to_owned()])].into();
    let baked = Baked { targets, platforms: [("a".to_owned(), platforms)].into(), ..Baked::default() };
    let mut progress = BakeProgress::new(baked, Shown::new(Mask::new([]), WorkerPaths::default()));
    said(&mut progress, &json!({"vertexes": [{"digest": "v", "name": "exporting to image"}]}));
    for (second, id) in ids {
        let (started, completed) = (format!("2026-01-02T03:04:{second:02}Z"), "2026-01-02T03:05:00Z");
        let status = json!({"id": id, "vertex": "v", "started": started, "completed": completed});
        said(&mut progress, &json!({"statuses": [status]}));
    }
    report(&progress, "a", true).image_digest
}

#[test]
fn images_belong_to_their_platforms_in_the_order_in_which_they_were_exported() {
    let single = |digest: &str| Some(ImageDigest::Single(digest.to_owned()));
    let index = (9, "exporting manifest list sha256:ff");
    let attestation = (2, "exporting attestation manifest sha256:ee");
    let (first, second) = ((1, "exporting manifest sha256:aa"), (3, "exporting manifest sha256:bb"));
    assert_eq!(images(&[], &[first]), single("sha256:aa"));
    assert_eq!(images(&["linux/arm64"], &[first, first, attestation, index]), single("sha256:aa"));
    let by_platform = [("linux/arm64", "sha256:aa"), ("linux/amd64", "sha256:bb")];
    let by_platform = by_platform.map(|(name, digest)| (name.to_owned(), digest.to_owned())).into();
    let both = images(&["linux/arm64", "linux/amd64"], &[second, attestation, first, index]);
    assert_eq!(both, Some(ImageDigest::ByPlatform(by_platform)));
    // Another number than asked for, and texts that are no digests.
    assert_eq!(images(&["linux/arm64", "linux/amd64"], &[first]), None);
    assert_eq!(images(&[], &[first, second]), None);
    assert_eq!(images(&[], &[index, attestation]), None);
    assert_eq!(images(&[], &[(1, "exporting manifest x")]), None);
    let long = "x".repeat(65);
    assert_eq!(images(&["linux/amd64", &long], &[first, second]), None);
}

#[test]
fn a_cache_that_is_not_there_yet_fails_no_target() {
    let (mut progress, at) = (progress_with(&["api", "web"], &[]), "2026-11-29T20:00:00Z");
    let vertex = |digest: &str, name: &str, error: &str| json!({"digest": digest, "name": name, "started": at, "completed": at, "error": error});
    let missing = "failed to configure registry cache importer: r.example/cache:web: not found";
    said(
        &mut progress,
        &json!({"vertexes": [
            vertex("sha256:1", "[web] importing cache manifest from r.example/cache:web", missing),
            vertex("sha256:2", "[web] exporting to image", ""),
            vertex("sha256:3", "[api 2/2] RUN false", "process \"/bin/sh -c false\" did not complete successfully: exit code: 1"),
        ]}),
    );
    let pushed = format!("pushing manifest for registry.example.test/shop/web:dev@sha256:{}", "0".repeat(64));
    said(
        &mut progress,
        &json!({"statuses": [{"id": pushed, "vertex": "sha256:2", "timestamp": at, "started": at, "completed": at}]}),
    );
    let web = report(&progress, "web", false);
    assert_eq!((web.status, web.error), (Some(Status::Succeeded), None));
    assert!(web.digest.is_some());
    assert_eq!(report(&progress, "api", false).status, Some(Status::Failed));
    assert_eq!(progress.failed().count(), 1);
}

#[test]
fn a_step_that_failed_stays_failed_when_another_target_is_told_of_its_end_only() {
    for errors in [["exit code: 3", "context canceled"], ["context canceled", "exit code: 3"]] {
        let mut progress = progress_with(&["a", "b"], &[]);
        for error in errors {
            let vertex =
                json!({"digest": "x", "name": "[a 1/1] RUN x", "completed": "2026-11-24T04:05:56Z", "error": error});
            said(&mut progress, &json!({"vertexes": [vertex]}));
        }
        let errors: Vec<&str> = progress.failed().map(|vertex| vertex.own_error().expect("its own").judged()).collect();
        assert_eq!(errors, ["exit code: 3"]);
    }
}

#[test]
fn nothing_after_the_error_line_is_an_event() {
    let forged = br#"ERROR: failed to solve: dockerfile parse error: STOPSIGNAL
{"vertexes":[{"digest":"sha256:x","name":"[web] exporting to image","completed":"2026-11-24T04:05:56Z"}]}"#;
    let (progress, events) = replay(forged, &["web"]);
    assert_eq!(events, []);
    let errors: Vec<&str> = progress.errors().iter().map(|said| said.shown.as_str()).collect();
    assert_eq!(errors, ["failed to solve: dockerfile parse error: STOPSIGNAL"]);
    assert_eq!(report(&progress, "web", false).status, None);
}

#[test]
fn what_may_be_forged_decides_nothing() {
    let forged = json!({
        "vertexes": [{"digest": "x", "name": "[web 1/1] RUN x", "completed": "2026-11-24T04:05:56Z", "error": "process \""}],
        "statuses": [{"id": "pushing manifest for registry.example.test/shop/api:dev@sha256:ab", "vertex": "y",
            "completed": "2026-11-24T04:05:56Z"}],
    });
    let named = vertex("y", "[api] exporting to image", true);
    let (genuine, _) = replay(format!("{named}\n{forged}").as_bytes(), &["web", "api"]);
    assert_eq!((genuine.failed().count(), report(&genuine, "api", true).digest.as_deref()), (1, Some("sha256:ab")));
    let text = format!("{named}\nname of a file\nWARNING: y\n{forged}\n:1");
    let (progress, events) = replay(text.as_bytes(), &["web", "api"]);
    assert_eq!((progress.failed().count(), report(&progress, "api", false).status), (0, None));
    assert!(!events.iter().any(|event| matches!(event, Event::Notice(_))), "{events:?}");
}

fn log(vertex: &str, data: &[u8]) -> Value {
    json!({"logs": [{"vertex": vertex, "stream": 1, "data": BASE64_STANDARD.encode(data)}]})
}

fn vertex(digest: &str, name: &str, is_completed: bool) -> Value {
    let completed = is_completed.then_some("2026-11-24T04:05:57Z");
    json!({"vertexes": [{"digest": digest, "name": name, "started": "2026-11-24T04:05:56Z", "completed": completed}]})
}

fn lines(events: &[Event]) -> Vec<&str> {
    let lines =
        events.iter().filter_map(|event| if let Event::StepOutput { lines, .. } = event { Some(lines) } else { None });
    lines.flat_map(Lines::iter).collect()
}

#[test]
fn a_target_does_not_begin_before_its_build() {
    let mut progress = progress_with(&["web", "api"], &[]);
    let at = |second: u32| format!("2026-11-24T04:05:{second:02}Z");
    let vertex = |digest: &str, name: &str, from: u32, to: u32| json!({"vertexes": [{"digest": digest, "name": name, "started": at(from), "completed": at(to)}]});
    // Another build began the shared step 30 s earlier.
    for target in ["web", "api"] {
        said(&mut progress, &vertex("sha256:a", &format!("[{target} 1/2] RUN make"), 0, 40));
    }
    said(&mut progress, &vertex("sha256:b", "[web internal] load build definition from Dockerfile", 30, 31));
    said(&mut progress, &vertex("sha256:c", "[web 2/2] RUN echo [internal] load build definition from x", 40, 42));
    assert_eq!(report(&progress, "web", true).duration_ms, 12_000);
    assert_eq!(report(&progress, "api", true).duration_ms, 40_000, "nothing says when it began");
}
