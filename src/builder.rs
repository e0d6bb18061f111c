//! The builders: which one takes a build, how buildx reaches it, and what happened to it when a build fails.
//!
//! Owns the choice among the configured builders, buildx's record of the chosen one (written again for each run), and two
//! strings that make caches hit: the working directory, by which the kubernetes driver chooses the pod, and the node id, by
//! which BuildKit transfers contexts incrementally. Never changes a user's current builder. Changes a Deployment only on
//! request (`ensure`, `apply`).

mod access;
mod cluster;
mod deployment;
mod instance;
mod occupancy;
mod pod;
mod pods;
mod session;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::bake::{Configuration, Location};
use crate::hex;
use crate::job::Build;
use crate::network::{Proxies, Proxy};
use crate::reason::{HasReason, Reason};
use crate::report::Placement;
use crate::sandbox::{Enforcement, Sockets};
use crate::settings::{self, Balance, Driver};
use crate::state::{self, JobDirectory, StateDirectory, StateError};

use access::KubeAccess;
use cluster::{Cluster, ClusterError, Survey};
use deployment::Ground;
use session::{Dial, Surveyed};

pub use access::AccessError;
pub use deployment::Drift;
pub use occupancy::{Counts, Occupancy, of_fleet};
pub use pod::PodError;
pub use pods::PodStatus;
pub use session::{Loss, Session};

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

#[derive(Debug)]
struct Builder {
    name: String,
    settings: settings::Builder,
    /// The proxies of the environment, for buildx.
    proxies: Proxies,
    /// Certificates that buildx trusts beside the system's.
    ca_file: Option<PathBuf>,
    /// The API server and its credentials, and when they were looked up.
    access: tokio::sync::Mutex<Option<(Arc<KubeAccess>, Instant)>>,
    /// By working directory: the pods at that time, and the one to which it led.
    pods: Mutex<BTreeMap<PathBuf, (Vec<String>, String)>>,
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
    /// Each pod.
    pub pods: Vec<PodStatus>,
    /// Why pods are missing or not ready.
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
        let wedged = loss.filter(|loss| !loss.has_pod_gone);
        let balance = if wedged.is_some() { Balance::Sticky } else { builder.settings.balance };
        let mut location = builder.location(builder.working_directory(build, state));
        state::make_private(&location.working_directory)?;
        location.configuration.node_id = node_id(build);
        // No child writes here, and the worker's own docker-buildx reads it as well.
        let kubeconfig = directory.subdirectory("builder")?.join("kubeconfig");
        let cluster = match builder.settings.driver {
            Driver::Kubernetes => Some(builder.survey(&mut location, &kubeconfig).await?),
            _ => None,
        };
        if builder.settings.driver != Driver::Docker {
            let record = builder.record(balance, cluster.is_some().then_some(&*kubeconfig))?;
            location.configuration.record = Some((location.builder.clone(), record));
        }
        let dial = Dial {
            buildx: &self.buildx,
            enforcement: self.enforcement,
            // An earlier session of this job had one, in which its child could write.
            directory: directory.fresh("dial").await?,
            n_runs: tokio::sync::Mutex::default(),
        };
        let occupied = Mutex::new(self.occupancy.occupy(&builder.name, ""));
        let pod = OnceLock::new();
        let mut session = Session { location, builder, dial, why, balance, is_detour: false, cluster, pod, occupied };
        match wedged {
            Some(loss) => session.detour(loss).await?,
            None => session.recall_pod(),
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
                pods,
                why: None,
                drift,
                accounts,
            });
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
        Ok(BuilderStatus {
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

    /// Asks the API server of a builder whether it answers; `None` when the builder has none.
    pub async fn reach(&self, name: &str) -> Option<Result<String, BuilderError>> {
        let builder = self.named(name).ok().filter(|builder| builder.settings.driver == Driver::Kubernetes)?;
        let asked = async {
            let access = builder.access().await?;
            builder.cluster().await?.reach().await.map_err(|error| builder.wrong(error))?;
            let through = |proxy: &Proxy| format!(" through the proxy {} ({})", proxy.name(), proxy.source);
            Ok(format!("{} answers{}", access.server(), access.proxy().map(through).unwrap_or_default()))
        };
        Some(asked.await)
    }

    /// The host to which connections to a builder's API server go; `None` when it is not known.
    pub async fn api_host(&self, name: &str) -> Option<String> {
        let builder = self.named(name).ok().filter(|builder| builder.settings.driver == Driver::Kubernetes)?;
        let access = builder.access().await.ok()?;
        Some(access.proxy().map_or_else(|| access.host(), Proxy::host).to_owned())
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
            pods: Mutex::default(),
        }
    }

    /// buildx reserves the name `default`. The node has a name of its own.
    fn instance_name(&self) -> String {
        if self.name == "default" { "sidebake".into() } else { self.name.clone() }
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

    /// Lists the pods, waits until one is ready, and gives the bake access to the API server.
    async fn survey(&self, location: &mut Location, kubeconfig: &Path) -> Result<Surveyed, BuilderError> {
        let survey = self.ready(1).await?;
        // Looked up after the wait: credentials from before may have expired.
        let access = self.access().await?;
        let api = access.addresses().await;
        let text = access.kubeconfig().map_err(|error| self.wrong(error.into()))?;
        state::write_private(kubeconfig, text.expose().as_bytes())?;
        location.sockets = Sockets::Tcp([access.port()].into_iter().chain(self.proxies.ports()).collect());
        // The kubeconfig names the proxy of the API server, if it has one.
        location.environment.extend(self.proxies.variables([access.host()]));
        location.environment.insert("KUBECONFIG".into(), kubeconfig.display().to_string());
        location.files.push(kubeconfig.to_owned());
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

    /// The API server and its credentials, looked up again when they may have changed.
    async fn access(&self) -> Result<Arc<KubeAccess>, BuilderError> {
        let mut known = self.access.lock().await;
        if let Some((access, since)) = &*known
            && access.is_fresh(since.elapsed())
        {
            return Ok(Arc::clone(access));
        }
        let access = KubeAccess::find(&self.settings).await.map_err(|error| self.wrong(error.into()))?;
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
