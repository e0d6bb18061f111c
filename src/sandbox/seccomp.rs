//! The system call filters of a child: they refuse calls that no child needs and calls that bypass Landlock.
//!
//! Follows `seccomp(2)`.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::Sockets;

/// One filter per answer. When several match a call, the strictest answer counts.
pub(super) fn filters(sockets: &Sockets) -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let mut refused = whole(NEVER_NEEDED);
    refused.extend(refused_by_arguments(sockets)?);
    Ok([
        filter(refused, libc::EACCES as u32)?,
        // A filter cannot see its flags. The C library falls back to `clone`, whose flags are visible.
        filter(whole(&[libc::SYS_clone3]), libc::ENOSYS as u32)?,
        // docker-buildx fails when it cannot set the mode of a new file, and does not check the mode afterwards.
        filter(whole(MODES), 0)?,
    ])
}

/// Refuses `openat2`, whose flags a filter cannot see. Programs fall back to `openat`.
pub(super) fn without_openat2() -> Result<BpfProgram, seccompiler::BackendError> {
    filter(whole(&[libc::SYS_openat2]), libc::ENOSYS as u32)
}

/// The calls that a broker answers: `connect`, and `socket` of each domain with addresses to connect to. The other filters come
/// first: what they refuse reaches no broker. `seccompiler` has no such action.
pub(super) fn notified() -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // Where `seccomp_data` has the number of the call, and the lower half of its first argument.
    let (number, domain) = (0, if cfg!(target_endian = "little") { 16 } else { 20 });
    // Calls of the x32 ABI have other numbers.
    let first_of_x32 = 0x4000_0000;
    let refused = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    vec![
        step(LOAD, number, 0, 0),
        step(AT_LEAST, first_of_x32, 8, 0),
        step(EQUAL, libc::SYS_connect as u32, 5, 0),
        step(EQUAL, libc::SYS_socket as u32, 0, 5),
        step(LOAD, domain, 0, 0),
        step(EQUAL, libc::AF_INET as u32, 2, 0),
        step(EQUAL, libc::AF_INET6 as u32, 1, 0),
        step(EQUAL, libc::AF_UNIX as u32, 0, 1),
        step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(RETURN, refused, 0, 0),
    ]
}

/// A filter that answers these calls with an error number, and allows all others.
fn filter(rules: SyscallRules, answer: u32) -> Result<BpfProgram, seccompiler::BackendError> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(answer), architecture)?.try_into()
}

/// Calls with any arguments.
fn whole(calls: &[i64]) -> SyscallRules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// Calls that are refused for some arguments only.
fn refused_by_arguments(sockets: &Sockets) -> Result<SyscallRules, seccompiler::BackendError> {
    let other_than = |argument, allowed: &[u32]| {
        let all: Result<_, _> =
            allowed.iter().map(|value| compare(argument, SeccompCmpOp::Ne, u64::from(*value))).collect();
        SeccompRule::new(all?)
    };
    let flagged = |argument, flag: u64, wanted: u64| {
        SeccompRule::new(vec![compare(argument, SeccompCmpOp::MaskedEq(flag), wanted)?])
    };
    let equal = |argument, value: u32| SeccompRule::new(vec![compare(argument, SeccompCmpOp::Eq, u64::from(value))?]);
    let own = std::process::id();
    // The kernel sends SIGIO, or another signal, to the owner of a file.
    let set_owner = [libc::F_SETOWN as u32, F_SETSIG, F_SETOWN_EX].map(|command| equal(1, command));
    let set_owner_of_socket = [FIOSETOWN, SIOCSPGRP].map(|command| equal(1, command));
    // It connects, and Landlock does not check it.
    let fast_open = libc::MSG_FASTOPEN as u64;
    let thread = libc::CLONE_THREAD as u64;
    // RLIMIT_DATA counts neither.
    let shared = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64;
    let growing = libc::MAP_GROWSDOWN as u64;
    // Before ABI 3, Landlock does not restrict what these empty: a file that may only be read, and one for neither reading nor writing.
    let emptying = |argument| {
        let mask = (libc::O_ACCMODE | libc::O_TRUNC) as u64;
        Ok::<_, seccompiler::BackendError>(vec![
            flagged(argument, mask, (libc::O_RDONLY | libc::O_TRUNC) as u64)?,
            flagged(argument, libc::O_ACCMODE as u64, libc::O_ACCMODE as u64)?,
        ])
    };
    Ok(BTreeMap::from([
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, emptying(1)?),
        (libc::SYS_openat, emptying(2)?),
        (libc::SYS_mmap, vec![flagged(3, shared, shared)?, flagged(3, growing, growing)?]),
        (libc::SYS_socket, refused_sockets(sockets)?),
        (libc::SYS_socketpair, refused_pairs()?),
        (libc::SYS_fcntl, set_owner.into_iter().collect::<Result<_, _>>()?),
        (libc::SYS_ioctl, set_owner_of_socket.into_iter().collect::<Result<_, _>>()?),
        (libc::SYS_sendto, vec![flagged(3, fast_open, fast_open)?]),
        (libc::SYS_sendmsg, vec![flagged(2, fast_open, fast_open)?]),
        (libc::SYS_sendmmsg, vec![flagged(3, fast_open, fast_open)?]),
        (libc::SYS_clone, vec![flagged(0, thread, 0)?]),
        (libc::SYS_kill, vec![other_than(0, &[own])?]),
        (libc::SYS_tgkill, vec![other_than(0, &[own])?]),
        // The child must die with the worker.
        (libc::SYS_prctl, vec![equal(0, libc::PR_SET_PDEATHSIG as u32)?]),
        // It could set the worker's limits.
        (libc::SYS_prlimit64, vec![other_than(0, &[0, own])?]),
    ]))
}

