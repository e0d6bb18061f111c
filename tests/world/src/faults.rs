//! Faults that a test requests: the next requests of a path get a given answer, a late one, or none.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::endless::{self, Pace};

/// The faults of one server, which shares them with the test.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Vec<Fault>>>);

struct Fault {
    prefix: String,
    remaining: u32,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Answer { status: u16, headers: Vec<(String, String)>, body: String },
    Delay(Duration),
    Endless { status: u16, pace: Pace },
    Stall,
}

impl Faults {
    /// Answers the next `n` requests whose path starts with `prefix` with this response, without any other effect.
    pub fn fail_next(&self, prefix: &str, n: u32, status: u16, headers: &[(&str, &str)], body: &str) {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.add(prefix, n, Kind::Answer { status, headers, body: body.into() });
    }

    /// Delays every request whose path starts with `prefix`, until [`Faults::clear`].
    pub fn delay(&self, prefix: &str, delay: Duration) {
        self.add(prefix, u32::MAX, Kind::Delay(delay));
    }

    /// Never answers the next `n` requests whose path starts with `prefix`.
    pub fn stall_next(&self, prefix: &str, n: u32) {
        self.add(prefix, n, Kind::Stall);
    }

    /// Gives every request whose path starts with `prefix` an answer without end, until [`Faults::clear`].
    pub fn never_end(&self, prefix: &str, status: u16, pace: Pace) {
        self.add(prefix, u32::MAX, Kind::Endless { status, pace });
    }

    /// Removes every fault. A request that stalls already continues to stall.
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// The faulty answer to this request, or none after a delay or without a fault.
    pub(crate) async fn strike(&self, path: &str) -> Option<Response<Body>> {
        match self.take(path)? {
            Kind::Delay(delay) => {
                tokio::time::sleep(delay).await;
                None
            }
            Kind::Endless { status, pace } => Some(endless::response(status, pace)),
            Kind::Stall => std::future::pending().await,
            Kind::Answer { status, headers, body } => Some(answer(status, &headers, body)),
        }
    }

    fn add(&self, prefix: &str, remaining: u32, kind: Kind) {
        self.0.lock().unwrap().push(Fault { prefix: prefix.into(), remaining, kind });
    }

    fn take(&self, path: &str) -> Option<Kind> {
        let mut faults = self.0.lock().unwrap();
        let fault = faults.iter_mut().find(|fault| fault.remaining > 0 && path.starts_with(&fault.prefix))?;
        fault.remaining -= 1;
        Some(fault.kind.clone())
    }
}

fn answer(status: u16, headers: &[(String, String)], body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        response.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    }
    response
}
