//! The second wall for TCP ports: a process that connects the sockets of a child, on a kernel whose Landlock has no port rules.
//!
//! seccomp hands every `socket` and `connect` of the child to its broker. The broker makes the socket and keeps a descriptor of it.
//! It copies the address of a `connect`, checks the copy, and connects the socket itself. So the child cannot change an address
//! after the check. The child has the same open file, with its options, its event queues and its flag for not blocking.
//!
//! Needs no privilege: the broker reads memory of a process of its own user, which Yama allows after `PR_SET_PTRACER`. A broker that
//! ends leaves the child without connections: every call then fails with `ENOSYS`. Follows `seccomp_unotify(2)`.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, Protocol, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{DumpableBehavior, PTracer, Pid, Resource, Rlimit, Signal};
use rustix::stdio;

use super::notification::{self, Call, Listener, Waited};
use super::{Sockets, apply, give_up_capabilities, seccomp};
use crate::bounds;

/// How often the broker looks which sockets the child has closed.
const SWEEP: Duration = Duration::from_secs(1);

/// How long it keeps a connected stream. A signal can make the kernel repeat a `connect` that was just answered.
const GRACE: Duration = Duration::from_millis(100);

/// The stack of a thread that waits for one `connect`.
const STACK_BYTES: usize = 64 << 10;

/// The largest address that the kernel takes: `sockaddr_storage`.
const MAX_ADDRESS: usize = 128;

/// The part of a socket's type that is not a flag: `SOCK_TYPE_MASK`.
const KIND: u32 = 0xf;

/// A broker that waits for its child's calls.
pub(super) struct Broker {
    process: Pid,
    channel: UnixStream,
}

impl Broker {
    /// Starts the broker of this process. Must be called while the process has one thread.
    pub(super) fn start(sockets: &Sockets) -> io::Result<Self> {
        let (channel, its) = UnixStream::pair()?;
        let child = rustix::process::getpid();
        let process = notification::fork(|| {
            // Its channel ends with it, and the child notices.
            let _ = run(child, its, sockets);
        })?;
        let process = Pid::from_raw(process).expect("fork returns a process id");
        Ok(Self { process, channel })
    }

    /// Hands the calls of this process to the broker from now on.
    pub(super) fn take_over(mut self) -> io::Result<()> {
        // Yama lets only ancestors read a process by default. A kernel without Yama does not know the call.
        let _ = rustix::process::set_ptracer(PTracer::ProcessID(self.process));
        let listener = notification::filter(&mut seccomp::notified())?;
        send(&self.channel, &listener)?;
        self.channel.read_exact(&mut [0]).map_err(|_| io::Error::other("the broker has ended"))
    }
}

/// The broker's whole life.
fn run(child: Pid, mut channel: UnixStream, sockets: &Sockets) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(child) {
        return Ok(());
    }
    // The worker waits until no process has the child's pipes.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    stdio::dup2_stdin(&null)?;
    stdio::dup2_stdout(&null)?;
    stdio::dup2_stderr(&null)?;
    rustix::thread::set_name(c"broker")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let limit = Some(super::lowered(Resource::Data, bounds::BROKER_MEMORY as u64));
    rustix::process::setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit })?;
    give_up_capabilities().map_err(io::Error::other)?;
    apply(seccomp::filters(sockets)).map_err(io::Error::other)?;
    let listener = Arc::new(Listener::new(receive(&channel)?));
    channel.write_all(&[0])?;
    drop(channel);
    let mut desk = Desk { listener, child, sockets, held: Vec::new() };
    loop {
        match desk.listener.wait(desk.patience())? {
            Waited::Call => desk.take_next(),
            Waited::Quiet => {}
            Waited::Over => return Ok(()),
        }
        desk.release();
    }
}

/// What a broker answers with.
struct Desk<'a> {
    listener: Arc<Listener>,
    child: Pid,
    sockets: &'a Sockets,
    held: Vec<Held>,
}

/// A socket of the child that is not connected yet, or was just now.
struct Held {
    socket: OwnedFd,
    /// The kernel's number of the socket, by which the child's descriptor is recognized.
    inode: u64,
    /// The child's first descriptor of it.
    number: u32,
    is_stream: bool,
    connected: Connected,
}

/// When a stream was connected, or began to be. Shared with the thread that waits for it.
#[derive(Clone, Default)]
struct Connected(Arc<Mutex<Option<Instant>>>);

impl Connected {
    fn since(&self) -> Option<Instant> {
        *self.lock()
    }

