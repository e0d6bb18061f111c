//! A Kubernetes with Deployments and pods.
//!
//! Answers what a worker requests before a build and what `builder ensure` and `apply` write: the Deployments, a StatefulSet, what
//! belongs to them, and the pods. A test changes them at any time. Allows no exec into a pod. Starts no pods.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::server::Server;

/// A running API server.
pub struct Kubernetes {
    server: Server,
    objects: Arc<Mutex<KubernetesObjects>>,
}

/// What the API server has.
pub struct KubernetesObjects {
    /// The Deployments by name.
    pub deployments: BTreeMap<String, Value>,
    /// A StatefulSet of any name.
    pub stateful_set: Option<Value>,
    /// ConfigMaps, claims and budgets by kind and name, such as `persistentvolumeclaims/d-0`.
    pub others: BTreeMap<String, Value>,
    /// The pods.
    pub pods: Vec<Value>,
    /// The bearer token that is accepted; none accepts all.
    pub token: Option<String>,
    /// How many requests there were.
    pub n_requests: usize,
    /// How many requests were refused for their token.
    pub n_unauthorized: usize,
}

impl Kubernetes {
    /// Starts one on a free port, with one Deployment and one pod, both ready.
    pub fn start() -> Kubernetes {
        Self::start_on(0)
    }

    /// Starts one on a port; 0 is a free one.
    pub fn start_on(port: u16) -> Kubernetes {
        let objects = KubernetesObjects {
            deployments: [("d0".to_owned(), Self::deployment())].into(),
            stateful_set: None,
            others: BTreeMap::new(),
            pods: vec![Self::pod("d0-a")],
            token: None,
            n_requests: 0,
            n_unauthorized: 0,
        };
        let objects = Arc::new(Mutex::new(objects));
        let router = Router::new()
            .route("/apis/apps/v1/namespaces/{namespace}/deployments", post(create))
            .route("/apis/apps/v1/namespaces/{namespace}/deployments/{name}", get(read_deployment).patch(patch))
            .route(
                "/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}",
                get(read_stateful_set).patch(patch_stateful_set),
            )
            .route("/api/v1/namespaces/{namespace}/pods", get(pods))
            .route("/api/v1/namespaces/{namespace}/{kind}", post(create_other))
            .route("/api/v1/namespaces/{namespace}/{kind}/{name}", get(read_other).patch(patch_other))
            .route("/apis/policy/v1", get(async || Json(json!({"kind": "APIResourceList"}))))
            .route("/apis/policy/v1/namespaces/{namespace}/{kind}", post(create_other))
            .route("/apis/policy/v1/namespaces/{namespace}/{kind}/{name}", get(read_other).patch(patch_other))
            .layer(middleware::from_fn_with_state(objects.clone(), authorize))
            .with_state(objects.clone());
        Kubernetes { server: Server::start(router, port), objects }
    }

    /// Its objects, to read and to change.
    ///
    /// # Panics
    /// When a request has panicked.
    pub fn objects(&self) -> MutexGuard<'_, KubernetesObjects> {
        self.objects.lock().unwrap()
    }

    /// The port of the API server.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// A Deployment with one replica that is rolled out.
    pub fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "d0", "namespace": "builds", "generation": 1, "resourceVersion": "1"},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": {"app": "d0"}},
                "template": {"metadata": {"labels": {"app": "d0"}}, "spec": {"containers": [{"name": "buildkitd"}]}},
            },
            "status": {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1},
        })
    }

    /// A pod that runs and is ready.
    pub fn pod(name: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "builds", "uid": name, "labels": {"app": "d0"}},
            "spec": {"containers": [{"name": "buildkitd"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    /// A kubeconfig for it, as JSON, which is YAML.
    pub fn kubeconfig(&self) -> Value {
        self.kubeconfig_of(&json!({"token": "s3cret"}))
    }

    /// The same for another user.
    pub fn kubeconfig_of(&self, user: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.server.url()}}],
            "users": [{"name": "c", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": "builds"}}],
        })
    }
}

type Shared = State<Arc<Mutex<KubernetesObjects>>>;

