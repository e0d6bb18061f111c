//! A builder's Deployment and pods in Kubernetes. The only file that connects to the API server.

use std::time::Duration;

use http::StatusCode;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Resource;
use kube::api::{GetParams, ListParams, Patch, PatchParams, PostParams, Request};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::access::{AccessError, KubeAccess};
use super::deployment::{self, Ground};
use super::pods::{self, PodStatus};
use crate::body;
use crate::bounds;
use crate::json;
use crate::network::{Proxy, Unreachable};
use crate::settings;
use crate::text;

/// How often starting pods are checked.
const LOOK: Duration = Duration::from_millis(500);

/// The time limit of one answer of the API server, body included. The client's own limits apply to each read.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name under which Kubernetes records our changes.
const FIELD_MANAGER: &str = "sidebake";

/// Kubernetes did not do what was asked, or has no pod for a build.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server's address or the credentials are not available.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The API server cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The API server refused or did not answer.
    #[error("Kubernetes could not {what}: {message}")]
    Api {
        /// The request, such as `get the Deployment development0 in release-builder`.
        what: String,
        /// Kubernetes' own message: a refusal names the verb and the resource.
        message: String,
        /// Whether a later request may succeed.
        is_passing: bool,
    },
    /// The Deployment does not exist.
    #[error("no Deployment {deployment} in the namespace {namespace}; create it with `sidebake builder ensure`")]
    Missing {
        /// Its name.
        deployment: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// Not enough pods became ready.
    #[error("{n_ready} of {n_wanted} pods of {deployment} are ready after {waited_s} s: {why}")]
    NotReady {
        /// The Deployment.
        deployment: String,
        /// Ready pods.
        n_ready: usize,
        /// Pods that were waited for.
        n_wanted: usize,
        /// How long.
        waited_s: u64,
        /// Kubernetes' own reasons.
        why: String,
    },
    /// A file of the builder cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl ClusterError {
    fn is_passing(&self) -> bool {
        matches!(self, Self::Api { is_passing: true, .. } | Self::Unreachable(_))
    }
}

/// The state of a builder.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    pub(super) deployment: Value,
    pub(super) pods: Vec<PodStatus>,
}

impl Survey {
    pub(super) fn n_ready(&self) -> usize {
        self.pods.iter().filter(|pod| pod.is_ready && !pod.is_going).count()
    }

    pub(super) fn n_wanted(&self) -> usize {
        self.deployment["spec"]["replicas"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1)
    }

    /// Whether Kubernetes has processed the last change, and every pod has it.
    fn is_rolled_out(&self) -> bool {
        let (generation, status) = (&self.deployment["metadata"]["generation"], &self.deployment["status"]);
        let n = |field: &str| status[field].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let is_seen = status["observedGeneration"].as_u64() >= generation.as_u64();
        is_seen && n("updatedReplicas") >= self.n_wanted() && n("replicas") <= self.n_wanted()
    }

    /// Why pods are missing or not ready: the trouble of each pod, or of the Deployment (a quota, a forbidden verb).
    pub(super) fn why(&self) -> String {
        let of_pod = |pod: &PodStatus| Some(format!("{}: {}", pod.name, pod.trouble.as_ref()?));
        let mut reasons: Vec<String> = self.pods.iter().filter(|pod| !pod.is_ready).filter_map(of_pod).collect();
        let conditions = self.deployment["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let failing = conditions.iter().filter(|one| one["type"] == "ReplicaFailure" && one["status"] == "True");
        reasons.extend(failing.filter_map(|one| one["message"].as_str()).map(str::to_owned));
        match reasons.is_empty() {
            true if self.pods.is_empty() => "no pods yet".into(),
            true => "pods are starting".into(),
            false => reasons.join("; "),
        }
    }
}

/// The API server, for one builder.
#[derive(Clone)]
pub(super) struct Cluster {
    client: kube::Client,
    server: String,
    proxy: Option<Proxy>,
    namespace: String,
    deployment: String,
}

impl Cluster {
    pub(super) fn new(access: &KubeAccess, deployment: String) -> Result<Self, AccessError> {
        Ok(Self {
            client: access.client()?,
            server: access.server(),
            proxy: access.proxy().cloned(),
            namespace: access.namespace().to_owned(),
            deployment,
        })
    }

