//! Whether a running docker-buildx still receives data from its pod.
//!
//! buildx before 0.36 waits forever when its connection to the pod breaks. Every version does when the connection stays open
//! and carries nothing. The exec connection has a keepalive each way every 5 s, also while a step is silent (client-go's SPDY
//! ping), so the kernel knows: the connection that sent last is the exec connection, and its last received byte is the last
//! sign of the pod.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::bake::Run;
use crate::connections::{self, Connection};

/// How often the connections are checked.
const LOOK: Duration = Duration::from_millis(500);

/// A keepalive is sent every 5 s: two missed ones, and a margin for a busy machine.
const KEEPALIVE_MISSED: Duration = Duration::from_secs(11);

/// Before the builder has begun there may be no exec connection yet. buildx needs 20 s to report why.
const NOT_BEGUN: Duration = Duration::from_secs(25);

/// How long there may be no connection at all. buildx 0.36 notices sooner and exits by itself.
const GRACE: Duration = Duration::from_secs(3);

/// What the kernel says of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Symptom {
    /// A connection to the API server was closed: the exec connection, or one that was no longer used.
    Dropped,
    /// The exec connection is gone, and buildx did not notice.
    Cut,
    /// The exec connection is open, and nothing was received on it for this long.
    Stalled(Duration),
}

/// A docker-buildx that is watched.
pub(super) struct Watch<'a> {
    api: &'a [SocketAddr],
    run: &'a Run,
    patience: Duration,
    n_before: usize,
    gone_since: Option<Instant>,
}

impl<'a> Watch<'a> {
    /// Watches the connections to `api` of the process that will be in `run`.
    pub(super) fn new(api: &'a [SocketAddr], run: &'a Run, patience: Duration) -> Self {
        Self { api, run, patience, n_before: 0, gone_since: None }
    }

    /// Waits for the next symptom. Nothing is lost when this is dropped and called again.
    pub(super) async fn next(&mut self) -> Symptom {
        loop {
            sleep(LOOK).await;
            let Some(pid) = self.run.pid.get() else { continue };
            // Without them, the session's probe of BuildKit and the time limit remain.
            let Ok(connections) = connections::of(*pid) else { continue };
            let to_api: Vec<_> = connections.into_iter().filter(|one| self.api.contains(&one.peer)).collect();
            if let Some(symptom) = self.judge(&to_api, Instant::now()) {
                return symptom;
            }
        }
    }

    fn judge(&mut self, connections: &[Connection], now: Instant) -> Option<Symptom> {
        let n_before = self.n_before;
        self.n_before = connections.len().max(n_before.min(1));
        let Some(exec) = connections.iter().min_by_key(|one| one.since_sent) else {
            // Nothing is lost before the first connection.
            if n_before == 0 {
                return None;
            }
            let Some(since) = self.gone_since else {
                self.gone_since = Some(now);
                return Some(Symptom::Dropped);
            };
            return (now - since >= GRACE).then_some(Symptom::Cut);
        };
        self.gone_since = None;
        let silence = if self.run.has_begun.get().is_some() { KEEPALIVE_MISSED } else { NOT_BEGUN };
        if exec.since_sent > silence {
            Some(Symptom::Cut)
        } else if exec.since_received > self.patience {
            Some(Symptom::Stalled(exec.since_received))
        } else {
            (connections.len() < n_before).then_some(Symptom::Dropped)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(since_sent_s: u64, since_received_s: u64) -> Connection {
        let peer = SocketAddr::from(([127, 0, 0, 1], 6443));
        let seconds = Duration::from_secs;
        Connection { peer, since_sent: seconds(since_sent_s), since_received: seconds(since_received_s) }
    }

    #[test]
    fn the_connection_that_sends_is_the_one_that_is_judged() {
        let run = Run::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::new(&[], &run, Duration::from_secs(20));
        let (idle, live) = (connection(60, 60), connection(4, 4));
        assert_eq!(watch.judge(&[], start), None, "not connected yet");
        assert_eq!(watch.judge(&[idle, live], start), None, "an idle connection beside the exec connection");
        assert_eq!(watch.judge(&[idle, connection(4, 21)], start), Some(Symptom::Stalled(Duration::from_secs(21))));
        assert_eq!(watch.judge(&[live], start), Some(Symptom::Dropped));
        assert_eq!(watch.judge(&[live], start), None, "reported once");
        assert_eq!(watch.judge(&[connection(12, 12)], start), None, "there may be no exec connection yet");
        run.has_begun.set(()).expect("once");
        assert_eq!(watch.judge(&[connection(12, 12)], start), Some(Symptom::Cut), "no keepalive is sent any more");
        assert_eq!(watch.judge(&[], at(1)), Some(Symptom::Dropped), "buildx may notice by itself");
        assert_eq!(watch.judge(&[], at(3)), None);
        assert_eq!(watch.judge(&[], at(4)), Some(Symptom::Cut));
    }
}