/// The rules by which `socket(2)` is refused; an empty list refuses every call.
///
/// Allowed are TCP and UDP over IP, netlink routes (which name resolution needs), and Unix sockets where configured. Landlock only
/// restricts TCP, and there are other ways to a TCP server: MPTCP, SMC.
fn refused_sockets(sockets: &Sockets) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    const DOMAIN: u8 = 0;
    const KIND: u8 = 1;
    const PROTOCOL: u8 = 2;
    // Obsolete, so its constant is missing.
    const SOCK_PACKET: i32 = 10;
    let equal = |argument, value: i32| compare(argument, SeccompCmpOp::Eq, value as u64);
    let not = |argument, value: i32| compare(argument, SeccompCmpOp::Ne, value as u64);
    let mut domains = vec![libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    match sockets {
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

/// The rules by which `socketpair(2)` is refused. Allowed are pairs of Unix streams.
///
/// A datagram socket sends to any Unix socket with a path. The kernel can load a module for a pair of another domain.
fn refused_pairs() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    const KIND: u64 = 0xf;
    let is_kind = |kind| compare(1, SeccompCmpOp::MaskedEq(KIND), kind);
    let others = (0..=KIND).filter(|kind| *kind != libc::SOCK_STREAM as u64).map(is_kind);
    let is_other_domain = compare(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64);
    others.chain([is_other_domain]).map(|condition| SeccompRule::new(vec![condition?])).collect()
}

/// System calls, each with the rules that refuse it: any of them, or always when there are none.
type SyscallRules = BTreeMap<i64, Vec<SeccompRule>>;

fn compare(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

/// Calls by which a child could bypass other restrictions or reach other processes, and which neither buildx nor libgit2 makes.
const NEVER_NEEDED: &[i64] = &[
    // They make other calls.
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    // They act on other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_tkill,
    // A process outside of the group is not killed with it.
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
    // It executes a file that has no path.
    libc::SYS_memfd_create,
    // They outlive the process.
    libc::SYS_shmget,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    // They change the view of the system.
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
    // Landlock restricts these only from ABI 3 and 4 on.
    libc::SYS_truncate,
    libc::SYS_listen,
    // They change owner and attributes of a file, which Landlock does not restrict.
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

/// Calls that set the mode of a file by its path, which Landlock does not restrict.
const MODES: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
];

/// Commands that are missing in libc. Their numbers are the same on every supported architecture.
const F_SETSIG: u32 = 10;
const F_SETOWN_EX: u32 = 15;
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;

/// Missing in libc for some architectures, although its number is the same everywhere.
const FCHMODAT2: i64 = 452;
