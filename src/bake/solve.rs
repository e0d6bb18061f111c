//! `docker-buildx bake` itself: reads the validated definition; its events go to the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::child::{CERTIFICATES, STACK_BYTES, base_environment, make_directories, programs};
use super::credentials::Credentials;
use super::mask::Mask;
use super::own_registries::OwnRegistries;
use super::platforms::{PlatformCheck, PlatformMismatch};
use super::print::after_options;
use super::progress::{BakeProgress, Baked};
use super::shown::Shown;
use super::{
    Bake, BakeError, Child, Definition, Goal, Location, Outcome, credentials, definition, diagnose, explain, immutable,
    metadata,
};
use crate::event::{Event, FailedStep, Status, TargetReport};
use crate::job::Build;
use crate::journal::Journal;
use crate::process::{self, Ended, RunLimits, Stream};
use crate::reason::End;
use crate::sandbox::{ResourceLimits, Sandbox, Sockets, is_not_launched, libraries, network_files};
use crate::secret::SecretBytes;
use crate::state::{self, JobDirectory};
use crate::{bounds, text};

/// The file in the run's own directory where buildx writes its results.
pub(super) const METADATA: &str = "metadata.json";

/// Go threads, independent of the machine: buildx mostly waits, and each thread has a stack.
const N_THREADS: u32 = 4;

/// A run of docker-buildx with the credentials of a job.
pub(super) struct Prepared {
    /// Its own directory.
    private: PathBuf,
    credentials: Credentials,
    child: Child,
    shown: Shown,
}

impl Prepared {
    /// Prepares a run in the directory `name` of the job.
    pub(super) async fn new(
        bake: &Bake,
        build: &Build,
        definition: &Definition,
        location: &Location,
        directory: &JobDirectory,
        name: &str,
        stop: &CancellationToken,
    ) -> Result<Self, BakeError> {
        let private = directory.fresh(name).await?;
        make_directories(&private)?;
        location.configuration.write(&private.join("buildx"))?;
        let credentials = credentials::docker_config(&bake.accounts, build, stop).await?;
        let docker = docker_config(&private);
        state::make_private(&docker)?;
        state::write_private(&docker.join("config.json"), credentials.config.expose().as_bytes())?;
        let of_credentials = credentials.secrets.iter().map(SecretBytes::from);
        let secrets = definition.hidden.iter().cloned().chain(of_credentials).chain(bake.worker_secrets());
        let worker_paths = directory.worker_paths().with_worktree(&definition.worktree);
        let shown = Shown::new(Mask::new(secrets), worker_paths);
        let child = child(bake, &definition.worktree, &definition.secrets, location, &private);
        Ok(Self { private, credentials, child, shown })
    }

    /// Lets the run read another file or directory of the job.
    pub(super) fn may_read(&mut self, path: PathBuf) {
        self.child.sandbox.read.push(path);
    }

    /// The command that builds these targets of a definition in these files.
    fn command(&mut self, bake: &Bake, location: &Location, files: &[PathBuf], targets: &BTreeSet<String>) -> Command {
        self.child.sandbox.read.extend(files.iter().cloned());
        let mut command = self.child.command(&bake.buildx.binary);
        let metadata_file = self.private.join(METADATA);
        command.args(arguments(location, &metadata_file, files)).args(after_options(targets));
        command.current_dir(&location.working_directory);
        command
    }

    /// Runs a bake of which nothing is reported. Returns how it ended, and its error.
    pub(super) async fn run_silently(
        mut self,
        bake: &Bake,
        location: &Location,
        files: &[PathBuf],
        targets: &BTreeSet<String>,
        limits: &RunLimits,
    ) -> Result<(Ended, Option<String>), BakeError> {
        let command = self.command(bake, location, files, targets);
        let mut progress = BakeProgress::new(Baked::default(), self.shown);
        let ended = process::run_seen(command, b"", limits, &location.run.pid, |stream, line| {
            if stream == Stream::Err {
                progress.line(line, &mut |_| ());
            }
        })
        .await?;
        let error = progress.errors().last().map(|said| said.shown.clone());
        Ok((ended, error.or_else(|| progress.last_words().map(str::to_owned))))
    }
}

