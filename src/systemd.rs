//! Notifications to systemd: `sd_notify`, a datagram of `NAME=value`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// systemd, if it started this process and expects notifications.
#[derive(Clone, Debug, Default)]
pub struct Systemd {
    socket: Option<OsString>,
    /// The longest time between two keepalives.
    watchdog: Option<Duration>,
}

impl Systemd {
    /// Notifies this socket; without a socket, nothing. A watchdog of zero counts as none, as in `sd_watchdog_enabled`.
    pub fn new(socket: Option<OsString>, watchdog: Option<Duration>) -> Self {
        Self { socket, watchdog: watchdog.filter(|watchdog| !watchdog.is_zero()) }
    }

    /// How often to send a keepalive; `None` without a watchdog.
    pub fn period(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }

    /// Sends a state, such as `READY=1`. A failure only appears in the debug log.
    pub fn notify(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, state) {
            tracing::debug!(%error, ?socket, state, "systemd could not be notified");
        }
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().split_first() {
        // An abstract name, which is in no file system.
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}
