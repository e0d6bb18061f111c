//! Which pod a working directory leads to, asked of BuildKit itself.
//!
//! buildx chooses the pod and tells nobody. But `docker-buildx dial-stdio` chooses it in the same way, from its working
//! directory, and BuildKit knows its host's name, which in a pod is the pod's. So nothing of buildx's choice has to be
//! imitated, whose ring differs between builds of buildx. Follows `moby.buildkit.v1.Control/ListWorkers`.

use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::process::Command;
use tokio::time::timeout;

use crate::process::{self, Pipe, ProcessError};
use crate::state::StateError;

/// How long the answer may take. buildx needs 20 s to say why it cannot connect.
const PATIENCE: Duration = Duration::from_secs(30);

/// More than this is no list of workers.
const MAX_ANSWER: usize = 1 << 20;

/// The label in which a worker has its host's name.
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
    /// It does not speak HTTP/2.
    #[error("asked for its workers: {0}")]
    Http(#[from] h2::Error),
    /// It answers with something else, or not in time.
    #[error("asked for its workers, BuildKit {0}")]
    Answer(&'static str),
    /// docker-buildx says why it is not reached.
    #[error("{0}")]
    Unreached(String),
}

/// The host name of the BuildKit that `dial` (a `docker-buildx dial-stdio`) reaches.
pub(super) async fn hostname(dial: Command) -> Result<String, PodError> {
    let (pipe, said) = process::pipe(dial)?;
    let answer = timeout(PATIENCE, ask(pipe)).await.unwrap_or(Err(PodError::Answer("did not answer in time")));
    answer.map_err(|error| match said.borrow().as_str() {
        "" => error,
        said => PodError::Unreached(said.to_owned()),
    })
}

async fn ask(pipe: Pipe) -> Result<String, PodError> {
    let (client, connection) = h2::client::handshake(pipe).await?;
    tokio::select! {
        // The connection moves the bytes of the request, and ends with an error or never: dropping it loses nothing.
        ended = connection => Err(ended.err().map_or(PodError::Answer("closed the connection"), PodError::Http)),
        answer = list_workers(client) => answer,
    }
}

async fn list_workers(client: h2::client::SendRequest<Bytes>) -> Result<String, PodError> {
    let request = http::Request::post("http://buildkit/moby.buildkit.v1.Control/ListWorkers")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a constant request is valid");
    let (response, mut body) = client.ready().await?.send_request(request, false)?;
    body.send_data(Bytes::from_static(EMPTY_MESSAGE), true)?;
    let mut stream = response.await?.into_body();
    let mut answer = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        answer.extend_from_slice(&chunk);
        if answer.len() > MAX_ANSWER {
            return Err(PodError::Answer("answers without end"));
        }
    }
    worker_hostname(answer.get(EMPTY_MESSAGE.len()..).unwrap_or_default()).ok_or(PodError::Answer("has no worker"))
}

/// The host name in `ListWorkersResponse { repeated WorkerRecord record = 1 }`, where
/// `WorkerRecord { string ID = 1; map<string, string> Labels = 2; … }`.
fn worker_hostname(response: &[u8]) -> Option<String> {
    let labels = Fields(response).filter(|field| field.0 == 1).flat_map(|(_, record)| Fields(record));
    let hostname = labels.filter(|field| field.0 == 2).find_map(|(_, label)| {
        let mut key = None;
        let mut value = None;
        for (number, text) in Fields(label) {
            *(if number == 1 { &mut key } else { &mut value }) = Some(text);
        }
        value.filter(|_| key == Some(HOSTNAME))
    })?;
    String::from_utf8(hostname.to_owned()).ok()
}

/// The fields of a protobuf message that have a length (strings, messages), with their numbers; others are passed over.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
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
    fn the_hostname_is_found_among_the_labels_of_a_worker() {
        let label = |key: &[u8], value: &[u8]| field(2, &[field(1, key), field(2, value)].concat());
        let record = [
            field(1, b"worker-id"),
            label(b"org.mobyproject.buildkit.worker.executor", b"oci"),
            vec![4 << 3, 0xac, 2],
            label(HOSTNAME, b"d0-1"),
        ];
        assert_eq!(worker_hostname(&field(1, &record.concat())).as_deref(), Some("d0-1"));
    }

    #[test]
    fn what_is_no_answer_is_none_and_no_panic() {
        for bytes in [&b""[..], b"\xff", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0a\x05ab", b"\x0f"] {
            assert_eq!(worker_hostname(bytes), None);
        }
    }
}
