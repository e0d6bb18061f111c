//! A session for one bake: on which pod it is, whether that is lost meanwhile, and which other one would do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::cluster::PodStatus;
use super::line::{Line, Sign};
use super::occupancy::Occupied;
use super::pod::{self, PodError};
use super::{Builder, BuilderError};
use crate::bake::{self, Location};
use crate::reason::{Failure, Reason};
use crate::report::Placement;
use crate::sandbox::Enforcement;
use crate::settings::Balance;
use crate::state;

/// How many other working directories are tried for one that leads to a living pod.
const N_DETOURS: u32 = 8;

/// For a living pod's answer; a wedged one has none.
const ALIVE_WITHIN: Duration = Duration::from_secs(4);

/// Into a build, before its pod is asked for its name. It is asked once for each repository and set of pods.
const CURIOSITY: Duration = Duration::from_millis(500);

/// How often BuildKit is asked whether it is there.
const PROBE: Duration = Duration::from_secs(60);

/// So many answers missed in a row are no coincidence.
const N_PROBES: u32 = 3;

/// After a pod has gone, how long buildx may take to notice and end by itself, with an error of its own.
const NOTICE: Duration = Duration::from_secs(2);

/// A session for one bake: a builder prepared for it, and what was known of it then.
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

/// How BuildKit is asked something beside a bake.
#[derive(Debug)]
pub(super) struct Dial<'a> {
    pub(super) buildx: &'a Path,
    pub(super) enforcement: Enforcement,
    /// Of the job; each run gets a new directory in it.
    pub(super) directory: PathBuf,
    /// How many runs there were. One at a time: the memory of a worker is counted so.
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
    /// Whether the pod has gone for good, so that buildx chooses another by itself.
    pub(super) has_pod_gone: bool,
    /// The pod, when it was known.
    pod: Option<String>,
}

impl Loss {
    /// Whether the pod's memory was all used, perhaps by this very build.
    pub fn is_out_of_memory(&self) -> bool {
        self.failure.detail.contains("OOMKilled")
    }
}

