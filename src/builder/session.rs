//! One bake on one builder: which pod runs it, whether that pod is lost meanwhile, and which other pod could take over.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::access::KubeAccess;
use super::choice::{Choice, Lead, Rank, Ring, ring};
use super::cluster::Goal;
use super::occupancy::Occupied;
use super::pod::{self, PodError, Refusal};
use super::pods::PodStatus;
use super::watch::{Symptom, Watch};
use super::{Builder, BuilderError};
use crate::bake::{Location, dial_child};
use crate::reason::{Evidence, Failure, Reason};
use crate::report::Placement;
use crate::sandbox::Enforcement;
use crate::settings::{Balance, Driver};
use crate::state;

/// How many working directories are tried to reach a good pod: the usual one, and others. A pod can have nine of ten of them.
const N_DIRECTORIES: usize = 25;

/// How many pods are asked at once. The bake does not run yet, and its memory is room for two of them.
const N_AT_ONCE: usize = 3;

/// For the answer of a healthy pod; a wedged one has none.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

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
    builder: &'a Builder,
    dial: Dial<'a>,
    why: &'static str,
    balance: Balance,
    route: Route,
    pods: Option<Pods>,
    /// The pod, once it is known.
    pod: OnceLock<String>,
    occupied: Mutex<Occupied>,
}

/// Why a build runs on its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// It is the pod that buildx chooses.
    Usual,
    /// That pod was lost.
    AfterLoss,
    /// That pod takes no builds now, or another one is better.
    Around,
}

/// What a search for a good pod found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// A working directory from which to bake.
    Found,
    /// No pod answered.
    Silent,
    /// No good pod, but Kubernetes or a pod answered something.
    Undecided,
}

/// What came back from a working directory.
#[derive(Debug)]
enum Answer {
    /// The pod of this name.
    Pod(String),
    /// A BuildKit whose host name is not the name of a pod: its pod is on the host's network, has a host name of its own, or is
    /// new.
    Stranger,
    /// Nothing, in time.
    Silent,
    /// Why BuildKit could not be asked.
    Failed(PodError),
    /// It was not asked before the deadline.
    Unasked,
}

/// How BuildKit is asked for its host name.
#[derive(Debug)]
pub(super) struct Dial<'a> {
    pub(super) buildx: &'a Path,
    pub(super) enforcement: Enforcement,
    /// A directory of the job; each run gets a new one in it.
    pub(super) directory: PathBuf,
    /// How many runs there were.
    pub(super) n_runs: AtomicU32,
    /// During a bake one runs at a time: the worker's memory limit counts on that.
    pub(super) turn: tokio::sync::Mutex<()>,
}

/// The pods of a builder before a bake, and the way to the API server.
#[derive(Debug)]
pub(super) struct Pods {
    pub(super) before: Vec<PodStatus>,
    /// Replicas of the Deployment.
    pub(super) n_wanted: usize,
    pub(super) api: Vec<SocketAddr>,
    /// What docker-buildx reads, and whose credentials are in it.
    pub(super) kubeconfig: PathBuf,
    pub(super) access: tokio::sync::Mutex<Arc<KubeAccess>>,
}

