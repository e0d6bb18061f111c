//! A builder's own platform, and the others.

use serde_json::{Value, json};

use crate::harness::{Harness, target};
use crate::registry;

/// The engine's platform, and one that it would have to emulate.
const OWN: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
const OTHER: &str = if cfg!(target_arch = "aarch64") { "linux/amd64" } else { "linux/arm64" };

fn image(harness: &Harness, name: &str, sha: &str, platforms: Value) -> Value {
    let mut image = harness.image(name, sha);
    image["platforms"] = platforms;
    image
}

/// A builder that may emulate.
pub fn emulating(harness: &mut Harness) {
    harness.builders = harness.engine.builder().replace(" }", ", emulation = true }");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_the_builder_would_emulate_is_refused_by_name_before_anything_is_built() {
    let harness = Harness::open();
    let sha = harness.commit("shop", &[("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /x\n")]);
    let _worker = harness.worker("");
    let own = image(&harness, "app", &sha, json!([OWN]));
    let report = harness.build(harness.native("shop", &sha, std::slice::from_ref(&own))).await;
    assert_eq!((&report["status"], &report["notices"]), (&json!("succeeded"), &json!([])), "{report:#}");

    let other = image(&harness, "app", "other", json!([OWN, OTHER]));
    let report = harness.build(harness.native("shop", &sha, std::slice::from_ref(&other))).await;
    assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!("policy_refused")), "{report:#}");
    let message = report["message"].as_str().unwrap();
    let expected = format!(
        "target.app.platforms: {OTHER} is not allowed: the builder default runs on {OWN} and does not emulate others"
    );
    assert!(message.contains(&expected), "{message}");
    assert_eq!(registry::digest(&harness.reference("app", "other")).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_for_another_platform_fails_before_anything_is_built() {
    let mut harness = Harness::open();
    emulating(&mut harness);
    let base = &harness.engine.base_image;
    let foreign = format!("ARG BASE={base}\nFROM scratch AS other\nFROM $BASE AS tools\nFROM tools\nCOPY x /\n");
    let tools = format!("FROM --platform={OWN} {base} AS tools\nFROM scratch\nCOPY --from=tools /bin/sh /sh\n");
    let files =
        [("foreign/Dockerfile", &*foreign), ("foreign/x", "x"), ("tools/Dockerfile", &*tools), ("tools/x", "x")];
    let sha = harness.commit("shop", &files);
    let _worker = harness.worker("");
    let images = [image(&harness, "foreign", &sha, json!([OTHER])), image(&harness, "tools", &sha, json!([OTHER]))];
    let report = harness.build(harness.native("shop", &sha, &images)).await;
    assert_eq!(report["reason"], "base_image_not_found", "{report:#}");
    let message = report["message"].as_str().unwrap();
    let expected = format!("the base image {base} (foreign/Dockerfile:3) is for {OWN}, not for {OTHER}");
    assert!(message.contains(&expected), "{message}");
    assert_eq!(registry::digest(&harness.reference("tools", &sha)).await, None);

    let report = harness.build(harness.native("shop", &sha, &images[1..])).await;
    assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
    let notice = format!("target.tools.platforms: {OTHER} is emulated: the builder default runs on {OWN}");
    assert_eq!(report["notices"], json!([notice]));
    assert_eq!(target(&report, "tools")["tags"], json!([harness.reference("tools", &sha)]));
}
