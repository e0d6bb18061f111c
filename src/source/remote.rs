//! One request to the git host, and its answer in pkt-lines: git's protocol version 2 over HTTP.
//!
//! Version 2 needs no list of the remote's references, and no second request for the boundary of a shallow fetch. libgit2 knows
//! only the versions before: it makes three requests for a commit, and four when it has more than 20 others.
//! Follows gitprotocol-common(5), gitprotocol-http(5) and gitprotocol-v2(5).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::runtime::{self, Runtime};

use super::request::{CheckoutLimits, Failed, Fault};
use crate::network::{self, Proxy, Unreachable};
use crate::text;

/// The shortest time between two progress messages.
const PROGRESS: Duration = Duration::from_millis(200);

/// The most bytes between two of them: the limit of processor time follows what was reported.
const PROGRESS_BYTES: u64 = 4 << 20;

/// The type of an answer that is git's.
const RESULT: &str = "application/x-git-upload-pack-result";

/// Bytes of the remote's own words that are reported.
const MAX_WORDS: usize = 500;

/// The digits of a packet's length.
const HEAD: usize = 4;

/// Where to fetch from.
pub(super) struct Remote<'a> {
    pub(super) url: &'a str,
    pub(super) token: Option<&'a str>,
    /// PEM files of the certificates that are trusted.
    pub(super) certificates: &'a [PathBuf],
    pub(super) proxy: Option<&'a Proxy>,
    pub(super) limits: CheckoutLimits,
    /// Called with the number of bytes that have arrived since the last call, now and then and at the end of an answer.
    pub(super) on_progress: &'a dyn Fn(u64),
}

/// One command of the protocol.
pub(super) struct Command {
    text: String,
    has_arguments: bool,
}

/// A packet of an answer.
pub(super) enum Packet {
    /// A line, or a part of a pack.
    Content(Bytes),
    /// Between two sections.
    Delimiter,
    /// The end of the answer.
    Flush,
}

/// An answer that is read while it arrives.
pub(super) struct Answer<'a> {
    remote: &'a Remote<'a>,
    runtime: &'static Runtime,
    response: Response,
    arrived: BytesMut,
    n_bytes: u64,
    /// When the number of bytes was reported, and which.
    reported: (Instant, u64),
}

impl Command {
    pub(super) fn new(name: &str) -> Self {
        let mut command = Self { text: String::new(), has_arguments: false };
        command.line(&format!("command={name}"));
        command.line(concat!("agent=git/sidebake-", env!("CARGO_PKG_VERSION")));
        command
    }

    pub(super) fn argument(&mut self, text: &str) {
        if !self.has_arguments {
            self.has_arguments = true;
            self.text.push_str("0001");
        }
        self.line(text);
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(&format!("{:04x}{text}\n", HEAD + text.len() + 1));
    }

    fn finished(mut self) -> String {
        self.text.push_str("0000");
        self.text
    }
}

impl Remote<'_> {
    /// Sends a command. Follows no redirect: the token is for this host alone.
    pub(super) fn ask(&self, command: Command) -> Result<Answer<'_>, Failed> {
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build();
        // Never dropped: it would wait for a look-up of the host's name, even after the time limit.
        let runtime: &'static Runtime = Box::leak(Box::new(runtime.map_err(Failed::worker)?));
        let mut request = self.client()?.post(format!("{}/git-upload-pack", self.url.trim_end_matches('/')));
        if let Some(token) = self.token {
            let credentials = BASE64.encode(format!("x-access-token:{token}"));
            request = request.header(AUTHORIZATION, format!("Basic {credentials}"));
        }
        let request = request
            .header("Git-Protocol", "version=2")
            .header(CONTENT_TYPE, "application/x-git-upload-pack-request")
            .header(ACCEPT, RESULT)
            .body(command.finished());
        // Its timers need the runtime when they are made.
        let response = runtime.block_on(async { request.send().await });
        let response = response.map_err(|error| self.unavailable(runtime, error))?;
        let refused = |fault, what: String| Err(Failed::new(fault, format!("the git host answered {what}")));
        if let Some(proxy) = self.proxy.filter(|_| Proxy::refuses(self.url, response.status())) {
            let refusal = Unreachable::by_proxy(self.url, proxy.clone(), response.status());
            return Err(Failed::new(Fault::Unavailable, format!("the git host {}", refusal.why())));
        }
        match response.status() {
            StatusCode::OK if is_of_git(&response) => {}
            StatusCode::OK => return refused(Fault::Unavailable, "with something that is not git's".into()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                return refused(Fault::Denied, in_words(runtime, response));
            }
            _ => return refused(Fault::Unavailable, in_words(runtime, response)),
        }
        let reported = (Instant::now(), 0);
        Ok(Answer { remote: self, runtime, response, arrived: BytesMut::new(), n_bytes: 0, reported })
    }

    fn client(&self) -> Result<Client, Failed> {
        let millis = |millis: i32| Duration::from_millis(u64::try_from(millis).unwrap_or(0));
        let limits = self.limits;
        let unusable = |error: &dyn std::fmt::Display| Failed::new(Fault::Client, error.to_string());
        let mut certificates = Vec::new();
        if self.needs_tls() {
            for path in self.certificates {
                certificates.extend(network::certificates(path).map_err(|error| unusable(&error))?);
            }
        }
        let mut client = Client::builder()
            // Hosts know clients of git by this beginning.
            .user_agent(concat!("git/2.0 (sidebake ", env!("CARGO_PKG_VERSION"), ")"))
            .connect_timeout(millis(limits.connect_timeout_ms))
            .read_timeout(millis(limits.stall_timeout_ms))
            .redirect(redirect::Policy::none())
            .tls_certs_only(certificates)
            // The worker has read the environment; this process has none.
            .no_proxy()
            .http1_only();
        if let Some(proxy) = self.proxy {
            client = client.proxy(reqwest::Proxy::all(proxy.url.expose()).map_err(|error| unusable(&error))?);
        }
        client.build().map_err(|error| unusable(&network::explain(&error)))
    }

    fn needs_tls(&self) -> bool {
        let is_https = |scheme: Option<&str>| scheme == Some("https");
        is_https(self.url.split("://").next()) || is_https(self.proxy.and_then(|proxy| proxy.uri().scheme_str()))
    }

    fn unavailable(&self, runtime: &Runtime, error: reqwest::Error) -> Failed {
        let unreachable = Unreachable::through(self.url, self.proxy.cloned(), &error.without_url());
        let unreachable = runtime.block_on(unreachable.with_refusal());
        Failed::new(Fault::Unavailable, format!("the git host {}", unreachable.why()))
    }
}

