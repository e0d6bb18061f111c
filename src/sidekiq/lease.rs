//! The lease by which others know that this process is alive, renewed by a thread of its own.
//!
//! A stalled disk or a busy runtime must not lose a healthy job, so nothing of it runs on the runtime. It stops when the
//! runtime has not moved for a minute: then the process only looks alive.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Identity;
use crate::redis::Script;
use crate::settings;

static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew.lua")));

/// A runtime that has not moved for this long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// The thread. Ends when this is dropped; the lease then runs out.
#[derive(Debug)]
pub struct Lease {
    pulse: Pulse,
    thread: Option<std::thread::JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
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
    /// Starts the thread. `wake` is notified each time that the lease had to be made anew, the first time included.
    pub fn start(
        redis: &settings::Redis,
        ttl: Duration,
        identity: Arc<Identity>,
        wake: Arc<Notify>,
    ) -> Result<Self, crate::redis::RedisError> {
        let client = redis::Client::open(redis.url.expose())?;
        let (pulse, is_over) = (Pulse::new(), Arc::new(AtomicBool::new(false)));
        let renewal = Renewal { client, timeout: redis.timeout, ttl, identity, wake, pulse: pulse.clone() };
        let over = Arc::clone(&is_over);
        let spawned = std::thread::Builder::new().name("lease".into()).spawn(move || renewal.run(&over));
        let thread = spawned.expect("a thread can be started at the start of the process");
        Ok(Self { pulse, thread: Some(thread), is_over })
    }

    /// What the runtime has to beat.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It may be waiting for a Redis that does not answer; leaving must not wait for that.
            drop(thread);
        }
    }
}

struct Renewal {
    client: redis::Client,
    timeout: Duration,
    ttl: Duration,
    identity: Arc<Identity>,
    wake: Arc<Notify>,
    pulse: Pulse,
}

impl Renewal {
    fn run(&self, is_over: &AtomicBool) {
        let mut connection = None;
        let mut is_silent = false;
        while !is_over.load(Ordering::Relaxed) {
            let renewed = if self.pulse.is_stuck() { Ok(true) } else { self.renew(&mut connection) };
            match renewed {
                Ok(was_there) => {
                    is_silent = false;
                    if !was_there {
                        self.wake.notify_one();
                    }
                    std::thread::park_timeout(self.ttl / 6);
                }
                Err(error) => {
                    connection = None;
                    if !is_silent {
                        tracing::warn!(%error, "the lease cannot be renewed");
                        is_silent = true;
                    }
                    std::thread::park_timeout(Duration::from_millis(500));
                }
            }
        }
    }

    /// Returns whether the lease was still there.
    fn renew(&self, connection: &mut Option<redis::Connection>) -> Result<bool, redis::RedisError> {
        if connection.is_none() {
            let fresh = self.client.get_connection_with_timeout(self.timeout)?;
            fresh.set_read_timeout(Some(self.timeout))?;
            fresh.set_write_timeout(Some(self.timeout))?;
            *connection = Some(fresh);
        }
        let connection = connection.as_mut().expect("it was made above");
        RENEW
            .key(self.identity.lease_key())
            .key("sidebake:owners")
            .key("sidebake:suspects")
            .arg(self.identity.to_string())
            .arg(self.ttl.as_millis() as u64)
            .invoke::<i64>(connection)
            .map(|renewed| renewed == 1)
    }
}
