//! A builder's Deployment and pods, in Kubernetes' own words. The one file that speaks to the API server.
//!
//! Of an answer only what is asked for is read, pod by pod: a pod of the API's own type takes two kilobytes however little is
//! said of it, and an answer of 8 MiB can hold millions.

use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Resource;
use kube::api::{GetParams, ListParams, Patch, PatchParams, PostParams, Request};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::access::{Access, AccessError};
use super::deployment::{self, Ground};
use crate::body;
use crate::bounds;
use crate::json;
use crate::settings;
use crate::text;

/// How often pods are looked at while they start.
const LOOK: Duration = Duration::from_millis(500);

/// For one answer of the API server, its body included. The client's own limits are for each read.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who Kubernetes is told changes the Deployment.
const FIELD_MANAGER: &str = "sidebake";

/// Kubernetes does not do what was asked, or has no pod for a build.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server's address or credentials cannot be had.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The API server refuses or does not answer.
    #[error("Kubernetes, asked to {what}: {message}")]
    Api {
        /// What was asked, such as `get the Deployment development0 in release-builder`.
        what: String,
        /// Its answer, in its own words: a refusal names the verb and the resource.
        message: String,
        /// Whether it may be over when it is asked again.
        is_passing: bool,
    },
    /// There is no Deployment.
    #[error("there is no Deployment {deployment} in the namespace {namespace}; `sidebake builder ensure` makes it")]
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
        matches!(self, Self::Api { is_passing: true, .. })
    }
}

/// One pod of a builder.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PodStatus {
    /// Its name.
    pub name: String,
    /// Tells two pods of one name apart.
    #[serde(skip)]
    pub uid: String,
    /// The node it runs on.
    pub node: Option<String>,
    /// Seconds since it was made.
    pub age_s: Option<i64>,
    /// Whether builds may go there: phase `Running`, as buildx judges.
    pub is_running: bool,
    /// Whether BuildKit in it answers.
    pub is_ready: bool,
    /// Whether it has been told to go.
    pub is_going: bool,
    /// How often BuildKit was started anew in it.
    pub n_restarts: i32,
    /// Why it does not run, or last ended: Kubernetes' reason and message.
    pub trouble: Option<String>,
    /// Builds of the fleet that run there, as far as somebody has asked.
    pub n_builds: Option<u32>,
}

/// What there is of a builder.
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

    /// Whether Kubernetes has seen the last change, and every pod is of it.
    fn is_rolled_out(&self) -> bool {
        let (generation, status) = (&self.deployment["metadata"]["generation"], &self.deployment["status"]);
        let n = |field: &str| status[field].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let is_seen = status["observedGeneration"].as_u64() >= generation.as_u64();
        is_seen && n("updatedReplicas") >= self.n_wanted() && n("replicas") <= self.n_wanted()
    }

    /// Why pods are missing or not ready: each pod's trouble, or the Deployment's (a quota, a forbidden verb).
    pub(super) fn why(&self) -> String {
        let of_pod = |pod: &PodStatus| Some(format!("{}: {}", pod.name, pod.trouble.as_ref()?));
        let mut reasons: Vec<String> = self.pods.iter().filter(|pod| !pod.is_ready).filter_map(of_pod).collect();
        let conditions = self.deployment["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let failing = conditions.iter().filter(|one| one["type"] == "ReplicaFailure" && one["status"] == "True");
        reasons.extend(failing.filter_map(|one| one["message"].as_str()).map(str::to_owned));
        match reasons.is_empty() {
            true if self.pods.is_empty() => "it has no pods yet".into(),
            true => "they are starting".into(),
            false => reasons.join("; "),
        }
    }
}

/// The API server, for one builder.
#[derive(Clone)]
pub(super) struct Cluster {
    client: kube::Client,
    namespace: String,
    deployment: String,
}

impl Cluster {
    pub(super) fn new(access: &Access, deployment: String) -> Result<Self, AccessError> {
        Ok(Self { client: access.client()?, namespace: access.namespace().to_owned(), deployment })
    }

    /// The Deployment and its pods; `None` when there is no Deployment.
    pub(super) async fn survey(&self) -> Result<Option<Survey>, ClusterError> {
        let Some(deployment) = self.deployment().await? else { return Ok(None) };
        Ok(Some(Survey { deployment, pods: self.pods().await? }))
    }

