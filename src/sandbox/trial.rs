//! Whether brokers work on this machine: a child of our own binary gets one and connects to two ports.
//!
//! A kernel, a container runtime or Yama can refuse one of the calls that a broker needs. Only a trial shows it.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{Enforcement, ResourceLimits, Sandbox, SandboxError, Sockets};

/// The first argument of our own binary when it starts as a trial.
pub const VERB: &str = "sandboxed-trial";

/// How long a trial may take. It takes some milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

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

/// Runs a trial. Blocks for some milliseconds.
///
/// # Errors
///
/// Why brokers do not work here, in words.
pub(super) fn run() -> Result<(), String> {
    let attempt = || {
        let listeners = [local()?, local()?];
        let ports = [listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()];
        let mut command = sandbox(ports[0]).ordered(VERB, true).into_std();
        command.args(ports.map(|port| port.to_string()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > LIMIT {
                let _ = child.kill();
                break child.wait()?;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            stderr.take(MAX_REASON).read_to_string(&mut said)?;
        }
        Ok::<_, io::Error>(if status.success() { Ok(()) } else { Err(format!("{status}: {}", said.trim())) })
    };
    attempt().unwrap_or_else(|error| Err(error.to_string()))
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
