//! Answers without end, either as fast as the client reads or one byte at a time.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use crate::server::Server;

/// The speed of an answer without end.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As fast as the client reads.
    Flood,
    /// A byte after each pause.
    Drip(Duration),
}

/// A server that answers every request with the beginning of a JSON text without end.
pub struct Endless {
    server: Server,
}

impl Endless {
    /// Starts it on a free port.
    pub fn start(pace: Pace) -> Endless {
        let router = Router::new().fallback(move || async move { response(200, pace) });
        Endless { server: Server::start(router, 0) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.server.url()
    }
}

/// An answer with this status whose body never ends.
pub(crate) fn response(status: u16, pace: Pace) -> Response<Body> {
    let body = match pace {
        // JSON allows white space before any value.
        Pace::Flood => Body::from_stream(ReaderStream::new(tokio::io::repeat(b' '))),
        Pace::Drip(pause) => {
            let (mut writer, reader) = tokio::io::duplex(1);
            tokio::spawn(async move {
                while writer.write_all(b" ").await.is_ok() {
                    tokio::time::sleep(pause).await;
                }
            });
            Body::from_stream(ReaderStream::new(reader))
        }
    };
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    response.header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
}
