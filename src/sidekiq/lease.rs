//! The lease by which others know that this process is alive, renewed by a thread of its own.
//!
//! A stalled disk or a busy runtime must not lose a healthy job, so the thread has a runtime of its own. It stops renewing
//! when the other one has not moved for a minute: then the process only looks alive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::custody::{RETRY, Signals};
use super::{Identity, random_hex};
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::settings;

static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew.lua")));
static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("leave.lua")));

/// A runtime that has not moved for this long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// The thread. Ends when this is dropped; the lease then runs out.
#[derive(Debug)]
pub struct Lease {
    pulse: Pulse,
    has_ended: CancellationToken,
    // It may be waiting for a Redis that does not answer; leaving does not wait for that.
    _over: DropGuard,
}

/// The thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The URL of Redis is wrong.
    #[error("redis.url: {0}")]
    Redis(#[from] RedisError),
    /// The system gives no thread, or none of what its runtime needs.
    #[error("the thread that renews the lease cannot be started: {0}")]
    Thread(std::io::Error),
    /// The thread has ended before the worker: the log has its panic.
    #[error("the thread that renews the lease has ended")]
    Lost,
}

/// How the runtime shows that it moves.
#[derive(Clone, Debug)]
pub struct Pulse {
    started: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    fn new() -> Self {
        Self { started: Instant::now(), last_ms: Arc::default() }
    }

    /// To be called from a task, at least every few seconds.
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
    /// Starts the thread. Each time that the lease had to be made, the first time included, custody is notified to look what
    /// others have reclaimed meanwhile. From `stop` on, Redis has it on record that the process was told to stop.
    pub fn start(
        redis: &settings::Redis,
        ttl: Duration,
        identity: Arc<Identity>,
        signals: Signals,
        stop: CancellationToken,
    ) -> Result<Self, LeaseError> {
        let (pulse, over) = (Pulse::new(), CancellationToken::new());
        let renewal = Renewal { redis: Redis::new(redis)?, ttl, identity, signals, stop, pulse: pulse.clone() };
        // Here, where the process can still end with a sentence.
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

    /// Ends when the thread does: by a bug, since it goes on until the lease is given up.
    pub async fn lost(&self) {
        self.has_ended.cancelled().await;
    }

    /// Gives it up at the end of the process, so that nobody counts on it or waits until it has run out; not with jobs left
    /// in flight, which recovery has to find.
    pub async fn give_up(self, redis: &Redis, identity: &Identity) -> Result<(), RedisError> {
        drop(self);
        let mut script = LEAVE.key(identity.lease_key());
        script.key("sidebake:owners").key("sidebake:suspects").key(identity.inflight_key()).key("sidebake:apart");
        script.arg(identity.to_string());
        redis.script(&script).await
    }

    /// What the runtime has to beat.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }
}

struct Renewal {
    redis: Redis,
    ttl: Duration,
    identity: Arc<Identity>,
    signals: Signals,
    stop: CancellationToken,
    pulse: Pulse,
}

impl Renewal {
    async fn run(&self) {
        let mut complaint = Complaint::that("the lease cannot be renewed");
        loop {
            let is_stopping = self.stop.is_cancelled();
            if !self.pulse.is_stuck() && complaint.hear(self.hold(is_stopping).await).is_none() {
                sleep(RETRY).await;
                continue;
            }
            tokio::select! {
                () = sleep(self.ttl / 6) => {}
                // At once: what dies after that has not crashed.
                () = self.stop.cancelled(), if !is_stopping => {}
            }
        }
    }

    /// Renews the lease, or makes one. Another incarnation, also one by a request whose answer was lost, is news to custody.
    async fn hold(&self, is_stopping: bool) -> Result<(), RedisError> {
        let mut incarnation = self.renew("", is_stopping).await?;
        if incarnation.is_empty() {
            incarnation = self.renew(&random_hex::<8>(), is_stopping).await?;
        }
        if self.signals.set_incarnation(incarnation) {
            self.signals.reconcile.notify_one();
        }
        Ok(())
    }

    /// Returns the incarnation of the lease; an empty text when there is none, and `new` is empty.
    async fn renew(&self, new: &str, is_stopping: bool) -> Result<String, RedisError> {
        let mut script = RENEW.key(self.identity.lease_key());
        script.key("sidebake:owners").key("sidebake:suspects");
        script.arg(self.identity.to_string()).arg(self.ttl.as_millis() as u64).arg(new).arg(u8::from(is_stopping));
        self.redis.script(&script).await
    }
}
