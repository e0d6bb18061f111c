//! A byte relay that a test can cut and stall: in front of the API server, and between pods and this machine.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Keeps connections open and forwards nothing.
    Stall,
}

pub struct Relay {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    cut: watch::Sender<u32>,
}

impl Relay {
    /// Listens on a loopback port and forwards to `target`.
    pub async fn to(target: &str) -> Self {
        Self::on("127.0.0.1", target).await
    }

    /// Listens on another address of this machine.
    pub async fn on(address: &str, target: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, cut) = (watch::Sender::new(Mode::Pass), watch::Sender::new(0));
        let relay = Self { address, mode, cut };
        let target: Arc<str> = target.into();
        let (mode, cut) = (relay.mode.clone(), relay.cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, mode, mut cut) = (Arc::clone(&target), mode.clone(), cut.subscribe());
                tokio::spawn(async move {
                    let server = TcpStream::connect(&*target).await.unwrap();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::select! {
                        _ = cut.changed() => {}
                        () = pump(from_client, to_server, mode.subscribe()) => {}
                        () = pump(from_server, to_client, mode.subscribe()) => {}
                    }
                });
            }
        });
        relay
    }

    /// Ends every connection. Forwards new ones.
    pub fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// Stops forwarding, on old connections and new ones.
    pub fn stall(&self) {
        self.mode.send_replace(Mode::Stall);
    }

    /// Forwards again.
    pub fn pass(&self) {
        self.mode.send_replace(Mode::Pass);
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut mode: watch::Receiver<Mode>,
) {
    let mut chunk = vec![0; 32 << 10];
    loop {
        let n = from.read(&mut chunk).await.unwrap_or(0);
        let is_passing = mode.wait_for(|mode| *mode == Mode::Pass).await.is_ok();
        if n == 0 || !is_passing || to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}
