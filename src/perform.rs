//! One build: the stations in order.

use std::time::Instant;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::bake::{Bake, Order};
use crate::builder::Builders;
use crate::event::{Event, Phase};
use crate::github::{App, InstallationToken};
use crate::job::{Build, BuildJob};
use crate::journal::Journal;
use crate::reason::{Failure, Reason};
use crate::report::Report;
use crate::settings::Settings;
use crate::source::{Origin, Revision, Source, SourceError, Worktree};
use crate::state::{JobDirectory, StateDirectory, StateError};

/// The stations that a build passes.
#[derive(Debug)]
pub struct Stations {
    /// GitHub.
    pub github: App,
    /// git.
    pub source: Source,
    /// The builders.
    pub builders: Builders,
    /// buildx.
    pub bake: Bake,
    /// This machine's disk.
    pub state: StateDirectory,
    /// Bounds the fetches and checkouts that go on at once.
    clones: Semaphore,
}

impl Stations {
    /// Makes the stations from the settings.
    pub fn new(settings: &Settings, state: StateDirectory) -> Result<Self, reqwest::Error> {
        Ok(Self {
            github: App::new(settings.github.clone())?,
            source: Source::new(settings.source.clone(), settings.sandbox.clone(), &settings.github.git_url),
            builders: Builders::new(&settings.buildx.binary, &settings.builders),
            bake: Bake::new(settings),
            state,
            clones: Semaphore::new(settings.clones),
        })
    }
}

/// Who is looking, and who may end it.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Where everything is told.
    pub journal: &'a Journal,
    /// Kills whatever runs.
    pub stop: &'a CancellationToken,
}

/// Builds what a job asks for. What is known is put into the report as soon as it is, so that a failure has it too.
pub async fn perform(
    stations: &Stations,
    job: &BuildJob,
    attempt: Attempt<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let token = mint(stations, job, attempt, report).await?;
    let directory = stations.state.job_directory().map_err(disk)?;
    let built = async {
        let worktree = check_out(stations, job, &token, &directory, attempt, report).await?;
        bake(stations, &job.build, &worktree, &directory, attempt, report).await
    }
    .await;
    directory.remove().await;
    built
}

/// Asked for even when the mirror has everything: what lies on our disk is no authorization.
async fn mint(
    stations: &Stations,
    job: &BuildJob,
    attempt: Attempt<'_>,
    report: &mut Report,
) -> Result<InstallationToken, Failure> {
    let phase = attempt.begin(Phase::Token);
    let token = stations.github.installation_token(&job.build.repository, job.installation_id).await;
    report.timings.token = phase.end();
    Ok(token?)
}

async fn check_out(
    stations: &Stations,
    job: &BuildJob,
    token: &InstallationToken,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
    report: &mut Report,
) -> Result<Worktree, Failure> {
    let repository = &job.build.repository;
    let origin = Origin {
        url: stations.source.url(repository),
        token: Some(token.secret.clone()),
        mirror: token.repository_id.to_string(),
        name: repository.name.clone(),
        revision: Revision::Sha(job.sha.clone()),
    };
    match fetch(stations, &origin, directory, attempt, report).await {
        Err(error) if error.is_unclear() && !stations.github.has_commit(repository, &job.sha, token).await? => {
            Err(Failure::new(Reason::CommitNotFound, format!("{repository} has no commit {}", job.sha)))
        }
        result => Ok(result?),
    }
}

/// Waits for a clone slot, then makes the worktree.
pub async fn fetch(
    stations: &Stations,
    origin: &Origin,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
    report: &mut Report,
) -> Result<Worktree, SourceError> {
    let phase = attempt.begin(Phase::Fetch);
    let permit = stations.clones.acquire().await.expect("the semaphore is never closed");
    let worktree = stations.source.check_out(origin, &stations.state, directory, attempt.journal, attempt.stop).await;
    drop(permit);
    let elapsed = phase.end();
    report.timings.checkout = worktree.as_ref().map(|worktree| worktree.checkout).unwrap_or_default();
    report.timings.fetch = elapsed.saturating_sub(report.timings.checkout);
    worktree
}

/// Bakes a worktree, wherever it came from.
pub async fn bake(
    stations: &Stations,
    build: &Build,
    worktree: &Worktree,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let phase = attempt.begin(Phase::Print);
    let order = Order { build, worktree: &worktree.path };
    let definition = stations.bake.resolve(&order, directory, attempt.stop).await;
    report.timings.print = phase.end();
    let definition = definition?;

    let phase = attempt.begin(Phase::Bake);
    let (site, placement) = stations.builders.place(build, &stations.state, directory).await?;
    report.placement = Some(placement);
    let outcome = stations.bake.solve(build, &definition, &site, directory, attempt.journal, attempt.stop).await;
    report.timings.bake = phase.end();
    let outcome = outcome?;
    report.targets = outcome.targets;
    report.context_bytes = outcome.context_bytes;
    outcome.failure.map_or(Ok(()), Err)
}

fn disk(error: StateError) -> Failure {
    Failure::new(Reason::WorkerFailed, error.to_string())
}

/// A phase that has begun.
struct Begun<'a> {
    phase: Phase,
    since: Instant,
    journal: &'a Journal,
}

impl<'a> Attempt<'a> {
    fn begin(self, phase: Phase) -> Begun<'a> {
        self.journal.tell(Event::PhaseStarted(phase));
        Begun { phase, since: Instant::now(), journal: self.journal }
    }
}

impl Begun<'_> {
    fn end(self) -> std::time::Duration {
        let took = self.since.elapsed();
        self.journal.tell(Event::PhaseEnded(self.phase, took));
        took
    }
}
