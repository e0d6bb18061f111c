//! Uses sockets in the ways of Go, Tokio and the C library, and records what it sees: `socket-probe GROUND OUT`.
//!
//! The ground is JSON ([`Ground`]). The table has a line for each use, `name: outcome`, and ends with `end`. Then each byte on the
//! standard input makes it connect once more, with the outcome on the standard output.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::File;
use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde::Deserialize;

/// Where the probe connects to.
#[derive(Deserialize)]
struct Ground {
    /// Servers that answer each byte with the same byte.
    echo: SocketAddr,
    echo_v6: SocketAddr,
    unix: PathBuf,
    /// An allowed port on which nobody listens.
    silent: SocketAddr,
    /// A server on a port that is not allowed.
    refused: SocketAddr,
    /// A server of datagrams that answers each one.
    datagrams: SocketAddr,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ground: Ground = serde_json::from_slice(&std::fs::read(&args[0]).unwrap()).unwrap();
    let mut table = File::create(&args[1]).unwrap();
    let mut tell = |name: &str, outcome: Result<()>| {
        let outcome = outcome.map_or_else(|error| error.to_string(), |()| "ok".into());
        writeln!(table, "{name}: {outcome}").unwrap();
    };
    tell("connect and wait", TcpStream::connect(ground.echo).and_then(answers));
    tell("connect over IPv6", TcpStream::connect(ground.echo_v6).and_then(answers));
    tell("connect to an IPv4 address over IPv6", mapped(&ground));
    tell("connect to a Unix socket", UnixStream::connect(&ground.unix).and_then(answers));
    tell("connect without waiting", without_waiting(ground.echo));
    tell("connect to a port without a server", TcpStream::connect(ground.silent).map(drop));
    tell("connect to a refused port", TcpStream::connect(ground.refused).map(drop));
    tell("connect to a refused port without waiting", without_waiting(ground.refused));
    tell("connect again after no server answered", again(&ground));
    tell("keep options that were set before", options(ground.echo));
    tell("have the flags that were asked for", flags());
    tell("connect a datagram socket, and again", datagrams(&ground));
    tell("connect a datagram socket to a port of streams", datagram_to(ground.refused));
    tell("connect a bad descriptor", connect(-1, &address_of(ground.echo)));
    tell(
        "connect what is not a socket",
        connect(File::open("/dev/null").unwrap().as_raw_fd(), &address_of(ground.echo)),
    );
    tell("connect to half an address", half_an_address(ground.echo));
    tell("connect to an address that is not there", no_address());
    tell("make and close many sockets", (0..1000).try_for_each(|_| socket(libc::AF_INET, libc::SOCK_STREAM).map(drop)));
    tell("connect in many threads", in_threads(ground.echo));
    writeln!(table, "end").unwrap();
    while std::io::stdin().read_exact(&mut [0]).is_ok() {
        println!("{:?}", TcpStream::connect(ground.echo).map(drop).map_err(|error| error.raw_os_error()));
    }
}

fn socket(domain: i32, kind: i32) -> Result<OwnedFd> {
    // SAFETY: the arguments are numbers, and nothing else owns what the kernel returns.
    #[allow(unsafe_code)]
    unsafe {
        let made = libc::socket(domain, kind, 0);
        if made < 0 { Err(Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(made)) }
    }
}

