//! The pods of a builder, as the API server describes them.
//!
//! Reads only the needed fields, pod by pod: a pod of the API's own type takes two kilobytes even when it is empty, and an answer
//! of 8 MiB can hold millions.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::{bounds, json, text};

/// How many pods are requested at once.
pub(super) const MAX_PODS: u32 = bounds::PODS as u32;

/// One pod of a builder.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PodStatus {
    /// Its name.
    pub name: String,
    /// Distinguishes two pods of one name.
    #[serde(skip)]
    pub uid: String,
    /// The node it runs on.
    pub node: Option<String>,
    /// Seconds since its creation.
    pub age_s: Option<i64>,
    /// Whether builds may go there: phase `Running`, as in buildx.
    pub is_running: bool,
    /// Whether BuildKit in it answers.
    pub is_ready: bool,
    /// Whether it is terminating.
    pub is_going: bool,
    /// How often its BuildKit was restarted.
    pub n_restarts: i32,
    /// Why it is not running or not ready, or why it last ended: Kubernetes' reason and message.
    pub trouble: Option<String>,
    /// Whether its BuildKit was last ended for lack of memory.
    #[serde(skip)]
    pub is_out_of_memory: bool,
    /// Builds of all workers that run there, if it was looked up.
    pub n_builds: Option<u32>,
    /// The value of its label `app`: the Deployment, whose pods buildx finds by it.
    #[serde(skip)]
    pub(super) app: Option<String>,
    /// Which version of the Deployment made it; `None` for a pod of another origin.
    #[serde(skip)]
    pub(super) revision: Option<String>,
    /// Whether a StatefulSet made it.
    #[serde(skip)]
    pub(super) is_of_stateful_set: bool,
    /// Whether another container than BuildKit's is its first one, to which buildx connects.
    #[serde(skip)]
    pub(super) is_misplaced: bool,
}

impl PodStatus {
    /// Whether it can take a build.
    pub(super) fn is_usable(&self) -> bool {
        self.is_running && self.is_ready && !self.is_going
    }
}

/// The pods of a list, or why they cannot be read.
pub(super) fn read(list: &[u8]) -> Result<Vec<PodStatus>, String> {
    let too_many = || Err(format!("there are more than {} pods", bounds::PODS));
    let list = std::str::from_utf8(list).map_err(|error| error.to_string())?;
    json::is_json(list).map_err(|error| error.to_string())?;
    // A continue token means that there are more.
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

/// The needed fields of a pod (`v1.Pod`). Go writes empty fields as null, or omits them.
#[derive(Default, Deserialize)]
struct LivePod {
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    status: Option<LiveStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<IgnoredAny>,
    labels: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Deserialize)]
struct Owner {
    kind: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    containers: Option<Vec<SpecContainer>>,
}

