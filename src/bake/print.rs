//! `docker-buildx bake --print`: the definition as buildx resolves it.
//!
//! This is not harmless: it reads files that the definition names, follows links, uses processor time and ignores TERM. So it
//! sees only the worktree and its own directory, has no socket, and is limited in time, memory and output. It ends by KILL.
//! At most `bake.prints` run at once.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::child::{make_directories, programs, switches, version_child};
use super::definition_file::Given;
use super::policy::Refusal;
use super::{Bake, BakeError, BakeRequest, Child, Definition, escape};
use crate::job::list_names;
use crate::json;
use crate::process::{self, Ended, Stream};
use crate::sandbox::{ResourceLimits, Sandbox, Sockets, is_not_launched, libraries};
use crate::state::JobDirectory;
use crate::text::tail::Tail;
use crate::{bounds, text};

/// The exit code of a Go program that runs out of memory. docker-buildx's own is 1.
const CRASHED: i32 = 2;

/// Go threads: with one, the time limit by the clock is reached before the limit of processor time.
const N_THREADS: u32 = 1;

/// A path that exists on no machine.
pub(super) const NOWHERE: &str = "/nonexistent";

/// Targets by name, as printed and then unescaped.
pub(super) type Targets = BTreeMap<String, Map<String, Value>>;

/// Prints the resolved definition.
const PRINT: &[&str] = &["--print"];

/// Prints the names of all targets and groups.
const LIST: &[&str] = &["--list", "type=targets,format=json"];

/// Resolves a definition: the requested targets and those linked to them.
pub(super) async fn print(
    bake: &Bake,
    given: &mut Given,
    request: &BakeRequest<'_>,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> Result<Targets, BakeError> {
    let mut overrides = Vec::new();
    let wanted = request.build.target_names();
    let begun = Instant::now();
    loop {
        let reading = Reading { bake, request, given, directory, stop };
        let mut message = match reading.print(&overrides, &wanted).await? {
            Ok(printed) => {
                let targets = read(&printed)?;
                reading.check_tags(&targets).await?;
                return Ok(targets);
            }
            Err(message) => message,
        };
        if message.starts_with(SSH) {
            return Err(Refusal::not_allowed("ssh", "SSH keys and agents of the host are not allowed").into());
        }
        let deadline = begun + bake.limits.print_timeout + given.waited();
        let is_in_time = Instant::now() < deadline;
        if is_in_time && is_of_output(&message) {
            match reading.replace_files(&wanted, &mut overrides, deadline).await? {
                Ok(true) => continue,
                Ok(false) => {}
                Err(other) => message = other,
            }
        }
        let is_mended = match missing_file(&message).filter(|_| is_in_time) {
            // A secret with only an id is a variable of that name, or else a file that must exist even now.
            Some(file) => given.stand_in(file, directory).await?,
            None => false,
        };
        if !is_mended {
            Reading { bake, request, given, directory, stop }.check_targets().await?;
            return Err(BakeError::Invalid(without_reason(shown(&given.renamed(&message), request, directory))));
        }
    }
}

/// A target or group of a definition, as `--list` prints it.
#[derive(serde::Deserialize)]
struct Listed {
    name: String,
    #[serde(default)]
    group: bool,
}

/// One definition, read as often as needed.
struct Reading<'a> {
    bake: &'a Bake,
    request: &'a BakeRequest<'a>,
    given: &'a Given,
    directory: &'a JobDirectory,
    stop: &'a CancellationToken,
}

