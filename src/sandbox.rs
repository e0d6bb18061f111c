//! What a child may see and do: a launcher that restricts itself and then becomes the child.
//!
//! Owns the three walls of the kernel: Landlock (files and TCP ports), seccomp (sockets and calls that no child needs)
//! and rlimits. The worker starts its own binary again, which lays the walls around itself and then executes the
//! program; nothing is restricted in the worker. It refuses to know what the children are for: each station says what
//! its own child needs.
//!
//! Edges: TCP rules are by port and not by host; UDP is not restricted; the loader can run any file that may be read.
//! Follows `landlock(7)` and `seccomp(2)`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::{Deserialize, Serialize};

use crate::process;
use crate::settings::SandboxMode;

/// First argument of our own binary when it is started as a launcher.
pub const LAUNCH: &str = "sandboxed-exec";

/// Landlock's version from which on files and TCP ports can both be restricted: Linux 6.7.
const NEEDED: ABI = ABI::V4;

/// The walls could not be built, or the program could not be executed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel has no Landlock, or too old a one.
    #[error("the kernel cannot enforce the sandbox (Landlock ABI 4, Linux 6.7): {0}")]
    Landlock(String),
    /// The system call filter was refused.
    #[error("the system call filter was refused: {0}")]
    Seccomp(String),
    /// A resource limit was refused.
    #[error("the limit for {0} was refused: {1}")]
    Limit(&'static str, std::io::Error),
    /// The worker was gone before the child had started.
    #[error("the worker is gone")]
    Orphaned,
    /// The program cannot be executed.
    #[error("{0} cannot be executed: {1}")]
    Exec(PathBuf, std::io::Error),
}

/// What one child may see and do. All else is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// How much of this the kernel must be able to enforce.
    pub enforcement: Enforcement,
    /// Files and directory trees that can be read. Missing ones are left out.
    pub read: Vec<PathBuf>,
    /// Files that can be read and executed.
    pub execute: Vec<PathBuf>,
    /// Directory trees and files that can be read and written.
    pub write: Vec<PathBuf>,
    /// What it may speak to.
    pub sockets: Sockets,
    /// What it may use.
    pub limits: Limits,
}

/// What is done where the kernel lacks something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Enforcement {
    /// The child is not started.
    Required,
    /// The child is started with what there is.
    BestEffort,
    /// No walls, limits only.
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

/// What a child may speak to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sockets {
    /// No socket of any kind.
    None,
    /// TCP to these ports of any host, and UDP for names.
    Tcp(Vec<u16>),
    /// The same, and Unix sockets: for an engine on this machine.
    TcpAndUnix(Vec<u16>),
}

/// Resource limits, `setrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// RLIMIT_DATA. Never RLIMIT_AS, under which Go's runtime dies at random.
    pub data_bytes: u64,
    /// RLIMIT_CPU, for children whose work is bounded.
    pub cpu_seconds: Option<u64>,
    /// RLIMIT_FSIZE.
    pub file_bytes: u64,
}

impl Sandbox {
    /// The command that starts our own binary as a launcher for `program`, with an empty environment.
    pub fn command(&self, program: &Path) -> tokio::process::Command {
        let mut command = self.reexec(LAUNCH);
        command.arg(program);
        command
    }

    /// The command that starts our own binary again under `verb`, with this sandbox as its first argument.
    pub fn reexec(&self, verb: &str) -> tokio::process::Command {
        let mut command = process::command("/proc/self/exe");
        let sandbox = serde_json::to_string(self).expect("a sandbox is plain data");
        command.arg(verb).arg(sandbox).arg(std::process::id().to_string());
        command
    }

    /// Reads what [`Sandbox::reexec`] wrote, and restricts this process by it, for good.
    ///
    /// Must be called while the process has one thread: Landlock binds the calling thread and its children.
    pub fn enter(sandbox: &str, worker: &str) -> Result<(), SandboxError> {
        let sandbox: Self = serde_json::from_str(sandbox).map_err(|error| SandboxError::Landlock(error.to_string()))?;
        die_with(worker)?;
        sandbox.limit()?;
        if sandbox.enforcement != Enforcement::Off {
            sandbox.landlock()?;
            sandbox.seccomp()?;
        }
        Ok(())
    }

    fn limit(&self) -> Result<(), SandboxError> {
        let both = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
        let set = |name, resource, limit| {
            setrlimit(resource, both(limit)).map_err(|error| SandboxError::Limit(name, error.into()))
        };
        set("core dumps", Resource::Core, 0)?;
        set("data", Resource::Data, self.limits.data_bytes)?;
        set("file size", Resource::Fsize, self.limits.file_bytes)?;
        self.limits.cpu_seconds.map_or(Ok(()), |seconds| set("processor time", Resource::Cpu, seconds))
    }

    fn landlock(&self) -> Result<(), SandboxError> {
        let level = match self.enforcement {
            Enforcement::Required => CompatLevel::HardRequirement,
            Enforcement::BestEffort | Enforcement::Off => CompatLevel::BestEffort,
        };
        self.rules(level).map(drop).map_err(|error| SandboxError::Landlock(error.to_string()))
    }

