//! The rules for names of images, caches, frontends.

use super::*;

#[test]
fn a_fork_writes_no_cache() {
    let target = json!({"context": "app", "cache-to": [{"type": "registry", "ref": "x"}]});
    assert!(validate_as(Trust::Branch, target.clone(), false).expect("allowed").contains_key("cache-to"));
    assert!(!validate_as(Trust::Fork, target, false).expect("allowed").contains_key("cache-to"));
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
        validate_all(accounts, Trust::Branch, push, targets.clone(), is_repositorys).map(drop)
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
fn two_spellings_of_one_place_are_one_place() {
    let names = |name: &str| vec![settings::TextPattern::new(name)];
    let validate = |accounts: &settings::Accounts, push, targets: Value, is_repositorys| {
        validate_all(accounts, Trust::Branch, push, targets, is_repositorys).map(drop)
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
fn an_inline_cache_is_a_cache_that_a_fork_does_not_write() {
    let target = json!({"context": "app", "args": {"BUILDKIT_INLINE_CACHE": "T", "A": "1"}});
    let validated = validate_as(Trust::Branch, target.clone(), false).expect("allowed");
    assert_eq!(validated["cache-to"], json!([{"type": "inline"}]));
    assert_eq!(validated["args"], json!({"A": "1", "BUILDKIT_CACHE_MOUNT_NS": "acme/app/branch"}));
    for (trust, is_repositorys) in [(Trust::Fork, false), (Trust::Fork, true), (Trust::Branch, true)] {
        let all = json!({"t": target});
        let validated =
            validate_all(&settings::Accounts::default(), trust, false, all, is_repositorys).expect("allowed");
        assert!(!validated.targets["t"].contains_key("cache-to"));
        assert!(!validated.targets["t"]["args"].to_string().contains("INLINE"), "{:#?}", validated.targets);
        assert!(validated.notices[0].starts_with("target.t.args.BUILDKIT_INLINE_CACHE: "), "{:?}", validated.notices);
    }
}

#[test]
fn a_repository_chooses_its_frontend_unless_it_is_pinned_also_for_a_fork() {
    let pinned = settings::Policy { frontend: Some("ours".into()), ..settings::Policy::default() };
    let pinned = settings::Accounts { policy: pinned, ..settings::Accounts::default() };
    let target = json!({"t": {"context": "app", "args": {"BUILDKIT_SYNTAX": "theirs"}}});
    for (accounts, expected) in [(settings::Accounts::default(), "theirs"), (pinned, "ours")] {
        for trust in [Trust::Branch, Trust::Fork] {
            let validated = validate_all(&accounts, trust, false, target.clone(), true).expect("allowed");
            assert_eq!(validated.targets["t"]["args"]["BUILDKIT_SYNTAX"], expected, "{trust:?}");
        }
    }
}

#[test]
fn a_named_context_in_place_of_the_pinned_frontend_is_refused() {
    let pinned = settings::Policy { frontend: Some("docker/dockerfile:1".into()), ..settings::Policy::default() };
    let pinned = settings::Accounts { policy: pinned, ..settings::Accounts::default() };
    let validate = |accounts: &settings::Accounts, name: &str| {
        let target = json!({"t": {"context": "app", "contexts": {name: "docker-image://evil/frontend"}}});
        validate_all(accounts, Trust::Branch, false, target, true).map(drop)
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
fn a_notice_about_tags_says_what_happens_to_them() {
    let notices = |target: Value, tags: &[(&str, &[&str])]| {
        let mut build = build(Trust::Branch, true);
        if let Recipe::Files(files) = &mut build.recipe {
            let of = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect();
            files.naming = Naming::Job(tags.iter().map(|(name, tags)| ((*name).to_owned(), of(tags))).collect());
        }
        let validated = validate_in(worktree().path(), &settings::Accounts::default(), &build, json!({"t": target}));
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
    let validated = validate_in(worktree().path(), &settings::Accounts::default(), &build, json!({"t": target}));
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
