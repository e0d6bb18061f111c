//! Compose and bake files of a repository. The repository decides what to build. The worker decides names, caches,
//! secrets and destinations.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use world::Registry;

use crate::harness::{Harness, target};
use crate::registry;

/// A build request that uses a file of the repository.
fn native(harness: &Harness, repository: &str, sha: &str, field: &str, path: &str) -> Value {
    let mut native = harness.native(repository, sha, &[]);
    native.as_object_mut().unwrap().remove("application");
    native[field] = json!(path);
    native
}

/// Tags of `NONCE/TARGET:SHA` in the registry.
fn tags(harness: &Harness) -> String {
    format!("[accounts]\ntags = [\"{}\"]\n", harness.reference("{target}", "{sha}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compose_file_is_built_under_the_workers_names() {
    let harness = Harness::open();
    let compose = "services:\n  \
        web:\n    build: {context: ./web, args: {VERSION: \"${VERSION:-none}\"}}\n    image: library/nginx:latest\n  \
        db:\n    image: postgres:16\n";
    let sha = harness.commit(
        "shop",
        &[
            ("deploy/docker-compose.yml", compose),
            ("deploy/web/Dockerfile", &harness.dockerfile("ARG VERSION\nRUN printf '%s' \"$VERSION\" > /version")),
        ],
    );
    let _worker = harness.worker(&tags(&harness));
    let mut job = native(&harness, "shop", &sha, "compose", "deploy/docker-compose.yml");
    job["variables"] = json!({"VERSION": "1.2"});

    let report = harness.build(job).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    let ours = harness.reference("web", &sha);
    assert_eq!(target(&report, "web")["tags"], json!([ours]));
    assert_eq!(report["targets"].as_array().unwrap().len(), 1, "{report:#}");
    assert_eq!(report["notices"], json!([format!("target.web.tags: set to {ours} in place of library/nginx:latest")]));
    assert_eq!(registry::file(&ours, "version").await.as_deref(), Some("1.2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_chooses_targets_and_names_of_a_bake_file() {
    let harness = Harness::open();
    let bake = r#"
variable "BASE" { default = "none" }
group "default" { targets = ["app", "docs"] }
target "base" {
  dockerfile-inline = "FROM ${BASE}\nRUN echo base > /base"
}
target "app" {
  contexts   = { base = "target:base" }
  dockerfile = "app.Dockerfile"
  tags       = ["evil/app"]
  cache-to   = ["type=registry,ref=evil/cache"]
  output     = ["type=image,name=evil/other,push=true"]
}
target "docs" {
  dockerfile-inline = "FROM ${BASE}"
  output            = ["type=local,dest=out"]
}
"#;
    let app = format!("FROM base\nENV NONCE={}\nRUN cat /base > /app\n", harness.nonce);
    let sha = harness.commit("shop", &[("docker-bake.hcl", bake), ("app.Dockerfile", &app)]);
    let _worker = harness.worker("");
    let mut job = native(&harness, "shop", &sha, "bake", "docker-bake.hcl");
    let ours = harness.reference("chosen", &sha);
    job["variables"] = json!({"BASE": harness.engine.base_image});
    job["tags"] = json!({"app": [ours]});

    let report = harness.build(job.clone()).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(target(&report, "app")["digest"], json!(registry::digest(&ours).await), "{report:#}");
    assert_eq!(registry::file(&ours, "app").await.as_deref(), Some("base\n"));
    let notices: Vec<&str> = report["notices"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let expected = [
        format!("target.app.tags: set to {ours} in place of evil/app"),
        "target.app.cache-to: ignored: the worker sets caches".into(),
        "target.docs.output: not written: only images leave the builder".into(),
    ];
    assert_eq!(notices, expected, "{report:#}");

    // In a fork, only the job gives names.
    job["tags"] = Value::Null;
    job["trust"] = json!("fork");
    let report = harness.build(job).await;
    assert_eq!(report["reason"], "policy_refused", "{report:#}");
    assert!(report["message"].as_str().unwrap().contains("target.app.tags: a fork's build pushes only"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_any_bytes_reaches_its_step_unchanged() {
    let harness = Harness::open();
    let secrets = harness.home.path().join("secrets/acme");
    std::fs::create_dir_all(&secrets).unwrap();
    let keystore: Vec<u8> = (0..=255).cycle().take(2000).collect();
    std::fs::write(secrets.join("keystore"), &keystore).unwrap();
    let step = "RUN --mount=type=secret,id=keystore base64 /run/secrets/keystore | tr -d '\\n' > /seen";
    let sha = harness.commit("shop", &[("good/Dockerfile", &harness.dockerfile(step))]);
    let config = format!("[accounts]\nsecrets = \"{}/secrets/{{account}}/{{name}}\"\n", harness.home.path().display());
    let _worker = harness.worker(&config);
    let mut image = harness.image("good", &sha);
    image["secrets"] = json!([{"id": "keystore"}]);

    let report = harness.build(harness.native("shop", &sha, &[image])).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    let seen = registry::file(&harness.reference("good", &sha), "seen").await;
    assert_eq!(seen, Some(BASE64_STANDARD.encode(keystore)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_secret_reaches_its_step_and_nothing_else() {
    let harness = Harness::open();
    let secrets = harness.home.path().join("secrets/acme");
    std::fs::create_dir_all(&secrets).unwrap();
    std::fs::write(secrets.join("npm-token"), "s3cret-of-acme\n").unwrap();
    // Prints its secret, as a careless build does.
    let step = "RUN --mount=type=secret,id=npm wc -c < /run/secrets/npm > /size && cat /run/secrets/npm && false";
    let fine = "RUN --mount=type=secret,id=npm wc -c < /run/secrets/npm > /size";
    let sha = harness.commit(
        "shop",
        &[("bad/Dockerfile", &harness.dockerfile(step)), ("good/Dockerfile", &harness.dockerfile(fine))],
    );
    let config = format!("[accounts]\nsecrets = \"{}/secrets/{{account}}/{{name}}\"\n", harness.home.path().display());
    let _worker = harness.worker(&config);
    let image = |name: &str| {
        let mut image = harness.image(name, &sha);
        image["secrets"] = json!([{"id": "npm", "from": "npm-token"}]);
        image
    };

    let report = harness.build(harness.native("shop", &sha, &[image("good")])).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(registry::file(&harness.reference("good", &sha), "size").await.as_deref(), Some("15\n"));

    let report = harness.build(harness.native("shop", &sha, &[image("bad")])).await;
    assert_eq!(report["reason"], "step_failed", "{report:#}");
    harness.nothing_is_left().await;
    for text in [report.to_string(), harness.logs()] {
        assert!(!text.contains("s3cret-of-acme"), "{text}");
    }

    let mut fork = harness.native("shop", &sha, &[image("good")]);
    fork["trust"] = json!("fork");
    // The cache contains a result that used a secret like any other result.
    fork["no_cache"] = json!(true);
    let report = harness.build(fork).await;
    assert_eq!(report["reason"], "step_failed", "without the secret the file does not exist: {report:#}");
    assert_eq!(report["notices"], json!(["target.good.secret[0]: a fork's build gets no build secrets"]));

    let mut other = harness.native("shop", &sha, &[image("good")]);
    other["account"] = json!("umbrella");
    let report = harness.build(other).await;
    assert_eq!(report["reason"], "policy_refused", "{report:#}");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("target.good.secret[0]: no secret \"npm\" is granted to umbrella"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bake_file_names_secrets_in_any_form_without_a_file() {
    let harness = Harness::open();
    let secrets = harness.home.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(secrets.join("npm"), "12345").unwrap();
    std::fs::write(secrets.join("pip"), "123").unwrap();
    let bake = "target \"default\" { secret = [\"id=npm\", \"type=env,id=pip,env=PIP_TOKEN\"] }\n";
    let steps = "RUN --mount=type=secret,id=npm --mount=type=secret,id=pip cat /run/secrets/* | wc -c > /size";
    let sha = harness.commit("shop", &[("docker-bake.hcl", bake), ("Dockerfile", &harness.dockerfile(steps))]);
    let config = format!("[accounts]\nsecrets = \"{}/{{name}}\"\n", secrets.display());
    let _worker = harness.worker(&config);
    let mut job = native(&harness, "shop", &sha, "bake", "docker-bake.hcl");
    let ours = harness.reference("app", &sha);
    job["tags"] = json!({"default": [ours]});

    let report = harness.build(job).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(registry::file(&ours, "size").await.as_deref(), Some("8\n"));
    assert_eq!(report["notices"], json!(["target.default.secret[1]: replaced by the worker's secret pip"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_are_written_by_target_and_branch_and_read_from_the_default_branch() {
    let harness = Harness::open();
    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("RUN echo slow > /slow"))]);
    let place = harness.reference("cache", "{target}.{branch}");
    let cache = format!(
        "[accounts.cache]\nfrom = [\"type=registry,ref={place}\"]\nto = [\"type=registry,ref={place},mode=max\"]\n"
    );
    let _worker = harness.worker(&cache);
    let mut job = harness.native("shop", &sha, &[harness.image("web", &sha)]);
    job["default_branch"] = json!("main");
    let report = harness.build(job.clone()).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert!(registry::digest(&harness.reference("cache", "web.main")).await.is_some());

    job["ref"] = json!("refs/heads/feature");
    job["trust"] = json!("fork");
    let report = harness.build(job.clone()).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert!(registry::digest(&harness.reference("cache", "web.feature")).await.is_none(), "a fork writes no cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_requested_by_an_argument_is_in_the_image_of_a_branch_and_not_of_a_fork() {
    let harness = Harness::open();
    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("RUN echo slow > /slow"))]);
    let _worker = harness.worker("");
    for (trust, tag, is_there) in [("branch", "1", true), ("fork", "2", false)] {
        let reference = harness.reference("web", tag);
        let mut image = json!({"name": "web", "context": "./web", "tags": [reference]});
        image["args"] = json!({"BUILDKIT_INLINE_CACHE": "1"});
        let mut job = harness.native("shop", &sha, &[image]);
        job["trust"] = json!(trust);
        let report = harness.build(job).await;
        assert_eq!(report["status"], "succeeded", "{report:#}");
        let config = registry::config(&reference).await;
        assert_eq!(config.get("moby.buildkit.cache.v0").is_some(), is_there, "{trust}: {config:#}");
        let notice = "target.web.args.BUILDKIT_INLINE_CACHE: a fork's build writes no cache";
        assert_eq!(report["notices"] == json!([notice]), !is_there, "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configured_cache_is_exported_by_the_default_branch_when_a_step_ran_and_imported_by_every_build() {
    let harness = Harness::open();
    let nonce = harness.nonce.clone();
    let app = |more: &str| harness.dockerfile(&format!("RUN sleep 1; echo {nonce} > /slow\n{more}"));
    let name = harness.reference("{account}/{repository}", "{target}");
    let cache = harness.reference("acme/shop", "web");
    let sha = harness.commit("shop", &[("web/Dockerfile", &app(""))]);
    let _worker = harness.worker(&format!("[accounts]\ncache = \"{name}\"\n"));
    let build = async |sha: &str, branch: &str| {
        let mut job = harness.native("shop", sha, &[harness.image("web", sha)]);
        (job["ref"], job["default_branch"]) = (json!(format!("refs/heads/{branch}")), json!("main"));
        let report = harness.build(job).await;
        assert_eq!((&report["status"], &report["notices"]), (&json!("succeeded"), &json!([])), "{report:#}");
        let ms = |name: &str| report["timings"][name].as_u64().unwrap();
        (registry::digest(&cache).await, ms("cache_import_ms"), ms("cache_export_ms"), target(&report, "web").clone())
    };
    harness.git.repository("acme/shop").git(&["branch", "feature"]);
    let (exported, .., web) = build(&sha, "feature").await;
    assert_eq!((exported, &web["steps_cached"]), (None, &json!(0)), "only the default branch exports");
    let (exported, _, took, _) = build(&sha, "main").await;
    assert_eq!((exported, took), (None, 0), "nothing ran");

    let sha = harness.commit("shop", &[("web/Dockerfile", &app(&format!("RUN echo {nonce} > /more")))]);
    let (first, _, took, web) = build(&sha, "main").await;
    assert!(first.is_some() && took > 0, "{web:#}");
    assert!(web["saved_ms"].as_u64().is_some_and(|ms| ms >= 1000), "one step was cached: {web:#}");
    let (again, import, export, web) = build(&sha, "main").await;
    assert_eq!(web["steps_cached"], web["steps_total"], "{web:#}");
    assert!(import > 0 && export == 0, "{import} {export}");
    assert_eq!(again, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_refuses_a_cache_costs_a_notice_and_no_build() {
    let harness = Harness::open();
    let registry = Registry::start();
    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("RUN echo slow > /slow"))]);
    registry.faults().fail_next("PUT /v2/acme/shop/manifests/", 100, 400, &[], "no room");
    let name = format!("{}/{{account}}/{{repository}}:{{target}}", registry.address());
    let _worker = harness.worker(&format!("[accounts]\ncache = \"{name}\"\n"));
    let mut job = harness.native("shop", &sha, &[harness.image("web", &sha)]);
    job["default_branch"] = json!("main");
    let report = harness.build(job).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert!(registry::digest(&harness.reference("web", &sha)).await.is_some());
    let [notice] = report["notices"].as_array().unwrap().as_slice() else { panic!("{report:#}") };
    let notice = notice.as_str().unwrap();
    assert!(notice.starts_with("the cache of web was not exported: ") && notice.contains("400"), "{notice}");
    assert!(harness.logs().contains("cache_not_exported"));
}
