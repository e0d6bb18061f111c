//! One bake on one builder: which pod runs it, whether that pod is lost meanwhile, and which other pod could take over.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::occupancy::Occupied;
use super::pod::{self, PodError};
use super::pods::PodStatus;
use super::watch::{Symptom, Watch};
use super::{Builder, BuilderError};
use crate::bake::{Location, dial_child};
use crate::reason::{Evidence, Failure, Reason};
use crate::report::Placement;
use crate::sandbox::Enforcement;
use crate::settings::Balance;
use crate::state;

/// How many other working directories are tried to reach a pod that answers.
const N_DETOURS: u32 = 8;

/// For the answer of a healthy pod; a wedged one has none.
const ALIVE_WITHIN: Duration = Duration::from_secs(4);

/// How far into a build its pod is asked for its name: once for each repository and set of pods.
const ASK_NAME_AFTER: Duration = Duration::from_millis(500);

/// How often BuildKit is asked whether it answers.
const PROBE: Duration = Duration::from_secs(60);

/// A builder is lost after this many unanswered probes in a row.
const N_PROBES: u32 = 3;

/// After a pod is gone, how long buildx may take to notice and to exit with an error of its own.
const NOTICE: Duration = Duration::from_secs(2);

/// A builder that is prepared for one bake, and the state of its pods at that time.
#[derive(Debug)]
pub struct Session<'a> {
    /// What the bake needs.
    pub location: Location,
    pub(super) builder: &'a Builder,
    pub(super) dial: Dial<'a>,
    pub(super) why: &'static str,
    pub(super) balance: Balance,
    pub(super) is_detour: bool,
    pub(super) cluster: Option<Surveyed>,
    /// The pod, once it is known.
    pub(super) pod: OnceLock<String>,
    pub(super) occupied: Mutex<Occupied>,
}

/// How BuildKit is asked for its host name during a bake.
#[derive(Debug)]
pub(super) struct Dial<'a> {
    pub(super) buildx: &'a Path,
    pub(super) enforcement: Enforcement,
    /// A directory of the job; each run gets a new one in it.
    pub(super) directory: PathBuf,
    /// How many runs there were. One runs at a time: the worker's memory limit counts on that.
    pub(super) n_runs: tokio::sync::Mutex<u32>,
}

/// The pods of a builder before a bake.
#[derive(Debug)]
pub(super) struct Surveyed {
    pub(super) api: Vec<SocketAddr>,
    pub(super) pods: Vec<PodStatus>,
}

/// A builder that was lost during a bake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What happened, in a sentence.
    pub failure: Failure,
    /// Whether the pod is gone for good: then buildx chooses another by itself.
    pub(super) has_pod_gone: bool,
    /// Whether the pod's memory was used up, perhaps by this very build.
    pub is_out_of_memory: bool,
    /// The pod, if it was known.
    pod: Option<String>,
}

impl Loss {
    /// A loss of a pod that still exists, as far as is known.
    fn new(failure: Failure, pod: Option<String>) -> Self {
        Self { failure, has_pod_gone: false, is_out_of_memory: false, pod }
    }
}

