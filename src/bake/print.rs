//! `docker-buildx bake --print`: the definition as buildx resolves it.
//!
//! This is not harmless: it reads files that the definition names, follows links, uses processor time and ignores TERM. So it
//! sees only the worktree and its own directory, has no socket, and is limited in time, memory and output. It ends by KILL.
//! At most `bake.prints` run at once.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::child::{make_directories, programs, switches, version_child};
use super::definition_file::locate;
use super::{Bake, BakeError, BakeRequest, Child, Definition, escape};
use crate::job::Build;
use crate::json;
use crate::process::{self, Ended, Stream};
use crate::sandbox::{ResourceLimits, Sandbox, Sockets, is_not_launched, libraries};
use crate::state::JobDirectory;
use crate::text::paths::WorkerPaths;
use crate::text::tail::Tail;
use crate::{bounds, text};

/// The exit code of a Go program that runs out of memory. docker-buildx's own is 1.
const CRASHED: i32 = 2;

/// Go threads: with one, the time limit by the clock is reached before the limit of processor time.
const N_THREADS: u32 = 1;

/// A path that exists on no machine.
const NOWHERE: &str = "/nonexistent";

/// The most variables, those added for secrets included.
const MAX_VARIABLES: usize = 64;

/// Targets by name, as printed and then unescaped.
pub(super) type Targets = BTreeMap<String, Map<String, Value>>;

/// What `--print` reads.
pub(super) enum Input {
    /// A definition, on its standard input.
    Text(String),
    /// A file of the worktree, by its path in it.
    File(String),
}

/// Resolves an admitted definition: the requested targets and those linked to them.
pub(super) async fn print(
    bake: &Bake,
    input: &Input,
    request: &BakeRequest<'_>,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> Result<Vec<u8>, BakeError> {
    let (input, file, working_directory) = match input {
        Input::Text(text) => (text.as_str(), "-".to_owned(), request.worktree.to_owned()),
        Input::File(path) => {
            let (folder, name) = locate(request.worktree, path);
            ("", name, folder)
        }
    };
    let reading = Reading { bake, request, input, file, working_directory, directory, stop };
    let mut build = request.build.clone();
    let mut overrides = Vec::new();
    let deadline = Instant::now() + bake.limits.print_timeout;
    loop {
        let mut message = match reading.print(&build, &overrides, &build.targets).await? {
            Ok(printed) => return Ok(printed),
            Err(message) => message,
        };
        let is_in_time = Instant::now() < deadline;
        if is_in_time && is_of_output(&message) {
            match reading.replace_files(&build, &mut overrides, deadline).await? {
                Ok(true) => continue,
                Ok(false) => {}
                Err(other) => message = other,
            }
        }
        // A secret with only an id is a variable of that name, or else a file that must exist even now.
        match missing_secret(&message) {
            Some(id) if is_in_time && build.variables.len() < MAX_VARIABLES && !build.variables.contains_key(id) => {
                build.variables.insert(id.to_owned(), String::new());
            }
            _ => return Err(BakeError::Invalid(without_reason(message))),
        }
    }
}

/// One definition, read as often as needed.
struct Reading<'a> {
    bake: &'a Bake,
    request: &'a BakeRequest<'a>,
    input: &'a str,
    file: String,
    working_directory: PathBuf,
    directory: &'a JobDirectory,
    stop: &'a CancellationToken,
}

