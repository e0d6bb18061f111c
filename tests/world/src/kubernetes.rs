//! A Kubernetes that always has one Deployment with one pod, both ready.
//!
//! Answers what a worker requests before a build: the Deployment and its pods. Allows no exec into a pod.

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::server::Server;

/// A running API server.
pub struct Kubernetes(Server);

impl Kubernetes {
    /// Starts one on a free port.
    pub fn start() -> Kubernetes {
        let router = Router::new()
            .route("/apis/apps/v1/namespaces/{namespace}/deployments/{name}", get(deployment))
            .route("/api/v1/namespaces/{namespace}/pods", get(pods));
        Kubernetes(Server::start(router, 0))
    }

    /// The port of the API server.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// A kubeconfig for it, as JSON, which is YAML.
    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.0.url()}}],
            "users": [{"name": "c", "user": {"token": "s3cret"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": "builds"}}],
        })
    }
}

async fn deployment(Path((namespace, name)): Path<(String, String)>) -> Json<Value> {
    let labels = json!({"app": name});
    Json(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "buildkitd"}]}},
        },
        "status": {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1},
    }))
}

async fn pods(Path(namespace): Path<String>) -> Json<Value> {
    Json(json!({
        "apiVersion": "v1", "kind": "PodList", "metadata": {},
        "items": [{
            "metadata": {"name": "d0-a", "namespace": namespace, "uid": "1"},
            "spec": {"containers": [{"name": "buildkitd"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }],
    }))
}
