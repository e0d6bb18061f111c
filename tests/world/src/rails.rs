//! The resolver endpoint of the customer's Rails, `GET /builds/{id}`. Checks the signature and gives the test's answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, header};
use hmac::{Hmac, KeyInit, Mac};
use jiff::{Timestamp, fmt::rfc2822};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::hex;
use crate::server::Server;

/// A running endpoint with a shared secret.
pub struct Rails {
    shared: Arc<Shared>,
    server: Server,
}

/// The answer to an id in a request with a valid signature.
#[derive(Clone, Debug)]
pub enum Answer {
    /// 200 with this build request.
    Object(Value),
    /// This status and an empty JSON object: 404, 410, 500, …
    Status(u16),
    /// 200 with this text, which need not be JSON.
    Text(String),
    /// 302 to this location.
    Redirect(String),
    /// 200 with valid JSON of at least this many bytes.
    Padded(Value, usize),
    /// Nothing, with the connection open.
    Hang,
}

/// One request.
#[derive(Clone, Debug)]
pub struct RailsRequest {
    /// Path with query.
    pub path: String,
    /// Whether `Date` and signature are valid.
    pub is_authentic: bool,
}

struct Shared {
    secret: String,
    answers: Mutex<HashMap<String, Answer>>,
    requests: Mutex<Vec<RailsRequest>>,
}

impl Rails {
    /// An endpoint without builds.
    pub fn start(secret: &str) -> Rails {
        let shared = Arc::new(Shared { secret: secret.into(), answers: Mutex::default(), requests: Mutex::default() });
        let router = Router::new().fallback(front_door).with_state(shared.clone());
        Rails { shared, server: Server::start(router, 0) }
    }

    /// The pattern for the settings: `http://127.0.0.1:PORT/builds/{0}`.
    pub fn url_pattern(&self) -> String {
        format!("{}/builds/{{0}}", self.server.url())
    }

    /// The port of the endpoint.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Sets the answer to `GET /builds/{id}` from now on.
    pub fn answer(&self, id: impl ToString, answer: Answer) {
        self.shared.answers.lock().unwrap().insert(id.to_string(), answer);
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<RailsRequest> {
        self.shared.requests.lock().unwrap().clone()
    }
}

async fn front_door(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let path = request.uri().to_string();
    let is_authentic = request.method() == "GET" && is_authentic(&shared.secret, &path, request.headers());
    shared.requests.lock().unwrap().push(RailsRequest { path, is_authentic });
    if !is_authentic {
        return respond(401, json!({"error": "signature"}).to_string());
    }
    let id = request.uri().path().strip_prefix("/builds/").unwrap_or("");
    let answer = shared.answers.lock().unwrap().get(id).cloned();
    match answer.unwrap_or(Answer::Status(404)) {
        Answer::Object(object) => respond(200, object.to_string()),
        Answer::Status(status) => respond(status, "{}".into()),
        Answer::Text(text) => respond(200, text),
        // White space is valid JSON, so only the size is wrong.
        Answer::Padded(object, n_bytes) => respond(200, format!("{object}{}", " ".repeat(n_bytes))),
        Answer::Redirect(location) => {
            let mut response = respond(302, String::new());
            response.headers_mut().insert(header::LOCATION, location.parse().unwrap());
            response
        }
        Answer::Hang => std::future::pending().await,
    }
}

/// Checks the signature: `v1=` and the hex HMAC-SHA256 over method, path with query and date. A date is valid for 5
/// minutes.
fn is_authentic(secret: &str, path: &str, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let date = text("date");
    let Ok(at) = rfc2822::parse(date) else {
        return false;
    };
    if Timestamp::now().duration_since(at.timestamp()).as_secs().abs() > 300 {
        return false;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("GET\n{path}\n{date}").as_bytes());
    text("x-sidebake-signature") == format!("v1={}", hex(&mac.finalize().into_bytes()))
}

fn respond(status: u16, body: String) -> Response<Body> {
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    response.body(Body::from(body)).unwrap()
}
