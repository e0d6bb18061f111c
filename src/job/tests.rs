//! Build requests: what is read, and what is refused by which path.

use serde_json::json;

use super::*;

fn native() -> Value {
    json!({
        "build_id": 42, "account": "acme", "repository": "acme/voting-app", "installation_id": 123,
        "sha": "0123456789abcdef0123456789abcdef01234567", "ref": "refs/heads/main", "trust": "branch",
        "application": {"images": [{"name": "vote", "context": "./vote", "dockerfile": "Dockerfile", "target": null,
            "args": {"K": "v"}, "tags": ["registry/acme/vote:1"], "labels": {}, "platforms": [], "secrets": [],
            "cache_from": [], "cache_to": []}]},
        "push": true, "no_cache": false, "pull": false, "builder": null, "timeout_s": 1800,
        "callback": {"class": "BuildFinishedJob", "queue": "default", "on": ["finished"]}
    })
}

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut value = native();
    change(&mut value);
    BuildJob::parse(&value).expect_err("refused").to_string()
}

#[test]
fn the_contracts_example_is_read() {
    let job = BuildJob::parse(&native()).expect("valid");
    assert_eq!(job.build.repository.to_string(), "acme/voting-app");
    assert_eq!(job.build.timeout, Some(Duration::from_secs(1800)));
    assert!(matches!(job.build.recipe, Recipe::Application(application) if application.images[0].name == "vote"));
}

#[test]
fn only_repository_sha_and_a_recipe_are_required() {
    let job = BuildJob::parse(&json!({
        "repository": "acme/voting-app", "sha": "0123456789abcdef0123456789abcdef01234567",
        "definition": {"target": {}}
    }))
    .expect("valid");
    assert_eq!((job.build.account.as_str(), job.build.trust, job.build.push), ("acme", Trust::Branch, true));
}

#[test]
fn only_the_full_name_of_a_branch_or_tag_keeps_the_trust_that_the_job_states() {
    let parse = |git_ref: Value, trust: Value| {
        let mut job = native();
        (job["ref"], job["trust"]) = (git_ref, trust);
        BuildJob::parse(&job)
    };
    for git_ref in [
        "main",
        "heads/main",
        "tags/v1",
        "HEAD",
        "",
        " refs/heads/main",
        "/refs/heads/main",
        "Refs/heads/main",
        "refs/pull/7/head",
        "refs/pull/7/merge",
        "pull/7/head",
        "refs/merge-requests/7/head",
        "refs/x",
        "refs/remotes/origin/main",
        "refs/heads",
        "eve:main",
        "refs%2Fheads%2Fmain",
        "refs//heads/main",
        "0123456789abcdef0123456789abcdef01234567",
        "main^{commit}",
        "refs/notes/x",
        "@",
        "refs/heads\\main",
    ] {
        for trust in [Value::Null, json!("branch"), json!("protected"), json!("fork")] {
            let job = parse(json!(git_ref), trust.clone()).expect("valid");
            assert_eq!(job.build.trust, Trust::Fork, "{git_ref:?} {trust}");
            assert_eq!(job.build.branch, None);
        }
    }
    for git_ref in [json!("refs/heads/pull/7/head"), json!("refs/tags/v1"), Value::Null, json!("refs/heads/a%2f")] {
        assert_eq!(parse(git_ref.clone(), json!("protected")).expect("valid").build.trust, Trust::Protected);
        assert_eq!(parse(git_ref, Value::Null).expect("valid").build.trust, Trust::Branch);
    }
    for forbidden in [
        "refs/heads/../pull/7/head",
        "refs/heads/x^{commit}",
        "refs/heads/a b",
        "refs/heads/",
        "refs/heads/.a",
        "refs/heads/a.lock",
        "refs/tags/a//b",
        "refs/heads/a/",
        "refs/heads/a:b",
        "refs/heads/a?b",
        "refs/heads/a*",
        "refs/heads/[a",
        "refs/heads/a\\b",
        "refs/heads/a~1",
        "refs/heads/a.",
        "refs/heads/@{-1}",
        "refs/heads/a\0",
        "main\n",
        "refs/heads/a\u{7f}",
        "refs/tags/a..b",
    ] {
        let error = parse(json!(forbidden), json!("branch")).expect_err(forbidden).to_string();
        assert!(error.starts_with("ref: "), "{error}");
    }
}

