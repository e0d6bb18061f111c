//! A node of a builder: a Deployment with its pods, or the address of a BuildKit. What a worker knows of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::api_server::ApiServer;
use super::choice::{Directories, Lead, Ring, SHUNNED};
use super::cluster::{Cause, ClusterError};
use super::outage::Outage;
use super::pod::PodError;
use super::{BuilderError, instance};
use crate::network::Proxies;
use crate::platform::Machine;
use crate::settings::{self, Balance};
use crate::version::{Ability, Version};
use crate::warmth::BaseBuild;
use crate::{bounds, text};

#[derive(Debug)]
pub(super) struct Node {
    /// The builder's name in the configuration.
    pub(super) builder: String,
    /// The node's name, which is also that of its Deployment.
    pub(super) name: String,
    pub(super) settings: settings::Builder,
    /// The proxies of the environment, for buildx.
    pub(super) proxies: &'static Proxies,
    /// Certificates that buildx trusts beside the system's.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) api: Arc<ApiServer>,
    /// To which pods the working directories lead.
    directories: Mutex<Directories>,
    /// Pods that did not answer, by uid, and since when they are avoided.
    shunned: Mutex<BTreeMap<String, Instant>>,
    /// What BuildKit said of its machine, by pod; without pods, by the empty name.
    machines: Mutex<BTreeMap<String, Machine>>,
    /// The base images that pods have built.
    built: Mutex<BTreeMap<String, BTreeSet<BaseBuild>>>,
    /// Builds wait for a ready pod.
    pub(super) wait: Outage,
    /// Which of them looks whether there is one.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Node {
    pub(super) fn new(builder: &str, settings: settings::Builder, ca_file: Option<&Path>, api: Arc<ApiServer>) -> Self {
        Self {
            builder: builder.to_owned(),
            name: settings.node_name(builder),
            settings,
            proxies: Proxies::of_process(),
            ca_file: ca_file.map(Path::to_owned),
            api,
            directories: Mutex::default(),
            shunned: Mutex::default(),
            machines: Mutex::default(),
            built: Mutex::default(),
            wait: Outage::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Creates the Deployment unless it exists. Returns whether this call created it.
    pub(super) async fn create(&self) -> Result<bool, BuilderError> {
        self.ask(|cluster| async move { cluster.create(&self.settings).await }).await
    }

    /// The error of a node of which no pod answered.
    pub(super) async fn no_answer(&self) -> BuilderError {
        let deployment = match self.access().await {
            Ok(access) => format!("{} in {}", self.name, access.namespace()),
            Err(error) => return error,
        };
        self.wrong(ClusterError::NoAnswer { deployment, waited_s: self.settings.timeout.as_secs() })
    }

    /// The error of a node whose pods Kubernetes does not allow to reach.
    pub(super) fn forbidden(&self, error: &PodError) -> BuilderError {
        let what = format!("connect to a pod of {}", self.name);
        let message = text::shown(&error.to_string(), bounds::ERROR);
        self.wrong(ClusterError::Api { what, message, cause: Cause::Refused })
    }

    pub(super) fn record(
        &self,
        balance: Balance,
        kubeconfig: Option<&Path>,
        storage: Option<&str>,
    ) -> Result<Vec<u8>, BuilderError> {
        let record = instance::record(&self.instance_name(), &self.name, &self.settings, balance, kubeconfig, storage);
        record.map_err(|error| BuilderError::Config { name: self.builder.clone(), error })
    }

    /// What is known now of a working directory.
    pub(super) fn lead(&self, ring: &Ring, directory: &Path) -> Lead {
        self.directories().lead(ring, directory, Instant::now())
    }

    /// Keeps where a working directory leads; `None` when no pod answered.
    pub(super) fn learn(&self, ring: &Ring, directory: &Path, pod: Option<String>) {
        self.directories().learn(ring, directory.to_owned(), pod, Instant::now());
    }

    fn directories(&self) -> MutexGuard<'_, Directories> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Avoids a pod that did not answer, for a while.
    pub(super) fn shun(&self, uid: &str) {
        let now = Instant::now();
        let mut shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        shunned.retain(|_, since| now.duration_since(*since) < SHUNNED);
        shunned.insert(uid.to_owned(), now);
    }

    pub(super) fn is_shunned(&self, uid: &str) -> bool {
        let shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        shunned.get(uid).is_some_and(|since| since.elapsed() < SHUNNED)
    }

    /// The base images that each pod has built.
    pub(super) fn built(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<BaseBuild>>> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a pod's machine.
    pub(super) fn machine(&self, pod: &str) -> Option<Machine> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).get(pod).cloned()
    }

    /// Keeps what a pod's BuildKit said.
    pub(super) fn learn_machine(&self, pod: String, machine: Machine) {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        // Most of so many pods are gone.
        if machines.len() >= bounds::PODS {
            machines.clear();
        }
        machines.insert(pod, machine);
    }

    /// Checks that docker-buildx finds a builder that is a StatefulSet.
    pub(super) fn check_buildx(&self, buildx: Option<&Version>) -> Result<(), BuilderError> {
        let lacks =
            buildx.and_then(|buildx| Some((buildx, buildx.lacking().find(|lack| lack.0 == Ability::StatefulSets)?)));
        lacks.map_or(Ok(()), |(version, (_, first, _))| {
            let (name, version) = (self.builder.clone(), version.to_string());
            Err(BuilderError::OldBuildx { name, version, first })
        })
    }

    pub(super) fn wrong(&self, error: ClusterError) -> BuilderError {
        BuilderError::Cluster { name: self.builder.clone(), error }
    }
}