pub(super) async fn solve(
    bake: &Bake,
    build: &Build,
    goal: Goal<'_>,
    location: &Location,
    directory: &JobDirectory,
    journal: &Journal,
    stop: &CancellationToken,
) -> Result<Outcome, BakeError> {
    let definition = goal.definition;
    let mut prepared = Prepared::new(bake, build, definition, location, directory, "solve", stop).await?;
    let command = prepared.command(bake, location, &definition.write(directory)?, goal.targets);
    let Prepared { private, credentials, shown, .. } = prepared;
    let end_early = stop.child_token();
    let silence = (!location.is_watched).then_some(bake.limits.silence);
    let limits = RunLimits { silence, ..RunLimits::until(end_early.clone()) };
    let mut progress = BakeProgress::new(baked(goal, &credentials.registries), shown);
    let mut emit = |event| journal.emit(event);
    let ended = process::run_seen(command, b"", &limits, &location.run.pid, |stream, line| {
        if stream == Stream::Err {
            progress.line(line, &mut emit);
            if progress.has_begun() {
                let _ = location.run.has_begun.set(());
            }
            // Before anything is pushed.
            if progress.foreign_base().is_some() {
                end_early.cancel();
            }
        }
    })
    .await?;
    progress.finish(&mut emit);
    if is_not_launched(ended) {
        return Err(BakeError::Launcher(progress.last_words().unwrap_or_default().to_owned()));
    }
    if !ended.is_success() && progress.errors().is_empty() {
        let said: Vec<&str> = progress.said().lines().collect();
        tracing::warn!(
            said = &*text::elide(&said.join("\n"), bounds::ERROR),
            event = "buildx_ended_silently",
            "docker-buildx failed without an error message"
        );
    }
    let mut has_settled = false;
    if matches!(ended, Ended::Exited(status) if !status.success()) {
        let settled = stop
            .run_until_cancelled(immutable::settle(&mut progress, &credentials, bake.ca_file.as_deref(), journal))
            .await;
        has_settled = settled.unwrap_or(false);
    }
    // When nothing else has failed, what buildx reports is the push, for which it gave up the other targets.
    let has_end = !has_settled || progress.failed().next().is_some();
    let line_of = |target: &str, step: &FailedStep| definition.line_of(target, step);
    let end = has_end.then(|| diagnose::diagnose(ended, &progress, &line_of)).flatten();
    let mut targets = reports(&progress, ended, &private, definition);
    let mut mismatch = progress.foreign_base().filter(|_| !stop.is_cancelled()).map(PlatformMismatch::of_base);
    if mismatch.is_none() && end.is_none() {
        let check = PlatformCheck::new(definition, &credentials, bake.ca_file.as_deref());
        mismatch = stop.run_until_cancelled(check.check_images(&targets)).await.flatten();
    }
    let end = mismatch.map_or(end, |mismatch| Some(mismatch.blame(&mut targets).into()));
    Ok(conclude(&progress, targets, end, definition, journal))
}

/// What is known of a bake before it begins.
fn baked(goal: Goal<'_>, credentials: &[String]) -> Baked {
    let of_goal = || goal.definition.targets.iter().filter(|(name, _)| goal.targets.contains(*name));
    let tags = |fields| definition::tags(fields).map(str::to_owned).collect::<Vec<_>>();
    let targets: BTreeMap<String, Vec<String>> = of_goal().map(|(name, fields)| (name.clone(), tags(fields))).collect();
    // A name may contain line feeds; each of its lines then begins a line of buildx.
    let names = |fields: &Map<String, Value>| {
        let path = fields.get("dockerfile").and_then(Value::as_str).unwrap_or_default();
        let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
        name.iter().flat_map(|name| name.lines()).map(str::to_owned).collect::<Vec<_>>()
    };
    let pushed = targets.values().flatten().map(String::as_str);
    Baked {
        platforms: of_goal().map(|(name, fields)| (name.clone(), definition::platforms(fields))).collect(),
        own_registries: OwnRegistries::new(credentials.iter().map(String::as_str), pushed),
        dockerfile_names: of_goal().flat_map(|(_, fields)| names(fields)).collect(),
        dockerfiles: of_goal()
            .filter_map(|(name, _)| Some((name.clone(), goal.definition.dockerfile(name)?)))
            .collect(),
        targets,
    }
}

/// The result of each target, from its own steps.
fn reports(progress: &BakeProgress, ended: Ended, private: &Path, definition: &Definition) -> Vec<TargetReport> {
    let mut targets = progress.reports(ended.is_success());
    let is_target = |name: &str| targets.iter().any(|target| target.name == name);
    let digests = metadata::digests(private, METADATA, is_target);
    for target in &mut targets {
        if let Some(digest) = digests.get(&target.name) {
            target.digest = Some(digest.clone());
        }
        // BuildKit tells the line of the first failure only.
        if let Some(step) = target.failed_step.as_mut().filter(|step| step.line.is_none()) {
            step.line = definition.line_of(&target.name, step);
        }
        // An image that was not pushed has no digest outside of its builder.
        if target.digest.is_none() {
            target.image_digest = None;
        }
    }
    targets
}

