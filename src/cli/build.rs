//! `sidebake build`: one build now, as a worker runs it, without Redis and without GitHub.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use sha2::{Digest, Sha256};

use super::read_json;
use crate::environment;
use crate::event::Event;
use crate::hex;
use crate::job::{self, Application, Naming, Recipe, Repository, RepositoryFile, Trust};
use crate::journal::{Journal, Record, Terminal, Wishes, print_report};
use crate::last_builds::LastBuilds;
use crate::name::is_name;
use crate::perform::{Attempt, Integrations, bake, notify_of_encodings, notify_of_submodules, resolve};
use crate::processor::AttemptOutcome;
use crate::reason::{Cause, End, Failure, Reason};
use crate::report::{Report, Status};
use crate::settings::{self, Driver, SandboxMode, Settings};
use crate::source::{Origin, Revision, Size, Spent, Worktree};
use crate::state::{JobDirectory, StateDirectory};
use crate::worker::Shutdown;

/// The files to look for without a template, in the order of buildx's documentation.
const DEFINITIONS: &[&str] = &[
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
    "docker-bake.json",
    "docker-bake.hcl",
];

#[derive(Debug, Args)]
pub(super) struct Build {
    /// A directory, or the URL of a repository
    #[arg(value_name = "PATH_OR_URL")]
    source: String,
    /// An Application Template, as JSON; default: the repository's own bake or compose file
    #[arg(long, value_name = "FILE")]
    template: Option<String>,
    /// Branch, tag or commit of the repository
    #[arg(long, default_value = "HEAD")]
    revision: String,
    /// A target or group; repeat for more
    #[arg(long = "target", value_name = "TARGET")]
    targets: Vec<String>,
    /// Print the definition that docker-buildx would get, without building
    #[arg(long)]
    print: bool,
    /// Push the images
    #[arg(long)]
    push: bool,
    /// Ignore the build cache
    #[arg(long)]
    no_cache: bool,
    /// The builder to use
    #[arg(long, value_name = "NAME")]
    builder: Option<String>,
}

impl Build {
    pub(super) async fn run(self, mut settings: Settings, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
        soften(&mut settings);
        let private = tempfile::tempdir().context("failed to make a temporary directory")?;
        if settings.state.directory == Settings::default().state.directory {
            // The default directory belongs to a service.
            settings.state.directory = private.path().to_owned();
        }
        let state = StateDirectory::open(&settings.state.directory, &format!("build:{}", hex::random::<6>()))?;
        let integrations = Integrations::new(&settings, LastBuilds::default(), state.into())?;
        let directory = integrations.state.job_directory()?;
        let record = Arc::new(Record::new(Report::default()));
        let terminal = Arc::new(Terminal::new(wishes()));
        let journal = Journal::new(vec![terminal, record.clone()], integrations.state.worker_paths());
        let attempt = Attempt { journal: &journal, stop: &shutdown.stop, fence: None };

        let worktree = self.worktree(&integrations, &directory, attempt).await;
        let result = match worktree {
            Ok(worktree) => {
                let build = self.build(&worktree.path)?;
                self.bake(&integrations, &build, &worktree, &directory, attempt).await
            }
            Err(failure) => Err(failure),
        };
        directory.remove().await;
        let result = result.map_err(|end| end.map(|failure| failure.without(&integrations.state.worker_paths())));
        match result {
            Ok(()) if self.print => Ok(ExitCode::SUCCESS),
            result => Ok(conclude(AttemptOutcome::of(result, &shutdown.stop), &journal, &record)),
        }
    }

    #[expect(clippy::print_stdout, reason = "the definition is the command's result")]
    async fn bake(
        &self,
        integrations: &Integrations,
        build: &job::Build,
        worktree: &Worktree,
        directory: &JobDirectory,
        attempt: Attempt<'_>,
    ) -> Result<(), End> {
        if !self.print {
            return bake(integrations, build, worktree, None, directory, attempt).await;
        }
        println!("{}", resolve(integrations, build, worktree, directory, attempt).await?.text);
        Ok(())
    }

