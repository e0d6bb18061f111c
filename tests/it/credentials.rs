//! Registry credentials of an account, from its file and from the helpers that the file names.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use world::Script;

use crate::harness::Harness;

/// A text that no helper may bring into a log, Redis or a callback.
const PASSWORD: &str = "pa55-of-the-registry";

/// A helper that follows the protocol, except for some registries.
const HELPER: &str = r#"#!/bin/sh
env >"$(dirname "$0")/environment"
test -w / && test -r /etc/passwd && echo outside >"$(dirname "$0")/place"
read -r registry
case "$1 $registry" in
  "list "*) echo '{"one.example":"robot","two.example":"robot"}' ;;
  "get token.example") echo '{"ServerURL":"token.example","Username":"<token>","Secret":"pa55-of-the-registry"}' ;;
  "get none.example") echo 'credentials not found in native keychain'; exit 1 ;;
  "get fails.example") echo '{"Username":"robot","Secret":"pa55-of-the-registry"}'; echo "pa55-of-the-registry" >&2; exit 1 ;;
  "get nonsense.example") echo 'pa55-of-the-registry, is it not?' ;;
  "get half.example") echo '{"Username":"pa55-of-the-registry"}' ;;
  "get floods.example") yes pa55-of-the-registry ;;
  "get hangs.example") echo 'pa55-of-the-registry'; exec sleep 100 ;;
  "get "*) echo '{"ServerURL":"'"$registry"'","Username":"robot",'; echo '"Secret":"pa55-of-the-registry"}' ;;
esac
"#;

struct Desk {
    harness: Harness,
    helpers: PathBuf,
}