    /// The Deployment as JSON; `None` when there is none.
    async fn deployment(&self) -> Result<Option<Value>, ClusterError> {
        let request = Request::new(self.path::<Deployment>()).get(&self.deployment, &GetParams::default());
        let answer = self.ask("get the Deployment", request).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = self.good(answer)?;
        json::read(&body).map(Some).map_err(|error| self.unread("get the Deployment", &error.to_string()))
    }

    /// The pods that buildx would choose among, and those that are starting or ending.
    pub(super) async fn pods(&self) -> Result<Vec<PodStatus>, ClusterError> {
        const WHAT: &str = "list the pods of";
        let labelled = ListParams::default().labels(&format!("app={}", self.deployment)).limit(MAX_PODS);
        let answer = self.ask(WHAT, Request::new(self.path::<Pod>()).list(&labelled)).await?;
        read_pods(&self.good(answer)?).map_err(|message| self.unread(WHAT, &message))
    }

    /// Makes the Deployment unless it is there, from any number of processes at once; returns whether this one made it.
    pub(super) async fn create(&self, builder: &settings::Builder) -> Result<bool, ClusterError> {
        if self.deployment().await?.is_some() {
            return Ok(false);
        }
        let text = self.write_config(builder).await?;
        let whole = deployment::whole(&self.deployment, builder, text.as_deref());
        let whole: Deployment = serde_json::from_value(whole).map_err(|error| {
            self.wrong("create the Deployment", format!("the settings make no Deployment: {error}"))
        })?;
        self.make("create the Deployment", &PostParams::default(), &whole).await
    }

    /// Changes what the configuration names, and nothing else.
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

    /// Puts the configured buildkitd.toml where pods find it, and returns it.
    async fn write_config(&self, builder: &settings::Builder) -> Result<Option<String>, ClusterError> {
        let Some(path) = &builder.buildkitd_config else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ClusterError::File { path: path.display().to_string(), source })?;
        let map = deployment::config_map(&self.deployment, &text);
        let whole: ConfigMap = serde_json::from_value(map.clone()).map_err(|error| {
            self.wrong("create the ConfigMap of", format!("the settings make no ConfigMap: {error}"))
        })?;
        // An apply would do for both, but Kubernetes does not name the verb when one may not create.
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

    /// Creates an object; returns false when one of its name is there already: somebody else was quicker.
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

