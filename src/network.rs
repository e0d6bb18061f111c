//! Connections to other systems: which proxy they take, whom they trust, and why one fails.
//!
//! Requests to GitHub, Rails, registries and API servers fail in the same ways, and each way reads the same for all of them. A cause is
//! known by its type; only what has no type of its own, such as a failed look-up of a name, is known by its library's words.

mod client;
mod proxy;

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

use http::{StatusCode, Uri};
use rustls::CertificateError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use client::{ClientError, authorities, certificates, check, client, system_certificates};
pub use proxy::{InvalidProxy, Proxies, Proxy};

/// The libraries' words for "it failed", which say nothing about why.
const EMPTY_WORDS: [&str; 6] = [
    "error sending request",
    "client error (",
    "error trying to connect",
    "connection error",
    "tunnel error: failed to create underlying connection",
    "ServiceError: ",
];

/// How long a proxy may take to say why it refuses a connection.
const REFUSAL: Duration = Duration::from_secs(5);

/// A server that could not be reached. The text names the server, each cause and what to check. It has no credentials in it.
#[derive(Clone, Debug)]
pub struct Unreachable {
    url: String,
    /// The proxy of this URL.
    proxy: Option<Box<Proxy>>,
    causes: String,
    kind: Option<Kind>,
}

/// How a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NoAddress,
    Refused,
    NoRoute,
    TimedOut,
    Slow,
    Closed,
    NoTls,
    UnknownAuthority,
    AnotherName,
    NotValidNow,
    /// The proxy demands a login.
    NoLogin,
    /// The proxy opened no connection. Its status, once it is known.
    NoTunnel(Option<u16>),
}

