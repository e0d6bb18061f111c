//! Reads the URL of a Redis as Ruby's client does, so that one URL means the same server to Rails and to a worker.
//!
//! Follows redis-client 0.31, `URLConfig`. A user without a password is the password, the database is in the path or in `?db=`, and a
//! URL without a scheme is the path of a Unix socket.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use redis::{ErrorKind, RedisConnectionInfo, RedisError};
use reqwest::Url;

use crate::settings;

/// Redis' port (`IANA`).
const PORT: u16 = 6379;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp { host: String, port: u16, is_tls: bool },
    Unix(PathBuf),
}

/// A server, and who the client is there.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: Address,
    pub(super) session: RedisConnectionInfo,
}

impl Address {
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tcp { is_tls: true, .. })
    }
}

impl fmt::Display for Address {
    /// As in a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, is_tls } => {
                let scheme = if *is_tls { "rediss" } else { "redis" };
                // An IPv6 address has colons of its own.
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                write!(f, "{scheme}://{host}:{port}")
            }
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl fmt::Display for Target {
    /// As a URL, without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divider = if matches!(self.address, Address::Unix(_)) { "?db=" } else { "/" };
        write!(f, "{}{divider}{}", self.address, self.session.db())
    }
}

impl Target {
    /// The same at another place.
    pub(super) fn at(&self, host: String, port: u16) -> Self {
        let address = Address::Tcp { host, port, is_tls: self.address.is_tls() };
        Self { address, session: self.session.clone() }
    }
}

/// Reads a URL.
///
/// # Errors
///
/// When it has no meaning. The message has no part of the URL, which may have a password.
pub(super) fn read(url: &str) -> Result<Target, RedisError> {
    match url.split_once(':') {
        Some(("unix" | "redis+unix", rest)) => unix(rest.strip_prefix("//").unwrap_or(rest)),
        None => unix(url),
        Some(_) => tcp(&Url::parse(url).map_err(|error| refuse("it is not a valid URL", error.to_string()))?),
    }
}

fn tcp(url: &Url) -> Result<Target, RedisError> {
    let is_tls = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        _ => return Err(refuse("its scheme is not known", "expected redis://, rediss:// or unix://".into())),
    };
    if url.fragment().is_some() {
        let message = "a certificate is always verified; set ca_file to the server's certificate or its authority";
        return Err(refuse("a part behind `#` is not supported", message.into()));
    }
    let host = url.host_str().filter(|host| !host.is_empty()).unwrap_or("127.0.0.1");
    let address =
        Address::Tcp { host: host.trim_matches(['[', ']']).to_owned(), port: url.port().unwrap_or(PORT), is_tls };
    let user = (url.username(), url.password());
    Ok(Target { address, session: session(user, Some(url.path().trim_start_matches('/')), query(url))? })
}

/// The part of a URL after `unix://`.
fn unix(rest: &str) -> Result<Target, RedisError> {
    let (place, query_text) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (name, password) = user.split_once(':').map_or((user, None), |(name, password)| (name, Some(password)));
    let path = format!("{host}{path}");
    if path.is_empty() {
        return Err(refuse("it names no Unix socket", "expected unix:///PATH".into()));
    }
    // Only its query is read.
    let url = Url::parse(&format!("unix:/?{query_text}"))
        .map_err(|error| refuse("it is not a valid URL", error.to_string()))?;
    Ok(Target { address: Address::Unix(path.into()), session: session((name, password), None, query(&url))? })
}

/// Of several fields with one name, the first counts.
fn query(url: &Url) -> HashMap<String, String> {
    let mut query = HashMap::new();
    for (name, value) in url.query_pairs().into_owned() {
        query.entry(name).or_insert(value);
    }
    query
}

fn session(
    (name, password): (&str, Option<&str>),
    path: Option<&str>,
    query: HashMap<String, String>,
) -> Result<RedisConnectionInfo, RedisError> {
    let mut session = RedisConnectionInfo::default();
    let database = path.filter(|path| !path.is_empty()).or(query.get("db").map(String::as_str));
    if let Some(number) = database.filter(|number| !number.is_empty()) {
        let number = number.parse().map_err(|_| refuse("its database is not a number", String::new()))?;
        session = session.set_db(number);
    }
    // Without a password, the user is the password.
    let (name, password) = match password {
        Some(password) => (decoded(name)?, decoded(password)?),
        None => (String::new(), decoded(name)?),
    };
    if !name.is_empty() {
        session = session.set_username(name);
    }
    if !password.is_empty() {
        session = session.set_password(password);
    }
    // Two more names of the Redis library for Rust.
    if let Some(name) = query.get("user") {
        session = session.set_username(name);
    }
    if let Some(password) = query.get("pass") {
        session = session.set_password(password);
    }
    Ok(session)
}