impl Reading<'_> {
    /// buildx's output for these targets, or its error message about the definition.
    async fn print(
        &self,
        build: &Build,
        overrides: &[String],
        targets: &[String],
    ) -> Result<Result<Vec<u8>, String>, BakeError> {
        let mut arguments = vec!["--file".to_owned(), self.file.clone()];
        arguments.extend(overrides.iter().flat_map(|value| ["--set".to_owned(), value.clone()]));
        arguments.extend_from_slice(targets);
        let request = BakeRequest { build, ..*self.request };
        let Self { bake, input, working_directory, directory, stop, .. } = self;
        let given = Given { text: input, compose: None };
        match run(bake, given, &arguments, working_directory, &request, directory, stop).await {
            Ok(printed) => Ok(Ok(printed)),
            Err(BakeError::Invalid(message)) => Ok(Err(message)),
            Err(error) => Err(error),
        }
    }

    /// Replaces outputs to files by outputs to a directory, which policy judges the same. buildx before 0.36 opens such a file even
    /// now and does not report which target's it is, so each target is read alone. Returns whether any was replaced, or buildx's
    /// error message about the definition without outputs.
    ///
    /// A target that is also an image then is not one: buildx does not report which of two outputs it cannot open.
    async fn replace_files(
        &self,
        build: &Build,
        overrides: &mut Vec<String>,
        deadline: Instant,
    ) -> Result<Result<bool, String>, BakeError> {
        let without_outputs = ["*.output=type=cacheonly".to_owned()];
        let printed = match self.print(build, &without_outputs, &build.targets).await? {
            Ok(printed) => printed,
            Err(message) => return Ok(Err(message)),
        };
        let n_before = overrides.len();
        for name in read(&printed)?.into_keys() {
            if Instant::now() >= deadline {
                break;
            }
            let alone = self.print(build, overrides, std::slice::from_ref(&name)).await?;
            if alone.is_err_and(|message| is_of_output(&message)) {
                overrides.push(format!("{name}.output=type=local,dest=."));
            }
        }
        Ok(Ok(overrides.len() > n_before))
    }
}

/// Whether buildx could not open the file of an output.
fn is_of_output(message: &str) -> bool {
    ["failed to open open ", "invalid destination file: ", "invalid destination directory: "]
        .iter()
        .any(|begin| message.starts_with(begin))
}

/// Hides why a file cannot be read: "permission denied" would reveal that a file exists outside of the repository, and "no such
/// file" that it does not. All such messages become the same, except for the path.
fn without_reason(message: String) -> String {
    let Some(rest) = CANNOT_READ.iter().find_map(|end| message.strip_suffix(end)) else { return message };
    let operation = FILE_OPERATIONS.iter().filter_map(|operation| {
        let at = rest.rfind(operation)?;
        let is_word = at == 0 || rest[..at].ends_with(' ');
        is_word.then_some(at + operation.len())
    });
    let path = operation.max().map_or(rest, |at| &rest[at..]);
    format!("{path} cannot be read: it is not a file of the repository")
}

/// The kernel's errors for a file that cannot be read or does not exist.
const CANNOT_READ: &[&str] = &[
    ": file name too long",
    ": is a directory",
    ": no such file or directory",
    ": not a directory",
    ": permission denied",
    ": too many levels of symbolic links",
];

/// How Go names the failed operation, before the path.
const FILE_OPERATIONS: &[&str] = &["lstat ", "open ", "read ", "readlink ", "stat "];

/// The id of a secret whose file buildx did not find.
fn missing_secret(message: &str) -> Option<&str> {
    let (file, _) = message.strip_prefix("failed to stat ")?.split_once(": ")?;
    crate::name::is_name(file).then_some(file)
}

/// Whether buildx resolves the validated text to exactly the validated targets.
pub(super) async fn is_understood(
    bake: &Bake,
    validated: &Definition,
    request: &BakeRequest<'_>,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> Result<bool, BakeError> {
    let mut arguments = validated.files();
    arguments.extend(validated.targets.keys().cloned());
    let given = Given { text: &validated.text, compose: validated.compose.as_deref() };
    let printed = run(bake, given, &arguments, request.worktree, request, directory, stop).await?;
    let mut understood = read(&printed)?;
    // Added by us, and printed in another form.
    understood.values_mut().for_each(|target| drop(target.remove(escape::POLICY)));
    Ok(understood == validated.targets)
}

/// What a run of `--print` gets beside the worktree.
#[derive(Clone, Copy)]
struct Given<'a> {
    /// Its standard input.
    text: &'a str,
    /// A file outside of the worktree.
    compose: Option<&'a Path>,
}

