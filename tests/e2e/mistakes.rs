//! Mistakes of a customer that are known before BuildKit builds, and text that must reach it as it was written.

use serde_json::{Value, json};

use crate::harness::{Harness, target};
use crate::registry;

/// The build request of a file in the repository, for its target `web`.
fn of_file(harness: &Harness, sha: &str, field: &str, file: &str) -> Value {
    let mut native = harness.native("shop", sha, &[]);
    native.as_object_mut().unwrap().remove("application");
    native[field] = json!(file);
    native["tags"] = json!({"web": [harness.reference("web", sha)]});
    native
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_is_refused_by_name_before_anything_is_built() {
    let harness = Harness::open();
    let fine = harness.dockerfile("COPY . /srv");
    let latin = [fine.as_bytes(), b"R\xc9N true\n"].concat();
    let utf16: Vec<u8> = fine.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let long = format!("{fine}RUN [\"true\", \"{}\"]\n", "x\\\n".repeat(500_000));
    let sha = harness.commit_with(
        "shop",
        &[
            world::File::new("web/Dockerfile", fine.as_str()),
            world::File::new("web/Latin", latin),
            world::File::new("web/Utf16", utf16),
            world::File::new("web/Long", long),
            world::File::new("compose.yml", "services: {web: {build: ./Web, image: Acme/Web:1}}\n"),
            world::File::new("hosts.yml", "services: {web: {build: {context: web, extra_hosts: [\"db:other\"]}}}\n"),
        ],
    );
    let _worker = harness.worker("builders.far = { driver = \"remote\", endpoint = \"tcp://127.0.0.1:9\" }");
    let image = |fields: Value| {
        let mut image = harness.image("web", &sha);
        image.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        harness.native("shop", &sha, &[image])
    };
    let mut of_job = of_file(&harness, &sha, "compose", "hosts.yml");
    of_job["tags"]["web"] = json!(["r.example/x:ä"]);
    let mut far = image(json!({"extra_hosts": {"db": "host-gateway"}}));
    far["builder"] = json!("far");
    let definition = json!({"target": {"web": {"context": "web", "tags": ["r.example/Web:1"]}}});
    for (native, reason, words) in [
        (image(json!({"tags": ["r.example/Acme/web:V1"]})), "invalid_arguments", "write \"r.example/acme/web:V1\""),
        (of_job, "invalid_arguments", "tags.web[0]: \"r.example/x:ä\" has an invalid tag"),
        (
            harness.inline("shop", &sha, definition, "web"),
            "definition_invalid",
            "target.web.tags[0]: \"r.example/Web:1\"",
        ),
        (image(json!({"cache_from": ["type=registry,ref=r.example/Web"]})), "definition_invalid", "cache-from[0]"),
        (of_file(&harness, &sha, "compose", "hosts.yml"), "definition_invalid", "write the address of db"),
        (far, "definition_invalid", "host-gateway is not known on this builder"),
        (of_file(&harness, &sha, "compose", "compose.yml"), "context_not_found", "but \"web\" is"),
        (image(json!({"dockerfile": "dockerfile"})), "dockerfile_not_found", "but \"web/Dockerfile\" is"),
        (image(json!({"dockerfile": "Latin"})), "dockerfile_invalid", "line 4 is not UTF-8"),
        (image(json!({"dockerfile": "Utf16"})), "dockerfile_invalid", "line 1 is UTF-16"),
        (image(json!({"dockerfile": "Long"})), "dockerfile_invalid", "in the instruction of line 4); at most 524288"),
    ] {
        let report = harness.build(native).await;
        assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!(reason)), "{report:#}");
        assert!(report["message"].as_str().unwrap().contains(words), "{words}: {report:#}");
    }
    harness.nothing_is_left().await;
    assert!(harness.redis.sorted_set("retry").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_the_ignore_file_that_excludes_a_copied_file_is_named() {
    let harness = Harness::open();
    let copy = |what: &str| harness.dockerfile(&format!("COPY {what} /app"));
    let sha = harness.commit(
        "shop",
        &[
            ("web/Dockerfile", &copy("dist")),
            ("web/.dockerignore", "# built\nnode_modules\ndist\n"),
            ("web/dist/a.js", "x"),
            ("api/exec", &copy("dist/a.js")),
            ("api/exec.dockerignore", "**/*.js\n"),
            ("api/dist/a.js", "x"),
            ("pages/Dockerfile", &copy("dist/*.js")),
            ("pages/.dockerignore", "dist\n"),
            ("pages/dist/a.js", "x"),
            ("docs/Dockerfile", &copy("dist")),
            ("docs/.dockerignore", "dist\n"),
        ],
    );
    let _worker = harness.worker("");
    for (name, dockerfile, words) in [
        ("web", "Dockerfile", "The repository has dist, but line 3 of web/.dockerignore excludes it"),
        ("api", "exec", "The repository has dist/a.js, but line 1 of api/exec.dockerignore excludes it"),
        ("pages", "Dockerfile", "The repository has dist, but line 1 of pages/.dockerignore excludes it"),
        ("docs", "Dockerfile", "/dist"),
    ] {
        let mut image = harness.image(name, &sha);
        image["dockerfile"] = json!(dockerfile);
        let report = harness.build(harness.native("shop", &sha, &[image])).await;
        assert_eq!(report["reason"], "file_not_found", "{report:#}");
        let message = report["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert_eq!(message.contains("excludes"), name != "docs", "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_the_ignore_file_that_is_not_a_pattern_is_named() {
    let harness = Harness::open();
    let copy = harness.dockerfile("COPY . /app");
    let sha = harness.commit("shop", &[("web/Dockerfile", &copy), ("web/.dockerignore", "# logs\n*.log\n[a\n")]);
    let _worker = harness.worker("");
    let report = harness.build(harness.native("shop", &sha, &[harness.image("web", &sha)])).await;
    assert_eq!(report["reason"], "dockerfile_invalid", "{report:#}");
    assert!(
        report["message"].as_str().unwrap().ends_with("line 3 of web/.dockerignore is not a pattern"),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_not_there_yet_does_not_fail_a_pushed_image() {
    let harness = Harness::open();
    let fine = harness.dockerfile("COPY . /srv");
    let broken = harness.dockerfile("RUN sleep 4 && false");
    let sha = harness.commit("shop", &[("web/Dockerfile", &fine), ("broken/Dockerfile", &broken)]);
    let _worker = harness.worker("");
    let image = |name: &str| {
        let mut image = harness.image(name, &sha);
        image["cache_from"] = json!([format!("type=registry,ref={}", harness.reference("cache", name))]);
        image
    };
    let report = harness.build(harness.native("shop", &sha, &[image("web"), image("broken")])).await;
    assert_eq!(report["reason"], "step_failed", "{report:#}");
    let web = target(&report, "web");
    let served = registry::digest(&harness.reference("web", &sha)).await;
    assert_eq!((&web["status"], &web["digest"], &web["error"]), (&json!("succeeded"), &json!(served), &Value::Null));
}

/// Decomposed, and a sign that NFC replaces by a letter.
const TEXT: &str = "cafe\u{301} \u{2126}";

#[tokio::test(flavor = "multi_thread")]
async fn text_that_unicode_normalizes_reaches_the_image_as_it_was_written() {
    let harness = Harness::open();
    let inline = harness.dockerfile(&format!("ARG A\nCOPY page /srv/page\nRUN printf %s \"$A {TEXT}\" > /srv/text"));
    let folder = "we\u{301}b";
    let service = json!({"build": {
        "context": folder, "dockerfile_inline": inline.replace('$', "$$"),
        "args": {"A": TEXT}, "labels": {"text": TEXT, TEXT: "x"},
    }});
    let file = format!("Dockerfile.{TEXT}");
    let named = json!({"build": {"context": folder, "dockerfile": file}});
    let sha = harness.commit(
        "shop",
        &[
            ("compose.yml", &json!({"services": {"web": service}}).to_string()),
            ("named.yml", &json!({"services": {"web": named}}).to_string()),
            (&format!("{folder}/page"), "hello\n"),
            (&format!("{folder}/{file}"), &harness.dockerfile("COPY page /srv/page")),
        ],
    );
    let _worker = harness.worker("");
    let mut image = json!({"name": "web", "context": folder, "dockerfile_inline": inline, "args": {"A": TEXT},
        "labels": {"text": TEXT, TEXT: "x"}, "tags": [harness.reference("web", &sha)]});
    let template = harness.native("shop", &sha, &[image.clone()]);
    // buildx resolves the template first.
    image["cache_from"] = json!([format!("type=registry,ref={}", harness.reference("cache", "web"))]);
    let resolved = harness.native("shop", &sha, &[image]);
    for native in [of_file(&harness, &sha, "compose", "compose.yml"), template, resolved] {
        let report = harness.build(native).await;
        assert_eq!(report["status"], "succeeded", "{report:#}");
        let reference = harness.reference("web", &sha);
        assert_eq!(registry::file(&reference, "srv/page").await.as_deref(), Some("hello\n"));
        assert_eq!(registry::file(&reference, "srv/text").await, Some(format!("{TEXT} {TEXT}")));
        let labels = &registry::config(&reference).await["config"]["Labels"];
        assert_eq!((&labels["text"], &labels[TEXT]), (&json!(TEXT), &json!("x")), "{labels:#}");
    }
    let report = harness.build(of_file(&harness, &sha, "compose", "named.yml")).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
}
