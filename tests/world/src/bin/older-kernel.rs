//! Runs a program as on an older kernel, as far as Landlock goes: `older-kernel ABI PROGRAM ARGUMENT…`.
//!
//! ABI is a version of Landlock, `disabled` for a kernel that has it switched off, or `none` for one without. A seccomp filter hands
//! the calls by which a program asks about Landlock to a process that answers them as that kernel does: rights that it does not
//! know are invalid. What it knows goes on to the real kernel. Follows `seccomp_unotify(2)` and `landlock(7)`.

#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs::File;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
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
    let answer = match kernel.as_str() {
        "none" => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        "disabled" => libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32,
        _ => libc::SECCOMP_RET_USER_NOTIF,
    };
    let listener = filter(answer);
    if let Ok(version) = kernel.parse::<usize>() {
        // SAFETY: this process has one thread.
        #[allow(unsafe_code)]
        let child = unsafe { libc::fork() };
        if child == 0 {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
            serve(&listener, version);
        }
    }
    drop(listener);
    panic!("{}", std::process::Command::new(&program[0]).args(&program[1..]).exec());
}

const fn request(number: u64, size: usize) -> libc::c_ulong {
    3 << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number
}

/// Filters `landlock_create_ruleset`, and returns what receives its calls.
fn filter(answer: u32) -> OwnedFd {
    const fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_landlock_create_ruleset as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, answer),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true).unwrap();
    // SAFETY: the kernel copies the program.
    #[allow(unsafe_code)]
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &program,
        )
    };
    assert!(listener >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel made it for us.
    #[allow(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(listener as i32)
    }
}

/// Answers until the program ends.
fn serve(listener: &OwnedFd, version: usize) -> ! {
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