async fn run(
    bake: &Bake,
    given: Given<'_>,
    arguments: &[String],
    working_directory: &Path,
    request: &BakeRequest<'_>,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> Result<Vec<u8>, BakeError> {
    let turn = stop.run_until_cancelled(bake.prints.acquire()).await.ok_or(BakeError::Stopped)?;
    let _turn = turn.expect("the semaphore is never closed");
    let private = directory.fresh("print").await?;
    make_directories(&private)?;
    let worker_paths = directory.worker_paths().with_worktree(request.worktree);
    let mut child = child(bake, request, &private);
    child.sandbox.read.extend(given.compose.map(Path::to_owned));
    let mut command = child.command(&bake.buildx.binary);
    command.args(["bake", "--print", "--progress", "quiet"]).args(arguments);
    command.current_dir(working_directory);
    let (ended, out, err) = collect(bake, command, given.text, stop).await?;
    match ended {
        Ended::Exited(status) if status.success() => Ok(out),
        Ended::Exited(status) if status.signal().is_some_and(|signal| signal != libc::SIGXCPU) => {
            Err(BakeError::Launcher(format!("--print ended with {status}")))
        }
        Ended::Exited(status) if status.code() == Some(CRASHED) => {
            let limit = memory(bake) >> 20;
            Err(BakeError::Invalid(format!("the definition takes more than {limit} MiB of memory to evaluate")))
        }
        Ended::Exited(_) if is_not_launched(ended) => Err(BakeError::Launcher(last_line(&err, &worker_paths))),
        Ended::Exited(status) if status.signal().is_none() => Err(failure(&err, &worker_paths)),
        Ended::Exited(_) | Ended::TimedOut | Ended::Silent => {
            let limit = bake.limits.print_timeout.as_secs();
            Err(BakeError::Invalid(format!("the definition takes more than {limit} s to evaluate")))
        }
        Ended::TooMuchOutput => {
            let limit = bake.limits.max_print_bytes;
            Err(BakeError::Invalid(format!("the resolved definition is larger than {limit} bytes")))
        }
        Ended::Stopped => Err(BakeError::Stopped),
    }
}

