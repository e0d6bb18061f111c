//! One build with `docker-buildx bake`: define, resolve, validate, solve, read.
//!
//! Owns the order of these steps and what each child gets. buildx trusts definitions and their directories; the worker does
//! not. Each child runs in a sandbox with an environment made from nothing and no PATH, so nothing but buildx and its loader
//! can be executed. What is solved is exactly what was validated.

mod as_written;
mod caching;
mod child;
mod compose;
mod confirmed;
mod credentials;
mod define;
mod definition;
mod definition_file;
mod diagnose;
mod escape;
mod evidence;
mod explain;
mod export;
mod grants;
mod ignore;
mod immutable;
mod mask;
mod metadata;
mod noise;
mod own_registries;
mod platforms;
mod policy;
mod print;
mod progress;
mod registry;
mod shown;
mod solve;
mod view;
mod warm;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::cache::SeenStep;
use crate::event::{Event, Phase};
use crate::job::{Build, Commit};
use crate::journal::Journal;
use crate::process::{ProcessError, RunLimits};
use crate::reason::{End, HasReason, Reason};
use crate::sandbox::Sockets;
use crate::secret::SecretBytes;
use crate::settings;
use crate::state::{JobDirectory, StateError, make_private, write_private};
use crate::version::{Ability, Program, Version};
use crate::warmth::BaseBuild;
use crate::{environment, secret_file};

use confirmed::Confirmed;
use grants::Grants;

pub use caching::TargetPlan;
pub use child::{Child, Configuration, dial_child};
pub use define::application as define_application;
pub use definition::Definition;
pub use definition_file::{DefinitionFile, admit};
pub use ignore::Excluded;
pub use policy::Refusal;
pub use registry::registry_url;

/// A shorter secret of the worker is not masked in the output of builds, which never get it.
const LEAST_OF_WORKER: usize = 8;

/// The directory of build secrets in a job's directory.
const SECRETS: &str = "secrets";

/// A definition that could not be resolved, is not allowed, or could not be handed to buildx.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    /// `--print` refuses the definition.
    #[error("{0}")]
    Invalid(String),
    /// A field of the definition is not allowed, not valid, or names something that does not exist.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A directory or file of the job cannot be created.
    #[error(transparent)]
    State(#[from] StateError),
    /// `docker-buildx` cannot be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// `docker-buildx` did not start: the launcher reports why.
    #[error("docker-buildx: {0}")]
    Launcher(String),
    /// A granted build secret cannot be used.
    #[error("build secret {name}: {message}")]
    Secret {
        /// Its name in the configuration.
        name: String,
        /// What is wrong, without its content.
        message: String,
    },
    /// The account's registry credentials cannot be used.
    #[error("registry credentials in {path}: {message}")]
    Credentials {
        /// The file.
        path: String,
        /// What is wrong, without its content.
        message: String,
    },
    /// The build was stopped.
    #[error("the build was stopped")]
    Stopped,
}

impl HasReason for BakeError {
    fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Invalid(_) => Reason::DefinitionInvalid,
            Self::Refused(refusal) => refusal.reason,
            Self::State(_) | Self::Process(_) | Self::Launcher(_) => Reason::WorkerFailed,
            Self::Credentials { .. } | Self::Secret { .. } => Reason::WorkerFailed,
            Self::Stopped => return None,
        })
    }
}

/// What to build, and from which tree.
#[derive(Clone, Copy, Debug)]
pub struct BakeRequest<'a> {
    /// The build.
    pub build: &'a Build,
    /// Root of the worktree.
    pub worktree: &'a Path,
    /// The commit, if there is one.
    pub commit: Option<&'a Commit>,
}

/// Where it is built. The builder integration provides it.
#[derive(Clone, Debug)]
pub struct Location {
    /// The name for `--builder`.
    pub builder: String,
    /// The bake's working directory, by which the kubernetes driver chooses the pod.
    pub working_directory: PathBuf,
    /// buildx's configuration, which holds the builder's record.
    pub configuration: Configuration,
    /// Variables that buildx needs to reach the builder.
    pub environment: BTreeMap<String, String>,
    /// What buildx may connect to.
    pub sockets: Sockets,
    /// Files that buildx needs to connect, such as certificates. No child can write where they are.
    pub files: Vec<PathBuf>,
    /// Whether the builder session watches the connection: then silence alone does not end the build.
    pub is_watched: bool,
    /// What the session's watch needs to know of the run.
    pub run: Arc<Run>,
}

/// A run of docker-buildx, as seen by the watch of the builder session.
#[derive(Debug, Default)]
pub struct Run {
    /// Its process id, once it has one.
    pub pid: OnceLock<u32>,
    /// Set when the builder has begun to work. Until then buildx itself gives up after 20 s and reports why.
    pub has_begun: OnceLock<()>,
}

