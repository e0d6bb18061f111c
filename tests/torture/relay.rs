//! A relay between one worker and Redis that understands requests. It can lose replies, deliver late, hold, and
//! rewrite.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::scripts::Scripts;

/// Start and end.
pub type Span = (SystemTime, SystemTime);

/// Changes a request, given as one text per argument. `is_custody`: on the connection that sends turns.
pub type Rewrite = Arc<dyn Fn(&mut Vec<Vec<u8>>, bool) + Send + Sync>;

/// The delay between two late requests, and after the end of the cut.
const APART: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// Delivers requests but no replies. Ends the connection at the first reply.
    LoseReplies {
        until: Instant,
    },
    /// Holds the next script for this long, and cuts its connection at once.
    DeliverLate {
        after: Duration,
    },
}

/// Holds one renewal and the turn after it, and cuts their connections, so the worker sends both again. After the reply
/// to the turn, cuts the worker off for longer than its lease. Then delivers both before anything newer from the
/// worker.
enum Hold {
    Off,
    /// Holds the next renewal, then cuts the worker off for this long.
    Renewal(Duration),
    /// Holds the next turn.
    Turn(Duration, Held),
    /// Waits for the reply to the resent turn.
    Answer(Duration, Held, Held),
    /// Lets nothing pass.
    Cut,
}

/// A request with its connection to Redis.
struct Held {
    bytes: Vec<u8>,
    to: OwnedWriteHalf,
}

#[derive(Clone)]
pub struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    redis: SocketAddr,
    scripts: Scripts,
    trouble: Mutex<Trouble>,
    hold: Mutex<Hold>,
    /// When the worker was cut off.
    cuts: Mutex<Vec<Span>>,
    rewrite: Option<Rewrite>,
}

/// What happens to a request.
enum Fate {
    Passes,
    /// Cuts its connection.
    Lost,
    Late(Duration),
    Held,
    /// Passes it on. Its reply ends the wait of [`Hold::Answer`].
    Awaited,
}

impl Relay {
    pub async fn to(redis_port: u16, scripts: Scripts, rewrite: Option<Rewrite>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let redis = SocketAddr::from(([127, 0, 0, 1], redis_port));
        let (trouble, hold, cuts) = (Mutex::new(Trouble::None), Mutex::new(Hold::Off), Mutex::default());
        let shared = Arc::new(Shared { redis, scripts, trouble, hold, cuts, rewrite });
        let relay = Self { port, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay_one(Arc::clone(&shared), client));
            }
        });
        relay
    }

    /// Loses every reply and its connection for this long.
    pub fn lose_replies(&self, during: Duration) {
        self.set(Trouble::LoseReplies { until: Instant::now() + during });
    }

    /// Delivers the next script late, long after its sender gave it up.
    pub fn deliver_late(&self, after: Duration) {
        self.set(Trouble::DeliverLate { after });
    }

    /// Holds a renewal and a turn, and cuts the worker off for this long. Only one at a time.
    pub fn hold(&self, cut: Duration) {
        let mut hold = self.shared.hold.lock().unwrap();
        if matches!(*hold, Hold::Off) {
            *hold = Hold::Renewal(cut);
        }
    }

    /// Waits until the relay holds nothing. Cancels faults that have not begun.
    pub async fn is_whole(&self) {
        self.set(Trouble::None);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            let is_off = {
                let mut hold = self.shared.hold.lock().unwrap();
                if matches!(*hold, Hold::Renewal(_)) {
                    *hold = Hold::Off;
                }
                matches!(*hold, Hold::Off)
            };
            if is_off {
                return;
            }
            tokio::time::sleep(APART).await;
        }
        *self.shared.hold.lock().unwrap() = Hold::Off;
    }

    /// When the worker was cut off.
    pub fn cuts(&self) -> Vec<Span> {
        self.shared.cuts.lock().unwrap().clone()
    }

    fn set(&self, trouble: Trouble) {
        *self.shared.trouble.lock().unwrap() = trouble;
    }
}