fn connect(socket: i32, address: &[u8]) -> Result<()> {
    // SAFETY: the address lives as long as the call.
    #[allow(unsafe_code)]
    let returned = unsafe { libc::connect(socket, address.as_ptr().cast(), address.len() as u32) };
    if returned < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// A `sockaddr_in`.
fn address_of(address: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(address) = address else { panic!("{address}") };
    [&(libc::AF_INET as u16).to_ne_bytes()[..], &address.port().to_be_bytes(), &address.ip().octets(), &[0; 8]].concat()
}

fn answers(mut stream: impl Read + Write) -> Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

fn mapped(ground: &Ground) -> Result<()> {
    let SocketAddr::V4(echo) = ground.echo else { panic!("{}", ground.echo) };
    TcpStream::connect((echo.ip().to_ipv6_mapped(), echo.port())).and_then(answers)
}

/// Watches the socket first and connects then. Reads what arrives when the watch says so.
fn without_waiting(to: SocketAddr) -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
    // SAFETY: the event lives as long as the calls.
    #[allow(unsafe_code)]
    let watch = unsafe {
        let watch = OwnedFd::from_raw_fd(libc::epoll_create1(0));
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET;
        let mut event = libc::epoll_event { events: events as u32, u64: 0 };
        libc::epoll_ctl(watch.as_raw_fd(), libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &mut event);
        watch
    };
    let wait = |for_event: i32| {
        for _ in 0..20 {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            // SAFETY: the kernel writes one event.
            #[allow(unsafe_code)]
            let n = unsafe { libc::epoll_wait(watch.as_raw_fd(), &mut event, 1, 500) };
            let events = event.events;
            if n == 1 && events & for_event as u32 != 0 {
                return Ok(());
            }
        }
        Err(Error::other("no event arrived"))
    };
    match connect(socket.as_raw_fd(), &address_of(to)) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        connected => connected?,
    }
    wait(libc::EPOLLOUT)?;
    let mut stream = TcpStream::from(socket);
    stream.take_error()?.map_or(Ok(()), Err)?;
    stream.write_all(b"x")?;
    wait(libc::EPOLLIN)?;
    stream.read_exact(&mut [0])
}

/// Connects a socket that waits for a while after its first `connect` has failed.
fn again(ground: &Ground) -> Result<()> {
    let stream = TcpStream::from(socket(libc::AF_INET, libc::SOCK_STREAM)?);
    if connect(stream.as_raw_fd(), &address_of(ground.silent)).is_ok() {
        return Err(Error::other("a server answered"));
    }
    std::thread::sleep(std::time::Duration::from_millis(1500));
    connect(stream.as_raw_fd(), &address_of(ground.echo))?;
    answers(stream)
}

fn options(to: SocketAddr) -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    connect(stream.as_raw_fd(), &address_of(to))?;
    let is_as_before = stream.nodelay()? && stream.peer_addr()? == to;
    if is_as_before { answers(stream) } else { Err(Error::other("they are lost")) }
}

fn flags() -> Result<()> {
    let flags = |kind: i32| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM | kind).unwrap();
        // SAFETY: the arguments are numbers.
        #[allow(unsafe_code)]
        unsafe {
            let of_file = libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK != 0;
            (of_file, libc::fcntl(socket.as_raw_fd(), libc::F_GETFD) & libc::FD_CLOEXEC != 0)
        }
    };
    let kinds = [0, libc::SOCK_NONBLOCK, libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC];
    let found = kinds.map(flags);
    let expected = [(false, false), (true, false), (false, true), (true, true)];
    if found == expected { Ok(()) } else { Err(Error::other(format!("{found:?}"))) }
}

/// As a name is resolved, and as the C library compares addresses afterward.
fn datagrams(ground: &Ground) -> Result<()> {
    let socket = UdpSocket::from(socket(libc::AF_INET, libc::SOCK_DGRAM)?);
    for _ in 0..3 {
        connect(socket.as_raw_fd(), &[0; 16])?;
        connect(socket.as_raw_fd(), &address_of(ground.datagrams))?;
        socket.send(b"x")?;
        socket.recv(&mut [0])?;
    }
    Ok(())
}

fn datagram_to(to: SocketAddr) -> Result<()> {
    connect(socket(libc::AF_INET, libc::SOCK_DGRAM)?.as_raw_fd(), &address_of(to))
}

fn half_an_address(of: SocketAddr) -> Result<()> {
    connect(socket(libc::AF_INET, libc::SOCK_STREAM)?.as_raw_fd(), &address_of(of)[..8])
}

fn no_address() -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
    // SAFETY: the kernel reads no memory at this address.
    #[allow(unsafe_code)]
    let returned = unsafe { libc::connect(socket.as_raw_fd(), std::ptr::without_provenance(8), 16) };
    if returned < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn in_threads(to: SocketAddr) -> Result<()> {
    let connect = move || (0..50).try_for_each(|_| TcpStream::connect(to).and_then(answers));
    let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(connect)).collect();
    threads.into_iter().try_for_each(|thread| thread.join().unwrap())
}
