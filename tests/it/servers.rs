//! Redis behind TLS with client certificates, or behind the documented ACL; as a cluster; and during outages and failovers. `zoo` has the
//! other kinds of servers.

use std::path::Path;

use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use world::{Redis, free_port};

use crate::harness::{Harness, probe, sidebake};

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
async fn a_cluster_is_refused_at_start() {
    let harness = harness_with(Redis::start_with(&["--cluster-enabled", "yes"]));
    let mut worker = harness.worker("");
    assert_eq!(worker.ended().await, Some(1));
    assert!(worker.log().contains("Redis Cluster"), "{}", worker.log());
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

/// A job ends while Redis refuses commands. After `mend`, the worker settles it exactly once.
async fn a_result_waits_out(harness: &Harness, refusal: &str, refuse: impl AsyncFn(), mend: impl AsyncFn()) {
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 3.0)).await;
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
pub struct Sentinel {
    pub port: u16,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Sentinel {
    pub fn watching(master: &Redis) -> Self {
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