/// A builder that was lost during a bake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What happened, in full.
    pub failure: Failure,
    /// What happened, in a sentence of ours.
    pub notice: String,
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
        Self { notice: failure.detail.clone(), failure, has_pod_gone: false, is_out_of_memory: false, pod }
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(
        location: Location,
        builder: &'a Builder,
        dial: Dial<'a>,
        why: &'static str,
        pods: Option<Pods>,
        occupied: Occupied,
    ) -> Result<Self, BuilderError> {
        let (balance, occupied) = (builder.settings.balance, Mutex::new(occupied));
        let (route, pod) = (Route::Usual, OnceLock::new());
        let mut session = Self { location, builder, dial, why, balance, route, pods, pod, occupied };
        session.write_record()?;
        Ok(session)
    }

    /// Writes buildx's record of the builder. Its own default builder has none.
    fn write_record(&mut self) -> Result<(), BuilderError> {
        if self.builder.settings.driver != Driver::Docker {
            let kubeconfig = self.pods.as_ref().map(|pods| &*pods.kubeconfig);
            let record = self.builder.record(self.balance, kubeconfig)?;
            self.location.configuration.record = Some((self.location.builder.clone(), record));
        }
        Ok(())
    }

    /// Whether the builder has pods.
    pub fn has_pods(&self) -> bool {
        self.pods.is_some()
    }

    /// Which builder and pod run the build, and why, as far as is known now.
    pub fn placement(&self) -> Placement {
        let pod = match (self.route, self.balance) {
            (Route::AfterLoss, _) => "; another pod than the one that was lost",
            (Route::Around, _) => "; another pod than the one of this repository, which takes no new builds",
            (Route::Usual, Balance::Sticky) => "; the pod of this repository",
            (Route::Usual, Balance::Random) => "; any pod",
        };
        let why = format!("{}{}", self.why, if self.has_pods() { pod } else { "" });
        Placement { builder: self.builder.name.clone(), pod: self.pod.get().cloned(), why }
    }

    /// Whether another pod could take the build.
    pub fn has_others(&self) -> bool {
        self.has_pods()
    }

    /// Finds a working directory that leads to a good pod.
    ///
    /// Asks nothing while every pod is as good as any. After a loss, and when it is called again, the pod has to answer.
    pub(super) async fn find_pod(
        &mut self,
        loss: Option<&Loss>,
        is_again: bool,
        deadline: Instant,
    ) -> Result<Search, BuilderError> {
        let Some(pods) = &self.pods else { return Ok(Search::Found) };
        let lost = loss.and_then(|loss| loss.pod.as_deref());
        let choice = Choice::among(&pods.before, pods.n_wanted, |pod| self.builder.is_shunned(&pod.uid), lost);
        let has_to_answer = loss.is_some() || is_again;
        let usual = self.location.working_directory.clone();
        let leads_nowhere = self.builder.directories().lead(&choice.ring, &usual, Instant::now()) == Lead::Nowhere;
        if choice.is_free() && !has_to_answer && !leads_nowhere {
            self.recall_pod();
            return Ok(Search::Found);
        }
        if self.balance == Balance::Random {
            // Only with the other rule does a directory lead to a pod.
            self.balance = Balance::Sticky;
            self.write_record()?;
        }
        let mut second_best = None;
        let (mut is_silent, mut has_names) = (true, false);
        // Most builds need no other directory than the usual one.
        for first in std::iter::once(0).chain((1..N_DIRECTORIES).step_by(N_AT_ONCE)) {
            if first > 0 && Instant::now() >= deadline {
                break;
            }
            let (mut has_stranger, mut is_refused) = (false, false);
            for (directory, answer) in self.leads(&usual, first, &choice, has_to_answer, deadline).await? {
                is_silent &= matches!(answer, Answer::Silent);
                match answer {
                    Answer::Pod(pod) => {
                        has_names = true;
                        match choice.rank(&pod) {
                            Some(Rank::Preferred) => {
                                self.take(directory, pod, loss);
                                return Ok(Search::Found);
                            }
                            Some(Rank::Usable) => {
                                second_best.get_or_insert((directory, pod));
                            }
                            None => {}
                        }
                    }
                    Answer::Stranger => has_stranger = true,
                    Answer::Failed(error) => is_refused |= self.is_refused(error)?,
                    Answer::Silent | Answer::Unasked => {}
                }
            }
            if has_stranger && !has_names {
                // Host names tell no pods here, so no directory is better than the usual one.
                return Ok(Search::Found);
            }
            if is_refused {
                break;
            }
        }
        match second_best {
            Some((directory, pod)) => {
                self.take(directory, pod, loss);
                Ok(Search::Found)
            }
            None if is_silent => Ok(Search::Silent),
            None => Ok(Search::Undecided),
        }
    }

    /// Whether Kubernetes refuses for now: it would refuse the other directories as well. What it forbids is an error.
    fn is_refused(&self, error: PodError) -> Result<bool, BuilderError> {
        tracing::debug!(builder = self.builder.name, %error, "could not ask BuildKit for its pod's name");
        match error.refusal() {
            Some(Refusal::Forbidden) => Err(self.builder.forbidden(&error)),
            refusal => Ok(refusal.is_some()),
        }
    }

    /// To which pods some working directories lead: the usual one has number 0. Their pods are asked at once.
    async fn leads(
        &self,
        usual: &Path,
        first: usize,
        choice: &Choice,
        has_to_answer: bool,
        deadline: Instant,
    ) -> Result<Vec<(PathBuf, Answer)>, BuilderError> {
        let lead = |directory| self.lead(directory, choice, has_to_answer, deadline);
        if first == 0 {
            return Ok(vec![(usual.to_owned(), lead(usual).await)]);
        }
        let directories: [PathBuf; N_AT_ONCE] =
            std::array::from_fn(|n| usual.join(format!(".detour-{}", first + n - 1)));
        directories.iter().try_for_each(|directory| state::make_private(directory))?;
        let answers = tokio::join!(lead(&directories[0]), lead(&directories[1]), lead(&directories[2]));
        Ok(directories.into_iter().zip(<[_; N_AT_ONCE]>::from(answers)).collect())
    }

    /// To which pod a working directory leads. What was learned before counts while the pods stay the same.
    async fn lead(&self, directory: &Path, choice: &Choice, has_to_answer: bool, deadline: Instant) -> Answer {
        match self.builder.directories().lead(&choice.ring, directory, Instant::now()) {
            // A pod that takes no build need not answer.
            Lead::To(pod) if !has_to_answer || choice.rank(&pod).is_none() => return Answer::Pod(pod),
            Lead::Nowhere if !has_to_answer => return Answer::Silent,
            _ => {}
        }
        // Neither credentials nor other builds count as a pod's silence.
        let prepared = async {
            self.renew_access().await;
            self.builder.dials.acquire().await
        };
        let Ok(Ok(_permit)) = timeout_at(deadline, prepared).await else { return Answer::Unasked };
        let (answer, learned) = match timeout(ALIVE_WITHIN, self.ask(directory)).await {
            Ok(Ok(pod)) if choice.has(&pod) => (Answer::Pod(pod.clone()), Some(pod)),
            Ok(Ok(_)) => return Answer::Stranger,
            // An error says nothing about the pod: Kubernetes may refuse, or docker-buildx may fail.
            Ok(Err(error)) => return Answer::Failed(error),
            Err(_) => (Answer::Silent, None),
        };
        self.builder.directories().learn(&choice.ring, directory.to_owned(), learned, Instant::now());
        answer
    }

    /// Bakes from this working directory, which leads to this pod.
    fn take(&mut self, directory: PathBuf, pod: String, loss: Option<&Loss>) {
        if directory != self.location.working_directory {
            self.route = if loss.is_some() { Route::AfterLoss } else { Route::Around };
            self.location.working_directory = directory;
        }
        self.is_on(pod);
    }

    /// Looks at the pods again, and waits until one is ready.
    pub(super) async fn renew(&mut self, deadline: Instant) -> Result<(), BuilderError> {
        if let Some(pods) = &mut self.pods {
            let survey = self.builder.wait_for(Goal::Ready, deadline).await?;
            (pods.n_wanted, pods.before) = (survey.n_wanted(), survey.pods);
        }
        Ok(())
    }

    /// Watches a running bake until its builder is lost, and learns the pod's name meanwhile.
    ///
    /// Does not return while docker-buildx receives data from its pod. Dropping it ends the watch.
    pub async fn lost(&self) -> Loss {
        let Some(pods) = &self.pods else { return std::future::pending().await };
        let mut watch = Watch::new(&pods.api, &self.location.run, self.builder.settings.stall_timeout);
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
        if self.pods.is_none() || !(is_reported || is_doubtful) {
            return is_reported.then(|| Loss::new(failure.clone(), None));
        }
        let now = self.pods_now().await.ok();
        let loss = now.and_then(|now| if is_reported { self.gone(&now) } else { self.own_pod_gone(&now) });
        loss.or_else(|| is_reported.then(|| self.unexplained(failure)))
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

    /// A loss that the notice tells in our words, and the failure and the log with the words of another program.
    fn loss_with(&self, what: String, words: &str, failure: Failure) -> Loss {
        let (builder, pod) = (&self.builder.name, self.pod.get());
        tracing::warn!(event = "builder_lost", builder, pod, error = words, "builder lost during a build");
        let Loss { failure: ours, pod, .. } = self.loss(what);
        let failure = failure.with_detail(&format!("{}: {words}", ours.detail));
        Loss { notice: ours.detail, ..Loss::new(failure, pod) }
    }

    /// Avoids the pod for a while, in the next builds.
    fn shun(&self) {
        let mut before = self.pods.iter().flat_map(|pods| &pods.before);
        if let Some(pod) = before.find(|pod| Some(&pod.name) == self.pod.get()) {
            self.builder.shun(&pod.uid);
        } else if let Some(pods) = &self.pods {
            let directory = self.location.working_directory.clone();
            self.builder.directories().learn(&ring(&pods.before), directory, None, Instant::now());
        }
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

    fn pod_in_words(&self) -> String {
        self.pod.get().map_or_else(|| "one of its pods".to_owned(), |pod| format!("the pod {pod}"))
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
        let before = &self.pods.as_ref()?.before;
        let mut fates = before.iter().filter_map(|pod| Some((pod, fate(pod, now)?)));
        let (pod, fate) = match self.pod.get() {
            Some(own) => fates.find(|(pod, _)| pod.name == *own)?,
            None => fates.next().filter(|_| fates.next().is_none())?,
        };
        let node = pod.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let sentence = format!("the builder {}: the pod {}{node} {}", self.builder.name, pod.name, fate.sentence);
        Some(Loss {
            failure: Failure::new(Reason::BuilderLost, sentence.clone()),
            notice: sentence,
            has_pod_gone: fate.has_gone,
            is_out_of_memory: fate.is_out_of_memory,
            pod: Some(pod.name.clone()),
        })
    }

    async fn pods_now(&self) -> Result<Vec<PodStatus>, BuilderError> {
        self.builder.ask(|cluster| async move { cluster.pods().await }).await
    }

    /// Sets the pod without asking, when it is the only one or when the same choice was made before.
    fn recall_pod(&self) {
        let Some(pods) = &self.pods else { return };
        let ring = ring(&pods.before);
        let known = match (ring.as_slice(), self.balance) {
            ([(only, _)], _) => Some(only.clone()),
            (_, Balance::Random) => None,
            (_, Balance::Sticky) => {
                match self.builder.directories().lead(&ring, &self.location.working_directory, Instant::now()) {
                    Lead::To(pod) => Some(pod),
                    Lead::Nowhere | Lead::Unknown => None,
                }
            }
        };
        if let Some(pod) = known {
            self.is_on(pod);
        }
    }

    fn is_on(&self, pod: String) {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner).on(&pod);
        let _ = self.pod.set(pod);
    }

    async fn learn_pod(&self) {
        let (None, Balance::Sticky, Some(pods)) = (self.pod.get(), self.balance, &self.pods) else { return };
        let before = ring(&pods.before);
        match self.dial().await {
            Ok(pod) if before.iter().any(|(name, _)| *name == pod) => {
                // When another pod is gone, it may be the bake's own, and this one only the next.
                if self.pods_now().await.is_ok_and(|now| is_kept(&before, &now)) {
                    let directory = self.location.working_directory.clone();
                    self.builder.directories().learn(&before, directory, Some(pod.clone()), Instant::now());
                    self.is_on(pod);
                }
            }
            Ok(hostname) => {
                tracing::debug!(builder = self.builder.name, hostname, "BuildKit's host name is not one of the pods")
            }
            Err(error) => {
                tracing::debug!(builder = self.builder.name, %error, "could not ask BuildKit for its pod's name")
            }
        }
    }

    /// Asks the BuildKit that a bake would reach for its host name, which is its pod's name.
    pub async fn dial(&self) -> Result<String, PodError> {
        let _turn = self.dial.turn.lock().await;
        self.renew_access().await;
        self.ask(&self.location.working_directory).await
    }

    /// Runs `docker-buildx dial-stdio` from a working directory, and asks the BuildKit that it reaches for its host name.
    async fn ask(&self, directory: &Path) -> Result<String, PodError> {
        let run = self.dial.n_runs.fetch_add(1, Ordering::Relaxed);
        let private = self.dial.directory.join(run.to_string());
        let child = dial_child(self.dial.buildx, self.dial.enforcement, &self.location, &private)?;
        let mut command = child.command(self.dial.buildx);
        command.args(["dial-stdio", "--builder", &self.location.builder]).current_dir(directory);
        pod::hostname(command).await
    }

    /// Writes new credentials where docker-buildx reads them: those of the bake's beginning may have expired. The running bake
    /// has its connection.
    async fn renew_access(&self) {
        let Some(pods) = &self.pods else { return };
        let mut written = pods.access.lock().await;
        // Without new ones, the old ones may do.
        let Ok(access) = self.builder.access().await else { return };
        if !Arc::ptr_eq(&access, &written) && self.builder.write_kubeconfig(&access, &pods.kubeconfig).is_ok() {
            *written = access;
        }
    }
}

/// Whether all pods of a ring are still there. Pods that were terminating may go.
fn is_kept(before: &Ring, now: &[PodStatus]) -> bool {
    let is_there = |name: &str| now.iter().any(|pod| pod.name == name && pod.is_running && !pod.is_going);
    before.iter().filter(|(_, is_going)| !is_going).all(|(name, _)| is_there(name))
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
pub(super) mod tests {
    use super::*;

    /// A pod that takes builds.
    pub(in crate::builder) fn status(name: &str) -> PodStatus {
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
            revision: None,
            is_of_stateful_set: false,
            is_misplaced: false,
        }
    }

    #[test]
    fn a_terminating_pod_may_go_while_a_pods_name_is_learned() {
        let mut going = status("a");
        going.is_going = true;
        let before = ring(&[going.clone(), status("b")]);
        assert!(is_kept(&before, &[status("b")]));
        assert!(is_kept(&before, &[going.clone(), status("b")]));
        assert!(!is_kept(&before, &[going.clone()]));
        assert!(!is_kept(&ring(&[status("a"), status("b")]), &[going, status("b")]));
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
