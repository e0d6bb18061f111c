//! One build: the integrations in order.

mod caching;
mod solve;
mod warm;
mod worktree;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::bake::{Bake, BakeRequest, Definition};
use crate::builder::{Builders, Fleet};
use crate::event::{Event, Phase};
use crate::github::App;
use crate::job::{Build, BuildJob};
use crate::journal::Journal;
use crate::last_builds::LastBuilds;
use crate::network::ClientError;
use crate::reason::{End, Failure, Reason};
use crate::settings::Settings;
use crate::source::{Worktree, Worktrees};
use crate::state::{JobDirectory, StateDirectory};
use crate::stop::Stop;

pub use caching::Caching;
pub use warm::AskBases;
pub use worktree::{authorize, notify_of_encodings, notify_of_submodules};

use solve::solve;
use worktree::{check_out, mint};

/// The integrations of a build.
#[derive(Debug)]
pub struct Integrations {
    /// GitHub.
    pub github: App,
    /// git.
    pub source: Worktrees,
    /// The builders.
    pub builders: Arc<Builders>,
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
            builders: Arc::new(Builders::new(settings)),
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

impl Attempt<'_> {
    /// Waits for a future that does not check `stop` itself and that may be dropped.
    async fn unless_stopped<T>(self, asked: impl Future<Output = T>) -> Result<T, End> {
        self.stop.token().run_until_cancelled(asked).await.ok_or(End::Stopped)
    }
}