    async fn worktree(
        &self,
        integrations: &Integrations,
        directory: &JobDirectory,
        attempt: Attempt<'_>,
    ) -> Result<Worktree, End> {
        if !self.is_url() {
            let path = Path::new(&self.source).canonicalize();
            let path =
                path.map_err(|error| Failure::new(Reason::ContextNotFound, format!("{}: {error}", self.source)))?;
            return Ok(Worktree {
                path,
                // A directory can differ from the commit that is checked out in it.
                commit: None,
                took: Duration::ZERO,
                size: Size::default(),
                lfs_pointers: Vec::new(),
                submodules: Vec::new(),
                links: None,
                changes: Vec::new(),
                is_tag: false,
                encoded: Vec::new(),
            });
        }
        let revision = match job::Sha::parse(&self.revision) {
            Some(sha) => Revision::Sha(sha),
            None => Revision::Name(self.revision.clone()),
        };
        let mirror = hex::encode(&Sha256::digest(&self.source)[..16]);
        let destination = directory.vacancy("tree", &self.repository().name)?;
        let origin = Origin {
            url: self.source.clone(),
            token: None,
            mirror,
            trust: Trust::Protected,
            directory,
            worktree: &destination,
            revision,
            mtimes_key: None,
            since: Vec::new(),
            git_dir: integrations.source.git_dir(None),
            spent: Spent::default(),
        };
        let worktree =
            integrations.source.check_out(&origin, &integrations.state, attempt.journal, attempt.stop.token()).await?;
        notify_of_submodules(&worktree, attempt);
        notify_of_encodings(&worktree, attempt);
        Ok(worktree)
    }

    fn is_url(&self) -> bool {
        self.source.contains("://")
    }

    /// A name for the build: the last part of the path or URL.
    fn repository(&self) -> Repository {
        let last = self.source.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let name = last.strip_suffix(".git").unwrap_or(last);
        let name = if is_name(name) { name } else { "build" };
        Repository { owner: "local".into(), name: name.into() }
    }

    fn build(&self, worktree: &Path) -> anyhow::Result<job::Build> {
        Ok(job::Build {
            targets: self.targets.clone(),
            push: self.push,
            no_cache: self.no_cache,
            builder: self.builder.clone(),
            ..job::Build::new(self.repository(), Trust::Protected, self.recipe(worktree)?)
        })
    }

    fn recipe(&self, worktree: &Path) -> anyhow::Result<Recipe> {
        if let Some(file) = &self.template {
            let template = read_json(file)?;
            // The same file serves a job: there the template is a field.
            let template = template.get("application").unwrap_or(&template);
            return Ok(Recipe::Application(Application::parse(template, self.push)?));
        }
        let found = DEFINITIONS.iter().find(|name| worktree.join(name).is_file());
        match found {
            Some(name) => Ok(Recipe::File(RepositoryFile { path: (*name).to_owned(), naming: Naming::File })),
            None => bail!("no --template given, and {} has none of {}", worktree.display(), DEFINITIONS.join(", ")),
        }
    }
}

/// At a terminal, a build of one's own tree needs neither a new kernel nor a configured builder.
fn soften(settings: &mut Settings) {
    if settings.sandbox.mode == SandboxMode::Required {
        settings.sandbox.mode = SandboxMode::BestEffort;
    }
    let local = || settings::Builder::new(Driver::Docker, environment::docker_host());
    settings.builders.entry("default".into()).or_insert_with(local);
}

fn wishes() -> Wishes {
    Wishes { colors: environment::wants_colors(), redrawing: environment::has_cursor() }
}

/// Reports how the build ended.
fn conclude(outcome: AttemptOutcome, journal: &Journal, record: &Record) -> ExitCode {
    let status = outcome.status();
    let (reason, message) = failure(outcome).map(|failure| (failure.reason, failure.detail)).unzip();
    journal.emit(Event::Ended { status, reason, message, is_over: true, log_url: None });
    print_report(&record.report(), wishes().colors);
    if status == Status::Succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The failure in the words of this command: a signal stops it, and no worker stops.
fn failure(outcome: AttemptOutcome) -> Option<Failure> {
    match outcome {
        AttemptOutcome::Stopped(Cause::Cancelled) => Some(Failure::new(Reason::Cancelled, "stopped by INT")),
        AttemptOutcome::Stopped(Cause::Shutdown) => Some(Failure::new(Reason::Interrupted, "stopped by TERM")),
        outcome => outcome.failure(),
    }
}
