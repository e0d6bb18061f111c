//! The kernel's interface by which one process answers the system calls of another: seccomp's user notifications.
//!
//! Owns the calls that have no safe form elsewhere. Knows nothing of sockets. Follows `seccomp_unotify(2)`.

#![expect(unsafe_code, reason = "no crate of ours has these calls: the filter with a listener, and its ioctls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`: a signal does not interrupt a call that was received. Without it, the signals by which
/// Go's runtime preempts its threads can make the kernel repeat a `socket` without end.
const UNINTERRUPTED: libc::c_ulong = 1 << 5;

const RECEIVE: libc::c_ulong = request(3, 0, size_of::<libc::seccomp_notif>());
const SEND: libc::c_ulong = request(3, 1, size_of::<libc::seccomp_notif_resp>());
const ADD_FILE: libc::c_ulong = request(1, 3, size_of::<libc::seccomp_notif_addfd>());

/// The number of an ioctl of a listener, as `_IOC` of the kernel's headers makes it.
const fn request(direction: libc::c_ulong, number: libc::c_ulong, size: usize) -> libc::c_ulong {
    direction << 30 | (size as libc::c_ulong) << 16 | (b'!' as libc::c_ulong) << 8 | number
}

/// Receives the calls of a filtered process.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    id: u64,
    /// Which call.
    pub(super) number: i64,
    /// Its arguments. Memory to which one points can change at any time.
    pub(super) arguments: [u64; 6],
}

/// What a wait for a call ended with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A call arrived.
    Call,
    /// None arrived for this long.
    Quiet,
    /// No filtered process is left.
    Over,
}

/// Filters the calls of this process permanently, and returns the listener for them.
///
/// # Errors
///
/// `EBUSY` when a filter of this process has a listener already, `EACCES` without no_new_privs. [`io::ErrorKind::Unsupported`] before
/// Linux 5.19.
pub(super) fn filter(program: &mut [libc::sock_filter]) -> io::Result<OwnedFd> {
    let len = program.len().try_into().expect("the program is short");
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let flags = UNINTERRUPTED | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the kernel copies the program, whose length is its own.
    let made = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if made < 0 {
        let error = io::Error::last_os_error();
        let is_unknown = error.raw_os_error() == Some(libc::EINVAL);
        let interrupted = "signals interrupt the calls that a broker answers; it needs Linux 5.19";
        return Err(if is_unknown { io::Error::new(io::ErrorKind::Unsupported, interrupted) } else { error });
    }
    // SAFETY: the kernel has just made it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

impl Listener {
    pub(super) fn new(file: OwnedFd) -> Self {
        Self(file)
    }

    /// Waits for a call, for this long or without end.
    pub(super) fn wait(&self, limit: Option<Duration>) -> Result<Waited, Errno> {
        let limit = limit.map(|limit| Timespec::try_from(limit).expect("a short time"));
        let mut files = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut files, limit.as_ref()) {
            Err(Errno::INTR) | Ok(0) => return Ok(Waited::Quiet),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let is_call = files[0].revents().contains(PollFlags::IN);
        Ok(if is_call { Waited::Call } else { Waited::Over })
    }

    /// The call that arrived. Fails when its thread ended or was interrupted meanwhile.
    pub(super) fn receive(&self) -> Result<Call, Errno> {
        let data = libc::seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] };
        let mut received = libc::seccomp_notif { id: 0, pid: 0, flags: 0, data };
        self.control(RECEIVE, &mut received)?;
        Ok(Call { id: received.id, number: received.data.nr.into(), arguments: received.data.args })
    }

    /// Ends the call with 0 or with an error. Fails when nothing waits for the answer any more.
    pub(super) fn answer(&self, call: &Call, outcome: Result<(), Errno>) -> Result<(), Errno> {
        let error = outcome.err().map_or(0, |error| -error.raw_os_error());
        self.control(SEND, &mut libc::seccomp_notif_resp { id: call.id, val: 0, error, flags: 0 }).map(drop)
    }

    /// Ends the call with a descriptor of this file, which the calling process then has too.
    pub(super) fn answer_with(&self, call: &Call, file: BorrowedFd<'_>, flags: u32) -> Result<i32, Errno> {
        let mut added = libc::seccomp_notif_addfd {
            id: call.id,
            flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
            srcfd: file.as_raw_fd().cast_unsigned(),
            newfd: 0,
            newfd_flags: flags,
        };
        self.control(ADD_FILE, &mut added)
    }

    fn control<T>(&self, request: libc::c_ulong, value: &mut T) -> Result<i32, Errno> {
        // SAFETY: each request contains the size of its value, and the kernel writes into nothing else.
        let returned = unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut *value) };
        if returned < 0 {
            Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
        } else {
            Ok(returned)
        }
    }
}

/// Makes a copy of this process, which runs `work` and ends. Returns its process id.
///
/// Call it while the process has one thread: the copy has only that one.
pub(super) fn fork(work: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: no other thread holds a lock that the copy would wait for.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            std::process::exit(0)
        }
        process => Ok(process),
    }
}
