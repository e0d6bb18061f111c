//! Which base images the pods of a node have built, as far as this worker knows.

use std::collections::BTreeSet;

use super::node::Node;
use super::pods::PodStatus;
use super::session::Session;
use crate::settings::Balance;
use crate::warmth::BaseBuild;

/// The most base images of one pod that are remembered.
const MAX_BASES: usize = 1_000;

impl Session<'_> {
    /// The pod that will bake, and those of the base images that it has perhaps not built yet. `None` when it has built all of them,
    /// and when the pod is not known. Asks BuildKit for the pod's name only when some pod has perhaps not built one.
    pub async fn unbuilt(&self, bases: &BTreeSet<BaseBuild>) -> Option<(String, BTreeSet<BaseBuild>)> {
        let pods = self.pods.as_ref().filter(|_| self.node.settings.warm && self.balance == Balance::Sticky)?;
        let unbuilt = |pod: &PodStatus| self.node.unbuilt(&life(pod), bases);
        if pods.before.iter().all(|pod| unbuilt(pod).is_empty()) {
            return None;
        }
        self.learn_pod().await;
        let pod = pods.before.iter().find(|pod| Some(&pod.name) == self.pod.get())?;
        let own = unbuilt(pod);
        (!own.is_empty()).then(|| (life(pod), own))
    }

    /// Remembers that a pod has built a base image.
    pub fn remember_built(&self, pod: &str, base: BaseBuild) {
        let pods = self.pods.iter().flat_map(|pods| &pods.before);
        self.node.remember_built(pod, base, &pods.map(life).collect());
    }
}

impl Node {
    fn unbuilt(&self, pod: &str, bases: &BTreeSet<BaseBuild>) -> BTreeSet<BaseBuild> {
        match self.built().get(pod) {
            Some(built) => bases - built,
            None => bases.clone(),
        }
    }

    /// `pods`: those that are there now. The others are forgotten.
    fn remember_built(&self, pod: &str, base: BaseBuild, pods: &BTreeSet<String>) {
        let mut built = self.built();
        built.retain(|known, _| pods.contains(known));
        let of_pod = built.entry(pod.to_owned()).or_default();
        if of_pod.len() >= MAX_BASES {
            of_pod.clear();
        }
        of_pod.insert(base);
    }
}

/// Identifies a pod's container: a restart changes it.
fn life(pod: &PodStatus) -> String {
    format!("{}.{}", pod.uid, pod.n_restarts)
}