impl Session<'_> {
    /// Whether the builder has pods.
    pub fn has_pods(&self) -> bool {
        self.cluster.is_some()
    }

    /// Which builder and pod run the build, and why, as far as is known now.
    pub fn placement(&self) -> Placement {
        let why = match (&self.cluster, self.balance) {
            (None, _) => self.why.to_owned(),
            (Some(_), Balance::Sticky) if self.is_detour => {
                format!("{}; another pod than the one that was lost", self.why)
            }
            (Some(_), Balance::Sticky) => format!("{}; the pod of this repository", self.why),
            (Some(_), Balance::Random) => format!("{}; any pod", self.why),
        };
        Placement { builder: self.builder.name.clone(), pod: self.pod.get().cloned(), why }
    }

    /// Whether another pod could take the build.
    pub fn has_others(&self) -> bool {
        self.cluster.is_some()
    }

    /// Finds a working directory that leads to a pod that answers. With the usual one, buildx would choose the lost pod again.
    pub(super) async fn detour(&mut self, loss: &Loss) -> Result<(), BuilderError> {
        let Some(n_pods) = self.candidates().map(|pods| pods.len()) else { return Ok(()) };
        self.is_detour = true;
        let usual = self.location.working_directory.clone();
        for n in 0..N_DETOURS {
            self.location.working_directory = usual.join(format!(".detour-{n}"));
            state::make_private(&self.location.working_directory)?;
            let Ok(Ok(pod)) = timeout(ALIVE_WITHIN, self.dial()).await else { continue };
            if loss.pod.as_ref() != Some(&pod) || n_pods == 1 {
                self.is_on(pod);
                break;
            }
        }
        Ok(())
    }

    /// Watches a running bake until its builder is lost, and learns the pod's name meanwhile.
    ///
    /// Does not return while docker-buildx receives data from its pod. Dropping it ends the watch.
    pub async fn lost(&self) -> Loss {
        let Some(cluster) = &self.cluster else { return std::future::pending().await };
        let mut watch = Watch::new(&cluster.api, &self.location.run, self.builder.settings.stall_timeout);
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
            n_missed = if self.dial().await.is_ok() { 0 } else { n_missed + 1 };
            if n_missed == N_PROBES {
                let now = self.pods_now().await;
                let loss = now.as_ref().ok().and_then(|now| self.gone(now));
                return loss.unwrap_or_else(|| self.loss(format!("{} does not answer", self.pod_in_words())));
            }
        }
    }

    /// Whether a bake failed because its builder was lost: buildx says so, or the pod is gone, whatever error buildx made of
    /// that. `None` when the builder was not lost, or when no other pod would help.
    pub async fn post_mortem(&self, failure: &Failure) -> Option<Loss> {
        let is_reported = matches!(failure.reason, Reason::BuilderLost | Reason::BuilderUnavailable);
        // No pod would help.
        if failure.evidence == Some(Evidence::Forbidden) {
            return None;
        }
        // A mistake in the customer's files fails on every pod. A killed step proves none: a pod that ends kills its steps
        // first. Nor does an error that is not known.
        let is_doubtful =
            failure.evidence.is_some() || matches!(failure.reason, Reason::BuildFailed | Reason::DockerfileInvalid);
        if self.cluster.is_none() || !(is_reported || is_doubtful) {
            return is_reported.then(|| Loss::new(failure.clone(), None));
        }
        let now = self.pods_now().await.ok();
        let loss = now.and_then(|now| if is_reported { self.gone(&now) } else { self.own_pod_gone(&now) });
        loss.or_else(|| is_reported.then(|| Loss::new(failure.clone(), self.pod.get().cloned())))
    }

    /// The failure, with the builder's memory limit when a step exceeded it.
    pub fn with_memory_limit(&self, failure: Failure) -> Failure {
        match self.builder.settings.limits.get("memory") {
            Some(limit) if failure.reason == Reason::OutOfMemory => {
                let detail = format!("{} (the memory limit of the builder is {limit})", failure.detail);
                failure.with_detail(&detail)
            }
            _ => failure,
        }
    }

    /// What a symptom means. Kubernetes is asked once: when it does not answer, that takes the whole time limit of a request.
    async fn explain(&self, symptom: Symptom) -> Loss {
        let now = self.pods_now().await;
        if let Some(loss) = now.as_ref().ok().and_then(|now| self.gone(now)) {
            return loss;
        }
        match (symptom, now) {
            (_, Err(error)) => {
                let failure = Failure::new(Reason::BuilderLost, error.to_string());
                Loss::new(failure, self.pod.get().cloned())
            }
            (Symptom::Stalled(silence), Ok(_)) => {
                self.loss(format!("received nothing from {} for {} s", self.pod_in_words(), silence.as_secs()))
            }
            (_, Ok(_)) => self.loss(format!("the connection to {} was lost", self.pod_in_words())),
        }
    }

    fn pod_in_words(&self) -> String {
        self.pod.get().map_or_else(|| "its pod".to_owned(), |pod| format!("the pod {pod}"))
    }

    /// The loss of a pod that exists and is of no use.
    fn loss(&self, what: String) -> Loss {
        let sentence = format!("the builder {}: {what}", self.builder.name);
        let failure = Failure::new(Reason::BuilderLost, sentence);
        Loss::new(failure, self.pod.get().cloned())
    }

    /// The loss of the build's own pod, if that is certain. A pod that is terminating may still finish its builds.
    fn own_pod_gone(&self, now: &[PodStatus]) -> Option<Loss> {
        let own = self.pod.get()?;
        let is_there = now.iter().any(|pod| pod.name == *own && pod.is_running && pod.is_going);
        self.gone(now).filter(|_| !is_there)
    }

    /// The loss of the build's pod: it is gone, ended or terminating. When the build's pod is not known, the only pod that is.
    fn gone(&self, now: &[PodStatus]) -> Option<Loss> {
        let before = &self.cluster.as_ref()?.pods;
        let mut fates = before.iter().filter_map(|pod| Some((pod, fate(pod, now)?)));
        let (pod, fate) = match self.pod.get() {
            Some(own) => fates.find(|(pod, _)| pod.name == *own)?,
            None => fates.next().filter(|_| fates.next().is_none())?,
        };
        let node = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let sentence = format!("the builder {}: the pod {}{node} {}", self.builder.name, pod.name, fate.sentence);
        Some(Loss {
            failure: Failure::new(Reason::BuilderLost, sentence),
            has_pod_gone: fate.has_gone,
            is_out_of_memory: fate.is_out_of_memory,
            pod: Some(pod.name.clone()),
        })
    }

    async fn pods_now(&self) -> Result<Vec<PodStatus>, BuilderError> {
        self.builder.cluster().await?.pods().await.map_err(|source| self.builder.wrong(source))
    }

    /// The names of the pods among which buildx chooses.
    fn candidates(&self) -> Option<Vec<String>> {
        let running = self.cluster.as_ref()?.pods.iter().filter(|pod| pod.is_running);
        let mut names: Vec<String> = running.map(|pod| pod.name.clone()).collect();
        names.sort_unstable();
        Some(names)
    }

    /// Sets the pod without asking, when it is the only one or when the same choice was made before.
    pub(super) fn recall_pod(&self) {
        let Some(candidates) = self.candidates() else { return };
        let known = match (candidates.as_slice(), self.balance) {
            ([only], _) => Some(only.clone()),
            (_, Balance::Sticky) => {
                let known = self.builder.known_pods();
                known
                    .get(&self.location.working_directory)
                    .filter(|(among, _)| *among == candidates)
                    .map(|(_, pod)| pod.clone())
            }
            (_, Balance::Random) => None,
        };
        if let Some(pod) = known {
            self.is_on(pod);
        }
    }

    fn is_on(&self, pod: String) {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner).on(&pod);
        let _ = self.pod.set(pod);
    }

    async fn are_all_there(&self, candidates: &[String]) -> bool {
        let Ok(now) = self.pods_now().await else { return false };
        let is_there = |name: &String| now.iter().any(|pod| pod.name == *name && pod.is_running && !pod.is_going);
        candidates.iter().all(is_there)
    }

    async fn learn_pod(&self) {
        let (None, Balance::Sticky, Some(candidates)) = (self.pod.get(), self.balance, self.candidates()) else {
            return;
        };
        match self.dial().await {
            // When a pod is gone, it may be the bake's own, and this answer another pod's.
            Ok(_) if !self.are_all_there(&candidates).await => {}
            Ok(pod) if candidates.contains(&pod) => {
                self.builder.known_pods().insert(self.location.working_directory.clone(), (candidates, pod.clone()));
                self.is_on(pod);
            }
            Ok(hostname) => {
                tracing::debug!(builder = self.builder.name, hostname, "BuildKit's host name is not one of the pods")
            }
            Err(error) => {
                tracing::debug!(builder = self.builder.name, %error, "could not ask BuildKit for its pod's name")
            }
        }
    }

    /// Asks the BuildKit that a bake would reach for its host name, which is its pod's name. Runs `docker-buildx dial-stdio`
    /// from the bake's working directory.
    pub async fn dial(&self) -> Result<String, PodError> {
        let mut n_runs = self.dial.n_runs.lock().await;
        *n_runs += 1;
        let private = self.dial.directory.join(n_runs.to_string());
        let child = dial_child(self.dial.buildx, self.dial.enforcement, &self.location, &private)?;
        let mut command = child.command(self.dial.buildx);
        command.args(["dial-stdio", "--builder", &self.location.builder]).current_dir(&self.location.working_directory);
        pod::hostname(command).await
    }
}

