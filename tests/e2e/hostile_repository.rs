//! Repositories of an enemy: files that run programs, send the worker places, and lie. Judged by the harm, which a control run
//! shows to be real.

use serde_json::{Value, json};

use crate::house::{House, target};
use crate::registry;

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
