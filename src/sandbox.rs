//! What a child may see and do: a launcher that restricts itself and then becomes the child.
//!
//! Owns the walls of the kernel: Landlock (files and TCP ports), seccomp (sockets, and calls that no child needs), root's
//! capabilities, and rlimits. The worker starts its own binary again, which lays the walls around itself and then executes
//! the program; nothing is restricted in the worker. It refuses to know what the children are for: each integration says what
//! its own child needs. `tests/it/walls.txt` says of each attempt to get out which wall it meets, or that it meets none.
//!
//! A child makes threads and no processes. RLIMIT_NPROC could not say that: it counts all processes and threads of the
//! user, so the worker's and other jobs', and does not hold for root. How many threads there can be follows from
//! RLIMIT_DATA, which counts their stacks. It counts private memory alone, so seccomp refuses memory that is shared, or
//! that grows like a stack. A worker's memory is then the sum of its children's limits and its own.
//!
//! Edges: TCP rules are by port and not by host; UDP is not restricted; Unix sockets that have a path are either all there
//! or none; a child can become a file that may be read, by way of the loader; whether a file is there, and how large it is,
//! can be asked of any path. Follows `landlock(7)` and `seccomp(2)`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::{Deserialize, Serialize};

use crate::beneath;
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
    /// Capabilities could not be given up.
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(std::io::Error),
    /// A resource limit was refused.
    #[error("the limit for {0} was refused: {1}")]
    Limit(&'static str, std::io::Error),
    /// A path of the job's has a link in it, or cannot be opened.
    #[error("{0} cannot be opened: {1}")]
    Path(PathBuf, std::io::Error),
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
    /// Files and directory trees of the machine that can be read. Links are followed. Missing ones are left out.
    pub system: Vec<PathBuf>,
    /// Files that can be read and executed. Links are followed.
    pub execute: Vec<PathBuf>,
    /// Files and directory trees of the job that can be read. A link anywhere in their paths is an error: another child may
    /// have made it. Missing ones are left out.
    pub read: Vec<PathBuf>,
    /// The same for those that can be read and written.
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
    /// RLIMIT_STACK, which is also the stack of each thread of a C program, and of Go with cgo. A quarter of it is what
    /// arguments and environment may have together.
    pub stack_bytes: Option<u64>,
}

