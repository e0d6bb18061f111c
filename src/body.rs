//! The body of an HTTP answer, read up to a bound.
//!
//! GitHub's, Rails', API servers' and BuildKit's answers pass through here, so none of them decides how much memory the worker
//! takes. The time limit of each client counts the body as well. Bodies follow RFC 9110.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame};

/// An answer that is longer than allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url} answered with more than {max_bytes} bytes")]
pub struct TooLong {
    /// Who answered. Without credentials.
    pub url: String,
    /// The bound.
    pub max_bytes: usize,
}

/// A body that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It has no end within the bound.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The connection broke, or the time was over.
    #[error(transparent)]
    Broken(#[from] reqwest::Error),
}

/// How much of an answer may still come.
#[derive(Clone, Debug)]
pub struct Room {
    url: String,
    max_bytes: usize,
    left: usize,
}

impl Room {
    /// For an answer of this URL.
    pub fn new(url: impl Into<String>, max_bytes: usize) -> Self {
        Self { url: url.into(), max_bytes, left: max_bytes }
    }

    /// Counts bytes that have come.
    pub fn take(&mut self, n_bytes: usize) -> Result<(), TooLong> {
        match self.left.checked_sub(n_bytes) {
            Some(left) => self.left = left,
            None => return Err(TooLong { url: self.url.clone(), max_bytes: self.max_bytes }),
        }
        Ok(())
    }
}

/// Reads an answer to its end. One that says that it is too long is not read at all.
pub async fn read(mut answer: reqwest::Response, url: &str, max_bytes: usize) -> Result<Vec<u8>, BodyError> {
    let mut room = Room::new(url, max_bytes);
    let announced = answer.content_length().unwrap_or(0);
    room.clone().take(usize::try_from(announced).unwrap_or(usize::MAX))?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        room.take(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads a body to its end; it has a bound of its own.
pub async fn collect<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<Vec<u8>, B::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

/// A body that ends with an error when there is no room for more; for clients that read by themselves.
#[derive(Debug)]
pub struct Bounded<B> {
    body: B,
    room: Room,
}

impl<B> Bounded<B> {
    /// Lets as much of `body` through as there is room for.
    pub fn new(body: B, room: Room) -> Self {
        Self { body, room }
    }
}

impl<B> Body for Bounded<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(Into::into)?;
            self.room.take(frame.data_ref().map_or(0, Buf::remaining))?;
            Ok(frame)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_left_for_exactly_as_much_as_is_allowed() {
        let mut room = Room::new("https://api.github.com/app", 10);
        assert_eq!((room.take(4), room.take(6), room.take(0)), (Ok(()), Ok(()), Ok(())));
        let error = room.take(1).expect_err("refused");
        assert_eq!(error.to_string(), "https://api.github.com/app answered with more than 10 bytes");
    }
}
