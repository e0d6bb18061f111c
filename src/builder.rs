//! The builders: which one takes a build, how buildx finds it, and what has become of it when a build fails.
//!
//! Owns the choice among the configured builders, buildx's record of the chosen one (written anew for each job), and the
//! two strings by which BuildKit finds what it has seen before: the working directory, by which the kubernetes driver
//! chooses the pod, and the node id, by which contexts are transferred incrementally. Never changes anybody's current
//! builder, nor a Deployment unless told to.

mod access;
mod cluster;
mod deployment;
mod instance;
mod line;
mod occupancy;
mod pod;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::bake::Site;
use crate::job::Build;
use crate::process;
use crate::reason::{Failure, Reason};
use crate::report::Placement;
use crate::sandbox::Sockets;
use crate::settings::{self, Balance, Driver};
use crate::state::{self, JobDirectory, StateDirectory, StateError};

use access::Access;
use cluster::{Cluster, ClusterError, Survey};
use deployment::Ground;
use line::{Line, Sign};
use occupancy::Occupied;

pub use access::AccessError;
pub use cluster::PodStatus;
pub use deployment::Drift;
pub use occupancy::{Counts, Occupancy, of_fleet};
pub use pod::PodError;

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

/// There is no builder for a build.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// The job names a builder that is not configured.
    #[error("builder: there is no builder {0:?} in the configuration")]
    Unknown(String),
    /// The job names a builder that is not for its account.
    #[error("builder: {builder:?} does not take builds of the account {account:?}")]
    NotForAccount {
        /// The builder.
        builder: String,
        /// The account.
        account: String,
    },
    /// No configured builder takes the account's builds.
    #[error("no builder is configured that takes builds of the account {0:?}")]
    None(String),
    /// The builder's buildkitd.toml cannot be read.
    #[error("the builder {name}: buildkitd_config: {error}")]
    Config {
        /// Its name.
        name: String,
        /// Why.
        error: std::io::Error,
    },
    /// Kubernetes has no ready pod, or does not answer.
    #[error("the builder {name}: {error}")]
    Cluster {
        /// Its name.
        name: String,
        /// What Kubernetes says.
        error: ClusterError,
    },
    /// A directory or file cannot be made.
    #[error(transparent)]
    State(#[from] StateError),
}

impl BuilderError {
    /// The entry of the closed list.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unknown(_) | Self::NotForAccount { .. } => Reason::InvalidArguments,
            Self::None(_) | Self::Cluster { .. } => Reason::BuilderUnavailable,
            Self::Config { .. } | Self::State(_) => Reason::WorkerFailed,
        }
    }
}

impl From<BuilderError> for Failure {
    fn from(error: BuilderError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// All configured builders.
#[derive(Debug)]
pub struct Builders {
    /// The builds that run on them.
    pub occupancy: Occupancy,
    buildx: PathBuf,
    builders: BTreeMap<String, Builder>,
}

#[derive(Debug)]
struct Builder {
    name: String,
    settings: settings::Builder,
    /// The API server and credentials for it, and since when.
    access: tokio::sync::Mutex<Option<(Arc<Access>, Instant)>>,
    /// Which pod a working directory led to, and among which pods.
    pods: Mutex<BTreeMap<PathBuf, (Vec<String>, String)>>,
}

/// A place for one bake: a builder prepared for it, and what was known of it then.
#[derive(Debug)]
pub struct Place<'a> {
    /// What the bake needs.
    pub site: Site,
    builder: &'a Builder,
    buildx: &'a Path,
    why: &'static str,
    balance: Balance,
    is_detour: bool,
    cluster: Option<Surveyed>,
    /// The pod, once it is known.
    pod: OnceLock<String>,
    occupied: Mutex<Occupied>,
}

/// The pods of a builder before a bake.
#[derive(Debug)]
struct Surveyed {
    api: Vec<SocketAddr>,
    pods: Vec<PodStatus>,
}

/// A builder that was lost during a bake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What happened, in a sentence.
    pub failure: Failure,
    /// Whether the pod has gone for good, so that buildx chooses another by itself.
    has_pod_gone: bool,
    /// The pod, when it was known.
    pod: Option<String>,
}

impl Loss {
    /// Whether the pod's memory was all used, perhaps by this very build.
    pub fn is_out_of_memory(&self) -> bool {
        self.failure.detail.contains("OOMKilled")
    }
}

/// What there is of a builder, for `sidebake builder` and `doctor`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// Its name in the configuration.
    pub builder: String,
    /// buildx's driver.
    pub driver: &'static str,
    /// The Deployment, or the address.
    pub at: String,
    /// Whether the Deployment is there; `true` for other drivers.
    pub exists: bool,
    /// Pods that the Deployment wants, and its pods.
    pub n_wanted: usize,
    /// Each pod.
    pub pods: Vec<PodStatus>,
    /// Why pods are missing or not ready.
    pub why: Option<String>,
    /// Where the live Deployment is not as configured.
    #[serde(skip)]
    pub drift: Vec<Drift>,
    /// The accounts whose builds it takes.
    pub accounts: Vec<String>,
}

