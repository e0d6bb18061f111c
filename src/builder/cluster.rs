//! A builder's Deployment and pods in Kubernetes. The only file that connects to the API server.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Resource;
use kube::api::{GetParams, ListParams, Patch, PatchParams, PostParams, Request};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::access::{AccessError, KubeAccess};
use super::deployment;
use super::pods::{self, PodStatus};
use crate::body;
use crate::bounds;
use crate::json;
use crate::network::{self, Proxy, Unreachable};
use crate::settings;
use crate::text;

/// How often a patch is tried again when the Deployment changed meanwhile.
const N_CONFLICTS: u32 = 5;

/// The time limit of one answer of the API server, body included. The client's own limits apply to each read.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name under which Kubernetes records our changes.
const FIELD_MANAGER: &str = "sidebake";

/// Kubernetes did not do what was asked, or has no pod for a build.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server's address or the credentials are not available.
    #[error(transparent)]
    Access(#[from] Arc<AccessError>),
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
        /// What a later request may do about it.
        cause: Cause,
    },
    /// The Deployment does not exist.
    #[error("no Deployment {deployment} in the namespace {namespace}; create it with `sidebake builder ensure`")]
    Missing {
        /// Its name.
        deployment: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// buildx made the builder with a persistent volume.
    #[error(
        "{name} in the namespace {namespace} is a StatefulSet; sidebake uses Deployments: give the builder another `node`"
    )]
    StatefulSet {
        /// Its name.
        name: String,
        /// Where it is.
        namespace: String,
    },
    /// No pod answered a build.
    #[error("no pod of {deployment} answered within {waited_s} s")]
    NoAnswer {
        /// The Deployment.
        deployment: String,
        /// How long.
        waited_s: u64,
    },
    /// BuildKit is not in the first container.
    #[error("the Deployment {deployment}: {what}")]
    Misplaced {
        /// The Deployment.
        deployment: String,
        /// Which containers.
        what: String,
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

/// Why the API server did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is away or busy: a later request may succeed.
    Passing,
    /// It does not accept the credentials: newer ones may succeed.
    Unauthorized,
    /// It refuses.
    Refused,
}

impl From<AccessError> for ClusterError {
    fn from(error: AccessError) -> Self {
        Self::Access(Arc::new(error))
    }
}

impl ClusterError {
    /// Whether the API server or the credentials for it are away: a later request may succeed.
    pub(super) fn is_away(&self) -> bool {
        match self {
            Self::Api { cause, .. } => *cause != Cause::Refused,
            Self::Access(error) => error.is_passing(),
            Self::Unreachable(_) => true,
            _ => false,
        }
    }

    /// Whether a build waits: Kubernetes or an operator may end this state at any time.
    pub(super) fn may_pass(&self) -> bool {
        self.is_away() || matches!(self, Self::Missing { .. } | Self::NotReady { .. })
    }

    /// Whether the credentials were not accepted.
    pub(super) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Api { cause: Cause::Unauthorized, .. })
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// A pod takes builds.
    Ready,
    /// All pods are ready and have the last change.
    RolledOut,
}

/// The state of a builder.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    pub(super) deployment: Value,
    pub(super) pods: Vec<PodStatus>,
}

impl Survey {
    pub(super) fn n_ready(&self) -> usize {
        self.pods.iter().filter(|pod| pod.is_usable()).count()
    }

    pub(super) fn n_wanted(&self) -> usize {
        self.deployment["spec"]["replicas"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1)
    }

    /// Whether Kubernetes has processed the last change, and every pod has it.
    pub(super) fn is_rolled_out(&self) -> bool {
        let (generation, status) = (&self.deployment["metadata"]["generation"], &self.deployment["status"]);
        let n = |field: &str| status[field].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let is_seen = status["observedGeneration"].as_u64() >= generation.as_u64();
        is_seen && n("updatedReplicas") >= self.n_wanted() && n("replicas") <= self.n_wanted()
    }

