//! The search for a working directory that leads to a good pod.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::{Loss, Route, Session};
use crate::builder::BuilderError;
use crate::builder::choice::{Choice, Lead, Rank, ring};
use crate::builder::pod::{PodError, Refusal, Worker};
use crate::settings::Balance;
use crate::state;

/// How many working directories are tried to reach a good pod: the usual one, and others. A pod can have nine of ten of them.
const N_DIRECTORIES: usize = 25;

/// How many pods are asked at once. The bake does not run yet, and its memory is room for two of them.
const N_AT_ONCE: usize = 3;

/// For the answer of a healthy pod; a wedged one has none.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

/// What a search for a good pod found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::builder) enum Search {
    /// A working directory from which to bake.
    Found,
    /// No pod answered.
    Silent,
    /// No good pod, but Kubernetes or a pod answered something.
    Undecided,
}

/// What came back from a working directory.
#[derive(Debug)]
enum Answer {
    /// The pod of this name.
    Pod(String),
    /// A BuildKit whose host name is not the name of a pod: its pod is on the host's network, has a host name of its own, or is
    /// new.
    Stranger,
    /// Nothing, in time.
    Silent,
    /// Why BuildKit could not be asked.
    Failed(PodError),
    /// It was not asked before the deadline.
    Unasked,
}