/// Runs a child to its end. Returns all of its standard output and the last lines of its standard error.
async fn collect(
    bake: &Bake,
    command: Command,
    input: &str,
    stop: &CancellationToken,
) -> Result<(Ended, Vec<u8>, Tail), BakeError> {
    let limits = process::RunLimits {
        timeout: Some(bake.limits.print_timeout),
        silence: None,
        max_output_bytes: bake.limits.max_print_bytes,
        stop: stop.clone(),
    };
    let (mut out, mut err) = (Vec::new(), Tail::default());
    let ended = process::run(command, input.as_bytes(), &limits, |stream, line| match stream {
        Stream::Out => {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        // It quotes lines of a file that does not parse.
        Stream::Err => err.push(text::elide(&text::plain(&String::from_utf8_lossy(line)), bounds::ERROR).into_owned()),
    })
    .await?;
    Ok((ended, out, err))
}

pub(super) fn child(bake: &Bake, request: &BakeRequest<'_>, private: &Path) -> Child {
    Child { sandbox: sandbox(bake, request.worktree, private), environment: environment(&request.build.variables) }
}

/// The variables of `--print`. A definition reads them into images, so they hold nothing of this machine or this job except the
/// job's own variables. buildx needs no configuration here; without these paths it would look for one in the repository.
fn environment(variables: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let nowhere = |name: &str| (name.to_owned(), NOWHERE.to_owned());
    let mut environment = variables.clone();
    // The worker's come last: of two with one name, the later one counts.
    environment.extend(switches(N_THREADS));
    environment.extend([nowhere("BUILDX_CONFIG"), nowhere("DOCKER_CONFIG")]);
    environment
}

fn memory(bake: &Bake) -> u64 {
    bake.sandbox.max_data_bytes.min(bounds::PRINT_MEMORY as u64)
}

fn sandbox(bake: &Bake, worktree: &Path, private: &Path) -> Sandbox {
    Sandbox {
        enforcement: bake.sandbox.mode.into(),
        system: libraries(),
        execute: programs(&bake.buildx.binary),
        read: vec![worktree.to_owned()],
        write: vec![private.to_owned(), "/dev/null".into()],
        sockets: Sockets::None,
        limits: ResourceLimits {
            data_bytes: memory(bake),
            // The worker's own limit comes first and reports why. This one is for a child that was taken over, or an overloaded worker.
            cpu_seconds: Some(bake.limits.print_timeout.as_secs() + 1),
            file_bytes: 64 << 20,
            stack_bytes: None,
        },
    }
}

/// The error message of buildx.
fn failure(err: &Tail, worker_paths: &WorkerPaths) -> BakeError {
    match err.lines().rev().find_map(|line| line.strip_prefix("ERROR: ")) {
        Some(message) => BakeError::Invalid(without_programs(worker_paths.hide(message).into_owned())),
        None => BakeError::Invalid(last_line(err, worker_paths)),
    }
}

fn last_line(err: &Tail, worker_paths: &WorkerPaths) -> String {
    worker_paths.hide(err.last().unwrap_or("it ended without an error message")).into_owned()
}

/// Hides the content of programs. Outside of the repository only docker-buildx and its libraries are readable; when a definition
/// names one, buildx quotes its beginning.
fn without_programs(message: String) -> String {
    let shows_program = ["\\x7fELF", "\x7fELF"].iter().any(|beginning| message.contains(beginning));
    if shows_program { "it names a program that is not in the repository".into() } else { message }
}

pub(super) fn read(printed: &[u8]) -> Result<Targets, BakeError> {
    #[derive(serde::Deserialize)]
    struct Printed {
        #[serde(default)]
        target: BTreeMap<String, Map<String, Value>>,
    }
    if json::has_more_values(printed, bounds::VALUES) {
        let message = format!("the resolved definition has more than {} names and values", bounds::VALUES);
        return Err(BakeError::Invalid(message));
    }
    let printed: Printed = json::read(printed)
        .map_err(|error| BakeError::Invalid(format!("buildx printed an invalid definition: {error}")))?;
    Ok(printed.target.into_iter().map(|(name, target)| (name, escape::unescape(target))).collect())
}

/// The version of the binary.
pub(super) async fn version(bake: &Bake) -> Result<String, BakeError> {
    let mut command = version_child(&bake.buildx.binary, bake.sandbox.mode.into()).command(&bake.buildx.binary);
    command.arg("version");
    let stop = CancellationToken::new();
    let (ended, out, err) = tokio::time::timeout(Duration::from_secs(10), collect(bake, command, "", &stop))
        .await
        .map_err(|_| BakeError::Launcher("version took more than 10 s".into()))??;
    if is_not_launched(ended) {
        return Err(BakeError::Launcher(last_line(&err, &WorkerPaths::default())));
    }
    let line = String::from_utf8_lossy(&out);
    line.split_whitespace()
        .nth(1)
        .map(|version| version.split('+').next().unwrap_or(version).trim_start_matches('v').to_owned())
        .ok_or_else(|| BakeError::Launcher(format!("no version in {line:?} {:?}", err.last().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_sees_nothing_of_the_machine_and_the_jobs_variables() {
        let variables = BTreeMap::from([("TAG".to_owned(), "v1".to_owned())]);
        let environment = environment(&variables);
        let names: Vec<&str> = environment.keys().map(String::as_str).collect();
        let expected = [
            "BUILDX_CONFIG",
            "BUILDX_GIT_INFO",
            "BUILDX_GIT_LABELS",
            "BUILDX_NO_DEFAULT_ATTESTATIONS",
            "DOCKER_CONFIG",
            "GOMAXPROCS",
            "TAG",
        ];
        assert_eq!(names, expected);
        let paths: Vec<&str> = environment.values().map(String::as_str).filter(|value| value.contains('/')).collect();
        assert_eq!(paths, [NOWHERE; 2]);
    }

    #[test]
    fn what_is_outside_of_the_repository_is_not_told_by_why_it_cannot_be_read() {
        let expected = "/any/x cannot be read: it is not a file of the repository";
        for message in [
            "open /any/x: permission denied",
            "open /any/x: no such file or directory",
            "open /any/x: not a directory",
            "env file /any/x not found: stat /any/x: no such file or directory",
            "failed to stat /any/x: stat /any/x: permission denied",
        ] {
            assert_eq!(without_reason(message.into()), expected, "{message}");
        }
        let other = "docker-bake.hcl:1,40-2,1: Invalid expression";
        assert_eq!(without_reason(other.into()), other);
    }
}
