//! Why a server cannot be reached: the causes of an error, and what to check.
//!
//! Requests to GitHub, Rails, registries and API servers fail in the same ways, and each way reads the same for all of them. A cause is
//! known by its type; only what has no type of its own, such as a failed look-up of a name, is known by its library's words.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

use hyper_util::client::proxy::matcher::Matcher;
use rustls::CertificateError;

/// The libraries' words for "it failed", which say nothing about why.
const EMPTY_WORDS: [&str; 4] =
    ["error sending request", "client error (", "error trying to connect", "connection error"];

/// A server that could not be reached. The text names the server, each cause and what to check. It has no credentials in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url} cannot be reached{}: {causes}{}", through(.proxy.as_deref()), to_check(*.kind))]
pub struct Unreachable {
    url: String,
    /// The proxy of this URL.
    proxy: Option<String>,
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
    Proxy,
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
            Self::UnknownAuthority => "install the certificate's authority on this machine",
            Self::AnotherName => "check the host, and whether a proxy answers in its place",
            Self::NotValidNow => "check the clock of this machine, and renew the certificate",
            Self::Proxy => "check the proxy's address and its user and password",
        }
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
        if text.starts_with("tunnel error") || text.contains("unsuccessful tunnel") {
            Some(Self::Proxy)
        } else if text.starts_with("dns error") {
            Some(Self::NoAddress)
        } else if text.contains("connection closed before message completed") {
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
        let (url, chain) = (url.into(), chain(error));
        Self { proxy: proxy_of(&url), causes: in_words(&chain), kind: Kind::of_chain(&chain), url }
    }
}

/// The error and its causes in one text, without repetitions, and what to check.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let chain = chain(error);
    format!("{}{}", in_words(&chain), to_check(Kind::of_chain(&chain)))
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

/// The proxy that the environment names for a URL: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, as curl reads them.
fn proxy_of(url: &str) -> Option<String> {
    let proxy = Matcher::from_env().intercept(&url.parse().ok()?)?;
    // The host and port alone: the rest may have a password.
    Some(proxy.uri().authority().map_or_else(String::new, |authority| {
        let host = authority.host();
        authority.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }))
}

fn through(proxy: Option<&str>) -> impl fmt::Display {
    proxy.map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default()
}

fn to_check(kind: Option<Kind>) -> impl fmt::Display {
    kind.map(|kind| format!("; {}", kind.check())).unwrap_or_default()
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
}
