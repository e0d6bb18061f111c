//! Runs a program as on an older kernel, as far as Landlock goes: `older-kernel ABI PROGRAM ARGUMENT…`.
//!
//! ABI is a version of Landlock, `disabled` for a kernel that has it switched off, or `none` for one without. A seccomp filter hands
//! the calls by which a program asks about Landlock to a process that answers them as that kernel does: rights that it does not
//! know are invalid. What it knows goes on to the real kernel. A process can have one such filter only. So the sandbox below has no
//! broker, as where a container runtime refuses one. With `traced:` before the ABI, a tracer answers instead, and a broker works. With
//! `interrupted:` too, but seccomp is the one before Linux 5.19. The program then adopts orphans, as process 1 of a container does.
//! Follows `seccomp_unotify(2)`, `ptrace(2)` and `landlock(7)`.

#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;

/// The rights that each version knows: files, TCP ports, scopes.
const RIGHTS: [[u64; 3]; 6] = [
    [(1 << 13) - 1, 0, 0],
    [(1 << 14) - 1, 0, 0],
    [(1 << 15) - 1, 0, 0],
    [(1 << 15) - 1, 3, 0],
    [(1 << 16) - 1, 3, 0],
    [(1 << 16) - 1, 3, 3],
];

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u64 = 1;

/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`.
const RECEIVE: libc::c_ulong = request(0, size_of::<libc::seccomp_notif>());
const SEND: libc::c_ulong = request(1, size_of::<libc::seccomp_notif_resp>());

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const GO_ON: u32 = 1;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let kernel = arguments.next().unwrap().into_string().unwrap();
    let program: Vec<OsString> = arguments.collect();
    match kernel.split_once(':').map(|(how, version)| (how, version.parse().unwrap())) {
        Some((how, version)) => {
            be_traced(version);
            if how == "interrupted" {
                refuse_flag();
            }
        }
        None => be_answered(&kernel),
    }
    panic!("{}", std::process::Command::new(&program[0]).args(&program[1..]).exec());
}

/// Hands the calls of this process to a copy of it.
fn be_answered(kernel: &str) {
    let answer = match kernel {
        "none" => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        "disabled" => libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32,
        _ => libc::SECCOMP_RET_USER_NOTIF,
    };
    let listener = filter(answer, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    if let Ok(version) = kernel.parse::<usize>() {
        in_a_copy(|| serve(listener.as_ref().unwrap(), version));
    }
}

/// Lets a copy of this process trace it.
fn be_traced(version: usize) {
    let (mut own, mut of_tracer) = UnixStream::pair().unwrap();
    let program = rustix::process::getpid().as_raw_nonzero().get();
    in_a_copy(|| {
        let options = libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACESECCOMP;
        trace(libc::PTRACE_SEIZE, program, 0, options as usize).unwrap();
        of_tracer.write_all(&[0]).unwrap();
        watch(version)
    });
    own.read_exact(&mut [0]).unwrap();
    filter(libc::SECCOMP_RET_TRACE, 0);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// Refuses `seccomp` with `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
fn refuse_flag() {
    let flags = if cfg!(target_endian = "little") { 24 } else { 28 };
    install(
        &mut [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 3, libc::SYS_seccomp as u32),
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, flags),
            step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, 1 << 5),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ],
        0,
    );
}

/// Does this in a copy of this process, which dies with it.
fn in_a_copy(work: impl FnOnce() -> std::convert::Infallible) {
    // SAFETY: this process has one thread.
    #[allow(unsafe_code)]
    let child = unsafe { libc::fork() };
    if child == 0 {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
        work();
    }
}

const fn request(number: u64, size: usize) -> libc::c_ulong {
    3 << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number
}

/// Filters `landlock_create_ruleset`, and returns what receives its calls, if the flags ask for that.
fn filter(answer: u32, flags: libc::c_ulong) -> Option<OwnedFd> {
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_landlock_create_ruleset as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, answer),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    install(&mut program, flags)
}

const fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn install(program: &mut [libc::sock_filter], flags: libc::c_ulong) -> Option<OwnedFd> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true).unwrap();
    // SAFETY: the kernel copies the program.
    #[allow(unsafe_code)]
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    assert!(listener >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel made it for us.
    #[allow(unsafe_code)]
    (flags != 0).then(|| unsafe { OwnedFd::from_raw_fd(listener as i32) })
}