impl Builders {
    /// Takes the settings; nothing is created or asked yet.
    pub fn new(buildx: &Path, builders: &BTreeMap<String, settings::Builder>) -> Self {
        let builders = builders.iter().map(|(name, settings)| (name.clone(), Builder::new(name, settings))).collect();
        Self { occupancy: Occupancy::default(), buildx: buildx.to_owned(), builders }
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.builders.keys().map(String::as_str)
    }

    /// Chooses the builder of a build and prepares the job's directory for it.
    ///
    /// After a `loss` it is another pod than the usual one, when one answers.
    ///
    /// # Errors
    ///
    /// When no builder takes the build, or none of its pods is ready for as long as its `timeout`.
    pub async fn place(
        &self,
        build: &Build,
        state: &StateDirectory,
        directory: &JobDirectory,
        loss: Option<&Loss>,
    ) -> Result<Place<'_>, BuilderError> {
        let (builder, why) = self.choose(build)?;
        let wedged = loss.filter(|loss| !loss.has_pod_gone);
        let balance = if wedged.is_some() { Balance::Sticky } else { builder.settings.balance };
        let mut site = builder.site(builder.working_directory(build, state));
        state::make_private(&site.working_directory)?;
        let solve = directory.subdirectory("solve")?;
        let config = solve.join("buildx");
        site.buildx_config.clone_from(&config);
        state::make_private(&config.join("instances"))?;
        state::write_private(&config.join(".buildNodeID"), node_id(build).as_bytes())?;
        let cluster = match builder.settings.driver {
            Driver::Kubernetes => Some(builder.survey(&mut site, &solve.join("kubeconfig")).await?),
            _ => None,
        };
        if builder.settings.driver != Driver::Docker {
            let kubeconfig = cluster.is_some().then(|| solve.join("kubeconfig"));
            let record = builder.record(balance, kubeconfig.as_deref())?;
            state::write_private(&config.join("instances").join(&site.builder), &record)?;
        }
        let (buildx, pod) = (&self.buildx, OnceLock::new());
        let occupied = Mutex::new(self.occupancy.occupy(&builder.name, ""));
        let mut place = Place { site, builder, buildx, why, balance, is_detour: false, cluster, pod, occupied };
        match wedged {
            Some(loss) => place.detour(loss).await?,
            None => place.recall_pod(),
        }
        Ok(place)
    }

    /// Where a build would go, without preparing or asking anything: for `plan`.
    pub fn plan(&self, build: &Build, state: &StateDirectory) -> Result<(Site, Placement), BuilderError> {
        let (builder, why) = self.choose(build)?;
        let placement = Placement { builder: builder.name.clone(), shard: None, pod: None, why: why.into() };
        Ok((builder.site(builder.working_directory(build, state)), placement))
    }

    /// The builder that the job names; else the one that is meant most closely for its account.
    fn choose(&self, build: &Build) -> Result<(&Builder, &'static str), BuilderError> {
        let account = &build.account;
        if let Some(name) = &build.builder {
            let builder = self.builders.get(name).ok_or_else(|| BuilderError::Unknown(name.clone()))?;
            return match builder.settings.takes(account) {
                Some(_) => Ok((builder, "named by the job")),
                None => Err(BuilderError::NotForAccount { builder: name.clone(), account: account.clone() }),
            };
        }
        let taking = self.builders.values().filter_map(|builder| Some((builder.settings.takes(account)?, builder)));
        let is_default = |builder: &Builder| builder.name == "default";
        // Among equals the one called default; the first by name when there is none.
        let best = taking.max_by(|(closeness, builder), (other_closeness, other)| {
            let by_name = other.name.cmp(&builder.name);
            closeness.cmp(other_closeness).then(is_default(builder).cmp(&is_default(other))).then(by_name)
        });
        let (closeness, builder) = best.ok_or_else(|| BuilderError::None(account.clone()))?;
        Ok((builder, if closeness == (false, 1) { "takes every account" } else { "takes this account" }))
    }

    /// Gives the article's `docker buildx create` its effect: makes the Deployment unless it is there, and waits until its
    /// pods are ready. What is there is never changed. Returns whether this call made it.
    pub async fn ensure(&self, name: &str) -> Result<bool, BuilderError> {
        let builder = self.named(name)?;
        if builder.settings.driver != Driver::Kubernetes {
            return Ok(false);
        }
        let wrong = |source| builder.wrong(source);
        let cluster = builder.cluster().await?;
        let is_new = cluster.create(&builder.settings).await.map_err(wrong)?;
        cluster.wait_until_ready(None, builder.settings.timeout).await.map_err(wrong)?;
        Ok(is_new)
    }

    /// Changes the live Deployment to what the configuration says, and waits until its pods are ready.
    pub async fn apply(&self, name: &str) -> Result<(), BuilderError> {
        let builder = self.named(name)?;
        if builder.settings.driver != Driver::Kubernetes {
            return Ok(());
        }
        let wrong = |source| builder.wrong(source);
        let cluster = builder.cluster().await?;
        if !cluster.create(&builder.settings).await.map_err(wrong)? {
            cluster.apply(&builder.settings).await.map_err(wrong)?;
        }
        cluster.wait_until_ready(None, builder.settings.timeout).await.map(drop).map_err(wrong)
    }

    /// What there is of a builder now.
    pub async fn status(&self, name: &str) -> Result<Status, BuilderError> {
        let builder = self.named(name)?;
        let accounts = builder.settings.accounts.iter().map(ToString::to_string).collect();
        let driver = builder.settings.driver.name();
        if builder.settings.driver != Driver::Kubernetes {
            let at = builder.settings.endpoint.clone().unwrap_or_else(|| DOCKER_SOCKET.into());
            let (builder, pods, drift) = (name.to_owned(), Vec::new(), Vec::new());
            return Ok(Status { builder, driver, at, exists: true, n_wanted: 0, pods, why: None, drift, accounts });
        }
        let survey = builder.cluster().await?.survey().await.map_err(|source| builder.wrong(source))?;
        let node = builder.settings.node_name(name);
        let at = format!("{node} in {}", builder.access().await?.namespace());
        let (exists, survey) =
            (survey.is_some(), survey.unwrap_or(Survey { deployment: serde_json::Value::Null, pods: Vec::new() }));
        let text = builder.settings.buildkitd_config.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let ground = Ground::of(&survey.deployment, text.as_deref());
        let configured = deployment::configured(&node, &builder.settings, ground);
        let is_short = exists && survey.n_ready() < survey.n_wanted();
        Ok(Status {
            builder: name.to_owned(),
            driver,
            at,
            exists,
            n_wanted: if exists { survey.n_wanted() } else { 0 },
            why: is_short.then(|| survey.why()),
            drift: if exists { deployment::drift(&survey.deployment, &configured) } else { Vec::new() },
            pods: survey.pods,
            accounts,
        })
    }

    fn named(&self, name: &str) -> Result<&Builder, BuilderError> {
        self.builders.get(name).ok_or_else(|| BuilderError::Unknown(name.to_owned()))
    }
}

