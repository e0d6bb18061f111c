//! The broker of a child's connections: what a program sees of it, and when it ends. `walls.rs` has what it refuses.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use world::wait_for_within;

use crate::harness::{Harness, PATIENCE};
use crate::walls::sidebake_on;

/// Streams that servers have open now.
static N_OPEN: AtomicUsize = AtomicUsize::new(0);

struct Servers {
    directory: tempfile::TempDir,
    ground: Value,
    ports: Vec<u16>,
}

impl Servers {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let unix = directory.path().join("socket");
        let listen = |host: &str| TcpListener::bind((host, 0)).unwrap();
        let [echo, echo_v6, silent, refused] = ["127.0.0.1", "::1", "127.0.0.1", "127.0.0.1"].map(listen);
        let datagrams = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let ground = json!({
            "echo": address(&echo), "echo_v6": address(&echo_v6), "unix": unix, "silent": address(&silent),
            "refused": address(&refused), "datagrams": datagrams.local_addr().unwrap(),
        });
        let ports = [&echo, &echo_v6, &silent].map(|listener| address(listener).port()).to_vec();
        drop(silent);
        let listener = UnixListener::bind(unix).unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(answer));
        for listener in [echo, echo_v6, refused] {
            std::thread::spawn(move || listener.incoming().flatten().for_each(answer));
        }
        std::thread::spawn(move || {
            while let Ok((_, from)) = datagrams.recv_from(&mut [0]) {
                datagrams.send_to(b"x", from).unwrap();
            }
        });
        Self { directory, ground, ports }
    }

    fn table(&self) -> PathBuf {
        self.directory.path().join("table")
    }

    /// Runs the probe in a sandbox, and returns it with the table once that has ended.
    async fn probe(&self, is_brokered: bool) -> (Child, Vec<String>) {
        let _ = std::fs::remove_file(self.table());
        let ground = self.directory.path().join("ground.json");
        std::fs::write(&ground, self.ground.to_string()).unwrap();
        let probe = Path::new(env!("CARGO_BIN_EXE_sidebake")).with_file_name("socket-probe");
        let mut system = sidebake::sandbox::libraries();
        system.push(ground.clone());
        let mut execute = sidebake::sandbox::loaders();
        execute.push(probe.clone());
        let sandbox = json!({
            "enforcement": "Required", "system": system, "execute": execute, "read": [],
            "write": [self.directory.path(), "/dev/null"], "sockets": {"TcpAndUnix": self.ports}, "is_brokered": is_brokered,
            "limits": {"data_bytes": 1 << 30, "cpu_seconds": null, "file_bytes": 1 << 20, "stack_bytes": null},
        });
        let child = Command::new(env!("CARGO_BIN_EXE_sidebake"))
            .args(["sandboxed-exec", &sandbox.to_string(), &std::process::id().to_string()])
            .args([&probe, &ground, &self.table()])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let read = || std::fs::read_to_string(self.table()).unwrap_or_default();
        wait_for_within(PATIENCE, "the probe ends", || read().ends_with("end\n")).await;
        (child, read().lines().map(str::to_owned).collect())
    }
}

fn answer(mut stream: impl Read + Write + Send + 'static) {
    N_OPEN.fetch_add(1, Ordering::SeqCst);
    std::thread::spawn(move || {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        N_OPEN.fetch_sub(1, Ordering::SeqCst);
    });
}

/// The state of a process and its parent.
fn stat(id: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ').map(str::to_owned);
    Some((fields.next()?, fields.next()?.parse().ok()?))
}

/// Gone, or dead and not yet reaped.
fn is_gone(id: u32) -> bool {
    stat(id).is_none_or(|(state, _)| state == "Z")
}

/// Dead and not yet reaped.
fn is_dead(id: u32) -> bool {
    stat(id).is_some_and(|(state, _)| state == "Z")
}

/// The children of a process that still run.
fn children_of(parent: u32) -> Vec<u32> {
    let ids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| !is_gone(*id) && stat(*id).is_some_and(|(_, of)| of == parent)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_sees_no_difference_and_its_connections_end_when_it_closes_them() {
    let servers = Servers::start();
    let (mut without, expected) = servers.probe(false).await;
    assert!(children_of(without.id()).is_empty());
    without.kill().unwrap();
    without.wait().unwrap();
    let (mut with, found) = servers.probe(true).await;
    // On an older kernel, only the broker refuses a port.
    let split = |lines: Vec<String>| lines.into_iter().partition::<Vec<_>, _>(|line| line.contains("refused port"));
    let ((_, expected), (refused, found)) = (split(expected), split(found));
    assert_eq!(found, expected);
    assert_eq!(found.iter().filter(|line| line.ends_with(": ok")).count(), 12, "{found:#?}");
    assert!(refused.len() == 2 && refused.iter().all(|line| line.contains("Permission denied")), "{refused:#?}");
    // While the program still runs.
    wait_for_within(Duration::from_secs(20), "no stream is open", || N_OPEN.load(Ordering::SeqCst) == 0).await;
    with.kill().unwrap();
    with.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_ends_with_its_program_and_a_program_without_its_broker_connects_nowhere() {
    let servers = Servers::start();
    let (mut program, _) = servers.probe(true).await;
    let [broker] = children_of(program.id())[..] else { panic!("one broker") };
    program.kill().unwrap();
    program.wait().unwrap();
    wait_for_within(PATIENCE, "the broker ends", || is_gone(broker)).await;

    let (mut program, _) = servers.probe(true).await;
    let [broker] = children_of(program.id())[..] else { panic!("one broker") };
    let (mut stdin, mut stdout) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
    let mut connect = || {
        stdin.write_all(b"x").unwrap();
        let mut line = [0; 64];
        let n = stdout.read(&mut line).unwrap();
        String::from_utf8_lossy(&line[..n]).trim().to_owned()
    };
    assert_eq!(connect(), "Ok(())");
    assert!(Command::new("kill").args(["-KILL", &broker.to_string()]).status().unwrap().success());
    wait_for_within(PATIENCE, "the broker ends", || children_of(program.id()).is_empty()).await;
    assert_eq!(connect(), format!("Err(Some({}))", libc::ENOSYS));
    program.kill().unwrap();
    program.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_brokers_builds_where_ports_are_required_and_leaves_no_process_when_it_is_killed() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let config = harness.config("sandbox.require_ports = true");
    let mut command = sidebake_on("traced:3");
    command.args(["run", "--config"]).arg(&config);
    let worker = harness.home.spawn(command);
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
    let sandbox = harness.logged("start_sandbox");
    assert!(sandbox.len() == 1 && sandbox[0].contains("is_brokered=true"), "{sandbox:?}");
    assert!(harness.logged("sandbox_incomplete").is_empty());
    // Its child left it a broker, as a child leaves one to process 1 of a container.
    harness.until("no dead process is left", async || worker.processes().iter().all(|id| !is_dead(*id))).await;

    harness.git.faults().delay("/acme", Duration::from_secs(1000));
    let sha = harness.git.repository("acme/voting-app").commit(&[("vote/Dockerfile", "FROM base")]);
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    // The source child and its broker.
    harness.until("a child with its broker runs", async || worker.source_children().len() == 2).await;
    let processes = worker.processes();
    worker.kill();
    harness.until("no process is left", async || processes.iter().all(|id| is_gone(*id))).await;
}
