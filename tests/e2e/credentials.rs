//! A registry that requires credentials: real buildx, BuildKit and registry, with the answers of a credential helper.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use reqwest::StatusCode;
use serde_json::json;

use crate::harness::Harness;

const PASSWORD: &str = "pa55-of-robot";
/// Its line of `htpasswd -B`.
const ACCOUNT: &str = "robot:$2y$05$abcdefghijklmnopqrstuu8ur5UHBRIJ84lPWAr3x2BGWNEgz6eAy";

/// A registry for one account. Dropping it stops the registry.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    async fn start(harness: &Harness) -> Self {
        let home = harness.home.path();
        std::fs::write(home.join("htpasswd"), ACCOUNT).unwrap();
        let settings = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: \"{0}/registry\"}}}}\n\
             http: {{addr: \"127.0.0.1:0\"}}\nauth: {{htpasswd: {{realm: private, path: \"{0}/htpasswd\"}}}}\n",
            home.display()
        );
        std::fs::write(home.join("registry.yml"), settings).unwrap();
        let log = home.join("registry.txt");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(home.join("registry.yml"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let find = || {
            let text = std::fs::read_to_string(&log).unwrap();
            let address = text.split("listening on ").nth(1)?;
            Some(address.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect::<String>())
        };
        harness.until("the registry listens", async || find().is_some()).await;
        Self { address: find().unwrap(), child }
    }

    async fn has(&self, image: &str) -> StatusCode {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}/v2/{image}/manifests/1", self.address);
        let request = client.head(url).basic_auth("robot", Some(PASSWORD));
        request.header("accept", "application/vnd.oci.image.index.v1+json").send().await.unwrap().status()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_needs_the_credentials_that_a_helper_has() {
    let harness = Harness::open();
    let registry = Registry::start(&harness).await;
    let home = harness.home.path();
    let helper = home.join("docker-credential-fake");
    let answer = json!({"ServerURL": registry.address, "Username": "robot", "Secret": PASSWORD});
    std::fs::write(&helper, format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = home.join("branch.json");
    let settings =
        format!("[accounts]\nregistries = \"{0}/{{trust}}.json\"\ncredential_helpers = \"{0}\"\n", home.display());
    let _worker = harness.worker(&settings);
    let sha = harness.commit("shop", &[("web/Dockerfile", &harness.dockerfile("RUN true"))]);
    let mut image = harness.image("web", &sha);
    image["tags"] = json!([format!("{}/acme/web:1", registry.address)]);
    let mut native = harness.native("shop", &sha, &[image]);
    native["callback"]["on"] = json!(["retrying", "finished"]);

    harness.redis.push("default", "BuildJob", json!([native])).await;
    harness.until("the report says that the registry refuses", async || !harness.reports().await.is_empty()).await;
    let report = harness.reports().await.remove(0);
    assert_eq!((&report["moment"], &report["reason"]), (&json!("retrying"), &json!("registry_denied")), "{report:#}");
    assert_eq!(registry.has("acme/web").await, StatusCode::NOT_FOUND);

    std::fs::write(file, json!({"credHelpers": {&registry.address: "fake"}}).to_string()).unwrap();
    harness.redis.push("default", "BuildJob", json!([native])).await;
    harness.until("the second build ends", async || harness.reports().await.len() > 1).await;
    let report = harness.reports().await.remove(1);
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(registry.has("acme/web").await, StatusCode::OK);
    harness.nothing_is_left().await;
    assert!(!harness.logs().contains(PASSWORD));
}
