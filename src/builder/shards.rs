//! Shards: nodes of one pod each, of which every one keeps its name and its disk. The worker chooses among them.
//!
//! One list has the pods of all shards. So a build knows which shards take builds, before it asks how many builds they run.

use std::collections::BTreeMap;
use std::pin::Pin;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::node::Node;
use super::occupancy::Occupancy;
use super::placement::{bound, choose, order};
use super::pods::PodStatus;
use super::{Builder, BuilderError, Loss, PlaceRequest};
use crate::job::Build;
use crate::shard::{ShardAnswer, ShardQuestion};

/// Chooses by the running builds of the whole fleet, and counts this one among them. `None`: they are not known, or the job is
/// another's.
pub type Fleet = dyn Fn(ShardQuestion) -> Pin<Box<dyn Future<Output = Option<ShardAnswer>> + Send>> + Send + Sync;

/// Where a build runs.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    pub(super) node: &'a Node,
    /// Why this shard was chosen; `None` for a builder without shards.
    pub(super) why_shard: Option<String>,
}

impl Builder {
    /// The node of a build. Waits until a shard takes builds. `tried` did not become ready, and is taken only while no other
    /// shard takes builds.
    pub(super) async fn seat(
        &self,
        request: PlaceRequest<'_>,
        tried: Option<&Node>,
        occupancy: &Occupancy,
        deadline: Instant,
    ) -> Result<Seat<'_>, BuilderError> {
        let Some(group) = self.group() else { return Ok(Seat { node: &self.nodes[0], why_shard: None }) };
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let question = |cluster: Cluster, waited| {
            let names = names.clone();
            async move { cluster.shards(group, &names, waited).await }
        };
        let pods = self.nodes[0].wait_until(deadline, true, question).await?;
        let mut order: Vec<&Node> = self.order(request.build);
        let n_able = self.able_first(&mut order, &pods, request.loss, tried);
        let bound = bound(self.settings.shard_builds);
        let question = ShardQuestion {
            builder: self.name.clone(),
            application: application(request.build),
            shards: order.iter().map(|node| node.name.clone()).collect(),
            n_able,
            bound,
        };
        let answer = match request.fleet {
            Some(fleet) => fleet(question).await,
            None => None,
        };
        let Some(answer) = answer else {
            let running = running(&order[..n_able], &pods, &occupancy.on(&self.name));
            let node = order[choose(&running, &[], bound)];
            return Ok(Seat { node, why_shard: Some("the running builds of the fleet are not known".into()) });
        };
        Ok(Seat { node: order[answer.place], why_shard: Some(in_words(answer, &order, n_able, request.loss)) })
    }

    /// Where a build would run as far as the settings say: an application may have another home.
    pub(super) fn first(&self, build: &Build) -> &Node {
        self.order(build)[0]
    }

    /// Makes Kubernetes evict at most one shard at a time. An existing rule changes only with `is_change`.
    pub(super) async fn protect(&self, is_change: bool) -> Result<(), BuilderError> {
        match self.group() {
            Some(group) => self.nodes[0].ask(|cluster| async move { cluster.protect(group, is_change).await }).await,
            None => Ok(()),
        }
    }

    /// The value of the label that the pods of all shards have.
    fn group(&self) -> Option<&str> {
        self.nodes[0].settings.group()
    }

    fn order(&self, build: &Build) -> Vec<&Node> {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        order(&application(build), &names).into_iter().map(|place| &self.nodes[place]).collect()
    }

    /// Moves the shards that take a build to the front, and returns how many they are: not the one that was lost, none that was
    /// tried, and none whose pod did not answer a while ago. Each wish counts only while a shard fulfils it.
    fn able_first(&self, order: &mut [&Node], pods: &[PodStatus], loss: Option<&Loss>, tried: Option<&Node>) -> usize {
        let mut n_able = order.len();
        let mut wish = |is_good: &dyn Fn(&Node) -> bool| {
            // A stable order within both parts.
            order[..n_able].sort_by_cached_key(|node| !is_good(node));
            let n_good = order[..n_able].partition_point(|node| is_good(node));
            n_able = if n_good > 0 { n_good } else { n_able };
        };
        wish(&|node| node.pods_of(pods).any(PodStatus::is_usable));
        wish(&|node| loss.is_none_or(|loss| !loss.is_of(&node.name)));
        wish(&|node| tried.is_none_or(|tried| tried.name != node.name));
        wish(&|node| node.pods_of(pods).any(|pod| pod.is_usable() && !node.is_shunned(&pod.uid)));
        n_able
    }
}

impl Node {
    /// Its pods, among those of all shards.
    fn pods_of<'a>(&self, pods: &'a [PodStatus]) -> impl Iterator<Item = &'a PodStatus> {
        pods.iter().filter(|pod| pod.app.as_ref() == Some(&self.name))
    }
}

/// Why a shard was chosen. `order`: the shards as they were in the question.
fn in_words(answer: ShardAnswer, order: &[&Node], n_able: usize, loss: Option<&Loss>) -> String {
    let Some(home) = answer.home else { return "it had the fewest builds".into() };
    let name = &order[home].name;
    if home == answer.place {
        "the home of this repository".into()
    } else if loss.is_some_and(|loss| loss.is_of(name)) {
        format!("its home {name} was lost")
    } else if home >= n_able {
        format!("its home {name} takes no builds now")
    } else {
        format!("its home {name} runs {} builds and may run {}", answer.n_on_home, answer.most)
    }
}

/// How many builds of this process run on these shards. `own`: by pod.
fn running(shards: &[&Node], pods: &[PodStatus], own: &BTreeMap<String, u32>) -> Vec<u32> {
    let of = |node: &&Node| node.pods_of(pods).filter_map(|pod| own.get(&pod.name)).sum();
    shards.iter().map(of).collect()
}

/// Builds with the same name share their cache.
fn application(build: &Build) -> String {
    format!("{}/{}", build.account, build.repository)
}
