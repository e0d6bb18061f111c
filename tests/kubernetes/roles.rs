//! Least privilege: removes one verb of each Role at a time, and checks what fails.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Harness, text};
use crate::manifests;
use crate::namespace::Namespace;

/// A kubeconfig of a service account with exactly these rules.
fn account(harness: &Harness, namespace: &Namespace, name: &str, rules: &[(String, String, String)]) -> PathBuf {
    let rules: Vec<String> = rules
        .iter()
        .map(|(group, resource, verb)| {
            format!("- {{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{verb}]}}\n")
        })
        .collect();
    let rules = if rules.is_empty() { "rules: []\n".to_owned() } else { format!("rules:\n{}", rules.concat()) };
    namespace.apply(&format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n---\n\
         apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\n\
         metadata: {{name: {name}-token, annotations: {{kubernetes.io/service-account.name: {name}}}}}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: {name}}}\n{rules}---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: {name}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}\n\
         subjects: [{{kind: ServiceAccount, name: {name}}}]\n"
    ));
    let token = (0..100)
        .find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            namespace.json(&["get", "secret", &format!("{name}-token")])["data"]["token"].as_str().map(str::to_owned)
        })
        .expect("Kubernetes makes a token");
    let admin: Value = serde_json::from_str(&namespace.kubectl(&["config", "view", "--raw", "-o", "json"])).unwrap();
    let mut decode = std::process::Command::new("sh");
    decode.args(["-c", "printf %s \"$0\" | base64 -d", &token]);
    let token = String::from_utf8(decode.output().unwrap().stdout).unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "clusters": admin["clusters"], "current-context": "a",
        "users": [{"name": "a", "user": {"token": token}}],
        "contexts": [{"name": "a", "context": {"cluster": admin["clusters"][0]["name"], "user": "a", "namespace": namespace.name}}],
    });
    let path = harness.home.path().join(format!("{name}.conf"));
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_verb_is_named_by_doctor_and_by_the_job() {
    let mut harness = Harness::open();
    let namespace = Namespace::of(&harness);
    harness.builders = namespace.builder("default", "replicas = 1");
    assert!(harness.run(&["builder", "ensure"], "").status.success());
    let dockerfile = harness.dockerfile("COPY . /srv");
    let sha = harness.commit("shop", &[("web/Dockerfile", &dockerfile)]);

    let run = manifests::rules("sidebake-run");
    let whole = account(&harness, &namespace, "whole", &run);
    harness.builders = namespace.builder_by("default", &whole, "replicas = 1");
    {
        let _worker = harness.worker("");
        let report = harness.build(harness.native("shop", &sha, &[harness.image("web", &sha)])).await;
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
    }
    for (i, (_, resource, verb)) in run.iter().enumerate() {
        let mut rules = run.clone();
        rules.remove(i);
        let lacking = account(&harness, &namespace, &format!("without-{i}"), &rules);
        harness.builders = namespace.builder_by("default", &lacking, "replicas = 1\ntimeout = \"5s\"");
        let doctor = harness.run(&["doctor"], "");
        let said = text(&doctor);
        let resource_only = resource.split('/').next().unwrap();
        assert!(!doctor.status.success(), "{said}");
        let line =
            said.lines().find(|line| line.starts_with("FAIL") && line.contains("builder")).unwrap_or(&said).to_owned();
        println!("without {verb} {resource}: {line}");
        assert!(line.contains("forbidden") || line.contains(resource_only), "{resource} {verb}: {said}");

        let _worker = harness.worker("");
        let native = harness.native("shop", &sha, &[harness.image("web", &sha)]);
        let jid = harness.redis.push("default", "BuildJob", json!([native])).await;
        let retry = async || harness.redis.sorted_set("retry").await.into_iter().find(|(job, _)| job.contains(&jid));
        harness.until("the job is to be retried", async || retry().await.is_some()).await;
        let retry: Value = serde_json::from_str(&retry().await.unwrap().0).unwrap();
        let message = retry["error_message"].as_str().unwrap();
        println!("  the job: {message}");
        assert!(message.contains("forbidden") && message.contains(resource_only), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_builders_administrator_needs_each_verb_and_no_other() {
    let mut harness = Harness::open();
    let namespace = Namespace::of(&harness);
    let config = harness.home.path().join("buildkitd.toml");
    std::fs::write(&config, "debug = true\n").unwrap();
    harness.settings = "bake.timeout = \"1s\"".into();
    // Makes a builder with a disk, then changes it. Returns the refusal.
    let mut bootstrap = |name: &str, account: PathBuf| {
        let class = namespace.offer_disks(1, name, &harness);
        for (verb, n) in [("ensure", 1), ("apply", 2)] {
            let disk = format!("shards = 1\nvolume = \"{n}Gi\"\nstorage_class = \"{class}\"");
            let more = format!("{disk}\nenvironment = {{ N = \"{n}\" }}\nbuildkitd_config = \"{}\"", config.display());
            harness.builders = namespace.builder_by(name, &account, &more);
            let output = harness.run(&["builder", verb], "");
            if !output.status.success() {
                return Err(format!("{verb}: {}", text(&output)));
            }
        }
        Ok(())
    };
    let harness = Harness::open();
    let verbs = manifests::rules("sidebake-bootstrap");
    for (i, (_, resource, verb)) in verbs.iter().enumerate() {
        let mut rules = verbs.clone();
        rules.remove(i);
        let lacking = account(&harness, &namespace, &format!("without-{i}"), &rules);
        let refused = bootstrap(&format!("b{i}"), lacking);
        println!("without {verb} {resource}: {refused:?}");
        let refused = refused.expect_err("the verb is in the Role, so a command should need it");
        assert!(refused.contains(&format!("cannot {verb} resource \"{resource}\"")), "{refused}");
    }
    let whole = account(&harness, &namespace, "whole", &verbs);
    bootstrap("default", whole).unwrap();
}
