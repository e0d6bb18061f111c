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
mod node;
mod occupancy;
mod outage;
mod placement;
mod platforms;
mod pod;
mod pods;
mod readiness;
mod session;
mod shards;
mod status;
mod warmth;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::bake::Location;
use crate::job::Build;
use crate::network::Proxy;
use crate::platform::NamedPlatform;
use crate::reason::{HasReason, Reason};
use crate::report::Placement;
use crate::sandbox::Enforcement;
use crate::settings::{self, Driver, for_account, match_of};
use crate::state::{self, JobDirectory, StateDirectory, StateError};
use crate::version::Version;

use api_server::ApiServer;
use location::node_id;
use node::Node;
use session::{Dial, Search};
use shards::Seat;

pub use access::AccessError;
pub use cluster::{Cause, ClusterError};
pub use deployment::Drift;
pub use occupancy::{Counts, Occupancy, of_fleet};
pub use placement::choose;
pub use pod::{PodError, Worker};
pub use pods::PodStatus;
pub use session::{Loss, Session};
pub use shards::Fleet;
pub use status::BuilderStatus;

/// How often Kubernetes is asked again that did not answer, and pods of which none answered.
const AGAIN: Duration = Duration::from_secs(2);

/// How long a shard that was ready may be silent until another one is chosen.
const SHARD_PATIENCE: Duration = Duration::from_secs(10);

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
    /// The builder has another processor than a target asks for.
    #[error(
        "target.{target}.platforms: {platform} is not allowed: the builder {builder} runs on {own} and does not emulate others"
    )]
    Platform {
        /// The target.
        target: String,
        /// The platform, as the definition names it.
        platform: String,
        /// The builder.
        builder: String,
        /// The builder's own platform.
        own: String,
    },
    /// The builder is a StatefulSet, and this docker-buildx does not find one.
    #[error(
        "the builder {name} is a StatefulSet, which docker-buildx {version} does not find; newer ones do, from {first} on"
    )]
    OldBuildx {
        /// Its name.
        name: String,
        /// The version.
        version: String,
        /// The first that does.
        first: String,
    },
    /// BuildKit does not say which platforms it has.
    #[error("the builder {name} did not say which platforms it has: {error}")]
    NoPlatforms {
        /// Its name.
        name: String,
        /// Why.
        error: PodError,
    },
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
            Self::Platform { .. } => Reason::PolicyRefused,
            Self::None(_) | Self::Cluster { .. } | Self::NoPlatforms { .. } | Self::OldBuildx { .. } => {
                Reason::BuilderUnavailable
            }
            Self::Config { .. } | Self::State(_) => Reason::WorkerFailed,
        })
    }
}

/// A build that has to be placed.
#[derive(Clone, Copy)]
pub struct PlaceRequest<'a> {
    /// The build.
    pub build: &'a Build,
    /// This machine's disk.
    pub state: &'a StateDirectory,
    /// The job's directory.
    pub directory: &'a JobDirectory,
    /// The loss of the pod on which it ran before: another one is taken, if one answers.
    pub loss: Option<&'a Loss>,
    /// Chooses a shard by the builds of the fleet. Without it, the builds of this process count.
    pub fleet: Option<&'a Fleet>,
    /// The platforms that its definition names.
    pub platforms: &'a [NamedPlatform],
    /// The version of docker-buildx. Without it, nothing depends on it.
    pub buildx: Option<&'a Version>,
}