    /// Keeps how a `connect` ended, and returns what the child sees of it: success also when the kernel repeats a call that was
    /// answered.
    fn keep(&self, outcome: Result<(), Errno>) -> Result<(), Errno> {
        let mut since = self.lock();
        match outcome {
            Err(Errno::ISCONN) if since.is_some() => return Ok(()),
            Ok(()) | Err(Errno::INPROGRESS) => *since = since.or_else(|| Some(Instant::now())),
            Err(_) => *since = None,
        }
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk<'_> {
    fn take_next(&mut self) {
        // A call can be gone: its thread was interrupted, or has ended.
        let Ok(call) = self.listener.receive() else { return };
        let refused = match call.number {
            libc::SYS_socket => self.make(&call),
            _ => self.connect(&call),
        };
        if let Err(error) = refused {
            let _ = self.listener.answer(&call, Err(error));
        }
    }

    /// Makes the socket that the child asks for. seccomp has refused all others.
    fn make(&mut self, call: &Call) -> Result<(), Errno> {
        if self.held.len() >= bounds::BROKER_SOCKETS {
            return Err(Errno::MFILE);
        }
        let [domain, kind, protocol] = [0, 1, 2].map(|n| call.arguments[n] as u32);
        let domain = AddressFamily::from_raw(domain.try_into().map_err(|_| Errno::AFNOSUPPORT)?);
        let flags = SocketFlags::from_bits_retain(kind & !KIND) | SocketFlags::CLOEXEC;
        let protocol = std::num::NonZeroU32::new(protocol).map(Protocol::from_raw);
        let is_stream = SocketType::from_raw(kind & KIND) == SocketType::STREAM;
        let socket = net::socket_with(domain, SocketType::from_raw(kind & KIND), flags, protocol)?;
        let inode = fstat(&socket)?.st_ino;
        let cloexec = kind & SocketFlags::CLOEXEC.bits();
        let number = self.listener.answer_with(call, socket.as_fd(), cloexec)?.cast_unsigned();
        self.held.push(Held { socket, inode, number, is_stream, connected: Connected::default() });
        Ok(())
    }

    fn connect(&mut self, call: &Call) -> Result<(), Errno> {
        let [number, at, size] = [0, 1, 2].map(|n| call.arguments[n]);
        let file = self.file(number as u32).ok_or(Errno::BADF)?;
        let inode = inode_of(&file).ok_or(Errno::NOTSOCK)?;
        // A socket that the broker has not made, or that is connected.
        let position = self.held.iter().position(|held| held.inode == inode).ok_or(Errno::ACCESS)?;
        let address = self.read(at, size as u32 as usize)?;
        let destination = Destination::parse(&address)?;
        destination.check(self.sockets, self.held[position].is_stream)?;
        let is_blocking = !fcntl_getfl(&self.held[position].socket)?.contains(OFlags::NONBLOCK);
        if is_blocking && self.held[position].is_stream {
            return self.connect_aside(call, position, destination);
        }
        let held = &self.held[position];
        let outcome = destination.connect(&held.socket);
        // A descriptor that stays here would keep the connection open. A datagram socket may be connected again.
        let outcome = if held.is_stream { held.connected.keep(outcome) } else { outcome };
        // The call may be gone: it was interrupted, and is repeated.
        let _ = self.listener.answer(call, outcome);
        Ok(())
    }

    /// Connects in a thread of its own, since the socket blocks.
    fn connect_aside(&mut self, call: &Call, position: usize, destination: Destination) -> Result<(), Errno> {
        if Arc::strong_count(&self.listener) > bounds::BROKER_WAITS {
            return Err(Errno::AGAIN);
        }
        let (listener, call) = (Arc::clone(&self.listener), *call);
        let held = &self.held[position];
        let (socket, connected) = (held.socket.try_clone().map_err(|_| Errno::MFILE)?, held.connected.clone());
        let connect = move || {
            let outcome = connected.keep(destination.connect(&socket));
            drop(socket);
            let _ = listener.answer(&call, outcome);
        };
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(connect);
        thread.map(drop).map_err(|_| Errno::AGAIN)
    }

    /// What a descriptor of the child refers to, as the kernel names it.
    fn file(&self, number: u32) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/fd/{number}", self.child)).ok()
    }

