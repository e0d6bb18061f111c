//! The TCP connections of a process as the kernel sees them: the peer, and when bytes were last sent and received.
//!
//! The worker watches a child that may not notice that its peer is gone. Follows `sock_diag(7)` for this network namespace, and
//! `/proc/PID/fd` for the sockets of the child.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as Kernel};

/// An established TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Time since bytes were last sent.
    pub since_sent: Duration,
    /// Time since bytes last arrived.
    pub since_received: Duration,
}

/// The established connections of the process; none when it has ended.
pub fn of(pid: u32) -> io::Result<Vec<Connection>> {
    let inodes = sockets(pid);
    if inodes.is_empty() {
        return Ok(Vec::new());
    }
    let mut connections = Vec::new();
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        dump(family, any, |response| {
            if inodes.contains(&response.header.inode) {
                connections.extend(connection(response));
            }
        })?;
    }
    Ok(connections)
}

/// The inodes of the process's sockets.
fn sockets(pid: u32) -> BTreeSet<u32> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    targets.filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

fn connection(response: &InetResponse) -> Option<Connection> {
    let id = &response.header.socket_id;
    let info = response.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(info) => Some(info),
        _ => None,
    })?;
    Some(Connection {
        // A client with an IPv6 socket reaches IPv4 as ::ffff:a.b.c.d.
        peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        since_sent: Duration::from_millis(info.last_data_sent.into()),
        since_received: Duration::from_millis(info.last_data_recv.into()),
    })
}

/// Asks for every established connection of one address family.
fn dump(family: u8, any: SocketId, mut each: impl FnMut(&InetResponse)) -> io::Result<()> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&Kernel::new(0, 0))?;
    socket.send(&request(family, any), 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            // Messages begin at multiples of four.
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => each(&response),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request(family: u8, any: SocketId) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let body = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::ESTABLISHED,
        socket_id: any,
    });
    let mut message = NetlinkMessage::new(header, body.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_seen_with_its_ages_until_its_other_end_goes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let _client = TcpStream::connect(address).expect("connected");
        let (mut server, _) = listener.accept().expect("accepted");
        let seen = || {
            let all = of(std::process::id()).expect("the kernel answers");
            all.into_iter().find(|connection| connection.peer == address)
        };

        std::thread::sleep(Duration::from_millis(120));
        let idle = seen().expect("there");
        assert!(idle.since_received >= Duration::from_millis(100), "{idle:?}");
        server.write_all(b"a byte").expect("sent");
        std::thread::sleep(Duration::from_millis(20));
        let heard = seen().expect("there");
        assert!(heard.since_received < Duration::from_millis(100), "{heard:?}");

        drop(server);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(seen(), None, "half closed is not established");
    }

    #[test]
    fn a_process_that_does_not_exist_has_none() {
        assert_eq!(of(u32::MAX).expect("no error"), []);
    }
}
