//! When the builder of a bake counts as lost.

use std::time::Duration;

use tokio::time::sleep;

use super::Session;
use super::fate::fate;
use crate::builder::choice::ring;
use crate::builder::pods::PodStatus;
use crate::builder::watch::{Symptom, Watch};
use crate::reason::{Evidence, Failure, Reason};
use crate::settings::Balance;

/// How far into a build its pod is asked for its name: once for each repository and set of pods.
const ASK_NAME_AFTER: Duration = Duration::from_millis(500);

/// How often BuildKit is asked whether it answers.
const PROBE: Duration = Duration::from_secs(60);

/// A builder is lost after this many unanswered probes in a row.
const N_PROBES: u32 = 3;

/// After a pod is gone, how long buildx may take to notice and to exit with an error of its own.
const NOTICE: Duration = Duration::from_secs(2);

/// A builder that was lost during a bake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What happened, in full.
    pub failure: Failure,
    /// What happened, in a sentence of ours.
    pub notice: String,
    /// Whether the pod is gone for good: then buildx chooses another by itself.
    pub(in crate::builder) has_pod_gone: bool,
    /// Whether the pod's memory or disk was used up, perhaps by this very build.
    pub is_used_up: bool,
    /// The pod, if it was known.
    pub(super) pod: Option<String>,
    /// The node.
    pub(in crate::builder) node: String,
    /// Those on which the same build lost its builder before.
    earlier_nodes: Vec<String>,
}

impl Loss {
    /// The same, after an earlier loss of the same build.
    pub fn after(mut self, earlier: Option<Self>) -> Self {
        if let Some(earlier) = earlier {
            self.earlier_nodes = earlier.earlier_nodes;
            self.earlier_nodes.push(earlier.node);
        }
        self
    }

    /// Whether the build lost its builder on this node.
    pub(in crate::builder) fn is_of(&self, node: &str) -> bool {
        self.node == node || self.earlier_nodes.iter().any(|earlier| earlier == node)
    }
}