#[test]
fn attestations_are_asked_for_by_job_and_image_without_the_options_that_are_the_configurations() {
    let mut job = native();
    (job["provenance"], job["sbom"]) = (json!("mode=max"), json!(true));
    let build = BuildJob::parse(&job).expect("valid").build;
    assert_eq!(
        (build.provenance.map(|asked| asked.to_string()), build.sbom),
        (Some("mode=max".into()), Some(Asked::on()))
    );
    let builder = refused(|job| job["provenance"] = json!("builder-id=https://evil"));
    assert_eq!(builder, "provenance: builder-id is set by bake.provenance in the worker's configuration");
    let generator = refused(|job| job["application"]["images"][0]["sbom"] = json!("generator=evil/image"));
    assert!(generator.starts_with("application.images[0].sbom: generator is set by bake.sbom"), "{generator}");
    let number = refused(|job| job["sbom"] = json!(3));
    assert_eq!(number, "sbom: expected true, false or options such as \"mode=max\", found integer `3`");
}

#[test]
fn an_error_names_the_path_of_the_field() {
    let wrong_type = refused(|job| {
        job["application"]["images"][0]["args"]["FOO"] = json!(3);
    });
    assert_eq!(wrong_type, "application.images[0].args.FOO: expected a string, found integer `3`");
    let missing = refused(|job| {
        job.as_object_mut().expect("an object").remove("sha");
    });
    assert_eq!(missing, ".: missing field `sha`");
    let short = refused(|job| job["sha"] = json!("abc123"));
    assert_eq!(short, "sha: expected 40 lower-case hexadecimal digits, found \"abc123\"");
    let unknown = refused(|job| job["application"]["images"][0]["contxt"] = json!("./x"));
    assert!(unknown.starts_with("application.images[0].contxt: unknown field `contxt`"), "{unknown}");
    let unknown = refused(|job| job["shaa"] = json!("x"));
    assert!(unknown.starts_with("shaa: unknown field `shaa`"), "{unknown}");
}

#[test]
fn a_definition_in_the_repository_is_a_path_in_it() {
    let of = |field: &str, path: &str| {
        refused(|job| {
            job["application"] = Value::Null;
            job[field] = json!(path);
        })
    };
    for path in ["/etc/x.yml", "../x.yml", "a//x.yml", "a/../x.yml", "x.hcl", "-", ""] {
        assert!(of("compose", path).starts_with("compose: expected the path of a file"), "{path}");
    }
    for path in ["../docker-bake.hcl", "Dockerfile"] {
        assert!(of("bake", path).starts_with("bake: expected the path of a file"), "{path}");
    }
    assert!(refused(|job| job["tags"] = json!({"vote": ["x"]})).starts_with("tags: only allowed with compose or bake"));
    for name in ["LD_PRELOAD", "BUILDX_CONFIG", "a b", "", "1A", "GODEBUG"] {
        assert!(refused(|job| job["variables"] = json!({name: "x"})).starts_with("variables: "), "{name}");
    }
}

#[test]
fn several_files_are_read_where_compose_or_bake_reads_them() {
    let files = |field: &str, paths: Value| {
        let mut job = native();
        (job["application"], job[field]) = (Value::Null, paths);
        match BuildJob::parse(&job).expect("valid").build.recipe {
            Recipe::Files(files) => (files.directory, files.paths),
            other => panic!("{other:?}"),
        }
    };
    let of = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let [one, two] = ["deploy/a.yml", "b.yaml"];
    assert_eq!(files("compose", json!([one, two])), ("deploy".into(), of(&[one, two])));
    assert_eq!(files("compose", json!(two)), (String::new(), of(&[two])));
    let both = ["ci/compose.yml", "ci/bake.hcl"];
    assert_eq!(files("bake", json!(both)), (String::new(), of(&both)));
    let refused = |paths: Value| refused(|job| (job["application"], job["bake"]) = (Value::Null, paths));
    assert_eq!(refused(json!([])), "bake: expected at least one path");
    assert_eq!(refused(json!(vec!["a.hcl"; 21])), "bake: 21 items; at most 20 are allowed");
    assert_eq!(refused(json!(3)), "bake: expected a path or a list of paths, found integer `3`");
}

