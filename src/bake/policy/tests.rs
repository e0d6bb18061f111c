//! The rules, on definitions as buildx prints them.

mod spellings;

use std::collections::BTreeMap;

use super::*;
use crate::attestation::Asked;
use crate::job::{Build, Commit, Repository, Sha, SourceDateEpoch, Trust};

/// Validates one target called `t` in a worktree with `app/` (a Dockerfile in it) and a link `out` to `/etc`.
fn validate_target(target: Value, is_repositorys: bool) -> Result<Map<String, Value>, String> {
    police_as(Trust::Branch, target, is_repositorys)
}

fn police_as(trust: Trust, target: Value, is_repositorys: bool) -> Result<Map<String, Value>, String> {
    let accounts = settings::Accounts::default();
    let validated = police_all(&accounts, trust, false, json!({"t": target}), is_repositorys)?;
    Ok(validated.targets["t"].clone())
}

fn police_all(
    accounts: &settings::Accounts,
    trust: Trust,
    push: bool,
    targets: Value,
    is_repositorys: bool,
) -> Result<Validated, String> {
    let worktree = worktree();
    let build = Build { push, ..build(trust, is_repositorys) };
    police_in(worktree.path(), accounts, &build, targets)
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

fn police_in(
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
fn a_context_inside_the_worktree_becomes_absolute() {
    let validated = validate_target(json!({"context": "./app", "dockerfile": "Dockerfile"}), false).expect("allowed");
    let context = validated["context"].as_str().expect("text");
    assert!(context.starts_with('/') && context.ends_with("/app"), "{context}");
}

#[test]
fn what_reaches_out_of_the_worktree_is_refused_with_its_path() {
    assert_eq!(refused(json!({"context": ".."})), "target.t.context: \"..\" is outside of the repository");
    assert_eq!(refused(json!({"context": "/etc"})), "target.t.context: \"/etc\" is outside of the repository");
    assert_eq!(refused(json!({"context": "out"})), "target.t.context: \"out\" is outside of the repository");
    assert_eq!(refused(json!({"context": "nowhere"})), "target.t.context: \"nowhere\" is not in the repository");
    assert!(refused(json!({"context": "https://example.com/x.git"})).contains("is not a directory of the repository"));
    assert_eq!(
        refused(json!({"context": "app", "dockerfile": "../../../etc/passwd"})).split(':').next(),
        Some("target.t.dockerfile")
    );
    for missing in ["../../../../nowhere/Dockerfile", "http://127.0.0.1/Dockerfile", "cwd://../x"] {
        let message = refused(json!({"context": "app", "dockerfile": missing}));
        assert!(message.contains("outside of the repository"), "{message}");
    }
    assert!(refused(json!({"context": "app", "dockerfile": "Linked"})).contains("outside of the repository"));
    // Followed it is app/decoy; buildx folds it as text, and would read beside the worktree.
    let folded = refused(json!({"context": ".", "dockerfile": "deep/../../../decoy"}));
    assert!(folded.contains("outside of the repository"), "{folded}");
    assert!(refused(json!({"context": "app", "contexts": {"x": "/"}})).starts_with("target.t.contexts.x: "));
    assert!(
        refused(json!({"context": "app", "contexts": {"x": "target:y"}})).contains("no target \"y\" in the definition")
    );
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
fn a_path_to_nothing_is_refused_with_the_near_name() {
    let worktree = worktree();
    for (target, message) in [
        (json!({"context": "./App"}), "target.t.context: \"./App\" is not in the repository, but \"app\" is"),
        (
            json!({"context": "app", "dockerfile": "Dockerfle"}),
            "target.t.dockerfile: \"Dockerfle\" is not in the repository, but \"app/Dockerfile\" is",
        ),
        (
            json!({"context": ".", "contexts": {"x": "App/A"}}),
            "target.t.contexts.x: \"App/A\" is not in the repository, but \"app/a\" is",
        ),
    ] {
        assert_eq!(refusal(worktree.path(), target).1, message);
    }
    // Nothing is read of what lies outside.
    assert_eq!(refusal(worktree.path(), json!({"context": "out/Hosts"})).0, Reason::PolicyRefused);
    std::fs::rename(worktree.path().join("app/Dockerfile"), worktree.path().join("app/dockerfile")).expect("moved");
    assert!(
        police_in(
            worktree.path(),
            &settings::Accounts::default(),
            &build(Trust::Branch, false),
            json!({"t": {"context": "app", "dockerfile": "Dockerfile"}})
        )
        .is_ok(),
        "BuildKit takes it"
    );
    let inline = json!({"t": {"context": ".", "dockerfile": "Dockerfile", "dockerfile-inline": "FROM scratch"}});
    assert!(police_in(worktree.path(), &settings::Accounts::default(), &build(Trust::Branch, false), inline).is_ok());
}

#[test]
fn a_dockerfile_that_buildkit_cannot_read_is_refused_with_its_line() {
    let worktree = worktree();
    let refusal_of = |text: &[u8]| {
        std::fs::write(worktree.path().join("app/Dockerfile"), text).expect("written");
        refusal(worktree.path(), json!({"context": "app", "dockerfile": "Dockerfile"}))
    };
    let prefix = "target.t.dockerfile: \"Dockerfile\": ";
    assert_eq!(
        refusal_of(b"FROM x\nR\xdcN y\n"),
        (Reason::DockerfileInvalid, format!("{prefix}line 2 is not UTF-8; save the file as UTF-8"))
    );
    for size in [600 << 10, 3 << 20] {
        let (reason, message) = refusal_of(&vec![b'\n'; size]);
        assert_eq!(reason, Reason::DockerfileInvalid);
        assert!(message.starts_with(&format!("{prefix}{size} bytes; at most 524288 are allowed")), "{message}");
    }
}

#[test]
fn only_the_engine_of_this_machine_knows_its_own_address() {
    let target = |address: &str| json!({"t": {"context": "app", "extra-hosts": {"db": address}}});
    let local = |address| {
        police_all(&settings::Accounts::default(), Trust::Branch, false, target(address), true).expect("allowed").local
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
    let police = |is_repositorys| {
        police_all(&settings::Accounts::default(), Trust::Branch, false, target.clone(), is_repositorys)
    };
    let validated = police(true).expect("allowed");
    assert_eq!(validated.targets["t"].get("policy"), None);
    assert_eq!(validated.notices, ["target.t.policy: not used: the worker disables the policies of buildx"]);
    assert_eq!(police(false).expect_err("refused"), "target.t.policy: this field is not allowed");
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
fn a_fork_writes_no_cache() {
    let target = json!({"context": "app", "cache-to": [{"type": "registry", "ref": "x"}]});
    assert!(police_as(Trust::Branch, target.clone(), false).expect("allowed").contains_key("cache-to"));
    assert!(!police_as(Trust::Fork, target, false).expect("allowed").contains_key("cache-to"));
}

#[test]
fn what_the_repository_may_not_name_is_replaced() {
    let target = json!({
        "context": "app", "tags": ["evil/x"], "cache-from": [{"type": "local", "src": "/etc"}],
        "cache-to": [{"type": "registry", "ref": "x"}], "output": [{"type": "registry", "name": "x"}],
        "args": {"BUILDKIT_CACHE_MOUNT_NS": "another's"}
    });
    let validated = validate_target(target, true).expect("allowed");
    assert_eq!(validated.keys().collect::<Vec<_>>(), ["context", "args"]);
    assert_eq!(validated["args"], json!({"BUILDKIT_CACHE_MOUNT_NS": "acme/app/branch"}));
    let local = json!({"context": "app", "output": [{"type": "local", "dest": "/tmp/x"}]});
    assert_eq!(validate_target(local, true).expect("allowed")["output"], json!([{"type": "cacheonly"}]));
}

#[test]
fn two_targets_that_would_have_one_name_are_refused_by_theirs() {
    let names = |name: &str| vec![settings::TextPattern::new(format!("{name}/{{repository}}/{{target}}"))];
    let tagged = settings::Accounts { tags: names("r"), ..settings::Accounts::default() };
    let mut cached = settings::Accounts::default();
    cached.cache.to = names("type=registry,ref=r");
    let validate = |accounts, push, targets: &Value, is_repositorys| {
        police_all(accounts, Trust::Branch, push, targets.clone(), is_repositorys).map(drop)
    };
    let target = json!({"context": "app", "tags": ["x"]});
    let two = json!({"Api": target, "api": target});
    let message = "r/app/api is also written by target.Api; give each its own name";
    assert_eq!(validate(&tagged, true, &two, true), Err(format!("target.api.tags: {message}")));
    assert_eq!(validate(&tagged, false, &two, true), Ok(()), "nothing is pushed");
    assert_eq!(validate(&tagged, true, &two, false), Ok(()), "the platform's own");
    for is_repositorys in [true, false] {
        let refused = validate(&cached, false, &two, is_repositorys);
        assert_eq!(refused, Err(format!("target.api.cache-to: {message}")));
    }
    let unlike = json!({"Api": target, "web": target, "api": {"context": "app", "output": [{"type": "cacheonly"}]}});
    assert_eq!(validate(&tagged, true, &unlike, true), Ok(()), "the third is nobody's image");
}

#[test]
fn a_repository_chooses_its_frontend_unless_it_is_pinned_also_for_a_fork() {
    let pinned = settings::Policy { frontend: Some("ours".into()), ..settings::Policy::default() };
    let pinned = settings::Accounts { policy: pinned, ..settings::Accounts::default() };
    let target = json!({"t": {"context": "app", "args": {"BUILDKIT_SYNTAX": "theirs"}}});
    for (accounts, expected) in [(settings::Accounts::default(), "theirs"), (pinned, "ours")] {
        for trust in [Trust::Branch, Trust::Fork] {
            let validated = police_all(&accounts, trust, false, target.clone(), true).expect("allowed");
            assert_eq!(validated.targets["t"]["args"]["BUILDKIT_SYNTAX"], expected, "{trust:?}");
        }
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
                let message = police_as(trust, with(name, value), is_repositorys).expect_err(name);
                assert!(message.starts_with(&format!("target.t.args.{}: ", name.escape_debug())), "{message}");
            }
        }
    }
}

#[test]
fn an_inline_cache_is_a_cache_that_a_fork_does_not_write() {
    let target = json!({"context": "app", "args": {"BUILDKIT_INLINE_CACHE": "T", "A": "1"}});
    let validated = police_as(Trust::Branch, target.clone(), false).expect("allowed");
    assert_eq!(validated["cache-to"], json!([{"type": "inline"}]));
    assert_eq!(validated["args"], json!({"A": "1", "BUILDKIT_CACHE_MOUNT_NS": "acme/app/branch"}));
    for (trust, is_repositorys) in [(Trust::Fork, false), (Trust::Fork, true), (Trust::Branch, true)] {
        let all = json!({"t": target});
        let validated = police_all(&settings::Accounts::default(), trust, false, all, is_repositorys).expect("allowed");
        assert!(!validated.targets["t"].contains_key("cache-to"));
        assert!(!validated.targets["t"]["args"].to_string().contains("INLINE"), "{:#?}", validated.targets);
        assert!(validated.notices[0].starts_with("target.t.args.BUILDKIT_INLINE_CACHE: "), "{:?}", validated.notices);
    }
}

#[test]
fn two_spellings_of_one_place_are_one_place() {
    let names = |name: &str| vec![settings::TextPattern::new(name)];
    let validate = |accounts: &settings::Accounts, push, targets: Value, is_repositorys| {
        police_all(accounts, Trust::Branch, push, targets, is_repositorys).map(drop)
    };
    let cache = |place: &str| json!({"context": "app", "cache-to": [{"type": "registry", "ref": place}]});
    for (one, other) in [
        ("acme/cache", "docker.io/acme/cache:latest"),
        ("index.docker.io/cache", "docker.io/library/cache"),
        ("R.Example/x:1", "r.example:443/x:1"),
    ] {
        let two = json!({"a": cache(one), "b": cache(other)});
        let message = validate(&settings::Accounts::default(), false, two, false).expect_err(one);
        assert!(message.contains("target.b.cache-to: "), "{message}");
    }
    let image_and_cache = json!({"a": {"context": "app", "tags": ["r.example/x"]}, "b": cache("R.example/x:latest")});
    assert!(validate(&settings::Accounts::default(), false, image_and_cache, false).is_err());
    let tagged = settings::Accounts { tags: names("R.example/{target}"), ..settings::Accounts::default() };
    let two = json!({"api": {"context": "app"}, "API": {"context": "app"}});
    assert!(validate(&tagged, true, two, true).is_err());
}

#[test]
fn a_named_context_in_place_of_the_pinned_frontend_is_refused() {
    let pinned = settings::Policy { frontend: Some("docker/dockerfile:1".into()), ..settings::Policy::default() };
    let pinned = settings::Accounts { policy: pinned, ..settings::Accounts::default() };
    let validate = |accounts: &settings::Accounts, name: &str| {
        let target = json!({"t": {"context": "app", "contexts": {name: "docker-image://evil/frontend"}}});
        police_all(accounts, Trust::Branch, false, target, true).map(drop)
    };
    for name in ["docker/dockerfile:1", "docker.io/docker/dockerfile:1", "docker/dockerfile:1::linux/amd64"] {
        let message = validate(&pinned, name).expect_err(name);
        assert!(message.starts_with(&format!("target.t.contexts.{name}: ")), "{message}");
    }
    assert_eq!(validate(&pinned, "docker/dockerfile:2"), Ok(()));
    // To a frontend it would be the context "base" with another value.
    for name in ["base=docker-image://evil", "a\nb", ""] {
        assert!(validate(&settings::Accounts::default(), name).is_err(), "{name}");
    }
}

#[test]
fn a_path_from_the_working_directory_is_checked_like_any_other() {
    let target =
        json!({"context": "cwd://app", "dockerfile": "cwd://app/Dockerfile", "contexts": {"s": "cwd://app/a"}});
    let validated = validate_target(target, true).expect("allowed");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    assert!(text(&validated["context"]).ends_with("/app") && text(&validated["contexts"]["s"]).ends_with("/app/a"));
    assert!(
        text(&validated["dockerfile"]).starts_with('/') && text(&validated["dockerfile"]).ends_with("/app/Dockerfile")
    );
    for outside in ["cwd://..", "cwd:///etc", "cwd://out", "cwd://app/../.."] {
        assert!(refused(json!({"context": outside})).starts_with("target.t.context: "), "{outside}");
        assert!(refused(json!({"context": "app", "dockerfile": outside})).starts_with("target.t.dockerfile: "));
    }
}

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

#[test]
fn a_notice_about_tags_says_what_happens_to_them() {
    let notices = |target: Value, tags: &[(&str, &[&str])]| {
        let mut build = build(Trust::Branch, true);
        if let Recipe::Files(files) = &mut build.recipe {
            let of = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect();
            files.naming = Naming::Job(tags.iter().map(|(name, tags)| ((*name).to_owned(), of(tags))).collect());
        }
        let validated = police_in(worktree().path(), &settings::Accounts::default(), &build, json!({"t": target}));
        validated.expect("allowed").notices
    };
    let theirs = json!({"context": "app", "tags": ["theirs/x", "theirs/y"]});
    assert_eq!(notices(theirs.clone(), &[]), ["target.t.tags: theirs/x, theirs/y ignored: the worker names images"]);
    let replaced = "target.t.tags: set to ours/x in place of theirs/x, theirs/y";
    assert_eq!(notices(theirs, &[("t", &["ours/x"])]), [replaced]);
    let of_none = json!({"context": "app", "output": [{"type": "cacheonly"}]});
    let unused = "target.t.tags: not used: no image of this target leaves the builder";
    assert_eq!(notices(of_none.clone(), &[("t", &["ours/x"])]), [unused]);
    assert_eq!(notices(of_none, &[("u", &["ours/x"])]), ["tags.u: not used: the job does not build this target"]);
}

#[test]
fn the_owner_of_a_file_keeps_its_names_and_loses_what_would_be_written_to_a_disk() {
    let mut build = build(Trust::Branch, true);
    if let Recipe::Files(files) = &mut build.recipe {
        files.naming = Naming::File;
    }
    let registry = json!({"type": "registry", "ref": "theirs/cache"});
    let target = json!({
        "context": "app", "tags": ["theirs/x"], "output": [{"type": "local", "dest": "out"}],
        "cache-from": [registry, {"type": "gha", "scope": "x"}], "cache-to": [{"type": "local", "dest": "/tmp/x"}],
    });
    let validated = police_in(worktree().path(), &settings::Accounts::default(), &build, json!({"t": target}));
    let mut validated = validated.expect("allowed");
    let target = validated.targets.remove("t").expect("a target");
    assert_eq!((&target["tags"], &target["cache-from"]), (&json!(["theirs/x"]), &json!([registry])));
    assert_eq!((target.get("cache-to"), &target["output"]), (None, &json!([{"type": "cacheonly"}])));
    let expected = [
        "target.t.cache-from: ignored where it is not a cache in a registry",
        "target.t.cache-to: ignored where it is not a cache in a registry",
        "target.t.output: not written: only images leave the builder",
    ];
    assert_eq!(validated.notices, expected);
    // buildx adds the entitlement.
    let host = json!({"context": "app", "network": "host", "entitlements": ["network.host"]});
    let refused = validate_target(host, true).expect_err("refused");
    assert_eq!(refused, "target.t.network: expected default or none");
}
