//! The state of a builder as `sidebake builder` and `doctor` show it.

use super::location::DOCKER_SOCKET;
use super::node::Node;
use super::{BuilderError, Drift, PodStatus, deployment};
use crate::settings::Driver;

/// The state of a builder, for `sidebake builder` and `doctor`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BuilderStatus {
    /// Its name in the configuration.
    pub builder: String,
    /// The shard, if the builder has shards.
    pub shard: Option<String>,
    /// buildx's driver.
    pub driver: &'static str,
    /// The Deployment, or the address.
    pub at: String,
    /// Whether the Deployment exists; `true` for other drivers.
    pub exists: bool,
    /// Replicas of the Deployment.
    pub n_wanted: usize,
    /// Pods that take builds.
    pub n_ready: usize,
    /// Each pod.
    pub pods: Vec<PodStatus>,
    /// What is wrong with the Deployment or its pods, in Kubernetes' words.
    pub why: Option<String>,
    /// Where the live Deployment differs from the configuration.
    #[serde(skip)]
    pub drift: Vec<Drift>,
    /// The accounts whose builds it takes.
    pub accounts: Vec<String>,
}

impl Node {
    /// The state of a builder now.
    pub(super) async fn status(&self) -> Result<BuilderStatus, BuilderError> {
        if self.settings.driver != Driver::Kubernetes {
            let at = self.settings.endpoint.clone().unwrap_or_else(|| DOCKER_SOCKET.into());
            return Ok(BuilderStatus { exists: true, ..self.unseen(at) });
        }
        let survey = self.ask(|cluster| async move { cluster.survey().await }).await?;
        let status = self.unseen(format!("{} in {}", self.name, self.access().await?.namespace()));
        let Some(survey) = survey else { return Ok(status) };
        let text = deployment::buildkitd_toml(&self.settings).ok().flatten();
        let desired = deployment::desired(&self.name, &self.settings, &survey.workload, text.as_deref());
        let n_wanted = survey.n_wanted();
        Ok(BuilderStatus {
            exists: true,
            n_wanted,
            // A rollout has more ready pods than are wanted.
            n_ready: survey.n_ready().min(n_wanted),
            why: survey.misplaced().or_else(|| survey.problem()),
            drift: deployment::drift(&survey.workload, &desired),
            pods: survey.pods,
            ..status
        })
    }

    /// What the settings say of a builder, without a Deployment.
    fn unseen(&self, at: String) -> BuilderStatus {
        BuilderStatus {
            builder: self.builder.clone(),
            shard: self.settings.shards.map(|_| self.name.clone()),
            driver: self.settings.driver.name(),
            at,
            exists: false,
            n_wanted: 0,
            n_ready: 0,
            pods: Vec::new(),
            why: None,
            drift: Vec::new(),
            accounts: self.settings.accounts.iter().map(ToString::to_string).collect(),
        }
    }
}
