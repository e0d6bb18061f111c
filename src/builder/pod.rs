//! Which pod a working directory leads to, and what its BuildKit can: asked of BuildKit.
//!
//! buildx chooses the pod and does not report it. `docker-buildx dial-stdio` makes the same choice from the same working
//! directory, and BuildKit knows its host name, which is the pod's name. So the choice, which differs between builds of
//! buildx, is never imitated. Follows `moby.buildkit.v1.Control/ListWorkers`.

use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Command;
use tokio::time::timeout;

use crate::body::{Room, TooLong};
use crate::bounds;
use crate::platform::{Machine, Platform};
use crate::process::{self, ProcessError};
use crate::state::StateError;

/// The time limit of the answer. buildx needs 20 s to report why it cannot connect.
const PATIENCE: Duration = Duration::from_secs(30);

/// The request, as a URL with an arbitrary host.
const WORKERS: &str = "http://buildkit/moby.buildkit.v1.Control/ListWorkers";

/// The longest host name (RFC 1035), and the longest version.
const MAX_HOSTNAME: usize = 253;

/// Bytes of an answer's headers.
const MAX_HEADERS: u32 = 16 << 10;

/// The label of a worker that holds its host name.
const HOSTNAME: &[u8] = b"org.mobyproject.buildkit.worker.hostname";

/// An empty gRPC message: not compressed, of length 0.
const EMPTY_MESSAGE: &[u8] = &[0, 0, 0, 0, 0];

/// BuildKit could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// docker-buildx cannot be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A directory for it cannot be made.
    #[error(transparent)]
    State(#[from] StateError),
    /// BuildKit did not answer in HTTP/2.
    #[error("BuildKit did not list its workers: {0}")]
    Http(#[from] h2::Error),
    /// BuildKit answered something else, or too late.
    #[error("asked to list its workers, BuildKit {0}")]
    Answer(&'static str),
    /// Its answer is longer than allowed.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// docker-buildx reported why it cannot connect.
    #[error("{0}")]
    Unreached(String),
}

/// What Kubernetes answered instead of a connection to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The credentials do not allow it.
    Forbidden,
    /// There are too many requests just now.
    TooMany,
}

impl PodError {
    /// What Kubernetes refused, in the words of its client and of HTTP. It has no customer's text: the dial builds nothing.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let Self::Unreached(said) = self else { return None };
        if said.contains(" is forbidden: ") || said.contains("403 Forbidden") {
            return Some(Refusal::Forbidden);
        }
        let is_busy = said.contains("429 Too Many Requests") || said.contains("has received too many requests");
        is_busy.then_some(Refusal::TooMany)
    }
}

/// A BuildKit, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its host name, which is the name of its pod; empty when it says none.
    pub hostname: String,
    /// Its version, if it says one.
    pub buildkit: Option<String>,
    /// The platforms for which it builds.
    pub machine: Machine,
}

/// The BuildKit that `dial` (a `docker-buildx dial-stdio`) reaches.
pub(super) async fn worker(dial: Command) -> Result<Worker, PodError> {
    let (pipe, said) = process::pipe(dial)?;
    let answer = timeout(PATIENCE, ask(pipe)).await.unwrap_or(Err(PodError::Answer("did not answer in time")));
    answer.map_err(|error| match said.borrow().as_str() {
        "" => error,
        said => PodError::Unreached(said.to_owned()),
    })
}

async fn ask(pipe: impl AsyncRead + AsyncWrite + Unpin) -> Result<Worker, PodError> {
    let mut http = h2::client::Builder::new();
    let (client, connection) = http.max_header_list_size(MAX_HEADERS).handshake(pipe).await?;
    tokio::select! {
        // The connection moves the request's bytes and only ends with an error: dropping it loses nothing.
        ended = connection => Err(ended.err().map_or(PodError::Answer("closed the connection"), PodError::Http)),
        answer = list_workers(client) => answer,
    }
}

async fn list_workers(client: h2::client::SendRequest<Bytes>) -> Result<Worker, PodError> {
    let request = http::Request::post(WORKERS)
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a constant request is valid");
    let (response, mut body) = client.ready().await?.send_request(request, false)?;
    body.send_data(Bytes::from_static(EMPTY_MESSAGE), true)?;
    let mut stream = response.await?.into_body();
    let (mut answer, mut room) = (Vec::new(), Room::new(WORKERS, bounds::WORKERS));
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        room.take(chunk.len())?;
        stream.flow_control().release_capacity(chunk.len())?;
        answer.extend_from_slice(&chunk);
    }
    read(answer.get(EMPTY_MESSAGE.len()..).unwrap_or_default()).ok_or(PodError::Answer("has no worker"))
}

