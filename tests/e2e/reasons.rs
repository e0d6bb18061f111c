//! Whose fault a failed build is, provoked on the real builder: steps, stages, frontends, and registries that refuse or break.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use world::{Content, File, Registry};

use crate::harness::{Harness, target};

/// Enqueues one build for each context, all at once, and returns each report: `retrying` or `finished`.
async fn reports(harness: &Harness, sha: &str, images: &[Value]) -> Vec<Value> {
    let mut jids = Vec::new();
    for image in images {
        let mut native = harness.native("shop", sha, std::slice::from_ref(image));
        native["callback"]["on"] = json!(["retrying", "finished"]);
        jids.push(harness.redis.push("default", "BuildJob", json!([native])).await);
    }
    let find = async |jid: &str| harness.reports().await.into_iter().find(|report| report["jid"] == jid);
    let mut found = Vec::new();
    for jid in jids {
        harness.until(&format!("{jid} reports"), async || find(&jid).await.is_some()).await;
        found.push(find(&jid).await.unwrap());
    }
    found
}

/// An image that is pushed to a registry of the test's own.
fn pushed_to(registry: &Registry, name: &str) -> Value {
    json!({"name": name, "context": "./web", "tags": [format!("{}/{name}/web:1", registry.address())]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registrys_answer_to_a_push_says_whose_fault_it_is() {
    let harness = Harness::open();
    let registry = Registry::start();
    let answers = [
        (400, "registry_rejected", "finished"),
        (404, "registry_rejected", "finished"),
        (405, "registry_rejected", "finished"),
        (412, "registry_rejected", "finished"),
        (413, "registry_rejected", "finished"),
        (415, "registry_rejected", "finished"),
        (403, "registry_denied", "retrying"),
        (429, "registry_rate_limited", "retrying"),
        (500, "registry_unavailable", "retrying"),
    ];
    for (status, ..) in answers {
        let body = json!({"errors": [{"code": "TAG_INVALID", "message": "503 connection refused"}]}).to_string();
        let prefix = format!("PUT /v2/s{status}/web/manifests/");
        registry.faults().fail_next(&prefix, u32::MAX, status, &[("content-type", "application/json")], &body);
    }
    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("COPY . /srv"))]);
    let _worker = harness.worker("");

    let images = answers.map(|(status, ..)| pushed_to(&registry, &format!("s{status}")));
    let found = reports(&harness, &sha, &images).await;

    for ((status, reason, moment), report) in answers.iter().zip(&found) {
        assert_eq!((&report["reason"], &report["moment"]), (&json!(reason), &json!(moment)), "{status}: {report:#}");
        assert!(report["message"].as_str().unwrap().contains(&status.to_string()), "{status}: {report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_that_arrives_broken_is_the_registrys_fault_and_a_refused_one_the_customers() {
    let harness = Harness::open();
    let registry = Registry::start();
    let later = "toomanyrequests: retry-after: 600, allowed: 1/hour";
    let cases = [
        ("whole", Content::Whole, None, ""),
        ("truncated", Content::Truncated, None, "registry_unavailable"),
        ("other", Content::OtherLayer, None, "registry_unavailable"),
        ("page", Content::Page, None, "registry_unavailable"),
        ("limited", Content::Whole, Some((429, "blobs/")), "registry_rate_limited"),
        ("layer", Content::Whole, Some((429, "the layer")), "registry_rate_limited"),
        ("down", Content::Whole, Some((503, "manifests/")), "registry_unavailable"),
        ("proxy", Content::Whole, Some((407, "manifests/")), "registry_unavailable"),
        ("denied", Content::Whole, Some((403, "manifests/")), "base_image_denied"),
        ("chart", Content::Chart, None, "base_image_not_found"),
        ("arch", Content::OtherPlatform, None, "base_image_not_found"),
        ("odd", Content::Whole, Some((400, "manifests/")), "registry_rejected"),
    ];
    let mut files = Vec::new();
    for (name, content, fault, _) in cases {
        let name = format!("{name}-{}", harness.nonce);
        let image = registry.serve(&name, content);
        files.push(format!("FROM {}\nCOPY Dockerfile /x\n", image.reference));
        let Some((status, part)) = fault else { continue };
        let path = if part == "the layer" { image.layer_path } else { format!("/v2/{name}/{part}") };
        let body = json!({"errors": [{"code": "TOOMANYREQUESTS", "message": later}]}).to_string();
        for method in ["GET", "HEAD"] {
            let headers = [("content-type", "application/json")];
            registry.faults().fail_next(&format!("{method} {path}"), u32::MAX, status, &headers, &body);
        }
    }
    let files: Vec<(String, &str)> =
        cases.iter().zip(&files).map(|((name, ..), text)| (format!("{name}/Dockerfile"), text.as_str())).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    let sha = harness.commit("shop", &files);
    let _worker = harness.worker("");

    let images: Vec<Value> = cases.iter().map(|(name, ..)| harness.image(name, &sha)).collect();
    let found = reports(&harness, &sha, &images).await;

    for ((name, _, _, reason), report) in cases.iter().zip(&found) {
        let expected = if reason.is_empty() { json!(null) } else { json!(reason) };
        assert_eq!(report["reason"], expected, "{name}: {report:#}");
        let is_customers = ["", "base_image_denied", "base_image_not_found", "registry_rejected"].contains(reason);
        assert_eq!(report["moment"] == "finished", is_customers, "{name}: {report:#}");
    }
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    for report in found.iter().filter(|report| report["reason"] == "registry_rate_limited") {
        let jid = report["jid"].as_str().unwrap();
        let retries = harness.redis.sorted_set("retry").await;
        let (_, retry_at_s) = retries.iter().find(|(job, _)| job.contains(jid)).expect("it is retried");
        assert!(*retry_at_s > now_s + 400.0, "the registry asked for 600 s: {}", retry_at_s - now_s);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_of_a_step_is_the_customers() {
    let harness = Harness::open();
    let base = &harness.engine.base_image;
    let (registry, nonce) = (&harness.engine.registry, &harness.nonce);
    let step = |text: &str| harness.dockerfile(text);
    let mistakes = [
        ("workdir", step("RUN touch /f\nWORKDIR /f"), "step_failed", "WORKDIR /f"),
        ("into", step("RUN touch /f\nCOPY Dockerfile /f/"), "step_failed", "COPY Dockerfile /f/"),
        ("loop", step("RUN ln -s /w /w\nWORKDIR /w/x"), "step_failed", "WORKDIR /w/x"),
        ("archive", step("ADD a.tar /x"), "step_failed", "ADD a.tar /x"),
        ("from", step(&format!("COPY --from={base} /missing /x")), "file_not_found", "lstat /missing: no such file"),
        ("dist", step("COPY dist /x"), "file_not_found", "`COPY dist /x` (dist/Dockerfile:3): \"/dist\": not found"),
        ("etc", step("COPY /etc/passwd /x"), "file_not_found", "failed to walk /etc: lstat /etc: no such file"),
        (
            "case",
            step("COPY readme.md /x"),
            "file_not_found",
            "\"/readme.md\": not found. The repository has case/README.md",
        ),
        (
            "mount",
            step(&format!("RUN --mount=type=bind,from={base},source=/nope,target=/p cat /p")),
            "file_not_found",
            "(mount/Dockerfile:3): open /nope: no such file or directory",
        ),
        (
            "cache",
            step(&format!("RUN --mount=type=cache,from={base},source=/nope,target=/c ls /c")),
            "file_not_found",
            "(cache/Dockerfile:3): open /nope: no such file or directory",
        ),
        (
            "stagedir",
            format!(
                "FROM {base} AS build\nRUN touch /x\nFROM {base}\nRUN --mount=from=build,source=/dist,target=/d ls /d\n"
            ),
            "file_not_found",
            "(stagedir/Dockerfile:4): \"/dist\": not found",
        ),
        (
            "fetch",
            step(&format!("ADD http://{registry}/nothing /x")),
            "step_failed",
            "(fetch/Dockerfile:3): invalid response status 404",
        ),
        (
            "shell",
            step("SHELL [\"/bin/bash\", \"-c\"]\nRUN true"),
            "step_failed",
            "stat /bin/bash: no such file or directory",
        ),
        (
            "long",
            step(&format!("RUN {}false", "echo step && ".repeat(400))),
            "step_failed",
            "(long/Dockerfile:3) exited with 1",
        ),
        (
            "git",
            step(&format!("ADD http://{registry}/x.git /x")),
            "step_failed",
            "not found; fatal: repository 'http://",
        ),
        ("brackets", step("COPY [a-z /x"), "dockerfile_invalid", "brackets/Dockerfile: invalid includepatterns: "),
        ("flag", step("COPY --nope a /x"), "dockerfile_invalid", "flag/Dockerfile:3: unknown flag: nope"),
        ("heredoc", step("COPY <<EOF /x\nhello"), "dockerfile_invalid", "heredoc/Dockerfile:3: unterminated heredoc"),
        ("ssh", step("RUN --mount=type=ssh,required=true true"), "step_failed", "builds get no SSH agent"),
        (
            "sum",
            step(&format!("ADD --checksum=sha256:{} http://{registry}/v2/ /x", "0".repeat(64))),
            "step_failed",
            "digest mismatch",
        ),
        ("killed", step("RUN exit 137"), "out_of_memory", " exited with 137"),
        ("syntax", format!("# syntax={registry}/{nonce}/nothing:1\n{}", step("")), "frontend_not_found", "nothing:1"),
        ("program", format!("# syntax={base}\n{}", step("")), "frontend_not_found", "exit code"),
        ("host", format!("FROM {nonce}.invalid/x:1\n"), "base_image_not_found", "no registry is called"),
        (
            "stage",
            format!("FROM {base} AS build\nRUN touch /x\nFROM {base}\nCOPY --from=biuld /x /x\n"),
            "base_image_not_found",
            "did you mean build?",
        ),
        // What customers write imitates a cause of the infrastructure.
        (
            "words",
            step("RUN echo 'x: no space left on device' >&2; exit 1 # exit code: 137"),
            "step_failed",
            " exited with 1: `x: no space left on device`",
        ),
        ("link", step("COPY [\"x: no space left on device\", \"/x\"]"), "step_failed", "too many symlinks"),
    ];
    let utf16 = ("utf16", String::new(), "dockerfile_invalid", "UTF-8");
    let mut files = vec![File::new(
        "utf16/Dockerfile",
        "\u{feff}FROM x\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>(),
    )];
    for (name, text, ..) in &mistakes {
        files.push(File::new(&format!("{name}/Dockerfile"), text.as_str()));
    }
    files.push(File::new("archive/a.tar", &world::tar("a")[..2048]));
    files.push(File::new("case/README.md", "x"));
    files.push(File::symlink("link/x: no space left on device", "x: no space left on device"));
    let sha = harness.commit_with("shop", &files);
    let _worker = harness.worker("");

    let mistakes: Vec<_> = mistakes.into_iter().chain([utf16]).collect();
    let images: Vec<Value> = mistakes.iter().map(|(name, ..)| harness.image(name, &sha)).collect();
    let found = reports(&harness, &sha, &images).await;

    for ((name, _, reason, words), report) in mistakes.iter().zip(&found) {
        assert_eq!((&report["reason"], &report["moment"]), (&json!(reason), &json!("finished")), "{name}: {report:#}");
        let message = report["message"].as_str().unwrap();
        assert!(message.contains(words), "{name}: {message}");
        for noise in ["buildkit", "of ref ", "failed to solve", "[internal]"] {
            assert!(!message.contains(noise), "{name}: {message}");
        }
    }
    harness.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_target_that_does_not_parse_has_failed() {
    let harness = Harness::open();
    let fine = harness.dockerfile("RUN sleep 3");
    let broken = harness.dockerfile("RUNN x");
    let sha =
        harness.commit("shop", &[("web/Dockerfile", &fine), ("api/Dockerfile", &broken), ("jobs/Dockerfile", &fine)]);
    let _worker = harness.worker("");

    let images = ["web", "api", "jobs"].map(|name| harness.image(name, &sha));
    let report = harness.build(harness.native("shop", &sha, &images)).await;

    assert_eq!(report["reason"], "dockerfile_invalid", "{report:#}");
    assert_eq!(target(&report, "api")["status"], "failed", "{report:#}");
    assert!(target(&report, "api")["error"].as_str().unwrap().contains("RUNN"), "{report:#}");
    for name in ["web", "jobs"] {
        assert_ne!(target(&report, name)["status"], "failed", "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_is_away_fails_no_target() {
    let harness = Harness::open();
    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("COPY . /srv"))]);
    let _worker = harness.worker("builders.gone = { driver = \"remote\", endpoint = \"tcp://127.0.0.1:9\" }");
    let mut native = harness.native("shop", &sha, &[harness.image("web", &sha)]);
    (native["builder"], native["callback"]["on"]) = (json!("gone"), json!(["retrying"]));

    harness.redis.push("default", "BuildJob", json!([native])).await;

    harness.until("the attempt ends", async || !harness.reports().await.is_empty()).await;
    let report = harness.reports().await.remove(0);
    assert_eq!(report["reason"], "builder_unavailable", "{report:#}");
    let targets = report["targets"].as_array().unwrap();
    assert!(targets.iter().all(|target| target["status"] != "failed"), "{report:#}");
}
