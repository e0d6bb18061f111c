//! The rules, on definitions as buildx prints them.

mod names;
mod origin;
mod paths;
mod spellings;

use std::collections::BTreeMap;

use super::*;
use crate::job::{Build, Repository, Trust};

/// Validates one target called `t` in a worktree with `app/` (a Dockerfile in it) and a link `out` to `/etc`.
fn validate_target(target: Value, is_repositorys: bool) -> Result<Map<String, Value>, String> {
    validate_as(Trust::Branch, target, is_repositorys)
}

fn validate_as(trust: Trust, target: Value, is_repositorys: bool) -> Result<Map<String, Value>, String> {
    let accounts = settings::Accounts::default();
    let validated = validate_all(&accounts, trust, false, json!({"t": target}), is_repositorys)?;
    Ok(validated.targets["t"].clone())
}

fn validate_all(
    accounts: &settings::Accounts,
    trust: Trust,
    push: bool,
    targets: Value,
    is_repositorys: bool,
) -> Result<Validated, String> {
    let worktree = worktree();
    let build = Build { push, ..build(trust, is_repositorys) };
    validate_in(worktree.path(), accounts, &build, targets)
}

/// A worktree with `app/` (a Dockerfile in it), links out of it, and one that looks as if.
fn worktree() -> tempfile::TempDir {
    let worktree = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(worktree.path().join("app")).expect("made");
    std::fs::write(worktree.path().join("app/Dockerfile"), "FROM scratch").expect("written");
    std::os::unix::fs::symlink("/etc", worktree.path().join("out")).expect("linked");
    std::fs::create_dir_all(worktree.path().join("app/a/b/c")).expect("made");
    std::fs::write(worktree.path().join("app/decoy"), "FROM scratch").expect("written");
    std::os::unix::fs::symlink("app/a/b/c", worktree.path().join("deep")).expect("linked");
    std::os::unix::fs::symlink("/etc/passwd", worktree.path().join("app/Linked")).expect("linked");
    worktree
}

/// A build by the repository's file, or by a definition of the platform's.
fn build(trust: Trust, is_repositorys: bool) -> Build {
    let file = || RepositoryFiles {
        paths: vec!["docker-bake.hcl".into()],
        directory: String::new(),
        naming: Naming::Job(BTreeMap::new()),
    };
    let recipe = if is_repositorys { Recipe::Files(file()) } else { Recipe::Inline("{}".into()) };
    Build::new(Repository::parse("acme/app").expect("a repository"), trust, recipe)
}

fn validate_in(
    worktree: &Path,
    accounts: &settings::Accounts,
    build: &Build,
    targets: Value,
) -> Result<Validated, String> {
    let request = BakeRequest { build, worktree, commit: None };
    let targets: Targets = serde_json::from_value(targets).expect("a target is an object");
    let (grants, limits) = (Grants::new(accounts, &request), settings::Bake::default());
    let validated = validate(targets, &request, &grants, &limits, Path::new("/secrets"));
    validated.map_err(|refusal| refusal.to_string())
}

/// The reason of the refusal of a target in a worktree, and its message.
fn refusal(worktree: &Path, target: Value) -> (Reason, String) {
    let build = build(Trust::Branch, false);
    let request = BakeRequest { build: &build, worktree, commit: None };
    let (accounts, limits) = (settings::Accounts::default(), settings::Bake::default());
    let targets: Targets = serde_json::from_value(json!({"t": target})).expect("a target is an object");
    match validate(targets, &request, &Grants::new(&accounts, &request), &limits, Path::new("/secrets")) {
        Err(BakeError::Refused(refusal)) => (refusal.reason, refusal.to_string()),
        other => panic!("{other:?}"),
    }
}

fn refused(target: Value) -> String {
    validate_target(target, false).expect_err("refused")
}

