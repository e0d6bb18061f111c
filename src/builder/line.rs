//! Whether a running docker-buildx still hears from its pod.
//!
//! buildx before 0.36 waits for ever when its line to the pod breaks, and every version does when the line stays open and
//! nothing comes through it. But the exec line carries a sign of life each way every 5 s, also while a step is silent
//! (client-go's SPDY ping), so the kernel knows: the connection on which something was sent last is the line, and how
//! long ago something arrived on it is how long the pod has not been heard from.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::bake::Run;
use crate::connections::{self, Connection};

/// How often the connections are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The sign of life is sent every 5 s. Twice missed, and something for a busy machine.
const PING_MISSED: Duration = Duration::from_secs(11);

/// Before the builder has begun there may be no line yet. buildx needs 20 s to say why it cannot be had.
const NOT_BEGUN: Duration = Duration::from_secs(25);

/// How long no connection at all may be there: buildx 0.36 needs less to notice it and end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// What became of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// A connection to the API server has gone: perhaps the line, perhaps one that was no longer used.
    Dropped,
    /// The line has gone, and buildx did not notice.
    Cut,
    /// The line is there, and nothing has come through it for this long.
    Stalled(Duration),
}

/// A docker-buildx that is watched.
pub(super) struct Line<'a> {
    api: &'a [SocketAddr],
    run: &'a Run,
    patience: Duration,
    n_before: usize,
    gone_since: Option<Instant>,
}

impl<'a> Line<'a> {
    /// Watches the connections to `api` of the process that will be in `run`.
    pub(super) fn new(api: &'a [SocketAddr], run: &'a Run, patience: Duration) -> Self {
        Self { api, run, patience, n_before: 0, gone_since: None }
    }

    /// Waits for the next sign. Nothing is lost when this is dropped and called again.
    pub(super) async fn sign(&mut self) -> Sign {
        loop {
            sleep(LOOK).await;
            let Some(pid) = self.run.pid.get() else { continue };
            // What cannot be seen says nothing; asking BuildKit itself and the limit on time remain.
            let Ok(connections) = connections::of(*pid) else { continue };
            let to_api: Vec<_> = connections.into_iter().filter(|one| self.api.contains(&one.peer)).collect();
            if let Some(sign) = self.judge(&to_api, Instant::now()) {
                return sign;
            }
        }
    }

    fn judge(&mut self, connections: &[Connection], now: Instant) -> Option<Sign> {
        let n_before = self.n_before;
        self.n_before = connections.len().max(n_before.min(1));
        let Some(line) = connections.iter().min_by_key(|one| one.since_sent) else {
            // Before the first connection there is nothing to lose.
            if n_before == 0 {
                return None;
            }
            let Some(since) = self.gone_since else {
                self.gone_since = Some(now);
                return Some(Sign::Dropped);
            };
            return (now - since >= GRACE).then_some(Sign::Cut);
        };
        self.gone_since = None;
        let silence = if self.run.has_begun.get().is_some() { PING_MISSED } else { NOT_BEGUN };
        if line.since_sent > silence {
            Some(Sign::Cut)
        } else if line.since_received > self.patience {
            Some(Sign::Stalled(line.since_received))
        } else {
            (connections.len() < n_before).then_some(Sign::Dropped)
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
    fn a_line_is_judged_by_the_connection_that_sends() {
        let run = Run::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut line = Line::new(&[], &run, Duration::from_secs(20));
        let (idle, live) = (connection(60, 60), connection(4, 4));
        assert_eq!(line.judge(&[], start), None, "not connected yet");
        assert_eq!(line.judge(&[idle, live], start), None, "an idle connection beside the line");
        assert_eq!(line.judge(&[idle, connection(4, 21)], start), Some(Sign::Stalled(Duration::from_secs(21))));
        assert_eq!(line.judge(&[live], start), Some(Sign::Dropped));
        assert_eq!(line.judge(&[live], start), None, "told once");
        assert_eq!(line.judge(&[connection(12, 12)], start), None, "there may be no line yet");
        run.has_begun.set(()).expect("once");
        assert_eq!(line.judge(&[connection(12, 12)], start), Some(Sign::Cut), "nobody pings any more");
        assert_eq!(line.judge(&[], at(1)), Some(Sign::Dropped), "buildx may notice by itself");
        assert_eq!(line.judge(&[], at(3)), None);
        assert_eq!(line.judge(&[], at(4)), Some(Sign::Cut));
    }
}
