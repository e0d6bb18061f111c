//! One child process: started in a group of its own, read line by line, ended by its exit or by KILL.
//!
//! A pipe is read only when its last line was handled: nothing is queued, and the child waits meanwhile. So a child takes the memory
//! of one line per pipe, whatever it writes.
//!
//! The only module that runs children. Cancelling, time limits, silence and too much output are one mechanism: KILL to the whole
//! group. A child that exits with an error is a value, not an error; `Err` means that it could not be run.

mod lines;

use std::io;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpgid};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::bounds;

use lines::Lines;

/// Bytes of a line, and of all lines, that are kept of a child's standard error.
const MAX_SAID_LINE: usize = 500;
const MAX_SAID: usize = 2000;

/// How long the pipes may stay open after the child's exit.
const DRAIN: Duration = Duration::from_secs(2);

/// How long a killed group is waited for, and how often it is looked at.
const REAP: Duration = Duration::from_secs(60);
const REAP_INTERVAL: Duration = Duration::from_millis(5);

/// A child that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("{program} could not be started: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// Waiting for it failed.
    #[error("could not wait for {program}: {source}")]
    Wait {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
}

/// When a child is killed.
#[derive(Clone, Debug)]
pub struct RunLimits {
    /// After this long, if at all.
    pub timeout: Option<Duration>,
    /// After this long without a byte on either pipe, if at all.
    pub silence: Option<Duration>,
    /// After this many bytes on its standard output.
    pub max_output_bytes: usize,
    /// When this is cancelled.
    pub stop: CancellationToken,
}

impl RunLimits {
    /// Bytes of standard output of a program that writes its results elsewhere.
    const LITTLE: usize = 64 << 10;

    /// A program without a time limit that writes its results to files.
    pub fn until(stop: CancellationToken) -> Self {
        Self { timeout: None, silence: None, max_output_bytes: Self::LITTLE, stop }
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// Killed: it took too long.
    TimedOut,
    /// Killed: it was silent for too long.
    Silent,
    /// Killed: it wrote too much.
    TooMuchOutput,
    /// Killed: the build was stopped.
    Stopped,
}

impl Ended {
    /// Whether it ended by itself, with status 0.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

/// Which pipe a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A command with an empty environment. Children that handle strangers' bytes go through `sandbox`, which uses this.
#[expect(clippy::disallowed_methods, reason = "the one place that makes commands")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command
}

/// Runs a child to its end and passes each line of its output, without the line feed, to `on_line`. Lines are cut at
/// [`bounds::LINE`] bytes.
///
/// Writes `input` to its standard input and closes it. When the future is dropped, the group is killed.
pub async fn run(
    command: Command,
    input: &[u8],
    limits: &RunLimits,
    on_line: impl FnMut(Stream, &[u8]),
) -> Result<Ended, ProcessError> {
    run_seen(command, input, limits, &OnceLock::new(), on_line).await
}

/// The same; `seen` receives the child's process id, for the watch of a builder.
pub async fn run_seen(
    mut command: Command,
    input: &[u8],
    limits: &RunLimits,
    seen: &OnceLock<u32>,
    mut on_line: impl FnMut(Stream, &[u8]),
) -> Result<Ended, ProcessError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let mut group = Group::spawn(&mut command)?;
    let _ = seen.set(group.leader());
    let child = group.child();
    let mut out = Lines::of(child.stdout.take().expect("standard output is a pipe"), bounds::LINE);
    let mut err = Lines::of(child.stderr.take().expect("standard error is a pipe"), bounds::LINE);
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    let write = async move {
        // A child need not read its input: its exit reports the error.
        let _ = stdin.write_all(input).await;
    };
    tokio::pin!(write);