/// The status of an answer, with the host's own words as git prints them: the first line of a plain text.
fn in_words(runtime: &Runtime, mut response: Response) -> String {
    let status = response.status();
    let is_text = media_type(&response).is_some_and(|essence| essence.eq_ignore_ascii_case("text/plain"));
    let text = if is_text { runtime.block_on(response.chunk()).ok().flatten() } else { None };
    let text = String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
    match text.trim().lines().next() {
        Some(line) => format!("{status}: {}", text::clip(line, MAX_WORDS)),
        None => status.to_string(),
    }
}

/// Whether the type of an answer is git's, whatever its parameters (RFC 9110, section 8.3.1).
fn is_of_git(response: &Response) -> bool {
    media_type(response).is_some_and(|essence| essence.eq_ignore_ascii_case(RESULT))
}

fn media_type(response: &Response) -> Option<&str> {
    let media_type = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    media_type.split(';').next().map(str::trim)
}

impl Answer<'_> {
    /// The next packet.
    pub(super) fn packet(&mut self) -> Result<Packet, Failed> {
        let head = self.take(HEAD)?;
        let digits = std::str::from_utf8(&head).ok().filter(|head| head.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match digits.and_then(|digits| usize::from_str_radix(digits, 16).ok()) {
            Some(0) => Ok(Packet::Flush),
            Some(1) => Ok(Packet::Delimiter),
            Some(length) if length > HEAD => {
                let content = self.take(length - HEAD)?;
                match content.strip_prefix(b"ERR ") {
                    // It may not have the commit, or it fails in another way: only its words say which.
                    Some(words) => Err(said(Fault::Unclear, words)),
                    None => Ok(Packet::Content(content)),
                }
            }
            _ => Err(Failed::new(Fault::Unavailable, "the git host sent an invalid packet")),
        }
    }

    /// The next line, without its line feed; `None` between sections and at the end.
    pub(super) fn line(&mut self) -> Result<Option<String>, Failed> {
        Ok(match self.packet()? {
            Packet::Content(content) => Some(String::from_utf8_lossy(&content).trim_end_matches('\n').to_owned()),
            Packet::Delimiter | Packet::Flush => None,
        })
    }

    /// Reports how much has arrived, when that was not reported for a while.
    pub(super) fn report(&mut self) {
        let (at, n_bytes) = self.reported;
        if at.elapsed() > PROGRESS || self.n_bytes - n_bytes > PROGRESS_BYTES {
            self.reported = (Instant::now(), self.n_bytes);
            (self.remote.on_progress)(self.n_bytes - n_bytes);
        }
    }

    fn take(&mut self, n_bytes: usize) -> Result<Bytes, Failed> {
        while self.arrived.len() < n_bytes {
            let chunk = self.runtime.block_on(self.response.chunk());
            let chunk = chunk.map_err(|error| self.remote.unavailable(self.runtime, error))?;
            let chunk = chunk.ok_or_else(|| self.ends_early())?;
            self.arrived.extend_from_slice(&chunk);
            self.n_bytes += chunk.len() as u64;
            let limit = self.remote.limits.max_fetch_bytes;
            if self.n_bytes > limit {
                return Err(Failed::new(Fault::Refused, format!("the commit is larger than {limit} bytes")));
            }
        }
        Ok(self.arrived.split_to(n_bytes).freeze())
    }

    fn ends_early(&self) -> Failed {
        // A server of version 1 does not understand the command, and ends without a word.
        let what = match self.n_bytes {
            0 => "the git host's answer is empty; it must speak git's protocol 2, also through its proxies",
            _ => "the git host's answer ends early",
        };
        Failed::new(Fault::Unavailable, what)
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let (_, n_bytes) = self.reported;
        if self.n_bytes > n_bytes {
            (self.remote.on_progress)(self.n_bytes - n_bytes);
        }
    }
}

/// The remote's own words about a failure.
pub(super) fn said(fault: Fault, words: &[u8]) -> Failed {
    let words = String::from_utf8_lossy(words);
    Failed::new(fault, format!("the git host said: {}", text::clip(words.trim(), MAX_WORDS)))
}
