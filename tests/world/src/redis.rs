//! A real `redis-server` for one test, on a free port, with Sidekiq's terms for inspecting it.
//!
//! The key layout is that of Sidekiq 8 (`sidekiq-wire.md` §1, §4); the pushes write what its client writes.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncConnectionConfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hex;

/// A running `redis-server`; dropping it kills the server and removes its directory.
pub struct Redis {
    port: u16,
    args: Vec<String>,
    dir: TempDir,
    child: Mutex<Option<Child>>,
}

impl Redis {
    /// A server that writes nothing to disk.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// A server with more `redis-server` arguments, which override the defaults: `["--appendonly", "yes"]` to survive
    /// [`Redis::stop`].
    pub fn start_with(args: &[&str]) -> Redis {
        // Another process may take the port before the server binds it; then tries another port.
        for _ in 0..5 {
            let redis = Redis {
                port: free_port(),
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                dir: tempfile::tempdir().unwrap(),
                child: Mutex::new(None),
            };
            if redis.spawn() {
                return redis;
            }
        }
        panic!("redis-server does not start; see its output above");
    }

    /// `redis://127.0.0.1:PORT/0`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The port, which stays the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills the server. It loses what it has not written to disk.
    pub fn stop(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again with the same port and directory, and kills it first if it runs.
    pub fn restart(&self) {
        self.stop();
        assert!(self.spawn(), "redis-server does not restart on port {}", self.port);
    }

    /// Sends STOP: connections stay open and nothing answers, as behind a network that drops packets.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends CONT to a frozen server.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// A new connection.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        // The library's own limits are half a second, which a busy machine can exceed.
        let patience = Some(Duration::from_secs(60));
        let config = AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    /// Marks a job as cancelled, as Sidekiq's `cancel!` does.
    pub async fn cancel(&self, jid: &str) {
        let mark = redis::cmd("HSETNX").arg(&[&format!("it-{jid}"), "cancelled", "1"]).to_owned();
        mark.exec_async(&mut self.connection().await).await.unwrap();
    }

    /// Pushes a job as Sidekiq 8's client does (`perform_async`) and returns its jid.
    pub async fn push(&self, queue: &str, class: &str, args: Value) -> String {
        let jid = hex(&rand::random::<[u8; 12]>());
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let job = json!({
            "retry": true, "queue": queue, "class": class, "args": args, "jid": jid,
            "created_at": now_ms, "enqueued_at": now_ms,
        });
        self.push_raw(queue, job.to_string()).await;
        jid
    }

    /// Pushes any bytes as a client pushes a job.
    pub async fn push_raw(&self, queue: &str, payload: impl AsRef<[u8]>) {
        let mut push = redis::pipe();
        push.sadd("queues", queue).ignore().lpush(format!("queue:{queue}"), payload.as_ref()).ignore();
        push.exec_async(&mut self.connection().await).await.unwrap();
    }

    /// The payloads of a queue, with the next job first.
    pub async fn queue(&self, name: &str) -> Vec<String> {
        let payloads: Vec<Vec<u8>> = self.connection().await.lrange(format!("queue:{name}"), 0, -1).await.unwrap();
        payloads.iter().rev().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    /// The jobs of one class in a queue, with the next job first.
    pub async fn jobs_of_class(&self, queue: &str, class: &str) -> Vec<Value> {
        let jobs = self.queue(queue).await.into_iter().filter_map(|payload| serde_json::from_str(&payload).ok());
        jobs.filter(|job: &Value| job["class"] == class).collect()
    }

    /// Members and scores of `retry`, `schedule` or `dead`, with the earliest first.
    pub async fn sorted_set(&self, name: &str) -> Vec<(String, f64)> {
        self.connection().await.zrange_withscores(name, 0, -1).await.unwrap()
    }

    /// The string at a key.
    pub async fn get(&self, key: &str) -> Option<String> {
        self.connection().await.get(key).await.unwrap()
    }

    /// The hash at a key, or an empty one.
    pub async fn hgetall(&self, key: &str) -> HashMap<String, String> {
        self.connection().await.hgetall(key).await.unwrap()
    }

    /// The members of a set, in alphabetical order.
    pub async fn smembers(&self, key: &str) -> Vec<String> {
        let mut members: Vec<String> = self.connection().await.smembers(key).await.unwrap();
        members.sort();
        members
    }

    /// The keys of a glob pattern, in alphabetical order.
    pub async fn keys(&self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.connection().await.keys(pattern).await.unwrap();
        keys.sort();
        keys
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &*self.child.lock().unwrap() {
            kill_process(Pid::from_child(child), signal).unwrap();
        }
    }

    /// Starts the server. Returns whether it answers on its port; otherwise it has ended.
    fn spawn(&self) -> bool {
        let child = Command::new(redis_server())
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(self.dir.path())
            // Some versions look elsewhere by default.
            .arg("--logfile")
            .arg(self.dir.path().join("redis.log"))
            .args(&self.args)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run redis-server ({error}); get it: apt-get install redis-server"));
        *self.child.lock().unwrap() = Some(child);
        self.answers()
    }

    fn answers(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            // The server accepts connections while it loads an append-only file, so only a PING shows that it is ready.
            if ping(self.port) == Some(true) {
                return true;
            }
            let mut child = self.child.lock().unwrap();
            if child.as_mut().unwrap().try_wait().unwrap().is_some() {
                *child = None;
                let log = std::fs::read_to_string(self.dir.path().join("redis.log"));
                eprintln!("{}", log.unwrap_or_default());
                return false;
            }
            drop(child);
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

/// The server of the tests: `redis-server`, or the program in `SIDEBAKE_REDIS_SERVER`, such as a Valkey.
pub fn redis_server() -> String {
    std::env::var("SIDEBAKE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into())
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn ping(port: u16) -> Option<bool> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"PING\r\n").ok()?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).ok()?;
    // A server with a password refuses, but it runs.
    Some(&answer == b"+PONG" || answer.starts_with(b"-NOA"))
}
