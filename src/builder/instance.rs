//! buildx's own record of a builder: made once by `docker-buildx create`, copied for each job.
//!
//! A copy beside a job's other files is all that a bake needs, so jobs share no file and nobody's current builder changes.
//! Follows the store of buildx 0.19 to 0.36: `BUILDX_CONFIG/instances/NAME`, JSON.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::BuilderError;
use crate::process::{self, Limits};
use crate::secret::Secret;
use crate::settings::{self, Balance, Driver};
use crate::state;

/// How long `docker-buildx create` may take.
const CREATE: Duration = Duration::from_secs(60);

/// An instance as `create` wrote it.
#[derive(Clone, Debug)]
pub(super) struct Instance(Value);

impl Instance {
    /// Makes the instance in a directory of its own, and keeps what `create` wrote.
    ///
    /// With the name of the node given, `create` is idempotent, also when many do it at once. It starts nothing.
    pub(super) async fn create(
        buildx: &Path,
        name: &str,
        node: &str,
        builder: &settings::Builder,
        kubeconfig: Option<&Secret>,
        config: &Path,
    ) -> Result<Self, BuilderError> {
        let mut command = process::command(buildx);
        command.env("BUILDX_CONFIG", config).env("TMPDIR", config).env("HOME", config);
        command.args(["create", "--name", name, "--node", node, "--driver", builder.driver.name()]);
        if let Some(kubeconfig) = kubeconfig {
            let path = config.join("kubeconfig");
            state::write_private(&path, kubeconfig.expose().as_bytes())?;
            command.env("KUBECONFIG", path);
        }
        let options = driver_options(builder);
        if !options.is_empty() {
            command.args(["--driver-opt", &options.join(",")]);
        }
        if let (Driver::DockerContainer, Some(path)) = (builder.driver, &builder.buildkitd_config) {
            command.arg("--buildkitd-config").arg(path);
        }
        command.args(&builder.endpoint);
        let limits =
            Limits { timeout: CREATE, silence: CREATE, max_output_bytes: 1 << 20, stop: CancellationToken::new() };
        let mut said = String::new();
        let ended =
            process::run(command, b"", &limits, |_, line| said = String::from_utf8_lossy(line).into_owned()).await?;
        // It also looks whether a pod answers, and ends with an error when none does. The record is there all the same.
        let record = std::fs::read(config.join("instances").join(name))
            .ok()
            .filter(|_| kubeconfig.is_some() || ended.is_success());
        let record = record.and_then(|record| serde_json::from_slice(&record).ok());
        record.map(Self).ok_or_else(|| BuilderError::Create { name: name.to_owned(), message: said })
    }

    /// The record for one job: with its own kubeconfig, and the way in which its pod is chosen.
    pub(super) fn for_job(&self, kubeconfig: Option<&Path>, balance: Balance) -> Vec<u8> {
        let mut record = self.0.clone();
        for node in record["Nodes"].as_array_mut().into_iter().flatten() {
            let Some(kubeconfig) = kubeconfig else { continue };
            let endpoint = node["Endpoint"].as_str().unwrap_or_default();
            node["Endpoint"] = json!(with_kubeconfig(endpoint, kubeconfig));
            node["DriverOpts"]["loadbalance"] = json!(balance.name());
        }
        record.to_string().into_bytes()
    }
}

/// `kubernetes:///NAME?deployment=NODE&kubeconfig=PATH`, with another path.
fn with_kubeconfig(endpoint: &str, kubeconfig: &Path) -> String {
    let Ok(mut url) = reqwest::Url::parse(endpoint) else { return endpoint.to_owned() };
    let others: Vec<(String, String)> =
        url.query_pairs().filter(|(key, _)| key != "kubeconfig").map(|(k, v)| (k.into(), v.into())).collect();
    let kubeconfig = ("kubeconfig".to_owned(), kubeconfig.display().to_string());
    url.query_pairs_mut().clear().extend_pairs(others).extend_pairs([kubeconfig]);
    url.into()
}

/// The options of `create`, each quoted as a field of CSV, which buildx reads.
fn driver_options(builder: &settings::Builder) -> Vec<String> {
    let mut options: Vec<(String, String)> = builder.options.clone().into_iter().collect();
    let mut set = |key: &str, value: Option<String>| options.extend(value.map(|value| (key.to_owned(), value)));
    match builder.driver {
        Driver::Kubernetes => {
            set("namespace", builder.namespace.clone());
            set("replicas", builder.replicas.map(|n| n.to_string()));
            set("image", builder.image.clone());
            set("timeout", Some(format!("{}s", builder.timeout.as_secs())));
            set("rootless", builder.rootless.then(|| "true".into()));
        }
        Driver::DockerContainer => set("image", builder.image.clone()),
        Driver::Remote | Driver::Docker => {}
    }
    let quote = |(key, value): &(String, String)| format!("\"{key}={}\"", value.replace('"', "\"\""));
    options.iter().map(quote).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_record_has_its_own_kubeconfig_and_balance() {
        let record = json!({"Name": "b", "Driver": "kubernetes", "Nodes": [{"Name": "b0",
            "Endpoint": "kubernetes:///b?deployment=b0&kubeconfig=%2Ftmp%2Fcreate%2Fkubeconfig",
            "DriverOpts": {"namespace": "builds"}}]});
        let made = Instance(record).for_job(Some(Path::new("/run/1/solve/kubeconfig")), Balance::Random);
        let made: Value = serde_json::from_slice(&made).expect("JSON");
        let node = &made["Nodes"][0];
        assert_eq!(node["Endpoint"], "kubernetes:///b?deployment=b0&kubeconfig=%2Frun%2F1%2Fsolve%2Fkubeconfig");
        assert_eq!(node["DriverOpts"], json!({"namespace": "builds", "loadbalance": "random"}));
    }

    #[test]
    fn an_option_with_commas_and_quotes_stays_one_option() {
        let mut builder = settings::Builder::new(Driver::Remote, Some("tcp://b:1".into()));
        builder.options = [("key".into(), "a,\"b".into())].into();
        assert_eq!(driver_options(&builder), ["\"key=a,\"\"b\""]);
    }
}
