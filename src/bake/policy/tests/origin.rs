//! The rules for what an image says of its origin.

use super::*;
use crate::attestation::Asked;
use crate::job::{Commit, Sha, SourceDateEpoch};

/// What is attested of a target with these fields.
fn attested(limits: &settings::Bake, build: &Build, target: Value) -> (Value, Vec<String>) {
    let worktree = worktree();
    let (accounts, request) =
        (settings::Accounts::default(), BakeRequest { build, worktree: worktree.path(), commit: None });
    let targets: Targets = serde_json::from_value(json!({"t": target})).expect("a target is an object");
    let validated = validate(targets, &request, &Grants::new(&accounts, &request), limits, Path::new("/secrets"));
    let validated = validated.expect("allowed");
    (validated.targets["t"].get("attest").cloned().unwrap_or_default(), validated.notices)
}

#[test]
fn the_platforms_definition_the_job_and_the_configuration_say_in_this_order_what_is_attested() {
    let asked = |text: &str| Asked::parse(text).expect("options");
    let limits = settings::Bake {
        provenance: asked("builder-id=https://builds.example,mode=min"),
        sbom: asked("generator=mirror/scanner,disabled=true"),
        ..settings::Bake::default()
    };
    let none = settings::Bake::default();
    let target = |attest: Value| json!({"context": "app", "attest": attest});
    let ours = build(Trust::Branch, false);
    let with_job = Build { provenance: Some(asked("mode=max")), sbom: Some(asked("true")), ..ours.clone() };
    let min = json!({"type": "provenance", "builder-id": "https://builds.example", "mode": "min"});
    let max = json!({"type": "provenance", "builder-id": "https://builds.example", "mode": "max"});
    let sbom = json!({"type": "sbom", "generator": "mirror/scanner"});

    assert_eq!(attested(&none, &ours, target(json!([]))).0, Value::Null, "off unless asked for");
    assert_eq!(attested(&limits, &ours, target(json!([]))).0, json!([min]));
    assert_eq!(attested(&limits, &with_job, target(json!([]))).0, json!([max, sbom]));
    let of_image = json!([{"type": "provenance", "disabled": true}, "type=sbom"]);
    assert_eq!(attested(&limits, &with_job, target(of_image)).0, json!([sbom]));
    let off = Build { provenance: Some(asked("false")), ..ours };
    assert_eq!(attested(&limits, &off, target(json!([]))).0, Value::Null);
    let nothing_leaves = json!({"context": "app", "output": [{"type": "cacheonly"}]});
    assert_eq!(attested(&limits, &with_job, nothing_leaves).0, Value::Null);
}

#[test]
fn a_repositorys_file_does_not_decide_what_is_attested() {
    let none = settings::Bake::default();
    let theirs = json!({"context": "app", "attest": [{"type": "provenance", "mode": "max"}, {"type": "sbom"}]});
    let file = build(Trust::Branch, true);
    let (attest, notices) = attested(&none, &file, theirs.clone());
    assert_eq!(attest, Value::Null);
    let expected = [
        "target.t.attest: provenance set to off in place of mode=max",
        "target.t.attest: sbom set to off in place of on",
    ];
    assert_eq!(notices, expected);
    let asked = Build { provenance: Some(Asked::parse("mode=max").expect("options")), sbom: Some(Asked::on()), ..file };
    let (attest, notices) = attested(&none, &asked, theirs);
    assert_eq!(attest, json!([{"type": "provenance", "mode": "max"}, {"type": "sbom"}]));
    assert_eq!(notices, [""; 0]);
}

