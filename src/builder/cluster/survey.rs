//! What a builder's Deployment or StatefulSet says of its builds, together with its pods.

use serde_json::Value;

use crate::builder::deployment;
use crate::builder::pods::{self, PodStatus};

/// Whether an object is a StatefulSet.
pub(in crate::builder) fn is_stateful_set(workload: &Value) -> bool {
    workload["kind"] == "StatefulSet"
}

/// The state of a builder.
#[derive(Clone, Debug)]
pub(in crate::builder) struct Survey {
    /// The Deployment, or the StatefulSet that buildx made in its place.
    pub(in crate::builder) workload: Value,
    pub(in crate::builder) pods: Vec<PodStatus>,
}

impl Survey {
    pub(in crate::builder) fn n_ready(&self) -> usize {
        self.pods.iter().filter(|pod| pod.is_usable()).count()
    }

    pub(in crate::builder) fn n_wanted(&self) -> usize {
        self.workload["spec"]["replicas"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1)
    }

    /// Whether buildx made the builder with persistent volumes.
    fn is_stateful_set(&self) -> bool {
        is_stateful_set(&self.workload)
    }

    /// The size of the persistent volumes of a StatefulSet; `None` for a Deployment. Without such a driver option, buildx looks for a
    /// Deployment.
    pub(in crate::builder) fn storage(&self) -> Option<String> {
        let claim = &self.workload["spec"]["volumeClaimTemplates"][0];
        let size = claim["spec"]["resources"]["requests"]["storage"].as_str().unwrap_or("1Gi");
        self.is_stateful_set().then(|| size.to_owned())
    }

    /// Whether Kubernetes has processed the last change, and every pod has it.
    pub(in crate::builder) fn is_rolled_out(&self) -> bool {
        let (generation, status) = (&self.workload["metadata"]["generation"], &self.workload["status"]);
        let n = |field: &str| status[field].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let is_seen = status["observedGeneration"].as_u64() >= generation.as_u64();
        is_seen && n("updatedReplicas") >= self.n_wanted() && n("replicas") <= self.n_wanted()
    }

    /// What is wrong when no pod of this Deployment can have BuildKit in its first container.
    pub(in crate::builder) fn misplaced(&self) -> Option<String> {
        let containers = self.workload["spec"]["template"]["spec"]["containers"].clone();
        let of_template = serde_json::from_value(containers).ok();
        let of_template = of_template.and_then(|containers: Vec<_>| pods::misplaced(&containers));
        let staying = || self.pods.iter().filter(|pod| !pod.is_going);
        let are_all = staying().count() > 0 && staying().all(|pod| pod.is_misplaced);
        let of_template = of_template.or_else(|| deployment::displaced(&self.workload));
        of_template.or_else(|| staying().next().filter(|_| are_all).and_then(|pod| pod.trouble.clone()))
    }

    /// What is wrong with the builder, in Kubernetes' words; `None` when nothing is. Terminating pods do not count.
    pub(in crate::builder) fn problem(&self) -> Option<String> {
        if self.n_wanted() == 0 {
            return Some(format!(
                "the {} has 0 replicas",
                if self.is_stateful_set() { "StatefulSet" } else { "Deployment" }
            ));
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
        let conditions = self.workload["status"]["conditions"].as_array()?;
        let one = conditions.iter().find(|one| one["type"] == kind && one["status"] == status)?;
        Some(pods::say(one["reason"].as_str().unwrap_or(kind), one["message"].as_str()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn survey(workload: Value, pods: &[Value]) -> Survey {
        let pods = pods::read(json!({"items": pods}).to_string().as_bytes()).expect("pods");
        Survey { workload, pods }
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
