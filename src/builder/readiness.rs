//! The wait of builds until their builder has a pod for them.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::access::PLUGIN;
use super::cluster::{Cluster, ClusterError, Goal, Survey};
use super::node::Node;
use super::session::Pods;
use super::{AGAIN, BuilderError};
use crate::bake::Location;
use crate::sandbox::Sockets;

/// How often a builder that is not ready is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long a builder is not ready until its log says so. A pod that starts is often ready before.
const TELL_AFTER: Duration = Duration::from_secs(2);

impl Node {
    /// Waits until a pod is ready, and gives the bake access to the API server.
    pub(super) async fn admit(
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
        let (n_wanted, storage) = (survey.n_wanted(), survey.storage());
        Ok(Pods { before: survey.pods, n_wanted, storage, api, kubeconfig, access: tokio::sync::Mutex::new(access) })
    }

    /// Waits until all pods are ready and have the last change.
    pub(super) async fn rolled_out(&self) -> Result<(), BuilderError> {
        // A shard's disk is free for its next pod when the builds of the last one have ended.
        let ending = if self.settings.volume.is_some() { self.settings.grace_period() } else { Duration::ZERO };
        self.wait_for(Goal::RolledOut, Instant::now() + self.settings.timeout + ending).await.map(drop)
    }

    /// Looks at the Deployment until it is as wished.
    pub(super) async fn wait_for(&self, goal: Goal, deadline: Instant) -> Result<Survey, BuilderError> {
        // Beside a shard there are others, so its builds do not wait.
        let tells = self.settings.group().is_none();
        self.wait_until(deadline, tells, |cluster, waited| async move { cluster.reach(goal, waited).await }).await
    }

    /// Asks until the answer is good. A state that passes ends the wait only at the deadline: a Deployment that is missing,
    /// scaled to nothing, rolled out or not ready, and an API server that does not answer. `question` gets the time since the
    /// wait began. `tells`: the log says that builds wait.
    pub(super) async fn wait_until<T, A>(
        &self,
        deadline: Instant,
        tells: bool,
        question: impl Fn(Cluster, Duration) -> A,
    ) -> Result<T, BuilderError>
    where
        A: Future<Output = Result<T, ClusterError>>,
    {
        let started = Instant::now();
        // However short the wait may be, a look has the time that it takes.
        let patience = deadline.max(started + PLUGIN);
        let mut is_first = true;
        loop {
            // However many builds wait, one looks at a time. When it sees a ready pod, the others look at once.
            let _turn = if is_first { None } else { timeout_at(deadline, self.turn.lock()).await.ok() };
            is_first = false;
            let waited = started.elapsed();
            let error = match self.try_ask(patience, |cluster| question(cluster, waited)).await {
                Ok(answer) => {
                    if tells {
                        self.note_ready();
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if Instant::now() >= deadline || !error.may_pass() {
                return Err(self.wrong(error));
            }
            let pause = if error.is_away() { AGAIN } else { LOOK };
            if tells && waited >= TELL_AFTER && !error.is_away() {
                self.note_wait(&error);
            }
            sleep(pause).await;
        }
    }

    /// Logs once that builds wait.
    fn note_wait(&self, error: &ClusterError) {
        if self.wait.begins(Instant::now()) {
            let builder = &self.builder;
            tracing::warn!(event = "builder_not_ready", builder, %error, "the builder is not ready; its builds wait");
        }
    }

    fn note_ready(&self) {
        if let Some(waited) = self.wait.ends(Instant::now()) {
            let (builder, downtime_s) = (&self.builder, waited.as_secs());
            tracing::info!(event = "builder_ready", builder, downtime_s, "the builder is ready again");
        }
    }
}