/// A target as it is built from a commit, and the notices.
fn of_commit(limits: &settings::Bake, build: &Build, target: Value) -> (Value, Vec<String>) {
    let worktree = worktree();
    let commit = Commit {
        sha: Sha::parse(&"1".repeat(40)).expect("an id"),
        url: "https://github.com/acme/app.git".into(),
        committed_at: Commit::time(1_767_323_045),
    };
    let request = BakeRequest { build, worktree: worktree.path(), commit: Some(&commit) };
    let targets: Targets = serde_json::from_value(json!({"t": target})).expect("a target is an object");
    let accounts = settings::Accounts::default();
    let validated = validate(targets, &request, &Grants::new(&accounts, &request), limits, Path::new("/secrets"));
    let validated = validated.expect("allowed");
    (validated.targets["t"].clone().into(), validated.notices)
}

#[test]
fn an_image_names_its_commit_and_only_the_platform_names_another() {
    let limits = settings::Bake::default();
    let described = json!({
        "org.opencontainers.image.revision": "1".repeat(40),
        "org.opencontainers.image.source": "https://github.com/acme/app",
        "org.opencontainers.image.created": "2026-01-02T03:04:05Z",
    });
    let labels = |is_repositorys: bool, labels: Value| {
        let target = json!({"context": "app", "labels": labels});
        let (target, notices) = of_commit(&limits, &build(Trust::Fork, is_repositorys), target);
        (target["labels"].clone(), notices)
    };
    for is_repositorys in [true, false] {
        assert_eq!(labels(is_repositorys, Value::Null), (described.clone(), vec![]));
        // They say the same, or nothing.
        let same = json!({"org.opencontainers.image.created": "2026-01-02T03:04:05Z",
            "org.opencontainers.image.source": null});
        assert_eq!(labels(is_repositorys, same), (described.clone(), vec![]));
        let (other, notices) = labels(is_repositorys, json!({"a": "b"}));
        assert_eq!((&other["a"], notices.as_slice()), (&json!("b"), &[] as &[String]));
    }
    let theirs = json!({"org.opencontainers.image.revision": "v1", "org.opencontainers.image.version": "1"});
    let (of_file, notices) = labels(true, theirs.clone());
    assert_eq!(of_file["org.opencontainers.image.revision"], "1".repeat(40));
    assert_eq!(of_file["org.opencontainers.image.version"], "1");
    let set = format!("target.t.labels.org.opencontainers.image.revision: set to {}", "1".repeat(40));
    assert_eq!(notices, [set]);
    let (of_platform, notices) = labels(false, theirs);
    assert_eq!(of_platform["org.opencontainers.image.revision"], "v1");
    assert_eq!(of_platform["org.opencontainers.image.source"], "https://github.com/acme/app");
    assert_eq!(notices, [""; 0]);

    let off = settings::Bake { labels: false, ..settings::Bake::default() };
    let (unlabeled, _) = of_commit(&off, &build(Trust::Branch, true), json!({"context": "app"}));
    assert_eq!(unlabeled.get("labels"), None);
    let directory = validate_target(json!({"context": "app"}), true).expect("allowed");
    assert_eq!(directory.get("labels"), None, "a tree without a commit");
}

#[test]
fn steps_get_the_time_of_the_commit_when_the_configuration_or_the_job_asks_for_it() {
    let epoch = |setting, asked, args: Value| {
        let limits = settings::Bake { source_date_epoch: setting, ..settings::Bake::default() };
        let build = Build { source_date_epoch: asked, ..build(Trust::Branch, true) };
        let (target, notices) = of_commit(&limits, &build, json!({"context": "app", "args": args}));
        assert_eq!(notices, [""; 0]);
        target["args"]["SOURCE_DATE_EPOCH"].as_str().map(str::to_owned)
    };
    let (off, commit) = (SourceDateEpoch::Off, SourceDateEpoch::Commit);
    let time = Some("1767323045".to_owned());
    assert_eq!(epoch(off, None, json!({})), None);
    assert_eq!(epoch(off, Some(commit), json!({})), time);
    assert_eq!(epoch(commit, None, json!({})), time);
    assert_eq!(epoch(commit, Some(off), json!({})), None);
    let own = json!({"SOURCE_DATE_EPOCH": "0"});
    assert_eq!(epoch(commit, None, own), Some("0".into()), "a definition's own argument stays");
}
