//! The other commands: build, enqueue, plan, doctor.

use serde_json::{Value, json};
use world::{GitHost, Script};

use crate::harness::{Harness, text};

#[tokio::test(flavor = "multi_thread")]
async fn build_takes_a_directory_and_a_template() {
    let harness = Harness::start();
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join("web")).unwrap();
    std::fs::write(tree.path().join("web/Dockerfile"), "FROM scratch").unwrap();
    let template = tree.path().join("template.json");
    std::fs::write(&template, json!({"images": [{"name": "web", "context": "./web"}]}).to_string()).unwrap();
    harness.builder.script(Script::success(&["web"]));
    let tree = tree.path().to_str().unwrap();
    let output = harness.run(&["build", tree, "--template", template.to_str().unwrap()], "");
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("web     succeeded"), "{}", text(&output));
    assert!(text(&output).contains("web") && text(&output).contains("sha256:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn build_takes_a_url_and_the_trees_own_definition() {
    let harness = Harness::start();
    let host = GitHost::open();
    let definition = json!({"target": {"default": {"context": "app"}}});
    host.repository("acme/tool")
        .commit(&[("docker-bake.json", &definition.to_string()), ("app/Dockerfile", "FROM scratch")]);
    harness.builder.script(Script::success(&["default"]));
    let output = harness.run(&["build", &format!("{}/acme/tool.git", host.url())], "");
    assert!(output.status.success(), "{}", text(&output));
    harness.builder.script(Script::fails_step("default", "make", 2, ""));
    let output = harness.run(&["build", &format!("{}/acme/tool.git", host.url()), "--revision", "main"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("step_failed"), "{}", text(&output));
}

#[test]
fn build_without_a_definition_names_the_files_it_looked_for() {
    let harness = Harness::start();
    let tree = tempfile::tempdir().unwrap();
    let output = harness.run(&["build", tree.path().to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("no --template given") && text(&output).contains("docker-bake.hcl"),
        "{}",
        text(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueued_job_is_built() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]));
    let file = harness.home.path().join("job.json");
    std::fs::write(&file, harness.native(&sha).to_string()).unwrap();
    let output = harness.run(&["enqueue", file.to_str().unwrap()], "");
    let jid = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert_eq!(jid.len(), 24);
    let _worker = harness.worker("");
    assert_eq!(harness.callbacks(1).await[0]["jid"], json!(jid));
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_shows_what_would_run_and_runs_nothing() {
    let harness = Harness::start();
    let file = harness.home.path().join("job.json");
    let native = harness.native("0123456789abcdef0123456789abcdef01234567");
    std::fs::write(&file, json!({"class": "BuildJob", "args": [native]}).to_string()).unwrap();
    let output = harness.run(&["plan", file.to_str().unwrap()], "");
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    assert_eq!(plan["definition"]["target"]["vote"]["context"], "./vote");
    assert_eq!(plan["placement"]["builder"], "default");
    assert_eq!(plan["argv"][1], "bake");
    assert!(plan["environment"].as_array().unwrap().contains(&json!("BUILDX_GIT_INFO")));
    assert!(
        plan["directories"]["working_directory"].as_str().unwrap().ends_with("/state/sticky/acme/acme/voting-app"),
        "{plan:#}"
    );
    assert!(harness.github.calls().is_empty() && harness.builder.runs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_shows_a_repositorys_own_file_and_no_secret() {
    let harness = Harness::start();
    let home = harness.home.path();
    for (directory, name, content) in
        [("secrets/acme", "npm", "s3cret"), ("registries", "acme.json", r#"{"auths":{"r.example":{"auth":"pa55"}}}"#)]
    {
        std::fs::create_dir_all(home.join(directory)).unwrap();
        std::fs::write(home.join(directory).join(name), content).unwrap();
    }
    let more = format!(
        "accounts.secrets = \"{0}/secrets/{{account}}/{{name}}\"\naccounts.registries = \"{0}/registries/{{account}}.json\"",
        home.display()
    );
    let plan = |field: &str, recipe: Value, targets: Value| -> Value {
        let mut native = harness.native("0123456789abcdef0123456789abcdef01234567");
        native.as_object_mut().unwrap().remove("application");
        native[field] = recipe;
        native["targets"] = targets;
        let file = home.join("job.json");
        std::fs::write(&file, json!({"class": "BuildJob", "args": [native]}).to_string()).unwrap();
        let output = harness.run(&["plan", file.to_str().unwrap()], &more);
        let shown = text(&output);
        assert!(!shown.contains("s3cret") && !shown.contains("pa55") && !shown.contains("PRIVATE"), "{shown}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{shown}"))
    };
    let compose = plan("compose", json!("app/docker-compose.yml"), json!(["web", "db"]));
    assert_eq!(
        compose["definition"],
        json!({"files": ["app/docker-compose.yml"], "targets": ["web", "db"]}),
        "{compose:#}"
    );
    let bake = plan("bake", json!("docker-bake.hcl"), json!([]));
    assert_eq!(bake["definition"], json!({"files": ["docker-bake.hcl"], "targets": ["default"]}), "{bake:#}");
    let definition = json!({"target": {"vote": {"context": "vote", "secret": [{"id": "npm"}]}}});
    let inline = plan("definition", definition.clone(), json!(["vote"]));
    assert_eq!(inline["definition"], definition, "{inline:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_reports_what_the_kernel_can_enforce() {
    let harness = Harness::start();
    let line = |mode: &str| {
        let output = harness.run(&["doctor"], &format!("sandbox.mode = \"{mode}\""));
        text(&output).lines().find(|line| line.contains("sandbox")).unwrap().to_owned()
    };
    let required = line("required");
    assert!(required.starts_with("ok") && required.contains("Landlock ABI "), "{required}");
    assert!(required.contains("files, TCP ports") && required.contains("seccomp, capabilities, limits"), "{required}");
    assert!(line("off").starts_with("warn") && line("off").contains("off, although"));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_fails_when_a_check_is_red() {
    let harness = Harness::start();
    let output = harness.run(&["doctor", "--json"], "");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    let health =
        |name: &str| findings.iter().find(|finding| finding["name"] == name).map(|finding| finding["health"].clone());
    for name in ["redis", "redis memory", "github app", "builder default", "disk"] {
        assert_eq!(health(name), Some(json!("green")), "{name}: {findings:#?}");
    }
    assert_eq!(health("buildx"), Some(json!("yellow")), "0.29 hangs when it loses its pod");
    assert!(output.status.success());

    std::fs::remove_file(harness.home.path().join("app.pem")).unwrap();
    let output = harness.run(&["doctor"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("FAIL  github app"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_checks_the_key_of_times_where_it_is_needed() {
    let harness = Harness::start();
    let path = harness.home.path().join("times.key");
    let doctor = |mtimes: &str| {
        let more =
            format!("[source]\nmtimes_for = {{ \"acme/*\" = \"{mtimes}\" }}\nmtimes_key_file = \"{}\"", path.display());
        let output = harness.run(&["doctor"], &more);
        let line = text(&output).lines().find(|line| line.contains("source.mtimes_key")).map(str::to_owned);
        (output.status.success(), line.unwrap_or_default())
    };
    let is_red =
        |(is_good, line): (bool, String), words: &str| !is_good && line.starts_with("FAIL") && line.contains(words);
    assert_eq!(doctor("checkout"), (true, String::new()));
    assert!(is_red(doctor("content"), "No such file"));
    std::fs::write(&path, "hunter2\n").unwrap();
    assert!(is_red(doctor("content"), "is shorter than 32 characters"));
    std::fs::write(&path, "0".repeat(32)).unwrap();
    let (is_good, line) = doctor("content");
    assert!(is_good && line.starts_with("ok"), "{line}");
}
