//! Build jobs, from the queue to the callback.

use serde_json::{Value, json};
use world::{Answer, Script, Step};

use crate::harness::{CALLBACKS, Harness, Worker};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_becomes_images_and_a_job_for_rails() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote", "result", "worker"]));
    let image = |name: &str| json!({"name": name, "context": format!("./{name}"), "tags": [format!("registry.example/acme/{name}:{sha}")]});
    let mut native = harness.native(&sha);
    native["application"]["images"] = json!([image("vote"), image("result"), image("worker")]);
    native["callback"]["on"] = json!(["started", "finished"]);
    let jid = harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker("");

    let reports = harness.callbacks(2).await;
    let (started, finished) = (&reports[0], &reports[1]);
    assert_eq!((&started["moment"], &started["status"]), (&json!("started"), &Value::Null));
    assert_eq!((&finished["moment"], &finished["status"]), (&json!("finished"), &json!("succeeded")), "{finished:#}");
    assert_eq!((&finished["build_id"], &finished["jid"], &finished["attempt"]), (&json!(42), &json!(jid), &json!(1)));
    assert_eq!((&finished["sha"], &finished["reason"]), (&json!(sha), &Value::Null));
    let vote = &finished["targets"].as_array().unwrap().iter().find(|target| target["name"] == "vote").unwrap();
    assert_eq!(vote["digest"], json!(world::image_digest("vote")));
    assert_eq!(vote["tags"], json!([format!("registry.example/acme/vote:{sha}")]));
    assert_eq!(finished["placement"]["builder"], "default");
    assert!(finished["timings"]["bake_ms"].as_u64().is_some() && finished["timings"]["token_ms"].as_u64().is_some());

    harness.idle().await;
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("1"));
    assert_eq!(harness.redis.get("stat:failed").await, None);
    assert!(harness.job_directories().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_to_a_file_is_replaced_even_where_buildx_opens_it_too_early() {
    let harness = Harness::start();
    let target = |output: &str| json!({"context": ".", "output": [output]});
    let definition = json!({
        "group": {"default": {"targets": ["api", "docs"]}},
        "target": {"api": {"context": "."}, "docs": target("type=tar,dest=docs.tar")}
    });
    let files = [("docker-bake.json", definition.to_string()), ("Dockerfile", "FROM base".to_owned())];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let sha = harness.git.repository("acme/voting-app").commit(&files);
    let mut native = harness.native(&sha);
    native.as_object_mut().unwrap().remove("application");
    native["bake"] = json!("docker-bake.json");
    native["push"] = json!(true);
    native["tags"] = json!({"api": ["registry.example/acme/api:1"]});
    harness.builder.script(Script::success(&["api", "docs"]));
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker("");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["status"], "succeeded", "{report:#}");
    let expected = "target.docs.output: not written: only images leave the builder";
    assert_eq!(report["notices"], json!([expected]), "{report:#}");
    let definition: Value = serde_json::from_str(&harness.builder.runs().remove(0).text).unwrap();
    assert_eq!(definition["target"]["docs"]["output"], json!([{"type": "cacheonly"}]));
    assert_eq!(definition["target"]["api"]["output"], json!([{"type": "registry"}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn buildx_gets_the_validated_definition_and_nothing_of_the_machine() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]));
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let _worker = harness.worker("");
    harness.callbacks(1).await;

    let run = harness.builder.runs().remove(0);
    let names: Vec<&str> = run.env.keys().map(String::as_str).collect();
    let expected = [
        "BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP",
        "BUILDX_CONFIG",
        "BUILDX_GIT_INFO",
        "BUILDX_GIT_LABELS",
        "BUILDX_METADATA_PROVENANCE",
        "BUILDX_NO_DEFAULT_ATTESTATIONS",
        "BUILDX_NO_DEFAULT_LOAD",
        "DOCKER_CONFIG",
        "GOMAXPROCS",
        "TMPDIR",
    ];
    assert_eq!(names, expected, "the environment has exactly these variables");
    assert_eq!(run.env["BUILDX_GIT_INFO"], "0");
    let definition: Value = serde_json::from_str(&run.text).unwrap();
    let vote = &definition["target"]["vote"];
    assert!(vote["context"].as_str().unwrap().ends_with("/tree/voting-app/vote"), "{vote:#}");
    assert_eq!(vote["output"], json!([{"type": "registry"}]));
    assert!(run.cwd.ends_with("state/sticky/acme/acme/voting-app"), "{:?}", run.cwd);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_for_one_repository_and_appears_nowhere_afterwards() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]));
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let worker = harness.worker("");
    let callback = harness.callback_jobs(1).await.remove(0);

    let minted = harness.github.calls().into_iter().find(|call| call.path.ends_with("/access_tokens")).unwrap();
    let body: Value = serde_json::from_str(&minted.body).unwrap();
    assert_eq!(body, json!({"repositories": ["voting-app"], "permissions": {"contents": "read"}}));
    let (token, _) = harness.github.tokens().all().remove(0);
    assert!(!callback.to_string().contains(&token) && !worker.log().contains(&token));
    let found =
        std::process::Command::new("grep").args(["-r", "-l", &token]).arg(harness.home.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "a file contains the token");
    assert!(!worker.log().contains("PRIVATE KEY"));
}

