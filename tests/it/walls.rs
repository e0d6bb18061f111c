//! What each kind of child can reach: the test runs all attempts of `sandbox-probe` in the product's sandboxes.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use sidebake::state::StateDirectory;

use crate::harness::{Harness, Worker, sidebake, text};

/// A line for each attempt: its name, the wall that stops it, and its outcome in each kind of child.
const TABLE: &str = include_str!("walls.txt");

const KINDS: [&str; 4] = ["source", "print", "solve", "unix"];

/// Attempts and their outcomes, in order.
type Outcomes = Vec<(String, String)>;

struct Prison {
    harness: Harness,
    worker: Worker,
    sibling: Child,
    _listeners: [UnixListener; 2],
    /// On the allowed ports of another host.
    _elsewhere: [TcpListener; 2],
    /// The id of a running process, because the worker would remove the directory of another.
    _other: StateDirectory,
    abstract_socket: String,
}

impl Prison {
    fn build(binary: &Path) -> Self {
        Self::build_on(None, binary)
    }

    /// The same with a worker as on an older kernel.
    fn build_on(kernel: Option<&str>, binary: &Path) -> Self {
        let harness = Harness::start();
        let home = harness.home.path();
        let installed = home.join("docker-buildx");
        std::fs::remove_file(&installed).unwrap();
        assert!(Command::new("cp").arg(binary).arg(&installed).status().unwrap().success());
        std::fs::write(home.join("program"), "no program").unwrap();
        assert!(Command::new("chmod").arg("755").arg(home.join("program")).status().unwrap().success());
        let other = StateDirectory::open(&home.join("state"), "other").unwrap();
        for directory in ["state/run/other/0/secrets", "state/mirrors/branch/host/7/mirror"] {
            std::fs::create_dir_all(home.join(directory)).unwrap();
        }
        std::fs::write(home.join("state/run/other/0/secrets/0"), "hunter2").unwrap();
        let socket = home.join("engine.sock");
        let more = format!(
            "sandbox.registry_ports = [{}]\nbuilders.local = {{ driver = \"docker\", endpoint = \"unix://{}\" }}",
            harness.builder.port(),
            socket.display()
        );
        let abstract_socket = format!("sidebake-{}", home.file_name().unwrap().to_str().unwrap());
        let name = SocketAddr::from_abstract_name(&abstract_socket).unwrap();
        let listeners = [UnixListener::bind(socket).unwrap(), UnixListener::bind_addr(&name).unwrap()];
        let elsewhere =
            [harness.builder.port(), harness.git.port()].map(|port| TcpListener::bind(("127.0.0.2", port)).unwrap());
        let worker = kernel.map_or_else(
            || harness.worker(&more),
            |kernel| {
                let mut command = sidebake_on(kernel);
                command.args(["run", "--config"]).arg(harness.config(&more));
                harness.home.spawn(command)
            },
        );
        let sibling = Command::new("sleep").arg("1000").spawn().unwrap();
        Self { harness, worker, sibling, _listeners: listeners, _elsewhere: elsewhere, _other: other, abstract_socket }
    }

    fn ground(&self, stage: &str, allowed_port: u16) -> Value {
        let home = self.harness.home.path();
        json!({
            "stage": stage, "key": home.join("app.pem"), "configuration": home.join("sidebake.toml"),
            "other_job": home.join("state/run/other/0"), "other_mirror": home.join("state/mirrors/branch/host/7/mirror"),
            "program": home.join("program"), "worker": self.worker.pid(), "sibling": self.sibling.id(),
            "allowed_port": allowed_port, "refused_port": self.harness.redis.port(), "socket": home.join("engine.sock"),
            "abstract_socket": self.abstract_socket, "variable": "SIDEBAKE__LOG__LEVEL", "loader_is_given": false, "inherited": inherited(),
        })
    }

