//! Redis as Sidekiq uses it, and what we add to it: every key.
//!
//! | key | type | who writes | content | TTL |
//! |---|---|---|---|---|
//! | `queues` | set | clients, us | queue names | – |
//! | `queue:<q>` | list | clients push left, workers take right | job texts | – |
//! | `paused` | set | Sidekiq Pro | names of queues that nobody fetches from | – |
//! | `retry`, `schedule` | zset | workers; clients | job texts by due time, float seconds | – |
//! | `dead` | zset | workers | job texts by time of death | trimmed by age and count |
//! | `processes`, `<identity>` | set, hash | heartbeat | what the Web UI shows | 60 s |
//! | `process_cleanup` | string | poller, Ruby | one process prunes the list at a time | 60 s |
//! | `<identity>:work`, `<identity>:workers` | hash | heartbeat | running jobs | 60 s |
//! | `<identity>-signals` | list | the Web UI | `TSTP`, `TERM`, `TTIN` | 60 s |
//! | `it-<jid>` | hash | iteration, `cancel!` of Ruby's client | how far a running job is; `cancelled` | 30 days |
//! | `stat:processed`, `stat:failed`, and `…:<UTC day>` | string | settle | counters | 5 years (days) |
//! | `j\|…` | hash | metrics | how often each class ran | 8 hours, 3 days |
//! | `<class>-…`, `h\|<class>-…` | string | metrics | how long it took, Sidekiq 7 and 8 | 8 hours |
//! | `sidebake:inflight:<identity>` | hash | turn, begin, recovery | token, with `:idle` while the job does not run → queue, newline, job text | – |
//! | `sidebake:owners` | set | lease | identities that may hold jobs | – |
//! | `sidebake:lease:<identity>` | string | lease, turn | incarnation, and number of the last turn | the lease |
//! | `sidebake:suspects` | hash | recovery, lease | identity → ms since the epoch, Redis' clock; negative or 0: it was told to stop; -1 as well: it was counted already, and some of its jobs are left | – |
//! | `sidebake:recoveries` | hash | recovery, which drops the old | sha1 of a job text → how often recovered, how often of that the only one that had begun, and when; then the run that was counted last: whether it was alone (0/1), identity, token | 72 h |
//! | `sidebake:apart` | set | turn, which fetches and settles; recovery, lease | identities of the processes that hold a suspect job | – |
//! | `sidebake:interruptions` | hash | settle; recovery drops the old | sha1 of a job text → how often killed by a stop, and when | 72 h |
//! | `sidebake:scan` | string | recovery | one scanner at a time | a sixth of the lease |
//!
//! An entry is in exactly one of queue, in flight, retry and dead; every move is one script. Job texts are carried as
//! they are, but that of two equal entries of one sorted set the second ends in white space. Follows Sidekiq 8.1.

mod apart;
pub mod cancel;
pub mod custody;
pub mod fence;
mod fields;
pub mod heartbeat;
pub mod iteration;
pub mod lease;
mod memory;
pub mod metrics;
pub mod order;
pub mod payload;
pub mod poller;
mod reconcile;
pub mod recovery;
mod remembered;
pub mod retry;
pub mod rights;
pub mod shown;
pub mod turn;

/// The name under which Sidekiq's API and Web UI know this process: `host:pid:nonce`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// As in Sidekiq: `DYNO` in place of the host's name is read in `main`.
    pub hostname: String,
    /// Process id.
    pub pid: u32,
    nonce: String,
}

impl Identity {
    /// An identity that no other process has, now or later.
    pub fn new(hostname: String) -> Self {
        Self { hostname, pid: std::process::id(), nonce: random_hex::<6>() }
    }

    pub(crate) fn inflight_key(&self) -> String {
        format!("sidebake:inflight:{self}")
    }

    pub(crate) fn lease_key(&self) -> String {
        format!("sidebake:lease:{self}")
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.hostname, self.pid, self.nonce)
    }
}

/// `N` random bytes as lower-case hexadecimal digits: jids (12 bytes) and tokens.
pub fn random_hex<const N: usize>() -> String {
    rand::random::<[u8; N]>().iter().map(|byte| format!("{byte:02x}")).collect()
}