/// A worker that has built the voting app once, and its commit.
async fn built_once() -> (Harness, Worker, String) {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let worker = harness.worker("");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    harness.callbacks(1).await;
    (harness, worker, sha)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_build_of_a_commit_requests_a_token_and_fetches_nothing() {
    let (harness, _worker, sha) = built_once().await;
    let n_fetches = harness.git.n_fetches();
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    harness.callbacks(2).await;
    assert_eq!(harness.git.n_fetches(), n_fetches);
    assert_eq!(harness.github.tokens().all().len(), 2, "each build requests authorization");
}

#[tokio::test(flavor = "multi_thread")]
async fn buildx_confirms_a_template_once_for_all_commits_of_a_repository_and_trust() {
    let harness = Harness::start();
    let (repository, first) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]).held());
    let _worker = harness.worker("");
    let native = |sha: &str, trust: &str, argument: &str| {
        let mut native = harness.native(sha);
        native["trust"] = json!(trust);
        native["application"]["images"][0]["args"] = json!({"A": argument});
        native["application"]["images"][0]["tags"] = json!([format!("registry.example/acme/vote:{}", &sha[..7])]);
        native
    };
    let second = repository.commit(&[("vote/Dockerfile", "FROM base\n")]);
    let builds = [
        (native(&first, "branch", "1"), true),
        (native(&second, "branch", "1"), false),
        (native(&second, "branch", "2"), true),
        (native(&first, "fork", "1"), true),
        (native(&first, "branch", "2"), false),
    ];
    for (n, (native, is_printed)) in builds.into_iter().enumerate() {
        harness.redis.push("default", "BuildJob", json!([native])).await;
        // The builder may not have seen the end of the last one yet.
        harness.until("the bake runs", async || harness.builder.runs().len() == n + 1).await;
        // The directory of a `--print` stays until the job's end.
        assert_eq!(harness.job_directories()[0].join("print").exists(), is_printed, "build {n}");
        harness.builder.release();
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!(report["status"], "succeeded", "{report:#}");
        harness.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_carries_only_an_id_is_resolved_by_rails() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]));
    harness.rails.answer(4711, Answer::Object(harness.native(&sha)));
    harness.redis.push("default", "BuildByIdJob", json!([4711])).await;
    let resolve = format!(
        r#"jobs.classes.BuildByIdJob = {{ arguments = "resolved", resolve = {{ url = "{}", secret = "s3cret" }} }}"#,
        harness.rails.url_pattern()
    );
    let _worker = harness.worker(&resolve);
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    assert!(harness.rails.requests()[0].is_authentic);
}