impl Kind {
    /// What an operator checks.
    fn check(self) -> &'static str {
        match self {
            Self::NoAddress => "check the spelling of the host, and the DNS of this machine",
            Self::Refused => "check the port, and whether the server runs",
            Self::NoRoute => "check the network and the firewall of this machine",
            Self::TimedOut => "check whether a firewall drops the connection, and whether it needs a proxy",
            Self::Slow => "check whether the server is overloaded",
            Self::Closed => "check whether the port is right, and whether a firewall or a proxy closes connections",
            Self::NoTls => "check whether the port speaks TLS, and whether the URL begins with https or http",
            Self::UnknownAuthority => {
                "check who signed its certificate; network.ca_file adds an authority, and a kubeconfig has its own"
            }
            Self::AnotherName => "check the host, and whether a proxy answers in its place",
            Self::NotValidNow => "check the clock of this machine, and renew the certificate",
            Self::NoLogin => "check the user and password of the proxy",
            Self::NoTunnel(Some(500..)) => "check whether the proxy can resolve and reach this host",
            Self::NoTunnel(_) => "check whether the proxy allows this host and port",
        }
    }

    /// Whether no connection was made: with a proxy, it is the proxy that was not reached.
    fn is_of_connecting(self) -> bool {
        matches!(self, Self::NoAddress | Self::Refused | Self::NoRoute | Self::TimedOut)
    }

    /// The innermost cause that says how is the truest.
    fn of_chain(chain: &[&(dyn Error + 'static)]) -> Option<Self> {
        chain.iter().rev().find_map(|cause| Self::of(*cause))
    }

    fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Self::of_tls(error);
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Self::of_io(error);
        }
        let late = error.downcast_ref::<reqwest::Error>().filter(|error| error.is_timeout());
        if let Some(late) = late {
            return Some(if late.is_connect() { Self::TimedOut } else { Self::Slow });
        }
        let text = error.to_string();
        let begins = |words: &[&str]| words.iter().any(|words| text.starts_with(words));
        if begins(&["tunnel error: proxy authorization required"]) {
            Some(Self::NoLogin)
        } else if begins(&["tunnel error: unsuccessful", "tunnel error: proxy response headers too long"]) {
            Some(Self::NoTunnel(None))
        } else if begins(&["tunnel error: unexpected end of file"]) {
            Some(Self::Closed)
        } else if begins(&["dns error"]) {
            Some(Self::NoAddress)
        } else if begins(&["invalid HTTP version parsed", "invalid HTTP status-code parsed"]) {
            Some(Self::NoTls)
        } else if text.contains("connection closed before message completed") || begins(&["connection was not ready"]) {
            // hyper says the second when the server has closed the connection before the request was sent.
            Some(Self::Closed)
        } else {
            None
        }
    }

    fn of_io(error: &io::Error) -> Option<Self> {
        match error.kind() {
            ErrorKind::ConnectionRefused => Some(Self::Refused),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => Some(Self::NoRoute),
            ErrorKind::TimedOut => Some(Self::TimedOut),
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => Some(Self::Closed),
            // The words are those of the standard library.
            _ if error.to_string().starts_with("failed to lookup address information") => Some(Self::NoAddress),
            _ => None,
        }
    }

    fn of_tls(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidMessage(_) => Some(Self::NoTls),
            rustls::Error::InvalidCertificate(certificate) => match certificate {
                CertificateError::UnknownIssuer => Some(Self::UnknownAuthority),
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Some(Self::AnotherName)
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Some(Self::NotValidNow),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Unreachable {
    /// The server at `url`, which has no credentials in it. Looks up whether the environment names a proxy for it.
    pub fn new(url: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let url = url.into();
        let proxy = Proxies::of_process().of(&url).cloned();
        Self::through(url, proxy, error)
    }

    /// The server at `url` behind this proxy.
    pub fn through(url: impl Into<String>, proxy: Option<Proxy>, error: &(dyn Error + 'static)) -> Self {
        let chain = chain(error);
        Self { url: url.into(), proxy: proxy.map(Box::new), causes: in_words(&chain), kind: Kind::of_chain(&chain) }
    }

    /// The server at `url`, when the answer with this status came from its proxy. 407 never comes from another server.
    pub fn by_proxy(url: &str, proxy: Proxy, status: StatusCode) -> Self {
        let kind = match status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => Kind::NoLogin,
            status => Kind::NoTunnel(Some(status.as_u16())),
        };
        let causes = format!("the proxy answered {status}");
        Self { url: url.to_owned(), proxy: Some(Box::new(proxy)), causes, kind: Some(kind) }
    }

    /// Adds the status with which a proxy refused the connection: no client reports it. Asks an HTTP proxy once more.
    pub async fn with_refusal(mut self) -> Self {
        if self.kind == Some(Kind::NoLogin) {
            self.causes = format!("the proxy answered {}", StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        }
        let Some(proxy) = self.proxy.as_ref().filter(|_| self.kind == Some(Kind::NoTunnel(None))) else { return self };
        if let Ok(Some(status)) = timeout(REFUSAL, refusal(proxy, &self.url)).await {
            self.causes = format!("the proxy answered {status}");
            self.kind = Some(Kind::NoTunnel(Some(status.as_u16())));
        }
        self
    }

    /// The text without the URL.
    pub fn why(&self) -> String {
        let check = self.kind.map(|kind| format!("; {}", kind.check())).unwrap_or_default();
        match (&self.proxy, self.kind) {
            (Some(proxy), Some(kind)) if kind.is_of_connecting() => {
                let (name, source) = (proxy.name(), &proxy.source);
                let causes = &self.causes;
                format!(
                    "cannot be reached: no connection to its proxy {name}: {causes}; check {source}, and whether the proxy runs"
                )
            }
            (Some(proxy), _) => format!("cannot be reached through the proxy {}: {}{check}", proxy.name(), self.causes),
            (None, _) => format!("cannot be reached: {}{check}", self.causes),
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.url, self.why())
    }
}

impl Error for Unreachable {}

/// The status with which an HTTP proxy refuses a connection to the host of a URL; `None` when it opens one, or says nothing.
async fn refusal(proxy: &Proxy, url: &str) -> Option<StatusCode> {
    let url: Uri = url.parse().ok()?;
    if proxy.uri().scheme_str() != Some("http") {
        return None;
    }
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    let target = format!("{}:{port}", url.host()?);
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n").into_bytes();
    if let Some(authorization) = proxy.authorization() {
        request.extend([b"proxy-authorization: ", authorization.as_bytes(), b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    let mut connection = TcpStream::connect((proxy.host(), proxy.port())).await.ok()?;
    connection.write_all(&request).await.ok()?;
    let mut head = [0; "HTTP/1.1 403".len()];
    connection.read_exact(&mut head).await.ok()?;
    let status = StatusCode::from_bytes(&head[head.len() - 3..]).ok()?;
    (head.starts_with(b"HTTP/1.") && !status.is_success()).then_some(status)
}

/// The error and its causes in one text, without repetitions, and what to check.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let chain = chain(error);
    let check = Kind::of_chain(&chain).map(|kind| format!("; {}", kind.check())).unwrap_or_default();
    format!("{}{check}", in_words(&chain))
}

/// The error and its causes, the outermost first.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> Vec<&'e (dyn Error + 'static)> {
    let mut chain = vec![error];
    while let Some(cause) = cause(chain[chain.len() - 1]) {
        chain.push(cause);
    }
    chain
}

fn cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    // An io::Error that wraps another one passes over it in `source`.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source())
}

fn in_words(chain: &[&(dyn Error + 'static)]) -> String {
    let texts: Vec<String> = chain.iter().map(|cause| cause.to_string()).collect();
    let is_empty = |text: &String| EMPTY_WORDS.iter().any(|words| text.starts_with(words));
    let mut said: Vec<&str> = Vec::new();
    for (n, text) in texts.iter().enumerate() {
        let is_last = n + 1 == texts.len() && said.is_empty();
        let is_repeated = said.iter().any(|known| known.contains(text.as_str()));
        if is_last || !(is_repeated || is_empty(text)) {
            said.push(text);
        }
    }
    said.join(": ")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    /// What a client says of a server that does this with the first connection.
    async fn said_of(scheme: &str, serve: impl FnOnce(std::net::TcpStream) + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("{scheme}://127.0.0.1:{}/app", listener.local_addr().expect("an address").port());
        std::thread::spawn(move || serve(listener.accept().expect("a client").0));
        said(&url).await
    }

    async fn said(url: &str) -> String {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(500)).build().expect("a client");
        let error = http.get(url).send().await.expect_err("no answer").without_url();
        let text = Unreachable::new(url, &error).to_string();
        text.replace(url, "URL")
    }

    #[tokio::test]
    async fn each_way_to_fail_is_named_with_what_to_check() {
        let text = said("http://127.0.0.1:1/").await;
        assert!(text.starts_with("URL cannot be reached: tcp connect error: Connection refused"), "{text}");
        assert!(text.ends_with("; check the port, and whether the server runs"), "{text}");

        let text = said("http://nowhere.invalid/").await;
        assert!(text.contains("failed to lookup address information"), "{text}");
        assert!(text.ends_with("; check the spelling of the host, and the DNS of this machine"), "{text}");

        let text = said_of("https", |mut plain| {
            plain.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("sent");
            std::thread::sleep(Duration::from_secs(1));
        })
        .await;
        assert!(
            text.ends_with("; check whether the port speaks TLS, and whether the URL begins with https or http"),
            "{text}"
        );

        let text = said_of("http", |_| std::thread::sleep(Duration::from_secs(1))).await;
        assert_eq!(text, "URL cannot be reached: operation timed out; check whether the server is overloaded");

        let text = said_of("http", drop).await;
        assert!(text.contains("; check whether the port is right, and whether a firewall"), "{text}");
    }

    #[test]
    fn a_cause_is_said_once() {
        let inner = io::Error::new(ErrorKind::ConnectionReset, "reset by the peer");
        let outer = io::Error::other(inner);
        assert_eq!(explain(&outer), format!("reset by the peer; {}", Kind::Closed.check()));
        let unreachable = Unreachable::new("https://127.0.0.1:3/", &outer);
        assert_eq!(unreachable.kind, Some(Kind::Closed));
    }

    /// What is said of a server behind a proxy that answers like this.
    async fn said_behind(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                client.expect("a client").write_all(answer).expect("sent");
            }
        });
        behind(port).await.replace(&format!("127.0.0.1:{port}"), "PROXY")
    }

    async fn behind(port: u16) -> String {
        let proxy = Proxy::new("HTTPS_PROXY", &format!("http://user:hunter2@127.0.0.1:{port}")).expect("a proxy");
        let of_client = reqwest::Proxy::all(proxy.url.expose()).expect("a proxy");
        let http = reqwest::Client::builder().proxy(of_client).build().expect("a client");
        let url = "https://server.invalid/";
        let error = http.get(url).send().await.expect_err("no answer").without_url();
        let text = Unreachable::through("URL", Some(proxy.clone()), &error);
        Unreachable { url: url.into(), ..text }.with_refusal().await.to_string().replace(url, "URL")
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named_with_its_status_and_what_to_check() {
        let begins = "URL cannot be reached through the proxy PROXY: ";
        for (answer, ends) in [
            (
                &b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..],
                "the proxy answered 407 Proxy Authentication Required; check the user and password of the proxy",
            ),
            (
                b"HTTP/1.1 403 Forbidden\r\n\r\n",
                "the proxy answered 403 Forbidden; check whether the proxy allows this host and port",
            ),
            (
                b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
                "the proxy answered 502 Bad Gateway; check whether the proxy can resolve and reach this host",
            ),
        ] {
            assert_eq!(said_behind(answer).await, format!("{begins}{ends}"));
        }
        let text = behind(1).await;
        assert!(
            text.starts_with("URL cannot be reached: no connection to its proxy 127.0.0.1:1: tcp connect"),
            "{text}"
        );
        assert!(text.ends_with("; check HTTPS_PROXY, and whether the proxy runs"), "{text}");
    }
}