/// What one run of docker-buildx builds.
#[derive(Clone, Copy, Debug)]
pub struct Goal<'a> {
    /// The definition.
    pub definition: &'a Definition,
    /// Names of targets in it.
    pub targets: &'a BTreeSet<String>,
}

/// The result of a bake, for the decision whether another pod is tried. The journal has all else.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Names of the targets that were built, also when the bake failed.
    pub built: BTreeSet<String>,
    /// Names of the targets with at least one step that was not cached.
    pub ran: BTreeSet<String>,
    /// The steps of each target, in the order of BuildKit's reports.
    pub steps: BTreeMap<String, Vec<SeenStep>>,
    /// Digests of the images that were looked up, by reference.
    pub images: BTreeMap<String, String>,
    /// Why it did not succeed; `None` when it did. It may then have given up targets that are not in `built`, for a push that
    /// turned out not to be needed.
    pub end: Option<End>,
}

/// Runs `docker-buildx`.
#[derive(Clone, Debug)]
pub struct Bake {
    buildx: settings::Buildx,
    /// Known once buildx was asked for it.
    version: Arc<OnceCell<Version>>,
    /// The definitions that buildx need not confirm again.
    confirmed: Arc<Confirmed>,
    /// Permits for `--print`, which can use a whole processor and all the memory that it is allowed.
    prints: Arc<Semaphore>,
    limits: settings::Bake,
    sandbox: settings::Sandbox,
    accounts: settings::Accounts,
    /// Certificates that are trusted beside the system's.
    ca_file: Option<PathBuf>,
    /// The worker's own secrets: no child gets them, and no output may show them.
    secrets: Vec<settings::SecretSource>,
}

impl Bake {
    /// Takes the settings.
    pub fn new(settings: &settings::Settings) -> Self {
        Self {
            buildx: settings.buildx.clone(),
            version: Arc::default(),
            confirmed: Arc::default(),
            prints: Arc::new(Semaphore::new(settings.bake.prints)),
            limits: settings.bake.clone(),
            sandbox: settings.sandbox.clone(),
            accounts: settings.accounts.clone(),
            ca_file: settings.ca_file().map(Path::to_owned),
            secrets: settings.secrets().into_iter().chain(environment::credentials()).collect(),
        }
    }

    /// The worker's own secrets. A short password is left out: it may be an ordinary word of every build's output.
    fn worker_secrets(&self) -> impl Iterator<Item = SecretBytes> {
        let secrets = secret_file::secrets_in(&self.secrets);
        secrets.filter(|secret| secret.expose().len() >= LEAST_OF_WORKER).map(|secret| SecretBytes::from(&secret))
    }

    /// Resolves and validates the definition, and emits what policy replaced in it.
    pub async fn resolve(
        &self,
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
        journal: &Journal,
        stop: &CancellationToken,
    ) -> Result<Definition, BakeError> {
        let _phase = journal.begin(Phase::Print);
        let definition = self.understood(request, directory, stop).await?;
        definition.notices.iter().for_each(|notice| journal.emit(Event::Notice(notice.clone())));
        Ok(definition)
    }

    /// The validated definition, once buildx reads it exactly as it was validated.
    async fn understood(
        &self,
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
        stop: &CancellationToken,
    ) -> Result<Definition, BakeError> {
        // Our own template has nothing to resolve: buildx only has to confirm it, in one call instead of two.
        if let Some(targets) = define::resolved(request) {
            let definition = self.validate_targets(targets, request, directory).await?;
            if let Some(definition) = self.confirmed(definition, request, directory, stop).await? {
                return Ok(definition);
            }
        }
        let mut given = definition_file::Given::write(request, directory).await?;
        let mut targets = print::print(self, &mut given, request, directory, stop).await?;
        given.restore(&mut targets);
        let definition = self.validate_printed(targets, request, directory).await?;
        let refusal = as_written::refusal(&definition.targets);
        let confirmed = self.confirmed(definition, request, directory, stop).await?;
        let differs = || BakeError::Launcher("buildx resolved the checked definition differently".into());
        confirmed.ok_or_else(|| refusal.map_or_else(differs, BakeError::Refused))
    }

    /// The definition that buildx resolves to exactly the validated targets; `None` when there is none.
    async fn confirmed(
        &self,
        definition: Definition,
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
        stop: &CancellationToken,
    ) -> Result<Option<Definition>, BakeError> {
        let shape = confirmed::shape(&definition, request, &self.buildx.binary);
        if shape.is_some_and(|shape| self.confirmed.has(&shape)) {
            return Ok(Some(definition.understood()));
        }
        if print::is_understood(self, &definition, request, directory, stop).await? {
            shape.into_iter().for_each(|shape| self.confirmed.add(shape));
            return Ok(Some(definition.understood()));
        }
        let Some((rest, compose)) = as_written::split(&definition.targets) else { return Ok(None) };
        let file = directory.join(as_written::FILE);
        write_private(&file, compose.as_bytes())?;
        let text = escape::definition(&rest, self.version().await?.can(Ability::Policies));
        let definition = Definition { text, compose: Some(file), ..definition };
        let is_understood = print::is_understood(self, &definition, request, directory, stop).await?;
        Ok(is_understood.then(|| definition.understood()))
    }

