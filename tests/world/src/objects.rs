//! An object store over HTTP: the requests of S3, Google Cloud Storage (its XML API) and Azure that write and delete objects.
//!
//! An object is known by the decoded path of its request, such as `/bucket/key`. Multipart uploads follow S3.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode};

use crate::faults::Faults;
use crate::server::Server;

/// The id of every multipart upload. A test has one at a time.
const UPLOAD: &str = "upload-1";

/// A stored object.
#[derive(Clone, Debug)]
pub struct StoredObject {
    /// Its content.
    pub content: Vec<u8>,
    /// The headers of the request that made it.
    pub headers: HeaderMap,
}

/// A running object store.
pub struct Objects {
    server: Server,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    faults: Faults,
    objects: Mutex<BTreeMap<String, StoredObject>>,
    parts: Mutex<BTreeMap<u32, Vec<u8>>>,
    requests: Mutex<Vec<String>>,
}

impl Objects {
    /// Starts an empty store on a free port.
    pub fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        Self { server: Server::start(router, 0), shared }
    }

    /// Such as `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The faults. A prefix begins with the method, such as `PUT /logs/`.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Every object, by path.
    pub fn all(&self) -> BTreeMap<String, StoredObject> {
        self.shared.objects.lock().unwrap().clone()
    }

    /// Every request so far, as `METHOD /path?query`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let (path, query) = (decoded(head.uri.path()), head.uri.query().unwrap_or_default().to_owned());
    shared.requests.lock().unwrap().push(format!("{} {}", head.method, head.uri));
    if let Some(response) = shared.faults.strike(&format!("{} {path}", head.method)).await {
        return response;
    }
    let Ok(body) = axum::body::to_bytes(body, 256 << 20).await else {
        return respond(StatusCode::BAD_REQUEST, "");
    };
    let content = if is_chunked(&head.headers) { without_chunks(&body) } else { body.to_vec() };
    let part = query.split('&').find_map(|pair| pair.strip_prefix("partNumber=")?.parse::<u32>().ok());
    let store = |content| {
        let object = StoredObject { content, headers: head.headers.clone() };
        shared.objects.lock().unwrap().insert(path.clone(), object);
    };
    match (head.method, part) {
        (Method::PUT, Some(part)) => {
            shared.parts.lock().unwrap().insert(part, content);
            respond(StatusCode::OK, "")
        }
        (Method::PUT, None) => {
            store(content);
            // Azure creates, the others replace.
            respond(
                if query.is_empty() && head.headers.contains_key("x-ms-version") {
                    StatusCode::CREATED
                } else {
                    StatusCode::OK
                },
                "",
            )
        }
        (Method::POST, _) if query.contains("uploads") => {
            shared.parts.lock().unwrap().clear();
            respond(
                StatusCode::OK,
                &format!(
                    "<InitiateMultipartUploadResult><UploadId>{UPLOAD}</UploadId></InitiateMultipartUploadResult>"
                ),
            )
        }
        (Method::POST, _) if query.contains("uploadId") => {
            store(std::mem::take(&mut *shared.parts.lock().unwrap()).into_values().flatten().collect());
            respond(StatusCode::OK, "<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>")
        }
        (Method::POST, _) if query.contains("delete") => {
            let text = String::from_utf8_lossy(&content).into_owned();
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
            let mut objects = shared.objects.lock().unwrap();
            let deleted: String = keys
                .map(|key| {
                    objects.remove(&format!("{}/{key}", path.trim_end_matches('/')));
                    format!("<Deleted><Key>{key}</Key></Deleted>")
                })
                .collect();
            respond(StatusCode::OK, &format!("<DeleteResult>{deleted}</DeleteResult>"))
        }
        (Method::DELETE, _) => {
            shared.objects.lock().unwrap().remove(&path);
            respond(
                if head.headers.contains_key("x-ms-version") { StatusCode::ACCEPTED } else { StatusCode::NO_CONTENT },
                "",
            )
        }
        _ => respond(StatusCode::METHOD_NOT_ALLOWED, ""),
    }
}

/// A path with its percent-encoding resolved.
fn decoded(path: &str) -> String {
    let (mut text, mut bytes) = (path.as_bytes(), Vec::new());
    while let [first, rest @ ..] = text {
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        text = if byte.is_some() { &rest[2..] } else { rest };
    }
    String::from_utf8(bytes).unwrap()
}

/// Whether the body has the chunks of a streaming signature.
fn is_chunked(headers: &HeaderMap) -> bool {
    headers.get("content-encoding").is_some_and(|value| value.as_bytes().starts_with(b"aws-chunked"))
}

/// The content of `SIZE;chunk-signature=…\r\nCONTENT\r\n` chunks.
fn without_chunks(body: &Bytes) -> Vec<u8> {
    let (mut rest, mut content) = (&body[..], Vec::new());
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..end]).split(';').next().unwrap_or_default().to_owned();
        let size = usize::from_str_radix(&size, 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        content.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    content
}

fn respond(status: StatusCode, body: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_owned()));
    *response.status_mut() = status;
    for (name, value) in
        [("etag", "\"1\""), ("last-modified", "Mon, 30 Nov 2026 00:00:00 GMT"), ("x-ms-request-id", "1")]
    {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}
