//! One build: the integrations in order.

mod worktree;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;

use crate::bake::{Bake, BakeRequest, Definition, Goal, Outcome};
use crate::builder::{Builders, Loss, Session};
use crate::event::{Event, Phase, Status};
use crate::github::App;
use crate::job::{Build, BuildJob};
use crate::journal::Journal;
use crate::reason::{Cause, End, Failure, Reason};
use crate::settings::Settings;
use crate::source::{Source, Worktree};
use crate::state::{JobDirectory, StateDirectory};
use crate::stop::Stop;

pub use worktree::tell_of_submodules;

use worktree::{check_out, mint};

/// How often a build whose builder fails is tried on another pod before it goes back to Sidekiq's retry set.
const N_OTHER_PODS: u32 = 3;

/// The integrations that a build passes.
#[derive(Debug)]
pub struct Integrations {
    /// GitHub.
    pub github: App,
    /// git.
    pub source: Source,
    /// The builders.
    pub builders: Builders,
    /// buildx.
    pub bake: Bake,
    /// This machine's disk.
    pub state: Arc<StateDirectory>,
}

impl Integrations {
    /// Makes the integrations from the settings.
    pub fn new(settings: &Settings, state: Arc<StateDirectory>) -> Result<Self, reqwest::Error> {
        Ok(Self {
            github: App::new(settings.github.clone())?,
            source: Source::new(settings),
            builders: Builders::new(settings),
            bake: Bake::new(settings),
            state,
        })
    }
}

/// Who is looking, and who may end it.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Where everything is told.
    pub journal: &'a Journal,
    /// Kills whatever runs.
    pub stop: &'a Stop,
    /// Knows whether the job is still ours; none where nobody could take it.
    pub fence: Option<&'a dyn Fence>,
}

