//! What an image says of itself, and how the platform sees that it is the same as before.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use world::Registry;

use crate::harness::{Harness, scanner, target};
use crate::platforms::emulating;
use crate::registry;

const REVISION: &str = "org.opencontainers.image.revision";
const SOURCE: &str = "org.opencontainers.image.source";
const CREATED: &str = "org.opencontainers.image.created";

/// The labels of an image.
async fn labels(reference: &str) -> Value {
    registry::config(reference).await["config"]["Labels"].take()
}

/// Builds, and returns the entry of the only target.
async fn built(harness: &Harness, native: Value) -> Value {
    let report = harness.build(native).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    report["targets"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_name_the_commit_and_a_new_commit_keeps_every_cached_step() {
    let harness = Harness::open();
    let app = harness.dockerfile("LABEL org.opencontainers.image.revision=mine own=1\nWORKDIR /srv\nRUN date > when");
    let compose = "services:\n  app:\n    build: {context: ./app, labels: {org.opencontainers.image.source: evil}}\n";
    let files = [("app/Dockerfile", app.as_str()), ("compose.yaml", compose), ("README", "1")];
    let first = harness.commit("shop", &files);
    let _worker = harness.worker("");
    let reference = harness.reference("app", "1");
    let image = json!({"name": "app", "context": "./app", "tags": [reference]});
    let native = |sha: &str| harness.native("shop", sha, std::slice::from_ref(&image));

    built(&harness, native(&first)).await;
    let source = format!("{}/acme/shop", harness.git.url());
    let described = labels(&reference).await;
    assert_eq!((&described[REVISION], &described[SOURCE]), (&json!(first), &json!(source)), "{described:#}");
    let committed_at = harness.git.repository("acme/shop").git(&["show", "--no-patch", "--format=%ct", &first]);
    let created = |labels: &Value| labels[CREATED].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    assert_eq!(created(&described).to_string(), committed_at.trim());
    assert_eq!(described["own"], "1");

    let second = harness.commit("shop", &[("README", "2")]);
    let again = built(&harness, native(&second)).await;
    assert_eq!(again["steps_cached"], again["steps_total"], "{again:#}");
    assert_eq!(labels(&reference).await[REVISION], json!(second));

    let mut of_file = native(&second);
    of_file.as_object_mut().unwrap().remove("application");
    (of_file["compose"], of_file["tags"]) = (json!("compose.yaml"), json!({"app": [reference]}));
    let report = harness.build(of_file).await;
    let replaced = format!("target.app.labels.{SOURCE}: set to {source}");
    assert!(report["notices"].as_array().unwrap().contains(&json!(replaced)), "{report:#}");
    assert_eq!(labels(&reference).await[SOURCE], json!(source));
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_ask_for_it_see_the_time_of_the_commit() {
    let harness = Harness::open();
    let app = harness.dockerfile("ARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /time");
    let sha = harness.commit("shop", &[("app/Dockerfile", &app)]);
    let _worker = harness.worker("");
    let reference = harness.reference("app", &sha);
    let mut native = harness.native("shop", &sha, &[harness.image("app", &sha)]);

    built(&harness, native.clone()).await;
    assert_eq!(registry::file(&reference, "time").await.as_deref(), Some("\n"), "off by default");
    native["source_date_epoch"] = json!("commit");
    built(&harness, native).await;

    let committed_at = harness.git.repository("acme/shop").git(&["show", "--no-patch", "--format=%ct", &sha]);
    assert_eq!(registry::file(&reference, "time").await.unwrap().trim(), committed_at.trim());
    let config = registry::config(&reference).await;
    assert_eq!(config["created"], labels(&reference).await[CREATED], "{config:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_built_again_has_the_same_image_with_and_without_attestations() {
    let harness = Harness::open();
    let app = harness.dockerfile("RUN echo 1 > /x");
    let sha = harness.commit("shop", &[("app/Dockerfile", &app), ("scanner/Dockerfile", &scanner(&harness))]);
    let generator = harness.reference("scanner", &sha);
    let _worker = harness.worker(&format!("bake.sbom = \"generator={generator},disabled=true\""));
    built(&harness, harness.native("shop", &sha, &[harness.image("scanner", &sha)])).await;
    let reference = harness.reference("app", &sha);
    let mut native = harness.native("shop", &sha, &[harness.image("app", &sha)]);
    let (mut digests, mut images) = (BTreeSet::new(), BTreeSet::new());
    for attested in [false, true] {
        (native["provenance"], native["sbom"]) = (json!(attested), json!(attested));
        for _ in 0..3 {
            let app = built(&harness, native.clone()).await;
            let text = |field: &str| app[field].as_str().unwrap_or_else(|| panic!("{field}: {app:#}")).to_owned();
            assert_eq!(registry::image_digest(&reference).await, Some(text("image_digest")));
            let attestations = registry::attestations(&reference).await;
            assert_eq!(attestations.contains("https://slsa.dev/provenance/"), attested, "{attestations}");
            assert_eq!(attestations.contains("https://spdx.dev/Document"), attested, "{attestations}");
            digests.insert((attested, text("digest")));
            images.insert((attested, text("image_digest")));
        }
    }
    let n = |set: &BTreeSet<(bool, String)>| [false, true].map(|is| set.iter().filter(|(it, _)| *it == is).count());
    assert_eq!((n(&digests), n(&images)), ([1, 3], [1, 1]), "{digests:#?} {images:#?}");
    assert_eq!(digests.first(), images.first(), "without attestations, the image is all that is pushed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_of_several_platforms_are_known_by_their_platforms() {
    let mut harness = Harness::open();
    emulating(&mut harness);
    let sha = harness.commit("shop", &[("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /x\n")]);
    let _worker = harness.worker("");
    let reference = harness.reference("app", &sha);
    let mut image = harness.image("app", &sha);
    for (platforms, attested) in [
        (json!(["linux/amd64", "linux/arm64"]), false),
        (json!(["linux/arm64", "linux/amd64"]), true),
        (json!(["linux/arm64"]), true),
    ] {
        (image["platforms"], image["provenance"]) = (platforms.clone(), json!(attested));
        let app = built(&harness, harness.native("shop", &sha, std::slice::from_ref(&image))).await;
        let served = registry::images(&reference).await;
        let expected = match platforms.as_array().unwrap().len() {
            1 => served["linux/arm64"].clone(),
            _ => served,
        };
        assert_eq!(app["image_digest"], expected, "{platforms} {attested}: {app:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_tag_that_has_the_image_is_a_success_and_one_that_has_another_is_not() {
    let harness = Harness::open();
    let registry = Registry::start();
    let base = harness.dockerfile("RUN echo base > /base");
    let app = "FROM base\nRUN echo app > /app\n";
    let sha = harness.commit("shop", &[("base/Dockerfile", &base), ("app/Dockerfile", app)]);
    let _worker = harness.worker("");
    let tag = |name: &str, tag: &str| format!("{}/{}/{name}:{tag}", registry.address(), harness.nonce);
    let base = json!({"name": "base", "context": "./base", "tags": [tag("base", "1"), tag("base", "v1")]});
    let app =
        json!({"name": "app", "context": "./app", "tags": [tag("app", "1")], "contexts": {"base": "target:base"}});
    let alone = |provenance: bool| {
        let mut native = harness.native("shop", &sha, std::slice::from_ref(&base));
        native["provenance"] = json!(provenance);
        native
    };
    built(&harness, alone(true)).await;
    registry.make_tags_immutable();

    // A new attestation makes a new index of the same image; the other target needs it, and has not been pushed yet.
    let mut both = harness.native("shop", &sha, &[base.clone(), app]);
    both["provenance"] = json!(true);
    let report = harness.build(both).await;
    assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
    let known = built(&harness, alone(true)).await;
    for name in ["base", "app"] {
        assert_eq!(target(&report, name)["status"], "succeeded", "{report:#}");
        assert!(target(&report, name)["digest"].is_string(), "{report:#}");
    }
    assert_eq!(target(&report, "base")["image_digest"], known["image_digest"]);
    let notice = "the registry refused to push base again; its tags already have this image";
    assert_eq!(report["notices"], json!([notice]));

    // Another image.
    let other = harness.commit("shop", &[("base/Dockerfile", &harness.dockerfile("RUN echo other > /base"))]);
    let mut native = alone(true);
    native["sha"] = json!(other);
    let report = harness.build(native).await;
    assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!("registry_rejected")), "{report:#}");
    // One of two tags is new, and was not pushed.
    let mut tags = base.clone();
    tags["tags"] = json!([tag("base", "1"), tag("base", "v2")]);
    let mut native = harness.native("shop", &sha, &[tags]);
    native["provenance"] = json!(true);
    let report = harness.build(native).await;
    assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!("registry_rejected")), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failed_target_names_the_line_of_its_step() {
    let harness = Harness::open();
    let web = harness.dockerfile("RUN true\n\nRUN sleep 1; \\\n  echo web; \\\n  exit 3");
    let api = format!(
        "FROM {0} AS tools\nRUN true\n{1}RUN sleep 1; exit 4\n",
        harness.engine.base_image,
        harness.dockerfile("")
    );
    let sha = harness.commit("shop", &[("web/Dockerfile", &web), ("api/Dockerfile", &api)]);
    let _worker = harness.worker("");

    let images = ["web", "api"].map(|name| harness.image(name, &sha));
    let report = harness.build(harness.native("shop", &sha, &images)).await;

    let failed: Vec<(&str, &Value)> = ["web", "api"]
        .map(|name| (name, &target(&report, name)["failed_step"]))
        .into_iter()
        .filter(|(_, step)| !step.is_null())
        .collect();
    assert!(!failed.is_empty(), "{report:#}");
    for (name, step) in failed {
        let line = if name == "web" { 5 } else { 6 };
        assert_eq!(step["line"], json!(line), "{name}: {report:#}");
    }
}
