//! The listener of a worker, in plain HTTP: `/live` and `/ready` for Kubernetes, `/metrics` for Prometheus, `/scale` for autoscalers.
//!
//! `/live` fails only when the runtime is stuck: the runtime itself answers. `/ready` is 503 when the worker takes no jobs: it is
//! quiet, its disk is low, or Redis does not answer, or answers another connection than the one that fetches.

mod page;
mod scale;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::builder::Builders;
use crate::metric;
use crate::sidekiq::custody::Handle;
use crate::sidekiq::load::Loads;
use crate::sidekiq::running::RunningJobs;
use crate::state::StateDirectory;

use page::Page;

/// How long an answer waits for Redis. A Kubernetes probe waits for a second or more.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the values of histograms are added up. Between, each takes eight bytes.
const UPKEEP: Duration = Duration::from_secs(2);

/// The worker cannot listen on the port.
#[derive(Debug, thiserror::Error)]
#[error("health.listen: {address}: {source}")]
pub struct HealthError {
    address: SocketAddr,
    source: std::io::Error,
}

/// The listener, not answering yet.
#[derive(Debug)]
pub struct Health(Option<(TcpListener, Page)>);

/// What the listener reports about a worker.
#[derive(Debug)]
pub struct Worker {
    /// What waits and what runs, and the connection that asks for it.
    pub loads: Arc<Loads>,
    /// Custody.
    pub handle: Handle,
    /// What the worker runs.
    pub running: RunningJobs,
    /// The builders.
    pub builders: Arc<Builders>,
    /// This machine's disk.
    pub state: Arc<StateDirectory>,
    /// Slots by capsule.
    pub capsules: Vec<(String, usize)>,
    /// How many builds each shard runs, by builder.
    pub shard_builds: Vec<(String, u64)>,
    /// Fetches nothing more.
    pub quiet: CancellationToken,
    /// Whether the disk has room.
    pub has_room: watch::Receiver<bool>,
}

impl Health {
    /// Binds the port, and begins to record metrics; without an address there is no listener.
    pub async fn bind(address: Option<SocketAddr>) -> Result<Self, HealthError> {
        let Some(address) = address else { return Ok(Self(None)) };
        let listener = TcpListener::bind(address).await.map_err(|source| HealthError { address, source })?;
        Ok(Self(Some((listener, Page::begin()))))
    }

    /// Answers until `ended`.
    pub async fn run(self, worker: Worker, ended: &CancellationToken) {
        let Some((listener, page)) = self.0 else { return };
        worker.builders.names().for_each(|name| metric::POD_RETRIES.add([name], 0));
        let state = Arc::new((worker, page));
        let routes = Router::new()
            .route("/live", get(async || "alive\n"))
            .route("/ready", get(async |State(state): State<Arc<(Worker, Page)>>| state.0.ready().await))
            .route("/metrics", get(async |State(state): State<Arc<(Worker, Page)>>| state.1.render(&state.0).await))
            .route("/scale", get(scale::answer))
            .with_state(Arc::clone(&state));
        let upkeep = async {
            loop {
                tokio::time::sleep(UPKEEP).await;
                state.1.add_up();
            }
        };
        // Open connections do not delay the end.
        tokio::select! {
            served = axum::serve(listener, routes).into_future() => {
                tracing::error!(event = "health_listener_ended", ?served, "the health listener ended");
            }
            () = upkeep => {}
            () = ended.cancelled() => {}
        }
    }
}

impl Worker {
    async fn ready(&self) -> impl IntoResponse + use<> {
        match self.obstacle().await {
            Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
            None => (StatusCode::OK, "ready\n".into()),
        }
    }

    /// Why the worker takes no jobs.
    async fn obstacle(&self) -> Option<String> {
        if let Some(obstacle) = self.known_obstacle() {
            return Some(obstacle);
        }
        // A worker whose slots are full takes no turn, so Redis is asked here too. A timed-out PING goes on: only its own failure drops a
        // dead connection, or finds the next sentinel.
        let loads = Arc::clone(&self.loads);
        let ping = tokio::spawn(async move { loads.redis.query::<String>(&redis::cmd("PING")).await });
        let answer = tokio::time::timeout(PATIENCE, ping).await;
        (!matches!(answer, Ok(Ok(Ok(_))))).then(|| "Redis does not answer".into())
    }

    /// The same, without a request to Redis.
    fn known_obstacle(&self) -> Option<String> {
        if self.quiet.is_cancelled() {
            return Some("quiet: fetching no jobs".into());
        }
        if !*self.has_room.borrow() {
            return Some("low disk space: fetching no jobs".into());
        }
        self.handle.trouble().borrow().clone()
    }
}
