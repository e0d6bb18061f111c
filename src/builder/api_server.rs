//! The questions of a builder to its API server, with credentials that are looked up again when they expire.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::access::{AccessError, KubeAccess, PLUGIN};
use super::cluster::{Cluster, ClusterError};
use super::node::Node;
use super::outage::Outage;
use super::{AGAIN, BuilderError};
use crate::state;

/// How long Kubernetes has to answer until its outage is over.
pub(super) const STEADY: Duration = Duration::from_secs(5);

/// How many docker-buildx of builds that look for a pod run at once, for each builder.
const N_DIALS: usize = 4;

/// What a look-up of the API server and its credentials found.
type Access = Result<Arc<KubeAccess>, Arc<AccessError>>;

/// What the nodes of a builder know together of their API server.
#[derive(Debug)]
pub(super) struct ApiServer {
    /// Its address and the credentials for it, or why they are not known, and when they were looked up.
    access: Mutex<Option<(Access, Instant)>>,
    /// It does not answer.
    pub(super) outage: Outage,
    /// Builds that look for a pod take turns.
    pub(super) dials: Semaphore,
}

impl Default for ApiServer {
    fn default() -> Self {
        Self { access: Mutex::default(), outage: Outage::with_steady(STEADY), dials: Semaphore::new(N_DIALS) }
    }
}

impl Node {
    /// Asks the API server.
    pub(super) async fn ask<T, A>(&self, question: impl Fn(Cluster) -> A) -> Result<T, BuilderError>
    where
        A: Future<Output = Result<T, ClusterError>>,
    {
        self.try_ask(self.own_deadline(), question).await.map_err(|error| self.wrong(error))
    }

    /// Asks the API server; once more with new credentials when it does not accept the known ones. Waits for credentials until
    /// the deadline.
    pub(super) async fn try_ask<T, A>(
        &self,
        deadline: Instant,
        question: impl Fn(Cluster) -> A,
    ) -> Result<T, ClusterError>
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

    /// The API server and its credentials, looked up again when they may have changed.
    pub(super) async fn access(&self) -> Result<Arc<KubeAccess>, BuilderError> {
        self.try_access(self.own_deadline()).await.map_err(|error| self.wrong(error))
    }

    pub(super) fn write_kubeconfig(&self, access: &KubeAccess, path: &Path) -> Result<(), BuilderError> {
        let text = access.kubeconfig().map_err(|error| self.wrong(error.into()))?;
        Ok(state::write_private(path, text.expose().as_bytes())?)
    }

    /// Waits until the deadline. Builds that wait for one another share what it finds, also a failure.
    pub(super) async fn try_access(&self, deadline: Instant) -> Result<Arc<KubeAccess>, ClusterError> {
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
        let mut known = self.api.access.lock().await;
        if let Some((access, since)) = &*known {
            let is_fresh = match access {
                Ok(access) => access.is_fresh(since.elapsed()),
                Err(_) => since.elapsed() < AGAIN,
            };
            if is_fresh {
                return access.clone();
            }
        }
        // A build that waited too long for the others starts no plugin.
        if Instant::now() >= deadline {
            return Err(Arc::new(AccessError::Late));
        }
        let access = KubeAccess::find(&self.settings).await.map(Arc::new).map_err(Arc::new);
        *known = Some((access.clone(), Instant::now()));
        access
    }

    /// Forgets credentials that were not accepted, unless newer ones are known or looked up.
    async fn forget(&self, access: &Arc<KubeAccess>, deadline: Instant) {
        if let Ok(mut known) = timeout_at(deadline, self.api.access.lock()).await {
            known.take_if(|(known, _)| matches!(known, Ok(known) if Arc::ptr_eq(known, access)));
        }
    }

    fn cluster(&self, access: &KubeAccess) -> Result<Cluster, ClusterError> {
        Ok(Cluster::new(access, self.name.clone())?)
    }

    /// The deadline of a question that has none of its own.
    fn own_deadline(&self) -> Instant {
        Instant::now() + self.settings.timeout.max(PLUGIN)
    }

    /// Logs an outage of the API server once, and its end.
    fn note_answer(&self, error: Option<&ClusterError>, access: &KubeAccess) {
        if let Some(error) = error.filter(|error| error.is_away()) {
            self.note_outage(error, Some(access));
        } else if let Some(downtime) = self.api.outage.ends(Instant::now()) {
            let (builder, url, downtime_s) = (&self.builder, access.url(), downtime.as_secs());
            tracing::info!(event = "kubernetes_back", builder, url, downtime_s, "Kubernetes answers again");
        }
    }

    /// Logs an outage once. Without `access`, its credentials are away.
    fn note_outage(&self, error: &ClusterError, access: Option<&KubeAccess>) {
        if self.api.outage.begins(Instant::now()) {
            let (builder, url) = (&self.builder, access.map(KubeAccess::url));
            tracing::error!(event = "kubernetes_unavailable", builder, url, %error, "Kubernetes does not answer");
        }
    }
}