    /// Validates what `--print` has printed of a request's definition.
    ///
    /// # Errors
    ///
    /// `Refused` names the path of the refused field.
    pub async fn validate(
        &self,
        printed: &[u8],
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
    ) -> Result<Definition, BakeError> {
        self.validate_printed(print::read(printed)?, request, directory).await
    }

    async fn validate_printed(
        &self,
        mut targets: print::Targets,
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
    ) -> Result<Definition, BakeError> {
        define::restore(request, &mut targets);
        self.validate_targets(targets, request, directory).await
    }

    async fn validate_targets(
        &self,
        targets: print::Targets,
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
    ) -> Result<Definition, BakeError> {
        let has_policies = self.version().await?.can(Ability::Policies);
        let grants = Grants::new(&self.accounts, request);
        let secrets = directory.join(SECRETS);
        let validated = policy::validate(targets, request, &grants, &self.limits, &secrets)?;
        if !validated.secrets.is_empty() {
            make_private(&secrets)?;
        }
        for (path, secret) in validated.secrets.values() {
            write_private(path, secret.expose())?;
        }
        Ok(Definition {
            text: escape::definition(&validated.targets, has_policies),
            targets: validated.targets,
            plans: Arc::default(),
            worktree: request.worktree.to_owned(),
            notices: validated.notices,
            compose: None,
            exports: validated.exports,
            local: validated.local,
            secrets,
            hidden: validated.secrets.values().map(|(_, secret)| secret.clone()).collect(),
        })
    }

    /// Sandbox and environment of the child that resolves a request's definition; `private` is its own directory.
    pub fn print_child(&self, request: &BakeRequest<'_>, private: &Path) -> Child {
        print::child(self, request, private)
    }

    /// Sandbox and environment of the child that builds a worktree at a location; `private` is its own directory.
    pub fn solve_child(&self, worktree: &Path, secrets: &Path, location: &Location, private: &Path) -> Child {
        solve::child(self, worktree, secrets, location, private)
    }

    /// Builds a validated definition, and emits its events to the journal.
    ///
    /// # Errors
    ///
    /// When buildx could not be run, or this builder cannot build the definition. A build that fails is an [`Outcome`].
    pub async fn solve(
        &self,
        build: &Build,
        goal: Goal<'_>,
        location: &Location,
        directory: &JobDirectory,
        journal: &Journal,
        stop: &CancellationToken,
    ) -> Result<Outcome, BakeError> {
        // The docker driver has no record.
        if let (Some(refusal), Some(_)) = (&goal.definition.local, &location.configuration.record) {
            return Err(refusal.clone().into());
        }
        solve::solve(self, build, goal, location, directory, journal, stop).await
    }

    /// Refuses a base image that is not for each platform that its target names, as far as the job's own registries say so.
    pub async fn check_bases(
        &self,
        build: &Build,
        definition: &Definition,
        stop: &CancellationToken,
    ) -> Result<(), BakeError> {
        platforms::check_bases(self, build, definition, stop).await
    }

    /// Builds a base image into the builder's cache only. Returns whether that succeeded.
    pub async fn warm(
        &self,
        build: &Build,
        definition: &Definition,
        base: &BaseBuild,
        location: &Location,
        directory: &JobDirectory,
        limits: RunLimits,
    ) -> bool {
        warm::base(self, build, definition, base, location, directory, limits).await
    }

    /// Exports the caches of these targets of a finished build. Emits a notice when that fails.
    pub async fn export_caches(
        &self,
        build: &Build,
        goal: Goal<'_>,
        location: &Location,
        directory: &JobDirectory,
        journal: &Journal,
        stop: &CancellationToken,
    ) {
        export::caches(self, build, goal, location, directory, journal, stop).await;
    }

    /// The time limit of the build.
    pub fn time_limit(&self, build: &Build) -> Duration {
        build.timeout.unwrap_or(self.limits.timeout)
    }

    /// The names of the variables and the arguments of a solve, for `plan`.
    pub fn describe(&self, location: &Location, directory: &Path) -> (Vec<String>, Vec<String>) {
        let environment = solve::environment(location, directory);
        let mut arguments = vec![self.buildx.binary.display().to_string()];
        arguments.extend(solve::arguments(
            location,
            &directory.join(solve::METADATA),
            &[directory.with_file_name(definition::FILE)],
        ));
        (environment.into_keys().collect(), arguments)
    }

    /// The version that `docker-buildx version` prints.
    pub async fn version(&self) -> Result<&Version, BakeError> {
        let ask = async || Ok(Version::of(Program::Buildx, &print::version(self).await?));
        self.version.get_or_try_init(ask).await
    }
}