/// RLIMIT_NOFILE of every child: each file that is open holds memory of the kernel's.
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
            give_up_capabilities()?;
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
        // A device file would open what no path leads to.
        let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeFifo | AccessFs::MakeSock;
        let write = AccessFs::from_all(NEEDED) & !AccessFs::Execute & !special;
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

    fn seccomp(&self) -> Result<(), SandboxError> {
        let refused = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
        for filter in self.filters().map_err(|error| refused(&error))? {
            seccompiler::apply_filter(&filter).map_err(|error| refused(&error))?;
        }
        Ok(())
    }

    /// A filter for each answer: the strictest one that a call meets counts.
    fn filters(&self) -> Result<[BpfProgram; 3], seccompiler::BackendError> {
        let filter = |rules, answer| -> Result<BpfProgram, seccompiler::BackendError> {
            let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
            SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(answer), architecture)?.try_into()
        };
        let whole = |calls: &[i64]| -> Rules { calls.iter().map(|call| (*call, Vec::new())).collect() };
        let mut refused = whole(NEVER_NEEDED);
        refused.extend(self.refused_by_arguments()?);
        Ok([
            filter(refused, libc::EACCES as u32)?,
            // Its flags are out of a filter's sight. The C library then uses `clone`, whose flags are not.
            filter(whole(&[libc::SYS_clone3]), libc::ENOSYS as u32)?,
            // docker-buildx gives up when it cannot set the mode of a file that it has just made, and does not look.
            filter(whole(MODES), 0)?,
        ])
    }

    /// Calls that are refused for some arguments only.
    fn refused_by_arguments(&self) -> Result<Rules, seccompiler::BackendError> {
        let other_than = |argument, allowed: &[u32]| {
            let all: Result<_, _> =
                allowed.iter().map(|value| compare(argument, SeccompCmpOp::Ne, u64::from(*value))).collect();
            SeccompRule::new(all?)
        };
        let flagged = |argument, flag: u64, wanted: u64| {
            SeccompRule::new(vec![compare(argument, SeccompCmpOp::MaskedEq(flag), wanted)?])
        };
        let own = std::process::id();
        // It connects, and Landlock does not see it.
        let fast_open = libc::MSG_FASTOPEN as u64;
        let thread = libc::CLONE_THREAD as u64;
        // Neither is counted by RLIMIT_DATA.
        let shared = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64;
        let growing = libc::MAP_GROWSDOWN as u64;
        Ok(BTreeMap::from([
            (libc::SYS_mmap, vec![flagged(3, shared, shared)?, flagged(3, growing, growing)?]),
            (libc::SYS_socket, self.refused_sockets()?),
            (libc::SYS_sendto, vec![flagged(3, fast_open, fast_open)?]),
            (libc::SYS_sendmsg, vec![flagged(2, fast_open, fast_open)?]),
            (libc::SYS_sendmmsg, vec![flagged(3, fast_open, fast_open)?]),
            (libc::SYS_clone, vec![flagged(0, thread, 0)?]),
            (libc::SYS_kill, vec![other_than(0, &[own])?]),
            (libc::SYS_tgkill, vec![other_than(0, &[own])?]),
            // Whoever does not die with the worker.
            (
                libc::SYS_prctl,
                vec![SeccompRule::new(vec![compare(0, SeccompCmpOp::Eq, libc::PR_SET_PDEATHSIG as u64)?])?],
            ),
            // It would set the limits of the worker.
            (libc::SYS_prlimit64, vec![other_than(0, &[0, own])?]),
        ]))
    }

    /// The rules by which `socket(2)` is refused; no rule at all refuses every call.
    ///
    /// What is left is TCP and UDP over IP, netlink's routes (which name resolution asks for addresses), and Unix sockets
    /// if need be. Landlock sees TCP only, and there are other ways to a TCP server: MPTCP, SMC.
    fn refused_sockets(&self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        const DOMAIN: u8 = 0;
        const KIND: u8 = 1;
        const PROTOCOL: u8 = 2;
        // Obsolete, and so are the constants of it.
        const SOCK_PACKET: i32 = 10;
        let equal = |argument, value: i32| compare(argument, SeccompCmpOp::Eq, value as u64);
        let not = |argument, value: i32| compare(argument, SeccompCmpOp::Ne, value as u64);
        let mut domains = vec![libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
        match &self.sockets {
            Sockets::None => return Ok(Vec::new()),
            Sockets::Tcp(_) => {}
            Sockets::TcpAndUnix(_) => domains.push(libc::AF_UNIX),
        }
        let none_of = |argument, values: &[i32]| values.iter().map(|value| not(argument, *value)).collect();
        let mut all: Vec<Result<Vec<_>, _>> = vec![
            none_of(DOMAIN, &domains),
            none_of(PROTOCOL, &[0, libc::IPPROTO_TCP, libc::IPPROTO_UDP]),
            Ok(vec![equal(DOMAIN, libc::AF_NETLINK)?, not(PROTOCOL, libc::NETLINK_ROUTE)?]),
        ];
        for kind in [libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_SEQPACKET, libc::SOCK_DCCP, SOCK_PACKET] {
            let is_kind = compare(KIND, SeccompCmpOp::MaskedEq(0xf), kind as u64)?;
            all.push(Ok(vec![is_kind, not(DOMAIN, libc::AF_NETLINK)?]));
        }
        all.into_iter().map(|conditions| SeccompRule::new(conditions?)).collect()
    }
}