impl Place<'_> {
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
    async fn detour(&mut self, loss: &Loss) -> Result<(), BuilderError> {
        let Some(n_pods) = self.candidates().map(|pods| pods.len()) else { return Ok(()) };
        self.is_detour = true;
        let usual = self.site.working_directory.clone();
        for n in 0..N_DETOURS {
            self.site.working_directory = usual.join(format!(".detour-{n}"));
            state::make_private(&self.site.working_directory)?;
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
        let mut line = Line::new(&cluster.api, &self.site.run, self.builder.settings.stall_timeout);
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
    fn recall_pod(&self) {
        let Some(candidates) = self.candidates() else { return };
        let known = match (candidates.as_slice(), self.balance) {
            ([only], _) => Some(only.clone()),
            (_, Balance::Sticky) => {
                let known = self.builder.known_pods();
                known
                    .get(&self.site.working_directory)
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
                self.builder.known_pods().insert(self.site.working_directory.clone(), (candidates, pod.clone()));
                self.is_on(pod);
            }
            Ok(hostname) => tracing::debug!(builder = self.builder.name, hostname, "the host is none of the pods"),
            Err(error) => {
                tracing::debug!(builder = self.builder.name, %error, "the pod could not be asked for its name")
            }
        }
    }

    /// Asks the BuildKit that a bake would reach for its host's name, which is its pod's.
    pub async fn dial(&self) -> Result<String, PodError> {
        pod::hostname(self.dial_command()).await
    }

    /// `docker-buildx dial-stdio` from the bake's working directory. No stranger's bytes reach it.
    fn dial_command(&self) -> Command {
        let mut command = process::command(self.buildx);
        command.args(["dial-stdio", "--builder", &self.site.builder]).current_dir(&self.site.working_directory);
        command.envs(&self.site.environment).env("BUILDX_CONFIG", &self.site.buildx_config);
        command.env("TMPDIR", &self.site.buildx_config).env("HOME", &self.site.buildx_config);
        command
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

/// Where an engine on this machine listens.
const DOCKER_SOCKET: &str = "unix:///var/run/docker.sock";

impl Builder {
    fn new(name: &str, settings: &settings::Builder) -> Self {
        Self {
            name: name.to_owned(),
            settings: settings.clone(),
            access: tokio::sync::Mutex::default(),
            pods: Mutex::default(),
        }
    }

    /// buildx keeps the name `default` for itself. What others see, the node's name, is not this one.
    fn instance_name(&self) -> String {
        if self.name == "default" { "sidebake".into() } else { self.name.clone() }
    }

    /// The directory from which every worker bakes for a repository. It exists for its name alone.
    fn working_directory(&self, build: &Build, state: &StateDirectory) -> PathBuf {
        let (account, repository) = (&build.account, &build.repository);
        match &self.settings.sticky_path {
            Some(pattern) => pattern.expand(&build.names()).into(),
            None => state.sticky().join(account).join(&repository.owner).join(&repository.name),
        }
    }

    fn site(&self, working_directory: PathBuf) -> Site {
        let endpoint = self.settings.endpoint.as_deref();
        let mut site = Site {
            builder: self.instance_name(),
            working_directory,
            buildx_config: PathBuf::new(),
            environment: BTreeMap::new(),
            sockets: Sockets::Tcp(endpoint.and_then(port).into_iter().collect()),
            files: Vec::new(),
            is_watched: self.settings.driver == Driver::Kubernetes,
            run: Arc::default(),
        };
        match self.settings.driver {
            Driver::Kubernetes => {}
            Driver::Remote => {
                site.files =
                    self.settings.options.values().map(PathBuf::from).filter(|path| path.is_absolute()).collect()
            }
            Driver::Docker | Driver::DockerContainer => {
                let endpoint = endpoint.unwrap_or(DOCKER_SOCKET);
                if endpoint.starts_with("unix:") {
                    site.sockets = Sockets::TcpAndUnix(Vec::new());
                }
                if self.settings.driver == Driver::Docker {
                    // buildx's own name for the engine behind DOCKER_HOST.
                    site.builder = "default".into();
                }
                site.environment.insert("DOCKER_HOST".into(), endpoint.to_owned());
            }
        }
        site
    }

    /// Looks which pods there are, waits for one that is ready, and lets the bake reach the API server.
    async fn survey(&self, site: &mut Site, kubeconfig: &Path) -> Result<Surveyed, BuilderError> {
        let survey = self.ready(1).await?;
        // Only now: what was looked up before a long wait may have ended meanwhile.
        let access = self.access().await?;
        let api = access.addresses().await;
        let text = access.kubeconfig().map_err(|error| self.wrong(error.into()))?;
        state::write_private(kubeconfig, text.expose().as_bytes())?;
        site.sockets = Sockets::Tcp(vec![access.port()]);
        site.environment.insert("KUBECONFIG".into(), kubeconfig.display().to_string());
        Ok(Surveyed { pods: survey.pods, api })
    }

    async fn ready(&self, n: usize) -> Result<Survey, BuilderError> {
        let ready = self.cluster().await?.wait_until_ready(Some(n), self.settings.timeout).await;
        ready.map_err(|source| self.wrong(source))
    }

    fn record(&self, balance: Balance, kubeconfig: Option<&Path>) -> Result<Vec<u8>, BuilderError> {
        let node = self.settings.node_name(&self.name);
        let record = instance::record(&self.instance_name(), &node, &self.settings, balance, kubeconfig);
        record.map_err(|error| BuilderError::Config { name: self.name.clone(), error })
    }

    /// The API server and credentials, looked up again when they may have changed.
    async fn access(&self) -> Result<Arc<Access>, BuilderError> {
        let mut known = self.access.lock().await;
        if let Some((access, since)) = &*known
            && access.is_fresh(since.elapsed())
        {
            return Ok(Arc::clone(access));
        }
        let access = Access::find(&self.settings).await.map_err(|error| self.wrong(error.into()))?;
        let access = Arc::new(access);
        *known = Some((Arc::clone(&access), Instant::now()));
        Ok(access)
    }

    async fn cluster(&self) -> Result<Cluster, BuilderError> {
        let access = self.access().await?;
        Cluster::new(&access, self.settings.node_name(&self.name)).map_err(|error| self.wrong(error.into()))
    }

    fn known_pods(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, (Vec<String>, String)>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self, error: ClusterError) -> BuilderError {
        BuilderError::Cluster { name: self.name.clone(), error }
    }
}

/// BuildKit keys the incremental transfer of a context by the client's node id: one for each repository and trust,
/// on whichever worker, so that equal directory names of different repositories do not disturb each other.
fn node_id(build: &Build) -> String {
    let key = format!("{}\n{}\n{}", build.account, build.repository, build.trust.name());
    Sha256::digest(key)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn port(endpoint: &str) -> Option<u16> {
    endpoint.strip_prefix("tcp://")?.rsplit_once(':')?.1.parse().ok()
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
