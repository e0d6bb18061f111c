//! The parts of Sidekiq that operators know: flags, configuration file, signals and exit statuses.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::harness::{Harness, probe, sidebake, text};

fn run(arguments: &[&str]) -> Output {
    sidebake().arg("run").args(arguments).output().unwrap()
}

#[test]
fn a_failed_start_exits_with_status_1() {
    assert_eq!(run(&["-V"]).status.code(), Some(0));
    let home = tempfile::tempdir().unwrap();
    let yml = home.path().join("sidekiq.yml");
    std::fs::write(&yml, "---\n:concurrency: <%= ENV['N'] %>\n").unwrap();
    let yml = yml.to_str().unwrap();
    for (arguments, names) in [
        (vec!["--daemon"], vec!["--daemon"]),
        (vec!["-c", "0"], vec!["concurrency: ", "1000"]),
        (vec!["-q", "a,often"], vec!["a,often"]),
        (vec!["-C", "/nowhere/sidekiq.yml"], vec!["/nowhere/sidekiq.yml"]),
        (vec!["-C", yml], vec![yml, "line 2", "ERB"]),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        for name in names {
            assert!(text(&output).contains(name), "{arguments:?}: {}", text(&output));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sidekiqs_file_and_flags_are_accepted_unchanged() {
    let harness = Harness::start();
    let config = harness.config("jobs.probe = true");
    // A setting in sidebake's own file takes precedence.
    let own = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, own.replace("concurrency = 4\n", "").replace("queues = [\"default\"]\n", "")).unwrap();
    let yml = harness.home.path().join("sidekiq.yml");
    let text =
        ":concurrency: 3\n:queues:\n  - [critical, 2]\n  - default\n:pidfile: x\nstaging:\n  :labels: [canary]\n";
    std::fs::write(&yml, text).unwrap();
    let flags = ["-C", yml.to_str().unwrap(), "-e", "staging", "-r", "./config/environment.rb", "-g", "shop", "-v"];
    let mut worker = harness.worker_with(&config, &flags);
    harness.until("the process is listed", async || harness.redis.smembers("processes").await.len() == 1).await;
    let identity = harness.redis.smembers("processes").await.remove(0);
    let info: serde_json::Value = serde_json::from_str(&harness.redis.hgetall(&identity).await["info"]).unwrap();
    assert_eq!((&info["concurrency"], &info["tag"], &info["labels"][0]), (&3.into(), &"shop".into(), &"canary".into()));
    assert_eq!(info["capsules"]["default"]["weights"], serde_json::json!({"critical": 2, "default": 0}));
    let notes = worker.logged("settings_note");
    for ignored in ["pidfile", "./config/environment.rb"] {
        assert!(notes.iter().any(|note| note.contains(ignored)), "{ignored}: {notes:?}");
    }
    worker.signal("INT");
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn ttin_logs_the_running_jobs_and_ends_none() {
    let harness = Harness::start();
    let mut worker = harness.worker("jobs.probe = true\nshutdown.timeout = \"0s\"");
    let jid = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 60.0)).await;
    harness.is_in_flight().await;
    let shown = || worker.logged("job_running").iter().filter(|line| line.contains(&jid)).count();
    worker.signal("TTIN");
    world::wait_for("the log message", || shown() == 1).await;
    let identity = harness.redis.smembers("processes").await.remove(0);
    let mut connection = harness.redis.connection().await;
    redis::cmd("LPUSH").arg(format!("{identity}-signals")).arg("TTIN").exec_async(&mut connection).await.unwrap();
    world::wait_for_within(Duration::from_secs(30), "the second log message", || shown() == 2).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
}

/// Starts a worker under a socket like that of systemd. Stops it after `n_keepalives` and after its first heartbeat.
/// Returns its messages without immediate repetitions.
async fn told_to_systemd(watchdog_usec: &str, n_keepalives: usize) -> Vec<String> {
    let harness = Harness::start();
    let path = harness.home.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let heard = || {
        let mut state = [0; 100];
        let n = systemd.recv(&mut state).unwrap();
        String::from_utf8_lossy(&state[..n]).into_owned()
    };
    let mut child = sidebake()
        .arg("run")
        .arg("--config")
        .arg(harness.config("jobs.probe = true"))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", watchdog_usec)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut told: Vec<String> = (0..=n_keepalives).map(|_| heard()).collect();
    // Without a watchdog, the worker runs for longer than the longest period of a keepalive.
    if n_keepalives == 0 {
        harness.redis.push("default", "Sidebake::Probe", probe("succeed", 1.5)).await;
        harness.callbacks(1).await;
    }
    let stopped = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(stopped.success());
    while told.last().is_some_and(|state| state != "STOPPING=1") {
        told.push(heard());
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    told.dedup();
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_gets_the_states_of_a_worker() {
    assert_eq!(told_to_systemd("200000", 2).await, ["READY=1", "WATCHDOG=1", "STOPPING=1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zero_or_invalid_watchdog_time_is_ignored() {
    for none in ["0", "soon"] {
        assert_eq!(told_to_systemd(none, 0).await, ["READY=1", "STOPPING=1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_too_few_open_files_ends_with_an_error_and_works_with_enough() {
    let harness = Harness::start();
    let config = harness.config("jobs.probe = true");
    for limit in [5, 6, 7, 8, 10, 12, 14, 16, 20, 32, 63] {
        let command = format!("ulimit -n {limit}; exec \"$0\" run --config \"$1\"");
        let mut shell = Command::new("sh");
        shell.args(["-c", &command, env!("CARGO_BIN_EXE_sidebake")]).arg(&config);
        let output = shell.stdin(Stdio::null()).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{limit}: {said}");
        assert!(said.contains("open files"), "{limit}: {said}");
    }
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    let command = "ulimit -n 64; exec \"$0\" run --config \"$1\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", command, env!("CARGO_BIN_EXE_sidebake")]).arg(&config);
    let mut worker = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    worker.kill().unwrap();
    worker.wait().unwrap();
}