/// What is at these paths, none of which may have a link in it.
fn opened(paths: &[PathBuf]) -> Result<Vec<OwnedFd>, SandboxError> {
    let open = |path: &PathBuf| match beneath::open_without_links(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        opened => Some(opened.map_err(|error| SandboxError::Path(path.clone(), error))),
    };
    paths.iter().filter_map(open).collect()
}

/// A rule for what is open; of a file, the rights that only directories have are left out.
fn beneath_rule(file: OwnedFd, access: BitFlags<AccessFs>) -> Result<PathBeneath<OwnedFd>, landlock::RulesetError> {
    let is_directory =
        rustix::fs::fstat(&file).is_ok_and(|about| rustix::fs::FileType::from_raw_mode(about.st_mode).is_dir());
    let access = if is_directory { access } else { access & AccessFs::from_file(NEEDED) };
    Ok(PathBeneath::new(file, access))
}

/// A limit that is not above what this process has: only the privileged may raise one.
fn lowered(resource: Resource, limit: u64) -> u64 {
    rustix::process::getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit))
}

/// System calls, with the rules by which each is refused: by any of them, or always when there are none.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compare(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

/// Calls by which a child could get around the other walls or at other processes, and which neither buildx nor libgit2
/// makes.
const NEVER_NEEDED: &[i64] = &[
    // Another way to make other calls.
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_tkill,
    // A process that is not in its group is not killed with it.
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    // A file that is in no directory can be executed.
    libc::SYS_memfd_create,
    // What outlives the process that made it.
    libc::SYS_shmget,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    // Other worlds.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Owner and attributes of a file, which Landlock lets everybody change who could do so without it.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

/// Calls that set the mode of a file by its path, which Landlock does not look at either.
const MODES: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
];

/// Not in every architecture's list of this crate, though it has one number in all.
const FCHMODAT2: i64 = 452;

/// Leaves of root's capabilities the one by which it reads and writes files of other users: which ones, Landlock says.
///
/// For good: with no_new_privs, executing a program gives nothing back.
fn give_up_capabilities() -> Result<(), SandboxError> {
    let give_up = || {
        let left = capabilities(None)?.permitted & CapabilitySet::DAC_OVERRIDE;
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: left, permitted: left, inheritable: none })
    };
    give_up().map_err(|error: rustix::io::Errno| SandboxError::Capabilities(error.into()))
}

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

/// What this kernel enforces, in words, with the version of its Landlock.
pub fn enforced() -> String {
    // The kernel tells a thread that restricts itself, and this one ends with it.
    let restrict = || {
        let ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI::V1))?.create()?;
        Ok::<_, landlock::RulesetError>(ruleset.restrict_self()?.landlock)
    };
    let status = std::thread::spawn(restrict).join().ok().and_then(Result::ok);
    let Some(LandlockStatus::Available { effective_abi, kernel_abi }) = status else {
        return "seccomp and limits; no Landlock".into();
    };
    let version = kernel_abi.unwrap_or(effective_abi as i32);
    let parts = [(1, "files"), (4, "TCP ports"), (5, "device commands"), (6, "abstract Unix sockets")];
    let (has, lacks): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(since, _)| *since <= version);
    let words =
        |parts: Vec<(i32, &'static str)>| parts.into_iter().map(|(_, what)| what).collect::<Vec<_>>().join(", ");
    let but = if lacks.is_empty() { String::new() } else { format!(", but not {}", words(lacks)) };
    format!("Landlock ABI {version} ({}{but}), seccomp, capabilities, limits", words(has))
}

/// The C library and what belongs to it, as far as it is here: all that a dynamically linked docker-buildx, or our own
/// binary, loads. Nothing else of the libraries' directories can be read, since a definition can name any file in them.
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
        // Parts of the C library before 2.34, by which it looks up names.
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

/// What name resolution and TLS read.
pub fn network_files(certificates: &Path) -> Vec<PathBuf> {
    let mut files =
        ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"]
            .map(PathBuf::from)
            .to_vec();
    files.push(certificates.to_owned());
    files
}
