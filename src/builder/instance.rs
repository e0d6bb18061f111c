//! buildx's own record of a builder, written again for each job.
//!
//! A bake needs only this record beside its other files, so jobs share no file and no user's current builder changes.
//! `docker-buildx create` writes the same record, but also connects to one of the pods, and fails when that pod does not answer.
//! Follows the store of buildx 0.19 to 0.36: `BUILDX_CONFIG/instances/NAME`, JSON.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::settings::{Balance, Builder, Driver};

/// The record: the builder called `name`, with one node. `storage`: the size of its persistent volumes, if it is a StatefulSet.
///
/// # Errors
///
/// When the builder's `buildkitd_config` cannot be read.
pub(super) fn record(
    name: &str,
    node: &str,
    builder: &Builder,
    balance: Balance,
    kubeconfig: Option<&Path>,
    storage: Option<&str>,
) -> std::io::Result<Vec<u8>> {
    let endpoint = match (kubeconfig, &builder.endpoint) {
        (Some(kubeconfig), _) => kubernetes_endpoint(name, node, kubeconfig),
        (None, endpoint) => endpoint.clone().unwrap_or_default(),
    };
    let files = match (builder.driver, &builder.buildkitd_config) {
        (Driver::DockerContainer, Some(path)) => {
            json!({"buildkitd.toml": BASE64_STANDARD.encode(std::fs::read(path)?)})
        }
        _ => Value::Null,
    };
    let node = json!({
        "Name": node,
        "Endpoint": endpoint,
        "Platforms": null,
        "DriverOpts": driver_options(builder, balance, storage),
        "Flags": null,
        "Files": files,
    });
    Ok(json!({"Name": name, "Driver": builder.driver.name(), "Nodes": [node], "Dynamic": false})
        .to_string()
        .into_bytes())
}

fn kubernetes_endpoint(name: &str, node: &str, kubeconfig: &Path) -> String {
    let mut url = reqwest::Url::parse("kubernetes:///").expect("a constant URL is valid");
    url.set_path(name);
    url.query_pairs_mut().append_pair("deployment", node).append_pair("kubeconfig", &kubeconfig.to_string_lossy());
    url.into()
}

/// The driver options, as for `create --driver-opt`.
fn driver_options(builder: &Builder, balance: Balance, storage: Option<&str>) -> Map<String, Value> {
    let mut options: Map<String, Value> =
        builder.options.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            options.insert(key.into(), json!(value));
        }
    };
    match builder.driver {
        Driver::Kubernetes => {
            set("namespace", builder.namespace.clone());
            set("replicas", builder.replicas.map(|n| n.to_string()));
            set("image", builder.image.clone());
            set("timeout", Some(format!("{}s", builder.timeout.as_secs())));
            set("rootless", builder.rootless.then(|| "true".into()));
            set("loadbalance", Some(balance.name().into()));
            set("persistent-volume-claim.requests.storage", storage.map(str::to_owned));
        }
        Driver::DockerContainer => set("image", builder.image.clone()),
        Driver::Remote | Driver::Docker => {}
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_what_create_would_have_written_with_the_jobs_kubeconfig() {
        let mut builder = Builder::new(Driver::Kubernetes, None);
        (builder.namespace, builder.replicas) = (Some("builds".into()), Some(2));
        let path = Path::new("/run/1/solve/kubeconfig");
        let made = record("b", "b0", &builder, Balance::Random, Some(path), None).expect("made");
        let made: Value = serde_json::from_slice(&made).expect("JSON");
        // By docker-buildx 0.29.1 create, with other options.
        assert_eq!(
            made,
            json!({"Name": "b", "Driver": "kubernetes", "Nodes": [{"Name": "b0",
                "Endpoint": "kubernetes:///b?deployment=b0&kubeconfig=%2Frun%2F1%2Fsolve%2Fkubeconfig",
                "Platforms": null, "DriverOpts": {"namespace": "builds", "replicas": "2", "timeout": "120s",
                "loadbalance": "random"}, "Flags": null, "Files": null}], "Dynamic": false})
        );
    }

    #[test]
    fn a_remote_builder_is_reached_at_its_address() {
        let mut builder = Builder::new(Driver::Remote, Some("tcp://b:1".into()));
        builder.options = [("key".into(), "/a".into())].into();
        let made = record("b", "b0", &builder, Balance::Sticky, None, None).expect("made");
        let made: Value = serde_json::from_slice(&made).expect("JSON");
        assert_eq!(made["Nodes"][0]["Endpoint"], "tcp://b:1");
        assert_eq!(made["Nodes"][0]["DriverOpts"], json!({"key": "/a"}));
    }
}
