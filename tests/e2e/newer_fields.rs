//! Fields of a repository's bake file that only newer versions of buildx know. Older ones drop them without a word.

use serde_json::{Value, json};
use world::buildx;

use crate::harness::Harness;

/// Commits a bake file of one target, which pushes nothing, with a Dockerfile that no cache knows and more files.
fn commit(harness: &Harness, fields: &Value, more: &[(&str, &str)]) -> String {
    let mut target = json!({"context": "app", "output": ["type=cacheonly"]});
    target.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let definition = json!({"target": {"default": target}}).to_string();
    let dockerfile = harness.dockerfile("RUN true");
    let files = [("docker-bake.json", &*definition), ("app/Dockerfile", &*dockerfile)];
    harness.commit("shop", &[&files, more].concat())
}

async fn build(harness: &Harness, sha: &str) -> Value {
    let mut native = harness.native("shop", sha, &[]);
    native.as_object_mut().unwrap().remove("application");
    (native["bake"], native["push"]) = (json!("docker-bake.json"), json!(false));
    harness.build(native).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repositorys_own_policies_are_not_evaluated() {
    let harness = Harness::open();
    // buildx fails when it evaluates this one.
    let invalid = "package docker\nallow {";
    let sha = commit(&harness, &json!({"policy": [{"strict": false}]}), &[("app/Dockerfile.rego", invalid)]);
    let tree = harness.check_out("shop");
    let bare = harness.bare_buildx(&tree).args(["bake", "--progress", "quiet"]).output().unwrap();
    let is_evaluated = String::from_utf8_lossy(&bare.stderr).contains("rego_parse_error");
    // The control. Before 0.31, buildx has no policies.
    let expected = if buildx().version < (0, 31) { (true, false) } else { (false, true) };
    assert_eq!((bare.status.success(), is_evaluated), expected, "{bare:?}");
    let _worker = harness.worker("");

    let report = build(&harness, &sha).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    let notices = match buildx().version < (0, 31) {
        true => json!([]),
        false => json!(["target.default.policy: not used: the worker disables the policies of buildx"]),
    };
    assert_eq!(report["notices"], notices, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_limits_its_own_steps_and_takes_no_more_than_its_share() {
    let harness = Harness::open();
    let _worker = harness.worker("");

    let limits = json!({"resources": {"memory": "512m", "memory-swap": "-1", "cpu-shares": 512, "cpuset-cpus": "0"}});
    let report = build(&harness, &commit(&harness, &limits, &[])).await;
    assert_eq!((&report["status"], &report["notices"]), (&json!("succeeded"), &json!([])), "{report:#}");

    let report = build(&harness, &commit(&harness, &json!({"resources": {"cpu-shares": 2048}}), &[])).await;
    if buildx().version < (0, 35) {
        assert_eq!(report["status"], "succeeded", "{report:#}");
    } else {
        assert_eq!(report["reason"], "policy_refused", "{report:#}");
        let message = report["message"].as_str().unwrap();
        assert!(message.contains("target.default.resources.cpu-shares: at most 1024 are allowed"), "{message}");
    }
}