impl Shared {
    fn loses_replies(&self) -> bool {
        if matches!(*self.hold.lock().unwrap(), Hold::Cut) {
            return true;
        }
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

    fn fate(&self, request: &[Vec<u8>]) -> Fate {
        match &*self.hold.lock().unwrap() {
            Hold::Cut => return Fate::Lost,
            Hold::Renewal(_) if self.scripts.is_renewal(request) => return Fate::Held,
            Hold::Turn(..) if self.scripts.is_turn(request) => return Fate::Held,
            Hold::Answer(..) if self.scripts.is_turn(request) => return Fate::Awaited,
            _ => {}
        }
        let mut trouble = self.trouble.lock().unwrap();
        match *trouble {
            Trouble::DeliverLate { after } if is_command(request, b"EVALSHA") => {
                *trouble = Trouble::None;
                Fate::Late(after)
            }
            _ => Fate::Passes,
        }
    }

    fn keep(&self, held: Held) {
        let mut hold = self.hold.lock().unwrap();
        *hold = match std::mem::replace(&mut *hold, Hold::Off) {
            Hold::Renewal(cut) => Hold::Turn(cut, held),
            Hold::Turn(cut, renewal) => Hold::Answer(cut, renewal, held),
            other => other,
        };
    }

    /// Handles the reply to the turn: cuts the worker off, and delivers the held requests at the end.
    fn cut_off(self: &Arc<Self>) {
        let mut hold = self.hold.lock().unwrap();
        let (cut, renewal, turn) = match std::mem::replace(&mut *hold, Hold::Cut) {
            Hold::Answer(cut, renewal, turn) => (cut, renewal, turn),
            other => {
                *hold = other;
                return;
            }
        };
        drop(hold);
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let since = SystemTime::now();
            tokio::time::sleep(cut).await;
            renewal.deliver().await;
            turn.deliver().await;
            shared.cuts.lock().unwrap().push((since, SystemTime::now()));
            *shared.hold.lock().unwrap() = Hold::Off;
        });
    }
}

impl Held {
    async fn deliver(mut self) {
        let _ = self.to.write_all(&self.bytes).await;
        // Redis reads the request before it sees the end.
        tokio::time::sleep(APART).await;
    }
}

async fn relay_one(shared: Arc<Shared>, client: TcpStream) {
    client.set_nodelay(true).unwrap();
    let Ok(server) = TcpStream::connect(shared.redis).await else { return };
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let is_awaited = AtomicBool::new(false);
    // Dropping its halves cuts the client off. Its last request continues without it.
    tokio::select! {
        () = requests(&shared, from_client, to_server, &is_awaited) => {}
        () = replies(&shared, from_server, to_client, &is_awaited) => {}
    }
}

/// Passes requests on, one at a time, until one has to wait.
async fn requests(shared: &Shared, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, is_awaited: &AtomicBool) {
    let (mut reader, mut is_custody) = (Requests::default(), false);
    let mut chunk = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut chunk).await.unwrap_or(0);
        if n == 0 {
            return;
        }
        reader.bytes.extend(&chunk[..n]);
        while let Some(mut request) = reader.next() {
            is_custody |= is_command(&request, b"CLIENT") && is_word(&request, 1, b"TRACKING");
            let fate = shared.fate(&request);
            if let Some(rewrite) = &shared.rewrite {
                rewrite(&mut request, is_custody);
            }
            let bytes = encode(&request);
            match fate {
                Fate::Passes => {}
                Fate::Awaited => is_awaited.store(true, Ordering::Relaxed),
                Fate::Lost => return,
                Fate::Held => return shared.keep(Held { bytes, to }),
                Fate::Late(after) => {
                    tokio::spawn(async move {
                        tokio::time::sleep(after).await;
                        Held { bytes, to }.deliver().await;
                    });
                    return;
                }
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}

async fn replies(shared: &Arc<Shared>, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, is_awaited: &AtomicBool) {
    let mut chunk = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut chunk).await.unwrap_or(0);
        if n == 0 || shared.loses_replies() || to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
        if is_awaited.swap(false, Ordering::Relaxed) {
            shared.cut_off();
        }
    }
}

pub fn is_command(request: &[Vec<u8>], name: &[u8]) -> bool {
    is_word(request, 0, name)
}

fn is_word(request: &[Vec<u8>], i: usize, word: &[u8]) -> bool {
    request.get(i).is_some_and(|text| text.eq_ignore_ascii_case(word))
}

/// Requests on the wire: arrays of bulk strings.
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
