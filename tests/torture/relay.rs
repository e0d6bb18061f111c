//! A relay between one worker and Redis that understands requests: it can lose replies, deliver late, rewrite, and count.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Changes a request, one text an argument. `is_custody`: on the connection that takes turns.
pub type Rewrite = Arc<dyn Fn(&mut Vec<Vec<u8>>, bool) + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// Requests arrive, replies do not; the connection ends at the first one.
    LoseReplies {
        until: Instant,
    },
    /// The next script that arrives is held back for so long, and its connection cut at once.
    DeliverLate {
        after: Duration,
    },
}

#[derive(Clone)]
pub struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    redis: SocketAddr,
    trouble: Mutex<Trouble>,
    rewrite: Option<Rewrite>,
}

impl Relay {
    pub async fn to(redis_port: u16, rewrite: Option<Rewrite>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let redis = SocketAddr::from(([127, 0, 0, 1], redis_port));
        let shared = Arc::new(Shared { redis, trouble: Mutex::new(Trouble::None), rewrite });
        let relay = Self { port, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    client.set_nodelay(true).unwrap();
                    let Ok(server) = TcpStream::connect(shared.redis).await else { return };
                    server.set_nodelay(true).unwrap();
                    relay_one(shared, client, server).await;
                });
            }
        });
        relay
    }

    /// For so long every reply is lost, and its connection with it.
    pub fn lose_replies(&self, during: Duration) {
        self.set(Trouble::LoseReplies { until: Instant::now() + during });
    }

    /// The next script reaches Redis so much later, when its sender has long given it up.
    pub fn deliver_late(&self, after: Duration) {
        self.set(Trouble::DeliverLate { after });
    }

    fn set(&self, trouble: Trouble) {
        *self.shared.trouble.lock().unwrap() = trouble;
    }
}

impl Shared {
    fn loses_replies(&self) -> bool {
        let mut trouble = self.trouble.lock().unwrap();
        match *trouble {
            Trouble::LoseReplies { until } if Instant::now() < until => true,
            Trouble::LoseReplies { .. } => {
                *trouble = Trouble::None;
                false
            }
            _ => false,
        }
    }

    /// How late a request is to be delivered; once.
    fn delay(&self, request: &[Vec<u8>]) -> Option<Duration> {
        let mut trouble = self.trouble.lock().unwrap();
        match *trouble {
            Trouble::DeliverLate { after } if is_command(request, b"EVALSHA") => {
                *trouble = Trouble::None;
                Some(after)
            }
            _ => None,
        }
    }
}

async fn relay_one(shared: Arc<Shared>, client: TcpStream, server: TcpStream) {
    let (from_client, mut to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        late = requests(&shared, from_client, to_server) => {
            // The client is cut off by the drop of its halves; what it sent last goes on without it.
            let Some((after, bytes, mut to_server)) = late else { return };
            drop(to_client);
            tokio::time::sleep(after).await;
            let _ = to_server.write_all(&bytes).await;
            // Redis reads it before it sees the end.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        () = replies(&shared, from_server, &mut to_client) => {}
    }
}

/// Passes requests on, one at a time. Returns one that is to be delivered late, with the way to Redis.
async fn requests(
    shared: &Shared,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
) -> Option<(Duration, Vec<u8>, OwnedWriteHalf)> {
    let (mut reader, mut is_custody) = (Requests::default(), false);
    let mut chunk = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        reader.bytes.extend(&chunk[..n]);
        while let Some(mut request) = reader.next() {
            is_custody |= is_command(&request, b"CLIENT") && is_word(&request, 1, b"TRACKING");
            if let Some(rewrite) = &shared.rewrite {
                rewrite(&mut request, is_custody);
            }
            let bytes = encode(&request);
            if let Some(after) = shared.delay(&request) {
                return Some((after, bytes, to));
            }
            to.write_all(&bytes).await.ok()?;
        }
    }
}

async fn replies(shared: &Shared, mut from: OwnedReadHalf, to: &mut OwnedWriteHalf) {
    let mut chunk = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut chunk).await.unwrap_or(0);
        if n == 0 || shared.loses_replies() || to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}

pub fn is_command(request: &[Vec<u8>], name: &[u8]) -> bool {
    is_word(request, 0, name)
}

fn is_word(request: &[Vec<u8>], i: usize, word: &[u8]) -> bool {
    request.get(i).is_some_and(|text| text.eq_ignore_ascii_case(word))
}

/// Requests as they are on the wire: arrays of bulk strings.
#[derive(Default)]
struct Requests {
    bytes: VecDeque<u8>,
}

impl Requests {
    fn next(&mut self) -> Option<Vec<Vec<u8>>> {
        let bytes = self.bytes.make_contiguous();
        let mut at = 0;
        let n = number(bytes, &mut at, b'*')?;
        let mut request = Vec::with_capacity(n);
        for _ in 0..n {
            let length = number(bytes, &mut at, b'$')?;
            request.push(bytes.get(at..at + length)?.to_vec());
            bytes.get(at + length..at + length + 2)?;
            at += length + 2;
        }
        self.bytes.drain(..at);
        Some(request)
    }
}

fn number(bytes: &[u8], at: &mut usize, kind: u8) -> Option<usize> {
    let rest = bytes.get(*at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    assert_eq!(rest[0], kind, "a request is an array of bulk strings");
    *at += end + 2;
    std::str::from_utf8(&rest[1..end]).unwrap().parse().ok()
}

fn encode(request: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", request.len()).into_bytes();
    for argument in request {
        bytes.extend(format!("${}\r\n", argument.len()).bytes());
        bytes.extend(argument);
        bytes.extend(b"\r\n");
    }
    bytes
}