impl Session<'_> {
    /// Watches a running bake until its builder is lost, and learns the pod's name meanwhile.
    ///
    /// Does not return while docker-buildx receives data from its pod. Dropping it ends the watch.
    pub async fn lost(&self) -> Loss {
        let Some(pods) = &self.pods else { return std::future::pending().await };
        let mut watch = Watch::new(&pods.api, &self.location.run, self.node.settings.stall_timeout);
        let learn = async {
            sleep(ASK_NAME_AFTER).await;
            self.learn_pod().await;
            std::future::pending::<()>().await;
        };
        let watched = async {
            loop {
                match watch.next().await {
                    // Other connections are closed now and then. Only the pod's own state shows a loss.
                    Symptom::Dropped => {
                        if let Some(loss) = self.pods_now().await.ok().and_then(|now| self.own_pod_gone(&now)) {
                            sleep(NOTICE).await;
                            return loss;
                        }
                    }
                    symptom => return self.explain(symptom).await,
                }
            }
        };
        tokio::select! {
            () = learn => unreachable!("it ends by waiting forever"),
            loss = watched => loss,
            loss = self.unresponsive() => loss,
        }
    }

    /// Waits until BuildKit stops answering on an open connection: the kubelet answers keepalives also for a BuildKit that
    /// hangs.
    async fn unresponsive(&self) -> Loss {
        if self.balance != Balance::Sticky {
            return std::future::pending().await;
        }
        let mut n_missed = 0;
        loop {
            sleep(PROBE).await;
            if self.dial().await.is_ok() {
                n_missed = 0;
                continue;
            }
            // Without Kubernetes, or with credentials that it does not accept, no answer says nothing about the pod.
            let Ok(now) = self.pods_now().await else { continue };
            n_missed += 1;
            if n_missed == N_PROBES {
                return self.gone(&now).unwrap_or_else(|| {
                    self.shun();
                    self.loss(format!("{} does not answer", self.pod_in_words()))
                });
            }
        }
    }

    /// Whether a bake failed because its builder was lost: buildx says so, the pod is gone, or its disk is full. The pod counts, whatever
    /// error buildx made of its end. `None` when the builder was not lost, or when no other pod would help.
    pub async fn post_mortem(&self, failure: &Failure) -> Option<Loss> {
        let is_reported = matches!(failure.reason, Reason::BuilderLost | Reason::BuilderUnavailable);
        // No pod would help.
        if failure.evidence == Some(Evidence::Forbidden) {
            return None;
        }
        if failure.reason == Reason::BuilderDiskFull {
            return self.has_siblings().then(|| self.full(failure));
        }
        // A mistake in the customer's files fails on every pod. A killed step proves none: a pod that ends kills its steps
        // first. Nor does an error that is not known.
        let is_doubtful =
            failure.evidence.is_some() || matches!(failure.reason, Reason::BuildFailed | Reason::DockerfileInvalid);
        if self.pods.is_none() || !(is_reported || is_doubtful) {
            return is_reported.then(|| self.loss_of(failure.clone(), None));
        }
        let now = self.pods_now().await.ok();
        let loss = now.and_then(|now| if is_reported { self.gone(&now) } else { self.own_pod_gone(&now) });
        loss.or_else(|| is_reported.then(|| self.unexplained(failure)))
    }

    /// The loss of a pod whose disk is full. Others may have room.
    fn full(&self, failure: &Failure) -> Loss {
        let notice = format!("the builder {}: the disk of {} is full", self.node.builder, self.pod_in_words());
        Loss { notice, is_used_up: true, ..self.loss_of(failure.clone(), self.pod.get().cloned()) }
    }

    /// Whether the builder has other pods.
    fn has_siblings(&self) -> bool {
        let n_pods = self.pods.as_ref().map_or(0, |pods| pods.before.len());
        n_pods > 1 || self.node.settings.shards.is_some_and(|n_shards| n_shards > 1)
    }

    /// The loss of which only buildx's own words are known.
    fn unexplained(&self, failure: &Failure) -> Loss {
        let what = match failure.reason {
            Reason::BuilderUnavailable => {
                self.shun();
                format!("{} could not be reached", self.pod_in_words())
            }
            _ => format!("the connection to {} was lost", self.pod_in_words()),
        };
        self.loss_with(what, &failure.detail, failure.clone())
    }

    /// What a symptom means. Kubernetes is asked once: when it does not answer, that takes the whole time limit of a request.
    async fn explain(&self, symptom: Symptom) -> Loss {
        let now = self.pods_now().await;
        if let Some(loss) = now.as_ref().ok().and_then(|now| self.gone(now)) {
            return loss;
        }
        match (symptom, now) {
            (_, Err(error)) => {
                let what =
                    format!("the connection to {} was lost, and Kubernetes does not answer", self.pod_in_words());
                self.loss_with(what, &error.to_string(), Failure::new(Reason::BuilderLost, ""))
            }
            (Symptom::Stalled(silence), Ok(_)) => {
                self.shun();
                self.loss(format!("received nothing from {} for {} s", self.pod_in_words(), silence.as_secs()))
            }
            (_, Ok(_)) => self.loss(format!("the connection to {} was lost", self.pod_in_words())),
        }
    }

    /// A loss that the notice tells in our words, and the failure and the log with the words of another program.
    fn loss_with(&self, what: String, words: &str, failure: Failure) -> Loss {
        let (builder, pod) = (&self.node.builder, self.pod.get());
        tracing::warn!(event = "builder_lost", builder, pod, error = words, "builder lost during a build");
        let loss = self.loss(what);
        let failure = failure.with_detail(&format!("{}: {words}", loss.notice));
        Loss { failure, ..loss }
    }

    /// The loss of a pod that still exists, as far as is known.
    fn loss_of(&self, failure: Failure, pod: Option<String>) -> Loss {
        Loss {
            notice: failure.detail.clone(),
            failure,
            has_pod_gone: false,
            is_used_up: false,
            pod,
            node: self.node.name.clone(),
            earlier_nodes: Vec::new(),
        }
    }

    /// The loss of a pod that exists and is of no use.
    fn loss(&self, what: String) -> Loss {
        let sentence = format!("the builder {}: {what}", self.node.builder);
        let failure = Failure::new(Reason::BuilderLost, sentence);
        self.loss_of(failure, self.pod.get().cloned())
    }

    /// The loss of the build's own pod, if that is certain. A pod that is terminating may still finish its builds.
    fn own_pod_gone(&self, now: &[PodStatus]) -> Option<Loss> {
        let own = self.pod.get()?;
        let is_there = now.iter().any(|pod| pod.name == *own && pod.is_running && pod.is_going);
        self.gone(now).filter(|_| !is_there)
    }

    /// The loss of the build's pod: it is gone, ended or terminating. When the build's pod is not known, the only pod that is.
    fn gone(&self, now: &[PodStatus]) -> Option<Loss> {
        let before = &self.pods.as_ref()?.before;
        let mut fates = before.iter().filter_map(|pod| Some((pod, fate(pod, now)?)));
        let (pod, fate) = match self.pod.get() {
            Some(own) => fates.find(|(pod, _)| pod.name == *own)?,
            None => fates.next().filter(|_| fates.next().is_none())?,
        };
        let node = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let sentence = format!("the builder {}: the pod {}{node} {}", self.node.builder, pod.name, fate.sentence);
        let failure = Failure::new(Reason::BuilderLost, sentence);
        let (has_pod_gone, is_used_up) = (fate.has_gone, fate.is_out_of_memory);
        Some(Loss { has_pod_gone, is_used_up, ..self.loss_of(failure, Some(pod.name.clone())) })
    }

    /// Avoids the pod for a while, in the next builds.
    fn shun(&self) {
        let mut before = self.pods.iter().flat_map(|pods| &pods.before);
        if let Some(pod) = before.find(|pod| Some(&pod.name) == self.pod.get()) {
            self.node.shun(&pod.uid);
        } else if let Some(pods) = &self.pods {
            self.node.learn(&ring(&pods.before), &self.location.working_directory, None);
        }
    }

    fn pod_in_words(&self) -> String {
        self.pod.get().map_or_else(|| "one of its pods".to_owned(), |pod| format!("the pod {pod}"))
    }
}