impl Session<'_> {
    /// Which builder and pod, and why, as far as it is known by now.
    pub fn placement(&self) -> Placement {
        let why = match (&self.cluster, self.balance) {
            (None, _) => self.why.to_owned(),
            (Some(_), Balance::Sticky) if self.is_detour => {
                format!("{}; another pod than the one that was lost", self.why)
            }
            (Some(_), Balance::Sticky) => format!("{}; the pod of this repository", self.why),
            (Some(_), Balance::Random) => format!("{}; any pod", self.why),
        };
        Placement { builder: self.builder.name.clone(), shard: None, pod: self.pod.get().cloned(), why }
    }

    /// Whether another pod could take the build.
    pub fn has_others(&self) -> bool {
        self.cluster.is_some()
    }

    /// Takes another working directory, one that leads to a pod that answers: buildx also chooses pods that do not, and would
    /// choose the same one again.
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

    /// Waits until the builder is lost, watching the bake from the side, and learns the pod's name meanwhile.
    ///
    /// Never returns while docker-buildx hears from its pod. Dropping it ends the watch.
    pub async fn lost(&self) -> Loss {
        let Some(cluster) = &self.cluster else { return std::future::pending().await };
        let mut line = Line::new(&cluster.api, &self.location.run, self.builder.settings.stall_timeout);
        let learn = async {
            sleep(CURIOSITY).await;
            self.learn_pod().await;
            std::future::pending::<()>().await;
        };
        let watch = async {
            loop {
                match line.sign().await {
                    // A connection that was not the line goes now and then; only the pod's own state tells.
                    Sign::Dropped => {
                        if let Some(loss) = self.pods_now().await.ok().and_then(|now| self.own_pod_gone(&now)) {
                            sleep(NOTICE).await;
                            return loss;
                        }
                    }
                    sign => return self.explain(sign).await,
                }
            }
        };
        tokio::select! {
            () = learn => unreachable!("it waits for ever at its end"),
            loss = watch => loss,
            loss = self.mute() => loss,
        }
    }

    /// Waits until BuildKit does not answer any more although the line is there: the kubelet answers the signs of life on
    /// it, also for a BuildKit that hangs.
    async fn mute(&self) -> Loss {
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

    /// Whether a failed bake was a lost builder: by buildx's own word, or because the pod has gone, whatever buildx made of
    /// that. `None` when it was not, or when no other pod would help.
    pub async fn post_mortem(&self, failure: &Failure) -> Option<Loss> {
        let is_told = matches!(failure.reason, Reason::BuilderLost | Reason::BuilderUnavailable);
        // Kubernetes' own words for what no Role allows, on whichever pod.
        if failure.detail.contains("is forbidden: User ") {
            return None;
        }
        // What BuildKit proved of the customer's files stays so, wherever. A killed step is no proof: whoever ends the pod
        // ends its steps first.
        let is_killed = ["exit code: 137", "exit code: 143"].iter().any(|exit| failure.detail.contains(exit));
        let is_doubtful = matches!(failure.reason, Reason::BuildFailed | Reason::DockerfileInvalid)
            || failure.reason == Reason::StepFailed && is_killed;
        if self.cluster.is_none() || !(is_told || is_doubtful) {
            return is_told.then(|| Loss { failure: failure.clone(), has_pod_gone: false, pod: None });
        }
        let now = self.pods_now().await.ok();
        let loss = now.and_then(|now| if is_told { self.gone(&now) } else { self.own_pod_gone(&now) });
        loss.or_else(|| is_told.then(|| Loss { failure: failure.clone(), ..self.loss(String::new()) }))
    }

    /// What a sign means. Kubernetes is asked once: when it does not answer, that takes its whole time.
    async fn explain(&self, sign: Sign) -> Loss {
        let now = self.pods_now().await;
        if let Some(loss) = now.as_ref().ok().and_then(|now| self.gone(now)) {
            return loss;
        }
        match (sign, now) {
            (_, Err(error)) => {
                Loss { failure: Failure::new(Reason::BuilderLost, error.to_string()), ..self.loss(String::new()) }
            }
            (Sign::Stalled(silence), Ok(_)) => {
                self.loss(format!("nothing has come from {} for {} s", self.pod_in_words(), silence.as_secs()))
            }
            (_, Ok(_)) => self.loss(format!("the connection to {} was cut", self.pod_in_words())),
        }
    }

    fn pod_in_words(&self) -> String {
        self.pod.get().map_or_else(|| "its pod".to_owned(), |pod| format!("the pod {pod}"))
    }

    /// A pod that is there and of no use.
    fn loss(&self, what: String) -> Loss {
        let sentence = format!("the builder {}: {what}", self.builder.name);
        let failure = Failure::new(Reason::BuilderLost, sentence);
        Loss { failure, has_pod_gone: false, pod: self.pod.get().cloned() }
    }

    /// The same, but only what is certain: of the build's own pod, and not that it was told to go, since it may finish
    /// what it builds.
    fn own_pod_gone(&self, now: &[PodStatus]) -> Option<Loss> {
        let own = self.pod.get()?;
        let is_there = now.iter().any(|pod| pod.name == *own && pod.is_running && pod.is_going);
        self.gone(now).filter(|_| !is_there)
    }

    /// Whether the build's pod has gone, ended or been told to go; when it is not known, the one pod of which that is true.
    fn gone(&self, now: &[PodStatus]) -> Option<Loss> {
        let before = &self.cluster.as_ref()?.pods;
        let mut fates = before.iter().filter_map(|pod| Some((pod, fate(pod, now)?)));
        let (pod, (fate, has_pod_gone)) = match self.pod.get() {
            Some(own) => fates.find(|(pod, _)| pod.name == *own)?,
            None => fates.next().filter(|_| fates.next().is_none())?,
        };
        let node = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let sentence = format!("the builder {}: the pod {}{node} {fate}", self.builder.name, pod.name);
        let pod = Some(pod.name.clone());
        Some(Loss { failure: Failure::new(Reason::BuilderLost, sentence), has_pod_gone, pod })
    }

    async fn pods_now(&self) -> Result<Vec<PodStatus>, BuilderError> {
        self.builder.cluster().await?.pods().await.map_err(|source| self.builder.wrong(source))
    }

    /// The names of the pods that buildx chooses among.
    fn candidates(&self) -> Option<Vec<String>> {
        let running = self.cluster.as_ref()?.pods.iter().filter(|pod| pod.is_running);
        let mut names: Vec<String> = running.map(|pod| pod.name.clone()).collect();
        names.sort_unstable();
        Some(names)
    }

    /// The pod is known without asking when it is the only one, or when the same choice was made before.
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
            // Where one has gone meanwhile, it may be the bake's own, and this answer another one's.
            Ok(_) if !self.are_all_there(&candidates).await => {}
            // A BuildKit whose host has another name than its pod tells us nothing.
            Ok(pod) if candidates.contains(&pod) => {
                self.builder.known_pods().insert(self.location.working_directory.clone(), (candidates, pod.clone()));
                self.is_on(pod);
            }
            Ok(hostname) => tracing::debug!(builder = self.builder.name, hostname, "the host is none of the pods"),
            Err(error) => {
                tracing::debug!(builder = self.builder.name, %error, "the pod could not be asked for its name")
            }
        }
    }

    /// Asks the BuildKit that a bake would reach for its host's name, which is its pod's: by `docker-buildx dial-stdio` from
    /// the bake's working directory.
    pub async fn dial(&self) -> Result<String, PodError> {
        let mut n_runs = self.dial.n_runs.lock().await;
        *n_runs += 1;
        let private = self.dial.directory.join(n_runs.to_string());
        let child = bake::dial_child(self.dial.buildx, self.dial.enforcement, &self.location, &private)?;
        let mut command = child.command(self.dial.buildx);
        command.args(["dial-stdio", "--builder", &self.location.builder]).current_dir(&self.location.working_directory);
        pod::hostname(command).await
    }
}

