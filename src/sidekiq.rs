//! Sidekiq's side of the worker: queues, jobs in custody, retries, heartbeat.
//!
//! [`keys`] lists every key in Redis. [`custody`] fetches and settles jobs; [`lease`] and [`recovery`] save the jobs of workers
//! that die; [`poller`] moves jobs whose time has come. [`payload`] reads and edits a job's text, [`shown`] decides what
//! Sidekiq can show. Follows Sidekiq 8.1.

mod apart;
pub mod cancel;
mod contention;
pub mod custody;
pub mod fair;
pub mod fence;
mod fields;
pub mod heartbeat;
pub mod inflight;
pub mod iteration;
pub mod keys;
pub mod lease;
mod ledger;
pub mod limits;
pub mod line;
pub mod load;
mod memory;
pub mod metrics;
pub mod newest;
pub mod order;
mod part;
pub mod payload;
pub mod poller;
pub mod processes;
pub mod queued;
mod reconcile;
pub mod recovery;
pub mod retry;
pub mod rights;
pub mod running;
pub mod scout;
pub mod settlement;
pub mod shard;
pub mod shown;
pub mod tenant;
pub mod turn;
pub mod twins;
pub mod waiting;
pub mod warm;
pub mod watch;

use crate::hex;

/// The name under which Sidekiq's API and Web UI know this process: `host:pid:nonce`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The host's name, or `DYNO`, as in Sidekiq.
    pub hostname: String,
    /// Process id.
    pub pid: u32,
    nonce: String,
}

impl Identity {
    /// An identity that no other process has, now or later.
    pub fn new(hostname: String) -> Self {
        Self { hostname, pid: std::process::id(), nonce: hex::random::<6>() }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.hostname, self.pid, self.nonce)
    }
}
