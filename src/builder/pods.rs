//! The pods of a builder, as the API server describes them.
//!
//! Reads only the needed fields, pod by pod: a pod of the API's own type takes two kilobytes even when it is empty, and an answer
//! of 8 MiB can hold millions.

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
    /// Why it is not running, or why it last ended: Kubernetes' reason and message.
    pub trouble: Option<String>,
    /// Whether its BuildKit was last ended for lack of memory.
    #[serde(skip)]
    pub is_out_of_memory: bool,
    /// Builds of all workers that run there, if it was looked up.
    pub n_builds: Option<u32>,
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
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LiveStatus {
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
        // Evicted or node lost: the pod's own reason. Unschedulable: its condition. Else the container's.
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
            is_out_of_memory: first.is_some_and(is_out_of_memory),
            n_builds: None,
        }
    }
}

/// Whether the kubelet's reason for the end of a container is a lack of memory.
fn is_out_of_memory(container: &Container) -> bool {
    let states = [&container.state, &container.last_state].into_iter().flatten();
    let mut ends = states.filter_map(|state| state.terminated.as_ref());
    ends.any(|end| end.reason.as_deref() == Some("OOMKilled"))
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
    // The current state, and why it ended before: CrashLoopBackOff alone explains nothing.
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
        let quoting = pod(
            json!({"phase": "Failed", "reason": "Evicted", "message": "OOMKilled", "containerStatuses": [
            {"restartCount": 0, "state": {"terminated": {"reason": "Error", "message": "OOMKilled", "exitCode": 137}}}]}),
        );
        assert!(!quoting.is_out_of_memory, "only the kubelet's reason counts");
    }
}
