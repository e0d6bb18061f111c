//! How a session asks the BuildKit behind docker-buildx for its host name, which is its pod's name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Session;
use crate::bake::dial_child;
use crate::builder::choice::{Ring, ring};
use crate::builder::pod::{self, PodError, Worker};
use crate::builder::pods::PodStatus;
use crate::sandbox::Enforcement;
use crate::settings::Balance;

/// How BuildKit is asked for its host name.
#[derive(Debug)]
pub(in crate::builder) struct Dial<'a> {
    pub(in crate::builder) buildx: &'a Path,
    pub(in crate::builder) enforcement: Enforcement,
    /// A directory of the job; each run gets a new one in it.
    pub(in crate::builder) directory: PathBuf,
    /// How many runs there were.
    pub(in crate::builder) n_runs: AtomicU32,
    /// During a bake one runs at a time: the worker's memory limit counts on that.
    pub(in crate::builder) turn: tokio::sync::Mutex<()>,
}

impl Session<'_> {
    /// Asks the BuildKit that a bake would reach who it is.
    pub async fn dial(&self) -> Result<Worker, PodError> {
        let _turn = self.dial.turn.lock().await;
        self.renew_access().await;
        self.ask(&self.location.working_directory).await
    }

    /// Learns which pod the bake will have, if it is not known.
    pub(in crate::builder) async fn learn_pod(&self) {
        let (None, Balance::Sticky, Some(pods)) = (self.pod.get(), self.balance, &self.pods) else { return };
        let before = ring(&pods.before);
        match self.dial().await.map(|worker| worker.hostname) {
            Ok(pod) if before.iter().any(|(name, _)| *name == pod) => {
                // When another pod is gone, it may be the bake's own, and this one only the next.
                if self.pods_now().await.is_ok_and(|now| is_kept(&before, &now)) {
                    self.node.learn(&before, &self.location.working_directory, Some(pod.clone()));
                    self.is_on(pod);
                }
            }
            Ok(hostname) => {
                tracing::debug!(builder = self.node.builder, hostname, "BuildKit's host name is not one of the pods")
            }
            Err(error) => {
                tracing::debug!(builder = self.node.builder, %error, "could not ask BuildKit for its pod's name")
            }
        }
    }

    /// Runs `docker-buildx dial-stdio` from a working directory, and asks the BuildKit that it reaches who it is.
    pub(super) async fn ask(&self, directory: &Path) -> Result<Worker, PodError> {
        let run = self.dial.n_runs.fetch_add(1, Ordering::Relaxed);
        let private = self.dial.directory.join(run.to_string());
        let child = dial_child(self.dial.buildx, self.dial.enforcement, &self.location, &private)?;
        let mut command = child.command(self.dial.buildx);
        command.args(["dial-stdio", "--builder", &self.location.builder]).current_dir(directory);
        pod::worker(command).await
    }

    /// Writes new credentials where docker-buildx reads them: those of the bake's beginning may have expired. The running bake
    /// has its connection.
    pub(super) async fn renew_access(&self) {
        let Some(pods) = &self.pods else { return };
        let mut written = pods.access.lock().await;
        // Without new ones, the old ones may do.
        let Ok(access) = self.node.access().await else { return };
        if !Arc::ptr_eq(&access, &written) && self.node.write_kubeconfig(&access, &pods.kubeconfig).is_ok() {
            *written = access;
        }
    }
}

/// Whether all pods of a ring are still there. Pods that were terminating may go.
pub(super) fn is_kept(before: &Ring, now: &[PodStatus]) -> bool {
    let is_there = |name: &str| now.iter().any(|pod| pod.name == name && pod.is_running && !pod.is_going);
    before.iter().filter(|(_, is_going)| !is_going).all(|(name, _)| is_there(name))
}
