//! `source.git_dir = "minimal"`: the `.git` that builds see, judged by git itself.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use world::{File, Script, Step};

use crate::harness::{Harness, text};

const MINIMAL: &str = "source.git_dir = \"minimal\"";

/// What git says of a copy of a worktree, as it is after `COPY . /src`.
fn git_says(worktree: &Path, arguments: &[&str]) -> String {
    let copy = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").args(["-r", "--no-target-directory"]).arg(worktree).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    let mut git = Command::new("git");
    git.current_dir(copy.path()).env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", copy.path());
    let output = git.env("GIT_CONFIG_NOSYSTEM", "1").args(arguments).output().unwrap();
    text(&output).trim_end().to_owned()
}

/// Builds each commit, and returns the answers of git in its worktree.
async fn asked(harness: &Harness, builds: &[Value], questions: &'static [&'static [&'static str]]) -> Vec<Vec<String>> {
    let answers = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = answers.clone();
    harness.builder.script_for_the_rest(Script::new(move |run| {
        let definition: Value = serde_json::from_str(&run.text).unwrap();
        let worktree = Path::new(definition["target"]["app"]["context"].as_str().unwrap());
        let said = questions.iter().map(|question| git_says(worktree, question)).collect();
        heard.lock().unwrap().push(said);
        vec![Step::Exit(0)]
    }));
    for (n, build) in builds.iter().enumerate() {
        harness.redis.push("default", "BuildJob", json!([build])).await;
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!(report["status"], "succeeded", "{report:#}");
    }
    std::mem::take(&mut *answers.lock().unwrap())
}

fn native(harness: &Harness, sha: &str, git_ref: Option<&str>) -> Value {
    let mut native = harness.native(sha);
    native["application"]["images"] = json!([{"name": "app", "context": ".", "dockerfile_inline": "FROM base", "tags": ["registry.example/acme/app:1"]}]);
    if let Some(git_ref) = git_ref {
        native["ref"] = json!(git_ref);
    }
    native
}

/// A history of two commits; the second has every kind of file. Two tags lead to it.
fn repository(harness: &Harness) -> (world::Repository, String) {
    let repository = harness.git.repository("acme/voting-app");
    repository.commit(&[("old", "gone")]);
    let sha = repository.commit_with(
        "main",
        &[
            File::new("a/b/file", "text\n"),
            File::new("empty", ""),
            File::new(".gitattributes", "*.dos eol=crlf\n"),
            File::new("x.dos", "one\ntwo\n"),
            File::executable("run", "#!/bin/sh\n"),
            File::symlink("link", "a/b/file"),
            File::submodule("module", &"1".repeat(40)),
            File::new(".gitignore", "ignored\n"),
            File::removed("old"),
        ],
    );
    let who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.test"];
    repository.git(&[&who[..], &["tag", "-a", "v1.0", "-m", "one", &sha]].concat());
    repository.git(&["tag", "light", &sha]);
    (repository, sha)
}

#[tokio::test(flavor = "multi_thread")]
async fn git_finds_a_clean_commit_with_its_branch_and_tags() {
    let harness = Harness::start();
    let (repository, sha) = repository(&harness);
    let tag = repository.git(&["rev-parse", "v1.0"]);
    let _worker = harness.worker(MINIMAL);
    let builds = [
        native(&harness, &sha, Some("refs/heads/main")),
        native(&harness, &sha, Some("refs/tags/v1.0")),
        native(&harness, &sha, None),
        native(&harness, &tag, Some("refs/tags/v1.0")),
    ];
    let questions: &[&[&str]] = &[
        &["status", "--porcelain", "--ignored"],
        &["fsck", "--strict", "--full"],
        &["describe", "--tags", "--always", "--dirty"],
        &["log", "-1", "--format=%H %s"],
        &["rev-parse", "--abbrev-ref", "HEAD"],
        &["rev-list", "--all", "--count"],
        &["remote"],
        &["tag", "--list"],
        &["config", "--local", "--list"],
        &["rev-parse", "--is-shallow-repository"],
        // The files of a submodule, which has no `.git`.
        &["-c", "alias.filled=!touch module/file && git status --porcelain", "filled"],
    ];
    let config = "core.repositoryformatversion=0\ncore.filemode=true\ncore.bare=false";
    for (said, head) in asked(&harness, &builds, questions).await.iter().zip(["main", "HEAD", "HEAD", "HEAD"]) {
        let log = format!("{sha} change");
        let expected = ["", "", "v1.0", log.as_str(), head, "1", "", "light\nv1.0", config, "true", ""];
        assert_eq!(said, &expected);
    }
    assert!(harness.traces_of("s3cret").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_builds_get_equal_files_and_a_first_commit_is_not_shallow() {
    let harness = Harness::start();
    let repository = harness.git.repository("acme/voting-app");
    let sha = repository.commit(&[("file", "text\n")]);
    let _worker = harness.worker(MINIMAL);
    let build = native(&harness, &sha, Some("refs/heads/main"));
    const HASHES: &[&[&str]] = &[
        &["hash-object", ".git/index", ".git/HEAD", ".git/packed-refs", ".git/config"],
        &["-c", "alias.x=!cat .git/objects/pack/*.pack | git hash-object --stdin", "x"],
        &["rev-parse", "--is-shallow-repository"],
        &["status", "--porcelain"],
    ];
    let said = asked(&harness, &[build.clone(), build], HASHES).await;
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0][2..], ["false", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_git_counts_in_the_limit_of_the_files() {
    let harness = Harness::start();
    let sha = harness.git.repository("acme/voting-app").commit(&[("file", "text\n")]);
    let _worker = harness.worker(&format!("{MINIMAL}\nsource.max_tree_bytes = 100"));
    harness.redis.push("default", "BuildJob", json!([native(&harness, &sha, None)])).await;
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["reason"], "source_refused", "{report:#}");
    assert!(report["message"].as_str().unwrap().contains("and its .git are larger than 100 bytes"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_it_a_step_that_misses_git_is_told_which_setting_adds_it() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let digest = format!("sha256:{}", "1".repeat(64));
    let name = "[vote 2/2] COPY .git/HEAD /srv/";
    let error = "failed to calculate checksum of ref a::b: \"/.git/HEAD\": not found";
    let vertex = json!({"digest": digest, "name": name, "inputs": [], "started": "2026-01-01T00:00:00Z",
        "completed": "2026-01-01T00:00:01Z", "error": error});
    let line = json!({"vertexes": [vertex]}).to_string();
    let last = format!("ERROR: failed to build: failed to solve: failed to compute cache key: {error}");
    harness.builder.script_for_the_rest(Script::replay(&format!("{line}\n{last}\n"), 1));
    let _worker = harness.worker("");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["reason"], "file_not_found", "{report:#}");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains(".git is not part of the build context"), "{message}");
    assert!(message.contains("source.git_dir"), "{message}");
}