#[test]
fn a_refusal_says_whether_a_field_is_forbidden_or_wrong_or_names_nothing() {
    let worktree = worktree();
    let with = |field: &str, value: Value| json!({"context": "app", field: value});
    for (target, reason) in [
        (with("ssh", json!([{"id": "default"}])), Reason::PolicyRefused),
        (with("network", json!("host")), Reason::PolicyRefused),
        (json!({"context": ".."}), Reason::PolicyRefused),
        (with("dockerfile", json!("../../Dockerfile")), Reason::PolicyRefused),
        (with("tags", json!(["acme/App:1"])), Reason::DefinitionInvalid),
        (with("tags", json!("x")), Reason::DefinitionInvalid),
        (with("cache-from", json!([{"type": "registry", "ref": "r.example/App"}])), Reason::DefinitionInvalid),
        (with("cache-to", json!([{"type": "registry"}])), Reason::DefinitionInvalid),
        (with("contexts", json!({"x": "docker-image://App"})), Reason::DefinitionInvalid),
        (with("contexts", json!({"x": "target:y"})), Reason::DefinitionInvalid),
        (with("extra-hosts", json!({"db": "other"})), Reason::DefinitionInvalid),
        (with("args", json!({"A": 1})), Reason::DefinitionInvalid),
        (json!({"context": "nowhere"}), Reason::ContextNotFound),
        (json!({"context": "app/Dockerfile"}), Reason::ContextNotFound),
        (with("contexts", json!({"x": "nowhere"})), Reason::ContextNotFound),
        (with("dockerfile", json!("nowhere")), Reason::DockerfileNotFound),
        (with("dockerfile", json!("a")), Reason::DockerfileNotFound),
        (with("dockerfile-inline", json!("x".repeat(70_000))), Reason::DockerfileInvalid),
    ] {
        let text = target.to_string();
        assert_eq!(refusal(worktree.path(), target).0, reason, "{text}");
    }
}

#[test]
fn only_the_engine_of_this_machine_knows_its_own_address() {
    let target = |address: &str| json!({"t": {"context": "app", "extra-hosts": {"db": address}}});
    let local = |address| {
        validate_all(&settings::Accounts::default(), Trust::Branch, false, target(address), true)
            .expect("allowed")
            .local
    };
    assert_eq!(local("10.0.0.7"), None);
    let refusal = local("host-gateway").expect("refused elsewhere");
    assert_eq!(refusal.reason, Reason::DefinitionInvalid);
    assert!(refusal.to_string().starts_with("target.t.extra-hosts.db: host-gateway is not known on this builder"));
}

#[test]
fn the_hosts_files_keys_network_and_entitlements_are_refused() {
    for (field, value) in [
        ("secret", json!([{"id": "x", "src": "/etc/passwd"}])),
        ("ssh", json!([{"id": "default"}])),
        ("network", json!("host")),
        ("entitlements", json!(["network.host"])),
        ("output", json!([{"type": "local", "dest": "/tmp/x"}])),
        ("output", json!([{"type": "tar", "dest": "-"}])),
        ("cache-to", json!([{"type": "local", "dest": "/tmp/x"}])),
        ("cache-from", json!([{"type": "local", "src": "/etc"}])),
        ("attest", json!([{"type": "sbom", "generator": "evil/image"}])),
        ("call", json!("check")),
        ("policy", json!([{"Files": ["x"]}])),
        ("a-field-of-the-future", json!(true)),
    ] {
        let message = refused(json!({"context": "app", field: value}));
        assert!(message.starts_with(&format!("target.t.{field}")), "{message}");
    }
}

#[test]
fn a_repositorys_policies_are_dropped_with_a_notice_and_the_platforms_are_refused() {
    let target = json!({"t": {"context": "app", "policy": [{"Files": [{"Filename": "x"}], "Disabled": false}]}});
    let validate = |is_repositorys| {
        validate_all(&settings::Accounts::default(), Trust::Branch, false, target.clone(), is_repositorys)
    };
    let validated = validate(true).expect("allowed");
    assert_eq!(validated.targets["t"].get("policy"), None);
    assert_eq!(validated.notices, ["target.t.policy: not used: the worker disables the policies of buildx"]);
    assert_eq!(validate(false).expect_err("refused"), "target.t.policy: this field is not allowed");
}

#[test]
fn a_definition_may_limit_its_own_steps() {
    for resources in [
        json!({"memory": "48m", "memory-swap": "-1", "cpu-shares": 1024, "cpuset-cpus": "0-2,4", "cpuset-mems": "0"}),
        json!({"memory": "1.5 GiB", "memory-swap": "1000", "cpu-period": 100_000, "cpu-quota": -1}),
        json!({"memory": "64kb", "cpu-shares": null, "cpuset-cpus": ""}),
        json!({"memory": "0b"}),
    ] {
        let target = json!({"context": "app", "resources": resources});
        assert_eq!(validate_target(target, true).expect("allowed")["resources"], resources);
    }
}