/// The first worker in `ListWorkersResponse { repeated WorkerRecord record = 1 }`, where `WorkerRecord { map<string, string> Labels
/// = 2; repeated Platform platforms = 3; BuildkitVersion BuildkitVersion = 5 { string version = 2 } … }` and `Platform { string
/// Architecture = 1; string OS = 2; string Variant = 3; … }`.
fn read(response: &[u8]) -> Option<Worker> {
    let short = |text: &[u8]| {
        let is_name = text.len() <= MAX_HOSTNAME && text.iter().all(u8::is_ascii_graphic);
        String::from_utf8(text.to_owned()).ok().filter(|_| is_name)
    };
    let text = |message, wanted| ProtobufFields(message).find_map(|(number, text)| (number == wanted).then_some(text));
    let record = text(response, 1)?;
    let all = |wanted| ProtobufFields(record).filter(move |field| field.0 == wanted).map(|(_, message)| message);
    let hostname = all(2).find_map(|label| text(label, 2).filter(|_| text(label, 1) == Some(HOSTNAME)));
    let version = text(record, 5).and_then(|version| text(version, 2)).and_then(short);
    let platform = |message| {
        let part = |number| text(message, number).map_or(Some(String::new()), short);
        Some(Platform::new(&part(2)?, &part(1)?, &part(3)?))
    };
    Some(Worker {
        hostname: hostname.and_then(short).unwrap_or_default(),
        buildkit: version.filter(|version| !version.is_empty()),
        machine: Machine::new(all(3).filter_map(platform).collect()),
    })
}

/// The length-delimited fields of a protobuf message (strings, messages), with their numbers. Others are skipped.
struct ProtobufFields<'a>(&'a [u8]);

impl<'a> Iterator for ProtobufFields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = varint(&mut self.0)?;
            let length = match key & 7 {
                0 => {
                    varint(&mut self.0)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut self.0)?).ok()?,
                5 => 4,
                _ => return None,
            };
            let (field, rest) = self.0.split_at_checked(length)?;
            self.0 = rest;
            if key & 7 == 2 {
                return Some((key >> 3, field));
            }
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.has_remaining().then(|| bytes.get_u8())?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).expect("short")], content].concat()
    }

    #[test]
    fn a_worker_is_read_from_the_fields_of_its_record() {
        let label = |key: &[u8], value: &[u8]| field(2, &[field(1, key), field(2, value)].concat());
        let record = [
            field(1, b"worker-id"),
            label(b"org.mobyproject.buildkit.worker.executor", b"oci"),
            vec![4 << 3, 0xac, 2],
            label(HOSTNAME, b"d0-1"),
        ];
        let of = |record: &[Vec<u8>]| read(&field(1, &record.concat())).expect("a worker");
        assert_eq!(of(&record), Worker { hostname: "d0-1".into(), buildkit: None, machine: Machine::default() });
        let version = field(5, &[field(1, b"github.com/moby/buildkit"), field(2, b"v0.12.5")].concat());
        let platform = |architecture: &[u8], variant: &[u8]| {
            field(3, &[field(1, architecture), field(2, b"linux"), field(3, variant)].concat())
        };
        let worker = of(&[version, platform(b"arm", b"v6"), platform(b"arm64", b"")]);
        assert_eq!((&*worker.hostname, worker.buildkit.as_deref()), ("", Some("v0.12.5")));
        let listed = ["linux/arm/v6", "linux/arm64"].map(|text| Platform::parse(text).expect("a platform"));
        assert_eq!(worker.machine, Machine::new(listed.into()));
    }

    #[test]
    fn kubernetes_refusals_are_known_and_a_pods_trouble_is_none() {
        for (said, refusal) in [
            (
                r#"ERROR: pods "d0-a" is forbidden: User "u" cannot create resource "pods/exec""#,
                Some(Refusal::Forbidden),
            ),
            ("ERROR: unexpected response: 403 Forbidden", Some(Refusal::Forbidden)),
            ("ERROR: websocket: bad handshake (429 Too Many Requests)", Some(Refusal::TooMany)),
            ("ERROR: the server has received too many requests and has asked us to try again", Some(Refusal::TooMany)),
            (r#"ERROR: unable to upgrade connection: container not found ("buildkitd")"#, None),
        ] {
            assert_eq!(PodError::Unreached(said.into()).refusal(), refusal, "{said}");
        }
        assert_eq!(PodError::Answer("has no worker").refusal(), None);
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read_on() {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let server = tokio::spawn(async move {
            let mut connection = h2::server::handshake(theirs).await.expect("HTTP/2");
            let (_, mut respond) = connection.accept().await.expect("a request").expect("a request");
            let mut stream = respond.send_response(http::Response::new(()), false).expect("sent");
            // What is not read stays in the connection's window.
            tokio::spawn(async move { while connection.accept().await.is_some() {} });
            let mut n_bytes = 0_usize;
            loop {
                stream.reserve_capacity(16 << 10);
                match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
                    Some(Ok(capacity)) => n_bytes += capacity,
                    _ => return n_bytes,
                }
                let chunk = Bytes::from(vec![0; stream.capacity()]);
                if stream.send_data(chunk, false).is_err() {
                    return n_bytes;
                }
            }
        });
        let error = ask(ours).await.expect_err("refused").to_string();
        assert_eq!(error, format!("{WORKERS} answered with more than 1048576 bytes"));
        assert!(server.await.expect("ended") < 2 * bounds::WORKERS);
    }

    #[test]
    fn what_is_no_answer_is_none_and_no_panic() {
        for bytes in [&b""[..], b"\xff", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0a\x05ab", b"\x0f"] {
            assert_eq!(read(bytes), None);
        }
    }
}
