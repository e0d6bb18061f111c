//! A registry that asks who it is: real buildx, BuildKit and registry, with what a credential helper answers.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use reqwest::StatusCode;
use serde_json::json;

use crate::house::House;

const PASSWORD: &str = "pa55-of-robot";
/// The line of `htpasswd -B` for it.
const ACCOUNT: &str = "robot:$2y$05$abcdefghijklmnopqrstuu8ur5UHBRIJ84lPWAr3x2BGWNEgz6eAy";

/// A registry for one account; dropping it ends it.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    async fn start(house: &House) -> Self {
        let home = house.home.path();
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
        house.until("the registry listens", async || find().is_some()).await;
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
    let house = House::open();
    let registry = Registry::start(&house).await;
    let home = house.home.path();
    let helper = home.join("docker-credential-fake");
    let answer = json!({"ServerURL": registry.address, "Username": "robot", "Secret": PASSWORD});
    std::fs::write(&helper, format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = home.join("branch.json");
    let settings =
        format!("[accounts]\nregistries = \"{0}/{{trust}}.json\"\ncredential_helpers = \"{0}\"\n", home.display());
    let _worker = house.worker(&settings);
    let sha = house.commit("shop", &[("web/Dockerfile", &house.dockerfile("RUN true"))]);
    let mut image = house.image("web", &sha);
    image["tags"] = json!([format!("{}/acme/web:1", registry.address)]);
    let mut native = house.native("shop", &sha, &[image]);
    native["callback"]["on"] = json!(["retrying", "finished"]);

    house.redis.push("default", "BuildJob", json!([native])).await;
    house.until("it is told that the registry refuses", async || !house.reports().await.is_empty()).await;
    let report = house.reports().await.remove(0);
    assert_eq!((&report["moment"], &report["reason"]), (&json!("retrying"), &json!("registry_denied")), "{report:#}");
    assert_eq!(registry.has("acme/web").await, StatusCode::NOT_FOUND);

    std::fs::write(file, json!({"credHelpers": {&registry.address: "fake"}}).to_string()).unwrap();
    house.redis.push("default", "BuildJob", json!([native])).await;
    house.until("it is built", async || house.reports().await.len() > 1).await;
    let report = house.reports().await.remove(1);
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(registry.has("acme/web").await, StatusCode::OK);
    house.nothing_is_left().await;
    assert!(!house.logs().contains(PASSWORD));
}
