//! Whether brokers work on this machine: a child of our own binary gets one and connects to two ports.
//!
//! A kernel, a container runtime or Yama can refuse one of the calls that a broker needs. Only a trial shows it.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::process;

use super::{Enforcement, ResourceLimits, Sandbox, SandboxError, Sockets};

/// The first argument of our own binary when it starts as a trial.
pub const VERB: &str = "sandboxed-trial";

/// The exit status of a trial that another one may contradict: `EX_TEMPFAIL`.
const TRY_AGAIN: u8 = 75;

/// How many trials a machine gets.
const TRIALS: usize = 3;

/// How long a trial may take. It takes some milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// How long it waits for one connection on this machine.
const CONNECT: Duration = Duration::from_secs(3);

/// The longest reason that is kept of a failed trial.
const MAX_REASON: u64 = 300;

/// A trial that failed.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The sandbox could not be entered.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A port has the wrong outcome.
    #[error("{what}: {source}")]
    Port {
        /// Which.
        what: &'static str,
        /// How the connection ended.
        source: io::Error,
    },
}

impl TrialError {
    /// The exit status of the trial.
    pub fn status(&self) -> u8 {
        let is_transient = match self {
            Self::Sandbox(SandboxError::Broker(error)) => error.kind() == ErrorKind::Other || is_transient(error),
            Self::Sandbox(SandboxError::Capabilities(error) | SandboxError::Limit(_, error)) => is_transient(error),
            Self::Sandbox(_) => false,
            // A broker that has ended leaves this error.
            Self::Port { source, .. } => is_transient(source) || source.kind() == ErrorKind::Unsupported,
        };
        if is_transient { TRY_AGAIN } else { 1 }
    }
}

/// Why brokers do not work here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// In words.
    pub(super) why: String,
    /// Whether a later trial may succeed.
    pub(super) is_transient: bool,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { why: error.to_string(), is_transient: is_transient(&error) }
    }
}

/// Whether the machine only lacked something for a moment.
fn is_transient(error: &io::Error) -> bool {
    const LACKING: [Errno; 6] = [Errno::AGAIN, Errno::INTR, Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.kind() == ErrorKind::TimedOut || Errno::from_io_error(error).is_some_and(|errno| LACKING.contains(&errno))
}

/// Runs a trial, and others while it fails for a moment's reason. Blocks for some milliseconds.
pub(super) fn run() -> Result<(), Refusal> {
    repeated(once)
}

fn repeated(mut trial: impl FnMut() -> Result<(), Refusal>) -> Result<(), Refusal> {
    let is_settled = |outcome: &Result<(), Refusal>| !matches!(outcome, Err(refusal) if refusal.is_transient);
    let mut outcome = trial();
    for _ in 1..TRIALS {
        if is_settled(&outcome) {
            break;
        }
        outcome = trial();
    }
    outcome
}

fn once() -> Result<(), Refusal> {
    let listeners = [local()?, local()?];
    let ports = [listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()];
    let mut command = sandbox(ports[0]).ordered(VERB, true).into_std();
    command.args(ports.map(|port| port.to_string())).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let started = Instant::now();
    // Its status stays for `end`.
    while !process::has_ended(&child)? && started.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    let status = process::end(&mut child)?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // Bytes that are not text are an error, and no reason.
        let _ = stderr.take(MAX_REASON).read_to_string(&mut said);
    }
    let is_transient = status.code() == Some(TRY_AGAIN.into()) || status.signal() == Some(Signal::KILL.as_raw());
    Err(Refusal { why: format!("{status}: {}", said.trim()), is_transient })
}

fn local() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn sandbox(port: u16) -> Sandbox {
    Sandbox {
        enforcement: Enforcement::BestEffort,
        system: Vec::new(),
        execute: Vec::new(),
        read: Vec::new(),
        write: vec!["/dev/null".into()],
        sockets: Sockets::Tcp(vec![port]),
        limits: ResourceLimits { data_bytes: 64 << 20, cpu_seconds: Some(10), file_bytes: 0, stack_bytes: None },
    }
}

/// The trial's `main`. Arguments: the sandbox, the worker's process id, a port that it allows, one that it does not.
///
/// # Errors
///
/// What a broker did wrong.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Result<(), TrialError> {
    let mut text = || arguments.next().and_then(|text| text.into_string().ok()).unwrap_or_default();
    Sandbox::enter(&text(), &text())?;
    let mut connect = || {
        let port = text().parse().map_err(io::Error::other)?;
        TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), CONNECT)
    };
    let wrong = |what, source| Err(TrialError::Port { what, source });
    match (connect(), connect()) {
        (Err(error), _) => wrong("could not connect to an allowed port", error),
        (_, Err(error)) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        (_, Err(error)) => wrong("could not be kept from a port in the right way", error),
        (_, Ok(_)) => wrong("connected to a port that is not allowed", io::Error::other("no error")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(is_transient: bool) -> Result<(), Refusal> {
        Err(Refusal { why: "a reason".into(), is_transient })
    }

    #[test]
    fn only_a_transient_failure_is_tried_again_and_not_without_end() {
        for (outcomes, n, expected) in [
            (vec![Ok(())], 1, Ok(())),
            (vec![refusal(false), Ok(())], 1, refusal(false)),
            (vec![refusal(true), refusal(true), Ok(())], 3, Ok(())),
            (vec![refusal(true), refusal(false), Ok(())], 2, refusal(false)),
            (vec![refusal(true); 9], 3, refusal(true)),
        ] {
            let mut left = outcomes.clone().into_iter();
            assert_eq!(repeated(|| left.next().expect("a trial")), expected);
            assert_eq!(outcomes.len() - left.len(), n);
        }
    }

    #[test]
    fn what_the_machine_lacks_for_a_moment_is_transient_and_a_refusal_is_not() {
        let of = |errno: Errno| io::Error::from(errno);
        let port = |errno| TrialError::Port { what: "", source: of(errno) };
        let broker = |error| TrialError::Sandbox(SandboxError::Broker(error));
        for (error, is_transient) in [
            (port(Errno::TIMEDOUT), true),
            (port(Errno::NOSYS), true),
            (port(Errno::ACCESS), false),
            (port(Errno::CONNREFUSED), false),
            (broker(of(Errno::MFILE)), true),
            (broker(of(Errno::AGAIN)), true),
            (broker(of(Errno::NOMEM)), true),
            (broker(io::Error::other("the broker has ended")), true),
            (broker(of(Errno::BUSY)), false),
            (broker(of(Errno::PERM)), false),
            (broker(of(Errno::NOSYS)), false),
            (broker(io::Error::new(ErrorKind::Unsupported, "needs Linux 5.19")), false),
        ] {
            assert_eq!(error.status() == TRY_AGAIN, is_transient, "{error:?}");
        }
    }
}