    /// Runs in place of docker-buildx, in the sandbox that the worker makes for it.
    async fn as_buildx(&self, stage: &str, builder: &str) -> Outcomes {
        let mut ground = self.ground(stage, self.harness.builder.port());
        ground["source"] = json!("Dockerfile");
        if stage == "solve" {
            // The directory does not exist yet, but its path is known: the first job has directory 0, the next one 1.
            let job = self.run_directory().join("0/tree/voting-app/vote/Dockerfile");
            ground["source"] = json!(job);
        } else {
            ground["source"] = json!("vote/Dockerfile");
        }
        let files = [("vote/Dockerfile", "FROM base"), ("vote/ground.json", &ground.to_string())];
        let sha = self.harness.git.repository("acme/voting-app").commit(&files);
        let mut native = self.harness.native(&sha);
        native["builder"] = json!(builder);
        self.harness.redis.push("default", "BuildJob", json!([native])).await;
        self.table(&self.run_directory().join(format!("0/{stage}/tmp/table"))).await
    }

    fn run_directory(&self) -> PathBuf {
        let runs = std::fs::read_dir(self.harness.home.path().join("state/run")).unwrap().flatten();
        let mut runs = runs.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.ends_with("other"));
        runs.next().expect("the worker has started")
    }

    async fn table(&self, path: &Path) -> Outcomes {
        let read = || std::fs::read_to_string(path).unwrap_or_default();
        self.harness.until("the probe ends", async || read().ends_with("end\n")).await;
        let lines = read();
        let pairs = lines.lines().filter_map(|line| line.split_once(": "));
        pairs.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect()
    }

    /// The sandbox of a source child during its fetch.
    async fn source_sandbox(&self) -> Value {
        let (_, sha) = self.harness.voting_app();
        self.harness.git.faults().delay("/acme", std::time::Duration::from_secs(2));
        self.harness.redis.push("default", "BuildJob", json!([self.harness.native(&sha)])).await;
        self.harness.until("a child runs", async || !self.worker.source_children().is_empty()).await;
        let child = self.worker.source_children()[0];
        let command_line = std::fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap();
        serde_json::from_str(command_line.split('\0').nth(2).unwrap()).unwrap()
    }

    /// Runs the probe in this sandbox, with the one change that lets it start.
    async fn inside(&self, sandbox: Value) -> Outcomes {
        self.inside_on(sandbox, sidebake()).await
    }

    /// The same with the binary as this command starts it.
    async fn inside_on(&self, mut sandbox: Value, mut sidebake: Command) -> Outcomes {
        let own = sandbox["write"][0].as_str().unwrap().to_owned();
        let own = if own == "/" { self.harness.home.path().join("own") } else { own.into() };
        let table = own.join("table");
        std::fs::create_dir_all(&own).unwrap();
        let _ = std::fs::remove_file(&table);
        let mut ground = self.ground("", self.harness.git.port());
        ground["own"] = json!(own);
        ground["loader_is_given"] = json!(true);
        let file = self.harness.home.path().join("ground.json");
        std::fs::write(&file, ground.to_string()).unwrap();
        sandbox["system"].as_array_mut().unwrap().push(json!(file));
        let execute = sandbox["execute"].as_array_mut().unwrap();
        execute.extend([json!(probe()), json!("/lib64/ld-linux-x86-64.so.2"), json!("/lib/ld-linux-aarch64.so.1")]);
        let mut child = sidebake
            .args(["sandboxed-exec", &sandbox.to_string(), &std::process::id().to_string()])
            .args([&probe(), &file, &table])
            .env_clear()
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let outcomes = self.table(&table).await;
        child.kill().unwrap();
        child.wait().unwrap();
        outcomes
    }
}

impl Drop for Prison {
    fn drop(&mut self) {
        let _ = self.sibling.kill();
        let _ = self.sibling.wait();
    }
}

/// Descriptors that every child of this process inherits from the process that started the tests.
fn inherited() -> Vec<u32> {
    const CLOEXEC: u32 = 0o2_000_000;
    let is_for_all = |number: &u32| {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = about.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_some_and(|flags| u32::from_str_radix(flags.trim(), 8).unwrap() & CLOEXEC == 0)
    };
    let names = std::fs::read_dir("/proc/self/fd").unwrap().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).filter(is_for_all).collect()
}

fn probe() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_sidebake")).with_file_name("sandbox-probe")
}

/// The binary as on a kernel with an older Landlock.
pub fn sidebake_on(kernel: &str) -> Command {
    world::sidebake_on(kernel, env!("CARGO_BIN_EXE_sidebake"))
}

/// The lines of the table: attempt, wall, and an outcome for each kind of child.
fn table() -> Vec<Vec<&'static str>> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split('|').map(str::trim).collect()).collect()
}