#[test]
fn a_name_with_a_dot_is_the_target_that_bake_makes_of_it() {
    let mut job = native();
    (job["application"], job["compose"]) = (Value::Null, json!("compose.yml"));
    (job["targets"], job["tags"]) = (json!(["api.v1", "web"]), json!({"api.v1": ["r.example/api:1"]}));
    let build = BuildJob::parse(&job).expect("valid").build;
    assert_eq!(build.target_names(), ["api_v1", "web"]);
    assert_eq!(Vec::from_iter(build.tagged()), ["api_v1"]);
    let known = ["api_v1", "web"].into_iter();
    assert_eq!((build.check_targets(known.clone()), build.check_tags(known)), (Ok(()), Ok(())));
    let unknown = |known: &'static str| {
        let known = std::iter::once(known);
        (build.check_targets(known.clone()), build.check_tags(known))
    };
    let (targets, tags) = unknown("web");
    assert_eq!(targets.expect_err("refused").to_string(), "targets: no target or group \"api.v1\"; known: web");
    assert_eq!(tags.expect_err("refused").to_string(), "tags.api_v1: no target of this name; known: web");
    job["tags"] = json!({"api.v1": [], "api_v1": []});
    let twice = BuildJob::parse(&job).expect_err("refused").to_string();
    assert_eq!(twice, "tags.api_v1: another name has the tags of the same target api_v1");
}

#[test]
fn a_target_that_a_template_does_not_have_is_refused() {
    let message = refused(|job| job["targets"] = json!(["vote", "vot"]));
    assert_eq!(message, "targets: no target or group \"vot\"; known: vote, default");
}

#[test]
fn a_tag_that_no_registry_accepts_is_refused_by_its_path() {
    let of_image =
        refused(|job| job["application"]["images"][0]["tags"] = json!(["r.example/x:1", "r.example/Acme/x:V1"]));
    assert!(
        of_image.starts_with("application.images[0].tags[1]: \"r.example/Acme/x:V1\" has upper-case"),
        "{of_image}"
    );
    let of_file = refused(|job| {
        job["application"] = Value::Null;
        (job["compose"], job["tags"]) = (json!("compose.yml"), json!({"web": ["x:a b"]}));
    });
    assert!(of_file.starts_with("tags.web[0]: \"x:a b\" has an invalid tag"), "{of_file}");
}

#[test]
fn a_secret_that_would_go_to_any_git_host_is_refused() {
    let secret = |id: &str| refused(|job| job["application"]["images"][0]["secrets"] = json!([{"id": id}]));
    assert!(secret("GIT_AUTH_TOKEN").contains("name it GIT_AUTH_TOKEN.github.com"));
    assert!(secret("../npm").contains("is not a valid secret name"));
}

#[test]
fn names_that_would_leave_a_path_or_url_are_refused() {
    for repository in ["acme", "acme/..", "../x", "a/b/c", "acme/x y", "acme/", "acme/x?y", "acme/-%2f"] {
        assert!(refused(|job| job["repository"] = json!(repository)).starts_with("repository: "), "{repository}");
    }
    assert!(refused(|job| job["account"] = json!("../acme")).starts_with("account: "));
    for name in ["a*", "a.b", "", "a b"] {
        assert!(
            refused(|job| job["application"]["images"][0]["name"] = json!(name)).contains("not a valid target name")
        );
    }
}

#[test]
fn exactly_one_recipe_is_wanted() {
    assert_eq!(
        refused(|job| job["application"] = Value::Null),
        ".: expected exactly one of application, compose, bake and definition"
    );
    assert_eq!(
        refused(|job| job["definition"] = json!({})),
        ".: expected exactly one of application, compose, bake and definition"
    );
}
