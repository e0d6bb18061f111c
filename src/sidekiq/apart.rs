//! Jobs that were recovered from dead workers wait here until they may begin.
//!
//! Recovery counts a crash against jobs that had begun. So each of these jobs begins only after Redis has recorded it. A
//! *suspect* was recovered more than once. It begins only when nothing else runs: if its worker crashes then, the suspect is
//! the cause. A process holds one suspect at most.

use super::inflight::Token;
use super::running::Running;

/// The waiting jobs, and the suspect that waits or runs.
#[derive(Debug, Default)]
pub(super) struct Apart {
    waiting: Vec<Running>,
    suspect: Option<Token>,
}

/// Jobs that no longer wait.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Another worker owns them.
    pub reclaimed: Vec<Running>,
    /// They end without having begun, as poison or as cancelled.
    pub over: Vec<Running>,
    /// They may begin.
    pub ready: Vec<Running>,
}

impl Apart {
    /// Adds a job that Redis has not recorded as begun.
    pub(super) fn wait(&mut self, running: Running) {
        if running.unit.is_suspect() {
            self.suspect = Some(running.unit.token.clone());
        }
        self.waiting.push(running);
    }

    /// Whether a suspect waits or runs: nothing is fetched, and nothing else begins.
    pub(super) fn has_suspect(&self) -> bool {
        self.suspect.is_some()
    }

    /// Whether anything waits.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Notes that the job under this token has ended, or was reclaimed.
    pub(super) fn end(&mut self, token: &Token) {
        self.suspect.take_if(|suspect| suspect == token);
    }

    /// Takes out all waiting jobs, to be requeued.
    pub(super) fn give_up(&mut self) -> Vec<Running> {
        self.suspect = None;
        std::mem::take(&mut self.waiting)
    }

    /// Takes out the jobs that need not wait any longer. `n_running` counts all jobs in custody, waiting ones included.
    pub(super) fn due(&mut self, n_running: usize) -> Due {
        let mut due = Due::default();
        for running in std::mem::take(&mut self.waiting) {
            let kind = if running.reclaimed.is_cancelled() {
                &mut due.reclaimed
            } else if running.unit.is_poison() || running.iteration.cancelled.is_cancelled() {
                &mut due.over
            } else if !running.unit.is_suspect() || n_running == 1 {
                &mut due.ready
            } else {
                &mut self.waiting
            };
            kind.push(running);
        }
        due
    }

    /// Ends when the suspect is cancelled while it waits; otherwise never.
    pub(super) async fn is_cancelled(&self) {
        match self.waiting.iter().find(|running| running.unit.is_suspect()) {
            Some(running) => running.iteration.cancelled.cancelled().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Epoch;
    use crate::sidekiq::inflight::UnitOfWork;

    fn running(n_recoveries: u32, n_crashes: u32) -> Running {
        let unit =
            UnitOfWork { n_recoveries, n_crashes, is_idle: true, ..UnitOfWork::fetched(u64::from(n_recoveries), b"") };
        Running::new(unit, Epoch::from_secs_f64(0.0))
    }

    fn recoveries(all: &[Running]) -> Vec<u32> {
        all.iter().map(|running| running.unit.n_recoveries).collect()
    }

    #[test]
    fn a_suspect_waits_until_it_is_the_only_one_and_others_do_not() {
        let mut apart = Apart::default();
        [running(1, 1), running(2, 0)].into_iter().for_each(|one| apart.wait(one));
        let due = apart.due(4);
        assert_eq!((recoveries(&due.ready), apart.has_suspect(), apart.is_waiting()), (vec![1], true, true));
        assert!(apart.due(2).ready.is_empty());
        assert_eq!(recoveries(&apart.due(1).ready), [2]);
        assert!(apart.has_suspect() && !apart.is_waiting(), "it runs, and nothing is fetched");
        apart.end(&Token::nth(1, 0));
        assert!(apart.has_suspect());
        apart.end(&Token::nth(2, 0));
        assert!(!apart.has_suspect());
    }

    #[test]
    fn poison_and_cancelled_jobs_end_and_reclaimed_ones_leave_while_others_run() {
        let mut apart = Apart::default();
        let (poison, cancelled, lost) = (running(5, 3), running(3, 0), running(2, 0));
        cancelled.iteration.cancelled.cancel();
        lost.reclaimed.cancel();
        [poison, cancelled, lost].into_iter().for_each(|one| apart.wait(one));
        let due = apart.due(9);
        assert_eq!((recoveries(&due.over), recoveries(&due.reclaimed)), (vec![5, 3], vec![2]));
        assert!(due.ready.is_empty() && !apart.is_waiting());
    }
}