/// Emits the result of each target and of the whole run.
fn conclude(
    progress: &BakeProgress,
    mut targets: Vec<TargetReport>,
    end: Option<End>,
    definition: &Definition,
    journal: &Journal,
) -> Outcome {
    let end = end.map(|end| end.map(|failure| explain::explain(failure, progress, definition)));
    if let Some(End::Failed(failure)) = &end {
        diagnose::blame(&mut targets, failure, progress.blamed());
    }
    journal.emit(Event::ContextSent { n_bytes: progress.context_bytes() });
    journal.emit(progress.caches_moved());
    let has_run = |target: &&TargetReport| target.steps_cached < target.steps_total;
    let ran = targets.iter().filter(has_run).map(|target| target.name.clone()).collect();
    let is_built = |target: &&TargetReport| target.status == Some(Status::Succeeded);
    let built = targets.iter().filter(is_built).map(|target| target.name.clone()).collect();
    targets.into_iter().for_each(|target| journal.emit(Event::TargetEnded(target)));
    Outcome { built, ran, steps: progress.seen_steps(), images: progress.images(), end }
}

/// The arguments between the binary and the names of the targets. None contains a stranger's text.
pub(super) fn arguments(location: &Location, metadata_file: &Path, files: &[PathBuf]) -> Vec<String> {
    let before = ["bake", "--builder", &location.builder].map(str::to_owned);
    let after = ["--progress", "rawjson", "--metadata-file"].map(str::to_owned);
    let files = files.iter().flat_map(|file| ["--file".to_owned(), file.display().to_string()]);
    before.into_iter().chain(files).chain(after).chain([metadata_file.display().to_string()]).collect()
}

pub(super) fn environment(location: &Location, private: &Path) -> BTreeMap<String, String> {
    let mut environment = base_environment(private, N_THREADS);
    environment.insert("DOCKER_CONFIG".into(), docker_config(private).display().to_string());
    environment.insert("BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP".into(), "1".into());
    // A copy of each image's provenance costs a round trip and may contain build arguments.
    environment.insert("BUILDX_METADATA_PROVENANCE".into(), "disabled".into());
    // Without it, a driver that keeps images to itself warns of each target that is not pushed. The docker driver has no record:
    // there an image that is not pushed goes into the engine.
    if location.configuration.record.is_some() {
        environment.insert("BUILDX_NO_DEFAULT_LOAD".into(), "1".into());
    }
    environment.extend(location.environment.clone());
    environment
}

pub(super) fn child(bake: &Bake, worktree: &Path, secrets: &Path, location: &Location, private: &Path) -> Child {
    Child {
        sandbox: sandbox(bake, [worktree, secrets], location, private),
        environment: environment(location, private),
    }
}

/// The directory of the job's registry credentials: beside the run's own directory, which the child can write.
fn docker_config(private: &Path) -> PathBuf {
    private.with_file_name("docker")
}

/// Read-only: worktree, build secrets, credentials. Writable: its own directory. Ports: the builder's and the registries'.
fn sandbox(bake: &Bake, inputs: [&Path; 2], location: &Location, private: &Path) -> Sandbox {
    let mut system = libraries();
    system.extend(network_files(Path::new(CERTIFICATES)));
    system.extend(location.files.iter().cloned());
    let with_registries = |ports: &Vec<u16>| ports.iter().chain(&bake.sandbox.registry_ports).copied().collect();
    Sandbox {
        enforcement: bake.sandbox.mode.into(),
        system,
        execute: programs(&bake.buildx.binary),
        read: inputs.map(Path::to_owned).into_iter().chain([docker_config(private)]).collect(),
        write: vec![private.to_owned(), "/dev/null".into()],
        sockets: match &location.sockets {
            Sockets::None => Sockets::None,
            Sockets::Tcp(ports) => Sockets::Tcp(with_registries(ports)),
            Sockets::TcpAndUnix(ports) => Sockets::TcpAndUnix(with_registries(ports)),
        },
        limits: ResourceLimits {
            data_bytes: bake.sandbox.max_data_bytes,
            cpu_seconds: None,
            file_bytes: 1 << 30,
            stack_bytes: Some(STACK_BYTES),
        },
    }
}
