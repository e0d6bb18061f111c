//! An HTTP proxy: CONNECT for TLS, and absolute URLs for plain HTTP.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A running proxy.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The demanded `Proxy-Authorization`.
    authorization: Option<String>,
    /// The status of every answer, instead of a connection.
    refusal: Mutex<Option<u16>>,
    /// Addresses of servers that have no name in DNS.
    addresses: Mutex<BTreeMap<String, String>>,
    targets: Mutex<Vec<String>>,
}

impl Proxy {
    /// Starts one for everybody.
    pub fn start() -> Proxy {
        Self::demanding(None)
    }

    /// Starts one that demands this value of `Proxy-Authorization`.
    pub fn demanding(authorization: Option<&str>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { authorization: authorization.map(str::to_owned), ..Shared::default() });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&of_thread);
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Proxy { port, shared }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, without credentials.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Refuses every connection with this status from now on.
    pub fn refuse(&self, status: Option<u16>) {
        *self.shared.refusal.lock().unwrap() = status;
    }

    /// Connects clients that ask for `target`, as `host:port`, to this address.
    pub fn lead(&self, target: &str, address: &str) {
        self.shared.addresses.lock().unwrap().insert(target.into(), address.into());
    }

    /// The servers to which clients asked to be connected, as `host:port`.
    pub fn targets(&self) -> Vec<String> {
        self.shared.targets.lock().unwrap().clone()
    }
}

impl Shared {
    /// Serves one connection: one tunnel, or one request.
    fn serve(&self, client: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(client.try_clone().ok()?);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && reader.read_until(b'\n', &mut head).ok()? > 0 {}
        let head = String::from_utf8_lossy(&head).into_owned();
        let (line, headers) = head.split_once("\r\n")?;
        let mut words = line.split(' ');
        let (method, url) = (words.next()?, words.next()?);
        let (target, path) = match (method, url.strip_prefix("http://")) {
            ("CONNECT", _) => (url.to_owned(), ""),
            (_, rest) => {
                let (host, path) = rest?.split_once('/')?;
                (if host.contains(':') { host.to_owned() } else { format!("{host}:80") }, path)
            }
        };
        self.targets.lock().unwrap().push(target.clone());
        let given = headers.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("proxy-authorization").then(|| value.to_owned())
        });
        let refusal = *self.refusal.lock().unwrap();
        let lacks_login = self.authorization.is_some() && self.authorization != given;
        if let Some(status) = refusal.or(lacks_login.then_some(407)) {
            let mut client = client;
            client.write_all(format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").as_bytes()).ok()?;
            return client.shutdown(Shutdown::Write).ok();
        }
        let address = self.addresses.lock().unwrap().get(&target).cloned().unwrap_or(target);
        let mut server = TcpStream::connect(address).ok()?;
        if method == "CONNECT" {
            (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
        } else {
            let version = words.next()?;
            let kept = headers.lines().filter(|line| !is_of_connection(line)).map(|line| format!("{line}\r\n"));
            let head = format!("{method} /{path} {version}\r\nconnection: close\r\n{}\r\n", kept.collect::<String>());
            server.write_all(head.as_bytes()).ok()?;
        }
        relay(reader, client, server)
    }
}

fn is_of_connection(line: &str) -> bool {
    let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
    ["", "connection", "proxy-authorization", "proxy-connection"].contains(&name.as_str())
}

fn relay(mut from_client: BufReader<TcpStream>, mut to_client: TcpStream, server: TcpStream) -> Option<()> {
    let mut to_server = server.try_clone().ok()?;
    std::thread::spawn(move || {
        let mut block = [0; 1 << 14];
        while let Ok(n @ 1..) = from_client.read(&mut block) {
            if to_server.write_all(&block[..n]).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let mut server = server;
    std::io::copy(&mut server, &mut to_client).ok()?;
    to_client.shutdown(Shutdown::Both).ok()
}
