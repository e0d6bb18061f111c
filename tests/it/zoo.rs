//! The zoo: one worker at every kind of server and connection. In each, jobs run, an idle worker costs little, and `/ready` and
//! `doctor` tell the truth about the connection that fetches.
//!
//! The server is `redis-server`, or the program in `SIDEBAKE_REDIS_SERVER`.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use world::{Redis, free_port, wait_for};

use crate::harness::{Harness, probe, sidebake};
use crate::relay::{Relay, is_command};
use crate::scripts::Scripts;
use crate::servers::Sentinel;

/// The intervals of a worker, shortened, so that two seconds are as many as ten.
const SHORTENED: &str = "jobs.probe = true\nlease.ttl = \"6s\"\njobs.poll_interval = \"1s\"\n";

/// How long an idle worker is watched.
const WATCHED: Duration = Duration::from_secs(2);

/// What an idle worker may cost Redis in that time.
const IDLE: Traffic = Traffic { n_commands: 180, n_bytes: 30_000 };

/// A server, and how a worker connects to it.
struct Cage {
    harness: Harness,
    /// `redis.url` and further settings of the section.
    url: String,
    more: String,
    /// Settings of the worker.
    settings: &'static str,
    /// How an idle worker learns of a job.
    wakes_by: WakesBy,
    idle: Traffic,
    /// What has to live as long as the server.
    kept: Vec<Box<dyn Any>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum WakesBy {
    Push,
    /// The server refuses tracking, which `doctor` reports.
    Poll,
    /// The server accepts tracking and does not push.
    PollLater,
}

/// Commands, with those in scripts, and bytes both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traffic {
    n_commands: u64,
    n_bytes: u64,
}

impl Traffic {
    /// So far, of all clients.
    async fn of(redis: &Redis) -> Self {
        let mut connection = redis.connection().await;
        let text: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await.unwrap();
        let number = |name: &str| -> u64 {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().parse().unwrap()
        };
        let n_bytes = number("total_net_input_bytes") + number("total_net_output_bytes");
        Self { n_commands: number("total_commands_processed"), n_bytes }
    }

    /// While nothing happens.
    async fn while_idle(redis: &Redis) -> Self {
        let before = Self::of(redis).await;
        sleep(WATCHED).await;
        let after = Self::of(redis).await;
        Self { n_commands: after.n_commands - before.n_commands, n_bytes: after.n_bytes - before.n_bytes }
    }

    /// The first span within the bound; the last one when a minute has none. A slow machine starts late, and a heartbeat may be in
    /// one span and not in the next. The worker polls in every span.
    async fn of_an_idle_worker(redis: &Redis, bound: Self) -> Self {
        for _ in 1..30 {
            let traffic = Self::while_idle(redis).await;
            if traffic.is_within(bound) {
                return traffic;
            }
        }
        Self::while_idle(redis).await
    }

    fn is_within(self, bound: Self) -> bool {
        self.n_commands <= bound.n_commands && self.n_bytes <= bound.n_bytes
    }
}

impl Cage {
    fn of(redis: Redis) -> Self {
        let mut harness = Harness::start();
        harness.redis = redis;
        let url = harness.redis.url();
        let (settings, wakes_by) = (SHORTENED, WakesBy::Push);
        Self { harness, url, more: String::new(), settings, wakes_by, idle: IDLE, kept: Vec::new() }
    }

    fn plain() -> Self {
        Self::of(Redis::start())
    }

    /// The same through a port on this machine.
    fn through(self, port: u16) -> Self {
        Self { url: format!("redis://127.0.0.1:{port}/0"), ..self }
    }

    fn polled(self) -> Self {
        Self { wakes_by: WakesBy::Poll, ..self }
    }

