//! One request to the git host, and its answer in pkt-lines: git's protocol version 2 over HTTP.
//!
//! Version 2 needs no list of the remote's references, and no second request for the boundary of a shallow fetch. libgit2 knows
//! only the versions before: it makes three requests for a commit, and four when it has more than 20 others.
//! Follows gitprotocol-common(5), gitprotocol-http(5) and gitprotocol-v2(5).

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Certificate, Client, Response, StatusCode, redirect};
use tokio::runtime::{self, Runtime};

use super::request::{CheckoutLimits, Failed, Fault};
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
    pub(super) ca_file: &'a Path,
    pub(super) limits: CheckoutLimits,
    /// Called with the number of bytes so far, now and then.
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
        let response = runtime.block_on(async { request.send().await }).map_err(unavailable)?;
        let refused = |fault, what: String| Err(Failed::new(fault, format!("the git host answered {what}")));
        match response.status() {
            StatusCode::OK if is_of_git(&response) => {}
            StatusCode::OK => return refused(Fault::Unavailable, "with something that is not git's".into()),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => {
                return refused(Fault::Denied, status.to_string());
            }
            status => return refused(Fault::Unavailable, status.to_string()),
        }
        let reported = (Instant::now(), 0);
        Ok(Answer { remote: self, runtime, response, arrived: BytesMut::new(), n_bytes: 0, reported })
    }

    fn client(&self) -> Result<Client, Failed> {
        let millis = |millis: i32| Duration::from_millis(u64::try_from(millis).unwrap_or(0));
        let Self { url, ca_file, limits, .. } = self;
        let mut certificates = Vec::new();
        if url.starts_with("https:") {
            let pem = std::fs::read(ca_file).map_err(|error| self.unusable(&error))?;
            certificates = Certificate::from_pem_bundle(&pem).map_err(|error| self.unusable(&error))?;
        }
        let client = Client::builder()
            // Hosts know clients of git by this beginning.
            .user_agent(concat!("git/2.0 (sidebake ", env!("CARGO_PKG_VERSION"), ")"))
            .connect_timeout(millis(limits.connect_timeout_ms))
            .read_timeout(millis(limits.stall_timeout_ms))
            .redirect(redirect::Policy::none())
            .tls_certs_only(certificates)
            .no_proxy()
            .http1_only();
        client.build().map_err(|error| self.unusable(&error))
    }

    fn unusable(&self, error: &dyn Error) -> Failed {
        Failed::new(Fault::Client, format!("{}: {}", self.ca_file.display(), cause(error)))
    }
}

/// Whether the type of an answer is git's, whatever its parameters (RFC 9110, section 8.3.1).
fn is_of_git(response: &Response) -> bool {
    let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(RESULT))
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
            (self.remote.on_progress)(self.n_bytes);
        }
    }

    fn take(&mut self, n_bytes: usize) -> Result<Bytes, Failed> {
        while self.arrived.len() < n_bytes {
            let chunk = self.runtime.block_on(self.response.chunk()).map_err(unavailable)?;
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

/// The remote's own words about a failure.
pub(super) fn said(fault: Fault, words: &[u8]) -> Failed {
    let words = String::from_utf8_lossy(words);
    Failed::new(fault, format!("the git host said: {}", text::clip(words.trim(), MAX_WORDS)))
}

fn unavailable(error: reqwest::Error) -> Failed {
    let what = if error.is_timeout() { "the git host did not answer in time".to_owned() } else { cause(&error) };
    Failed::new(Fault::Unavailable, what)
}

/// The innermost cause: the outer ones only say that a request failed.
fn cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
