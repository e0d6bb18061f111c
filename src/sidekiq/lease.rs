//! The lease that tells other workers that this process is alive, renewed by a separate thread.
//!
//! A stalled disk or a busy runtime must not cost a healthy job, so the thread has its own runtime. It stops renewing when the
//! worker's runtime has not moved for a minute: then the process only looks alive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::custody::{Handle, RETRY};
use super::{Identity, keys};
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::{hex, settings};

static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew.lua")));
static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("leave.lua")));

/// A runtime that has not moved for this long counts as stuck.
const STUCK: Duration = Duration::from_secs(60);

/// The thread. It ends when this is dropped; the lease then expires.
#[derive(Debug)]
pub struct Lease {
    pulse: Pulse,
    has_ended: CancellationToken,
    // The thread may wait for a Redis that does not answer; dropping this does not wait for the thread.
    _over: DropGuard,
}

/// The thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The Redis URL is not valid.
    #[error("redis.url: {0}")]
    Redis(#[from] RedisError),
    /// The system refused a thread, or a resource of its runtime.
    #[error("failed to start the thread that renews the lease: {0}")]
    Thread(std::io::Error),
    /// The thread ended before the worker; the log has its panic.
    #[error("the thread that renews the lease ended")]
    Lost,
}

/// A heartbeat by which the runtime shows that it moves.
#[derive(Clone, Debug)]
pub struct Pulse {
    started: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    fn new() -> Self {
        Self { started: Instant::now(), last_ms: Arc::default() }
    }

    /// Beats. A task must call this every few seconds.
    pub fn beat(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn is_stuck(&self) -> bool {
        let silent = self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed));
        u128::from(silent) > STUCK.as_millis()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Lease {
    /// Starts the thread. Each time it makes a lease, the first time included, it notifies custody, which then looks for
    /// reclaimed jobs. Once `stop` is cancelled, it records in Redis that the process is stopping.
    pub fn start(
        redis: &settings::Redis,
        ttl: Duration,
        identity: Arc<Identity>,
        handle: Handle,
        stop: CancellationToken,
    ) -> Result<Self, LeaseError> {
        let (pulse, over) = (Pulse::new(), CancellationToken::new());
        let renewal = Renewal { redis: Redis::new(redis)?, ttl, identity, handle, stop, pulse: pulse.clone() };
        // Here, where a failure still ends the process with an error.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(LeaseError::Thread)?;
        let (until, has_ended) = (over.clone(), CancellationToken::new());
        let end = has_ended.clone().drop_guard();
        let spawned = std::thread::Builder::new().name("lease".into()).spawn(move || {
            // Also when it panics.
            let _end = end;
            runtime.block_on(until.run_until_cancelled(renewal.run()));
        });
        spawned.map_err(LeaseError::Thread)?;
        Ok(Self { pulse, has_ended, _over: over.drop_guard() })
    }

    /// Returns when the thread has ended. That is a bug: it runs until the lease is given up.
    pub async fn lost(&self) {
        self.has_ended.cancelled().await;
    }

    /// Gives the lease up at the end of the process, so that no worker waits until it expires. With jobs left in flight the
    /// lease stays: recovery has to find them.
    pub async fn give_up(self, redis: &Redis, identity: &Identity) -> Result<(), RedisError> {
        drop(self);
        let mut script = LEAVE.key(keys::lease(identity));
        script.key(keys::OWNERS).key(keys::SUSPECTS).key(keys::inflight(identity)).key(keys::APART);
        script.key(keys::claims(identity));
        script.arg(identity.to_string());
        redis.script(&script).await
    }

    /// The pulse that the runtime has to beat.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }
}

struct Renewal {
    redis: Redis,
    ttl: Duration,
    identity: Arc<Identity>,
    handle: Handle,
    stop: CancellationToken,
    pulse: Pulse,
}

impl Renewal {
    async fn run(&self) {
        let mut complaint = Complaint::new("lease_not_renewed", "the lease cannot be renewed");
        loop {
            let is_stopping = self.stop.is_cancelled();
            if !self.pulse.is_stuck() && complaint.hear(self.hold(is_stopping).await).is_none() {
                sleep(RETRY).await;
                continue;
            }
            tokio::select! {
                () = sleep(self.ttl / 6) => {}
                // At once: a worker that dies after that has not crashed.
                () = self.stop.cancelled(), if !is_stopping => {}
            }
        }
    }

    /// Renews the lease, or makes one. Notifies custody of another incarnation, also when the answer that made it was lost.
    async fn hold(&self, is_stopping: bool) -> Result<(), RedisError> {
        let mut incarnation = self.renew("", is_stopping).await?;
        if incarnation.is_empty() {
            incarnation = self.renew(&hex::random::<8>(), is_stopping).await?;
        }
        if self.handle.set_incarnation(incarnation) {
            self.handle.reconcile.notify_one();
        }
        Ok(())
    }

    /// Returns the incarnation of the lease, or an empty text when there is no lease and `new` is empty.
    async fn renew(&self, new: &str, is_stopping: bool) -> Result<String, RedisError> {
        let mut script = RENEW.key(keys::lease(&self.identity));
        script.key(keys::OWNERS).key(keys::SUSPECTS);
        script.arg(self.identity.to_string()).arg(self.ttl.as_millis() as u64).arg(new).arg(u8::from(is_stopping));
        self.redis.script(&script).await
    }
}
