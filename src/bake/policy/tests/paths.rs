//! The rules for paths.

use super::*;

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
        validate_in(
            worktree.path(),
            &settings::Accounts::default(),
            &build(Trust::Branch, false),
            json!({"t": {"context": "app", "dockerfile": "Dockerfile"}})
        )
        .is_ok(),
        "BuildKit takes it"
    );
    let inline = json!({"t": {"context": ".", "dockerfile": "Dockerfile", "dockerfile-inline": "FROM scratch"}});
    assert!(validate_in(worktree.path(), &settings::Accounts::default(), &build(Trust::Branch, false), inline).is_ok());
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
