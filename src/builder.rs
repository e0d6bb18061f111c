//! The builders: which one takes a build, how buildx reaches it, and what happened to it when a build fails.
//!
//! Owns the choice among the configured builders, buildx's record of the chosen one (written again for each run), and two
//! strings that make caches hit: the working directory, by which the kubernetes driver chooses the pod, and the node id, by
//! which BuildKit transfers contexts incrementally. Never changes a user's current builder. Changes a Deployment only on
//! request (`ensure`, `apply`).

mod access;
mod choice;
mod cluster;
mod deployment;
mod instance;
mod occupancy;
mod outage;
mod pod;
mod pods;
mod session;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout_at};

use crate::bake::{Configuration, Location};
use crate::bounds;
use crate::hex;
use crate::job::Build;
use crate::network::{Proxies, Proxy};
use crate::reason::{HasReason, Reason};
use crate::report::Placement;
use crate::sandbox::{Enforcement, Sockets};
use crate::settings::{self, Balance, Driver};
use crate::state::{self, JobDirectory, StateDirectory, StateError};
use crate::text;

use access::{KubeAccess, PLUGIN};
use choice::{Directories, SHUNNED};
use cluster::{Cluster, Goal, Survey};
use outage::Outage;
use session::{Dial, Pods, Search};

pub use access::AccessError;
pub use cluster::{Cause, ClusterError};
pub use deployment::Drift;
pub use occupancy::{Counts, Occupancy, of_fleet};
pub use pod::PodError;
pub use pods::PodStatus;
pub use session::{Loss, Session};

/// How often a builder that is not ready is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How often Kubernetes is asked again that did not answer, and pods of which none answered.
const AGAIN: Duration = Duration::from_secs(2);

/// How long Kubernetes has to answer until its outage is over.
const STEADY: Duration = Duration::from_secs(5);

/// How many docker-buildx of builds that look for a pod run at once, for each builder.
const N_DIALS: usize = 4;

/// How long a builder is not ready until its log says so. A pod that starts is often ready before.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// A build cannot be placed on a builder.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// The job names a builder that is not configured.
    #[error("builder: no builder {0:?} is configured")]
    Unknown(String),
    /// The job names a builder that does not take its account's builds.
    #[error("builder: {builder:?} does not take builds of the account {account:?}")]
    NotForAccount {
        /// The builder.
        builder: String,
        /// The account.
        account: String,
    },
    /// No configured builder takes the account's builds.
    #[error("no configured builder takes builds of the account {0:?}")]
    None(String),
    /// The builder's buildkitd.toml cannot be read.
    #[error("the builder {name}: buildkitd_config: {error}")]
    Config {
        /// Its name.
        name: String,
        /// Why.
        error: std::io::Error,
    },
    /// The builder has no ready pod, or Kubernetes does not answer.
    #[error("the builder {name}: {error}")]
    Cluster {
        /// Its name.
        name: String,
        /// What Kubernetes says.
        error: ClusterError,
    },
    /// A directory or file cannot be created.
    #[error(transparent)]
    State(#[from] StateError),
}

impl HasReason for BuilderError {
    fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Unknown(_) | Self::NotForAccount { .. } => Reason::InvalidArguments,
            Self::None(_) | Self::Cluster { .. } => Reason::BuilderUnavailable,
            Self::Config { .. } | Self::State(_) => Reason::WorkerFailed,
        })
    }
}

/// All configured builders.
#[derive(Debug)]
pub struct Builders {
    /// How many builds run on them.
    pub occupancy: Occupancy,
    buildx: PathBuf,
    enforcement: Enforcement,
    builders: BTreeMap<String, Builder>,
}

/// What a look-up of the API server and its credentials found.
type Access = Result<Arc<KubeAccess>, Arc<AccessError>>;

#[derive(Debug)]
struct Builder {
    name: String,
    settings: settings::Builder,
    /// The proxies of the environment, for buildx.
    proxies: Proxies,
    /// Certificates that buildx trusts beside the system's.
    ca_file: Option<PathBuf>,
    /// The API server and its credentials, or why they are not known, and when they were looked up.
    access: tokio::sync::Mutex<Option<(Access, Instant)>>,
    /// Builds that look for a pod take turns.
    dials: tokio::sync::Semaphore,
    /// To which pods the working directories lead.
    directories: Mutex<Directories>,
    /// Pods that did not answer, by uid, and since when they are avoided.
    shunned: Mutex<BTreeMap<String, Instant>>,
    /// Kubernetes does not answer.
    outage: Outage,
    /// Builds wait for a ready pod.
    wait: Outage,
    /// Which of them looks whether there is one.
    turn: tokio::sync::Mutex<()>,
}

