//! What a child may see and do: a launcher that restricts itself and then becomes the child.
//!
//! Owns the kernel's restrictions: Landlock (files and TCP ports), seccomp (sockets, and calls that no child needs), capabilities
//! and rlimits. Where Landlock has no rules for ports, a second process connects the child's sockets (`broker`). The worker starts its own binary again, which restricts itself and then executes the program; the worker is not
//! restricted. Knows nothing of the children: each integration says what its child needs. `tests/it/walls.txt` lists each
//! escape attempt with the restriction that stops it, or with none.
//!
//! A child can start threads and no processes. RLIMIT_NPROC would not work: it counts all of the user's processes and threads, those
//! of the worker and of other jobs included, and does not apply to root. RLIMIT_DATA limits the number of threads, since it
//! counts their stacks. It counts only private memory, so seccomp refuses shared memory and memory that grows like a stack. A
//! worker's memory is then the sum of its children's limits and its own.
//!
//! Limits: TCP rules are by port and not by host. UDP is not restricted. Unix sockets with a path are all allowed or all refused. A
//! child can execute any readable file through the loader. Whether a path exists, and its size, can be queried for any path.
//! Follows `landlock(7)` and `seccomp(2)`.

mod broker;
mod kernel;
mod notification;
mod seccomp;
mod trial;

use std::convert::Infallible;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use seccompiler::BpfProgram;
use serde::{Deserialize, Serialize};

use crate::beneath;
use crate::process::{self, Ended};
use crate::settings::SandboxMode;

pub use kernel::{Wall, enforced, has_broker, missing_walls};
pub use trial::{VERB as TRIAL, main as trial};

use broker::Broker;

/// The first argument of our own binary when it starts as a launcher.
pub const LAUNCH: &str = "sandboxed-exec";

/// The exit status of a launcher that could not start its program, as a shell has it. docker-buildx ends with 0 or 1.
pub const NOT_LAUNCHED: u8 = 126;

/// Whether the child is a launcher that could not start its program.
pub fn is_not_launched(ended: Ended) -> bool {
    matches!(ended, Ended::Exited(status) if status.code() == Some(NOT_LAUNCHED.into()))
}

/// The first version of Landlock with all the rights of [`Sandbox::write`].
const RIGHTS: ABI = ABI::V4;

/// The restrictions could not be applied, or the program could not be executed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel has no Landlock.
    #[error("the kernel cannot restrict files (Landlock, Linux 5.13): {0}")]
    Landlock(String),
    /// The system call filter was refused.
    #[error("the system call filter was refused: {0}")]
    Seccomp(String),
    /// Capabilities could not be dropped.
    #[error("could not drop capabilities: {0}")]
    Capabilities(std::io::Error),
    /// The broker that restricts TCP ports on this kernel could not be started.
    #[error("the TCP ports of the child cannot be restricted: {0}")]
    Broker(std::io::Error),
    /// A resource limit could not be set.
    #[error("could not set the limit for {0}: {1}")]
    Limit(&'static str, std::io::Error),
    /// A path of the job contains a link, or cannot be opened.
    #[error("{0} cannot be opened: {1}")]
    Path(PathBuf, std::io::Error),
    /// The worker ended before the child started.
    #[error("the worker is gone")]
    Orphaned,
    /// The program cannot be executed.
    #[error("{0} cannot be executed: {1}")]
    Exec(PathBuf, std::io::Error),
}

/// What one child may see and do. Everything else is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// How much of this the kernel must be able to enforce.
    pub enforcement: Enforcement,
    /// Readable files and directory trees of the machine. Links are followed; missing paths are ignored.
    pub system: Vec<PathBuf>,
    /// Readable and executable files. Links are followed.
    pub execute: Vec<PathBuf>,
    /// Readable files and directory trees of the job; missing paths are ignored. A link anywhere in a path is an error: another child may
    /// have created it.
    pub read: Vec<PathBuf>,
    /// The same, readable and writable.
    pub write: Vec<PathBuf>,
    /// What it may connect to.
    pub sockets: Sockets,
    /// Its resource limits.
    pub limits: ResourceLimits,
}

/// What to do when the kernel lacks a restriction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Enforcement {
    /// The child starts only when its files can be restricted.
    Required,
    /// The child starts with the restrictions that exist.
    BestEffort,
    /// No restrictions except limits.
    Off,
}

impl From<SandboxMode> for Enforcement {
    fn from(mode: SandboxMode) -> Self {
        match mode {
            SandboxMode::Required => Self::Required,
            SandboxMode::BestEffort => Self::BestEffort,
            SandboxMode::Off => Self::Off,
        }
    }
}

/// What a child may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sockets {
    /// No sockets.
    None,
    /// TCP to these ports of any host, and UDP for name resolution.
    Tcp(Vec<u16>),
    /// The same, and Unix sockets, for a Docker engine on this machine.
    TcpAndUnix(Vec<u16>),
}

