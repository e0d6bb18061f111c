//! Builds that succeed: from Ruby's client to the registry, and back to Ruby's worker.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use world::CALLBACKS;

use crate::harness::{Harness, scanner, target, text};
use crate::registry;
use crate::ruby::{self, Sidekiq};

const NAMES: [&str; 3] = ["vote", "result", "worker"];

/// The build request of the voting app.
fn voting_app(harness: &Harness, sha: &str) -> Value {
    harness.native("voting-app", sha, &NAMES.map(|name| harness.image(name, sha)))
}

/// The digest of each image, after checking that the report and the registry agree.
async fn digests(harness: &Harness, report: &Value, sha: &str) -> Vec<String> {
    assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
    let mut digests = Vec::new();
    for name in NAMES {
        let served = registry::digest(&harness.reference(name, sha)).await;
        assert_eq!(target(report, name)["digest"].as_str(), served.as_deref(), "{report:#}");
        digests.push(served.expect("the registry has the image"));
    }
    digests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_from_sidekiqs_client_becomes_three_images_and_a_callback_in_sidekiqs_worker() {
    let harness = Harness::open();
    let sha = harness.commit_voting_app();
    let sidekiq = Sidekiq::start(&harness);
    let _worker = harness.worker("");

    let jid = ruby::enqueue(&harness, "BuildJob", json!([voting_app(&harness, &sha)]));

    let (class, report) = sidekiq.received(&jid).await;
    assert_eq!(class, "BuildFinishedJob");
    assert_eq!(digests(&harness, &report, &sha).await.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!((&report["build_id"], &report["sha"], &report["attempt"]), (&json!(42), &json!(sha), &json!(1)));
    for name in NAMES {
        let reference = harness.reference(name, &sha);
        assert_eq!(registry::file(&reference, "srv/app.txt").await, Some(format!("{name}, first\n")));
        assert_eq!(target(&report, name)["tags"], json!([reference]));
        assert_eq!((&target(&report, name)["steps_total"], &target(&report, name)["error"]), (&json!(4), &Value::Null));
    }
    assert!(report["context_bytes"].as_u64().unwrap() > 0, "{report:#}");
    let shown = || text(&harness.run(&["show", &jid], ""));
    harness.until("the record has the end", async || shown().starts_with("build 42: succeeded\n")).await;
    let page = shown();
    for name in NAMES {
        let digest = target(&report, name)["digest"].as_str().unwrap();
        assert!(page.contains(&format!("target {name}: succeeded in ")) && page.contains(digest), "{page}");
    }
    assert!(page.contains("slowest steps:") && page.contains("COPY . "), "{page}");
    harness.nothing_is_left().await;
    assert_eq!(harness.redis.get("stat:failed").await.as_deref().unwrap_or("0"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_older_kernel_every_connection_of_a_build_goes_through_a_broker() {
    let harness = Harness::open();
    let sha = harness.commit_voting_app();
    let config = harness.config("sandbox.require_ports = true");
    let mut worker = world::sidebake_on("traced:3", env!("CARGO_BIN_EXE_sidebake"));
    worker.args(["run", "--config"]).arg(&config);
    let worker = harness.home.spawn(worker);
    let report = harness.build(voting_app(&harness, &sha)).await;
    digests(&harness, &report, &sha).await;
    assert!(worker.logged("start_sandbox")[0].contains("is_brokered=true"), "{}", worker.log());
    harness.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_job_is_built_and_an_active_job_gets_the_report() {
    let harness = Harness::open();
    let sha = harness.commit_voting_app();
    let sidekiq = Sidekiq::start(&harness);
    let _worker = harness.worker("jobs.classes.BuildApplicationJob.arguments = \"native\"");
    let mut native = voting_app(&harness, &sha);
    native["callback"] = json!({"class": "ApplicationBuiltJob", "queue": CALLBACKS, "active_job": true});

    let jid = ruby::enqueue(&harness, "BuildApplicationJob", json!([native]));

    let (class, report) = sidekiq.received(&jid).await;
    assert_eq!(class, "ApplicationBuiltJob");
    digests(&harness, &report, &sha).await;
    assert_eq!(target(&report, "vote")["tags"], json!([harness.reference("vote", &sha)]));
    harness.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_build_runs_only_what_a_changed_file_touches() {
    let harness = Harness::open();
    let _worker = harness.worker("");
    let sha = harness.commit_voting_app();
    let report = harness.build(voting_app(&harness, &sha)).await;
    let first = digests(&harness, &report, &sha).await;

    let sha = harness.commit(
        "voting-app",
        &NAMES.map(|name| {
            (
                ["vote/app.txt", "result/app.txt", "worker/app.txt"][NAMES.iter().position(|it| *it == name).unwrap()],
                "tabs or spaces\n",
            )
        }),
    );
    let report = harness.build(voting_app(&harness, &sha)).await;

    let second = digests(&harness, &report, &sha).await;
    for (i, name) in NAMES.into_iter().enumerate() {
        assert_ne!(first[i], second[i], "{name}");
        let target = target(&report, name);
        assert_eq!((&target["steps_total"], &target["steps_cached"]), (&json!(4), &json!(2)), "{report:#}");
        let text = registry::file(&harness.reference(name, &sha), "srv/app.txt").await;
        assert_eq!(text.as_deref(), Some("tabs or spaces\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_times_from_content_a_builder_receives_only_changed_files() {
    let harness = Harness::open();
    let _worker = harness.worker(
        "[source]\nmtimes_for = { \"acme/content\" = \"content\" }\nmtimes_key = \"a key that all workers of the fleet have\"",
    );
    let (dockerfile, large) = (harness.dockerfile("COPY . /srv"), harness.nonce.repeat(100_000));
    let n_large = u64::try_from(large.len()).unwrap();
    for (repository, is_sent_again) in [("content", false), ("checkout", true)] {
        let files = [("app/Dockerfile", dockerfile.as_str()), ("app/large", &large), ("app/page.html", "cats\n")];
        let sha = harness.commit(repository, &files);
        let first = harness.build(harness.native(repository, &sha, &[harness.image("app", &sha)])).await;
        // The same size, so that only the time differs.
        let sha = harness.commit(repository, &[("app/page.html", "dogs\n")]);
        let second = harness.build(harness.native(repository, &sha, &[harness.image("app", &sha)])).await;

        let sent = [&first, &second].map(|report| report["context_bytes"].as_u64().unwrap() >= n_large);
        assert_eq!(sent, [true, is_sent_again], "{repository}: {first:#} {second:#}");
        let page = registry::file(&harness.reference("app", &sha), "srv/page.html").await;
        assert_eq!(page.as_deref(), Some("dogs\n"), "{repository}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_template_has_its_effect() {
    let harness = Harness::open();
    let dockerfile = harness.dockerfile("RUN mkdir /srv && echo tool > /srv/which").replacen('\n', " AS tool\n", 1)
        + &harness.dockerfile("RUN mkdir /srv && echo last > /srv/which").replacen('\n', " AS last\n", 1);
    let sha = harness.commit("shop", &[("docker/Special", &dockerfile), ("web/page.html", "cats\n")]);
    let _worker = harness.worker("");
    let (first, second, cache) =
        (harness.reference("web", "1"), harness.reference("web", "2"), harness.reference("cache", "1"));
    let image = json!({
        "name": "web", "context": "web", "dockerfile": "../docker/Special", "target": "tool", "tags": [first, second],
        "labels": {"org.example.owner": "acme"}, "platforms": ["linux/amd64"],
        "cache_to": [format!("type=registry,ref={cache},mode=max")], "cache_from": [format!("type=registry,ref={cache}")],
    });

    let mut fork = harness.native("shop", &sha, std::slice::from_ref(&image));
    fork["trust"] = json!("fork");
    let report = harness.build(fork).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(registry::digest(&cache).await, None, "a fork wrote a cache that other builds read");

    let report = harness.build(harness.native("shop", &sha, std::slice::from_ref(&image))).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(registry::digest(&first).await, registry::digest(&second).await);
    assert_eq!(registry::file(&first, "srv/which").await.as_deref(), Some("tool\n"));
    let config = registry::config(&first).await;
    assert_eq!(
        (&config["config"]["Labels"]["org.example.owner"], &config["architecture"]),
        (&json!("acme"), &json!("amd64"))
    );
    assert!(registry::digest(&cache).await.is_some());
    assert_eq!(target(&report, "web")["steps_cached"], target(&report, "web")["steps_total"], "{report:#}");

    let unpushed = harness.reference("web", "3");
    let mut again = harness.native("shop", &sha, &[image]);
    again["application"]["images"][0]["tags"] = json!([unpushed]);
    (again["no_cache"], again["pull"], again["push"]) = (json!(true), json!(true), json!(false));
    let report = harness.build(again).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(target(&report, "web")["steps_cached"], json!(0), "{report:#}");
    assert_eq!(registry::digest(&unpushed).await, None, "pushed without a request");
}

/// The job in each of the four forms of a definition, with one image `app` under this reference.
fn in_each_shape(harness: &Harness, sha: &str, reference: &str) -> Vec<(&'static str, Value)> {
    let image = json!({"name": "app", "context": "./app", "tags": [reference]});
    let target = json!({"target": {"app": {"context": "./app", "tags": [reference]}}});
    let of_file = |field: &str, path: &str| {
        let mut native = harness.inline("shop", sha, json!({}), "app");
        native.as_object_mut().unwrap().remove("definition");
        (native[field], native["tags"]) = (json!(path), json!({"app": [reference]}));
        native
    };
    vec![
        ("application", harness.native("shop", sha, &[image])),
        ("definition", harness.inline("shop", sha, target, "app")),
        ("compose", of_file("compose", "compose.yaml")),
        ("bake", of_file("bake", "docker-bake.hcl")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_builds_of_a_commit_have_one_digest_and_the_requested_attestations() {
    let harness = Harness::open();
    let compose = "services:\n  app:\n    build: {context: ./app, provenance: mode=max}\n";
    let bake = "target \"app\" {\n  context = \"./app\"\n  attest = [\"type=provenance,mode=max\"]\n}\n";
    let dockerfile = harness.dockerfile("RUN date > /when");
    let sha = harness
        .commit("shop", &[("app/Dockerfile", &dockerfile), ("compose.yaml", compose), ("docker-bake.hcl", bake)]);
    let _worker = harness.worker("");
    let reference = harness.reference("app", &sha);
    let mut digests = BTreeSet::new();
    for (shape, mut native) in in_each_shape(&harness, &sha, &reference) {
        for n in 0..3 {
            let report = harness.build(native.clone()).await;
            assert_eq!(report["status"], "succeeded", "{shape} {n}: {report:#}");
            digests.insert(registry::digest(&reference).await.unwrap());
            let replaced = "target.app.attest: provenance set to off in place of mode=max";
            let is_file = ["compose", "bake"].contains(&shape);
            assert_eq!(report["notices"].to_string().contains(replaced), is_file, "{shape}: {report:#}");
        }
        assert_eq!(digests.len(), 1, "{shape}: a second build of the commit has another digest: {digests:#?}");
        assert_eq!(registry::attestation(&reference).await, None, "{shape}");
        native["provenance"] = json!("mode=min");
        let report = harness.build(native).await;
        let attested = registry::attestation(&reference).await.unwrap_or_else(|| panic!("{shape}: {report:#}"));
        assert!(
            attested["predicateType"].as_str().unwrap().starts_with("https://slsa.dev/provenance/"),
            "{attested:#}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configured_image_makes_an_sbom() {
    let harness = Harness::open();
    let app = harness.dockerfile("RUN echo app > /app");
    let sha = harness.commit("shop", &[("scanner/Dockerfile", &scanner(&harness)), ("app/Dockerfile", &app)]);
    let generator = harness.reference("scanner", &sha);
    let _worker = harness.worker(&format!("bake.sbom = \"generator={generator},disabled=true\""));
    let report = harness.build(harness.native("shop", &sha, &[harness.image("scanner", &sha)])).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(registry::attestation(&generator).await, None, "the job did not request an attestation");

    let mut native = harness.native("shop", &sha, &[harness.image("app", &sha)]);
    native["sbom"] = json!(true);
    let report = harness.build(native).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    let attested = registry::attestation(&harness.reference("app", &sha)).await.expect("an SBOM");
    assert_eq!(attested["predicate"]["name"], "ours", "{attested:#}");
}