    /// A copy of an address in the child's memory.
    fn read(&self, at: u64, size: usize) -> Result<Vec<u8>, Errno> {
        if size > MAX_ADDRESS {
            return Err(Errno::INVAL);
        }
        let memory = File::open(format!("/proc/{}/mem", self.child)).map_err(|_| Errno::ACCESS)?;
        let mut address = vec![0; size];
        memory.read_exact_at(&mut address, at).map_err(|_| Errno::FAULT)?;
        Ok(address)
    }

    /// How long to wait for a call before sockets are released.
    fn patience(&self) -> Option<Duration> {
        let is_waiting = Arc::strong_count(&self.listener) > 1;
        match self.held.as_slice() {
            [] => None,
            held if is_waiting || held.iter().any(|held| held.connected.since().is_some()) => Some(GRACE),
            _ => Some(SWEEP),
        }
    }

    /// Gives up streams that are connected, and sockets that the child has closed.
    fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        let is_open = |held: &Held| self.file(held.number).and_then(|file| inode_of(&file)) == Some(held.inode);
        let is_new = |held: &Held| held.connected.since().is_none_or(|since| since.elapsed() < GRACE);
        self.held = held.into_iter().filter(|held| is_new(held) && is_open(held)).collect();
    }
}

/// The kernel's number of a socket, from the name of its file.
fn inode_of(file: &Path) -> Option<u64> {
    file.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Where a `connect` leads.
#[derive(Debug, PartialEq, Eq)]
enum Destination {
    /// Nowhere: it removes the address of a datagram socket.
    Unconnected,
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl Destination {
    /// Reads a `sockaddr`.
    fn parse(address: &[u8]) -> Result<Self, Errno> {
        let family = address.first_chunk().map(|family| u16::from_ne_bytes(*family)).ok_or(Errno::INVAL)?;
        let port = || address.get(2..4).and_then(|port| Some(u16::from_be_bytes(port.try_into().ok()?)));
        Ok(match i32::from(family) {
            libc::AF_UNSPEC => Self::Unconnected,
            libc::AF_INET => {
                let [a, b, c, d]: [u8; 4] = part(address, 4)?;
                // The kernel takes the whole struct and no less.
                let _: [u8; 8] = part(address, 8)?;
                Self::Ip(SocketAddrV4::new([a, b, c, d].into(), port().ok_or(Errno::INVAL)?).into())
            }
            libc::AF_INET6 => {
                let flow = u32::from_ne_bytes(part(address, 4)?);
                let ip = Ipv6Addr::from(part::<16>(address, 8)?);
                // It is missing in the older form of the struct.
                let scope = part(address, 24).map_or(0, u32::from_ne_bytes);
                Self::Ip(SocketAddrV6::new(ip, port().ok_or(Errno::INVAL)?, flow, scope).into())
            }
            libc::AF_UNIX => {
                let name = &address[2..];
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                // Landlock refuses abstract names from ABI 6 on. They begin with a zero.
                if end == 0 {
                    return Err(Errno::PERM);
                }
                Self::Unix(Path::new(std::ffi::OsStr::from_bytes(&name[..end])).to_owned())
            }
            _ => return Err(Errno::AFNOSUPPORT),
        })
    }

    /// Whether the child may connect there. Other protocols than TCP are as open as with Landlock's rules.
    fn check(&self, sockets: &Sockets, is_stream: bool) -> Result<(), Errno> {
        let ports = match sockets {
            Sockets::None => &[][..],
            Sockets::Tcp(ports) | Sockets::TcpAndUnix(ports) => ports,
        };
        let is_allowed = match self {
            Self::Ip(address) => !is_stream || ports.contains(&address.port()),
            Self::Unix(_) => matches!(sockets, Sockets::TcpAndUnix(_)),
            Self::Unconnected => true,
        };
        if is_allowed { Ok(()) } else { Err(Errno::ACCESS) }
    }

    fn connect(&self, socket: &OwnedFd) -> Result<(), Errno> {
        let outcome = match self {
            Self::Unconnected => net::connect_unspec(socket),
            Self::Ip(address) => net::connect(socket, address),
            Self::Unix(path) => net::connect(socket, &SocketAddrUnix::new(path)?),
        };
        // The kernel repeats an interrupted call, which has begun then.
        outcome.map_err(|error| if error == Errno::ALREADY { Errno::INPROGRESS } else { error })
    }
}

fn part<const N: usize>(address: &[u8], from: usize) -> Result<[u8; N], Errno> {
    address.get(from..from + N).and_then(|part| part.try_into().ok()).ok_or(Errno::INVAL)
}

/// Sends a descriptor.
fn send(channel: &UnixStream, file: &OwnedFd) -> io::Result<()> {
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    net::sendmsg(channel, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a descriptor.
fn receive(channel: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    net::recvmsg(channel, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    files.last().ok_or_else(|| io::Error::other("no listener was sent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `sockaddr_in`.
    fn of_v4(ip: [u8; 4], port: u16) -> Vec<u8> {
        [&(libc::AF_INET as u16).to_ne_bytes()[..], &port.to_be_bytes(), &ip, &[0; 8]].concat()
    }

    /// A `sockaddr_in6` without its scope.
    fn of_v6(ip: Ipv6Addr, port: u16) -> Vec<u8> {
        [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &port.to_be_bytes(), &[0; 4], &ip.octets()].concat()
    }

    fn of_unix(name: &[u8]) -> Vec<u8> {
        [&(libc::AF_UNIX as u16).to_ne_bytes(), name].concat()
    }

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let ip = |text: &str| Ok(Destination::Ip(text.parse().expect("an address")));
        let v6 = of_v6(Ipv6Addr::LOCALHOST, 443);
        for (address, expected) in [
            (of_v4([10, 0, 0, 1], 443), ip("10.0.0.1:443")),
            // More than the struct is allowed, less is not.
            ([of_v4([10, 0, 0, 1], 443), vec![7; 12]].concat(), ip("10.0.0.1:443")),
            (of_v4([10, 0, 0, 1], 443)[..15].to_vec(), Err(Errno::INVAL)),
            (v6.clone(), ip("[::1]:443")),
            ([v6.clone(), 3_u32.to_ne_bytes().to_vec()].concat(), ip("[::1%3]:443")),
            (v6[..23].to_vec(), Err(Errno::INVAL)),
            (of_unix(b"/run/docker.sock\0rest"), Ok(Destination::Unix("/run/docker.sock".into()))),
            (of_unix(b"/run/docker.sock"), Ok(Destination::Unix("/run/docker.sock".into()))),
            (of_unix(b"\0abstract"), Err(Errno::PERM)),
            (of_unix(b""), Err(Errno::PERM)),
            (vec![0; 16], Ok(Destination::Unconnected)),
            (vec![0], Err(Errno::INVAL)),
            (vec![], Err(Errno::INVAL)),
            ((libc::AF_VSOCK as u16).to_ne_bytes().to_vec(), Err(Errno::AFNOSUPPORT)),
        ] {
            assert_eq!(Destination::parse(&address), expected, "{address:?}");
        }
    }

    #[test]
    fn a_repeated_connect_succeeds_and_a_failed_one_is_forgotten() {
        let connected = Connected::default();
        assert_eq!(connected.keep(Err(Errno::ISCONN)), Err(Errno::ISCONN));
        for begun in [Ok(()), Err(Errno::INPROGRESS)] {
            assert_eq!(connected.keep(begun), begun);
            let since = connected.since().expect("it has begun");
            assert_eq!(connected.clone().keep(Err(Errno::ISCONN)), Ok(()));
            assert_eq!(connected.since(), Some(since));
            assert_eq!(connected.keep(Err(Errno::CONNREFUSED)), Err(Errno::CONNREFUSED));
            assert_eq!(connected.since(), None);
        }
    }

    #[test]
    fn streams_reach_only_their_ports_and_unix_sockets_only_an_engine() {
        let to = |port| Destination::parse(&of_v4([127, 0, 0, 1], port)).expect("valid");
        let mapped = Destination::parse(&of_v6("::ffff:127.0.0.1".parse().expect("an address"), 6379)).expect("valid");
        let unix = Destination::Unix("/run/docker.sock".into());
        let (tcp, engine) = (Sockets::Tcp(vec![443]), Sockets::TcpAndUnix(vec![443]));
        for (destination, sockets, is_stream, is_allowed) in [
            (&to(443), &tcp, true, true),
            (&to(6379), &tcp, true, false),
            (&mapped, &tcp, true, false),
            (&to(53), &tcp, false, true),
            (&to(443), &Sockets::None, true, false),
            (&Destination::Unconnected, &tcp, true, true),
            (&unix, &tcp, true, false),
            (&unix, &engine, true, true),
            (&to(6379), &engine, true, false),
        ] {
            let expected = if is_allowed { Ok(()) } else { Err(Errno::ACCESS) };
            assert_eq!(destination.check(sockets, is_stream), expected, "{destination:?} {sockets:?}");
        }
    }
}