/// Resource limits, `setrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// RLIMIT_DATA. Never RLIMIT_AS, under which Go's runtime dies at random.
    pub data_bytes: u64,
    /// RLIMIT_CPU, for children with bounded work.
    pub cpu_seconds: Option<u64>,
    /// RLIMIT_FSIZE.
    pub file_bytes: u64,
    /// RLIMIT_STACK, also the stack size of threads in C programs and in Go with cgo. Arguments and environment together may take a
    /// quarter of it.
    pub stack_bytes: Option<u64>,
}

/// What [`Sandbox::reexec`] writes: a sandbox, and how this kernel enforces it.
#[derive(Serialize, Deserialize)]
struct Order {
    #[serde(flatten)]
    sandbox: Sandbox,
    /// Whether a broker connects its sockets, since Landlock here has no rules for ports.
    #[serde(default)]
    is_brokered: bool,
}

/// RLIMIT_NOFILE of every child: each open file uses kernel memory.
const MAX_OPEN_FILES: u64 = 4096;

impl Sandbox {
    /// The command that starts our own binary as a launcher for `program`, with an empty environment.
    pub fn command(&self, program: &Path) -> tokio::process::Command {
        let mut command = self.reexec(LAUNCH);
        command.arg(program);
        command
    }

    /// The command that starts our own binary again under `verb`, with this sandbox as its first argument.
    pub fn reexec(&self, verb: &str) -> tokio::process::Command {
        let is_connecting = self.enforcement != Enforcement::Off && self.sockets != Sockets::None;
        self.ordered(verb, is_connecting && has_broker())
    }

    fn ordered(&self, verb: &str, is_brokered: bool) -> tokio::process::Command {
        let mut command = process::command("/proc/self/exe");
        let order = Order { sandbox: self.clone(), is_brokered };
        let sandbox = serde_json::to_string(&order).expect("a sandbox is plain data");
        command.arg(verb).arg(sandbox).arg(std::process::id().to_string());
        command
    }

    /// Reads what [`Sandbox::reexec`] wrote, and restricts this process permanently.
    ///
    /// Returns how much of it is enforced.
    ///
    /// Must be called while the process has one thread: Landlock restricts the calling thread and its children.
    pub fn enter(sandbox: &str, worker: &str) -> Result<Enforcement, SandboxError> {
        let order: Order = serde_json::from_str(sandbox).map_err(|error| SandboxError::Landlock(error.to_string()))?;
        let Order { sandbox, is_brokered } = order;
        die_with(worker)?;
        sandbox.limit()?;
        if sandbox.enforcement != Enforcement::Off {
            // Before Landlock, which would keep the broker from the child's memory.
            let broker = is_brokered.then(|| Broker::start(&sandbox.sockets)).transpose();
            let broker = broker.map_err(SandboxError::Broker)?;
            sandbox.landlock()?;
            give_up_capabilities()?;
            apply(seccomp::filters(&sandbox.sockets))?;
            broker.map_or(Ok(()), Broker::take_over).map_err(SandboxError::Broker)?;
        }
        Ok(sandbox.enforcement)
    }

    fn limit(&self) -> Result<(), SandboxError> {
        let both = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
        let set = |name, resource, limit| {
            setrlimit(resource, both(limit)).map_err(|error| SandboxError::Limit(name, error.into()))
        };
        set("core dumps", Resource::Core, 0)?;
        set("data", Resource::Data, self.limits.data_bytes)?;
        set("file size", Resource::Fsize, self.limits.file_bytes)?;
        set("open files", Resource::Nofile, lowered(Resource::Nofile, MAX_OPEN_FILES))?;
        if let Some(bytes) = self.limits.stack_bytes {
            set("the stack", Resource::Stack, lowered(Resource::Stack, bytes))?;
        }
        self.limits.cpu_seconds.map_or(Ok(()), |seconds| set("processor time", Resource::Cpu, seconds))
    }

    fn landlock(&self) -> Result<(), SandboxError> {
        let level = match self.enforcement {
            Enforcement::Required => CompatLevel::HardRequirement,
            Enforcement::BestEffort | Enforcement::Off => CompatLevel::BestEffort,
        };
        let (read, write) = (opened(&self.read)?, opened(&self.write)?);
        let restricted = self.rules(level, read, write);
        restricted.map(drop).map_err(|error| SandboxError::Landlock(error.to_string()))
    }

    fn rules(
        &self,
        level: CompatLevel,
        read_files: Vec<OwnedFd>,
        write_files: Vec<OwnedFd>,
    ) -> Result<RulesetStatus, landlock::RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        // A device file would give access to what no path leads to.
        let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeFifo | AccessFs::MakeSock;
        let write = AccessFs::from_all(RIGHTS) & !AccessFs::Execute & !special;
        let ports = match &self.sockets {
            Sockets::None => &[][..],
            Sockets::Tcp(ports) | Sockets::TcpAndUnix(ports) => ports,
        };
        let status = Ruleset::default()
            .set_compatibility(level)
            .handle_access(AccessFs::from_all(ABI::V1))?
            // What later versions added holds where the kernel has it: TCP ports, device ioctls, abstract Unix sockets, and signals to
            // other processes. seccomp refuses to truncate files and to listen, which a kernel without these rules would allow.
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::from_all(ABI::V4))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rules(path_beneath_rules(&self.system, read))?
            .add_rules(path_beneath_rules(&self.execute, read | AccessFs::Execute))?
            .add_rules(read_files.into_iter().map(|file| beneath_rule(file, read)))?
            .add_rules(write_files.into_iter().map(|file| beneath_rule(file, write)))?
            .add_rules(
                ports.iter().map(|port| Ok::<_, landlock::RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp))),
            )?
            .restrict_self()?;
        Ok(status.ruleset)
    }
}