/// Answers until the program ends.
fn serve(listener: &OwnedFd, version: usize) -> std::convert::Infallible {
    loop {
        // SAFETY: zeros are a valid value of both, and the kernel reads and writes just these.
        #[allow(unsafe_code)]
        let (mut call, mut answer) =
            unsafe { (std::mem::zeroed::<libc::seccomp_notif>(), std::mem::zeroed::<libc::seccomp_notif_resp>()) };
        #[allow(unsafe_code)]
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &mut call) } != 0 {
            continue;
        }
        let [attributes, size, flags, ..] = call.data.args;
        answer.id = call.id;
        if flags & VERSION != 0 {
            answer.val = version as i64;
        } else if is_known(call.pid, attributes, size, version) {
            answer.flags = GO_ON;
        } else {
            answer.error = -libc::EINVAL;
        }
        // The caller may be gone.
        #[allow(unsafe_code)]
        unsafe {
            libc::ioctl(listener.as_raw_fd(), SEND, &answer);
        }
    }
}

/// Traces until no process is left.
fn watch(version: usize) -> std::convert::Infallible {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes into the status only.
        #[allow(unsafe_code)]
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL) };
        if pid < 0 {
            std::process::exit(0);
        }
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let is_group_stop = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal);
        let (request, signal) = match status >> 16 {
            0 => (libc::PTRACE_CONT, signal),
            libc::PTRACE_EVENT_STOP if is_group_stop => (libc::PTRACE_LISTEN, 0),
            libc::PTRACE_EVENT_SECCOMP => {
                // It may have been killed meanwhile.
                let _ = decide(pid, version);
                (libc::PTRACE_CONT, 0)
            }
            _ => (libc::PTRACE_CONT, 0),
        };
        let _ = trace(request, pid, 0, signal as usize);
    }
}

/// Lets a call of a traced process through, or gives it the answer of the version.
fn decide(pid: i32, version: usize) -> std::io::Result<()> {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    let mut part =
        libc::iovec { iov_base: registers.as_mut_ptr().cast(), iov_len: size_of::<libc::user_regs_struct>() };
    trace(libc::PTRACE_GETREGSET, pid, 1, (&raw mut part) as usize)?;
    // SAFETY: registers are numbers, and zeros before.
    #[allow(unsafe_code)]
    let mut registers = unsafe { registers.assume_init() };
    let [attributes, size, flags] = arguments(&registers);
    let answer = if flags & VERSION != 0 {
        version as i64
    } else if is_known(pid as u32, attributes, size, version) {
        return Ok(());
    } else {
        -i64::from(libc::EINVAL)
    };
    replace(pid, &mut registers, answer)?;
    part.iov_base = (&raw mut registers).cast();
    trace(libc::PTRACE_SETREGSET, pid, 1, (&raw mut part) as usize)
}

#[cfg(target_arch = "x86_64")]
fn arguments(registers: &libc::user_regs_struct) -> [u64; 3] {
    [registers.rdi, registers.rsi, registers.rdx]
}

#[cfg(target_arch = "aarch64")]
fn arguments(registers: &libc::user_regs_struct) -> [u64; 3] {
    [registers.regs[0], registers.regs[1], registers.regs[2]]
}

/// Makes the call return this without being made.
#[cfg(target_arch = "x86_64")]
fn replace(_: i32, registers: &mut libc::user_regs_struct, answer: i64) -> std::io::Result<()> {
    (registers.orig_rax, registers.rax) = (u64::MAX, answer.cast_unsigned());
    Ok(())
}

#[cfg(target_arch = "aarch64")]
fn replace(pid: i32, registers: &mut libc::user_regs_struct, answer: i64) -> std::io::Result<()> {
    // `NT_ARM_SYSTEM_CALL`.
    const NUMBER_OF_CALL: usize = 0x404;
    registers.regs[0] = answer.cast_unsigned();
    let mut none = -1_i32;
    let mut part = libc::iovec { iov_base: (&raw mut none).cast(), iov_len: size_of::<i32>() };
    trace(libc::PTRACE_SETREGSET, pid, NUMBER_OF_CALL, (&raw mut part) as usize)
}

fn trace(request: libc::c_uint, pid: i32, at: usize, value: usize) -> std::io::Result<()> {
    // SAFETY: the arguments are numbers, or the address of a value that lives as long as the call.
    #[allow(unsafe_code)]
    let returned = unsafe { libc::ptrace(request, pid, at, value) };
    if returned < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a version knows all the rights that a ruleset handles.
fn is_known(pid: u32, at: u64, size: u64, version: usize) -> bool {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let known = RIGHTS[version - 1];
    (0..size / 8).all(|n| {
        let mut right = [0; 8];
        memory.read_exact_at(&mut right, at + 8 * n).unwrap();
        u64::from_ne_bytes(right) & !known.get(n as usize).copied().unwrap_or(0) == 0
    })
}
