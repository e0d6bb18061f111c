//! Writes the deletion cost of the worker's own pod: its number of running builds.
//!
//! When a Deployment gets fewer replicas, Kubernetes ends the pod with the lowest deletion cost first. The worker
//! writes it when `POD_NAME` and `POD_NAMESPACE` name its pod and its service account may patch it.
//!
//! Follows `controller.kubernetes.io/pod-deletion-cost`, Kubernetes 1.22.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Config};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";

/// How often the number is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// The pause after a request: Kubernetes advises against frequent updates.
const PAUSE: Duration = Duration::from_secs(30);

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The name of the worker's pod.
#[derive(Clone, Debug)]
pub struct OwnPod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl OwnPod {
    /// Writes the number of running builds until `ended`, or until the API server refuses it.
    pub async fn run(&self, n_running: impl Fn() -> usize, ended: &CancellationToken) {
        if let Err(error) = ended.run_until_cancelled(self.keep(n_running)).await.unwrap_or(Ok(())) {
            // Most installations have no right to it: docker/kubernetes/optional/deletion-cost.yaml.
            tracing::debug!(event = "deletion_cost_refused", %error, "the deletion cost of the worker's pod is not written");
        }
    }

    async fn keep(&self, n_running: impl Fn() -> usize) -> Result<(), kube::Error> {
        let Ok(config) = Config::incluster() else { return Ok(()) };
        let pods: Api<Pod> = Api::namespaced(Client::try_from(config)?, &self.namespace);
        let mut written = None;
        loop {
            let n = n_running();
            if written == Some(n) {
                sleep(LOOK).await;
                continue;
            }
            let cost = json!({"metadata": {"annotations": {ANNOTATION: n.to_string()}}});
            let patch = Patch::Merge(&cost);
            match timeout(PATIENCE, pods.patch_metadata(&self.name, &PatchParams::default(), &patch)).await {
                Ok(Ok(_)) => written = Some(n),
                Ok(Err(error)) if is_final(&error) => return Err(error),
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(PAUSE).await;
        }
    }
}

/// Whether the API server would answer the next request in the same way: the right or the pod is missing.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [401, 403, 404].contains(&status.code))
}