impl Desk {
    fn open() -> Self {
        let harness = Harness::start();
        let helpers = harness.home.path().join("helpers");
        for directory in [&helpers, &harness.home.path().join("registries")] {
            std::fs::create_dir(directory).unwrap();
        }
        for name in ["helpers/docker-credential-fake", "docker-credential-evil"] {
            let path = harness.home.path().join(name);
            std::fs::write(&path, HELPER).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        harness.builder.script_for_the_rest(Script::success(&["vote"]));
        Self { harness, helpers }
    }

    fn settings(&self) -> String {
        let home = self.harness.home.path().display();
        format!(
            "accounts.registries = \"{home}/registries/{{account}}.json\"\naccounts.credential_helpers = \"{}\"",
            self.helpers.display()
        )
    }

    /// Writes an account's file, and enqueues a job of the account.
    async fn push(&self, account: &str, config: &Value) {
        let file = self.harness.home.path().join(format!("registries/{account}.json"));
        std::fs::write(file, config.to_string()).unwrap();
        let mut native = self.harness.native_of(&format!("{account}/app"));
        native["callback"]["on"] = json!(["retrying", "finished"]);
        self.harness.redis.push("default", "BuildJob", json!([native])).await;
    }
}

fn basic(user: &str) -> Value {
    json!({"auth": BASE64_STANDARD.encode(format!("{user}:{PASSWORD}"))})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_gets_the_credentials_that_its_accounts_file_and_helpers_have_and_nothing_else() {
    let desk = Desk::open();
    let own = json!({"auth": "b3duOm93bg=="});
    let helpers = |registry: &str| json!({"credHelpers": {registry: "fake"}});
    let table = [
        (
            "plain",
            json!({"auths": {"r.example": own}, "proxies": {"default": {"httpProxy": "http://p"}}}),
            json!({"r.example": own}),
        ),
        ("helper", helpers("one.example"), json!({"one.example": basic("robot")})),
        (
            "store",
            json!({"credsStore": "fake", "auths": {"r.example": own}}),
            json!({"one.example": basic("robot"), "two.example": basic("robot"), "r.example": own}),
        ),
        ("token", helpers("token.example"), json!({"token.example": {"identitytoken": PASSWORD}})),
        ("none", helpers("none.example"), json!({})),
    ];
    let config = desk.harness.config(&desk.settings());
    let variables = [("REDIS_URL", "redis://:hunter2@nowhere"), ("CLOUD_REGION", "here")];
    let _worker = desk.harness.worker_with_variables(&config, &[], &variables);
    for (n, (account, file, expected)) in table.iter().enumerate() {
        desk.push(account, file).await;
        let report = desk.harness.callbacks(n + 1).await.remove(n);
        assert_eq!(report["status"], "succeeded", "{account}: {report:#}");
        let run = desk.harness.builder.runs().remove(n);
        let config: Value = serde_json::from_str(&run.docker_config.unwrap()).unwrap();
        assert_eq!(config, json!({"auths": expected}), "{account}");
        assert!(!run.env.contains_key("CLOUD_REGION"), "the build does not get the helper's environment");
    }
    let environment = std::fs::read_to_string(desk.helpers.join("environment")).unwrap();
    assert!(environment.contains("CLOUD_REGION=here") && environment.contains("PATH="), "{environment}");
    assert!(!environment.contains("hunter2") && !environment.contains("SIDEBAKE_"), "{environment}");
    assert!(desk.helpers.join("place").exists(), "the helper runs outside the sandbox");
    desk.harness.idle().await;
    for secret in [PASSWORD, &BASE64_STANDARD.encode(format!("robot:{PASSWORD}"))] {
        assert_eq!(desk.harness.traces_of(secret).await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_cannot_be_used_is_named_and_not_quoted() {
    let desk = Desk::open();
    let helper = |registry: &str, name: &str| json!({"credHelpers": {registry: name}});
    let table = [
        (
            "fails",
            helper("fails.example", "fake"),
            "docker-credential-fake get for fails.example failed (exit status: 1)",
        ),
        ("nonsense", helper("nonsense.example", "fake"), "did not print a credential for nonsense.example"),
        ("half", helper("half.example", "fake"), "did not print a credential for half.example"),
        ("floods", helper("floods.example", "fake"), "printed more than 262144 bytes"),
        ("missing", helper("a.example", "nobody"), "docker-credential-nobody could not be started"),
        ("slash", helper("a.example", "x/../../docker-credential-evil"), "is not a valid name of a credential helper"),
        ("dots", helper("a.example", ".."), "is not a valid name of a credential helper"),
        ("text", json!("credHelpers"), "expected a docker config.json"),
        ("hangs", helper("hangs.example", "fake"), "docker-credential-fake get for hangs.example took more than 15 s"),
    ];
    let _worker = desk.harness.worker_with(&desk.harness.config(&desk.settings()), &["-c", "10"]);
    for (account, file, _) in &table {
        desk.push(account, file).await;
    }
    let of = |reports: &[Value], account: &str| {
        reports.iter().find(|report| report["repository"] == format!("{account}/app")).cloned()
    };
    let mut reports = Vec::new();
    // The worker retries some of them before it gives up the helper that hangs.
    while table.iter().any(|(account, ..)| of(&reports, account).is_none()) {
        reports = desk.harness.callbacks(reports.len() + 1).await;
    }
    for (account, _, words) in &table {
        let report = of(&reports, account).unwrap();
        let message = report["message"].as_str().unwrap();
        assert_eq!((&report["moment"], &report["reason"]), (&json!("retrying"), &json!("worker_failed")), "{report:#}");
        assert!(message.contains(words) && message.contains(&format!("registries/{account}.json")), "{message}");
    }
    assert_eq!(desk.harness.traces_of(PASSWORD).await, Vec::<String>::new());
    assert!(desk.harness.builder.runs().is_empty());
    assert!(!desk.harness.home.path().join("environment").exists(), "the worker runs no program outside the directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_needs_a_directory_in_the_configuration() {
    let desk = Desk::open();
    let settings = desk.settings();
    let _worker = desk.harness.worker(settings.lines().next().unwrap());
    desk.push("acme", &json!({"credsStore": "fake"})).await;
    let report = desk.harness.callbacks(1).await.remove(0);
    assert_eq!(report["reason"], "worker_failed");
    assert!(
        report["message"].as_str().unwrap().contains("set accounts.credential_helpers to its directory"),
        "{report:#}"
    );
}