    /// Asks for the version of the API server. Any answer will do.
    pub(super) async fn reach(&self) -> Result<(), ClusterError> {
        let request = http::Request::get("/version").body(kube::client::Body::empty()).expect("a valid request");
        match timeout(PATIENCE, self.client.send(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.unreachable(error).await.into()),
            Err(_) => Err(self.unread("ask for", &format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    /// The Deployment and its pods; `None` when the Deployment does not exist.
    pub(super) async fn survey(&self) -> Result<Option<Survey>, ClusterError> {
        let Some(deployment) = self.deployment().await? else { return Ok(None) };
        Ok(Some(Survey { deployment, pods: self.pods().await? }))
    }

    /// The Deployment as JSON; `None` when it does not exist.
    async fn deployment(&self) -> Result<Option<Value>, ClusterError> {
        let request = Request::new(self.path::<Deployment>()).get(&self.deployment, &GetParams::default());
        let answer = self.ask("get the Deployment", request).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = self.good(answer)?;
        json::read(&body).map(Some).map_err(|error| self.unread("get the Deployment", &error.to_string()))
    }

    /// The pods among which buildx would choose, and those that are starting or ending.
    pub(super) async fn pods(&self) -> Result<Vec<PodStatus>, ClusterError> {
        const WHAT: &str = "list the pods of";
        let labelled = ListParams::default().labels(&format!("app={}", self.deployment)).limit(pods::MAX_PODS);
        let answer = self.ask(WHAT, Request::new(self.path::<Pod>()).list(&labelled)).await?;
        pods::read(&self.good(answer)?).map_err(|message| self.unread(WHAT, &message))
    }

    /// Creates the Deployment unless it exists. Safe to call from many processes at once. Returns whether this call created it.
    pub(super) async fn create(&self, builder: &settings::Builder) -> Result<bool, ClusterError> {
        if self.deployment().await?.is_some() {
            return Ok(false);
        }
        let text = self.write_config(builder).await?;
        let whole = deployment::whole(&self.deployment, builder, text.as_deref());
        let whole: Deployment = serde_json::from_value(whole).map_err(|error| {
            self.wrong("create the Deployment", format!("the settings do not make a valid Deployment: {error}"))
        })?;
        self.make("create the Deployment", &PostParams::default(), &whole).await
    }

    /// Applies the configured fields, and no others.
    pub(super) async fn apply(&self, builder: &settings::Builder) -> Result<(), ClusterError> {
        let text = self.write_config(builder).await?;
        let live = self.deployment().await?.unwrap_or_default();
        let configured = deployment::configured(&self.deployment, builder, Ground::of(&live, text.as_deref()));
        let patch = Patch::Strategic(configured);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let request = Request::new(self.path::<Deployment>()).patch(&self.deployment, &params, &patch);
        let patched = self.ask("patch the Deployment", request).await?;
        self.good(patched).map(drop)
    }

    /// Writes the configured buildkitd.toml to the ConfigMap, and returns it.
    async fn write_config(&self, builder: &settings::Builder) -> Result<Option<String>, ClusterError> {
        let Some(path) = &builder.buildkitd_config else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ClusterError::File { path: path.display().to_string(), source })?;
        let map = deployment::config_map(&self.deployment, &text);
        let whole: ConfigMap = serde_json::from_value(map.clone()).map_err(|error| {
            self.wrong("create the ConfigMap of", format!("the settings do not make a valid ConfigMap: {error}"))
        })?;
        // A server-side apply would do both, but its refusal does not name the verb when creating is not allowed.
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        if self.make("create the ConfigMap of", &params, &whole).await? {
            return Ok(Some(text));
        }
        let name = deployment::config_map_name(&self.deployment);
        let (params, patch) = (PatchParams::apply(FIELD_MANAGER).force(), Patch::Apply(map));
        let request = Request::new(self.path::<ConfigMap>()).patch(&name, &params, &patch);
        let patched = self.ask("patch the ConfigMap of", request).await?;
        self.good(patched)?;
        Ok(Some(text))
    }

    /// Creates an object. Returns false when it already exists: another process was faster.
    async fn make<K>(&self, what: &'static str, params: &PostParams, whole: &K) -> Result<bool, ClusterError>
    where
        K: Resource<DynamicType = ()> + serde::Serialize,
    {
        let data = serde_json::to_vec(whole).expect("an object of Kubernetes is JSON");
        let answer = self.ask(what, Request::new(self.path::<K>()).create(params, data)).await?;
        if answer.status == StatusCode::CONFLICT {
            return Ok(false);
        }
        self.good(answer).map(|_| true)
    }

    /// Waits until `n` pods are ready (`None`: all replicas of the Deployment).
    pub(super) async fn wait_until_ready(&self, n: Option<usize>, patience: Duration) -> Result<Survey, ClusterError> {
        let started = Instant::now();
        loop {
            let is_late = started.elapsed() >= patience;
            match self.survey().await {
                Ok(Some(survey)) => {
                    let (n_ready, n_wanted) = (survey.n_ready(), n.unwrap_or_else(|| survey.n_wanted()));
                    // A build needs some ready pods; after a create or an apply, all pods must have the change.
                    if n_ready >= n_wanted && (n.is_some() || survey.is_rolled_out()) {
                        return Ok(survey);
                    }
                    if is_late {
                        let deployment = format!("{} in {}", self.deployment, self.namespace);
                        let (waited_s, why) = (patience.as_secs(), survey.why());
                        return Err(ClusterError::NotReady { deployment, n_ready, n_wanted, waited_s, why });
                    }
                }
                Ok(None) => {
                    let (deployment, namespace) = (self.deployment.clone(), self.namespace.clone());
                    return Err(ClusterError::Missing { deployment, namespace });
                }
                // A restart of the API server must not fail every build.
                Err(error) if is_late || !error.is_passing() => return Err(error),
                Err(error) => tracing::debug!(%error, "asking Kubernetes again"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The URL path of a kind of object.
    fn path<K: Resource<DynamicType = ()>>(&self) -> String {
        K::url_path(&(), Some(&self.namespace))
    }

    /// Sends a request and reads the whole answer, up to a bound. Does not look at its status.
    async fn ask(&self, what: &'static str, request: KubeRequest) -> Result<KubeAnswer, ClusterError> {
        let request = request.map_err(|error| self.wrong(what, error.to_string()))?;
        let answer = async {
            let answer = self.client.send(request.map(kube::client::Body::from)).await?;
            Ok(KubeAnswer { what, status: answer.status(), body: body::collect(answer.into_body()).await? })
        };
        // An answer that arrives byte by byte would never end otherwise.
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unread(what, &self.unreachable(error).await.to_string())),
            Err(_) => Err(self.unread(what, &format!("no complete answer within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn unreachable(&self, error: kube::Error) -> Unreachable {
        Unreachable::through(self.server.as_str(), self.proxy.clone(), &error).with_refusal().await
    }

    /// The body of a successful answer.
    fn good(&self, answer: KubeAnswer) -> Result<Vec<u8>, ClusterError> {
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        let is_passing = answer.status == StatusCode::TOO_MANY_REQUESTS || answer.status.is_server_error();
        let message = text::shown(&answer.message(), bounds::ERROR);
        Err(ClusterError::Api { what: self.in_words(answer.what), message, is_passing })
    }

    /// The error of an answer that could not be read: a later request may succeed.
    fn unread(&self, what: &str, message: &str) -> ClusterError {
        let message = text::shown(message, bounds::ERROR);
        ClusterError::Api { what: self.in_words(what), message, is_passing: true }
    }

    fn wrong(&self, what: &str, message: String) -> ClusterError {
        ClusterError::Api { what: self.in_words(what), message, is_passing: false }
    }

    fn in_words(&self, what: &str) -> String {
        format!("{what} {} in {}", self.deployment, self.namespace)
    }
}

/// A request of kube's, if it can be made.
type KubeRequest = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

/// An answer of the API server.
struct KubeAnswer {
    what: &'static str,
    status: StatusCode,
    body: Vec<u8>,
}

impl KubeAnswer {
    /// The message of a `Status`, else the text of a proxy in between.
    fn message(&self) -> String {
        #[derive(Deserialize)]
        struct KubeStatus {
            message: String,
        }
        let status: Option<KubeStatus> =
            json::read(&self.body).ok().filter(|status: &KubeStatus| !status.message.is_empty());
        status.map_or_else(
            || format!("{} {}", self.status, String::from_utf8_lossy(&self.body[..self.body.len().min(bounds::ERROR)])),
            |status| status.message,
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_quota_is_the_deployments_own_trouble() {
        let deployment = json!({"status": {"conditions": [{"type": "ReplicaFailure", "status": "True",
            "message": "pods \"d0-x\" is forbidden: exceeded quota: few"}]}});
        let survey = Survey { deployment, pods: Vec::new() };
        assert_eq!(survey.why(), "pods \"d0-x\" is forbidden: exceeded quota: few");
    }
}