#[tokio::test(flavor = "multi_thread")]
async fn positional_arguments_and_the_ruby_generators_definition_are_built() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]));
    let definition = json!({
        "group": {"default": {"targets": ["vote"]}},
        "target": {"vote": {"context": "./vote", "tags": [format!("registry.example/acme/vote:{sha}")]}}
    });
    harness.redis.push("default", "LegacyBuildJob", json!(["acme/voting-app", sha, definition, {"deploy": 7}])).await;
    let _worker = harness.worker(&format!(
        r#"
[jobs.classes.LegacyBuildJob]
arguments = "mapped"
map = {{ repository = "/0", sha = "/1", definition = "/2" }}
constants = {{ "callback.class" = "BuildFinishedJob", "callback.queue" = "{CALLBACKS}" }}
echo = {{ deploy_id = "/3/deploy" }}
"#
    ));
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["status"], &report["deploy_id"]), (&json!("succeeded"), &json!(7)), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_does_not_build_is_a_finished_job_with_a_message() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::fails_step("vote", "make", 2, "no rule to make target"));
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let _worker = harness.worker("");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!("step_failed")), "{report:#}");
    let message = report["message"].as_str().unwrap();
    let target = &report["targets"][0];
    assert!(message.starts_with("Step ") && message.contains(" exited with 2: `"), "{message}");
    assert_eq!(target["failed_step"]["exit_code"], 2, "{report:#}");
    assert!(target["log_tail"].as_str().unwrap().contains("no rule to make target"), "{report:#}");
    harness.idle().await;
    assert!(harness.redis.sorted_set("retry").await.is_empty() && harness.redis.sorted_set("dead").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_builds_at_once_than_slots() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]).after(vec![Step::WaitMs(150)]));
    for _ in 0..9 {
        harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    }
    let _worker = harness.worker("");
    harness.callbacks(9).await;
    assert!(harness.builder.most_at_once() <= 4, "{}", harness.builder.most_at_once());
    assert!(harness.builder.most_at_once() >= 2, "at least two run at the same time");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_secrets_are_unreachable_from_the_sandbox() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let key = harness.home.path().join("app.pem");
    let socket = harness.home.path().join("engine.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let redis = format!("127.0.0.1:{}", harness.redis.port());
    let looks = vec![
        Step::Read(key.clone()),
        Step::Read("/proc/self/environ".into()),
        Step::Read("/etc/passwd".into()),
        Step::Write(harness.home.path().join("planted")),
        Step::Connect(redis),
        Step::ConnectUnix(socket),
        Step::Exec("/bin/sh".into()),
    ];
    harness.builder.script(Script::success(&["vote"]).after(looks));
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let _worker = harness.worker("");
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    let reports = harness.builder.ended_runs(1).await.remove(0).reports;
    // The last report is about the write of the metadata file, which the sandbox allows.
    assert_eq!(reports.len(), 8, "{reports:#?}");
    for report in &reports[..7] {
        assert_eq!(report.errno, Some(libc::EACCES), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_have_their_own_limit() {
    for (bound, expected) in [(1, 1..=1), (3, 2..=3)] {
        let harness = Harness::start();
        harness.builder.script_for_the_rest(Script::success(&["vote"]));
        // Long enough for all possible children to run at the same time.
        harness.git.faults().delay("/", std::time::Duration::from_millis(300));
        for n in 0..4 {
            let native = harness.native_of(&format!("acme{n}/app"));
            harness.redis.push("default", "BuildJob", json!([native])).await;
        }
        let worker = harness.worker(&format!("clones = {bound}"));
        let mut most = 0;
        while harness.redis.queue(CALLBACKS).await.len() < 4 {
            most = most.max(worker.source_children().len());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(expected.contains(&most), "{most} at once with clones = {bound}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_mirror_heals() {
    let (harness, _worker, sha) = built_once().await;
    let packs = std::process::Command::new("find")
        .arg(harness.home.path().join("state/mirrors"))
        .args(["-name", "*.pack"])
        .output();
    let packs = String::from_utf8(packs.unwrap().stdout).unwrap();
    assert!(packs.lines().count() > 0);
    for pack in packs.lines() {
        let length = std::fs::metadata(pack).unwrap().len();
        std::process::Command::new("chmod").args(["u+w", pack]).status().unwrap();
        std::fs::write(pack, vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
    }
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    assert_eq!(harness.callbacks(2).await[1]["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_definitions_are_resolved_two_at_a_time() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    for _ in 0..4 {
        let mut native = harness.native(&sha);
        let target = json!({"context": "./vote", "description": "scripted: print hangs"});
        native.as_object_mut().unwrap().remove("application");
        native["definition"] = json!({"target": {"default": target}});
        harness.redis.push("default", "BuildJob", json!([native])).await;
    }
    let worker = harness.worker("bake.prints = 2\nbake.print_timeout = \"2s\"");
    let is_print = |id: &u32| {
        let command_line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        command_line.contains("--print")
    };
    let mut most = 0;
    while harness.redis.queue(CALLBACKS).await.len() < 4 {
        most = most.max(worker.processes().iter().filter(|id| is_print(id)).count());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(most, 2);
    for report in harness.callbacks(4).await {
        assert_eq!(report["reason"], "definition_invalid", "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_beside_a_dockerfile_is_disabled_where_buildx_would_evaluate_it() {
    let mut policies = Vec::new();
    for version in ["", "-0.30.1", "-0.31.0"] {
        let harness = Harness::start();
        let files = [("vote/Dockerfile", "FROM base\n"), ("vote/Dockerfile.rego", "package docker\n")];
        let sha = harness.git.repository("acme/voting-app").commit(&files);
        harness.builder.script(Script::success(&["vote"]));
        let usual = harness.home.path().join("docker-buildx");
        let buildx = harness.home.path().join(format!("docker-buildx{version}"));
        if buildx != usual {
            std::fs::hard_link(&usual, &buildx).unwrap();
        }
        let variables = [("SIDEBAKE__BUILDX__BINARY", buildx)];
        let _worker = harness.worker_with_variables(&harness.config(""), &[], &variables);
        harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
        assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
        let definition: Value = serde_json::from_str(&harness.builder.runs()[0].text).unwrap();
        policies.push(definition["target"]["vote"]["policy"].clone());
    }
    assert_eq!(policies, [Value::Null, Value::Null, json!([{"disabled": true}])]);
}
