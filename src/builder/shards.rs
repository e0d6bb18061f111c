//! Shards: nodes of one pod each, of which every one keeps its name and its disk. The worker chooses among them.
//!
//! One list has the pods of all shards. So a build knows which shards take builds, before it asks how many builds they run.

use std::collections::BTreeMap;
use std::pin::Pin;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::node::Node;
use super::placement::{Bound, choose, order};
use super::pods::PodStatus;
use super::{Builder, BuilderError, Loss, PlaceRequest};
use crate::job::Build;
use crate::settings::SHARD_OF;

/// Chooses by the running builds of the whole fleet, and counts this one among them. `None`: they are not known, or the job is
/// another's.
pub type Fleet = dyn Fn(Offer) -> Pin<Box<dyn Future<Output = Option<Taken>> + Send>> + Send + Sync;

/// The shards of a builder, for one build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The builder's name in the configuration.
    pub builder: String,
    /// Names the application, whose builds share their cache.
    pub application: String,
    /// The names of all shards; those that take the build come first.
    pub shards: Vec<String>,
    /// How many of them take it.
    pub n_able: usize,
    /// How many builds each may run.
    pub bound: Bound,
}

/// The shard that a build got. Places are those in the offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its place.
    pub place: usize,
    /// The place of the application's home; `None` if it had none.
    pub home: Option<usize>,
    /// How many builds the home runs.
    pub n_on_home: u32,
    /// How many builds each shard may run.
    pub most: u32,
}

/// Where a build runs.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    pub(super) node: &'a Node,
    /// The shard's name and why it was chosen; `None` for a builder without shards.
    pub(super) shard: Option<(String, String)>,
}

impl Builder {
    /// The node of a build. Waits until a shard takes builds. `own`: the builds of this process by pod, which count when those of the
    /// fleet are not known.
    pub(super) async fn seat(
        &self,
        request: PlaceRequest<'_>,
        own: &BTreeMap<String, u32>,
        deadline: Instant,
    ) -> Result<Seat<'_>, BuilderError> {
        let Some(group) = self.group() else { return Ok(Seat { node: &self.nodes[0], shard: None }) };
        let order = self.order(request.build);
        let question = |cluster: Cluster, waited| async move { cluster.shards(group, self.nodes.len(), waited).await };
        let pods = self.nodes[order[0]].wait_until(deadline, question).await?;
        let able = self.able(&order, &pods, request.loss);
        let others = order.iter().copied().filter(|place| !able.contains(place));
        let places: Vec<usize> = able.iter().copied().chain(others).collect();
        let bound = Bound::new(self.settings.shard_builds);
        let offer = Offer {
            builder: self.name.clone(),
            application: application(request.build),
            shards: places.iter().map(|place| self.nodes[*place].name.clone()).collect(),
            n_able: able.len(),
            bound,
        };
        let taken = match request.fleet {
            Some(fleet) => fleet(offer).await,
            None => None,
        };
        let place = taken.map_or_else(|| choose(&self.running(&able, &pods, own), &[], bound), |taken| taken.place);
        let node = &self.nodes[places[place]];
        let home = taken.map(|taken| (taken, taken.home.map(|home| &self.nodes[places[home]])));
        let is_able = |home: &Node| able.iter().any(|place| self.nodes[*place].name == home.name);
        let why = match home {
            None => "the running builds of the fleet are not known".to_owned(),
            Some((_, None)) => "its home from now on: it had the fewest builds".to_owned(),
            Some((_, Some(home))) if home.name == node.name => "the home of this repository".to_owned(),
            Some((_, Some(home))) if request.loss.is_some_and(|loss| loss.node == home.name) => {
                format!("its home {} was lost", home.name)
            }
            Some((_, Some(home))) if !is_able(home) => format!("its home {} takes no builds now", home.name),
            Some((Taken { n_on_home, most, .. }, Some(home))) => {
                format!("its home {} runs {n_on_home} builds and may run {most}", home.name)
            }
        };
        Ok(Seat { node, shard: Some((node.name.clone(), why)) })
    }

    /// Where a build would run as far as the settings say, and the shard's name: an application may have another home.
    pub(super) fn first(&self, build: &Build) -> (&Node, Option<String>) {
        if self.group().is_none() {
            return (&self.nodes[0], None);
        }
        let node = &self.nodes[self.order(build)[0]];
        (node, Some(node.name.clone()))
    }

    /// Makes Kubernetes evict at most one shard at a time.
    pub(super) async fn protect(&self) -> Result<(), BuilderError> {
        match self.group() {
            Some(group) => self.nodes[0].ask(|cluster| async move { cluster.protect(group).await }).await,
            None => Ok(()),
        }
    }

    /// The value of the label that the pods of all shards have.
    fn group(&self) -> Option<&str> {
        self.nodes[0].settings.labels.get(SHARD_OF).map(String::as_str)
    }

    fn order(&self, build: &Build) -> Vec<usize> {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        order(&application(build), &names)
    }

    /// The shards that take a build, in its order: not the one that was lost, and none whose pod did not answer a while ago. Each wish
    /// counts only while a shard fulfils it.
    fn able(&self, order: &[usize], pods: &[PodStatus], loss: Option<&Loss>) -> Vec<usize> {
        let of = |place: usize| pods.iter().filter(move |pod| pod.app.as_deref() == Some(&self.nodes[place].name));
        let mut able = order.to_vec();
        let mut wish = |is_good: &dyn Fn(usize) -> bool| {
            let good: Vec<usize> = able.iter().copied().filter(|place| is_good(*place)).collect();
            if !good.is_empty() {
                able = good;
            }
        };
        wish(&|place| of(place).any(PodStatus::is_usable));
        wish(&|place| loss.is_none_or(|loss| loss.node != self.nodes[place].name));
        wish(&|place| of(place).any(|pod| pod.is_usable() && !self.nodes[place].is_shunned(&pod.uid)));
        able
    }

    /// How many builds of this process run on these shards.
    fn running(&self, able: &[usize], pods: &[PodStatus], own: &BTreeMap<String, u32>) -> Vec<u32> {
        let of = |place: &usize| {
            let is_own = |pod: &&PodStatus| pod.app.as_deref() == Some(&self.nodes[*place].name);
            pods.iter().filter(is_own).filter_map(|pod| own.get(&pod.name)).sum()
        };
        able.iter().map(of).collect()
    }
}

/// Builds with the same name share their cache.
fn application(build: &Build) -> String {
    format!("{}/{}", build.account, build.repository)
}
