//! The builders: which one takes a build, how buildx reaches it, and what happened to it when a build fails.
//!
//! Owns the choice among the configured builders, buildx's record of the chosen one (written again for each run), and two
//! strings that make caches hit: the working directory, by which the kubernetes driver chooses the pod, and the node id, by
//! which BuildKit transfers contexts incrementally. Never changes a user's current builder. Changes a Deployment only on
//! request (`ensure`, `apply`).

mod access;
mod api_server;
mod choice;
mod cluster;
mod deployment;
mod instance;
mod location;
mod occupancy;
mod outage;
mod pod;
mod pods;
mod readiness;
mod session;
mod status;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::bake::Location;
use crate::bounds;
use crate::job::Build;
use crate::network::{Proxies, Proxy};
use crate::reason::{HasReason, Reason};
use crate::report::Placement;
use crate::sandbox::Enforcement;
use crate::settings::{self, Balance, Driver, for_account, match_of};
use crate::state::{self, JobDirectory, StateDirectory, StateError};
use crate::text;

use api_server::Access;
use choice::{Directories, Lead, Ring, SHUNNED};
use location::node_id;
use outage::Outage;
use session::{Dial, Search};

pub use access::AccessError;
pub use cluster::{Cause, ClusterError};
pub use deployment::Drift;
pub use occupancy::{Counts, Occupancy, of_fleet};
pub use pod::PodError;
pub use pods::PodStatus;
pub use session::{Loss, Session};
pub use status::BuilderStatus;

/// How often Kubernetes is asked again that did not answer, and pods of which none answered.
const AGAIN: Duration = Duration::from_secs(2);

/// How long Kubernetes has to answer until its outage is over.
const STEADY: Duration = Duration::from_secs(5);

/// How many docker-buildx of builds that look for a pod run at once, for each builder.
const N_DIALS: usize = 4;

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
    proxies: &'static Proxies,
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
            return match match_of(&builder.settings.accounts, account) {
                Some(_) => Ok((builder, "named by the job")),
                None => Err(BuilderError::NotForAccount { builder: name.clone(), account: account.clone() }),
            };
        }
        let all = self.builders.values().map(|builder| (builder.name.as_str(), &*builder.settings.accounts));
        let best = for_account(all, account).and_then(|(name, how)| Some((self.builders.get(name)?, how)));
        let (builder, specificity) = best.ok_or_else(|| BuilderError::None(account.clone()))?;
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
        self.named(name)?.status().await
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

impl Builder {
    fn new(name: &str, settings: &settings::Builder, ca_file: Option<&Path>) -> Self {
        Self {
            name: name.to_owned(),
            settings: settings.clone(),
            proxies: Proxies::of_process(),
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

    /// Creates the Deployment unless it exists. Returns whether this call created it.
    async fn create(&self) -> Result<bool, BuilderError> {
        self.ask(|cluster| async move { cluster.create(&self.settings).await }).await
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

    /// What is known now of a working directory.
    fn lead(&self, ring: &Ring, directory: &Path) -> Lead {
        self.directories().lead(ring, directory, Instant::now())
    }

    /// Keeps where a working directory leads; `None` when no pod answered.
    fn learn(&self, ring: &Ring, directory: &Path, pod: Option<String>) {
        self.directories().learn(ring, directory.to_owned(), pod, Instant::now());
    }

    fn directories(&self) -> MutexGuard<'_, Directories> {
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

#[cfg(test)]
mod tests;
