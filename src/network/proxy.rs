//! Which proxy a URL has: one rule for every connection of the worker and its children.
//!
//! Reads the variables `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper case first. hyper-util's matcher decides, as
//! it does in reqwest. This adds ports in `NO_PROXY` and its form `*.domain`, which Go's programs know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use http::{StatusCode, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::environment::{self, ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, NO_PROXY};
use crate::secret::Secret;

/// The proxies of this process, read once.
static OF_PROCESS: LazyLock<Proxies> = LazyLock::new(Proxies::read);

/// A proxy variable whose value is not the URL of a proxy. The text has no credentials in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not the URL of a proxy; expected http://host:port, with special characters of a user and password as %XX"
)]
pub struct InvalidProxy(pub String);

/// A proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// What names it: a variable, or a setting.
    pub source: String,
    /// Its URL, with user and password.
    pub url: Secret,
    intercept: Intercept,
}

impl Proxy {
    /// The proxy at a URL that `source` has. A URL without a scheme is an `http` one.
    ///
    /// # Errors
    ///
    /// When the text is not a URL, or of another scheme than `http`, `https` and those of SOCKS.
    pub fn new(source: &str, url: &str) -> Result<Self, InvalidProxy> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        // The matcher takes any port.
        let is_url = reqwest::Url::parse(&url).is_ok_and(|url| url.has_host());
        let intercept = Matcher::builder().all(url.as_str()).build().intercept(&Uri::from_static("https://any/"));
        let intercept = intercept.filter(|_| is_url).ok_or_else(|| InvalidProxy(source.to_owned()))?;
        Ok(Self { source: source.to_owned(), url: Secret::new(url), intercept })
    }

    /// Host and port, without credentials.
    pub fn name(&self) -> String {
        format!("{}:{}", self.uri().host().unwrap_or_default(), self.port())
    }

    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        self.uri().host().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// The words for the way that a connection takes; empty without a proxy.
    pub fn shown(proxy: Option<&Self>) -> String {
        proxy.map(|proxy| format!(" through the proxy {} ({})", proxy.name(), proxy.source)).unwrap_or_default()
    }

    /// Whether it answered in the place of the server at `url`. A proxy of plain HTTP does, and 407 is a proxy's in any case.
    pub fn refuses(url: &str, status: StatusCode) -> bool {
        let is_of_proxies = status == StatusCode::FORBIDDEN || status.is_server_error();
        status == StatusCode::PROXY_AUTHENTICATION_REQUIRED || !url.starts_with("https:") && is_of_proxies
    }

    /// The port.
    pub fn port(&self) -> u16 {
        let default = match self.uri().scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => 1080,
        };
        self.uri().port_u16().unwrap_or(default)
    }

    /// The URL without credentials.
    pub fn uri(&self) -> &Uri {
        self.intercept.uri()
    }

    /// The value of `Proxy-Authorization`, for an HTTP proxy with user and password.
    pub fn authorization(&self) -> Option<&http::HeaderValue> {
        self.intercept.basic_auth()
    }

    /// User and password of a SOCKS proxy.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.intercept.raw_auth()
    }
}

/// The proxies that the environment names.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    all: Option<Proxy>,
    exceptions: Vec<String>,
}

impl Proxies {
    /// Those of this process, which keeps its environment. An invalid variable counts as not set: [`Self::check`] reports it.
    pub fn of_process() -> &'static Self {
        &OF_PROCESS
    }

    fn read() -> Self {
        let proxy = |names| read(names).and_then(Result::ok);
        let exceptions = environment::first_of(&NO_PROXY).map(|(_, text)| exceptions(&text));
        Self {
            https: proxy(&HTTPS_PROXY),
            http: proxy(&HTTP_PROXY),
            all: proxy(&ALL_PROXY),
            exceptions: exceptions.unwrap_or_default(),
        }
    }

    /// Checks the variables of this process.
    ///
    /// # Errors
    ///
    /// The first one that cannot be used. Without it, connections would be made without a proxy.
    pub fn check() -> Result<(), InvalidProxy> {
        let mut named = [&HTTPS_PROXY, &HTTP_PROXY, &ALL_PROXY].into_iter().filter_map(|names| read(names));
        named.try_for_each(|read| read.map(drop))
    }

    /// The proxy of a URL; `None` when it is reached directly.
    pub fn of(&self, url: &str) -> Option<&Proxy> {
        let url: Uri = url.parse().ok()?;
        let (own, default_port) = match url.scheme_str()? {
            "https" => (&self.https, 443),
            "http" => (&self.http, 80),
            _ => return None,
        };
        let proxy = own.as_ref().or(self.all.as_ref())?;
        let port = url.port_u16().unwrap_or(default_port);
        let hosts: Vec<&str> = self.exceptions.iter().filter_map(|entry| host_at(entry, port)).collect();
        let matcher = Matcher::builder().all(proxy.url.expose()).no(hosts.join(",")).build();
        matcher.intercept(&url).map(|_| proxy)
    }

    /// The variables for a program in Go, which does not know `ALL_PROXY`. It reaches the hosts in `direct` without a proxy.
    pub fn variables<'a>(&self, direct: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, String> {
        let or_all =
            |proxy: &Option<Proxy>| proxy.as_ref().or(self.all.as_ref()).map(|proxy| proxy.url.expose().to_owned());
        let named = [(HTTPS_PROXY, or_all(&self.https)), (HTTP_PROXY, or_all(&self.http))];
        let mut variables: BTreeMap<String, String> =
            named.into_iter().filter_map(|([name, _], url)| Some((name.to_owned(), url?))).collect();
        if !variables.is_empty() {
            let direct = direct.into_iter().map(str::to_owned);
            let exceptions = self.exceptions.iter().cloned().chain(direct);
            variables.insert(NO_PROXY[0].into(), exceptions.collect::<Vec<_>>().join(","));
        }
        variables
    }

    /// The ports of all proxies.
    pub fn ports(&self) -> BTreeSet<u16> {
        [&self.https, &self.http, &self.all].into_iter().flatten().map(Proxy::port).collect()
    }
}