impl Reading<'_> {
    /// buildx's output for these targets, or its error message about the definition.
    async fn print(&self, overrides: &[String], targets: &[String]) -> Result<Result<Vec<u8>, String>, BakeError> {
        let mut arguments: Vec<String> =
            overrides.iter().flat_map(|value| ["--set".to_owned(), value.clone()]).collect();
        arguments.extend(after_options(targets));
        match run(self.bake, PRINT, self.given, &arguments, self.request, self.directory, self.stop).await {
            Ok(printed) => Ok(Ok(printed)),
            Err(BakeError::Invalid(message)) => Ok(Err(message)),
            Err(error) => Err(error),
        }
    }

    /// Refuses requested targets that are not in the definition, once it could not be printed.
    async fn check_targets(&self) -> Result<(), BakeError> {
        let Some(listed) = self.list().await? else { return Ok(()) };
        let names = listed.iter().map(|listed| &*listed.name);
        let build = self.request.build;
        if build.targets.is_empty() && !names.clone().any(|name| name == "default") {
            let message = format!(
                "the definition has no default group, and the job names no targets; known: {}",
                list_names(names)
            );
            return Err(Refusal::invalid("group.default", message).into());
        }
        build.check_targets(names).map_err(|error| Refusal::of_job(error).into())
    }

    /// Refuses tags of targets that are not in the definition.
    async fn check_tags(&self, printed: &Targets) -> Result<(), BakeError> {
        let build = self.request.build;
        if build.tagged().all(|name| printed.contains_key(name)) {
            return Ok(());
        }
        let Some(listed) = self.list().await? else { return Ok(()) };
        let names = listed.iter().filter(|listed| !listed.group).map(|listed| &*listed.name);
        build.check_tags(names).map_err(|error| Refusal::of_job(error).into())
    }

    /// All targets and groups of the definition; `None` when buildx cannot read it.
    async fn list(&self) -> Result<Option<Vec<Listed>>, BakeError> {
        match run(self.bake, LIST, self.given, &[], self.request, self.directory, self.stop).await {
            Ok(listed) => Ok(json::read(&listed).ok()),
            Err(BakeError::Invalid(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces outputs to files by outputs to a directory, which policy judges the same. buildx before 0.30 opens such a file even
    /// now and does not report which target's it is, so each target is read alone. Returns whether any was replaced, or buildx's
    /// error message about the definition without outputs.
    ///
    /// A target that is also an image then is not one: buildx does not report which of two outputs it cannot open.
    async fn replace_files(
        &self,
        wanted: &[String],
        overrides: &mut Vec<String>,
        deadline: Instant,
    ) -> Result<Result<bool, String>, BakeError> {
        let without_outputs = ["*.output=type=cacheonly".to_owned()];
        let printed = match self.print(&without_outputs, wanted).await? {
            Ok(printed) => printed,
            Err(message) => return Ok(Err(message)),
        };
        let n_before = overrides.len();
        for name in read(&printed)?.into_keys() {
            if Instant::now() >= deadline {
                break;
            }
            let alone = self.print(overrides, std::slice::from_ref(&name)).await?;
            if alone.is_err_and(|message| is_of_output(&message)) {
                overrides.push(format!("{name}.output=type=local,dest=."));
            }
        }
        Ok(Ok(overrides.len() > n_before))
    }
}

/// How buildx begins its error about an SSH agent or key. It does not report which target's it is.
const SSH: &str = "failed to convert agent config ";

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
    let why = format!("{path} cannot be read: it is not a file of the repository");
    // A build seldom needs such a file: most projects keep it out of the repository, for the containers that run later.
    let is_env_file = rest.starts_with("env file ");
    if is_env_file { format!("{why}; commit it, or write \"required: false\" for it in env_file") } else { why }
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

/// The file of a secret that buildx did not find. The message has its path twice.
fn missing_file(message: &str) -> Option<&str> {
    const BETWEEN: &str = ": stat ";
    let twice = message.strip_prefix("failed to stat ")?.strip_suffix(": no such file or directory")?;
    let length = twice.len().checked_sub(BETWEEN.len())? / 2;
    let (file, rest) = twice.split_at_checked(length)?;
    (rest.strip_prefix(BETWEEN) == Some(file)).then_some(file)
}

/// Whether buildx resolves the validated text to exactly the validated targets.
pub(super) async fn is_understood(
    bake: &Bake,
    validated: &Definition,
    request: &BakeRequest<'_>,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> Result<bool, BakeError> {
    let given = Given::validated(validated.write(directory)?, request.worktree);
    let arguments: Vec<String> = after_options(validated.targets.keys()).collect();
    let printed =
        run(bake, PRINT, &given, &arguments, request, directory, stop).await.map_err(|error| match error {
            BakeError::Invalid(message) => BakeError::Invalid(shown(&message, request, directory)),
            error => error,
        })?;
    let mut understood = read(&printed)?;
    // Added by us, and printed in another form.
    understood.values_mut().for_each(|target| drop(target.remove(escape::POLICY)));
    Ok(understood == validated.targets)
}

/// Names of targets as arguments: one may look like an option.
pub(super) fn after_options<'a>(names: impl IntoIterator<Item = &'a String>) -> impl Iterator<Item = String> {
    ["--".to_owned()].into_iter().chain(names.into_iter().cloned())
}

async fn run(
    bake: &Bake,
    mode: &[&str],
    given: &Given,
    arguments: &[String],
    request: &BakeRequest<'_>,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> Result<Vec<u8>, BakeError> {
    let asked = Instant::now();
    let turn = stop.run_until_cancelled(bake.prints.acquire()).await.ok_or(BakeError::Stopped)?;
    given.note_wait(asked.elapsed());
    let _turn = turn.expect("the semaphore is never closed");
    let private = directory.fresh("print").await?;
    make_directories(&private)?;
    let mut child = child(bake, request, &private);
    child.sandbox.read.extend(given.readable());
    if given.has_own_home && !request.build.variables.contains_key("HOME") {
        child.environment.remove("HOME");
    }
    for (name, value) in given.variables().filter(|(name, _)| !request.build.variables.contains_key(*name)) {
        child.environment.insert(name.into(), value.display().to_string());
    }
    let mut command = child.command(&bake.buildx.binary);
    command.arg("bake").args(mode).args(["--progress", "quiet"]).args(given.arguments()).args(arguments);
    command.current_dir(given.working_directory());
    let (ended, out, err) = collect(bake, command, stop).await?;
    match ended {
        Ended::Exited(status) if status.success() => Ok(out),
        Ended::Exited(status) if status.signal().is_some_and(|signal| signal != libc::SIGXCPU) => {
            Err(BakeError::Launcher(format!("--print ended with {status}")))
        }
        Ended::Exited(status) if status.code() == Some(CRASHED) => {
            let limit = memory(bake) >> 20;
            Err(BakeError::Invalid(format!("the definition takes more than {limit} MiB of memory to evaluate")))
        }
        Ended::Exited(_) if is_not_launched(ended) => {
            Err(BakeError::Launcher(shown(last_line(&err), request, directory)))
        }
        Ended::Exited(status) if status.signal().is_none() => Err(failure(&err)),
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
async fn collect(bake: &Bake, command: Command, stop: &CancellationToken) -> Result<(Ended, Vec<u8>, Tail), BakeError> {
    let limits = process::RunLimits {
        timeout: Some(bake.limits.print_timeout),
        silence: None,
        max_output_bytes: bake.limits.max_print_bytes,
        stop: stop.clone(),
    };
    let (mut out, mut err) = (Vec::new(), Tail::default());
    let ended = process::run(command, b"", &limits, |stream, line| match stream {
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
/// job's own variables. buildx needs no configuration here; without these paths it would look for one in the repository. Without
/// `HOME`, `homedir()` would be that of the worker's user.
fn environment(variables: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let nowhere = |name: &str| (name.to_owned(), NOWHERE.to_owned());
    let mut environment = BTreeMap::from([nowhere("HOME")]);
    environment.extend(variables.clone());
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
fn failure(err: &Tail) -> BakeError {
    match err.lines().rev().find_map(|line| line.strip_prefix("ERROR: ")) {
        Some(message) => BakeError::Invalid(without_programs(message.to_owned())),
        None => BakeError::Invalid(last_line(err).to_owned()),
    }
}

fn last_line(err: &Tail) -> &str {
    err.last().unwrap_or("it ended without an error message")
}

/// A message without paths of the worker.
fn shown(message: &str, request: &BakeRequest<'_>, directory: &JobDirectory) -> String {
    directory.worker_paths().with_worktree(request.worktree).hide(message).into_owned()
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
    let (ended, out, err) = tokio::time::timeout(Duration::from_secs(10), collect(bake, command, &stop))
        .await
        .map_err(|_| BakeError::Launcher("version took more than 10 s".into()))??;
    if is_not_launched(ended) {
        return Err(BakeError::Launcher(last_line(&err).to_owned()));
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
            "HOME",
            "TAG",
        ];
        assert_eq!(names, expected);
        let paths: Vec<&str> = environment.values().map(String::as_str).filter(|value| value.contains('/')).collect();
        assert_eq!(paths, [NOWHERE; 3]);
    }

    #[test]
    fn what_is_outside_of_the_repository_is_not_told_by_why_it_cannot_be_read() {
        let expected = "/any/x cannot be read: it is not a file of the repository";
        for message in [
            "open /any/x: permission denied",
            "open /any/x: no such file or directory",
            "open /any/x: not a directory",
            "failed to stat /any/x: stat /any/x: permission denied",
        ] {
            assert_eq!(without_reason(message.into()), expected, "{message}");
        }
        for why in ["no such file or directory", "permission denied"] {
            let message = without_reason(format!("env file /any/x not found: stat /any/x: {why}"));
            assert_eq!(message, format!("{expected}; commit it, or write \"required: false\" for it in env_file"));
        }
        let other = "docker-bake.hcl:1,40-2,1: Invalid expression";
        assert_eq!(without_reason(other.into()), other);
    }

    #[test]
    fn the_missing_file_of_a_secret_is_read_exactly() {
        let file = |message: &str| missing_file(message).map(str::to_owned);
        let of = |path: &str| file(&format!("failed to stat {path}: stat {path}: no such file or directory"));
        for path in ["npm", "./secrets/npm", "a: b", "x: stat x", ""] {
            assert_eq!(of(path).as_deref(), Some(path));
        }
        assert_eq!(file("failed to stat a: stat b: no such file or directory"), None);
        assert_eq!(file("failed to stat a: stat a: permission denied"), None);
    }
}