    fn rules(&self, level: CompatLevel) -> Result<RulesetStatus, landlock::RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = AccessFs::from_all(NEEDED) & !AccessFs::Execute;
        let ports = match &self.sockets {
            Sockets::None => &[][..],
            Sockets::Tcp(ports) | Sockets::TcpAndUnix(ports) => ports,
        };
        let status = Ruleset::default()
            .set_compatibility(level)
            .handle_access(AccessFs::from_all(NEEDED))?
            .handle_access(AccessNet::from_all(NEEDED))?
            // Newer kernels also keep the child from device ioctls, abstract Unix sockets and signals to others.
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rules(path_beneath_rules(&self.read, read))?
            .add_rules(path_beneath_rules(&self.execute, read | AccessFs::Execute))?
            .add_rules(path_beneath_rules(&self.write, write))?
            .add_rules(
                ports.iter().map(|port| Ok::<_, landlock::RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp))),
            )?
            .restrict_self()?;
        Ok(status.ruleset)
    }

    fn seccomp(&self) -> Result<(), SandboxError> {
        let refused = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
        let filter = self.filter().map_err(|error| refused(&error))?;
        seccompiler::apply_filter(&filter).map_err(|error| refused(&error))
    }

    fn filter(&self) -> Result<BpfProgram, seccompiler::BackendError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = NEVER_NEEDED.iter().map(|call| (*call, Vec::new())).collect();
        rules.insert(libc::SYS_socket, self.refused_sockets()?);
        let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
        let refuse = SeccompAction::Errno(libc::EACCES as u32);
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?.try_into()
    }

    /// The rules by which `socket(2)` is refused; no rule at all refuses every call.
    ///
    /// What is left is TCP and UDP over IP, netlink (which name resolution asks for addresses), and Unix sockets if need be.
    fn refused_sockets(&self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        const DOMAIN: u8 = 0;
        let compare = |argument, operator, value: i32| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value as u64)
        };
        let mut domains = vec![libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
        match &self.sockets {
            Sockets::None => return Ok(Vec::new()),
            Sockets::Tcp(_) => {}
            Sockets::TcpAndUnix(_) => domains.push(libc::AF_UNIX),
        }
        let none_of: Result<Vec<_>, _> =
            domains.into_iter().map(|domain| compare(DOMAIN, SeccompCmpOp::Ne, domain)).collect();
        let raw = vec![
            compare(1, SeccompCmpOp::MaskedEq(0xf), libc::SOCK_RAW)?,
            compare(DOMAIN, SeccompCmpOp::Ne, libc::AF_NETLINK)?,
        ];
        // Landlock's TCP rules do not see MPTCP, which connects to TCP servers all the same.
        let mptcp = vec![compare(2, SeccompCmpOp::Eq, libc::IPPROTO_MPTCP)?];
        [none_of?, raw, mptcp].into_iter().map(SeccompRule::new).collect()
    }
}

/// Calls by which a child could get around the other walls, and which neither buildx nor libgit2 makes.
const NEVER_NEEDED: &[i64] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// The launcher: enters the sandbox, then becomes the program. Returns only when that failed.
///
/// Arguments: the sandbox, the worker's process id, the program, its arguments.
#[expect(clippy::disallowed_methods, reason = "this process becomes the program: nothing is left to run it")]
pub fn launch(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Infallible, SandboxError> {
    let mut text = || arguments.next().and_then(|text| text.into_string().ok()).unwrap_or_default();
    let (sandbox, worker, program) = (text(), text(), PathBuf::from(text()));
    Sandbox::enter(&sandbox, &worker)?;
    let error = std::process::Command::new(&program).args(arguments).exec();
    Err(SandboxError::Exec(program, error))
}

/// Asks the kernel to kill this process when the worker dies: no child outlives a worker that is killed.
fn die_with(worker: &str) -> Result<(), SandboxError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| SandboxError::Limit("orphans", error.into()))?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if parent.as_deref() == Some(worker) { Ok(()) } else { Err(SandboxError::Orphaned) }
}

/// What the kernel lacks of what [`Enforcement::Required`] needs; `None` when it has it all.
pub fn lacking() -> Option<String> {
    let attempt = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(NEEDED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEEDED)))
        .and_then(Ruleset::create);
    attempt.err().map(|error| error.to_string())
}

/// What every dynamically linked program reads at its start: libraries and the loader's cache.
pub fn libraries() -> Vec<PathBuf> {
    ["/usr/lib", "/lib", "/lib64", "/etc/ld.so.cache"].map(PathBuf::from).into()
}

/// The loaders of the C library, which the kernel executes for a dynamically linked program.
pub fn loaders() -> Vec<PathBuf> {
    ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(PathBuf::from).into()
}

/// What name resolution and TLS read.
pub fn network_files(certificates: &Path) -> Vec<PathBuf> {
    let mut files =
        ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"]
            .map(PathBuf::from)
            .to_vec();
    files.push(certificates.to_owned());
    files.extend(["/dev/null", "/dev/urandom"].map(PathBuf::from));
    files
}