async fn authorize(State(objects): Shared, request: Request, next: Next) -> Response {
    let is_refused = {
        let mut objects = objects.lock().unwrap();
        objects.n_requests += 1;
        let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let is_refused =
            objects.token.as_ref().is_some_and(|token| authorization != Some(format!("Bearer {token}").as_str()));
        objects.n_unauthorized += usize::from(is_refused);
        is_refused
    };
    match is_refused {
        true => refusal(StatusCode::UNAUTHORIZED, "Unauthorized"),
        false => next.run(request).await,
    }
}

fn refusal(status: StatusCode, message: &str) -> Response {
    let code = status.as_u16();
    (status, Json(json!({"kind": "Status", "status": "Failure", "message": message, "code": code}))).into_response()
}

fn found(object: Option<&Value>, name: &str) -> Response {
    object.map_or_else(
        || refusal(StatusCode::NOT_FOUND, &format!("\"{name}\" not found")),
        |object| Json(object.clone()).into_response(),
    )
}

async fn read_deployment(State(objects): Shared, Path((_, name)): Path<(String, String)>) -> Response {
    found(objects.lock().unwrap().deployments.get(&name), &name)
}

async fn read_stateful_set(State(objects): Shared, Path((_, name)): Path<(String, String)>) -> Response {
    found(objects.lock().unwrap().stateful_set.as_ref(), &name)
}

/// The pods that have the labels of the selector.
async fn pods(State(objects): Shared, Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let selector = query.get("labelSelector").map(String::as_str).unwrap_or_default();
    let labels: Vec<(&str, &str)> = selector.split(',').filter_map(|label| label.split_once('=')).collect();
    let has_all = |pod: &&Value| labels.iter().all(|(key, value)| pod["metadata"]["labels"][*key] == *value);
    let pods: Vec<Value> = objects.lock().unwrap().pods.iter().filter(has_all).cloned().collect();
    Json(json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods}))
}

async fn create(State(objects): Shared, body: Bytes) -> Response {
    let mut made: Value = serde_json::from_slice(&body).unwrap();
    made["status"] = Kubernetes::deployment()["status"].clone();
    made["status"]["updatedReplicas"] = made["spec"]["replicas"].clone();
    let name = made["metadata"]["name"].as_str().unwrap().to_owned();
    objects.lock().unwrap().deployments.insert(name, made.clone());
    (StatusCode::CREATED, Json(made)).into_response()
}

async fn patch(State(objects): Shared, Path((_, name)): Path<(String, String)>, body: Bytes) -> Response {
    patched(objects.lock().unwrap().deployments.get_mut(&name), &name, &body)
}

async fn patch_stateful_set(State(objects): Shared, Path((_, name)): Path<(String, String)>, body: Bytes) -> Response {
    patched(objects.lock().unwrap().stateful_set.as_mut(), &name, &body)
}

fn patched(object: Option<&mut Value>, name: &str, body: &Bytes) -> Response {
    let patch: Value = serde_json::from_slice(body).unwrap();
    let Some(object) = object else { return found(None, name) };
    if patch["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
        return refusal(StatusCode::CONFLICT, "the object has been modified");
    }
    merge(object, &patch);
    Json(object.clone()).into_response()
}

async fn read_other(State(objects): Shared, Path((_, kind, name)): Path<(String, String, String)>) -> Response {
    found(objects.lock().unwrap().others.get(&format!("{kind}/{name}")), &name)
}

async fn create_other(State(objects): Shared, Path((_, kind)): Path<(String, String)>, body: Bytes) -> Response {
    let made: Value = serde_json::from_slice(&body).unwrap();
    let name = format!("{kind}/{}", made["metadata"]["name"].as_str().unwrap());
    match objects.lock().unwrap().others.entry(name) {
        Entry::Occupied(_) => refusal(StatusCode::CONFLICT, "already exists"),
        Entry::Vacant(free) => (StatusCode::CREATED, Json(free.insert(made).clone())).into_response(),
    }
}

async fn patch_other(
    State(objects): Shared,
    Path((_, kind, name)): Path<(String, String, String)>,
    body: Bytes,
) -> Response {
    let patch: Value = serde_json::from_slice(&body).unwrap();
    let mut objects = objects.lock().unwrap();
    let Some(object) = objects.others.get_mut(&format!("{kind}/{name}")) else { return found(None, &name) };
    merge(object, &patch);
    Json(object.clone()).into_response()
}

/// A JSON merge patch (RFC 7396).
fn merge(live: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        live.clone_from(patch);
        return;
    };
    if !live.is_object() {
        *live = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            live.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut live[key], value);
        }
    }
}