    /// What is wrong when no pod of this Deployment can have BuildKit in its first container.
    pub(super) fn misplaced(&self) -> Option<String> {
        let containers = self.deployment["spec"]["template"]["spec"]["containers"].clone();
        let of_template = serde_json::from_value(containers).ok();
        let of_template = of_template.and_then(|containers: Vec<_>| pods::misplaced(&containers));
        let staying = || self.pods.iter().filter(|pod| !pod.is_going);
        let are_all = staying().count() > 0 && staying().all(|pod| pod.is_misplaced);
        let of_template = of_template.or_else(|| deployment::displaced(&self.deployment));
        of_template.or_else(|| staying().next().filter(|_| are_all).and_then(|pod| pod.trouble.clone()))
    }

    /// What is wrong with the builder, in Kubernetes' words; `None` when nothing is. Terminating pods do not count.
    pub(super) fn problem(&self) -> Option<String> {
        if self.n_wanted() == 0 {
            return Some("the Deployment has 0 replicas".into());
        }
        let staying = self.pods.iter().filter(|pod| !pod.is_going && !pod.is_usable());
        let of_pod = |pod: &PodStatus| Some(format!("{}: {}", pod.name, pod.trouble.as_ref()?));
        let mut reasons: Vec<String> = staying.filter_map(of_pod).collect();
        // A quota, or a rollout that does not end.
        reasons.extend(self.failing("ReplicaFailure", "True"));
        reasons.extend(self.failing("Progressing", "False"));
        if !reasons.is_empty() {
            return Some(reasons.join("; "));
        }
        (self.n_ready() < self.n_wanted()).then(|| match self.pods.is_empty() {
            true => "no pods yet".into(),
            false => "pods are starting".into(),
        })
    }

    /// The Deployment's condition of a kind, when it has this status.
    fn failing(&self, kind: &str, status: &str) -> Option<String> {
        let conditions = self.deployment["status"]["conditions"].as_array()?;
        let one = conditions.iter().find(|one| one["type"] == kind && one["status"] == status)?;
        Some(pods::say(one["reason"].as_str().unwrap_or(kind), one["message"].as_str()))
    }
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

