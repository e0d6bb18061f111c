//! Redis behind TLS, an ACL, a Unix socket or Sentinel; read-only, loading, without tracking, or as a cluster.

use std::path::Path;

use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use world::{Redis, free_port};

use crate::harness::{Harness, probe, sidebake};
use crate::relay::{Relay, is_command};
use crate::scripts::Scripts;

/// A harness with this Redis.
fn harness_with(redis: Redis) -> Harness {
    let mut harness = Harness::start();
    harness.redis = redis;
    harness
}

/// A worker that connects to Redis in another way than the tests do.
fn settings(url: &str, more: &str) -> String {
    format!("jobs.probe = true\nlease.ttl = \"1s\"\n[redis]\nurl = \"{url}\"\n{more}\n")
}

/// The configuration, with other settings for Redis.
fn config(harness: &Harness, more: &str) -> std::path::PathBuf {
    let path = harness.config(more);
    let text = std::fs::read_to_string(&path).unwrap();
    let plain = format!("redis.url = \"{}\"\n", harness.redis.url());
    std::fs::write(&path, text.replacen(&plain, "", 1)).unwrap();
    path
}

/// Runs two jobs, and another one that is pushed while the worker is idle.
async fn works(harness: &Harness, config: &Path) {
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    harness.redis.push("default", "Sidebake::Probe", probe("infrastructure", 0.0)).await;
    let mut worker = harness.worker_with(config, &[]);
    harness.callbacks(1).await;
    harness
        .until("the other job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1)
        .await;
    harness.until("the process is listed", async || !harness.redis.smembers("processes").await.is_empty()).await;
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    harness.callbacks(2).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert!(!worker.log().contains("NOPERM"), "{}", worker.log());
    harness.idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_a_private_authority_and_client_certificates() {
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "an authority of its own");
    std::fs::write(path("ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let port = free_port();
    let redis = Redis::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
    ]);
    let harness = harness_with(redis);
    let certificates = format!(
        "ca_file = \"{}\"\nclient_certificate_file = \"{}\"\nclient_key_file = \"{}\"",
        path("ca.pem"),
        path("client.pem"),
        path("client.key")
    );
    let config = config(&harness, &settings(&format!("rediss://localhost:{port}/0"), &certificates));
    works(&harness, &config).await;

    // Without its certificate, the server refuses the client. Without the authority, the client refuses the server.
    let ca = format!("ca_file = \"{}\"", path("ca.pem"));
    for lacking in [ca.as_str(), ""] {
        let config = self::config(&harness, &settings(&format!("rediss://localhost:{port}/0"), lacking));
        let refused = sidebake_doctor(&config);
        assert_eq!(refused[0]["health"], "red", "{refused:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_documented_acl() {
    let document = include_str!("../../docs/redis.md");
    let acl =
        document.lines().find(|line| line.starts_with("ACL SETUSER sidebake ")).expect("docs/redis.md has the ACL");
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let mut words = acl.split(' ');
    redis::cmd(words.next().unwrap()).arg(words.collect::<Vec<_>>()).exec_async(&mut connection).await.unwrap();
    let url = harness.redis.url().replace("redis://", "redis://sidebake:PASSWORD@");
    let config = config(&harness, &settings(&url, ""));
    works(&harness, &config).await;

    // Recovery needs additional rights.
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 4.0)).await;
    let mut first = harness.worker_with(&config, &[]);
    harness.is_in_flight().await;
    first.signal("KILL");
    first.ended().await;
    let second = harness.worker_with(&config, &[]);
    harness.callbacks(3).await;
    assert!(!second.log().contains("NOPERM"), "{}", second.log());
    let findings = sidebake_doctor(&config);
    assert!(findings.as_array().unwrap().iter().all(|finding| finding["name"] != "redis tracking"), "{findings:#}");
    let commands = findings.as_array().unwrap().iter().find(|finding| finding["name"] == "redis commands");
    assert_eq!(commands.unwrap()["health"], "green", "{findings:#}");
    assert_eq!(findings[0]["health"], "green", "{findings:#}");
    // An idle worker wakes up, whatever the version.
    assert!(harness.logged("tracking_refused").is_empty(), "{}", harness.logs());
    let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.unwrap();
    let flags = clients.lines().filter_map(|line| line.split("flags=").nth(1)?.split(' ').next());
    assert!(flags.filter(|flags| flags.contains('t')).count() >= 1, "{clients}");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis.sock").display().to_string();
    let harness = harness_with(Redis::start_with(&["--unixsocket", &socket]));
    let config = config(&harness, &settings(&format!("unix://{socket}"), ""));
    works(&harness, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_refused_at_start() {
    let harness = harness_with(Redis::start_with(&["--cluster-enabled", "yes"]));
    let mut worker = harness.worker("");
    assert_eq!(worker.ended().await, Some(1));
    assert!(worker.log().contains("Redis Cluster"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tracking_the_worker_polls_and_the_log_and_doctor_report_it() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    // All of CLIENT, because Redis 6 cannot forbid a subcommand alone.
    let rights = ["SETUSER", "plain", "on", ">secret", "~*", "+@all", "-client"];
    redis::cmd("ACL").arg(&rights).exec_async(&mut connection).await.unwrap();
    let url = harness.redis.url().replace("redis://", "redis://plain:secret@");
    let config = config(&harness, &settings(&url, ""));
    let worker = harness.worker_with(&config, &[]);
    world::wait_for("the log message", || !worker.logged("tracking_refused").is_empty()).await;
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    harness.callbacks(1).await;
    let findings = sidebake_doctor(&config);
    let tracking = findings.as_array().unwrap().iter().find(|finding| finding["name"] == "redis tracking");
    assert_eq!(tracking.unwrap()["health"], "yellow", "{findings:#}");
}

/// The finding of `sidebake doctor` with this name.
fn finding(config: &Path, name: &str) -> Value {
    let findings = sidebake_doctor(config);
    let found = findings.as_array().unwrap().iter().find(|finding| finding["name"] == name);
    found.unwrap_or_else(|| panic!("{name}: {findings:#}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_know_hello_or_client_is_polled() {
    for command in ["HELLO", "CLIENT"] {
        let harness = harness_with(Redis::start_with(&["--rename-command", command, ""]));
        let config = config(&harness, &settings(&harness.redis.url(), ""));
        works(&harness, &config).await;
        assert!(!harness.logged("tracking_refused").is_empty(), "{command}: {}", harness.logs());
        assert_eq!(finding(&config, "redis tracking")["health"], "yellow", "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_tracking_and_never_pushes_is_noticed() {
    let harness = Harness::start();
    let is_tracking = |request: &[Vec<u8>]| request.iter().any(|word| word.eq_ignore_ascii_case(b"tracking"));
    let rewrite = move |request: &mut Vec<Vec<u8>>, _| {
        if is_command(request, b"CLIENT") && is_tracking(request) {
            request[2] = b"OFF".to_vec();
        }
    };
    let scripts = Scripts::load(&harness.redis).await;
    let relay = Relay::to(harness.redis.port(), scripts, Some(std::sync::Arc::new(rewrite))).await;
    let config = config(&harness, &settings(&format!("redis://127.0.0.1:{}/0", relay.port), ""));
    let worker = harness.worker_with(&config, &[]);
    harness.until("the process is listed", async || !harness.redis.smembers("processes").await.is_empty()).await;
    for n in 1..=3 {
        harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
        harness.callbacks(n).await;
    }
    assert!(!worker.logged("tracking_silent").is_empty(), "{}", worker.log());
    assert!(worker.logged("tracking_refused").is_empty(), "{}", worker.log());
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
        let port = free_port();
        let tls = ["--tls-port", &port.to_string(), "--tls-auth-clients", "no"];
        let files = [
            "--tls-cert-file",
            &path("own.pem"),
            "--tls-key-file",
            &path("own.key"),
            "--tls-ca-cert-file",
            &path("own.pem"),
        ];
        let harness = harness_with(Redis::start_with(&[&tls[..], &files].concat()));
        let with =
            |name: &str| settings(&format!("rediss://127.0.0.1:{port}/0"), &format!("ca_file = \"{}\"", path(name)));
        let trusting = config(&harness, &with("own.pem"));
        works(&harness, &trusting).await;
        // Another key with the same name is not the server's.
        let refused = finding(&config(&harness, &with("other.pem")), "redis");
        assert_eq!(refused["health"], "red", "{refused:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_no_client_can_use_ends_the_worker_with_a_sentence() {
    let harness = Harness::start();
    for (url, expected) in [
        ("rediss://127.0.0.1:6379/0#insecure", "set ca_file to the server's certificate or its authority"),
        ("http://127.0.0.1", "expected redis://, rediss:// or unix://"),
    ] {
        let config = config(&harness, &settings(url, ""));
        let mut worker = harness.worker_with(&config, &[]);
        assert_eq!(worker.ended().await, Some(1));
        assert!(worker.log().contains("redis.url: ") && worker.log().contains(expected), "{}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_at_a_replica_is_not_ready_and_says_why() {
    let master = Redis::start();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    let harness = harness_with(replica);
    let port = free_port();
    let config =
        config(&harness, &format!("{}\n[health]\nlisten = \"127.0.0.1:{port}\"", settings(&harness.redis.url(), "")));
    let worker = harness.worker_with(&config, &[]);
    world::wait_for("the log message", || worker.log().contains("read only replica")).await;
    let answer = reqwest::get(format!("http://127.0.0.1:{port}/ready")).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.text().await.unwrap(), "Redis has no lease of this worker\n");
    assert_eq!(finding(&config, "redis role")["health"], "red");
}

/// A job ends while Redis refuses commands. After `mend`, the worker settles it exactly once.
async fn a_result_waits_out(harness: &Harness, refusal: &str, refuse: impl AsyncFn(), mend: impl AsyncFn()) {
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 1.0)).await;
    let worker = harness.worker("jobs.probe = true");
    harness.is_in_flight().await;
    refuse().await;
    let is_logged = || worker.logged("redis_unavailable").iter().any(|line| line.contains(refusal));
    world::wait_for("the log message", is_logged).await;
    mend().await;
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    harness.idle().await;
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("1"));
    assert!(!worker.logged("redis_back").is_empty(), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_read_only_results_wait() {
    let harness = Harness::start();
    let follow = async |whom: [String; 2]| {
        redis::cmd("REPLICAOF").arg(&whom).exec_async(&mut harness.redis.connection().await).await.unwrap();
    };
    // Its master does not exist, so the replica keeps its data.
    let refuse = async || follow(["127.0.0.1".into(), world::free_port().to_string()]).await;
    a_result_waits_out(&harness, "a read only replica", refuse, async || follow(["NO".into(), "ONE".into()]).await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_loads_its_file_results_wait() {
    // While it loads the file, Redis answers clients with a refusal after every 1024 commands.
    let slowly = ["--appendonly", "yes", "--appendfsync", "always", "--key-load-delay", "1000"];
    let harness = harness_with(Redis::start_with(&slowly));
    let script = "for i = 1, 4096 do redis.call('SET', 'other:' .. i, i) end";
    let fill = redis::cmd("EVAL").arg(&[script, "0"]).to_owned();
    fill.exec_async(&mut harness.redis.connection().await).await.unwrap();
    let refuse = async || tokio::task::block_in_place(|| harness.redis.restart());
    a_result_waits_out(&harness, "is loading the dataset", refuse, async || {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_by_sentinel_loses_neither_the_worker_nor_its_result() {
    let master = Redis::start();
    let mut replica = Redis::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    let sentinel = Sentinel::watching(&master);
    let mut harness = harness_with(master);
    let more = format!("sentinels = [\"redis://127.0.0.1:{}\"]\ntimeout = \"1s\"", sentinel.port);
    // A lease longer than the failover, so that no worker treats this one as dead.
    let settings = settings("redis://builds/0", &more).replace("lease.ttl = \"1s\"", "lease.ttl = \"60s\"");
    let config = config(&harness, &settings);
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 8.0)).await;
    let worker = harness.worker_with(&config, &[]);
    harness.is_in_flight().await;
    harness
        .until("the replica has the job", async || {
            let keys: Vec<String> = redis::cmd("KEYS")
                .arg("sidebake:inflight:*")
                .query_async(&mut replica.connection().await)
                .await
                .unwrap();
            !keys.is_empty() && sentinel.knows_a_replica().await
        })
        .await;

    harness.redis.stop();
    std::mem::swap(&mut harness.redis, &mut replica);
    world::wait_for_within(crate::harness::PATIENCE, "the replica to become the master", || {
        let role = std::process::Command::new("redis-cli")
            .args(["-p", &harness.redis.port().to_string(), "role"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&role.stdout).starts_with("master")
    })
    .await;
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((report["jid"].as_str(), report["status"].as_str()), (Some(jid.as_str()), Some("succeeded")));
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    harness.callbacks(2).await;
    assert!(!worker.logged("redis_back").is_empty(), "{}", worker.log());
    harness.idle().await;
}

/// The findings of `sidebake doctor --json`, with Redis first.
fn sidebake_doctor(config: &Path) -> Value {
    let mut doctor = sidebake();
    let output = doctor.args(["doctor", "--json", "--config"]).arg(config).stdin(Stdio::null()).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A Redis Sentinel that knows a master named `builds`.
struct Sentinel {
    port: u16,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Sentinel {
    fn watching(master: &Redis) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, file) = (free_port(), directory.path().join("sentinel.conf"));
        let settings = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor builds 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds builds 1000\nsentinel failover-timeout builds 5000\n",
            directory.path().display(),
            master.port()
        );
        std::fs::write(&file, settings).unwrap();
        let mut server = Command::new(world::redis_server());
        let child = server.arg(file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Self { port, child, _directory: directory }
    }

    async fn knows_a_replica(&self) -> bool {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
        let replicas: Vec<redis::Value> =
            redis::cmd("SENTINEL").arg(&["replicas", "builds"]).query_async(&mut connection).await.unwrap_or_default();
        !replicas.is_empty()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