/// The Landlock version that first restricts abstract Unix sockets and signals.
fn landlock_version(harness: &Harness) -> u32 {
    let output = harness.run(&["doctor", "--json"], "");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let sandbox = findings.iter().find(|finding| finding["name"] == "sandbox").unwrap();
    let detail = sandbox["detail"].as_str().unwrap();
    let version = detail.strip_prefix("Landlock ABI ").and_then(|rest| rest.split(' ').next());
    version.unwrap_or_else(|| panic!("{detail}")).parse().unwrap()
}

/// All attempts in each kind of child, one line for each, on this kernel or as on an older one.
async fn outcomes_on(kernel: Option<&str>) -> Vec<String> {
    let mut found: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    let mut attempts: Vec<String> = Vec::new();
    for kind in KINDS {
        let prison = Prison::build_on(kernel, &probe());
        prison.harness.until("the worker has started", async || prison.started()).await;
        let outcomes = match kind {
            "source" => {
                let sandbox = prison.source_sandbox().await;
                prison.inside_on(sandbox, kernel.map_or_else(sidebake, sidebake_on)).await
            }
            "print" => prison.as_buildx("print", "default").await,
            "solve" => prison.as_buildx("solve", "default").await,
            _ => prison.as_buildx("solve", "local").await,
        };
        // A solve makes all attempts.
        attempts = outcomes.iter().map(|(attempt, _)| attempt.clone()).collect();
        found.insert(kind, outcomes.into_iter().collect());
    }
    let cell = |kind: &str, attempt: &str| found[kind].get(attempt).map_or("-", String::as_str).to_owned();
    let line = |attempt: &String| {
        let cells: Vec<String> = KINDS.iter().map(|kind| cell(kind, attempt)).collect();
        format!("{attempt} | {}", cells.join(" | "))
    };
    attempts.iter().map(line).collect()
}

