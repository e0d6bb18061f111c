//! Recorded streams.

use super::*;

macro_rules! stream {
    ($path:literal) => {
        include_bytes!(concat!("../../../../tests/fixtures/buildx/", $path, ".stderr"))
    };
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
fn when_one_target_fails_the_others_are_not_blamed() {
    let (progress, _) = replay(stream!("0.36/one-of-three-fails"), &["api", "web", "broken"]);
    let broken = report(&progress, "broken", false);
    assert_eq!(broken.status, Some(Status::Failed));
    assert!(broken.error.is_some_and(|error| error.starts_with("exited with 3")));
    assert_ne!(report(&progress, "web", false).status, Some(Status::Failed));
    assert_eq!(progress.failed().count(), 1);
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
fn a_base_image_for_another_platform_is_one_only_for_a_target_that_names_platforms() {
    let short = "InvalidBaseImagePlatform: Base image x was pulled with platform \"linux/amd64\", expected \"linux/arm64\" for current build (line 2)";
    let at = "2026-11-24T04:05:56Z";
    let definition =
        json!({"digest": "sha256:0a", "name": "[web internal] load build definition from Dockerfile", "started": at});
    let warning =
        json!({"vertex": "sha256:0a", "short": BASE64_STANDARD.encode(short), "range": [{"start": {"line": 2}}]});
    for (platforms, expected) in [(vec![], false), (vec!["linux/arm64".to_owned()], true)] {
        let mut progress = progress_with(&["web", "api"], &[]);
        progress.platforms.insert("web".into(), platforms);
        said(&mut progress, &json!({"vertexes": [definition]}));
        assert_eq!(said(&mut progress, &json!({"warnings": [warning]})).len(), 1);
        let found = progress.foreign_base().map(|(target, said)| (target.to_owned(), said));
        let said = "target.web.platforms (web/Dockerfile:2): Base image x was pulled with platform \"linux/amd64\", expected \"linux/arm64\" for current build";
        assert_eq!(found, expected.then(|| ("web".to_owned(), said.to_owned())));
    }
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