fn read(names: &[&'static str]) -> Option<Result<Proxy, InvalidProxy>> {
    environment::first_of(names).map(|(name, url)| Proxy::new(name, url.trim()))
}

/// The entries of `NO_PROXY`. `.domain` and `*.domain` mean the same as `domain`: the domain and everything below it.
fn exceptions(text: &str) -> Vec<String> {
    let entries = text.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
    let plain = |entry: &str| entry.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(entry).to_owned();
    entries.map(plain).map(|entry| entry.strip_prefix('.').unwrap_or(&entry).to_owned()).collect()
}

/// The host of an entry, if the entry counts for this port.
fn host_at(entry: &str, port: u16) -> Option<&str> {
    let (host, of_entry) = match entry.rsplit_once(':') {
        // More colons are those of an IPv6 address, whose port follows brackets.
        Some((host, digits)) if !host.contains(':') || host.ends_with(']') => (host, Some(digits)),
        _ => (entry, None),
    };
    let is_for_port = of_entry.is_none_or(|digits| digits.parse() == Ok(port));
    is_for_port.then(|| host.trim_matches(['[', ']']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(no: &str) -> Proxies {
        let proxy = |name: &str| Proxy::new(name, &format!("http://{name}.example:3128")).ok();
        Proxies { https: proxy("https"), http: None, all: proxy("all"), exceptions: exceptions(no) }
    }

    #[test]
    fn the_scheme_of_a_url_chooses_its_proxy() {
        let of = |url: &str| proxies("").of(url).map(Proxy::name);
        assert_eq!(of("https://github.com/a"), Some("https.example:3128".into()));
        assert_eq!(of("http://github.com/a"), Some("all.example:3128".into()));
        assert_eq!(of("tcp://github.com:1234"), None);
    }

    #[test]
    fn no_proxy_takes_domains_suffixes_networks_ports_and_a_star() {
        for (no, url, is_direct) in [
            ("github.com", "https://github.com/a", true),
            ("github.com", "https://api.GitHub.com/a", true),
            ("github.com", "https://notgithub.com/a", false),
            (".github.com", "https://api.github.com", true),
            (".github.com", "https://github.com", true),
            ("*.github.com", "https://api.github.com", true),
            ("a, github.com ,b", "https://github.com", true),
            ("a github.com", "https://github.com", true),
            ("*", "https://github.com", true),
            ("10.0.0.0/8", "https://10.1.2.3:6443", true),
            ("10.0.0.0/8", "https://11.1.2.3:6443", false),
            ("10.1.2.3", "https://10.1.2.3", true),
            ("fd00::/8", "https://[fd00::1]:6443", true),
            ("[fd00::1]:6443", "https://[fd00::1]:6443", true),
            ("[fd00::1]:6443", "https://[fd00::1]", false),
            ("github.com:8443", "https://github.com:8443", true),
            ("github.com:8443", "https://github.com", false),
            ("github.com:443", "https://github.com", true),
            ("github.com:x", "https://github.com", false),
            ("", "https://github.com", false),
        ] {
            assert_eq!(proxies(no).of(url).is_none(), is_direct, "{no:?} {url}");
        }
    }

    #[test]
    fn a_proxy_has_a_name_without_credentials() {
        let proxy = Proxy::new("HTTPS_PROXY", "http://user:p%40ss@proxy.example:3128").expect("a proxy");
        assert_eq!((proxy.name(), proxy.port()), ("proxy.example:3128".into(), 3128));
        assert_eq!(proxy.authorization().expect("a password"), "Basic dXNlcjpwQHNz");
        assert!(!format!("{proxy:?}").contains("p%40ss"));
        assert_eq!(Proxy::new("x", "proxy:8080").expect("a proxy").url.expose(), "http://proxy:8080");
        assert_eq!(Proxy::new("x", "socks5://proxy").expect("a proxy").port(), 1080);
        for wrong in ["ftp://proxy", "http://us er@x", "http://user:p@ss:w/x@proxy"] {
            let error = Proxy::new("HTTPS_PROXY", wrong).expect_err(wrong).to_string();
            assert!(error.starts_with("HTTPS_PROXY is not the URL of a proxy") && !error.contains("p@ss"), "{error}");
        }
    }

    #[test]
    fn go_gets_its_own_variables() {
        let proxies = proxies("a.example,.b.example");
        let variables = proxies.variables(["10.0.0.1"]);
        assert_eq!(variables["HTTPS_PROXY"], "http://https.example:3128");
        assert_eq!(variables["HTTP_PROXY"], "http://all.example:3128");
        assert_eq!(variables["NO_PROXY"], "a.example,b.example,10.0.0.1");
        assert!(Proxies::default().variables(["10.0.0.1"]).is_empty());
    }
}