/// Applies system call filters to this process.
fn apply(filters: Result<impl IntoIterator<Item = BpfProgram>, seccompiler::BackendError>) -> Result<(), SandboxError> {
    let refused = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
    let mut filters = filters.map_err(|error| refused(&error))?.into_iter();
    filters.try_for_each(|filter| seccompiler::apply_filter(&filter)).map_err(|error| refused(&error))
}

/// Opens these paths, none of which may contain a link.
fn opened(paths: &[PathBuf]) -> Result<Vec<OwnedFd>, SandboxError> {
    let open = |path: &PathBuf| match beneath::open_without_links(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        opened => Some(opened.map_err(|error| SandboxError::Path(path.clone(), error))),
    };
    paths.iter().filter_map(open).collect()
}

/// A rule for an open file; for a regular file without the rights that only directories have.
fn beneath_rule(file: OwnedFd, access: BitFlags<AccessFs>) -> Result<PathBeneath<OwnedFd>, landlock::RulesetError> {
    let is_directory =
        rustix::fs::fstat(&file).is_ok_and(|about| rustix::fs::FileType::from_raw_mode(about.st_mode).is_dir());
    let access = if is_directory { access } else { access & AccessFs::from_file(RIGHTS) };
    Ok(PathBeneath::new(file, access))
}

/// The limit, lowered to this process's maximum: only privileged processes may raise one.
fn lowered(resource: Resource, limit: u64) -> u64 {
    rustix::process::getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit))
}

/// Drops all of root's capabilities except access to other users' files, which Landlock restricts.
///
/// Permanently: with no_new_privs, executing a program restores nothing.
fn give_up_capabilities() -> Result<(), SandboxError> {
    let give_up = || {
        let left = capabilities(None)?.permitted & CapabilitySet::DAC_OVERRIDE;
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: left, permitted: left, inheritable: none })
    };
    give_up().map_err(|error: rustix::io::Errno| SandboxError::Capabilities(error.into()))
}

/// The launcher: enters the sandbox, then becomes the program. Returns only on failure.
///
/// Arguments: the sandbox, the worker's process id, the program, its arguments.
#[expect(clippy::disallowed_methods, reason = "this process becomes the program: nothing is left to run it")]
pub fn launch(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Infallible, SandboxError> {
    let mut text = || arguments.next().and_then(|text| text.into_string().ok()).unwrap_or_default();
    let (sandbox, worker, program) = (text(), text(), PathBuf::from(text()));
    // The source child needs `openat2` itself. No other program does.
    if Sandbox::enter(&sandbox, &worker)? != Enforcement::Off {
        apply(seccomp::without_openat2().map(|filter| [filter]))?;
    }
    let error = std::process::Command::new(&program).args(arguments).exec();
    Err(SandboxError::Exec(program, error))
}

/// Asks the kernel to kill this process when the worker dies: no child outlives a killed worker.
fn die_with(worker: &str) -> Result<(), SandboxError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| SandboxError::Limit("orphans", error.into()))?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if parent.as_deref() == Some(worker) { Ok(()) } else { Err(SandboxError::Orphaned) }
}

/// The C library and its parts, as far as they exist here: all that a dynamically linked docker-buildx, or our own binary, loads.
/// Nothing else in the libraries' directories is readable, since a definition can name any file in them.
pub fn libraries() -> Vec<PathBuf> {
    const FOLDERS: [&str; 7] = [
        "/lib64",
        "/usr/lib64",
        "/usr/lib",
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/lib/aarch64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    const NAMES: [&str; 9] = [
        "libc.so.6",
        "libdl.so.2",
        "libgcc_s.so.1",
        "libm.so.6",
        "libpthread.so.0",
        "libresolv.so.2",
        "librt.so.1",
        // Parts of the C library before 2.34 that resolve names.
        "libnss_dns.so.2",
        "libnss_files.so.2",
    ];
    let all = FOLDERS.iter().flat_map(|folder| NAMES.iter().map(move |name| Path::new(folder).join(name)));
    all.filter(|path| path.is_file()).collect()
}

/// The loaders of the C library, which the kernel executes for a dynamically linked program.
pub fn loaders() -> Vec<PathBuf> {
    ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(PathBuf::from).into()
}

/// The files that name resolution and TLS read.
pub fn network_files(certificates: &Path) -> Vec<PathBuf> {
    let mut files =
        ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"]
            .map(PathBuf::from)
            .to_vec();
    files.push(certificates.to_owned());
    files
}
