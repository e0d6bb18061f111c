//! A builder's Deployment or StatefulSet and its pods in Kubernetes. The only file that connects to the API server.

mod error;
mod survey;

use std::time::Duration;

use http::StatusCode;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::Resource;
use kube::api::{GetParams, ListParams, Patch, PatchParams, PostParams, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::access::{AccessError, KubeAccess};
use super::deployment;
use super::pods::{self, PodStatus};
use crate::body;
use crate::bounds;
use crate::json;
use crate::network::{self, Proxy, Unreachable};
use crate::settings::{self, SHARD_OF, quantity};
use crate::text;

pub use error::{Cause, ClusterError};
pub(super) use survey::{Survey, is_stateful_set};

/// How often a patch is tried again when the Deployment changed meanwhile.
const N_CONFLICTS: u32 = 5;

/// The time limit of one answer of the API server, body included. The client's own limits apply to each read.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name under which Kubernetes records our changes.
const FIELD_MANAGER: &str = "sidebake";

/// What is read, in words.
const GET_DEPLOYMENT: &str = "get the Deployment";
const GET_STATEFUL_SET: &str = "get the StatefulSet";

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// A pod takes builds.
    Ready,
    /// All pods are ready and have the last change.
    RolledOut,
}

/// The API server, for one builder.
#[derive(Clone)]
pub(super) struct Cluster {
    client: kube::Client,
    /// The API server's address.
    url: String,
    /// The proxy through which it is reached.
    proxy: Option<Proxy>,
    namespace: String,
    deployment: String,
}

impl Cluster {
    pub(super) fn new(access: &KubeAccess, deployment: String) -> Result<Self, AccessError> {
        Ok(Self {
            client: access.client()?,
            url: access.url(),
            proxy: access.proxy().cloned(),
            namespace: access.namespace().to_owned(),
            deployment,
        })
    }