impl<'a> PlaceRequest<'a> {
    /// A build that nothing is known of.
    pub fn new(build: &'a Build, state: &'a StateDirectory, directory: &'a JobDirectory) -> Self {
        Self { build, state, directory, loss: None, fleet: None, platforms: &[], buildx: None }
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

/// A configured builder.
#[derive(Debug)]
struct Builder {
    name: String,
    settings: settings::Builder,
    /// Its shards. A builder without shards has one node.
    nodes: Vec<Node>,
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
    /// # Errors
    ///
    /// When no builder takes the build, when none of its pods is ready for as long as its `timeout`, or when it does not have a
    /// platform that the build names.
    pub async fn place(&self, request: PlaceRequest<'_>) -> Result<Session<'_>, BuilderError> {
        let (builder, why) = self.choose(request.build)?;
        let deadline = Instant::now() + builder.settings.timeout;
        let mut tried = None;
        loop {
            let seat = builder.seat(request, tried, &self.occupancy, deadline).await?;
            let is_shard = seat.why_shard.is_some();
            let until = if is_shard { deadline.min(Instant::now() + SHARD_PATIENCE) } else { deadline };
            tried = Some(seat.node);
            match self.prepare(seat, why, request, until).await {
                // The shard was ready a moment ago. The next look finds its new state, or another shard.
                Err(BuilderError::Cluster { error, .. }) if until < deadline && error.may_pass() => {}
                prepared => return prepared,
            }
        }
    }

    /// Prepares a node for a build.
    async fn prepare<'a>(
        &'a self,
        seat: Seat<'a>,
        why: &'static str,
        request: PlaceRequest<'_>,
        deadline: Instant,
    ) -> Result<Session<'a>, BuilderError> {
        let (node, PlaceRequest { build, directory, .. }) = (seat.node, request);
        // The place of a pod that is gone needs no search: buildx chooses another one by itself.
        let loss = request.loss.filter(|loss| !loss.has_pod_gone && loss.node == node.name);
        let mut location = node.location(node.working_directory(build, request.state));
        state::make_private(&location.working_directory)?;
        location.configuration.node_id = node_id(build);
        let pods = match node.settings.driver {
            // No child writes here, and the worker's own docker-buildx reads it as well.
            Driver::Kubernetes => {
                let kubeconfig = directory.subdirectory("builder")?.join("kubeconfig");
                Some(node.admit(&mut location, kubeconfig, deadline).await?)
            }
            _ => None,
        };
        if pods.as_ref().is_some_and(|pods| pods.storage.is_some()) {
            node.check_buildx(request.buildx)?;
        }
        let dial = Dial {
            buildx: &self.buildx,
            enforcement: self.enforcement,
            // An earlier session of this job had one, in which its child could write.
            directory: directory.fresh("dial").await?,
            n_runs: Default::default(),
            turn: Default::default(),
        };
        let occupied = self.occupancy.occupy(&node.builder, "");
        let mut session = Session::new(location, seat, dial, why, pods, occupied)?;
        let mut is_again = false;
        loop {
            let search = session.find_pod(loss, is_again, deadline).await?;
            match search {
                Search::Found => break,
                Search::Silent if Instant::now() >= deadline => {
                    session.shun_all();
                    return Err(node.no_answer().await);
                }
                // A pod is ready. The bake itself says what is wrong.
                Search::Undecided if Instant::now() >= deadline => break,
                Search::Silent | Search::Undecided => {}
            }
            sleep(AGAIN).await;
            session.renew(deadline).await?;
            is_again = true;
        }
        session.check_platforms(request.platforms, deadline).await?;
        Ok(session)
    }

    /// Where a build would run, without preparing or asking anything: for `plan`.
    pub fn plan(&self, build: &Build, state: &StateDirectory) -> Result<(Location, Placement), BuilderError> {
        let (builder, why) = self.choose(build)?;
        let node = builder.first(build);
        let shard = builder.settings.shards.map(|_| node.name.clone());
        let placement = Placement { builder: builder.name.clone(), shard, pod: None, why: why.into() };
        Ok((node.location(node.working_directory(build, state)), placement))
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

    /// Creates the Deployments that do not exist, as `docker buildx create` does, and waits until their pods are ready. Never
    /// changes an existing one. Returns for each whether this call created it.
    pub async fn ensure(&self, name: &str) -> Result<Vec<bool>, BuilderError> {
        let builder = self.named(name)?;
        if builder.settings.driver != Driver::Kubernetes {
            return Ok(vec![false]);
        }
        builder.protect(false).await?;
        let mut are_new = Vec::new();
        for node in &builder.nodes {
            are_new.push(node.create().await?);
        }
        for node in &builder.nodes {
            node.rolled_out().await?;
        }
        Ok(are_new)
    }

    /// Changes the live Deployments to what the configuration says, one after the other, and waits until their pods are ready.
    /// Returns their state before.
    pub async fn apply(&self, name: &str) -> Result<Vec<BuilderStatus>, BuilderError> {
        let builder = self.named(name)?;
        let before = self.status(name).await?;
        if builder.settings.driver != Driver::Kubernetes {
            return Ok(before);
        }
        builder.protect(true).await?;
        // Those that take no builds come first. When they are ready again, the next one may go.
        let mut nodes: Vec<_> = builder.nodes.iter().zip(&before).collect();
        nodes.sort_by_key(|(_, status)| status.exists && status.why.is_none());
        for (node, _) in nodes {
            if !node.create().await? {
                node.ask(|cluster| async move { cluster.apply(&node.settings).await }).await?;
            }
            // The other shards take the builds meanwhile.
            node.rolled_out().await?;
        }
        Ok(before)
    }

    /// The state of a builder now: of each shard, if it has shards.
    pub async fn status(&self, name: &str) -> Result<Vec<BuilderStatus>, BuilderError> {
        let mut all = Vec::new();
        for node in &self.named(name)?.nodes {
            all.push(node.status().await?);
        }
        Ok(all)
    }

    /// Asks the API server of a builder whether it answers; `None` when the builder has none.
    pub async fn reach(&self, name: &str) -> Option<Result<String, BuilderError>> {
        let node = self.in_kubernetes(name)?;
        let asked = async {
            let access = node.access().await?;
            node.ask(|cluster| async move { cluster.answers().await }).await?;
            Ok(format!("{} answers{}", access.url(), Proxy::shown(access.proxy())))
        };
        Some(asked.await)
    }

    /// The host to which connections to a builder's API server go; `None` when it is not known.
    pub async fn api_host(&self, name: &str) -> Option<String> {
        let access = self.in_kubernetes(name)?.access().await.ok()?;
        Some(access.proxy().map_or_else(|| access.host(), Proxy::host).to_owned())
    }

    fn in_kubernetes(&self, name: &str) -> Option<&Node> {
        let builder = self.builders.get(name).filter(|builder| builder.settings.driver == Driver::Kubernetes)?;
        builder.nodes.first()
    }

    fn named(&self, name: &str) -> Result<&Builder, BuilderError> {
        self.builders.get(name).ok_or_else(|| BuilderError::Unknown(name.to_owned()))
    }
}

impl Builder {
    fn new(name: &str, settings: &settings::Builder, ca_file: Option<&Path>) -> Self {
        let api = Arc::new(ApiServer::default());
        let nodes = settings.nodes(name).into_iter();
        Self {
            name: name.to_owned(),
            settings: settings.clone(),
            nodes: nodes.map(|own| Node::new(name, own, ca_file, Arc::clone(&api))).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