/// What has become of a pod during a build.
#[derive(Debug, PartialEq, Eq)]
struct Fate {
    /// The end of a sentence that begins with the pod's name.
    sentence: String,
    /// Whether it is gone for good.
    has_gone: bool,
    is_out_of_memory: bool,
}

/// What has become of a pod; `None` when nothing has.
fn fate(before: &PodStatus, now: &[PodStatus]) -> Option<Fate> {
    let of = |sentence: &str, has_gone| Fate { sentence: sentence.to_owned(), has_gone, is_out_of_memory: false };
    let Some(pod) = now.iter().find(|pod| pod.uid == before.uid) else {
        return Some(of("was deleted during the build", true));
    };
    let ended = |what: &str, has_gone| {
        let because = pod.trouble.as_ref().map(|trouble| format!(": {trouble}")).unwrap_or_default();
        Fate { sentence: format!("{what}{because}"), has_gone, is_out_of_memory: pod.is_out_of_memory }
    };
    if !pod.is_running {
        Some(ended("is not running any more", true))
    } else if pod.n_restarts > before.n_restarts {
        Some(ended("restarted BuildKit during the build", false))
    } else if pod.is_going && !before.is_going {
        Some(of("is terminating since the build began", false))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str) -> PodStatus {
        PodStatus {
            name: name.into(),
            uid: format!("uid of {name}"),
            node: None,
            age_s: None,
            is_running: true,
            is_ready: true,
            is_going: false,
            n_restarts: 0,
            trouble: None,
            is_out_of_memory: false,
            n_builds: None,
        }
    }

    #[test]
    fn a_pods_fate_is_told_in_a_sentence() {
        let before = status("d0-a");
        assert_eq!(fate(&before, &[status("d0-b"), status("d0-a")]), None);
        let gone = |now: PodStatus| {
            let Fate { sentence, has_gone, is_out_of_memory } = fate(&before, &[now]).expect("a fate");
            (sentence, has_gone, is_out_of_memory)
        };
        assert_eq!(gone(status("d0-b")), ("was deleted during the build".into(), true, false));
        let evicted = PodStatus { is_running: false, trouble: Some("Evicted (OOMKilled)".into()), ..before.clone() };
        assert_eq!(gone(evicted), ("is not running any more: Evicted (OOMKilled)".into(), true, false));
        let trouble = Some("OOMKilled (exit code 137)".into());
        let restarted = PodStatus { n_restarts: 1, trouble, is_out_of_memory: true, ..before.clone() };
        let sentence = "restarted BuildKit during the build: OOMKilled (exit code 137)";
        assert_eq!(gone(restarted), (sentence.into(), false, true));
        let going = PodStatus { is_going: true, ..before.clone() };
        assert_eq!(gone(going), ("is terminating since the build began".into(), false, false));
        // A new pod of the same name, as a StatefulSet makes them, is another pod.
        assert!(gone(PodStatus { uid: "other".into(), ..before.clone() }).1);
    }
}
