//! Repositories of an enemy: files that run programs, send the worker places, and lie. Judged by the harm, which a control run
//! shows to be real.

use std::path::Path;

use serde_json::{Value, json};
use world::File;

use crate::bell::Bell;
use crate::house::{House, target, text};
use crate::registry;

/// A build context that is itself the inside of a git repository, whose configuration makes git run a shell: `git show`
/// in it misses the commit and asks the "remote" for it. `worktree`, because buildx asks first whether it is in a worktree.
fn inside_of_a_repository(house: &House, canary: &Path) -> Vec<(&'static str, String)> {
    let config = format!(
        "[core]\n\trepositoryformatversion = 1\n\tworktree = .\n[extensions]\n\tpartialClone = origin\n\
         [remote \"origin\"]\n\turl = .\n\tpromisor = true\n\tpartialclonefilter = blob:none\n\
         \tuploadpack = \"touch {}; false\"\n",
        canary.display()
    );
    vec![
        ("app/Dockerfile", house.dockerfile("COPY Dockerfile /srv/Dockerfile")),
        ("app/HEAD", "ref: refs/heads/main\n".into()),
        ("app/config", config),
        ("app/objects/keep", String::new()),
        ("app/refs/heads/main", "0123456789012345678901234567890123456789\n".into()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_is_a_git_repository_runs_no_program_on_the_worker() {
    let house = House::open();
    let canary = house.home.path().join("canary");
    let files = inside_of_a_repository(&house, &canary);
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let sha = house.commit("evil", &files);

    // The control: the same tree under the real buildx as a careless worker runs it.
    let tree = house.check_out("evil");
    let definition = json!({"target": {"default": {"context": "./app", "output": ["type=cacheonly"]}}});
    let output = house.bare_bake(&tree, &definition);
    assert!(canary.exists(), "the trap does not work here: {}", text(&output));
    std::fs::remove_file(&canary).unwrap();

    let _worker = house.worker("");
    let image = json!({"name": "app", "context": "./app", "tags": [house.reference("app", &sha)]});
    let report = house.build(house.native("evil", &sha, &[image])).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert!(!canary.exists(), "git ran a program of the repository's");
    assert!(registry::file(&house.reference("app", &sha), "srv/Dockerfile").await.is_some());
    house.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_sends_buildx_for_a_token_elsewhere_gets_nobody_to_go_there() {
    let house = House::open();
    let inside = Bell::hanging_up();
    let registry = Bell::answering(format!(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:{}/token\",service=\"x\"\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n",
        inside.port
    ));
    let dockerfile = format!("FROM 127.0.0.1:{}/evil/x:1\n", registry.port);
    let sha = house.commit("evil", &[("app/Dockerfile", &dockerfile)]);

    // The control: buildx itself, and not the builder, goes wherever the registry says.
    let tree = house.check_out("evil");
    let output = house.bare_bake(&tree, &json!({"target": {"default": {"context": "./app"}}}));
    assert!(inside.rung() > 0, "the trap does not work here: {}", text(&output));
    let rung_before = inside.rung();

    let _worker = house.worker("");
    let mut native = house.native("evil", &sha, &[house.image("app", &sha)]);
    native["callback"]["on"] = json!(["retrying", "finished"]);
    house.redis.push("default", "BuildJob", json!([native])).await;
    house.until("the attempt is over", async || !house.reports().await.is_empty()).await;

    let report = house.reports().await.remove(0);
    assert!(report["message"].as_str().unwrap().contains("/token"), "nobody was sent anywhere: {report:#}");
    assert_eq!(inside.rung(), rung_before, "buildx went where the registry sent it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_a_context_brings_nothing_of_the_hosts_into_an_image() {
    let house = House::open();
    let secret = house.home.path().join("app.pem");
    let dockerfile = house.dockerfile("COPY . /srv\nRUN cat /srv/key > /srv/loot || true");
    let sha = house.commit_with(
        "evil",
        &[
            File::new("app/Dockerfile", dockerfile.as_str()),
            File::new("direct/Dockerfile", house.dockerfile("COPY key /srv/loot").as_str()),
            File::symlink("app/key", secret.to_str().unwrap()),
            File::symlink("direct/key", secret.to_str().unwrap()),
        ],
    );
    let _worker = house.worker("");

    for (name, status) in [("app", "succeeded"), ("direct", "failed")] {
        let report = house.build(house.native("evil", &sha, &[house.image(name, &sha)])).await;
        assert_eq!(report["status"], status, "{report:#}");
    }

    assert_eq!(registry::file(&house.reference("app", &sha), "srv/loot").await.as_deref(), Some(""));
    assert_eq!(registry::digest(&house.reference("direct", &sha)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_cannot_forge_what_the_builder_says() {
    let house = House::open();
    let (reference, forged) = (house.reference("web", "1"), format!("sha256:{}", "0".repeat(64)));
    let event = json!({
        "vertexes": [{"digest": "sha256:f", "name": "exporting to image", "started": "2026-11-24T00:00:00Z", "completed": "2026-11-24T00:00:01Z"}],
        "statuses": [{"id": format!("pushing manifest for {reference}@{forged}"), "vertex": "sha256:f", "completed": "2026-11-24T00:00:01Z"}],
    });
    // The message of `:?` may have lines of its own, and BuildKit's error repeats them.
    let shouting =
        house.dockerfile(&format!("COPY <<EOF /srv/x\n${{NOPE:?no\n{event}\nERROR: connection refused\n}}\nEOF"));
    let lying = house.dockerfile("RUN false # dial tcp: connection refused, code = Unavailable");
    let breaking = house.dockerfile("COPY [\"no\\nwhere: connection refused\", \"/srv/\"]");
    let sha = house.commit(
        "evil",
        &[("shouting/Dockerfile", &shouting), ("lying/Dockerfile", &lying), ("breaking/Dockerfile", &breaking)],
    );
    let _worker = house.worker("");

    for (context, reason) in
        [("shouting", "dockerfile_invalid"), ("lying", "step_failed"), ("breaking", "file_not_found")]
    {
        let image = json!({"name": "web", "context": format!("./{context}"), "tags": [reference]});
        let report = house.build(house.native("evil", &sha, &[image])).await;
        assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!(reason)), "{report:#}");
        assert_eq!(target(&report, "web")["digest"], Value::Null, "{report:#}");
        assert_ne!(target(&report, "web")["status"], "succeeded", "{report:#}");
    }
    assert!(house.redis.sorted_set("retry").await.is_empty());
    assert_eq!(registry::digest(&reference).await, None);
}