#[test]
fn a_limit_that_is_none_is_refused_with_its_path() {
    let size = "expected a size, such as 512m";
    for (resources, message) in [
        (json!({"cpu-shares": 1025}), ".cpu-shares: at most 1024 are allowed, the shares of a step without a limit"),
        (json!({"cpu-shares": "512"}), ".cpu-shares: expected a number"),
        (json!({"memory": "code = Unavailable"}), &*format!(".memory: {size}")),
        (json!({"memory": "-1"}), &*format!(".memory: {size}")),
        (json!({"memory": "1.m"}), &*format!(".memory: {size}")),
        (json!({"memory": "1ib"}), &*format!(".memory: {size}")),
        (json!({"memory": ""}), &*format!(".memory: {size}")),
        (json!({"memory": 48}), &*format!(".memory: {size}")),
        (json!({"memory-swap": "-2"}), ".memory-swap: expected a size, such as 512m, or -1"),
        (json!({"cpuset-cpus": "0-"}), ".cpuset-cpus: expected a list of numbers, such as 0-2,4"),
        (json!({"cpu-quota": 0.5}), ".cpu-quota: expected a number"),
        (json!({"devices": "all"}), ".devices: this field is not allowed"),
        (json!(["memory=1m"]), ": expected an object"),
    ] {
        let refusal = validate_target(json!({"context": "app", "resources": resources}), true).expect_err("refused");
        assert_eq!(refusal, format!("target.t.resources{message}"));
    }
}

#[test]
fn a_name_for_what_is_no_address_is_refused_with_its_path() {
    for (name, addresses) in [
        ("a", json!("1.2.3.4")),
        ("a.b-c_d", json!("1.2.3.4,::1,[::1],[1.2.3.4]")),
        ("a", json!("host-gateway")),
        ("a=", Value::Null),
    ] {
        let target = json!({"context": "app", "extra-hosts": {name: addresses}});
        assert!(validate_target(target, true).is_ok(), "{name} {addresses}");
    }
    for (name, addresses) in [
        ("foo", json!("code = Unavailable")),
        ("foo", json!("dial tcp connection refused")),
        ("foo", json!("")),
        ("foo", json!("1.2.3.4,")),
        ("foo", json!("host-gateway,1.2.3.4")),
        ("foo", json!("fe80::1%eth0")),
        ("foo", json!("1.2.3")),
        ("foo", json!("[1.2.3.4")),
        ("foo", json!(["1.2.3.4"])),
        ("f=o", json!("1.2.3.4")),
        ("f\"o, x", json!("1.2.3.4")),
        ("", json!("1.2.3.4")),
    ] {
        let message = refused(json!({"context": "app", "extra-hosts": {name: addresses}}));
        assert!(message.starts_with(&format!("target.t.extra-hosts.{}: ", name.escape_debug())), "{message}");
    }
    assert!(refused(json!({"context": "app", "extra-hosts": ["a=1.2.3.4"]})).starts_with("target.t.extra-hosts: "));
}

#[test]
fn an_argument_that_buildkit_reads_as_a_boolean_is_one() {
    let target = |value: &str| json!({"context": "app", "args": {"BUILDKIT_MULTI_PLATFORM": value}});
    for value in ["1", "true", "F"] {
        assert!(validate_target(target(value), true).is_ok(), "{value}");
    }
    for value in ["", "yes", "x: no space left on device"] {
        assert!(refused(target(value)).starts_with("target.t.args.BUILDKIT_MULTI_PLATFORM: "), "{value}");
    }
}

#[test]
fn an_argument_that_stands_for_a_field_is_judged_as_that_field() {
    let with = |name: &str, value: &str| json!({"context": "app", "args": {name: value}});
    for trust in [Trust::Protected, Trust::Branch, Trust::Fork] {
        for is_repositorys in [true, false] {
            for (name, value) in [
                ("BUILDKIT_ATTEST_SBOM", "generator=evil/image"),
                ("BUILDKIT_ATTEST_SbOm", "generator=evil/image"),
                ("BUILDKIT_ATTEST_SBOM", "a=b,\"generator=evil/image\""),
                ("BUILDKIT_ATTEST_PROVENANCE", "builder-id=https://evil.example"),
                ("BUILDKIT_ATTEST_FUTURE", ""),
                ("BUILDKIT_A_NAME_OF_THE_FUTURE", "1"),
                ("BUILDKIT_CACHE_MOUNT_NS=another's", ""),
                ("", "1"),
                ("A\u{0}B", "1"),
            ] {
                let message = validate_as(trust, with(name, value), is_repositorys).expect_err(name);
                assert!(message.starts_with(&format!("target.t.args.{}: ", name.escape_debug())), "{message}");
            }
        }
    }
}
