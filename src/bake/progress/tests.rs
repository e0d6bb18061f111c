//! Streams: recorded ones, and ones that no BuildKit would write.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::bake::mask::Mask;
use crate::report::{ImageDigest, Status, TargetReport};
use crate::secret::SecretBytes;
use crate::text;
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

macro_rules! stream {
    ($path:literal) => {
        include_bytes!(concat!("../../../tests/fixtures/buildx/", $path, ".stderr"))
    };
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

#[test]
fn digests_and_steps_of_each_target_are_known() {
    for stream in [&stream!("0.29/success-push")[..], &stream!("0.36/success-push")[..]] {
        let (progress, events) = replay(stream, &["api", "web", "worker"]);
        let web = report(&progress, "web", true);
        assert_eq!(web.status, Some(Status::Succeeded));
        assert!(web.digest.as_deref().is_some_and(|digest| digest.starts_with("sha256:")), "{web:?}");
        assert!(web.steps_total >= 2 && web.duration_ms > 0, "{web:?}");
        assert!(progress.context_bytes() > 0);
        assert!(events.iter().any(|event| matches!(event, Event::StepOutput { .. })));
        let started = events.iter().filter(|event| matches!(event, Event::StepStarted(_))).count();
        let ended = events.iter().filter(|event| matches!(event, Event::StepEnded { .. })).count();
        assert_eq!(started, ended);
    }
}

#[test]
fn the_image_in_an_index_is_known_by_its_own_digest() {
    for (stream, image) in [
        (&stream!("0.29/cached-push")[..], "sha256:76d1acfac37fee976fb20050bc43cbf641075090b5b49a7f933c95ef1e53a5f8"),
        (&stream!("0.36/cached-push")[..], "sha256:6270d16aaa0a0ce142bac2e97f4233900879c41ef40e9f6831102edbabd3a754"),
    ] {
        let (progress, _) = replay(stream, &["api", "web", "worker"]);
        let api = report(&progress, "api", true);
        assert_eq!(api.image_digest, Some(ImageDigest::Single(image.into())));
        assert_ne!(api.digest.as_deref(), Some(image), "the index has another one");
        assert_ne!(report(&progress, "web", true).image_digest, api.image_digest);
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
fn a_step_that_ran_for_a_sibling_does_not_count_as_cached() {
    let (cold, _) = replay(stream!("0.29/success-push"), &["api", "web", "worker"]);
    let api = report(&cold, "api", true);
    assert!(api.steps_cached < api.steps_total, "{api:?}");
    assert_eq!(report(&cold, "worker", true).steps_cached, 0, "everything ran in this command");
    let (warm, _) = replay(stream!("0.29/cached-push"), &["api", "web", "worker"]);
    let api = report(&warm, "api", true);
    assert_eq!(api.steps_cached, api.steps_total, "{api:?}");
}

#[test]
fn each_failed_target_names_its_step_and_shows_what_it_printed() {
    let (progress, _) = replay(stream!("0.36/two-targets-fail"), &["a", "b", "c"]);
    let a = report(&progress, "a", false);
    let step = a.failed_step.expect("a step");
    assert_eq!((step.number, step.total, &*step.instruction, step.exit_code), (3, 3, "RUN exit 3", Some(3)));
    assert_eq!((step.dockerfile.as_deref(), step.line), (Some("a.Dockerfile"), Some(3)));
    assert_eq!((a.log_tail, a.error.as_deref()), (None, Some("exited with 3 and printed nothing")));
    // BuildKit canceled them.
    assert_eq!(["b", "c"].map(|name| report(&progress, name, false).failed_step), [None, None]);

    let (progress, _) = replay(stream!("0.36/failing-run"), &["web"]);
    let web = report(&progress, "web", false);
    // BuildKit sends both pipes in its own order.
    assert_eq!(web.log_tail.as_deref(), Some("boom on stderr\nabout to fail"));
    let failed = progress.failed().find_map(|vertex| progress.step_failure(vertex, None)).expect("a failed step");
    assert_eq!(
        failed.sentence(),
        "Step 3/3 of `web` failed: `RUN echo \"about to fail\" && echo \"boom on stderr\" >&2 && exit 7` (web/Dockerfile:3) \
         exited with 7: `about to fail`"
    );

    let (progress, _) = replay(stream!("0.36/missing-copy-source"), &["web"]);
    let failed = progress.failed().find_map(|vertex| progress.step_failure(vertex, None)).expect("a failed step");
    assert_eq!(
        failed.sentence(),
        "Step 2/2 of `web` failed: `COPY nothere /x` (web/Dockerfile:2): \"/nothere\": not found"
    );
}

#[test]
fn warnings_about_a_dockerfile_have_their_lines() {
    let (_, events) = replay(stream!("0.36/lint-warnings"), &["web"]);
    let warnings: Vec<&Warning> = events
        .iter()
        .filter_map(|event| match event {
            Event::Warning(warning) => Some(warning),
            _ => None,
        })
        .collect();
    let first = warnings[0];
    assert_eq!(first.message, "FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)");
    assert_eq!((first.dockerfile.as_deref(), first.line), (Some("web/Dockerfile"), Some(1)));
    assert_eq!(first.url.as_deref(), Some("https://docs.docker.com/go/dockerfile/rule/from-as-casing/"));
    assert_eq!(warnings.len(), 5, "{warnings:?}");

    let mut progress = progress_with(&["web"], &["hunter2"]);
    let warning = |n: u32| json!({"vertex": "sha256:0a", "short": BASE64_STANDARD.encode(format!("x{n} hunter2")), "range": [{"start": {"line": n}}]});
    let many: Vec<Value> = (0..300).map(warning).collect();
    let mut events = said(&mut progress, &json!({"warnings": many}));
    assert!(events.iter().all(|event| !format!("{event:?}").contains("hunter2")));
    assert_eq!(events.len(), bounds::WARNINGS);
    events.clear();
    progress.finish(&mut |event| events.push(event));
    assert_eq!(events, [Event::Notice("250 more warnings about the Dockerfiles were left out".into())]);
}

#[test]
fn every_lint_rule_of_the_frontend_is_a_warning_with_its_line() {
    let (_, events) = replay(stream!("buildkit-2026-11/every-lint-rule"), &["web"]);
    let mut rules: Vec<(String, u32)> = Vec::new();
    for event in events {
        let Event::Warning(Warning { message, dockerfile, line, url, .. }) = event else { continue };
        assert_eq!(dockerfile.as_deref(), Some("web/Dockerfile"), "{message}");
        assert!(url.is_some_and(|url| url.starts_with("https://docs.docker.com/go/dockerfile/rule/")), "{message}");
        let line = line.unwrap_or_else(|| panic!("no line: {message}"));
        assert!(message.ends_with(&format!("(line {line})")), "{message}");
        rules.push((message.split(':').next().unwrap_or_default().to_owned(), line));
    }
    rules.sort();
    let found: Vec<(&str, u32)> = rules.iter().map(|(rule, line)| (rule.as_str(), *line)).collect();
    let expected = [
        ("ConsistentInstructionCasing", 14),
        ("CopyIgnoredFile", 15),
        ("DuplicateStageName", 8),
        ("ExposeInvalidFormat", 17),
        ("ExposeProtoCasing", 16),
        ("FromAsCasing", 5),
        ("FromPlatformFlagConstDisallowed", 6),
        ("InvalidDefaultArgInFrom", 4),
        ("InvalidDefinitionDescription", 3),
        ("JSONArgsRecommended", 22),
        ("JSONArgsRecommended", 23),
        ("JSONArgsRecommended", 26),
        ("LegacyKeyValueFormat", 13),
        ("MaintainerDeprecated", 10),
        ("MultipleInstructionsDisallowed", 22),
        ("MultipleInstructionsDisallowed", 24),
        ("NoEmptyContinuation", 20),
        ("RedundantTargetPlatform", 9),
        ("ReservedStageName", 6),
        ("SecretsUsedInArgOrEnv", 11),
        ("SecretsUsedInArgOrEnv", 12),
        ("StageNameCasing", 5),
        ("UndefinedArgInFrom", 5),
        ("UndefinedVar", 21),
        ("WorkdirRelativePath", 14),
    ];
    assert_eq!(found, expected);
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
fn when_one_target_fails_the_others_are_not_blamed() {
    let (progress, _) = replay(stream!("0.36/one-of-three-fails"), &["api", "web", "broken"]);
    let broken = report(&progress, "broken", false);
    assert_eq!(broken.status, Some(Status::Failed));
    assert!(broken.error.is_some_and(|error| error.starts_with("exited with 3")));
    assert_ne!(report(&progress, "web", false).status, Some(Status::Failed));
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

/// Every line that a step shows when it prints these chunks.
fn shown_of(secrets: &[&str], chunks: &[&[u8]]) -> Vec<String> {
    let mut progress = progress_with(&["t"], secrets);
    said(&mut progress, &vertex("v", "[1/1] RUN x", false));
    let mut events: Vec<Event> = chunks.iter().flat_map(|chunk| said(&mut progress, &log("v", chunk))).collect();
    events.extend(said(&mut progress, &vertex("v", "[1/1] RUN x", true)));
    lines(&events).into_iter().map(str::to_owned).collect()
}

const SECRETS: [&str; 2] =
    ["hunter2+of/the é build", "-----BEGIN KEY-----\nabcdefgh12345678\nijklmnop=\n-----END KEY-----"];

/// A text with the secrets in several forms.
fn telling() -> String {
    let base64 = BASE64_STANDARD.encode(format!("x{}y", SECRETS[0]));
    let json = serde_json::to_string(SECRETS[1]).expect("a text");
    let indented = SECRETS[1].replace('\n', "\n  #12 | ");
    format!("a {} b\n{base64}\r\n\x1b[31m{json}\x1b[0m\n{indented}\nhunter2%2Bof%2Fthe%20%C3%A9%20build", SECRETS[0])
}

#[test]
fn a_secret_is_masked_wherever_a_chunk_ends() {
    let text = telling();
    let whole = shown_of(&SECRETS, &[text.as_bytes()]);
    let all = whole.join("\n");
    assert_eq!(all.matches("***").count(), 1 + 1 + 4 + 4 + 1, "{all}");
    for secret in SECRETS {
        for part in secret.as_bytes().windows(8).map(|part| String::from_utf8_lossy(part).into_owned()) {
            assert!(!all.contains(&part), "{part:?} is in {all}");
        }
    }
    for at in 0..=text.len() {
        let (before, after) = text.as_bytes().split_at(at);
        assert_eq!(shown_of(&SECRETS, &[before, after]), whole, "split at {at}");
    }
    let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    assert_eq!(shown_of(&SECRETS, &bytes), whole);
}

#[test]
fn the_last_line_of_a_step_needs_no_end() {
    let mut progress = progress_with(&["t"], &["hunter2"]);
    said(&mut progress, &vertex("v", "[1/1] RUN x", false));
    assert_eq!(lines(&said(&mut progress, &log("v", b"one\ntwo"))), ["one"]);
    assert_eq!(lines(&said(&mut progress, &log("v", b" and"))), Vec::<&str>::new());
    // The end of a step stands before what it printed last.
    let mut end = vertex("v", "[1/1] RUN x", true);
    end["logs"] = log("v", b" hunt")["logs"].take();
    let events = said(&mut progress, &end);
    assert_eq!(lines(&events), ["two and hunt"]);
    assert!(matches!(events.last(), Some(Event::StepEnded { .. })), "{events:?}");
    // One that is killed never ends.
    said(&mut progress, &log("w", b"and hunter2"));
    let mut events = Vec::new();
    progress.finish(&mut |event| events.push(event));
    assert_eq!(lines(&events), ["and ***"]);
}

#[test]
fn a_secret_across_the_cut_of_a_long_line_is_masked() {
    let secret = "s3cret-of-the-build";
    for at in [8170, 8180, 8190, 8192, 65_530, 65_536] {
        for size in [1000, 4096, 100_000] {
            let line = format!("{}{secret}{}\n", ".".repeat(at), "=".repeat(12_000));
            let mut progress = progress_with(&["t"], &[secret]);
            let chunks = line.as_bytes().chunks(size);
            let events: Vec<Event> = chunks.flat_map(|chunk| said(&mut progress, &log("v", chunk))).collect();
            let shown = lines(&events).concat();
            assert!(!secret.as_bytes().windows(4).any(|part| shown.contains(std::str::from_utf8(part).expect("text"))));
            assert!(at > bounds::OUTPUT_LINE - 20 || shown.contains("***="), "at {at}, by {size}");
        }
    }
}

proptest! {

    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chunks_of_any_size_show_the_same(cuts in prop::collection::vec(0_usize..300, 0..12)) {
        let text = telling();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        prop_assert_eq!(shown_of(&SECRETS, &chunks), shown_of(&SECRETS, &[text.as_bytes()]));
    }

    #[test]
    fn no_part_of_a_secret_is_shown_wherever_it_is_and_however_it_arrives(
        secret in "[jkqvxz]{4,40}",
        at in prop_oneof![0_usize..100, 8150_usize..8200, 65_450_usize..65_600],
        size in prop_oneof![1_usize..60, 1000_usize..20_000],
        has_end in any::<bool>(),
    ) {
        let line = format!("{}{secret}{}{}", ".".repeat(at), "=".repeat(200), if has_end { "\n" } else { "" });
        let mut progress = progress_with(&["t"], &[&secret]);
        // Small pieces only around the secret.
        let (before, rest) = line.as_bytes().split_at(at.saturating_sub(30));
        let chunks = before.chunks(20_000).chain(rest.chunks(size));
        let mut events: Vec<Event> = chunks.flat_map(|chunk| said(&mut progress, &log("v", chunk))).collect();
        progress.finish(&mut |event| events.push(event));
        let shown = lines(&events).concat();
        let part = secret.as_bytes().windows(4).find(|part| shown.contains(std::str::from_utf8(part).expect("text")));
        prop_assert_eq!(part, None);
        prop_assert!(at > bounds::OUTPUT_LINE - 40 || shown.contains("***="));
    }
}

#[test]
fn names_and_errors_are_masked_before_they_are_cut() {
    let (secret, name) = ("s3cret-of-the-build", "x".repeat(bounds::STEP_NAME - 40));
    let mut report = vertex("v", &format!("[1/1] RUN {name}{secret}{name}"), true);
    report["vertexes"][0]["error"] = json!(format!("process \"{}{secret}{}\"", "x".repeat(3030), "y".repeat(3000)));
    let mut progress = progress_with(&["t"], &[secret]);
    let told = format!("{:?}", said(&mut progress, &report));
    assert!(!told.contains("s3c") && !told.contains("build"), "{told}");
    assert!(progress.failed().next().and_then(Vertex::own_error).is_some_and(|said| said.judged().contains("process")));
}

#[test]
fn whatever_is_printed_and_however_steps_are_called_what_is_kept_is_bounded() {
    let name = format!("[1/1] RUN true >/dev/null {}", "word ".repeat(12_000));
    let mut progress = progress_with(&["a", "b"], &[]);
    for n in 0..bounds::VERTICES + 2000 {
        let mut report = vertex(&n.to_string(), if n % 100 == 0 { &name } else { &name[..2000] }, false);
        report["vertexes"][0]["error"] = json!(format!("process \"{}\" exit code: 1", &name[..500]));
        progress.line(report.to_string().as_bytes(), &mut |_| {});
    }
    let (newlines, mut n_lines) = (log("0", &vec![b'\n'; 100_000]).to_string(), 0);
    for _ in 0..10 {
        progress.line(newlines.as_bytes(), &mut |event| n_lines += lines(&[event]).len());
    }
    assert_eq!(n_lines, 1_000_000);
    let names: usize = progress.vertices.iter().map(|vertex| vertex.name.len()).sum();
    let errors: usize = progress.vertices.iter().filter_map(Vertex::own_error).map(Said::size).sum();
    assert!(names <= bounds::STEP_NAMES + bounds::VERTICES * SHORT_NAME, "{names} bytes of names");
    assert!(errors <= bounds::ERRORS && errors > bounds::ERRORS / 2, "{errors} bytes of errors");
    assert_eq!((progress.vertices.len(), progress.failed().count()), (bounds::VERTICES, bounds::VERTICES));
    let mut notices = Vec::new();
    progress.finish(&mut |event| notices.push(event));
    assert!(
        matches!(&notices[..], [Event::Notice(text)] if text.contains("2000 reports were left out")),
        "{notices:?}"
    );
}

#[test]
fn a_step_takes_little_beside_its_texts() {
    // Its record and its place by digest, each with room to grow; the digest; two bytes for each of a hundred targets.
    assert!(2 * (size_of::<Vertex>() + size_of::<(Box<str>, u32)>()) + MAX_DIGEST + 200 <= 768);
}

#[test]
fn a_stream_of_nothing_but_new_things_is_bounded() {
    let mut progress = progress_with(&["web"], &[]);
    for n in 0..20_000 {
        let status = json!({"statuses": [{"vertex": format!("{}{n}", "d".repeat(n % 300)), "completed": "2026-11-24T04:05:56Z",
            "id": format!("pushing manifest for registry.example.test/shop/web:dev@sha256:{n}")}]});
        said(&mut progress, &status);
    }
    let pushes: usize = progress.vertices.iter().map(|vertex| vertex.pushed.len()).sum();
    assert!(pushes == bounds::PUSHES && progress.vertices.len() <= bounds::VERTICES);
    assert!(progress.by_digest.keys().all(|digest| digest.len() <= MAX_DIGEST));
}

#[test]
fn a_line_that_was_cut_is_counted_and_its_rest_is_no_text() {
    let mut progress = progress_with(&["t"], &[]);
    let mut line = vertex("v", "[1/1] RUN x", false).to_string().into_bytes();
    line.resize(bounds::LINE, b'x');
    let mut events = Vec::new();
    progress.line(&line, &mut |event| events.push(event));
    progress.finish(&mut |event| events.push(event));
    assert!(matches!(&events[..], [Event::Notice(text)] if text.contains("longer than 4194304 bytes")), "{events:?}");
    assert_eq!(progress.said().lines().count(), 0);
}

#[test]
fn every_event_is_plain_text() {
    let mut progress = progress_with(&["t"], &[]);
    let mut report = vertex("v", "[1/1] RUN \u{1b}[31mx\0\u{202e}", true);
    report["vertexes"][0]["error"] = json!("process \"\u{1b}[2J\0\"");
    report["logs"] = log("v", b"\x1b[1mbold\x07\x9b\n")["logs"].take();
    let told = said(&mut progress, &report);
    let mut n_texts = 0;
    let mut assert_plain = |shown: &str| {
        n_texts += 1;
        assert_eq!(text::plain(shown), shown);
    };
    for event in &told {
        match event {
            Event::StepStarted(step) => assert_plain(&step.name),
            Event::StepOutput { lines, .. } => lines.iter().for_each(&mut assert_plain),
            Event::StepEnded { error, .. } => assert_plain(error.as_ref().expect("an error")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(n_texts, 3);
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
