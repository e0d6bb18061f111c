//! Build secrets and credentials of many accounts at once. No secret may appear where it does not belong.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use world::{Run, Script, Step};

use crate::harness::Harness;

/// Files of secrets and credentials, by account and trust, and the settings that lead to them.
fn store(harness: &Harness, files: &[(&str, &str)]) -> String {
    let home = harness.home.path();
    for (path, content) in files {
        let path = home.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let home = home.display();
    format!(
        "accounts.registries = \"{home}/registries/{{account}}/{{trust}}.json\"\n\
         accounts.secrets = \"{home}/secrets/{{account}}/{{trust}}/{{name}}\"\n"
    )
}

fn credentials(password: &str) -> String {
    json!({"auths": {"r.example": {"auth": password}}}).to_string()
}

fn secret_file(run: &Run) -> Option<String> {
    run.definition["target"]["vote"]["secret"][0]["src"].as_str().map(str::to_owned)
}

/// Reads its secret and the directories of all jobs, then waits.
fn looks() -> Script {
    Script::new(|run| {
        let Some(file) = secret_file(run) else { return vec![Step::Exit(0)] };
        let jobs = Path::new(&file).ancestors().nth(3).unwrap().to_owned();
        vec![Step::Read(file.into()), Step::Read(jobs), Step::WaitMs(400), Step::Exit(0)]
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_16_accounts_at_once_has_its_own_secrets_and_credentials() {
    let harness = Harness::start();
    harness.builder.script_for_the_rest(looks());
    let accounts: Vec<String> = (0..16).map(|n| format!("acme{n}")).collect();
    let mut settings = String::new();
    for account in &accounts {
        let (secret, password) = (format!("secret of {account}."), credentials(&format!("password-of-{account}.")));
        let files = [
            (format!("secrets/{account}/branch/npm"), secret),
            (format!("registries/{account}/branch.json"), password),
        ];
        settings = store(&harness, &files.each_ref().map(|(path, content)| (path.as_str(), content.as_str())));
        let mut native = harness.native_of(&format!("{account}/app"));
        native["application"]["images"][0]["secrets"] = json!([{"id": "npm"}]);
        harness.redis.push("default", "BuildJob", json!([native])).await;
    }
    let _worker = harness.worker_with(&harness.config(&settings), &["-c", "16"]);
    for report in harness.callbacks(16).await {
        assert_eq!(report["status"], "succeeded", "{report:#}");
    }
    assert!(harness.builder.most_at_once() >= 2, "{} at once", harness.builder.most_at_once());
    let mut seen = BTreeMap::new();
    for run in harness.builder.ended_runs(16).await {
        // The working directory ends with account, owner and name.
        let account = run.cwd.iter().nth_back(2).unwrap().to_str().unwrap().to_owned();
        let found = |n: usize| (run.reports[n].found.clone(), run.reports[n].errno);
        assert_eq!(found(0), (Some(format!("secret of {account}.")), None));
        assert_eq!(found(1), (None, Some(libc::EACCES)), "other jobs' directories");
        assert_eq!(run.docker_config, Some(credentials(&format!("password-of-{account}."))));
        seen.insert(account, secret_file(&run).unwrap());
    }
    assert_eq!(seen.keys().collect::<Vec<_>>().len(), 16);
    harness.idle().await;
    assert!(seen.values().all(|file| !Path::new(file).exists()), "a secret outlives its job");
    for text in ["secret of acme", "password-of-acme"] {
        assert_eq!(harness.traces_of(text).await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_chooses_the_secret_and_a_fork_gets_none() {
    let harness = Harness::start();
    harness.builder.script_for_the_rest(looks());
    let mut settings = store(
        &harness,
        &[
            ("secrets/acme/branch/npm", "for branches"),
            ("secrets/acme/protected/npm", "for releases"),
            ("secrets/acme/fork/npm", "for nobody"),
            ("registries/acme/protected.json", &credentials("releases")),
        ],
    );
    settings += "accounts.secret_variables = { \"acme/sentry\" = \"SENTRY\", \"*/sentry\" = \"OTHERS\" }\n";
    let variables = [("SENTRY", "of acme"), ("OTHERS", "of others")];
    let config = harness.config(&settings);
    let _worker = harness.worker_with_variables(&config, &[], &variables);
    let (_, sha) = harness.voting_app();
    let none = r#"{"auths":{}}"#;
    let (branch, pull) = (json!("refs/heads/main"), json!("refs/pull/7/merge"));
    let table = [
        (json!("branch"), &branch, "npm", Some("for branches"), none),
        (json!("protected"), &branch, "npm", Some("for releases"), &credentials("releases")),
        (json!("fork"), &branch, "npm", None, none),
        (Value::Null, &branch, "npm", Some("for branches"), none),
        (Value::Null, &pull, "npm", None, none),
        (json!("branch"), &pull, "npm", None, none),
        (json!("protected"), &pull, "sentry", None, none),
        (json!("protected"), &branch, "sentry", Some("of acme"), &credentials("releases")),
        (json!("fork"), &branch, "sentry", None, none),
    ];
    for (n, (trust, reference, name, secret, docker_config)) in table.iter().enumerate() {
        let mut native = harness.native(&sha);
        (native["trust"], native["ref"]) = (trust.clone(), (*reference).clone());
        native["application"]["images"][0]["secrets"] = json!([{"id": "x", "from": name}]);
        harness.redis.push("default", "BuildJob", json!([native])).await;
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!(report["status"], "succeeded", "{report:#}");
        let run = harness.builder.ended_runs(n + 1).await.remove(n);
        let found = run.reports.first().and_then(|report| report.found.as_deref());
        assert_eq!(
            (found, run.docker_config.as_deref()),
            (*secret, Some(*docker_config)),
            "{trust} {reference} {name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_used_is_named_and_not_quoted() {
    let harness = Harness::start();
    let large = "hunter2 ".repeat(70_000);
    let mut settings = store(&harness, &[("secrets/acme/branch/large", &large)]);
    std::fs::create_dir(harness.home.path().join("secrets/acme/branch/directory")).unwrap();
    settings += "accounts.secret_variables = { \"acme/unset\" = \"NOT_THERE\" }\n";
    let _worker = harness.worker(&settings);
    let (_, sha) = harness.voting_app();
    let table = [
        ("large", "worker_failed", "build secret large: ", "is larger than 512000 bytes"),
        ("directory", "policy_refused", "target.vote.secret[0]: ", "no secret \"directory\" is granted to acme"),
        ("unset", "worker_failed", "build secret unset: ", "its variable is not set in the worker's environment"),
        ("nobodys", "policy_refused", "target.vote.secret[0]: ", "no secret \"nobodys\" is granted to acme"),
    ];
    for (n, (name, reason, which, words)) in table.iter().enumerate() {
        let mut native = harness.native(&sha);
        native["callback"]["on"] = json!(["retrying", "finished"]);
        native["application"]["images"][0]["secrets"] = json!([{"id": name}]);
        harness.redis.push("default", "BuildJob", json!([native])).await;
        let report = harness.callbacks(n + 1).await.remove(n);
        let message = report["message"].as_str().unwrap();
        assert_eq!(report["reason"], *reason, "{report:#}");
        assert!(message.contains(which) && message.contains(words), "{message}");
        assert!(!message.contains("acme/branch") && !message.contains("NOT_THERE"), "{message}");
    }
    assert!(harness.builder.runs().is_empty());
    assert_eq!(harness.traces_of("hunter2").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_any_bytes_reaches_the_build_unchanged() {
    let harness = Harness::start();
    harness.builder.script_for_the_rest(Script::success(&["vote"]).held());
    let (keystore, token) = ((0..=255).cycle().take(2000).collect::<Vec<u8>>(), b"of \xff\xfe\r\n".to_vec());
    let mut settings = store(&harness, &[("secrets/acme/branch/npm", "a directory")]);
    std::fs::write(harness.home.path().join("secrets/acme/branch/keystore"), &keystore).unwrap();
    settings += "accounts.secret_variables = { \"acme/token\" = \"TOKEN\" }\n";
    let variables = [("TOKEN", OsString::from_vec(token.clone()))];
    let _worker = harness.worker_with_variables(&harness.config(&settings), &[], &variables);
    let (_, sha) = harness.voting_app();
    let mut native = harness.native(&sha);
    native["application"]["images"][0]["secrets"] = json!([{"id": "keystore"}, {"id": "token"}]);
    harness.redis.push("default", "BuildJob", json!([native])).await;
    harness.until("the bake runs", async || harness.builder.running() == 1).await;
    let secrets = harness.builder.runs()[0].definition["target"]["vote"]["secret"].clone();
    let given = |n: usize| std::fs::read(secrets[n]["src"].as_str().unwrap()).unwrap();
    assert_eq!((given(0), given(1)), (keystore, token));
    harness.builder.release();
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["status"], "succeeded", "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_token_needs_the_host_that_it_is_for_and_a_fork_gets_none() {
    let harness = Harness::start();
    harness.builder.script_for_the_rest(looks());
    let settings = store(
        &harness,
        &[
            "branch/GIT_AUTH_TOKEN",
            "branch/GIT_AUTH_TOKEN.git.example",
            "branch/GIT_AUTH_HEADER.git.example",
            "fork/GIT_AUTH_TOKEN",
            "fork/GIT_AUTH_TOKEN.git.example",
            "fork/npm",
        ]
        .map(|name| (format!("secrets/acme/{name}"), "for git"))
        .each_ref()
        .map(|(path, content)| (path.as_str(), *content)),
    );
    let _worker = harness.worker(&settings);
    let (_, sha) = harness.voting_app();
    let in_template = |id: &str| {
        let mut native = harness.native(&sha);
        native["application"]["images"][0]["secrets"] = json!([{"id": id}]);
        native
    };
    let inline = |id: &str| {
        let mut native = harness.native(&sha);
        native.as_object_mut().unwrap().remove("application");
        let target = json!({"context": "vote", "tags": ["registry.example/acme/vote:1"], "secret": [{"id": id}]});
        native["definition"] = json!({"target": {"vote": target}});
        native["targets"] = json!(["vote"]);
        native
    };
    let of_fork = |mut native: Value| {
        native["trust"] = json!("fork");
        native
    };
    let mut renamed = in_template("GIT_AUTH_TOKEN.git.example");
    renamed["application"]["images"][0]["secrets"][0]["from"] = json!("npm");
    let refused = "GIT_AUTH_TOKEN would go to any git host";
    let table = [
        (in_template("GIT_AUTH_TOKEN"), Some("invalid_arguments")),
        (inline("GIT_AUTH_TOKEN"), Some("policy_refused")),
        (in_template("GIT_AUTH_TOKEN.git.example"), None),
        (in_template("GIT_AUTH_HEADER.git.example"), None),
        (inline("GIT_AUTH_TOKEN.git.example"), None),
        // A fork's build gets no token, whatever its name.
        (of_fork(in_template("GIT_AUTH_TOKEN")), Some("invalid_arguments")),
        (of_fork(inline("GIT_AUTH_TOKEN")), Some("policy_refused")),
        (of_fork(in_template("GIT_AUTH_TOKEN.git.example")), None),
        (of_fork(inline("GIT_AUTH_TOKEN.git.example")), None),
        (of_fork(renamed), None),
    ];
    for (n, (native, reason)) in table.iter().enumerate() {
        harness.redis.push("default", "BuildJob", json!([native])).await;
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!(report["reason"], json!(reason), "{n}: {report:#}");
        assert!(reason.is_none() || report["message"].as_str().unwrap().contains(refused), "{report:#}");
    }
    let runs = harness.builder.ended_runs(6).await;
    let (of_branches, of_forks) = runs.split_at(3);
    for run in of_branches {
        let id = run.definition["target"]["vote"]["secret"][0]["id"].as_str().unwrap();
        assert!(id.ends_with(".git.example"), "{id}");
        assert_eq!(run.reports[0].found.as_deref(), Some("for git"));
    }
    for run in of_forks {
        assert_eq!(run.definition["target"]["vote"]["secret"], Value::Null);
        assert!(!format!("{:?}", run.env).contains("GIT_AUTH"), "{:?}", run.env);
    }
    assert_eq!(of_forks.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_a_callback_redis_a_file_or_a_childs_arguments() {
    const REDIS: &str = "pa55-of-redis";
    const PASSWORD: &str = "pa55-of-the-registry";
    let registry = BASE64_STANDARD.encode(format!("robot:{PASSWORD}"));
    const SECRET: &str = "s3cret-of-the-build";
    let harness = Harness::start();
    let mut redis = harness.redis.connection().await;
    let user = ["SETUSER", "sidebake", "on", &format!(">{REDIS}"), "~*", "&*", "+@all"];
    redis::cmd("ACL").arg(&user).exec_async(&mut redis).await.unwrap();
    let settings = store(
        &harness,
        &[("secrets/acme/branch/npm", SECRET), ("registries/acme/branch.json", &credentials(&registry))],
    );
    let url = format!("redis://sidebake:{REDIS}@127.0.0.1:{}/0", harness.redis.port());
    let variables = [("SIDEBAKE__REDIS__URL", url.as_str()), ("SIDEBAKE__LOG__LEVEL", "trace")];
    let config = harness.config(&settings);
    let worker = harness.worker_with_variables(&config, &[], &variables);
    let (_, sha) = harness.voting_app();
    let said = format!("npm was given {SECRET} and did not like it, nor {PASSWORD} in {registry}");
    let scripts = [
        Script::success(&["vote"]).held(),
        Script::fails_step("vote", &format!("npm login {SECRET}"), 2, &said),
        Script::steps(vec![Step::Stderr(format!("ERROR: failed to solve: {said}\n")), Step::Exit(1)]),
        Script::steps(vec![Step::Stderr(format!("{said}\n{{\"vertexes\":[{{\"name\":\"{said}\"}}\n")), Step::Exit(1)]),
        Script::loses_builder(),
    ];
    let app_key = std::fs::read_to_string(harness.home.path().join("app.pem")).unwrap();
    let app_key = app_key.lines().nth(5).unwrap().to_owned();
    for (n, script) in scripts.iter().enumerate() {
        harness.builder.script(script.clone());
        let mut native = harness.native(&sha);
        native["callback"]["on"] = json!(["retrying", "finished"]);
        native["application"]["images"][0]["secrets"] = json!([{"id": "npm"}]);
        harness.redis.push("default", "BuildJob", json!([native])).await;
        if n == 0 {
            harness.until("the bake runs", async || harness.builder.running() == 1).await;
            let tokens: Vec<String> = harness.github.tokens().all().into_iter().map(|(token, _)| token).collect();
            let all = [tokens[0].as_str(), &app_key, REDIS, PASSWORD, &registry, SECRET];
            let children: Vec<u32> = worker.processes().into_iter().filter(|id| *id != worker.pid()).collect();
            assert!(!children.is_empty());
            for child in children {
                for name in ["cmdline", "environ"] {
                    let text = std::fs::read(format!("/proc/{child}/{name}")).unwrap();
                    let text = String::from_utf8_lossy(&text);
                    assert!(all.iter().all(|secret| !text.contains(secret)), "{name} of a child: {text}");
                }
            }
            // Both secrets must be there, each in one file that no other user can read.
            for (secret, place) in [(SECRET, "/secrets/0"), (&registry, "/docker/config.json")] {
                let traces = harness.traces_of(secret).await;
                assert!(traces.len() == 1 && traces[0].ends_with(place), "{traces:?}");
                use std::os::unix::fs::MetadataExt;
                assert_eq!(std::fs::metadata(&traces[0]).unwrap().mode() & 0o777, 0o600);
            }
            harness.builder.release();
        }
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!(report["status"] == "succeeded", n == 0, "{report:#}");
        assert!([SECRET, PASSWORD, &registry].iter().all(|text| !report.to_string().contains(text)), "{report:#}");
        if n == 1 || n == 2 {
            assert!(report.to_string().contains("***"), "the report shows its output without the secret: {report:#}");
        }
    }
    harness.until("no job is in flight", async || harness.redis.keys("sidebake:inflight:*").await.is_empty()).await;
    assert!(worker.log().contains("TRACE"), "the log has the most detailed level");
    let tokens = harness.github.tokens().all().into_iter().map(|(token, _)| token);
    for secret in tokens.chain([app_key, REDIS.into(), PASSWORD.into(), registry, SECRET.into()]) {
        assert_eq!(harness.traces_of(&secret).await, Vec::<String>::new(), "{secret}");
    }
    let jobs: Vec<Value> = harness.callback_jobs(scripts.len()).await;
    assert_eq!(jobs.len(), scripts.len());
}

/// The texts that a step prints of a secret and of a key of several lines.
fn printed(secret: &str, key: &str) -> Vec<String> {
    let base64 = |text: String| BASE64_STANDARD.encode(text);
    let url_safe = |text: String| BASE64_STANDARD.encode(text).replace('+', "-").replace('/', "_");
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let wrapped = |text: String| {
        text.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line).into_owned() + "\n").collect()
    };
    vec![
        secret.to_owned(),
        base64(secret.to_owned()),
        base64(format!("a{secret}")),
        base64(format!("ab{secret}, x")),
        url_safe(format!("user:{secret}")),
        percent,
        json!({"p": secret}).to_string(),
        hex(secret),
        hex(secret).to_uppercase(),
        format!("password={secret:?}"),
        key.to_owned(),
        key.replace('\n', "\n      "),
        json!({"key": key}).to_string(),
        wrapped(base64(key.to_owned())),
        wrapped(base64(format!("{key}\n"))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_no_output_of_the_product_in_whatever_form_it_is_printed() {
    const SECRET: &str = "q7Zp/XvK2+Wm9T R4d\"Lc6Y<Ns8B";
    let key: String = (1..12_u8).map(|n| BASE64_STANDARD.encode([n * 21; 48]) + "\n").collect();
    let key = format!("-----BEGIN PRIVATE KEY-----\n{key}-----END PRIVATE KEY-----");
    let harness = Harness::start();
    let archive = harness.home.path().join("archive");
    let settings = store(&harness, &[("secrets/acme/branch/npm", SECRET), ("secrets/acme/branch/key", &key)]);
    let worker = harness.worker(&format!("{settings}\njournal.archive = \"file://{}\"", archive.display()));
    let (_, sha) = harness.voting_app();
    let all = printed(SECRET, &key);
    let said: String = all.iter().map(|text| format!("before {text} after\n")).collect();
    harness.builder.script(Script::fails_step("vote", &format!("npm login {}", all[1]), 2, &said));
    harness
        .builder
        .script(Script::steps(vec![Step::Stderr(format!("ERROR: failed to solve: {said}\n")), Step::Exit(1)]));
    let mut shown = String::new();
    for n in 0..2 {
        let mut native = harness.native(&sha);
        native["application"]["images"][0]["secrets"] = json!([{"id": "npm"}, {"id": "key"}]);
        harness.redis.push("default", "BuildJob", json!([native])).await;
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!(report["status"], "failed", "{report:#}");
        for url in [
            report["log_url"].as_str().unwrap().to_owned(),
            report["log_url"].as_str().unwrap().replace(".log.", ".jsonl."),
        ] {
            let file = std::fs::File::open(url.strip_prefix("file://").unwrap()).unwrap();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut shown).unwrap();
        }
        shown.push_str(&report.to_string());
        shown.push_str(&crate::harness::text(&harness.run(&["logs", report["jid"].as_str().unwrap()], "")));
        shown.push_str(&crate::harness::text(&harness.run(&["logs", report["jid"].as_str().unwrap(), "--json"], "")));
    }
    harness.idle().await;
    shown.push_str(&worker.log());
    assert!(shown.matches("before ***").count() > 20, "the forms are shown without the secret: {shown}");
    for line in all.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| line.len() >= 12) {
        for part in line.as_bytes().windows(12).map(|part| String::from_utf8_lossy(part).into_owned()) {
            assert!(!shown.contains(&part), "{part:?} of {line:?} is shown");
        }
        assert_eq!(harness.traces_of(line).await, Vec::<String>::new(), "{line}");
    }
}
