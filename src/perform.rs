//! One build: the integrations in order.

mod caching;
mod warm;
mod worktree;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::bake::{Bake, BakeRequest, Definition, Goal, Outcome};
use crate::builder::{Builders, Fleet, Loss, PlaceRequest, Session};
use crate::event::{Event, Phase};
use crate::github::App;
use crate::job::{Build, BuildJob};
use crate::journal::Journal;
use crate::last_builds::LastBuilds;
use crate::network::ClientError;
use crate::reason::{Cause, End, Failure, Reason};
use crate::settings::Settings;
use crate::source::{Worktree, Worktrees};
use crate::state::{JobDirectory, StateDirectory};
use crate::stop::Stop;

pub use caching::Caching;
pub use warm::AskBases;
pub use worktree::{authorize, notify_of_encodings, notify_of_submodules};

use caching::Run;
use worktree::{check_out, mint};

/// How often a build is tried on another pod when its builder is lost, before it goes back to Sidekiq's retry set.
const N_OTHER_PODS: u32 = 3;

/// The integrations of a build.
#[derive(Debug)]
pub struct Integrations {
    /// GitHub.
    pub github: App,
    /// git.
    pub source: Worktrees,
    /// The builders.
    pub builders: Builders,
    /// buildx.
    pub bake: Bake,
    /// What is remembered of earlier builds.
    pub last_builds: LastBuilds,
    /// This machine's disk.
    pub state: Arc<StateDirectory>,
}

impl Integrations {
    /// Creates the integrations from the settings.
    pub fn new(settings: &Settings, last_builds: LastBuilds, state: Arc<StateDirectory>) -> Result<Self, ClientError> {
        Ok(Self {
            github: App::new(settings)?,
            source: Worktrees::new(settings),
            builders: Builders::new(settings),
            bake: Bake::new(settings),
            last_builds,
            state,
        })
    }
}

/// What a build needs of its attempt: where to report, when to stop, whether the job is still owned.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    /// Receives all events.
    pub journal: &'a Journal,
    /// Stops everything that runs.
    pub stop: &'a Stop,
    /// `None` where no other worker can take the job.
    pub fence: Option<&'a Fence>,
    /// Chooses among shards by the builds of all workers; `None` in `sidebake build`.
    pub fleet: Option<&'a Fleet>,
    /// Asks Redis which base images pods have built; `None` in `sidebake build`.
    pub ask_bases: Option<&'a AskBases>,
}

/// Asks whether the job is still owned, as far as is known.
pub type Fence = dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync;

/// Runs a build job. Facts are emitted as soon as they are known, so the report of a failure has them too.
pub async fn perform(integrations: &Integrations, job: &BuildJob, attempt: Attempt<'_>) -> Result<(), End> {
    job.notices.iter().for_each(|notice| attempt.journal.emit(Event::Notice(notice.clone())));
    let token = attempt.unless_stopped(mint(integrations, job, &job.build.repository, attempt)).await??;
    let caching = attempt.unless_stopped(Caching::read(integrations, job, &token)).await?;
    let directory = integrations.state.job_directory()?;
    let built = async {
        let since = caching.as_ref().map(Caching::commits).unwrap_or_default();
        let worktree = check_out(integrations, job, token, since, &directory, attempt).await?;
        bake(integrations, &job.build, &worktree, caching.as_ref(), &directory, attempt).await
    }
    .await;
    let remember = async {
        if let Some(caching) = caching {
            caching.remember(&integrations.last_builds).await;
        }
    };
    tokio::join!(directory.remove(), remember);
    built
}