/// The state of a builder, for `sidebake builder` and `doctor`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BuilderStatus {
    /// Its name in the configuration.
    pub builder: String,
    /// buildx's driver.
    pub driver: &'static str,
    /// The Deployment, or the address.
    pub at: String,
    /// Whether the Deployment exists; `true` for other drivers.
    pub exists: bool,
    /// Replicas of the Deployment.
    pub n_wanted: usize,
    /// Pods that take builds.
    pub n_ready: usize,
    /// Each pod.
    pub pods: Vec<PodStatus>,
    /// What is wrong with the Deployment or its pods, in Kubernetes' words.
    pub why: Option<String>,
    /// Where the live Deployment differs from the configuration.
    #[serde(skip)]
    pub drift: Vec<Drift>,
    /// The accounts whose builds it takes.
    pub accounts: Vec<String>,
}

impl Builders {
    /// Takes the settings. Creates and asks nothing yet.
    pub fn new(settings: &settings::Settings) -> Self {
        let builders = settings.builders.iter();
        Self {
            occupancy: Occupancy::default(),
            buildx: settings.buildx.binary.clone(),
            enforcement: settings.sandbox.mode.into(),
            builders: builders.map(|(name, own)| (name.clone(), Builder::new(name, own, settings.ca_file()))).collect(),
        }
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.builders.keys().map(String::as_str)
    }

