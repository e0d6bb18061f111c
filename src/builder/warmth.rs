//! Which base images the pods of a node have built, as far as this worker knows.

use std::collections::BTreeSet;

use super::node::Node;
use super::pods::PodStatus;
use super::session::Session;
use crate::settings::Balance;

/// The most base images of one pod that are remembered.
const MAX_BASES: usize = 1_000;

impl Session<'_> {
    /// The pod that will bake, and those of the base images that it may not have built. `None` when it has built all of them, and
    /// when the pod is not known. Asks BuildKit for the pod's name only when some pod may be cold.
    pub async fn cold(&self, bases: &BTreeSet<String>) -> Option<(String, Vec<String>)> {
        let pods = self.pods.as_ref().filter(|_| self.node.settings.warm && self.balance == Balance::Sticky)?;
        let unknown = |pod: &PodStatus| self.node.not_warm(&life(pod), bases);
        if pods.before.iter().all(|pod| unknown(pod).is_empty()) {
            return None;
        }
        self.learn_pod().await;
        let pod = pods.before.iter().find(|pod| Some(&pod.name) == self.pod.get())?;
        let cold = unknown(pod);
        (!cold.is_empty()).then(|| (life(pod), cold))
    }

    /// Remembers that a pod has built these base images, or that it has been tried.
    pub fn is_warm(&self, pod: &str, bases: &[String]) {
        let pods = self.pods.iter().flat_map(|pods| &pods.before);
        self.node.warmed(pod, bases, &pods.map(life).collect());
    }
}

impl Node {
    fn not_warm(&self, pod: &str, bases: &BTreeSet<String>) -> Vec<String> {
        let warm = self.warm();
        let known = warm.get(pod);
        bases.iter().filter(|base| known.is_none_or(|known| !known.contains(*base))).cloned().collect()
    }

    /// `pods`: those that are there now. The others are forgotten.
    fn warmed(&self, pod: &str, bases: &[String], pods: &BTreeSet<String>) {
        let mut warm = self.warm();
        warm.retain(|known, _| pods.contains(known));
        let known = warm.entry(pod.to_owned()).or_default();
        if known.len() >= MAX_BASES {
            known.clear();
        }
        known.extend(bases.iter().cloned());
    }
}

/// A pod until its BuildKit starts again.
fn life(pod: &PodStatus) -> String {
    format!("{}.{}", pod.uid, pod.n_restarts)
}