/// A container as it is asked for.
#[derive(Deserialize)]
pub(super) struct SpecContainer {
    name: String,
    image: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LiveStatus {
    phase: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    conditions: Option<Vec<Condition>>,
    container_statuses: Option<Vec<Container>>,
    init_container_statuses: Option<Vec<Container>>,
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
    name: Option<String>,
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

/// The labels that distinguish the pods of one version of a Deployment or a StatefulSet from those of another.
const REVISIONS: [&str; 2] = ["pod-template-hash", "controller-revision-hash"];

impl PodStatus {
    fn of(pod: LivePod) -> Self {
        let LivePod { metadata, spec, status } = pod;
        let (metadata, spec, status) =
            (metadata.unwrap_or_default(), spec.unwrap_or_default(), status.unwrap_or_default());
        let containers = spec.containers.unwrap_or_default();
        let misplaced = misplaced(&containers);
        let statuses = status.container_statuses.as_deref().unwrap_or_default();
        // Kubernetes lists the states in an order of its own.
        let is_first = |one: &&Container| one.name.as_deref() == containers.first().map(|first| first.name.as_str());
        let first = statuses.iter().find(is_first).or(statuses.first());
        let now = crate::clock::Epoch::now().timestamp();
        let is_ready = is_true(status.condition("Ready"));
        let mut labels = metadata.labels.unwrap_or_default();
        let is_of = |kind: &str| metadata.owner_references.iter().flatten().any(|owner| owner.kind == kind);
        Self {
            age_s: metadata.creation_timestamp.map(|created| now.as_second() - created.as_second()),
            is_running: status.phase.as_deref() == Some("Running"),
            is_ready: is_ready && misplaced.is_none(),
            is_going: metadata.deletion_timestamp.is_some(),
            n_restarts: first.and_then(|container| container.restart_count).unwrap_or(0),
            is_misplaced: misplaced.is_some(),
            trouble: misplaced.or_else(|| status.trouble(first)),
            is_out_of_memory: first.is_some_and(is_out_of_memory),
            n_builds: None,
            is_of_stateful_set: is_of("StatefulSet"),
            app: labels.remove("app"),
            revision: REVISIONS.iter().find_map(|label| labels.remove(*label)),
            node: spec.node_name,
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
        }
    }
}

impl LiveStatus {
    fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().flatten().find(|one| one.kind == kind)
    }

    /// Evicted or node lost: the pod's own reason. Unschedulable: its condition. Else the container's, or that of a container
    /// before it. Last, why the pod is not ready.
    fn trouble(&self, first: Option<&Container>) -> Option<String> {
        let own = || self.reason.as_ref().map(|reason| say(reason, self.message.as_deref()));
        let condition = |kind: &str, otherwise: &str| {
            let one = self.condition(kind).filter(|one| one.status == "False")?;
            Some(say(one.reason.as_deref().unwrap_or(otherwise), one.message.as_deref()))
        };
        let init = || self.init_container_statuses.iter().flatten().find_map(init_trouble);
        let is_running = self.phase.as_deref() == Some("Running");
        own()
            .or_else(|| condition("PodScheduled", "not scheduled"))
            .or_else(|| first.and_then(container_trouble))
            .or_else(init)
            .or_else(|| is_running.then(|| condition("Ready", "not ready")).flatten())
    }
}

fn is_true(condition: Option<&Condition>) -> bool {
    condition.is_some_and(|one| one.status == "True")
}

/// What is wrong when BuildKit is not in the first container: an injected sidecar may come before it.
pub(super) fn misplaced(containers: &[SpecContainer]) -> Option<String> {
    let is_image = |one: &SpecContainer| {
        let image = one.image.as_deref().unwrap_or_default();
        let last = image.rsplit('/').next().unwrap_or_default();
        last.split([':', '@']).next() == Some("buildkit")
    };
    let named = containers.iter().position(|one| one.name == "buildkitd");
    let at = named.or_else(|| containers.iter().position(is_image)).filter(|at| *at > 0)?;
    let (first, buildkit) = (&containers[0].name, &containers[at].name);
    let sentence = format!("buildx connects to the first container, {first}, and BuildKit is in {buildkit}");
    Some(text::shown(&format!("{sentence}; put {buildkit} first"), bounds::NOTICE))
}

/// Whether the kubelet's reason for the end of a container is a lack of memory.
fn is_out_of_memory(container: &Container) -> bool {
    let states = [&container.state, &container.last_state].into_iter().flatten();
    let mut ends = states.filter_map(|state| state.terminated.as_ref());
    ends.any(|end| end.reason.as_deref() == Some("OOMKilled"))
}

/// An init container ends when all is well.
fn init_trouble(container: &Container) -> Option<String> {
    let terminated = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    let has_succeeded = terminated.is_some_and(|end| end.exit_code == Some(0));
    container_trouble(container).filter(|_| !has_succeeded)
}

fn container_trouble(container: &Container) -> Option<String> {
    let of = |state: &ContainerState| {
        let is_start = |reason: Option<&str>| matches!(reason, Some("ContainerCreating" | "PodInitializing"));
        let waiting = state.waiting.as_ref().filter(|one| !is_start(one.reason.as_deref()));
        let waiting = waiting.map(|one| say(one.reason.as_deref().unwrap_or("waiting"), one.message.as_deref()));
        let terminated = || {
            let one = state.terminated.as_ref()?;
            let reason = one.reason.as_deref().unwrap_or("ended");
            let code = format!("exit code {}", one.exit_code.unwrap_or(0));
            Some(say(reason, Some(one.message.as_deref().unwrap_or(&code))))
        };
        waiting.or_else(terminated)
    };
    // The current state, and why it ended before: CrashLoopBackOff alone explains nothing.
    let texts = [container.state.as_ref().and_then(of), container.last_state.as_ref().and_then(of)];
    let texts: Vec<String> = texts.into_iter().flatten().collect();
    (!texts.is_empty()).then(|| texts.join(", before that "))
}

/// Kubernetes' reason and message.
pub(super) fn say(reason: &str, message: Option<&str>) -> String {
    let text = match message.map(str::trim).filter(|message| !message.is_empty()) {
        Some(message) => format!("{reason} ({message})"),
        None => reason.to_owned(),
    };
    text::shown(&text, bounds::NOTICE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> PodStatus {
        let pod = json!({"metadata": {"name": "d0-a", "uid": "1"}, "status": status});
        let mut pods = read(json!({"items": [pod]}).to_string().as_bytes()).expect("a pod");
        pods.remove(0)
    }

    #[test]
    fn pods_are_read_one_by_one_and_no_more_than_there_may_be() {
        let list = |n: usize| format!(r#"{{"metadata":{{"continue":""}},"items":[{}{{}}]}}"#, "{},".repeat(n - 1));
        assert_eq!(read(list(1_000).as_bytes()).map(|pods| pods.len()), Ok(1_000));
        let too_many = Err("there are more than 1000 pods".to_owned());
        assert_eq!(read(list(1_001).as_bytes()), too_many);
        assert_eq!(read(br#"{"metadata":{"continue":"x"},"items":[]}"#), too_many);
        assert_eq!(read(br#"{"items":null}"#), Ok(Vec::new()));
        let conditions = format!(r#"{{"items":[{{"status":{{"conditions":[{}0]}}}}]}}"#, "{},".repeat(60_000));
        assert_eq!(read(conditions.as_bytes()), Err("more than 50000 names and values".to_owned()));
        assert!(read(br#"{"items":[{]}"#).is_err() && read(b"\xff").is_err());
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
        assert!(crashing.is_out_of_memory && !pull.is_out_of_memory);
        let evicted =
            pod(json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}));
        assert_eq!(evicted.trouble.as_deref(), Some("Evicted (The node was low on resource: memory.)"));
        let unready = pod(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False",
            "reason": "ContainersNotReady", "message": "containers with unready status: [buildkitd]"}]}));
        let words = "ContainersNotReady (containers with unready status: [buildkitd])";
        assert_eq!(unready.trouble.as_deref(), Some(words));
        let preparing = pod(json!({"phase": "Pending", "initContainerStatuses": [
            {"state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
            {"state": {"waiting": {"reason": "ErrImagePull"}}}],
            "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}));
        assert_eq!(preparing.trouble.as_deref(), Some("ErrImagePull"));
        let quoting = pod(
            json!({"phase": "Failed", "reason": "Evicted", "message": "OOMKilled", "containerStatuses": [
            {"restartCount": 0, "state": {"terminated": {"reason": "Error", "message": "OOMKilled", "exitCode": 137}}}]}),
        );
        assert!(!quoting.is_out_of_memory, "only the kubelet's reason counts");
    }
    #[test]
    fn a_pod_whose_first_container_is_another_takes_no_build_and_says_so() {
        let pod = |containers: &[(&str, &str)]| {
            let containers: Vec<Value> =
                containers.iter().map(|(name, image)| json!({"name": name, "image": image})).collect();
            let statuses = json!([{"name": "a-proxy", "restartCount": 9}, {"name": "buildkitd", "restartCount": 2}]);
            let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": statuses});
            let pod = json!({"metadata": {"name": "d0-a"}, "spec": {"containers": containers}, "status": status});
            read(json!({"items": [pod]}).to_string().as_bytes()).expect("a pod").remove(0)
        };
        let good = pod(&[("buildkitd", "x"), ("a-proxy", "y")]);
        assert_eq!((good.is_usable(), good.n_restarts, good.trouble), (true, 2, None));
        let sidecar = pod(&[("builder", "x"), ("buildkit-exporter", "acme/buildkit-exporter:1")]);
        assert!(!sidecar.is_misplaced);
        for buildkit in
            [("buildkitd", "x"), ("builder", "registry:5000/moby/buildkit:v0.20"), ("builder", "buildkit@sha256:00")]
        {
            let bad = pod(&[("a-proxy", "y"), buildkit]);
            let words = format!(
                "buildx connects to the first container, a-proxy, and BuildKit is in {0}; put {0} first",
                buildkit.0
            );
            assert_eq!((bad.is_usable(), bad.is_misplaced, bad.trouble), (false, true, Some(words)));
        }
        assert!(!pod(&[("other", "x"), ("a-proxy", "y")]).is_misplaced, "an owner's own image in the first container");
    }
}