    /// Chooses the builder of a build and prepares the job's directory for it.
    ///
    /// After a `loss`, takes another pod than the usual one, if one answers.
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
    ) -> Result<Session<'_>, BuilderError> {
        let (builder, why) = self.choose(build)?;
        let deadline = Instant::now() + builder.settings.timeout;
        // The place of a pod that is gone needs no search: buildx chooses another one by itself.
        let loss = loss.filter(|loss| !loss.has_pod_gone);
        let mut location = builder.location(builder.working_directory(build, state));
        state::make_private(&location.working_directory)?;
        location.configuration.node_id = node_id(build);
        let pods = match builder.settings.driver {
            // No child writes here, and the worker's own docker-buildx reads it as well.
            Driver::Kubernetes => {
                let kubeconfig = directory.subdirectory("builder")?.join("kubeconfig");
                Some(builder.admit(&mut location, kubeconfig, deadline).await?)
            }
            _ => None,
        };
        let dial = Dial {
            buildx: &self.buildx,
            enforcement: self.enforcement,
            // An earlier session of this job had one, in which its child could write.
            directory: directory.fresh("dial").await?,
            n_runs: Default::default(),
            turn: Default::default(),
        };
        let occupied = self.occupancy.occupy(&builder.name, "");
        let mut session = Session::new(location, builder, dial, why, pods, occupied)?;
        let mut is_again = false;
        loop {
            let search = session.find_pod(loss, is_again, deadline).await?;
            match search {
                Search::Found => break,
                Search::Silent if Instant::now() >= deadline => return Err(builder.no_answer().await),
                // A pod is ready. The bake itself says what is wrong.
                Search::Undecided if Instant::now() >= deadline => break,
                Search::Silent | Search::Undecided => {}
            }
            sleep(AGAIN).await;
            session.renew(deadline).await?;
            is_again = true;
        }
        Ok(session)
    }

    /// Where a build would run, without preparing or asking anything: for `plan`.
    pub fn plan(&self, build: &Build, state: &StateDirectory) -> Result<(Location, Placement), BuilderError> {
        let (builder, why) = self.choose(build)?;
        let placement = Placement { builder: builder.name.clone(), pod: None, why: why.into() };
        Ok((builder.location(builder.working_directory(build, state)), placement))
    }

    /// The name of the builder that takes a build; `None` when none does.
    pub fn name_for(&self, build: &Build) -> Option<&str> {
        self.choose(build).ok().map(|(builder, _)| builder.name.as_str())
    }

    /// The builder that the job names; else the most specific match for its account.
    fn choose(&self, build: &Build) -> Result<(&Builder, &'static str), BuilderError> {
        let account = &build.account;
        if let Some(name) = &build.builder {
            let builder = self.builders.get(name).ok_or_else(|| BuilderError::Unknown(name.clone()))?;
            return match builder.settings.match_of(account) {
                Some(_) => Ok((builder, "named by the job")),
                None => Err(BuilderError::NotForAccount { builder: name.clone(), account: account.clone() }),
            };
        }
        let taking = self.builders.values().filter_map(|builder| Some((builder.settings.match_of(account)?, builder)));
        let is_default = |builder: &Builder| builder.name == "default";
        // Among equals the one named default, else the first by name.
        let best = taking.max_by(|(specificity, builder), (other_specificity, other)| {
            let by_name = other.name.cmp(&builder.name);
            specificity.cmp(other_specificity).then(is_default(builder).cmp(&is_default(other))).then(by_name)
        });
        let (specificity, builder) = best.ok_or_else(|| BuilderError::None(account.clone()))?;
        Ok((builder, if specificity == (false, 1) { "takes every account" } else { "takes this account" }))
    }

    /// Creates the Deployment unless it exists, as `docker buildx create` does, and waits until its pods are ready. Never
    /// changes an existing one. Returns whether this call created it.
    pub async fn ensure(&self, name: &str) -> Result<bool, BuilderError> {
        let builder = self.named(name)?;
        if builder.settings.driver != Driver::Kubernetes {
            return Ok(false);
        }
        let is_new = builder.create().await?;
        builder.rolled_out().await?;
        Ok(is_new)
    }

    /// Changes the live Deployment to what the configuration says, and waits until its pods are ready.
    pub async fn apply(&self, name: &str) -> Result<(), BuilderError> {
        let builder = self.named(name)?;
        if builder.settings.driver != Driver::Kubernetes {
            return Ok(());
        }
        if !builder.create().await? {
            builder.ask(|cluster| async move { cluster.apply(&builder.settings).await }).await?;
        }
        builder.rolled_out().await
    }

    /// The state of a builder now.
    pub async fn status(&self, name: &str) -> Result<BuilderStatus, BuilderError> {
        let builder = self.named(name)?;
        let accounts = builder.settings.accounts.iter().map(ToString::to_string).collect();
        let driver = builder.settings.driver.name();
        if builder.settings.driver != Driver::Kubernetes {
            let at = builder.settings.endpoint.clone().unwrap_or_else(|| DOCKER_SOCKET.into());
            let (builder, pods, drift) = (name.to_owned(), Vec::new(), Vec::new());
            return Ok(BuilderStatus {
                builder,
                driver,
                at,
                exists: true,
                n_wanted: 0,
                n_ready: 0,
                pods,
                why: None,
                drift,
                accounts,
            });
        }
        let survey = builder.ask(|cluster| async move { cluster.survey().await }).await?;
        let node = builder.settings.node_name(name);
        let at = format!("{node} in {}", builder.access().await?.namespace());
        let mut status = BuilderStatus {
            builder: name.to_owned(),
            driver,
            at,
            exists: survey.is_some(),
            n_wanted: 0,
            n_ready: 0,
            why: None,
            drift: Vec::new(),
            pods: Vec::new(),
            accounts,
        };
        if let Some(survey) = survey {
            let text = builder.settings.buildkitd_config.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
            let desired = deployment::desired(&node, &builder.settings, &survey.deployment, text.as_deref());
            status.n_wanted = survey.n_wanted();
            // A rollout has more ready pods than are wanted.
            status.n_ready = survey.n_ready().min(status.n_wanted);
            status.why = survey.misplaced().or_else(|| survey.problem());
            status.drift = deployment::drift(&survey.deployment, &desired);
            status.pods = survey.pods;
        }
        Ok(status)
    }

    /// Asks the API server of a builder whether it answers; `None` when the builder has none.
    pub async fn reach(&self, name: &str) -> Option<Result<String, BuilderError>> {
        let builder = self.in_kubernetes(name)?;
        let asked = async {
            let access = builder.access().await?;
            builder.ask(|cluster| async move { cluster.answers().await }).await?;
            Ok(format!("{} answers{}", access.url(), Proxy::shown(access.proxy())))
        };
        Some(asked.await)
    }

    /// The host to which connections to a builder's API server go; `None` when it is not known.
    pub async fn api_host(&self, name: &str) -> Option<String> {
        let builder = self.in_kubernetes(name)?;
        let access = builder.access().await.ok()?;
        Some(access.proxy().map_or_else(|| access.host(), Proxy::host).to_owned())
    }

    fn in_kubernetes(&self, name: &str) -> Option<&Builder> {
        self.builders.get(name).filter(|builder| builder.settings.driver == Driver::Kubernetes)
    }

    fn named(&self, name: &str) -> Result<&Builder, BuilderError> {
        self.builders.get(name).ok_or_else(|| BuilderError::Unknown(name.to_owned()))
    }
}