    fn config(&self, health_port: u16) -> PathBuf {
        let (settings, url, more) = (self.settings, &self.url, &self.more);
        let path = self.harness.config(&format!(
            "{settings}[redis]\nurl = \"{url}\"\n{more}\n[health]\nlisten = \"127.0.0.1:{health_port}\"\n"
        ));
        let text = std::fs::read_to_string(&path).unwrap();
        let plain = format!("redis.url = \"{}\"\n", self.harness.redis.url());
        std::fs::write(&path, text.replacen(&plain, "", 1)).unwrap();
        path
    }

    /// Runs jobs, watches the idle worker, and asks `/ready` and `doctor`.
    async fn holds(self) {
        let (harness, port) = (&self.harness, free_port());
        let config = self.config(port);
        harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
        harness.redis.push("default", "Sidebake::Probe", probe("infrastructure", 0.0)).await;
        let mut worker = harness.worker_with(&config, &[]);
        harness.callbacks(1).await;
        harness
            .until("the other job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1)
            .await;
        // It would run again.
        redis::cmd("DEL").arg("retry").exec_async(&mut harness.redis.connection().await).await.unwrap();
        harness.until("the process is listed", async || !harness.redis.smembers("processes").await.is_empty()).await;
        // Each is pushed to an idle worker. Two that no push reported show that the server does not push.
        for n in 2..=3 {
            harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
            harness.callbacks(n).await;
        }
        harness.idle().await;
        assert_eq!(worker.logged("tracking_refused").is_empty(), self.wakes_by != WakesBy::Poll, "{}", worker.log());
        assert_eq!(
            worker.logged("tracking_silent").is_empty(),
            self.wakes_by != WakesBy::PollLater,
            "{}",
            worker.log()
        );

        let traffic = Traffic::of_an_idle_worker(&harness.redis, self.idle).await;
        assert!(traffic.is_within(self.idle), "{traffic:?}");
        assert_eq!(ready(port).await, (200, "ready\n".into()));
        let findings = doctor(&config);
        assert_eq!(finding(&findings, "redis").map(|found| &found["health"]), Some(&json!("green")), "{findings:#}");
        let tracking = finding(&findings, "redis tracking").map(|found| &found["health"]);
        let expected = json!("yellow");
        assert_eq!(tracking, (self.wakes_by == WakesBy::Poll).then_some(&expected), "{findings:#}");
        worker.signal("TERM");
        assert_eq!(worker.ended().await, Some(0));
        harness.idle().await;
        assert!(!worker.log().contains("NOPERM"), "{}", worker.log());
    }
}

async fn ready(port: u16) -> (u16, String) {
    let answer = reqwest::get(format!("http://127.0.0.1:{port}/ready")).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

fn doctor(config: &Path) -> Value {
    let mut doctor = sidebake();
    let output = doctor.args(["doctor", "--json", "--config"]).arg(config).stdin(Stdio::null()).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn finding<'f>(findings: &'f Value, name: &str) -> Option<&'f Value> {
    findings.as_array().unwrap().iter().find(|finding| finding["name"] == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn at_an_ordinary_server() {
    Cage::plain().holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_server_that_does_not_know_hello() {
    Cage::of(Redis::start_with(&["--rename-command", "HELLO", ""])).polled().holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_server_that_does_not_know_client() {
    Cage::of(Redis::start_with(&["--rename-command", "CLIENT", ""])).polled().holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_server_that_forbids_client() {
    let mut cage = Cage::plain().polled();
    // All of CLIENT, because Redis 6 cannot forbid a subcommand alone.
    let rights = ["SETUSER", "plain", "on", ">secret", "~*", "+@all", "-client"];
    redis::cmd("ACL").arg(&rights).exec_async(&mut cage.harness.redis.connection().await).await.unwrap();
    cage.url = cage.url.replace("redis://", "redis://plain:secret@");
    cage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_server_that_accepts_tracking_and_never_pushes() {
    let cage = Cage::plain();
    let switch_off = |request: &mut Vec<Vec<u8>>, _| {
        if is_command(request, b"CLIENT") && request.iter().any(|word| word.eq_ignore_ascii_case(b"tracking")) {
            request[2] = b"OFF".to_vec();
        }
    };
    let scripts = Scripts::load(&cage.harness.redis).await;
    let relay = Relay::to(cage.harness.redis.port(), scripts, Some(Arc::new(switch_off))).await;
    Cage { wakes_by: WakesBy::PollLater, ..cage.through(relay.port) }.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_a_certificate_of_its_own_authority() {
    // What `openssl req -x509` makes, with and without the bit of an authority; both without a name that clients look at.
    for is_authority in [true, false] {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name).display().to_string();
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(Vec::new()).unwrap();
        own.is_ca = if is_authority { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        own.distinguished_name.push(DnType::CommonName, "redis.internal");
        std::fs::write(path("own.pem"), own.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(path("own.key"), key.serialize_pem()).unwrap();
        let other = own.self_signed(&KeyPair::generate().unwrap()).unwrap();
        std::fs::write(path("other.pem"), other.pem()).unwrap();
        let port = free_port().to_string();
        let tls = ["--tls-port", &port, "--tls-auth-clients", "no", "--tls-cert-file", &path("own.pem")];
        let rest = ["--tls-key-file", &path("own.key"), "--tls-ca-cert-file", &path("own.pem")];
        let mut cage = Cage::of(Redis::start_with(&[&tls[..], &rest].concat()));
        cage.url = format!("rediss://127.0.0.1:{port}/0");
        // Another key with the same name is not the server's.
        cage.more = format!("ca_file = \"{}\"", path("other.pem"));
        let refused = doctor(&cage.config(free_port()));
        assert_eq!(finding(&refused, "redis").unwrap()["health"], "red", "{refused:#}");
        cage.more = format!("ca_file = \"{}\"", path("own.pem"));
        cage.kept.push(Box::new(files));
        cage.holds().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis.sock").display().to_string();
    let mut cage = Cage::of(Redis::start_with(&["--unixsocket", &socket]));
    cage.url = format!("unix://{socket}");
    cage.kept.push(Box::new(directory));
    cage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_master_that_a_sentinel_names() {
    let mut cage = Cage::plain();
    let sentinel = Sentinel::watching(&cage.harness.redis);
    cage.url = "redis://builds/0".into();
    cage.more = format!("sentinels = [\"redis://127.0.0.1:{}\"]", sentinel.port);
    cage.kept.push(Box::new(sentinel));
    cage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifth_of_a_second_away() {
    let cage = Cage::plain();
    let wire = Wire { one_way: Duration::from_millis(100), forgets_after: None };
    let port = wire.to(cage.harness.redis.port()).await;
    cage.through(port).holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_balancer_that_forgets_idle_connections() {
    let cage = Cage::plain();
    let wire = Wire { one_way: Duration::ZERO, forgets_after: Some(Duration::from_millis(800)) };
    let port = wire.to(cage.harness.redis.port()).await;
    let mut cage = cage.through(port);
    // Each forgotten connection costs a timeout, and then a new connection.
    cage.more = "timeout = \"300ms\"".into();
    cage.settings = "jobs.probe = true\njobs.poll_interval = \"1s\"\n";
    cage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_replica_the_worker_is_not_ready_and_says_why() {
    let master = Redis::start();
    let cage = Cage::of(Redis::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()]));
    let port = free_port();
    let config = cage.config(port);
    let worker = cage.harness.worker_with(&config, &[]);
    wait_for("the log message", || worker.log().contains("read only replica")).await;
    assert_eq!(ready(port).await, (503, "Redis has no lease of this worker\n".into()));
    assert_eq!(finding(&doctor(&config), "redis role").unwrap()["health"], "red");
    let traffic = Traffic::of_an_idle_worker(&cage.harness.redis, IDLE).await;
    assert!(traffic.is_within(IDLE), "{traffic:?}");
}

/// Whatever other programs put into Redis, an idle worker looks at it once.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_crowd_of_other_programs() {
    let mut cage = Cage::plain();
    let mut connection = cage.harness.redis.connection().await;
    let lock = r#""lock":"until_executed""#;
    let job = |n: usize| format!(r#"{{"class":"MailJob","args":["{}"],"jid":"{n:024x}",{lock}}}"#, "x".repeat(200));
    let numbers: Vec<usize> = (0..20_000).collect();
    for numbers in numbers.chunks(1000) {
        let mut fill = redis::pipe();
        for set in ["retry", "schedule"] {
            let members: Vec<(usize, String)> = numbers.iter().map(|n| (*n, job(*n))).collect();
            fill.zadd_multiple(set, &members).ignore();
        }
        fill.lpush("queue:mails", numbers.iter().map(|n| job(*n)).collect::<Vec<_>>()).ignore();
        fill.sadd("processes", numbers.iter().take(50).map(|n| format!("rails:{n}:abcdef")).collect::<Vec<_>>())
            .ignore();
        fill.exec_async(&mut connection).await.unwrap();
    }
    // Running jobs with long arguments: seven megabytes.
    for _ in 0..3 {
        let mut arguments = probe("succeed", 600.0);
        arguments[0]["text"] = json!("x".repeat(2_300_000));
        cage.harness.redis.push("default", "Sidebake::Probe", arguments).await;
    }
    cage.settings = SHORTENED;
    let worker = cage.harness.worker_with(&cage.config(free_port()), &[]);
    let n_shown = async || {
        let shown = cage.harness.redis.keys("*:workers").await;
        let mut connection = cage.harness.redis.connection().await;
        match shown.first() {
            Some(key) => redis::cmd("HLEN").arg(key).query_async::<usize>(&mut connection).await.unwrap(),
            None => 0,
        }
    };
    cage.harness.until("Sidekiq shows the running jobs", async || n_shown().await == 3).await;
    let traffic = Traffic::of_an_idle_worker(&cage.harness.redis, IDLE).await;
    assert!(traffic.is_within(IDLE), "{traffic:?}");
    assert!(worker.logged("job_missing").is_empty(), "{}", worker.log());
    assert_eq!(cage.harness.redis.sorted_set("retry").await.len(), 20_000);
}

/// A network between a worker and Redis.
#[derive(Clone, Copy)]
struct Wire {
    /// The time that bytes take.
    one_way: Duration,
    /// After this time without bytes nothing passes any more, and neither side is told.
    forgets_after: Option<Duration>,
}

impl Wire {
    /// Returns a port that leads to Redis.
    async fn to(self, redis_port: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", redis_port)).await else { return };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                tokio::spawn(self.connect(client, server));
            }
        });
        port
    }

    async fn connect(self, client: TcpStream, server: TcpStream) {
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let last = Arc::new(std::sync::Mutex::new(Instant::now()));
        let [requests, replies] = [Arc::clone(&last), last];
        tokio::join!(self.pass(from_client, to_server, requests), self.pass(from_server, to_client, replies));
    }

    /// Passes bytes on, each after its time on the way.
    async fn pass(
        self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        last: Arc<std::sync::Mutex<Instant>>,
    ) {
        let (send, mut arriving) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let read = async {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(n @ 1..) = from.read(&mut chunk).await {
                let before = std::mem::replace(&mut *last.lock().unwrap(), Instant::now());
                if self.forgets_after.is_some_and(|limit| before.elapsed() > limit) {
                    // Its peer waits for an answer until it gives up.
                    let _ = timeout(Duration::from_secs(60), std::future::pending::<()>()).await;
                }
                send.send((Instant::now() + self.one_way, chunk[..n].to_vec())).unwrap();
            }
            drop(send);
        };
        let write = async {
            while let Some((at, bytes)) = arriving.recv().await {
                sleep_until(at).await;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(read, write);
    }
}
