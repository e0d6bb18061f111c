//! The health endpoints for Kubernetes: `/live` and `/ready`, in plain HTTP.
//!
//! `/live` fails only when the runtime is stuck: the runtime itself answers. `/ready` is 503 when the worker takes no jobs: it is
//! quiet, its disk is low, or Redis does not answer, or answers another connection than the one that fetches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::redis::Redis;

/// How long `/ready` waits for Redis. A Kubernetes probe waits for a second or more.
const PATIENCE: Duration = Duration::from_secs(2);

/// The worker cannot listen on the port.
#[derive(Debug, thiserror::Error)]
#[error("health.listen: {address}: {source}")]
pub struct HealthError {
    address: SocketAddr,
    source: std::io::Error,
}

/// The listener, not answering yet.
#[derive(Debug)]
pub struct Health(Option<TcpListener>);

impl Health {
    /// Binds the port; without an address there is no listener.
    pub async fn bind(address: Option<SocketAddr>) -> Result<Self, HealthError> {
        let Some(address) = address else { return Ok(Self(None)) };
        let listener = TcpListener::bind(address).await.map_err(|source| HealthError { address, source })?;
        Ok(Self(Some(listener)))
    }

    /// Answers until `ended`.
    pub async fn run(
        self,
        redis: Redis,
        trouble: watch::Receiver<Option<String>>,
        quiet: &CancellationToken,
        has_room: watch::Receiver<bool>,
        ended: &CancellationToken,
    ) {
        let Some(listener) = self.0 else { return };
        let state = Arc::new(Worker { redis: Arc::new(redis), trouble, quiet: quiet.clone(), has_room });
        let routes = Router::new()
            .route("/live", get(async || "alive\n"))
            .route("/ready", get(async |State(worker): State<Arc<Worker>>| worker.ready().await))
            .with_state(state);
        // Open connections do not delay the end.
        tokio::select! {
            served = axum::serve(listener, routes).into_future() => {
                tracing::error!(event = "health_listener_ended", ?served, "the health listener ended");
            }
            () = ended.cancelled() => {}
        }
    }
}

struct Worker {
    redis: Arc<Redis>,
    /// Why the worker gets no jobs from Redis.
    trouble: watch::Receiver<Option<String>>,
    quiet: CancellationToken,
    has_room: watch::Receiver<bool>,
}

impl Worker {
    async fn ready(&self) -> (StatusCode, String) {
        match self.obstacle().await {
            Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
            None => (StatusCode::OK, "ready\n".into()),
        }
    }

    /// Why the worker takes no jobs.
    async fn obstacle(&self) -> Option<String> {
        if self.quiet.is_cancelled() {
            return Some("quiet: fetching no jobs".into());
        }
        if !*self.has_room.borrow() {
            return Some("low disk space: fetching no jobs".into());
        }
        if let Some(trouble) = self.trouble.borrow().clone() {
            return Some(trouble);
        }
        // A worker whose slots are full takes no turn, so Redis is asked here too. A question whose time is over goes on: only its own
        // end closes a dead connection, or finds the next sentinel.
        let redis = Arc::clone(&self.redis);
        let ping = tokio::spawn(async move { redis.query::<String>(&redis::cmd("PING")).await });
        let answer = tokio::time::timeout(PATIENCE, ping).await;
        (!matches!(answer, Ok(Ok(Ok(_))))).then(|| "Redis does not answer".into())
    }
}
