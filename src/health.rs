//! What Kubernetes asks of a worker: `/live` and `/ready`, in plain HTTP.
//!
//! `/live` is answered by the runtime itself, so a runtime that is stuck does not answer, and nothing else makes it fail.
//! `/ready` is 503 when the worker takes no jobs: it was told to be quiet, its disk is low, or Redis does not answer.

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

/// A probe's own limit is a second or more; a Redis that needs longer is away.
const PATIENCE: Duration = Duration::from_secs(2);

/// The port cannot be listened on.
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
    /// Takes the port; without an address there is no listener.
    pub async fn bind(address: Option<SocketAddr>) -> Result<Self, HealthError> {
        let Some(address) = address else { return Ok(Self(None)) };
        let listener = TcpListener::bind(address).await.map_err(|source| HealthError { address, source })?;
        Ok(Self(Some(listener)))
    }

    /// Answers until `ended`.
    pub async fn run(
        self,
        redis: Redis,
        quiet: &CancellationToken,
        has_room: watch::Receiver<bool>,
        ended: &CancellationToken,
    ) {
        let Some(listener) = self.0 else { return };
        let state = Arc::new(Worker { redis, quiet: quiet.clone(), has_room });
        let routes = Router::new()
            .route("/live", get(async || "alive\n"))
            .route("/ready", get(async |State(worker): State<Arc<Worker>>| worker.ready().await))
            .with_state(state);
        // Nobody's connection is worth waiting for.
        tokio::select! {
            served = axum::serve(listener, routes).into_future() => {
                tracing::error!(?served, "the health listener has ended");
            }
            () = ended.cancelled() => {}
        }
    }
}

struct Worker {
    redis: Redis,
    quiet: CancellationToken,
    has_room: watch::Receiver<bool>,
}

impl Worker {
    async fn ready(&self) -> (StatusCode, &'static str) {
        if self.quiet.is_cancelled() {
            return (StatusCode::SERVICE_UNAVAILABLE, "quiet: takes no new jobs\n");
        }
        if !*self.has_room.borrow() {
            return (StatusCode::SERVICE_UNAVAILABLE, "the disk is low: takes no new jobs\n");
        }
        let ping = redis::cmd("PING");
        match tokio::time::timeout(PATIENCE, self.redis.query::<String>(&ping)).await {
            Ok(Ok(_)) => (StatusCode::OK, "ready\n"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "Redis does not answer\n"),
        }
    }
}