/// Bakes a worktree, whatever its origin. Without `caching`, nothing is known of earlier builds.
pub async fn bake(
    integrations: &Integrations,
    build: &Build,
    worktree: &Worktree,
    caching: Option<&Caching>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<(), End> {
    let definition = resolve(integrations, build, worktree, directory, attempt).await?;
    attempt.journal.emit(Event::Targets(definition.names().len()));
    let _phase = attempt.journal.begin(Phase::Bake);
    solve(integrations, build, &definition, caching.map(|caching| (caching, worktree)), directory, attempt).await
}

/// The resolved and validated definition of a worktree.
pub async fn resolve(
    integrations: &Integrations,
    build: &Build,
    worktree: &Worktree,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<Definition, End> {
    let request = BakeRequest { build, worktree: &worktree.path, commit: worktree.commit.as_ref() };
    let definition = integrations.bake.resolve(&request, directory, attempt.journal, attempt.stop.token()).await?;
    refuse_pointers(definition, worktree).await
}

/// Refuses a build that reads Git LFS pointers: its image would get their text in place of the files.
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
    let file = first.display();
    let subject = match inputs.len() - 1 {
        0 => format!("{file} is a Git LFS pointer"),
        1 => format!("{file} and 1 more file are Git LFS pointers"),
        n => format!("{file} and {n} more files are Git LFS pointers"),
    };
    let remedy = "commit the file itself, or exclude it in .dockerignore";
    let detail = format!("{subject}, whose content is not fetched; {remedy}");
    Err(Failure::new(Reason::SourceRefused, detail).into())
}

/// Solves until the build itself succeeds or fails. When the builder is lost, unfinished targets are tried on another pod.
async fn solve(
    integrations: &Integrations,
    build: &Build,
    definition: &Definition,
    caching: Option<(&Caching, &Worktree)>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<(), End> {
    let mut targets = definition.names();
    let mut unfinished = targets.clone();
    let platforms = definition.platforms();
    integrations.bake.check_bases(build, definition, attempt.stop.token()).await?;
    let (mut said, mut ran) = (BTreeSet::new(), BTreeSet::new());
    let (mut lost, mut n_left) = (None::<Loss>, N_OTHER_PODS);
    let mut spent = Duration::ZERO;
    loop {
        let place = integrations.builders.place(PlaceRequest {
            loss: lost.as_ref(),
            fleet: attempt.fleet,
            platforms: &platforms,
            buildx: Some(integrations.bake.version().await?),
            ..PlaceRequest::new(build, &integrations.state, directory)
        });
        let mut session = attempt.unless_stopped(place).await??;
        attempt.journal.emit(Event::Placed(session.placement()));
        let emulated = session.emulated.iter().filter(|notice| said.insert((*notice).clone()));
        emulated.for_each(|notice| attempt.journal.emit(Event::Notice(notice.clone())));
        let goal = Goal { definition, targets: &targets };
        warm::warm(integrations, build, goal, &mut session, directory, attempt).await;
        // Asked as late as possible: the push of a moving tag cannot be undone.
        if let Some(fence) = attempt.fence
            && !fence().await
        {
            attempt.stop.because(Cause::Reclaimed);
            return Err(End::Stopped);
        }
        let started = Instant::now();
        let (outcome, loss) = solve_watched(integrations, build, goal, &session, directory, attempt, spent).await?;
        // What a lost pod has built is in no other pod's cache.
        match loss {
            Some(_) => ran.clear(),
            None => ran.extend(outcome.ran.iter().cloned()),
        }
        spent = if loss.is_some() { Duration::ZERO } else { spent + started.elapsed() };
        attempt.journal.emit(Event::Placed(session.placement()));
        if let Some((caching, worktree)) = caching {
            let (placement, has_pods) = (session.placement(), session.has_pods());
            let run = Run { definition, worktree, outcome: &outcome, placement, has_pods };
            caching.explain(run, attempt.journal).await;
        }
        // A target that was built before may have been built again, for one that is linked to it.
        unfinished = &(&unfinished | &targets) - &outcome.built;
        if outcome.end.is_none() && !unfinished.is_empty() {
            // Each such run has built at least one target. Those are in the registry, so nothing linked to them is built again.
            targets = unfinished.clone();
            continue;
        }
        if outcome.end.is_none() {
            export_caches(integrations, build, Goal { definition, targets: &ran }, &mut session, directory, attempt)
                .await;
            return Ok(());
        }
        let Some(loss) = loss.filter(|_| n_left > 0 && session.has_others()) else {
            return outcome.end.map_or(Ok(()), Err);
        };
        let rest = if unfinished.is_empty() {
            "all targets were already built"
        } else {
            "the other targets are built on another pod"
        };
        attempt.journal.emit(Event::Notice(format!("{}; {rest}", loss.notice)));
        if unfinished.is_empty() {
            return Ok(());
        }
        targets = definition.with_linked(&unfinished);
        // A build that exhausts a pod's memory or disk must not exhaust all others'.
        n_left = if loss.is_used_up { 0 } else { n_left - 1 };
        lost = Some(loss.after(lost));
    }
}

/// Exports caches on the pod of the last run. A failure does not fail the build.
async fn export_caches(
    integrations: &Integrations,
    build: &Build,
    goal: Goal<'_>,
    session: &mut Session<'_>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) {
    let stop = attempt.stop.token().child_token();
    session.begins_again();
    let (bake, journal) = (&integrations.bake, attempt.journal);
    let export = bake.export_caches(build, goal, &session.location, directory, journal, &stop);
    while_watched(session, &stop, export).await;
}

/// Waits for a run of docker-buildx, and stops it when the builder is lost.
async fn while_watched<T>(session: &Session<'_>, stop: &CancellationToken, run: impl Future<Output = T>) -> T {
    tokio::pin!(run);
    tokio::select! {
        result = &mut run => result,
        _ = session.lost() => {
            stop.cancel();
            run.await
        }
    }
}

/// One run of docker-buildx, with its time limit and its builder watched: buildx itself may not notice that its pod is gone.
///
/// Neither the wait for a builder nor the time on a lost pod counts as the build's. `spent`: the time of earlier runs that counts.
async fn solve_watched(
    integrations: &Integrations,
    build: &Build,
    goal: Goal<'_>,
    session: &Session<'_>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
    spent: Duration,
) -> Result<(Outcome, Option<Loss>), End> {
    let stop = attempt.stop.token().child_token();
    let limit = integrations.bake.time_limit(build);
    let solve = integrations.bake.solve(build, goal, &session.location, directory, attempt.journal, &stop);
    tokio::pin!(solve);
    // Dropping the watch loses nothing. The solve is never dropped: its outcome has what it learned.
    let lost = tokio::select! {
        outcome = &mut solve => Err(outcome),
        loss = session.lost() => Ok(loss),
        () = sleep(limit.saturating_sub(spent)) => {
            attempt.stop.note(Cause::TimedOut { limit });
            stop.cancel();
            Err((&mut solve).await)
        }
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
        // Killed by us. If it ended by itself at the same moment, its own error counts.
        (Some(End::Stopped), lost) => lost,
        (Some(End::Failed(failure)), _) => session.post_mortem(failure).await,
    };
    let end = loss.as_ref().map(|loss| loss.failure.clone().into()).or(outcome.end);
    outcome.end = end.map(|end: End| end.map(|failure| session.with_memory_limit(failure)));
    Ok((outcome, loss))
}

impl Attempt<'_> {
    /// Waits for a future that does not check `stop` itself and that may be dropped.
    async fn unless_stopped<T>(self, asked: impl Future<Output = T>) -> Result<T, End> {
        self.stop.token().run_until_cancelled(asked).await.ok_or(End::Stopped)
    }
}