/// What can tell that a job was given to another worker.
pub trait Fence: std::fmt::Debug + Send + Sync {
    /// Whether the job is ours, as far as can be known.
    fn holds(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

/// Builds what a job asks for. What is known is told as soon as it is, so that the report of a failure has it too.
pub async fn perform(integrations: &Integrations, job: &BuildJob, attempt: Attempt<'_>) -> Result<(), End> {
    job.notices.iter().for_each(|notice| attempt.journal.tell(Event::Notice(notice.clone())));
    let token = attempt.unless_stopped(mint(integrations, job, &job.build.repository, attempt)).await??;
    let directory = integrations.state.job_directory()?;
    let built = async {
        let worktree = check_out(integrations, job, token, &directory, attempt).await?;
        bake(integrations, &job.build, &worktree, &directory, attempt).await
    }
    .await;
    directory.remove().await;
    built
}

/// Bakes a worktree, wherever it came from.
pub async fn bake(
    integrations: &Integrations,
    build: &Build,
    worktree: &Worktree,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<(), End> {
    let definition = resolve(integrations, build, worktree, directory, attempt).await?;
    attempt.journal.tell(Event::Targets(definition.names().len()));
    let _phase = attempt.journal.begin(Phase::Bake);
    solve(integrations, build, &definition, directory, attempt).await
}

/// The definition that a worktree is built by, once it is known to be allowed.
pub async fn resolve(
    integrations: &Integrations,
    build: &Build,
    worktree: &Worktree,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<Definition, End> {
    let phase = attempt.journal.begin(Phase::Print);
    let request = BakeRequest { build, worktree: &worktree.path, sha: worktree.sha.as_ref() };
    let definition = integrations.bake.resolve(&request, directory, attempt.stop.token()).await;
    drop(phase);
    let definition = refuse_pointers(definition?, worktree).await?;
    definition.notices.iter().for_each(|notice| attempt.journal.tell(Event::Notice(notice.clone())));
    Ok(definition)
}

/// An image would get the pointers' text in place of their files, and nobody would be told.
async fn refuse_pointers(definition: Definition, worktree: &Worktree) -> Result<Definition, End> {
    if worktree.lfs_pointers.is_empty() {
        return Ok(definition);
    }
    let pointers = worktree.lfs_pointers.clone();
    let search = move || {
        let inputs: Vec<PathBuf> = definition.inputs(&pointers).into_iter().map(Path::to_owned).collect();
        (definition, inputs)
    };
    let (definition, inputs) = spawn_blocking(search).await.expect("the search does not panic");
    let Some(first) = inputs.first() else { return Ok(definition) };
    let more = if inputs.len() > 1 { format!(", like {} more,", inputs.len() - 1) } else { String::new() };
    let detail = format!(
        "{}{more} is a Git LFS pointer, and its content is not fetched: commit the file itself, or keep it out of the build \
         context",
        first.display()
    );
    Err(Failure::new(Reason::SourceRefused, detail).into())
}

/// Solves until the build's own result is known: when the builder fails, what is not built yet is tried on another pod.
async fn solve(
    integrations: &Integrations,
    build: &Build,
    definition: &Definition,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<(), End> {
    let mut targets = definition.names();
    let mut unfinished = targets.clone();
    let (mut lost, mut n_left) = (None::<Loss>, N_OTHER_PODS);
    let mut time_left = integrations.bake.time_limit(build);
    loop {
        // Waiting for a builder is not the build's time.
        let session = integrations.builders.place(build, &integrations.state, directory, lost.as_ref()).await?;
        attempt.journal.tell(Event::Placed(session.placement()));
        // The push of a tag that moves cannot be taken back, so this is asked as late as can be.
        if let Some(fence) = attempt.fence
            && !fence.holds().await
        {
            attempt.stop.because(Cause::Reclaimed);
            return Err(End::Stopped);
        }
        let started = Instant::now();
        let goal = Goal { definition, targets: &targets, deadline: started + time_left };
        let (outcome, loss) = solve_watched(integrations, build, goal, &session, directory, attempt).await?;
        time_left = time_left.saturating_sub(started.elapsed());
        attempt.journal.tell(Event::Placed(session.placement()));
        attempt.journal.tell(Event::ContextSent { n_bytes: outcome.context_bytes });
        for target in outcome.targets {
            let is_built = target.status == Some(Status::Succeeded);
            if is_built {
                unfinished.remove(&target.name)
            } else {
                unfinished.insert(target.name.clone())
            };
            attempt.journal.tell(Event::TargetEnded(target));
        }
        let Some(loss) = loss.filter(|_| n_left > 0 && session.has_others() && !time_left.is_zero()) else {
            return match (outcome.end, lost) {
                // The time went with the pod.
                (Some(End::Failed(failure)), Some(lost)) if failure.reason == Reason::TimedOut => {
                    Err(lost.failure.into())
                }
                (end, _) => end.map_or(Ok(()), Err),
            };
        };
        let rest = if unfinished.is_empty() {
            "everything was built already"
        } else {
            "what was not built yet is built again"
        };
        attempt.journal.tell(Event::Notice(format!("{}; {rest}", loss.failure.detail)));
        if unfinished.is_empty() {
            return Ok(());
        }
        targets = definition.with_linked(&unfinished);
        // A build that eats a pod's memory should not eat that of every other.
        n_left = if loss.is_out_of_memory() { 0 } else { n_left - 1 };
        lost = Some(loss);
    }
}

/// One run of docker-buildx, with the builder watched from the side: buildx itself may not notice that its pod has gone.
async fn solve_watched(
    integrations: &Integrations,
    build: &Build,
    goal: Goal<'_>,
    session: &Session<'_>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<(Outcome, Option<Loss>), End> {
    let stop = attempt.stop.token().child_token();
    let solve = integrations.bake.solve(build, goal, &session.location, directory, attempt.journal, &stop);
    tokio::pin!(solve);
    // Dropping the watch loses nothing. The solve is never dropped: what it has learned is in its outcome.
    let lost = tokio::select! {
        outcome = &mut solve => Err(outcome),
        loss = session.lost() => Ok(loss),
    };
    let (mut outcome, lost) = match lost {
        Err(outcome) => (outcome?, None),
        Ok(loss) => {
            stop.cancel();
            (solve.await?, Some(loss))
        }
    };
    let loss = match (&outcome.end, lost) {
        (None, _) => return Ok((outcome, None)),
        _ if attempt.stop.cause().is_some() => None,
        // Killed by us. When it ended by itself in the same moment, its own word counts.
        (Some(End::Stopped), lost) => lost,
        (Some(End::Failed(failure)), _) => session.post_mortem(failure).await,
    };
    outcome.end = loss.as_ref().map(|loss| loss.failure.clone().into()).or(outcome.end);
    Ok((outcome, loss))
}

impl Attempt<'_> {
    /// Waits for what does not listen to `stop` itself, and loses nothing when it is dropped.
    async fn unless_stopped<T>(self, asked: impl Future<Output = T>) -> Result<T, End> {
        self.stop.token().run_until_cancelled(asked).await.ok_or(End::Stopped)
    }
}