/// Where a Docker engine on this machine listens.
const DOCKER_SOCKET: &str = "unix:///var/run/docker.sock";

impl Builder {
    fn new(name: &str, settings: &settings::Builder, ca_file: Option<&Path>) -> Self {
        Self {
            name: name.to_owned(),
            settings: settings.clone(),
            proxies: Proxies::from_environment(),
            ca_file: ca_file.map(Path::to_owned),
            access: tokio::sync::Mutex::default(),
            dials: tokio::sync::Semaphore::new(N_DIALS),
            directories: Mutex::default(),
            shunned: Mutex::default(),
            outage: Outage::with_steady(STEADY),
            wait: Outage::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The name for buildx, which reserves `default`, reads names in lower case, and wants a letter first. The node has a name of
    /// its own.
    fn instance_name(&self) -> String {
        match self.name.to_ascii_lowercase() {
            name if name == "default" => "sidebake".into(),
            name if name.starts_with(|first: char| first.is_ascii_lowercase()) => name,
            name => format!("sidebake-{name}"),
        }
    }

    /// The directory from which every worker bakes for a repository. It is empty: only its path matters.
    fn working_directory(&self, build: &Build, state: &StateDirectory) -> PathBuf {
        let (account, repository) = (&build.account, &build.repository);
        match &self.settings.sticky_path {
            Some(pattern) => pattern.expand(&build.names()).into(),
            None => state.sticky().join(account).join(&repository.owner).join(&repository.name),
        }
    }

    fn location(&self, working_directory: PathBuf) -> Location {
        let endpoint = self.settings.endpoint.as_deref();
        let mut location = Location {
            builder: self.instance_name(),
            working_directory,
            configuration: Configuration::default(),
            // A builder with an address is reached directly.
            environment: self.proxies.variables(endpoint.and_then(host)),
            sockets: Sockets::Tcp(endpoint.and_then(port).into_iter().chain(self.proxies.ports()).collect()),
            files: Vec::new(),
            is_watched: self.settings.driver == Driver::Kubernetes,
            run: Arc::default(),
        };
        match self.settings.driver {
            Driver::Kubernetes => {}
            Driver::Remote => {
                location.files =
                    self.settings.options.values().map(PathBuf::from).filter(|path| path.is_absolute()).collect()
            }
            Driver::Docker | Driver::DockerContainer => {
                let endpoint = endpoint.unwrap_or(DOCKER_SOCKET);
                if endpoint.starts_with("unix:") {
                    location.sockets = Sockets::TcpAndUnix(self.proxies.ports().into_iter().collect());
                }
                if self.settings.driver == Driver::Docker {
                    // buildx's own name for the engine behind DOCKER_HOST.
                    location.builder = "default".into();
                }
                location.environment.insert("DOCKER_HOST".into(), endpoint.to_owned());
            }
        }
        if let Some(path) = &self.ca_file {
            // Go reads this file, and the system's directory too.
            location.environment.insert("SSL_CERT_FILE".into(), path.display().to_string());
            location.files.push(path.clone());
        }
        location
    }

    /// Waits until a pod is ready, and gives the bake access to the API server.
    async fn admit(
        &self,
        location: &mut Location,
        kubeconfig: PathBuf,
        deadline: Instant,
    ) -> Result<Pods, BuilderError> {
        let survey = self.wait_for(Goal::Ready, deadline).await?;
        // Looked up after the wait: credentials from before may have expired.
        let access = self.try_access(deadline).await.map_err(|error| self.wrong(error))?;
        let api = access.addresses().await;
        self.write_kubeconfig(&access, &kubeconfig)?;
        location.sockets = Sockets::Tcp([access.port()].into_iter().chain(self.proxies.ports()).collect());
        // The kubeconfig names the proxy of the API server, if it has one.
        location.environment.extend(self.proxies.variables([access.host()]));
        location.environment.insert("KUBECONFIG".into(), kubeconfig.display().to_string());
        location.files.push(kubeconfig.clone());
        let n_wanted = survey.n_wanted();
        Ok(Pods { before: survey.pods, n_wanted, api, kubeconfig, access: tokio::sync::Mutex::new(access) })
    }

    fn write_kubeconfig(&self, access: &KubeAccess, path: &Path) -> Result<(), BuilderError> {
        let text = access.kubeconfig().map_err(|error| self.wrong(error.into()))?;
        Ok(state::write_private(path, text.expose().as_bytes())?)
    }

    /// Creates the Deployment unless it exists. Returns whether this call created it.
    async fn create(&self) -> Result<bool, BuilderError> {
        self.ask(|cluster| async move { cluster.create(&self.settings).await }).await
    }

    /// Waits until all pods are ready and have the last change.
    async fn rolled_out(&self) -> Result<(), BuilderError> {
        self.wait_for(Goal::RolledOut, Instant::now() + self.settings.timeout).await.map(drop)
    }

    /// Looks at the Deployment until it is as wished. A state that passes ends the wait only at the deadline: a Deployment that
    /// is missing, scaled to nothing, rolled out or not ready, and an API server that does not answer.
    async fn wait_for(&self, goal: Goal, deadline: Instant) -> Result<Survey, BuilderError> {
        let started = Instant::now();
        // However short the wait may be, a look has the time that it takes.
        let patience = deadline.max(started + PLUGIN);
        let mut is_first = true;
        loop {
            // However many builds wait, one looks at a time. When it sees a ready pod, the others look at once.
            let _turn = if is_first { None } else { timeout_at(deadline, self.turn.lock()).await.ok() };
            is_first = false;
            let waited = started.elapsed();
            let error = match self.try_ask(patience, |cluster| async move { cluster.reach(goal, waited).await }).await {
                Ok(survey) => {
                    self.note_ready();
                    return Ok(survey);
                }
                Err(error) => error,
            };
            if Instant::now() >= deadline || !error.may_pass() {
                return Err(self.wrong(error));
            }
            let pause = if error.is_away() { AGAIN } else { LOOK };
            if waited >= TELL_AFTER && !error.is_away() {
                self.note_wait(&error);
            }
            sleep(pause).await;
        }
    }

    /// Asks the API server.
    async fn ask<T, A>(&self, question: impl Fn(Cluster) -> A) -> Result<T, BuilderError>
    where
        A: Future<Output = Result<T, ClusterError>>,
    {
        self.try_ask(self.own_deadline(), question).await.map_err(|error| self.wrong(error))
    }

    /// Asks the API server; once more with new credentials when it does not accept the known ones. Waits for credentials until
    /// the deadline.
    async fn try_ask<T, A>(&self, deadline: Instant, question: impl Fn(Cluster) -> A) -> Result<T, ClusterError>
    where
        A: Future<Output = Result<T, ClusterError>>,
    {
        let access = self.try_access(deadline).await?;
        let mut answer = question(self.cluster(&access)?).await;
        if matches!(&answer, Err(error) if error.is_unauthorized()) {
            self.forget(&access, deadline).await;
            let access = self.try_access(deadline).await?;
            answer = question(self.cluster(&access)?).await;
        }
        self.note_answer(answer.as_ref().err(), &access);
        answer
    }

    /// The deadline of a question that has none of its own.
    fn own_deadline(&self) -> Instant {
        Instant::now() + self.settings.timeout.max(PLUGIN)
    }

    /// Logs an outage of the API server once, and its end.
    fn note_answer(&self, error: Option<&ClusterError>, access: &KubeAccess) {
        if let Some(error) = error.filter(|error| error.is_away()) {
            self.note_outage(error, Some(access));
        } else if let Some(downtime) = self.outage.ends(Instant::now()) {
            let (builder, url, downtime_s) = (&self.name, access.url(), downtime.as_secs());
            tracing::info!(event = "kubernetes_back", builder, url, downtime_s, "Kubernetes answers again");
        }
    }

    /// Logs an outage once. Without `access`, its credentials are away.
    fn note_outage(&self, error: &ClusterError, access: Option<&KubeAccess>) {
        if self.outage.begins(Instant::now()) {
            let (builder, url) = (&self.name, access.map(KubeAccess::url));
            tracing::error!(event = "kubernetes_unavailable", builder, url, %error, "Kubernetes does not answer");
        }
    }

    /// Logs once that builds wait.
    fn note_wait(&self, error: &ClusterError) {
        if self.wait.begins(Instant::now()) {
            let builder = &self.name;
            tracing::warn!(event = "builder_not_ready", builder, %error, "the builder is not ready; its builds wait");
        }
    }

    fn note_ready(&self) {
        if let Some(waited) = self.wait.ends(Instant::now()) {
            let (builder, downtime_s) = (&self.name, waited.as_secs());
            tracing::info!(event = "builder_ready", builder, downtime_s, "the builder is ready again");
        }
    }

    /// The error of a builder of which no pod answered.
    async fn no_answer(&self) -> BuilderError {
        let deployment = match self.access().await {
            Ok(access) => format!("{} in {}", self.settings.node_name(&self.name), access.namespace()),
            Err(error) => return error,
        };
        self.wrong(ClusterError::NoAnswer { deployment, waited_s: self.settings.timeout.as_secs() })
    }

    /// The error of a builder whose pods Kubernetes does not allow to reach.
    fn forbidden(&self, error: &PodError) -> BuilderError {
        let what = format!("connect to a pod of {}", self.settings.node_name(&self.name));
        let message = text::shown(&error.to_string(), bounds::ERROR);
        self.wrong(ClusterError::Api { what, message, cause: Cause::Refused })
    }

    fn record(&self, balance: Balance, kubeconfig: Option<&Path>) -> Result<Vec<u8>, BuilderError> {
        let node = self.settings.node_name(&self.name);
        let record = instance::record(&self.instance_name(), &node, &self.settings, balance, kubeconfig);
        record.map_err(|error| BuilderError::Config { name: self.name.clone(), error })
    }

    /// The API server and its credentials, looked up again when they may have changed.
    async fn access(&self) -> Result<Arc<KubeAccess>, BuilderError> {
        self.try_access(self.own_deadline()).await.map_err(|error| self.wrong(error))
    }

    /// Waits until the deadline. Builds that wait for one another share what it finds, also a failure.
    async fn try_access(&self, deadline: Instant) -> Result<Arc<KubeAccess>, ClusterError> {
        let found = timeout_at(deadline, self.look_up(deadline)).await;
        let found = found.unwrap_or_else(|_| Err(Arc::new(AccessError::Late))).map_err(ClusterError::Access);
        if let Err(error) = &found
            && error.is_away()
        {
            self.note_outage(error, None);
        }
        found
    }

    async fn look_up(&self, deadline: Instant) -> Access {
        let mut known = self.access.lock().await;
        if let Some((access, since)) = &*known {
            let is_fresh = match access {
                Ok(access) => access.is_fresh(since.elapsed()),
                Err(_) => since.elapsed() < AGAIN,
            };
            if is_fresh {
                return access.clone();
            }
        }
        // Who has waited too long for the others does not start a plugin.
        if Instant::now() >= deadline {
            return Err(Arc::new(AccessError::Late));
        }
        let access = KubeAccess::find(&self.settings).await.map(Arc::new).map_err(Arc::new);
        *known = Some((access.clone(), Instant::now()));
        access
    }

    /// Forgets credentials that were not accepted, unless newer ones are known or looked up.
    async fn forget(&self, access: &Arc<KubeAccess>, deadline: Instant) {
        if let Ok(mut known) = timeout_at(deadline, self.access.lock()).await {
            known.take_if(|(known, _)| matches!(known, Ok(known) if Arc::ptr_eq(known, access)));
        }
    }

    fn cluster(&self, access: &KubeAccess) -> Result<Cluster, ClusterError> {
        Ok(Cluster::new(access, self.settings.node_name(&self.name))?)
    }

    fn directories(&self) -> std::sync::MutexGuard<'_, Directories> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Avoids a pod that did not answer, for a while.
    fn shun(&self, uid: &str) {
        let now = Instant::now();
        let mut shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        shunned.retain(|_, since| now.duration_since(*since) < SHUNNED);
        shunned.insert(uid.to_owned(), now);
    }

    fn is_shunned(&self, uid: &str) -> bool {
        let shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        shunned.get(uid).is_some_and(|since| since.elapsed() < SHUNNED)
    }

    fn wrong(&self, error: ClusterError) -> BuilderError {
        BuilderError::Cluster { name: self.name.clone(), error }
    }
}

/// BuildKit keys the incremental transfer of a context by the client's node id. Each repository and trust has one, the same
/// on every worker, so equal directory names of different repositories do not collide.
fn node_id(build: &Build) -> String {
    let key = format!("{}\n{}\n{}", build.account, build.repository, build.trust.name());
    hex::encode(&Sha256::digest(key)[..16])
}

fn port(endpoint: &str) -> Option<u16> {
    endpoint.strip_prefix("tcp://")?.rsplit_once(':')?.1.parse().ok()
}

fn host(endpoint: &str) -> Option<&str> {
    Some(endpoint.strip_prefix("tcp://")?.rsplit_once(':')?.0.trim_matches(['[', ']']))
}

#[cfg(test)]
mod tests;