fn assert_equal(found: &[String], expected: &[String]) {
    let lacking = |of: &[String], other: &[String]| -> String {
        of.iter().filter(|line| !other.contains(line)).map(|line| format!("\n  {line}")).collect()
    };
    assert!(found == expected, "found:{}\nexpected:{}", lacking(found, expected), lacking(expected, found));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_escape_attempt_ends_as_the_table_says() {
    let expected: Vec<String> = table().iter().map(|line| format!("{} | {}", line[0], line[2..].join(" | "))).collect();
    assert_equal(&outcomes_on(None).await, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_older_kernel_brokers_keep_every_kind_of_child_from_ports() {
    const DEVICE: &str = "send a command to a device";
    let expected = |line: &Vec<&str>| match line[0] {
        DEVICE => format!("{DEVICE} | {}", ["ENOTTY"; 4].join(" | ")),
        attempt => format!("{attempt} | {}", line[2..].join(" | ")),
    };
    let expected: Vec<String> = table().iter().map(expected).collect();
    for kernel in ["traced:1", "traced:3"] {
        assert_equal(&outcomes_on(Some(kernel)).await, &expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_wall_an_attempt_ends_differently() {
    let prison = Prison::build(&probe());
    prison.harness.until("the worker has started", async || prison.started()).await;
    let sandbox = prison.source_sandbox().await;
    let mut off = sandbox.clone();
    off["enforcement"] = json!("Off");
    let mut wide = sandbox;
    for right in ["system", "write", "execute"] {
        wide[right] = json!(["/"]);
    }
    wide["sockets"] = json!({"Tcp": [prison.harness.git.port(), prison.harness.redis.port()]});
    let (off, wide) = (prison.inside(off).await, prison.inside(wide).await);
    let (off, wide): (BTreeMap<_, _>, BTreeMap<_, _>) = (off.into_iter().collect(), wide.into_iter().collect());
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut wrong = Vec::new();
    for line in table() {
        let [attempt, wall, with, ..] = line[..] else { panic!("{line:?}") };
        let (Some(off), Some(wide)) = (off.get(attempt), wide.get(attempt)) else { continue };
        let is_right = match wall {
            // Without their rules, with everything else.
            "Landlock files" | "Landlock ports" => wide != with,
            "Landlock always" | "seccomp" | "no_new_privs" => wide == with && off != with,
            "capabilities" => wide == with && (off != with || !is_root),
            // Root with all its capabilities may raise them, so not without walls.
            "limits" => wide == with,
            "environment" | "kernel" | "nothing" => off == with,
            other => panic!("unknown wall {other:?}"),
        };
        if !is_right {
            wrong.push(format!("{attempt}: {with} by {wall}; {wide} without Landlock's rules, {off} without walls"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(landlock_version(&prison.harness) >= 4);
}

/// What gets further on older kernels that also refuse a broker: the attempt, how it ends there, and the last version of Landlock on which it does.
const FURTHER: [(&str, &str, u32); 2] = [("send a command to a device", "ENOTTY", 4), ("connect to Redis", "ok", 3)];

#[tokio::test(flavor = "multi_thread")]
async fn on_an_older_kernel_only_these_attempts_get_further() {
    let prison = Prison::build(&probe());
    prison.harness.until("the worker has started", async || prison.started()).await;
    let sandbox = prison.source_sandbox().await;
    let mut found = Vec::new();
    for version in 1..=4 {
        let outcomes: BTreeMap<_, _> =
            prison.inside_on(sandbox.clone(), sidebake_on(&version.to_string())).await.into_iter().collect();
        for line in table() {
            let [attempt, _, with, ..] = line[..] else { panic!("{line:?}") };
            let outcome = outcomes.get(attempt).map_or("-", String::as_str);
            if outcome != with {
                found.push((attempt, outcome.to_owned(), version));
            }
        }
    }
    let mut expected = Vec::new();
    for version in 1..=4 {
        let here = FURTHER.iter().filter(|(.., last)| *last >= version);
        expected.extend(here.map(|(attempt, outcome, _)| (*attempt, (*outcome).to_owned(), version)));
    }
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_an_older_kernel_builds_and_says_which_wall_is_missing() {
    for version in ["1", "3"] {
        let harness = Harness::start();
        let (_, sha) = harness.voting_app();
        let config = harness.config("");
        let mut command = sidebake_on(version);
        command.args(["run", "--config"]).arg(&config);
        let _worker = harness.home.spawn(command);
        harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
        let report = harness.callbacks(1).await.remove(0);
        assert_eq!(report["status"], "succeeded", "{report:#}\n{}", harness.logs());
        let warnings = harness.logged("sandbox_incomplete");
        assert!(warnings.len() == 1 && warnings[0].contains("Linux 6.7"), "{warnings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_not_start_without_a_wall_that_is_required() {
    let harness = Harness::start();
    for (kernel, more, expected) in [
        ("none", "", Some("sandbox.mode")),
        ("disabled", "", Some("sandbox.mode")),
        ("disabled", "sandbox.mode = \"best effort\"", None),
        ("3", "", None),
        ("3", "sandbox.require_ports = true", Some("sandbox.require_ports")),
        ("4", "sandbox.require_ports = true", None),
        ("traced:3", "sandbox.require_ports = true", None),
        // A broker needs what seccomp has from Linux 5.19 on.
        ("interrupted:1", "sandbox.require_ports = true", Some("Linux 5.19")),
        ("interrupted:1", "", None),
    ] {
        let doctor = |arguments: &[&str]| {
            let mut command = sidebake_on(kernel);
            command.args(arguments).arg("--config").arg(harness.config(more));
            command.stdin(Stdio::null()).output().unwrap()
        };
        let findings: Vec<Value> = serde_json::from_slice(&doctor(&["doctor", "--json"]).stdout).unwrap();
        let finding = findings.iter().find(|finding| finding["name"] == "sandbox").unwrap();
        let health = match (expected, kernel) {
            (Some(_), _) => "red",
            (None, "4" | "traced:3") => "green",
            (None, _) => "yellow",
        };
        assert_eq!(finding["health"], health, "{kernel} {more}: {finding}");
        if let Some(setting) = expected {
            let output = doctor(&["run"]);
            let text = text(&output);
            assert!(
                !output.status.success() && text.contains(setting) && text.contains("Linux"),
                "{kernel} {more}: {text}"
            );
        }
    }
}

impl Prison {
    fn started(&self) -> bool {
        let runs = std::fs::read_dir(self.harness.home.path().join("state/run")).into_iter().flatten().flatten();
        runs.filter(|entry| entry.path().is_dir()).count() == 2
    }
}