impl Session<'_> {
    /// Finds a working directory that leads to a good pod.
    ///
    /// Asks nothing while every pod is as good as any. After a loss, and when it is called again, the pod has to answer.
    pub(in crate::builder) async fn find_pod(
        &mut self,
        loss: Option<&Loss>,
        is_again: bool,
        deadline: Instant,
    ) -> Result<Search, BuilderError> {
        let Some(pods) = &self.pods else { return Ok(Search::Found) };
        let lost = loss.and_then(|loss| loss.pod.as_deref());
        let choice = Choice::among(&pods.before, pods.n_wanted, |pod| self.node.is_shunned(&pod.uid), lost);
        let has_to_answer = loss.is_some() || is_again;
        let usual = self.location.working_directory.clone();
        let leads_nowhere = self.node.lead(&choice.ring, &usual) == Lead::Nowhere;
        if choice.is_free() && !has_to_answer && !leads_nowhere {
            self.recall_pod();
            return Ok(Search::Found);
        }
        if self.balance == Balance::Random {
            // Only with the other rule does a directory lead to a pod.
            self.balance = Balance::Sticky;
            self.write_record()?;
        }
        let mut second_best = None;
        let (mut is_silent, mut has_names) = (true, false);
        // Most builds need no other directory than the usual one.
        for first in std::iter::once(0).chain((1..N_DIRECTORIES).step_by(N_AT_ONCE)) {
            if first > 0 && Instant::now() >= deadline {
                break;
            }
            let (mut has_stranger, mut is_refused) = (false, false);
            for (directory, answer) in self.leads(&usual, first, &choice, has_to_answer, deadline).await? {
                is_silent &= matches!(answer, Answer::Silent);
                match answer {
                    Answer::Pod(pod) => {
                        has_names = true;
                        match choice.rank(&pod) {
                            Some(Rank::Preferred) => {
                                self.take(directory, pod, loss);
                                return Ok(Search::Found);
                            }
                            Some(Rank::Usable) => {
                                second_best.get_or_insert((directory, pod));
                            }
                            None => {}
                        }
                    }
                    Answer::Stranger => has_stranger = true,
                    Answer::Failed(error) => is_refused |= self.is_refused(error)?,
                    Answer::Silent | Answer::Unasked => {}
                }
            }
            if has_stranger && !has_names {
                // Host names tell no pods here, so no directory is better than the usual one.
                return Ok(Search::Found);
            }
            if is_refused {
                break;
            }
        }
        match second_best {
            Some((directory, pod)) => {
                self.take(directory, pod, loss);
                Ok(Search::Found)
            }
            None if is_silent => Ok(Search::Silent),
            None => Ok(Search::Undecided),
        }
    }

    /// Sets the pod without asking, when it is the only one or when the same choice was made before.
    fn recall_pod(&self) {
        let Some(pods) = &self.pods else { return };
        let ring = ring(&pods.before);
        let known = match (ring.as_slice(), self.balance) {
            ([(only, _)], _) => Some(only.clone()),
            (_, Balance::Random) => None,
            (_, Balance::Sticky) => match self.node.lead(&ring, &self.location.working_directory) {
                Lead::To(pod) => Some(pod),
                Lead::Nowhere | Lead::Unknown => None,
            },
        };
        if let Some(pod) = known {
            self.is_on(pod);
        }
    }

    /// Whether Kubernetes refuses for now: it would refuse the other directories as well. What it forbids is an error.
    fn is_refused(&self, error: PodError) -> Result<bool, BuilderError> {
        tracing::debug!(builder = self.node.builder, %error, "could not ask BuildKit for its pod's name");
        match error.refusal() {
            Some(Refusal::Forbidden) => Err(self.node.forbidden(&error)),
            refusal => Ok(refusal.is_some()),
        }
    }

    /// To which pods some working directories lead: the usual one has number 0. Their pods are asked at once.
    async fn leads(
        &self,
        usual: &Path,
        first: usize,
        choice: &Choice,
        has_to_answer: bool,
        deadline: Instant,
    ) -> Result<Vec<(PathBuf, Answer)>, BuilderError> {
        let lead = |directory| self.lead(directory, choice, has_to_answer, deadline);
        if first == 0 {
            return Ok(vec![(usual.to_owned(), lead(usual).await)]);
        }
        let directories: [PathBuf; N_AT_ONCE] =
            std::array::from_fn(|n| usual.join(format!(".detour-{}", first + n - 1)));
        directories.iter().try_for_each(|directory| state::make_private(directory))?;
        let answers = tokio::join!(lead(&directories[0]), lead(&directories[1]), lead(&directories[2]));
        Ok(directories.into_iter().zip(<[_; N_AT_ONCE]>::from(answers)).collect())
    }

    /// To which pod a working directory leads. What was learned before counts while the pods stay the same.
    async fn lead(&self, directory: &Path, choice: &Choice, has_to_answer: bool, deadline: Instant) -> Answer {
        match self.node.lead(&choice.ring, directory) {
            // A pod that takes no build need not answer.
            Lead::To(pod) if !has_to_answer || choice.rank(&pod).is_none() => return Answer::Pod(pod),
            Lead::Nowhere if !has_to_answer => return Answer::Silent,
            _ => {}
        }
        // Neither credentials nor other builds count as a pod's silence.
        let prepared = async {
            self.renew_access().await;
            self.node.api.dials.acquire().await
        };
        let Ok(Ok(_permit)) = timeout_at(deadline, prepared).await else { return Answer::Unasked };
        let (answer, learned) = match timeout(ALIVE_WITHIN, self.ask(directory)).await {
            Ok(Ok(Worker { hostname: pod, .. })) if choice.has(&pod) => (Answer::Pod(pod.clone()), Some(pod)),
            Ok(Ok(_)) => return Answer::Stranger,
            // An error says nothing about the pod: Kubernetes may refuse, or docker-buildx may fail.
            Ok(Err(error)) => return Answer::Failed(error),
            Err(_) => (Answer::Silent, None),
        };
        self.node.learn(&choice.ring, directory, learned);
        answer
    }

    /// Bakes from this working directory, which leads to this pod.
    fn take(&mut self, directory: PathBuf, pod: String, loss: Option<&Loss>) {
        if directory != self.location.working_directory {
            self.route = if loss.is_some() { Route::AfterLoss } else { Route::Around };
            self.location.working_directory = directory;
        }
        self.is_on(pod);
    }
}