    /// Asks for the version of the API server. Any answer will do.
    pub(super) async fn answers(&self) -> Result<(), ClusterError> {
        let request = http::Request::get("/version").body(kube::client::Body::empty()).expect("a valid request");
        match timeout(PATIENCE, self.client.send(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.unreachable(error).await.into()),
            Err(_) => Err(self.unread("ask for", &format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    /// The builder and its pods; `None` when it does not exist.
    pub(super) async fn survey(&self) -> Result<Option<Survey>, ClusterError> {
        let deployment = self.find::<Deployment>(GET_DEPLOYMENT).await?;
        let pods = self.pods().await?;
        let is_of_stateful_set = || pods.iter().any(|pod| pod.is_of_stateful_set);
        let workload = match deployment {
            Some(deployment) => Some(deployment),
            None => match self.find::<StatefulSet>(GET_STATEFUL_SET).await {
                // A worker of Deployments need not have the right to read StatefulSets.
                Err(error) if !error.is_away() && !is_of_stateful_set() => None,
                found => found?,
            },
        };
        Ok(workload.map(|workload| Survey { workload, pods }))
    }

    /// The Deployment, or the StatefulSet that buildx made in its place; `None` when neither exists.
    async fn workload(&self) -> Result<Option<Value>, ClusterError> {
        match self.find::<Deployment>(GET_DEPLOYMENT).await? {
            Some(deployment) => Ok(Some(deployment)),
            None => self.find::<StatefulSet>(GET_STATEFUL_SET).await,
        }
    }

    /// The builder when it has reached the goal; else what keeps it. `waited`: for how long it was waited for.
    pub(super) async fn reach(&self, goal: Goal, waited: Duration) -> Result<Survey, ClusterError> {
        let Some(survey) = self.survey().await? else { return Err(self.missing()) };
        let n_ready = survey.n_ready();
        let n_wanted = if goal == Goal::Ready { 1 } else { survey.n_wanted().max(1) };
        if n_ready >= n_wanted && (goal == Goal::Ready || survey.is_rolled_out()) {
            return Ok(survey);
        }
        if let Some(what) = survey.misplaced() {
            return Err(ClusterError::Misplaced { deployment: self.name(), what });
        }
        let why = survey.problem().unwrap_or_else(|| "the last change is not complete".into());
        Err(ClusterError::NotReady { deployment: self.name(), n_ready, n_wanted, waited_s: waited.as_secs(), why })
    }

    /// The object that has the Deployment's name, as JSON; `None` when it does not exist.
    async fn find<K: Resource<DynamicType = ()>>(&self, what: &'static str) -> Result<Option<Value>, ClusterError> {
        let request = Request::new(self.path::<K>()).get(&self.deployment, &GetParams::default());
        let answer = self.ask(what, request).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = self.good(answer)?;
        json::read(&body).map(Some).map_err(|error| self.unread(what, &error.to_string()))
    }

    /// The pods among which buildx would choose, and those that are starting or ending.
    pub(super) async fn pods(&self) -> Result<Vec<PodStatus>, ClusterError> {
        self.list("list the pods of", &format!("app={}", self.deployment)).await
    }

    /// The pods of these shards of a group, when one of them takes builds. `waited`: for how long that was waited for.
    pub(super) async fn shards(
        &self,
        group: &str,
        names: &[&str],
        waited: Duration,
    ) -> Result<Vec<PodStatus>, ClusterError> {
        let mut pods = self.list("list the pods of the builder of", &format!("{SHARD_OF}={group}")).await?;
        // The builder may have had more shards.
        pods.retain(|pod| pod.app.as_deref().is_some_and(|app| names.contains(&app)));
        if pods.iter().any(PodStatus::is_usable) {
            return Ok(pods);
        }
        let troubles = pods.iter().filter_map(|pod| Some(format!("{}: {}", pod.name, pod.trouble.as_ref()?)));
        let why = match troubles.collect::<Vec<_>>() {
            _ if pods.is_empty() => "there are no pods; `sidebake builder ensure` creates missing shards".into(),
            troubles if troubles.is_empty() => "pods are starting".into(),
            troubles => text::shown(&troubles.join("; "), bounds::NOTICE),
        };
        let deployment = format!("the shards {group}-… in {}", self.namespace);
        Err(ClusterError::NotReady { deployment, n_ready: 0, n_wanted: names.len(), waited_s: waited.as_secs(), why })
    }

    async fn list(&self, what: &'static str, labels: &str) -> Result<Vec<PodStatus>, ClusterError> {
        let labelled = ListParams::default().labels(labels).limit(pods::MAX_PODS);
        let answer = self.ask(what, Request::new(self.path::<Pod>()).list(&labelled)).await?;
        pods::read(&self.good(answer)?).map_err(|message| self.unread(what, &message))
    }

    /// Creates the Deployment unless it or a StatefulSet exists. Safe to call from many processes at once. Returns whether this call
    /// created it.
    pub(super) async fn create(&self, builder: &settings::Builder) -> Result<bool, ClusterError> {
        if let Some(workload) = self.workload().await? {
            let is_shard = builder.group().is_some();
            return if is_shard && is_stateful_set(&workload) { Err(self.stateful_set()) } else { Ok(false) };
        }
        let text = self.write_config(builder).await?;
        self.claim_volume(builder).await?;
        let whole = deployment::whole(&self.deployment, builder, text.as_deref());
        let whole: Deployment = serde_json::from_value(whole).map_err(|error| {
            self.wrong("create the Deployment", format!("the settings do not make a valid Deployment: {error}"))
        })?;
        let path = self.path::<Deployment>();
        self.make("create the Deployment", &path, &PostParams::default(), &whole).await
    }

    /// Applies the configured fields, removes those that were configured before, and leaves all others.
    pub(super) async fn apply(&self, builder: &settings::Builder) -> Result<(), ClusterError> {
        let text = self.write_config(builder).await?;
        self.claim_volume(builder).await?;
        for n_left in (0..N_CONFLICTS).rev() {
            let live = self.workload().await?.ok_or_else(|| self.missing())?;
            let staged = Survey { workload: live, pods: Vec::new() };
            if let Some(what) = staged.misplaced() {
                return Err(ClusterError::Misplaced { deployment: self.name(), what });
            }
            let live = staged.workload;
            let (what, path) = match is_stateful_set(&live) {
                true => ("patch the StatefulSet", self.path::<StatefulSet>()),
                false => ("patch the Deployment", self.path::<Deployment>()),
            };
            let desired = deployment::desired(&self.deployment, builder, &live, text.as_deref());
            let patch = Patch::Merge(deployment::patch(&live, &desired));
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            let patched = self.ask(what, Request::new(path).patch(&self.deployment, &params, &patch)).await?;
            if patched.status != StatusCode::CONFLICT || n_left == 0 {
                self.good(patched)?;
                break;
            }
        }
        // Last, because a storage class may refuse it.
        self.enlarge_volume(builder).await
    }

    /// Makes Kubernetes evict at most one of the pods of a group of shards at a time. An existing budget changes only with
    /// `is_change`.
    pub(super) async fn protect(&self, group: &str, is_change: bool) -> Result<(), ClusterError> {
        const WHAT: [&str; 2] =
            ["create the PodDisruptionBudget of the builder of", "patch the PodDisruptionBudget of the builder of"];
        // Kubernetes before 1.21 has only the second version. It would answer 404 to the other.
        let is_known = self.ask(WHAT[0], Request::new("/apis/policy/v1").list(&ListParams::default())).await;
        let is_old = is_known.is_ok_and(|answer| answer.status == StatusCode::NOT_FOUND);
        let version = if is_old { "policy/v1beta1" } else { "policy/v1" };
        let path = format!("/apis/{version}/namespaces/{}/poddisruptionbudgets", self.namespace);
        let budget = deployment::disruption_budget(version, group);
        if is_change {
            return self.write(WHAT, &path, &deployment::disruption_budget_name(group), budget).await;
        }
        self.make(WHAT[0], &path, &managed(), &budget).await.map(drop)
    }

    /// Claims the disk of a shard, unless there is a claim.
    async fn claim_volume(&self, builder: &settings::Builder) -> Result<(), ClusterError> {
        let Some(claim) = deployment::volume_claim(&self.deployment, builder) else { return Ok(()) };
        let path = self.path::<PersistentVolumeClaim>();
        self.make("create the PersistentVolumeClaim of", &path, &managed(), &claim).await.map(drop)
    }

    /// Enlarges the disk of a shard if it is smaller than configured. Kubernetes can change nothing else of a claim.
    async fn enlarge_volume(&self, builder: &settings::Builder) -> Result<(), ClusterError> {
        let Some(claim) = deployment::volume_claim(&self.deployment, builder) else { return Ok(()) };
        let live = self.find::<PersistentVolumeClaim>("get the PersistentVolumeClaim of").await?;
        let bytes = |claim: &Value| claim["spec"]["resources"]["requests"]["storage"].as_str().and_then(quantity);
        if live.is_some_and(|live| bytes(&live) >= bytes(&claim)) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"spec": {"resources": claim["spec"]["resources"]}}));
        let path = self.path::<PersistentVolumeClaim>();
        let patch = Request::new(path).patch(&self.deployment, &PatchParams::default(), &patch);
        let patched = self.ask("patch the PersistentVolumeClaim of", patch).await?;
        self.good(patched).map(drop)
    }

    /// Writes the configuration of BuildKit to the ConfigMap, and returns it.
    async fn write_config(&self, builder: &settings::Builder) -> Result<Option<String>, ClusterError> {
        const WHAT: [&str; 2] = ["create the ConfigMap of", "patch the ConfigMap of"];
        let text = deployment::buildkitd_toml(builder).map_err(|(path, source)| ClusterError::File { path, source })?;
        let Some(text) = text else { return Ok(None) };
        let name = deployment::config_map_name(&self.deployment);
        let map = deployment::config_map(&self.deployment, &text);
        self.write(WHAT, &self.path::<ConfigMap>(), &name, map).await?;
        Ok(Some(text))
    }

    /// Creates an object, or makes an existing one like it. `what` says both.
    async fn write(&self, what: [&'static str; 2], path: &str, name: &str, whole: Value) -> Result<(), ClusterError> {
        // A server-side apply would do both, but its refusal does not name the verb when creating is not allowed.
        if self.make(what[0], path, &managed(), &whole).await? {
            return Ok(());
        }
        let (params, patch) = (PatchParams::apply(FIELD_MANAGER).force(), Patch::Apply(whole));
        let patched = self.ask(what[1], Request::new(path).patch(name, &params, &patch)).await?;
        self.good(patched).map(drop)
    }

    /// Creates an object. Returns false when it already exists: another process was faster.
    async fn make(
        &self,
        what: &'static str,
        path: &str,
        params: &PostParams,
        whole: &impl Serialize,
    ) -> Result<bool, ClusterError> {
        let data = serde_json::to_vec(whole).expect("an object of Kubernetes is JSON");
        let answer = self.ask(what, Request::new(path).create(params, data)).await?;
        if answer.status == StatusCode::CONFLICT {
            return Ok(false);
        }
        self.good(answer).map(|_| true)
    }

    /// The error of a Deployment that does not exist.
    fn missing(&self) -> ClusterError {
        ClusterError::Missing { deployment: self.deployment.clone(), namespace: self.namespace.clone() }
    }

    fn stateful_set(&self) -> ClusterError {
        ClusterError::StatefulSet { name: self.deployment.clone(), namespace: self.namespace.clone() }
    }

    /// The Deployment and its namespace, in words.
    fn name(&self) -> String {
        format!("{} in {}", self.deployment, self.namespace)
    }

    /// The URL path of a kind of object.
    fn path<K: Resource<DynamicType = ()>>(&self) -> String {
        K::url_path(&(), Some(&self.namespace))
    }

    /// Sends a request and reads the whole answer, up to a bound. Does not look at its status.
    async fn ask(&self, what: &'static str, request: KubeRequest) -> Result<KubeAnswer, ClusterError> {
        let request = request.map_err(|error| self.wrong(what, error.to_string()))?;
        let answer = async {
            let answer = match self.client.send(request.map(kube::client::Body::from)).await {
                Ok(answer) => answer,
                Err(error) => return Err(self.unread(what, &self.unreachable(error).await.to_string())),
            };
            let status = answer.status();
            let body = body::collect(answer.into_body()).await;
            let body = body.map_err(|error| self.unread(what, &network::explain(&error)))?;
            Ok::<_, ClusterError>(KubeAnswer { what, status, body })
        };
        // An answer that arrives byte by byte would never end otherwise.
        let late =
            || self.unread(what, &format!("{} gave no complete answer within {} s", self.url, PATIENCE.as_secs()));
        timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(late()))
    }

    async fn unreachable(&self, error: kube::Error) -> Unreachable {
        Unreachable::through(self.url.as_str(), self.proxy.clone(), &error).with_refusal().await
    }

    /// The body of a successful answer.
    fn good(&self, answer: KubeAnswer) -> Result<Vec<u8>, ClusterError> {
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        let cause = match answer.status {
            StatusCode::UNAUTHORIZED => Cause::Unauthorized,
            StatusCode::TOO_MANY_REQUESTS => Cause::Passing,
            status if status.is_server_error() => Cause::Passing,
            _ => Cause::Refused,
        };
        let message = text::shown(&answer.message(), bounds::ERROR);
        Err(ClusterError::Api { what: self.in_words(answer.what), message, cause })
    }

    /// The error of an answer that could not be read: a later request may succeed.
    fn unread(&self, what: &str, message: &str) -> ClusterError {
        let message = text::shown(message, bounds::ERROR);
        ClusterError::Api { what: self.in_words(what), message, cause: Cause::Passing }
    }

    fn wrong(&self, what: &str, message: String) -> ClusterError {
        ClusterError::Api { what: self.in_words(what), message, cause: Cause::Refused }
    }

    fn in_words(&self, what: &str) -> String {
        format!("{what} {}", self.name())
    }
}

/// How an object is created that is changed by `apply` later.
fn managed() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
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