/// What has become of a pod, and whether it has gone for good; `None` when it is as it was.
fn fate(before: &PodStatus, now: &[PodStatus]) -> Option<(String, bool)> {
    let Some(pod) = now.iter().find(|pod| pod.uid == before.uid) else {
        return Some(("was deleted during the build".into(), true));
    };
    let because = pod.trouble.as_ref().map(|trouble| format!(": {trouble}")).unwrap_or_default();
    if !pod.is_running {
        Some((format!("does not run any more{because}"), true))
    } else if pod.n_restarts > before.n_restarts {
        Some((format!("lost its BuildKit during the build{because}"), false))
    } else if pod.is_going && !before.is_going {
        Some(("was told to go during the build".into(), false))
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
            n_builds: None,
        }
    }

    #[test]
    fn a_pods_fate_is_told_in_a_sentence() {
        let before = status("d0-a");
        assert_eq!(fate(&before, &[status("d0-b"), status("d0-a")]), None);
        let gone = |now: PodStatus| fate(&before, &[now]).expect("a fate");
        assert_eq!(gone(status("d0-b")), ("was deleted during the build".into(), true));
        let evicted = PodStatus { is_running: false, trouble: Some("Evicted (disk)".into()), ..before.clone() };
        assert_eq!(gone(evicted), ("does not run any more: Evicted (disk)".into(), true));
        let restarted =
            PodStatus { n_restarts: 1, trouble: Some("OOMKilled (exit code 137)".into()), ..before.clone() };
        assert_eq!(gone(restarted).0, "lost its BuildKit during the build: OOMKilled (exit code 137)");
        assert_eq!(
            gone(PodStatus { is_going: true, ..before.clone() }),
            ("was told to go during the build".into(), false)
        );
        // A new pod of the same name, as a StatefulSet makes them, is another pod.
        assert!(gone(PodStatus { uid: "other".into(), ..before.clone() }).1);
    }
}
