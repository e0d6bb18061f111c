//! `sidebake build`: one build now, as a worker runs it, without Redis and without GitHub.

use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use sha2::{Digest, Sha256};

use super::read_json;
use crate::beneath::Directory;
use crate::environment;
use crate::event::Event;
use crate::hex;
use crate::job::{self, Application, Naming, Recipe, Repository, RepositoryFiles, Trust};
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

/// The files that `docker buildx bake` reads and merges by itself, in its order: `defaultFilenames` in buildx's `bake/bake.go`.
const DEFINITIONS: &[&str] = &[
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
    "docker-bake.json",
    "docker-bake.hcl",
    "docker-bake.override.json",
    "docker-bake.override.hcl",
];

/// Files that `docker compose` reads too, and bake does not.
const OF_COMPOSE_ALONE: &[&str] =
    &["compose.override.yaml", "compose.override.yml", "docker-compose.override.yml", "docker-compose.override.yaml"];

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
    /// A bake or compose file in the tree; repeat to merge more; default: the files that docker buildx bake finds
    #[arg(long = "file", value_name = "FILE", conflicts_with = "template")]
    files: Vec<String>,
    /// A value of a variable of the file; repeat for more
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
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
        let attempt = Attempt { journal: &journal, stop: &shutdown.stop, fence: None, fleet: None, ask_bases: None };

        let worktree = self.worktree(&integrations, &directory, attempt).await;
        let result = match worktree {
            Ok(worktree) => {
                let build = self.build(&worktree.path)?;
                self.notify_of_overrides(&worktree.path, &journal)?;
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
            variables: self.variables.iter().cloned().collect(),
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
        let paths = if self.files.is_empty() { present(worktree, DEFINITIONS)? } else { self.files.clone() };
        if paths.is_empty() {
            bail!("no --template given, and {} has none of {}", worktree.display(), DEFINITIONS.join(", "));
        }
        Ok(Recipe::Files(RepositoryFiles { paths, directory: String::new(), naming: Naming::File }))
    }

    /// Reports the files that the user may expect to be read.
    fn notify_of_overrides(&self, worktree: &Path, journal: &Journal) -> anyhow::Result<()> {
        let is_chosen = self.template.is_some() || !self.files.is_empty();
        let names = if is_chosen { Vec::new() } else { present(worktree, OF_COMPOSE_ALONE)? };
        for name in names {
            journal.emit(Event::Notice(format!("{name} is not read: docker buildx bake does not read it either")));
        }
        Ok(())
    }
}

/// A variable that a job may set too.
fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    match job::is_variable(name) {
        true => Ok((name.to_owned(), value.to_owned())),
        false => Err(format!("{name:?} is not a variable that a build can set")),
    }
}

/// Which of these files a tree has. A link out of it counts: the build refuses it by name.
fn present(worktree: &Path, names: &[&str]) -> anyhow::Result<Vec<String>> {
    let root = Directory::open(worktree).with_context(|| format!("failed to open {}", worktree.display()))?;
    let is_present = |name: &&&str| match root.resolve(Path::new(name)) {
        Err(error) => error.kind() != ErrorKind::NotFound,
        Ok(_) => true,
    };
    Ok(names.iter().filter(is_present).map(|name| (*name).to_owned()).collect())
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