    /// The Deployment and its pods; `None` when the Deployment does not exist.
    pub(super) async fn survey(&self) -> Result<Option<Survey>, ClusterError> {
        let deployment = self.find::<Deployment>("get the Deployment").await?;
        let pods = self.pods().await?;
        match deployment {
            Some(deployment) => Ok(Some(Survey { deployment, pods })),
            // A worker may not read StatefulSets. Their pods have the same label.
            None if pods.iter().any(|pod| pod.is_of_stateful_set) => Err(self.stateful_set()),
            None => Ok(None),
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
        const WHAT: &str = "list the pods of";
        let labelled = ListParams::default().labels(&format!("app={}", self.deployment)).limit(pods::MAX_PODS);
        let answer = self.ask(WHAT, Request::new(self.path::<Pod>()).list(&labelled)).await?;
        pods::read(&self.good(answer)?).map_err(|message| self.unread(WHAT, &message))
    }

    /// Creates the Deployment unless it exists. Safe to call from many processes at once. Returns whether this call created it.
    pub(super) async fn create(&self, builder: &settings::Builder) -> Result<bool, ClusterError> {
        if self.find::<Deployment>("get the Deployment").await?.is_some() {
            return Ok(false);
        }
        if self.find::<StatefulSet>("get the StatefulSet").await?.is_some() {
            return Err(self.stateful_set());
        }
        let text = self.write_config(builder).await?;
        let whole = deployment::whole(&self.deployment, builder, text.as_deref());
        let whole: Deployment = serde_json::from_value(whole).map_err(|error| {
            self.wrong("create the Deployment", format!("the settings do not make a valid Deployment: {error}"))
        })?;
        self.make("create the Deployment", &PostParams::default(), &whole).await
    }

    /// Applies the configured fields, removes those that were configured before, and leaves all others.
    pub(super) async fn apply(&self, builder: &settings::Builder) -> Result<(), ClusterError> {
        let text = self.write_config(builder).await?;
        for n_left in (0..N_CONFLICTS).rev() {
            let live = self.find::<Deployment>("get the Deployment").await?.ok_or_else(|| self.missing())?;
            let staged = Survey { deployment: live, pods: Vec::new() };
            if let Some(what) = staged.misplaced() {
                return Err(ClusterError::Misplaced { deployment: self.name(), what });
            }
            let live = staged.deployment;
            let desired = deployment::desired(&self.deployment, builder, &live, text.as_deref());
            let patch = Patch::Merge(deployment::patch(&live, &desired));
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            let request = Request::new(self.path::<Deployment>()).patch(&self.deployment, &params, &patch);
            let patched = self.ask("patch the Deployment", request).await?;
            if patched.status != StatusCode::CONFLICT || n_left == 0 {
                return self.good(patched).map(drop);
            }
        }
        Ok(())
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

    fn survey(deployment: Value, pods: &[Value]) -> Survey {
        let pods = pods::read(json!({"items": pods}).to_string().as_bytes()).expect("pods");
        Survey { deployment, pods }
    }

    fn ready(name: &str) -> Value {
        json!({"metadata": {"name": name}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
    }

    #[test]
    fn a_quota_is_the_deployments_own_trouble() {
        let deployment = json!({"status": {"conditions": [{"type": "ReplicaFailure", "status": "True",
            "reason": "FailedCreate", "message": "pods \"d0-x\" is forbidden: exceeded quota: few"}]}});
        let words = "FailedCreate (pods \"d0-x\" is forbidden: exceeded quota: few)";
        assert_eq!(survey(deployment, &[]).problem().as_deref(), Some(words));
    }

    #[test]
    fn a_builder_that_takes_no_builds_or_does_not_get_its_change_has_a_problem() {
        let none = survey(json!({"spec": {"replicas": 0}}), &[ready("d0-a")]);
        assert_eq!(none.problem().as_deref(), Some("the Deployment has 0 replicas"));

        let two = json!({"spec": {"replicas": 2}});
        assert_eq!(survey(two.clone(), &[ready("d0-a"), ready("d0-b")]).problem(), None);
        let mut going = ready("d0-b");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let short = survey(two.clone(), &[ready("d0-a"), going]);
        assert_eq!((short.n_ready(), short.problem().as_deref()), (1, Some("pods are starting")));

        let stuck = json!({"metadata": {"name": "d0-c"}, "status": {"phase": "Pending",
            "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}});
        let words = survey(two, &[ready("d0-a"), ready("d0-b"), stuck]).problem();
        assert_eq!(words.as_deref(), Some("d0-c: ImagePullBackOff"), "all old pods are ready");
        let late = json!({"spec": {"replicas": 1}, "status": {"conditions": [{"type": "Progressing", "status": "False",
            "reason": "ProgressDeadlineExceeded", "message": "ReplicaSet \"d0-1\" has timed out progressing."}]}});
        let words = "ProgressDeadlineExceeded (ReplicaSet \"d0-1\" has timed out progressing.)";
        assert_eq!(survey(late, &[ready("d0-a")]).problem().as_deref(), Some(words));
    }

    #[test]
    fn a_sidecar_before_buildkit_is_found_in_the_template_and_in_the_pods() {
        let containers = json!([{"name": "proxy", "image": "p"}, {"name": "buildkitd", "image": "b"}]);
        let template = json!({"spec": {"template": {"spec": {"containers": containers}}}});
        assert!(survey(template, &[]).misplaced().expect("words").contains("first container, proxy"));
        let mut injected = ready("d0-a");
        injected["spec"]["containers"] = containers;
        let (plain, good) = (json!({"spec": {"replicas": 1}}), ready("d0-b"));
        assert!(survey(plain.clone(), &[injected.clone()]).misplaced().is_some());
        assert_eq!(survey(plain, &[injected, good]).misplaced(), None, "a rollout can pass");
    }
}
