//! The git host against the real git.

#![allow(clippy::unwrap_used)] // A failed expectation ends the test.

use std::path::Path;
use std::process::{Command, Output};

use world::{File, GitHost, GitRequest, Pack, Tokens, wait_for};

/// git in an empty home.
fn git(dir: &Path, args: &[&str]) -> Output {
    let mut git = Command::new("git");
    git.current_dir(dir).env("HOME", dir).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    git.args(args).output().unwrap()
}

fn with_token(url: &str, token: &str) -> String {
    url.replace("http://", &format!("http://x-access-token:{token}@"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_clone_works_with_a_token_of_the_repository_and_with_no_other() {
    let tokens = Tokens::default();
    let host = GitHost::start(tokens.clone());
    host.repository("acme/voting-app").commit_with(
        "main",
        &[
            File::new("vote/Dockerfile", "FROM base:1\n"),
            File::executable("run.sh", "#!/bin/sh\n"),
            File::symlink("link", "vote/Dockerfile"),
        ],
    );
    let url = format!("{}/acme/voting-app.git", host.url());
    let dir = tempfile::tempdir().unwrap();
    let good = tokens.issue(&["acme/voting-app"]);

    let cloned = git(dir.path(), &["clone", "-q", &with_token(&url, &good), "good"]);
    assert!(cloned.status.success(), "{}", text(&cloned.stderr));
    let link = dir.path().join("good/link");
    assert_eq!(std::fs::read_to_string(&link).unwrap(), "FROM base:1\n");
    assert!(link.is_symlink());

    let expired = tokens.issue(&["acme/voting-app"]);
    tokens.expire(&expired);
    for (url, words) in [
        (with_token(&url, &tokens.issue(&["acme/other"])), "Repository not found."),
        (with_token(&url, &expired), "Invalid username or token."),
        (with_token(&url, "ghs_1_never.seen.here"), "Authentication failed"),
        (url, "could not read Username"),
    ] {
        let refused = git(dir.path(), &["clone", "-q", &url, "refused"]);
        assert!(!refused.status.success() && text(&refused.stderr).contains(words), "{}", text(&refused.stderr));
    }
    let pushed = git(&dir.path().join("good"), &["push", "-q", "origin", "HEAD:refs/heads/x"]);
    assert!(text(&pushed.stderr).contains("Write access to repository not granted."), "{}", text(&pushed.stderr));
    assert_eq!(host.n_fetches(), 2, "it lists the references and fetches");
    assert_eq!(host.requests()[1].token, Some(good));
}

#[test]
fn one_commit_is_fetched_by_its_sha_without_its_history() {
    let host = GitHost::open();
    let repository = host.repository("acme/voting-app");
    repository.commit(&[("a", "1")]);
    let sha = repository.commit(&[("a", "2"), ("b", "2")]);
    repository.commit_with("main", &[File::removed("b")]);
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q"]);
    let url = format!("{}/acme/voting-app", host.url());
    let fetched = git(dir.path(), &["fetch", "-q", "--depth=1", &url, &sha]);
    assert!(fetched.status.success(), "{}", text(&fetched.stderr));
    assert_eq!(text(&git(dir.path(), &["rev-list", "--count", &sha]).stdout).trim(), "1");
    assert_eq!(text(&git(dir.path(), &["ls-tree", "--name-only", &sha]).stdout), "a\nb\n");
    assert_eq!(repository.git(&["ls-tree", "--name-only", "main"]), "a");
}

#[test]
fn the_same_history_has_the_same_shas() {
    let tips = [GitHost::open(), GitHost::open()].map(|host| {
        let repository = host.repository("acme/voting-app");
        repository.commit(&[("a", "1")]);
        repository.commit(&[("a", "2")])
    });
    assert_eq!(tips[0], tips[1]);
}

#[tokio::test]
async fn packs_end_early_or_stall_and_requests_fail_on_request() {
    let host = GitHost::open();
    host.repository("acme/voting-app").commit(&[("a", &"many words ".repeat(10_000))]);
    let url = format!("{}/acme/voting-app.git", host.url());
    let dir = tempfile::tempdir().unwrap();
    host.faults().fail_next("/acme/voting-app", 1, 503, &[], "");
    let failed = git(dir.path(), &["clone", "-q", &url, "failed"]);
    assert!(text(&failed.stderr).contains("503"), "{}", text(&failed.stderr));
    host.set_pack(Pack::CutAfter(100));
    assert!(!git(dir.path(), &["clone", "-q", &url, "cut"]).status.success());

    host.set_pack(Pack::StallAfter(100));
    let is_answered = |request: &&GitRequest| request.path.ends_with("/git-upload-pack") && request.status == 200;
    let n_answered = || host.requests().iter().filter(is_answered).count();
    let n_before = n_answered();
    let mut stalled =
        Command::new("git").args(["clone", "-q", &url, "stalled"]).current_dir(dir.path()).spawn().unwrap();
    wait_for("an answer that stalls", || n_answered() > n_before).await;
    assert!(stalled.try_wait().unwrap().is_none());
    // A host that stops ends its connections, and so the client.
    drop(host);
    assert!(!stalled.wait().unwrap().success());
}