    /// Waits until so many pods are ready (`None`: as many as the Deployment wants).
    pub(super) async fn wait_until_ready(&self, n: Option<usize>, patience: Duration) -> Result<Survey, ClusterError> {
        let started = Instant::now();
        loop {
            let is_late = started.elapsed() >= patience;
            match self.survey().await {
                Ok(Some(survey)) => {
                    let (n_ready, n_wanted) = (survey.n_ready(), n.unwrap_or_else(|| survey.n_wanted()));
                    // Some of them for a build; all of them, as they are to be now, for whoever made or changed them.
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
                // An API server that starts again is no reason to fail every build.
                Err(error) if is_late || !error.is_passing() => return Err(error),
                Err(error) => tracing::debug!(%error, "asked again"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where the objects of a kind are.
    fn path<K: Resource<DynamicType = ()>>(&self) -> String {
        K::url_path(&(), Some(&self.namespace))
    }

    /// Asks, and reads the whole answer, which has a bound. What it says is not looked at here.
    async fn ask(&self, what: &'static str, request: Asked) -> Result<Answer, ClusterError> {
        let request = request.map_err(|error| self.wrong(what, error.to_string()))?;
        let answer = async {
            let answer = self.client.send(request.map(kube::client::Body::from)).await?;
            Ok(Answer { what, status: answer.status(), body: body::collect(answer.into_body()).await? })
        };
        // One that comes byte by byte would never end otherwise.
        match timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|error: kube::Error| self.unread(what, &with_causes(&error))),
            Err(_) => Err(self.unread(what, &format!("no whole answer within {} s", PATIENCE.as_secs()))),
        }
    }

    /// The body of an answer that is no refusal.
    fn good(&self, answer: Answer) -> Result<Vec<u8>, ClusterError> {
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        let is_passing = answer.status == StatusCode::TOO_MANY_REQUESTS || answer.status.is_server_error();
        let message = text::shown(&answer.message(), bounds::ERROR);
        Err(ClusterError::Api { what: self.in_words(answer.what), message, is_passing })
    }

    /// Without an answer that can be read, it may be over when it is asked again.
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
type Asked = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

/// What the API server answers.
struct Answer {
    what: &'static str,
    status: StatusCode,
    body: Vec<u8>,
}

impl Answer {
    /// Its own words: those of a `Status`, else of whoever is between.
    fn message(&self) -> String {
        #[derive(Deserialize)]
        struct Status {
            message: String,
        }
        let status: Option<Status> = json::read(&self.body).ok().filter(|status: &Status| !status.message.is_empty());
        status.map_or_else(
            || format!("{} {}", self.status, String::from_utf8_lossy(&self.body[..self.body.len().min(bounds::ERROR)])),
            |status| status.message,
        )
    }
}

/// As many as are asked for at once.
const MAX_PODS: u32 = bounds::PODS as u32;

/// The pods of a list, or why there are none to be had.
fn read_pods(list: &[u8]) -> Result<Vec<PodStatus>, String> {
    let too_many = || Err(format!("there are more than {} pods", bounds::PODS));
    let list = std::str::from_utf8(list).map_err(|error| error.to_string())?;
    json::is_json(list).map_err(|error| error.to_string())?;
    // There is a token when there are more.
    if json::pointer(list, "/metadata/continue").is_some_and(|token| !matches!(token, "null" | "\"\"")) {
        return too_many();
    }
    let mut pods = Vec::new();
    for pod in json::items(json::pointer(list, "/items").unwrap_or_default()) {
        if pods.len() == bounds::PODS {
            return too_many();
        }
        pods.push(PodStatus::of(json::read(pod.as_bytes()).map_err(|error| error.to_string())?));
    }
    Ok(pods)
}

/// The error and what it comes from, without saying the same twice.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// What is read of a pod (`v1.Pod`). Go writes what is empty as null, or not at all.
#[derive(Default, Deserialize)]
struct LivePod {
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    conditions: Option<Vec<Condition>>,
    container_statuses: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_count: Option<i32>,
    state: Option<ContainerState>,
    last_state: Option<ContainerState>,
}

#[derive(Deserialize)]
struct ContainerState {
    waiting: Option<Waiting>,
    terminated: Option<Terminated>,
}

#[derive(Deserialize)]
struct Waiting {
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terminated {
    reason: Option<String>,
    message: Option<String>,
    exit_code: Option<i32>,
}

impl PodStatus {
    fn of(pod: LivePod) -> Self {
        let (metadata, status) = (pod.metadata.unwrap_or_default(), pod.status.unwrap_or_default());
        let containers = status.container_statuses.unwrap_or_default();
        let first = containers.first();
        let now = crate::clock::Epoch::now().timestamp();
        let condition = |kind: &str| status.conditions.iter().flatten().find(|one| one.kind == kind);
        // Evicted, node lost: the pod's own reason. Unschedulable: its condition. Else the container's.
        let own = status.reason.as_ref().map(|reason| say(reason, status.message.as_deref()));
        let unscheduled = || {
            let one = condition("PodScheduled").filter(|one| one.status == "False")?;
            Some(say(one.reason.as_deref().unwrap_or("not scheduled"), one.message.as_deref()))
        };
        Self {
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            node: pod.spec.and_then(|spec| spec.node_name),
            age_s: metadata.creation_timestamp.map(|created| now.as_second() - created.as_second()),
            is_running: status.phase.as_deref() == Some("Running"),
            is_ready: condition("Ready").is_some_and(|one| one.status == "True"),
            is_going: metadata.deletion_timestamp.is_some(),
            n_restarts: first.and_then(|container| container.restart_count).unwrap_or(0),
            trouble: own.or_else(unscheduled).or_else(|| first.and_then(container_trouble)),
            n_builds: None,
        }
    }
}

fn container_trouble(container: &Container) -> Option<String> {
    let of = |state: &ContainerState| {
        let waiting = state.waiting.as_ref().filter(|one| one.reason.as_deref() != Some("ContainerCreating"));
        let waiting = waiting.map(|one| say(one.reason.as_deref().unwrap_or("waiting"), one.message.as_deref()));
        let terminated = || {
            let one = state.terminated.as_ref()?;
            let reason = one.reason.as_deref().unwrap_or("ended");
            let code = format!("exit code {}", one.exit_code.unwrap_or(0));
            Some(say(reason, Some(one.message.as_deref().unwrap_or(&code))))
        };
        waiting.or_else(terminated)
    };
    // What it says now, and why it ended before: CrashLoopBackOff alone explains nothing.
    let texts = [container.state.as_ref().and_then(of), container.last_state.as_ref().and_then(of)];
    let texts: Vec<String> = texts.into_iter().flatten().collect();
    (!texts.is_empty()).then(|| texts.join(", before that "))
}

fn say(reason: &str, message: Option<&str>) -> String {
    let text = match message.map(str::trim).filter(|message| !message.is_empty()) {
        Some(message) => format!("{reason} ({message})"),
        None => reason.to_owned(),
    };
    text::shown(&text, bounds::NOTICE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: Value) -> PodStatus {
        let pod = json!({"metadata": {"name": "d0-a", "uid": "1"}, "status": status});
        let mut pods = read_pods(json!({"items": [pod]}).to_string().as_bytes()).expect("a pod");
        pods.remove(0)
    }

    #[test]
    fn pods_are_read_one_by_one_and_no_more_than_there_may_be() {
        let list = |n: usize| format!(r#"{{"metadata":{{"continue":""}},"items":[{}{{}}]}}"#, "{},".repeat(n - 1));
        assert_eq!(read_pods(list(1_000).as_bytes()).map(|pods| pods.len()), Ok(1_000));
        let too_many = Err("there are more than 1000 pods".to_owned());
        assert_eq!(read_pods(list(1_001).as_bytes()), too_many);
        assert_eq!(read_pods(br#"{"metadata":{"continue":"x"},"items":[]}"#), too_many);
        assert_eq!(read_pods(br#"{"items":null}"#), Ok(Vec::new()));
        let conditions = format!(r#"{{"items":[{{"status":{{"conditions":[{}0]}}}}]}}"#, "{},".repeat(60_000));
        assert_eq!(read_pods(conditions.as_bytes()), Err("more than 50000 names and values".to_owned()));
        assert!(read_pods(br#"{"items":[{]}"#).is_err() && read_pods(b"\xff").is_err());
    }

    #[test]
    fn a_pod_that_does_not_start_says_why_in_kubernetes_words() {
        let pull = pod(
            json!({"phase": "Pending", "containerStatuses": [{"name": "b", "image": "x", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"x\""}}}]}),
        );
        assert_eq!(pull.trouble.as_deref(), Some("ImagePullBackOff (Back-off pulling image \"x\")"));
        let unschedulable = pod(json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient cpu."}]}));
        assert_eq!(
            unschedulable.trouble.as_deref(),
            Some("Unschedulable (0/1 nodes are available: 1 Insufficient cpu.)")
        );
        let crashing = pod(
            json!({"phase": "Running", "containerStatuses": [{"name": "b", "image": "x", "imageID": "", "ready": false,
            "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]}),
        );
        assert_eq!(crashing.trouble.as_deref(), Some("CrashLoopBackOff, before that OOMKilled (exit code 137)"));
        assert_eq!((crashing.n_restarts, crashing.is_running, crashing.is_ready), (4, true, false));
        let evicted =
            pod(json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}));
        assert_eq!(evicted.trouble.as_deref(), Some("Evicted (The node was low on resource: memory.)"));
    }

    #[test]
    fn a_quota_is_the_deployments_own_trouble() {
        let deployment = json!({"status": {"conditions": [{"type": "ReplicaFailure", "status": "True",
            "message": "pods \"d0-x\" is forbidden: exceeded quota: few"}]}});
        let survey = Survey { deployment, pods: Vec::new() };
        assert_eq!(survey.why(), "pods \"d0-x\" is forbidden: exceeded quota: few");
    }
}
