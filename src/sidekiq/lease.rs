//! The lease by which others know that this process is alive, renewed by a thread of its own.
//!
//! A stalled disk or a busy runtime must not lose a healthy job, so the thread has a runtime of its own. It stops renewing
//! when the other one has not moved for a minute: then the process only looks alive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Identity;
use super::custody::{RETRY, Signals};
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
    // It may be waiting for a Redis that does not answer; leaving does not wait for that.
    _over: DropGuard,
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
    /// Starts the thread. Each time that the lease had to be made anew, the first time included, custody is told to look
    /// what others have taken meanwhile.
    pub fn start(
        redis: &settings::Redis,
        ttl: Duration,
        identity: Arc<Identity>,
        signals: Signals,
    ) -> Result<Self, RedisError> {
        let (pulse, over) = (Pulse::new(), CancellationToken::new());
        let renewal = Renewal { redis: Redis::new(redis)?, ttl, identity, signals, pulse: pulse.clone() };
        let stop = over.clone();
        let spawned = std::thread::Builder::new().name("lease".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be made at the start of the process");
            runtime.block_on(stop.run_until_cancelled(renewal.run()));
        });
        spawned.expect("a thread can be started at the start of the process");
        Ok(Self { pulse, _over: over.drop_guard() })
    }

    /// Gives it up at the end of the process, so that nobody counts on it or waits until it has run out; not with jobs left
    /// in flight, which recovery has to find.
    pub async fn give_up(self, redis: &Redis, identity: &Identity) -> Result<(), RedisError> {
        drop(self);
        let mut script = LEAVE.key(identity.lease_key());
        script.key("sidebake:owners").key("sidebake:suspects").key(identity.inflight_key()).arg(identity.to_string());
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
    pulse: Pulse,
}

impl Renewal {
    async fn run(&self) {
        let mut complaint = Complaint::that("the lease cannot be renewed");
        // A renewal whose answer was lost may have made the lease anew.
        let mut is_certain = true;
        loop {
            let renewed = if self.pulse.is_stuck() { Ok(true) } else { self.renew().await };
            let Some(was_there) = complaint.hear(renewed) else {
                is_certain = false;
                sleep(RETRY).await;
                continue;
            };
            if !was_there || !std::mem::replace(&mut is_certain, true) {
                self.signals.reconcile.notify_one();
            }
            sleep(self.ttl / 6).await;
        }
    }

    /// Returns whether the lease was still there.
    async fn renew(&self) -> Result<bool, RedisError> {
        let mut script = RENEW.key(self.identity.lease_key());
        script.key("sidebake:owners").key("sidebake:suspects");
        script.arg(self.identity.to_string()).arg(self.ttl.as_millis() as u64);
        script.arg(self.signals.last_turn.load(Ordering::Relaxed));
        self.redis.script::<i64>(&script).await.map(|renewed| renewed == 1)
    }
}
