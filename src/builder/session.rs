//! A builder that is prepared for one bake.

mod dial;
mod fate;
mod loss;
mod search;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::time::Instant;

use super::BuilderError;
use super::access::KubeAccess;
use super::cluster::Goal;
use super::node::Node;
use super::occupancy::Occupied;
use super::pods::PodStatus;
use super::shards::Seat;
use crate::bake::Location;
use crate::reason::{Failure, Reason};
use crate::report::Placement;
use crate::settings::{Balance, Driver};

pub(super) use dial::Dial;
pub use loss::Loss;
pub(super) use search::Search;

/// A builder that is prepared for one bake, and the state of its pods at that time.
#[derive(Debug)]
pub struct Session<'a> {
    /// What the bake needs.
    pub location: Location,
    pub(super) node: &'a Node,
    dial: Dial<'a>,
    /// Why the shard was chosen; `None` for a builder without shards.
    why_shard: Option<String>,
    /// Why the builder was chosen.
    why: &'static str,
    pub(super) balance: Balance,
    route: Route,
    pub(super) pods: Option<Pods>,
    /// The pod, once it is known.
    pub(super) pod: OnceLock<String>,
    /// What the builder emulates, as notices for the customer.
    pub emulated: Vec<String>,
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

/// The pods of a builder before a bake, and the way to the API server.
#[derive(Debug)]
pub(super) struct Pods {
    pub(super) before: Vec<PodStatus>,
    /// Replicas of the Deployment.
    pub(super) n_wanted: usize,
    /// The size of their persistent volumes, if they are those of a StatefulSet.
    pub(super) storage: Option<String>,
    pub(super) api: Vec<SocketAddr>,
    /// What docker-buildx reads, and whose credentials are in it.
    pub(super) kubeconfig: PathBuf,
    pub(super) access: tokio::sync::Mutex<Arc<KubeAccess>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        location: Location,
        Seat { node, why_shard }: Seat<'a>,
        dial: Dial<'a>,
        why: &'static str,
        pods: Option<Pods>,
        occupied: Occupied,
    ) -> Result<Self, BuilderError> {
        let (balance, occupied) = (node.settings.balance, Mutex::new(occupied));
        let (route, pod) = (Route::Usual, OnceLock::new());
        let emulated = Vec::new();
        let mut session = Self { location, node, dial, why_shard, why, balance, route, pods, pod, emulated, occupied };
        session.write_record()?;
        Ok(session)
    }

    /// Writes buildx's record of the builder. Its own default builder has none.
    fn write_record(&mut self) -> Result<(), BuilderError> {
        if self.node.settings.driver != Driver::Docker {
            let kubeconfig = self.pods.as_ref().map(|pods| &*pods.kubeconfig);
            let storage = self.pods.as_ref().and_then(|pods| pods.storage.as_deref());
            let record = self.node.record(self.balance, kubeconfig, storage)?;
            self.location.configuration.record = Some((self.location.builder.clone(), record));
        }
        Ok(())
    }

    /// Watches another run of docker-buildx from now on.
    pub fn begins_again(&mut self) {
        self.location.run = Arc::default();
    }

    /// Whether the builder has pods.
    pub fn has_pods(&self) -> bool {
        self.pods.is_some()
    }

    /// Which builder and pod run the build, and why, as far as is known now.
    pub fn placement(&self) -> Placement {
        let route = match (self.route, self.balance) {
            (Route::AfterLoss, _) => "another pod than the one that was lost",
            (Route::Around, _) => "another pod than the one of this repository, which takes no new builds",
            (Route::Usual, Balance::Sticky) => "the pod of this repository",
            (Route::Usual, Balance::Random) => "any pod",
        };
        let why = match &self.why_shard {
            Some(why_shard) => format!("{}; {why_shard}", self.why),
            None if self.has_pods() => format!("{}; {route}", self.why),
            None => self.why.to_owned(),
        };
        let shard = self.why_shard.as_ref().map(|_| self.node.name.clone());
        Placement { builder: self.node.builder.clone(), shard, pod: self.pod.get().cloned(), why }
    }

    /// Whether another pod could take the build.
    pub fn has_others(&self) -> bool {
        self.has_pods()
    }

    /// Looks at the pods again, and waits until one is ready.
    pub(super) async fn renew(&mut self, deadline: Instant) -> Result<(), BuilderError> {
        if let Some(pods) = &mut self.pods {
            let survey = self.node.wait_for(Goal::Ready, deadline).await?;
            (pods.n_wanted, pods.before) = (survey.n_wanted(), survey.pods);
        }
        Ok(())
    }

    /// The failure, with the builder's memory limit when a step exceeded it.
    pub fn with_memory_limit(&self, failure: Failure) -> Failure {
        match self.node.settings.limits.get("memory") {
            Some(limit) if failure.reason == Reason::OutOfMemory => {
                let detail = format!("{} (the memory limit of the builder is {limit})", failure.detail);
                failure.with_detail(&detail)
            }
            _ => failure,
        }
    }

    async fn pods_now(&self) -> Result<Vec<PodStatus>, BuilderError> {
        self.node.ask(|cluster| async move { cluster.pods().await }).await
    }

    /// Avoids all pods for a while: none of them answered.
    pub(super) fn shun_all(&self) {
        self.pods.iter().flat_map(|pods| &pods.before).for_each(|pod| self.node.shun(&pod.uid));
    }

    fn is_on(&self, pod: String) {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner).on(&pod);
        let _ = self.pod.set(pod);
    }
}

#[cfg(test)]
pub(super) mod tests;