fn decoded(text: &str) -> Result<String, RedisError> {
    settings::decoded(text).map_err(|_| refuse("its user or password is not UTF-8", String::new()))
}

fn refuse(what: &'static str, detail: String) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, what, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, is_tls: bool) -> Address {
        Address::Tcp { host: host.into(), port, is_tls }
    }

    #[test]
    fn a_url_means_what_it_means_to_rubys_client() {
        // As `RedisClient::URLConfig` of redis-client 0.31 reads them: database, user, password.
        let table = [
            ("redis://127.0.0.1:6380/0", tcp("127.0.0.1", 6380, false), 0, None, None),
            ("redis://host", tcp("host", 6379, false), 0, None, None),
            ("redis://", tcp("127.0.0.1", 6379, false), 0, None, None),
            ("redis:///2", tcp("127.0.0.1", 6379, false), 2, None, None),
            ("rediss://host:7000/3", tcp("host", 7000, true), 3, None, None),
            ("redis://host/?db=3", tcp("host", 6379, false), 3, None, None),
            ("redis://host?db=3", tcp("host", 6379, false), 3, None, None),
            ("redis://host/1?db=3", tcp("host", 6379, false), 1, None, None),
            ("redis://[::1]:6380", tcp("::1", 6380, false), 0, None, None),
            ("redis://:p%40ss+1@host", tcp("host", 6379, false), 0, None, Some("p@ss 1")),
            ("redis://host?db=3&db=4", tcp("host", 6379, false), 3, None, None),
            ("redis://me:pass@host", tcp("host", 6379, false), 0, Some("me"), Some("pass")),
            ("redis://pass@host", tcp("host", 6379, false), 0, None, Some("pass")),
            ("unix:///run/redis.sock", Address::Unix("/run/redis.sock".into()), 0, None, None),
            ("unix:/run/redis.sock", Address::Unix("/run/redis.sock".into()), 0, None, None),
            ("/run/redis.sock", Address::Unix("/run/redis.sock".into()), 0, None, None),
            ("unix://:p%40@/run/redis.sock?db=4", Address::Unix("/run/redis.sock".into()), 4, None, Some("p@")),
            ("unix://me:pass@/run/redis.sock", Address::Unix("/run/redis.sock".into()), 0, Some("me"), Some("pass")),
            ("unix:///r?user=me&pass=p%26s&db=1", Address::Unix("/r".into()), 1, Some("me"), Some("p&s")),
        ];
        for (url, address, database, user, password) in table {
            let Target { address: read, session } = read(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(read, address, "{url}");
            assert_eq!((session.db(), session.username(), session.password()), (database, user, password), "{url}");
        }
    }

    #[test]
    fn a_server_is_shown_by_a_url_without_user_and_password() {
        for (url, shown) in [
            ("redis://", "redis://127.0.0.1:6379/0"),
            ("rediss://me:hunter2@host:7000/3", "rediss://host:7000/3"),
            ("redis://hunter2@[::1]:6380?db=1", "redis://[::1]:6380/1"),
            ("unix://:hunter2@/run/redis.sock?db=4", "unix:///run/redis.sock?db=4"),
            ("/run/redis.sock?pass=hunter2", "unix:///run/redis.sock?db=0"),
        ] {
            assert_eq!(read(url).expect(url).to_string(), shown);
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused_without_its_password() {
        for (url, expected) in [
            ("http://host", "its scheme is not known"),
            ("rediss://:hunter2@host/#insecure", "a part behind `#` is not supported"),
            ("redis://:hunter2@host/one", "its database is not a number"),
            ("redis://:hunter2@host:port/", "it is not a valid URL"),
            ("unix://", "it names no Unix socket"),
            ("redis://:%ff@host", "its user or password is not UTF-8"),
        ] {
            let error = read(url).expect_err(url).to_string();
            assert!(error.starts_with(expected) && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
