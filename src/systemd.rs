//! What systemd hears of this process: `sd_notify`, a datagram of `NAME=value`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Whoever started us, if it wants to be told.
#[derive(Clone, Debug, Default)]
pub struct Systemd {
    socket: Option<OsString>,
    /// How often it wants a sign of life at least.
    watchdog: Option<Duration>,
}

impl Systemd {
    /// On this socket; without one, nobody is told anything. A watchdog of no time is none, as `sd_watchdog_enabled` has it.
    pub fn new(socket: Option<OsString>, watchdog: Option<Duration>) -> Self {
        Self { socket, watchdog: watchdog.filter(|watchdog| !watchdog.is_zero()) }
    }

    /// How often to give a sign of life; none when nobody waits for it.
    pub fn period(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }

    /// Tells a state, such as `READY=1`. Somebody who does not listen is no reason to fail.
    pub fn tell(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, state) {
            tracing::debug!(%error, ?socket, state, "systemd does not hear it");
        }
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().split_first() {
        // A name that is in no file system.
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}