    let started = Instant::now();
    let (mut last_byte, mut n_bytes, mut is_written) = (started, 0, false);
    let (mut ended, mut drain_until) = (None, None);
    while ended.is_none() || out.is_open || err.is_open {
        // Dropping a branch loses nothing: bytes stay in the pipes, the write continues, and `wait` and the timers start again.
        tokio::select! {
            biased;
            () = limits.stop.cancelled(), if ended.is_none() => ended = Some(Ended::Stopped),
            () = expired(started, limits.timeout), if ended.is_none() => ended = Some(Ended::TimedOut),
            () = expired(last_byte, limits.silence), if ended.is_none() => ended = Some(Ended::Silent),
            () = sleep_until(drain_until.unwrap_or(started)), if drain_until.is_some() => break,
            n = out.read(), if out.is_open => {
                last_byte = Instant::now();
                n_bytes += n;
                out.hand_over(n, |line| on_line(Stream::Out, line));
                if n_bytes > limits.max_output_bytes && ended.is_none() {
                    ended = Some(Ended::TooMuchOutput);
                }
            }
            n = err.read(), if err.is_open => {
                last_byte = Instant::now();
                err.hand_over(n, |line| on_line(Stream::Err, line));
            }
            () = &mut write, if !is_written => is_written = true,
            status = group.child().wait(), if ended.is_none() => {
                let status = status.map_err(|source| ProcessError::Wait { program: program.clone(), source })?;
                ended = Some(Ended::Exited(status));
            }
        }
        if ended.is_some() && drain_until.is_none() {
            // Killing the group also ends grandchildren that hold the pipes.
            group.kill();
            drain_until = Some(Instant::now() + DRAIN);
        }
    }
    let status = group.child().wait().await.map_err(|source| ProcessError::Wait { program, source })?;
    Ok(ended.unwrap_or(Ended::Exited(status)))
}

/// Returns when a time since an instant is over; never without one.
async fn expired(since: Instant, limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep_until(since + limit).await,
        None => std::future::pending().await,
    }
}

/// Starts a child and returns a pipe to its standard input and output. When the pipe is dropped, the group is killed. The second
/// value receives the child's standard error.
pub fn pipe(mut command: Command) -> Result<(ChildPipe, watch::Receiver<String>), ProcessError> {
    let mut group = Group::spawn(&mut command)?;
    let child = group.child();
    let stdout = child.stdout.take().expect("standard output is a pipe");
    let stdin = child.stdin.take().expect("standard input is a pipe");
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let (said, heard) = watch::channel(String::new());
    tokio::spawn(async move {
        let mut lines = Lines::of(stderr, MAX_SAID_LINE);
        while lines.is_open {
            let n = lines.read().await;
            lines.hand_over(n, |line| add(&said, &String::from_utf8_lossy(line)));
        }
    });
    Ok((ChildPipe { both: tokio::io::join(stdout, stdin), _group: group }, heard))
}

/// Adds a line while there is room.
fn add(said: &watch::Sender<String>, line: &str) {
    said.send_if_modified(|said| {
        let has_room = said.len() < MAX_SAID;
        if has_room {
            let between = if said.is_empty() { "" } else { "; " };
            said.push_str(between);
            said.push_str(line.trim());
        }
        has_room
    });
}

/// Both ends of a child.
pub struct ChildPipe {
    both: tokio::io::Join<ChildStdout, ChildStdin>,
    _group: Group,
}

impl AsyncRead for ChildPipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.both).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ChildPipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.both).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.both).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.both).poll_shutdown(cx)
    }
}

/// A child in a process group of its own. When this is dropped, the group is killed and reaped.
struct Group {
    id: Pid,
    /// `None` only while this is dropped.
    child: Option<Child>,
}

impl Group {
    fn spawn(command: &mut Command) -> Result<Self, ProcessError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(|source| {
            let program = command.as_std().get_program().to_string_lossy().into_owned();
            ProcessError::Spawn { program, source }
        })?;
        // It was not waited for, so it has an id that is not reused.
        let id = id_of(child.id().expect("a child that was not waited for has an id"));
        Ok(Self { id, child: Some(child) })
    }

    fn leader(&self) -> u32 {
        self.id.as_raw_nonzero().get().cast_unsigned()
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("the group was not dropped")
    }

    fn kill(&self) {
        kill_group(self.id);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        let (id, child) = (self.id, self.child.take());
        // Without a runtime, this process is about to end.
        let (Some(mut child), Ok(runtime)) = (child, Handle::try_current()) else { return };
        runtime.spawn(async move {
            if child.wait().await.is_ok() {
                let started = Instant::now();
                while !is_reaped(id) && started.elapsed() < REAP {
                    sleep(REAP_INTERVAL).await;
                }
            }
        });
    }
}

