//! Builds that fail: the reason, message and retry for each mistake on the real builder.

use std::net::TcpListener;

use serde_json::json;

use crate::harness::{Harness, target};
use crate::registry;

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_step_is_named_and_its_siblings_are_reported() {
    let harness = Harness::open();
    let fine = harness.dockerfile("COPY . /srv");
    // The build pushes the siblings before this step fails.
    let broken = harness.dockerfile("COPY . /srv\nRUN sleep 4 && echo no such flavour >&2 && exit 3");
    let sha =
        harness.commit("shop", &[("web/Dockerfile", &fine), ("api/Dockerfile", &fine), ("broken/Dockerfile", &broken)]);
    let _worker = harness.worker("");

    let images = ["web", "api", "broken"].map(|name| harness.image(name, &sha));
    let report = harness.build(harness.native("shop", &sha, &images)).await;

    assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!("step_failed")), "{report:#}");
    let message = report["message"].as_str().unwrap();
    assert_eq!(
        message,
        "Step 3/3 of `broken` failed: `RUN sleep 4 && echo no such flavour >&2 && exit 3` (broken/Dockerfile:4) \
         exited with 3: `no such flavour`"
    );
    let broken = target(&report, "broken");
    assert_eq!((&broken["status"], &broken["digest"]), (&json!("failed"), &json!(null)));
    assert_eq!(broken["error"], "exited with 3: `no such flavour`");
    assert_eq!(broken["log_tail"], "no such flavour");
    assert_eq!(
        broken["failed_step"],
        json!({"number": 3, "total": 3, "stage": null, "exit_code": 3, "line": 4, "dockerfile": "broken/Dockerfile",
            "instruction": "RUN sleep 4 && echo no such flavour >&2 && exit 3"})
    );
    assert_eq!(registry::digest(&harness.reference("broken", &sha)).await, None);
    for name in ["web", "api"] {
        let served = registry::digest(&harness.reference(name, &sha)).await.expect("the registry has the sibling");
        assert_eq!(
            (&target(&report, name)["status"], &target(&report, name)["digest"]),
            (&json!("succeeded"), &json!(served)),
            "{report:#}"
        );
    }
    harness.nothing_is_left().await;
    assert!(harness.redis.sorted_set("retry").await.is_empty(), "sidebake does not retry a customer's mistake");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_has_its_reason_and_is_not_retried() {
    let harness = Harness::open();
    let (registry, nonce) = (&harness.engine.registry, &harness.nonce);
    // The context, its Dockerfile, the reason, and the text that the message must contain.
    let mistakes = [
        (
            "syntax",
            harness.dockerfile("RUNN echo hello"),
            "dockerfile_invalid",
            "syntax/Dockerfile:3: unknown instruction: RUNN",
        ),
        ("copy", harness.dockerfile("COPY nowhere.txt /srv/"), "file_not_found", "nowhere.txt"),
        (
            "base",
            format!("FROM {registry}/{nonce}/nothing:1"),
            "base_image_not_found",
            "nothing:1` of `base` (base/Dockerfile:1): not found",
        ),
        // A reference that resembles a registry's error.
        ("limit", format!("FROM {registry}/{nonce}/toomanyrequests:1"), "base_image_not_found", "toomanyrequests:1"),
        ("empty", String::new(), "dockerfile_invalid", "empty"),
        ("port", harness.dockerfile("EXPOSE eighty"), "dockerfile_invalid", "eighty"),
        ("signal", harness.dockerfile("STOPSIGNAL louder"), "dockerfile_invalid", "louder"),
        ("variable", harness.dockerfile("ENV A=${B:?needed}"), "dockerfile_invalid", "needed"),
        ("stage", harness.dockerfile("COPY --from=UPPER /a /b"), "dockerfile_invalid", "UPPER"),
        ("program", harness.dockerfile("RUN [\"/no/such/program\"]"), "step_failed", "/no/such/program"),
        ("user", harness.dockerfile("USER nobody-knows\nRUN true"), "step_failed", "nobody-knows"),
        ("secret", harness.dockerfile("RUN --mount=type=secret,id=npm,required=true true"), "step_failed", "npm"),
        ("download", harness.dockerfile("ADD http://127.0.0.1:9/x /x"), "step_failed", "127.0.0.1:9"),
        (
            "privilege",
            harness.dockerfile("RUN --network=host true"),
            "policy_refused",
            "network.host is not allowed: remove `--network=host`",
        ),
    ];
    let paths = mistakes.iter().map(|(name, text, _, _)| (format!("{name}/Dockerfile"), text.as_str()));
    let paths: Vec<(String, &str)> = paths.chain([("missing/README".to_owned(), "no Dockerfile here")]).collect();
    let files: Vec<(&str, &str)> = paths.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    let sha = harness.commit("shop", &files);
    let _worker = harness.worker("");

    let missing = ("missing", String::new(), "dockerfile_not_found", "Dockerfile");
    for (name, _, reason, words) in mistakes.iter().chain([&missing]) {
        let report = harness.build(harness.native("shop", &sha, &[harness.image(name, &sha)])).await;
        assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!(reason)), "{name}: {report:#}");
        assert!(report["message"].as_str().unwrap().contains(words), "{name}: {report:#}");
        // A missing Dockerfile is known before any target is built.
        let is_built = *name != "missing";
        assert_eq!(report["targets"].as_array().unwrap().len(), usize::from(is_built), "{name}: {report:#}");
        assert!(!is_built || target(&report, name)["digest"].is_null(), "{name}: {report:#}");
        assert_eq!(registry::digest(&harness.reference(name, &sha)).await, None);
    }
    harness.nothing_is_left().await;
    assert!(harness.redis.sorted_set("retry").await.is_empty() && harness.redis.sorted_set("dead").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_registry_is_not_the_customers_mistake() {
    let harness = Harness::open();
    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("COPY . /srv"))]);
    let closed_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let image = json!({"name": "web", "context": "./web", "tags": [format!("127.0.0.1:{closed_port}/shop/web:1")]});
    let mut native = harness.native("shop", &sha, &[image]);
    native["callback"]["on"] = json!(["retrying"]);
    let _worker = harness.worker("");

    let jid = harness.redis.push("default", "BuildJob", json!([native])).await;

    harness.until("the job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    let (member, _) = harness.redis.sorted_set("retry").await.remove(0);
    let job: serde_json::Value = serde_json::from_str(&member).unwrap();
    assert_eq!((&job["jid"], &job["class"], &job["retry_count"]), (&json!(jid), &json!("BuildJob"), &json!(0)));
    let told = harness.redis.jobs_of_class("callbacks", "BuildFinishedJob").await.remove(0);
    let report = &told["args"][0];
    assert_eq!(
        (&report["moment"], &report["reason"]),
        (&json!("retrying"), &json!("registry_unavailable")),
        "{report:#}"
    );
    harness.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_engine_is_not_the_customers_mistake() {
    let harness = Harness::open();
    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("COPY . /srv"))]);
    let mut native = harness.native("shop", &sha, &[harness.image("web", &sha)]);
    (native["builder"], native["callback"]["on"]) = (json!("gone"), json!(["retrying"]));
    let _worker = harness.worker("builders.gone = { driver = \"docker\", endpoint = \"unix:///nowhere/docker.sock\" }");

    harness.redis.push("default", "BuildJob", json!([native])).await;

    harness.until("the attempt ends", async || !harness.reports().await.is_empty()).await;
    let report = harness.reports().await.remove(0);
    assert_eq!(
        (&report["moment"], &report["reason"]),
        (&json!("retrying"), &json!("builder_unavailable")),
        "{report:#}"
    );
    assert_eq!(harness.redis.sorted_set("retry").await.len(), 1);
    harness.nothing_is_left().await;
}
