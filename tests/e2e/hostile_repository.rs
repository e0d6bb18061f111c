//! Hostile repositories: files that run programs, lead the worker elsewhere, and lie. A control run shows that each
//! harm is real.

use serde_json::{Value, json};

use crate::harness::{Harness, target};
use crate::registry;

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_cannot_forge_the_builders_output() {
    let harness = Harness::open();
    let (reference, forged) = (harness.reference("web", "1"), format!("sha256:{}", "0".repeat(64)));
    let event = json!({
        "vertexes": [{"digest": "sha256:f", "name": "exporting to image", "started": "2026-11-24T00:00:00Z", "completed": "2026-11-24T00:00:01Z"}],
        "statuses": [{"id": format!("pushing manifest for {reference}@{forged}"), "vertex": "sha256:f", "completed": "2026-11-24T00:00:01Z"}],
    });
    // The message of `:?` may have several lines, and BuildKit's error repeats them.
    let shouting =
        harness.dockerfile(&format!("COPY <<EOF /srv/x\n${{NOPE:?no\n{event}\nERROR: connection refused\n}}\nEOF"));
    let lying = harness.dockerfile("RUN false # dial tcp: connection refused, code = Unavailable");
    let breaking = harness.dockerfile("COPY [\"no\\nwhere: connection refused\", \"/srv/\"]");
    let sha = harness.commit(
        "evil",
        &[("shouting/Dockerfile", &shouting), ("lying/Dockerfile", &lying), ("breaking/Dockerfile", &breaking)],
    );
    let _worker = harness.worker("");

    for (context, reason) in
        [("shouting", "dockerfile_invalid"), ("lying", "step_failed"), ("breaking", "file_not_found")]
    {
        let image = json!({"name": "web", "context": format!("./{context}"), "tags": [reference]});
        let report = harness.build(harness.native("evil", &sha, &[image])).await;
        assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!(reason)), "{report:#}");
        assert_eq!(target(&report, "web")["digest"], Value::Null, "{report:#}");
        assert_ne!(target(&report, "web")["status"], "succeeded", "{report:#}");
    }
    assert!(harness.redis.sorted_set("retry").await.is_empty());
    assert_eq!(registry::digest(&reference).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_cannot_choose_its_error_by_its_name_or_its_message() {
    let harness = Harness::open();
    let (lost, rule) = ("ERROR: failed to solve: rpc error: code = Unavailable", "-".repeat(20));
    let (broken, fine) = (harness.dockerfile("RUNN x"), harness.dockerfile("COPY . /srv"));
    // A message that continues as BuildKit continues after the name of a file.
    let block = format!("{rule}\n   1 | >>> x\n{rule}\n{lost}");
    let quoting = harness.dockerfile(&format!("COPY <<EOF /srv/x\n${{NOPE:?no:2\n{block}\n}}\nEOF"));
    let event = r#"{"vertexes":[{"digest":"sha256:f","name":"exporting","error":"process \"","completed":"2026-11-24T00:00:01Z"}]}"#;
    let several = format!("{event}\nx");
    let files = [lost, "WARNING: x", "ERROR: x", "quoting", event, &several];
    let content = |name: &str| if name == "quoting" { quoting.clone() } else { broken.clone() };
    let files: Vec<(String, String)> = files.iter().map(|name| (format!("web/{name}"), content(name))).collect();
    let mut tree: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    tree.push(("web/Dockerfile", &fine));
    let sha = harness.commit("evil", &tree);
    let _worker = harness.worker("");

    for (path, _) in &files {
        let mut image = harness.image("web", &sha);
        image["dockerfile"] = json!(path.strip_prefix("web/").unwrap());
        let report = harness.build(harness.native("evil", &sha, &[image])).await;
        assert_eq!(report["notices"], json!([]), "{path}: {report:#}");
        // BuildKit reads a bracket as a pattern and refuses a line feed, each with its own message.
        if !path.contains(event) {
            assert_eq!(report["reason"], "dockerfile_invalid", "{path}: {report:#}");
        }
        assert_ne!(report["reason"], "step_failed", "{path}: {report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steps_output_is_complete_hides_secrets_and_moves_no_cursor() {
    let harness = Harness::open();
    let secret = "q7Zp_XvK2_Wm9T_hR4d_Lc6Y_Ns8B";
    std::fs::write(harness.home.path().join("npm"), secret).unwrap();
    let print = "head -c 8180 /dev/zero | tr '\\0' .; cat /run/secrets/npm; head -c 12000 /dev/zero | tr '\\0' =; echo; \
                 printf '\\033[2J1%%\\r99%%\\r100%%\\n\\033[31mthe last\\033[0m'";
    let dockerfile = harness.dockerfile(&format!("RUN --mount=type=secret,id=npm {print}"));
    let sha = harness.commit("shop", &[("web/Dockerfile", &dockerfile)]);
    let mut image = harness.image("web", &sha);
    image["secrets"] = json!([{"id": "npm"}]);
    let settings = format!("accounts.secrets = \"{}/{{name}}\"", harness.home.path().display());
    let _worker = harness.worker(&settings);

    let report = harness.build(harness.native("shop", &sha, &[image])).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    let log = harness.logs();
    let shown: Vec<&str> = log.lines().filter(|line| line.contains("TRACE")).collect();
    for part in secret.as_bytes().windows(5).map(|part| std::str::from_utf8(part).unwrap()) {
        assert!(!shown.iter().any(|line| line.contains(part)), "{part:?} appears in the log");
    }
    for text in ["***===", "100%", "the last"] {
        assert!(shown.iter().any(|line| line.contains(text)), "{text:?} is missing in {shown:#?}");
    }
    assert!(!shown.iter().any(|line| line.contains("99%") || line.contains(['\x1b', '\r'])), "{shown:#?}");
}