/// Whether a child has ended. It can still be waited for.
pub fn has_ended(child: &std::process::Child) -> io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(id_of(child.id())), options)?.is_some())
}

/// Kills a child that leads a group of its own, and reaps the group. Blocks for some milliseconds.
pub fn end(child: &mut std::process::Child) -> io::Result<ExitStatus> {
    let group = id_of(child.id());
    kill_group(group);
    let status = child.wait()?;
    let started = std::time::Instant::now();
    while !is_reaped(group) && started.elapsed() < DRAIN {
        std::thread::sleep(REAP_INTERVAL);
    }
    Ok(status)
}

fn id_of(child: u32) -> Pid {
    i32::try_from(child).ok().and_then(Pid::from_raw).expect("a process id is a positive i32")
}

fn kill_group(group: Pid) {
    // An empty group is fine, so the error is ignored.
    let _ = kill_process_group(group, Signal::KILL);
}

/// Reaps what is dead of a group, and returns whether no child of this process is left in it.
///
/// Members become children of this process when their parent dies and this is process 1 of a container, or a subreaper. Call it only
/// after the leader was waited for: it would take the leader's status.
fn is_reaped(group: Pid) -> bool {
    loop {
        match waitpgid(group, WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> RunLimits {
        RunLimits {
            timeout: Some(Duration::from_secs(20)),
            silence: Some(Duration::from_secs(20)),
            max_output_bytes: 1 << 20,
            stop: CancellationToken::new(),
        }
    }

    fn shell(script: &str) -> Command {
        let mut command = command("/bin/sh");
        command.env("PATH", "/usr/bin:/bin").arg("-c").arg(script);
        command
    }

    async fn run_shell(script: &str, input: &[u8], limits: &RunLimits) -> (Ended, Vec<String>) {
        let mut lines = Vec::new();
        let ended = run(shell(script), input, limits, |stream, line| {
            lines.push(format!("{stream:?} {}", String::from_utf8_lossy(line)));
        })
        .await
        .expect("run");
        lines.sort();
        (ended, lines)
    }

    #[tokio::test]
    async fn lines_of_both_pipes_arrive_and_the_exit_is_a_value() {
        let (ended, lines) = run_shell("cat; echo b >&2; printf c; exit 3", b"a\n", &limits()).await;
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)));
        assert_eq!(lines, ["Err b", "Out a", "Out c"]);
    }

    #[tokio::test]
    async fn a_child_that_ignores_term_and_has_children_is_killed_whole() {
        let limits = RunLimits { timeout: Some(Duration::from_millis(300)), ..limits() };
        let script = "trap '' TERM; (sleep 60) & echo $!; wait; sleep 60";
        let (ended, lines) = run_shell(script, b"", &limits).await;
        assert_eq!(ended, Ended::TimedOut);
        let grandchild = lines[0].trim_start_matches("Out ").to_owned();
        wait_until(|| is_gone(&grandchild)).await;
    }

    #[tokio::test]
    async fn a_grandchild_that_keeps_the_pipes_does_not_keep_us() {
        let limits = limits();
        let run = run_shell("(sleep 1000) & echo $!", b"", &limits);
        let (ended, lines) =
            tokio::time::timeout(Duration::from_secs(90), run).await.expect("it waits for the grandchild");
        assert!(ended.is_success());
        let grandchild = lines[0].trim_start_matches("Out ").to_owned();
        wait_until(|| is_gone(&grandchild)).await;
    }

    #[tokio::test]
    async fn a_child_that_closes_its_pipes_and_stays_is_killed_at_its_limit() {
        let limits = RunLimits { timeout: Some(Duration::from_millis(300)), ..limits() };
        assert_eq!(run_shell("exec sleep 60 >&- 2>&-", b"", &limits).await.0, Ended::TimedOut);
    }

    #[tokio::test]
    async fn silence_output_and_cancelling_end_in_kill() {
        let silent = RunLimits { silence: Some(Duration::from_millis(200)), ..limits() };
        assert_eq!(run_shell("echo a; sleep 60", b"", &silent).await.0, Ended::Silent);
        let small = RunLimits { max_output_bytes: 1000, ..limits() };
        assert_eq!(
            run_shell("while :; do echo xxxxxxxxxxxxxxxxxxxxx; done", b"", &small).await.0,
            Ended::TooMuchOutput
        );
        let cancelled = limits();
        cancelled.stop.cancel();
        assert_eq!(run_shell("sleep 60", b"", &cancelled).await.0, Ended::Stopped);
    }

    #[tokio::test]
    async fn large_input_is_written_while_output_is_read() {
        let input = vec![b'x'; 4 << 20];
        let limits = RunLimits { max_output_bytes: 16 << 20, ..limits() };
        let mut n_bytes = 0;
        let ended = run(shell("cat"), &input, &limits, |_, line| n_bytes += line.len()).await.expect("run");
        assert!(ended.is_success());
        assert_eq!(n_bytes, input.len());
    }

    #[tokio::test]
    async fn a_line_without_end_takes_the_memory_of_one_line_and_the_next_one_is_whole() {
        let script = "head -c 64m /dev/zero | tr '\\0' x >&2; echo >&2; echo next >&2; printf last >&2";
        let mut lines = Vec::new();
        let limits = RunLimits { max_output_bytes: 0, ..limits() };
        let ended = run(shell(script), b"", &limits, |_, line| lines.push((line.len(), line[..4].to_vec()))).await;
        assert!(ended.expect("run").is_success());
        assert_eq!(lines, [(bounds::LINE, b"xxxx".to_vec()), (4, b"next".to_vec()), (4, b"last".to_vec())]);
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_group() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            run(shell("echo $$; sleep 60"), b"", &limits(), move |_, line| {
                let _ = sender.send(String::from_utf8_lossy(line).into_owned());
            })
            .await
        });
        let pid = receiver.recv().await.expect("a line");
        task.abort();
        wait_until(|| is_gone(&pid)).await;
    }

    #[tokio::test]
    async fn a_process_that_adopts_the_rest_of_a_group_reaps_it() {
        // As process 1 of a container.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("a subreaper");
        let is_reaped = |pid: &str| !std::path::Path::new("/proc").join(pid).exists();
        let script = "(sleep 1000) & echo $!";
        let (_, lines) = run_shell(script, b"", &limits()).await;
        wait_until(|| is_reaped(lines[0].trim_start_matches("Out "))).await;

        let (mut child, _) = pipe(shell(&format!("{script}; sleep 1000"))).expect("a pipe");
        let mut line = [0; 32];
        let n = tokio::io::AsyncReadExt::read(&mut child, &mut line).await.expect("a line");
        let pid = String::from_utf8_lossy(&line[..n]).trim().to_owned();
        assert!(!is_reaped(&pid));
        drop(child);
        wait_until(|| is_reaped(&pid)).await;

        let mut command = shell(&format!("{script}; sleep 1000")).into_std();
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a child");
        let n = io::Read::read(child.stdout.as_mut().expect("a pipe"), &mut line).expect("a line");
        let pid = String::from_utf8_lossy(&line[..n]).trim().to_owned();
        end(&mut child).expect("it ends");
        assert!(is_reaped(&pid));
    }

    /// Gone, or dead and not yet reaped.
    fn is_gone(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    }

    async fn wait_until(condition: impl Fn() -> bool) {
        for _ in 0..500 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the condition never held");
    }
}
