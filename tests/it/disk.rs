//! A disk that fills up, and the mirrors on it.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};
use serde_json::json;
use world::Script;

use crate::harness::{Harness, Worker, probe, sidebake};

/// The bytes of the worker's disk, of the space that it keeps free, and of the file that fills some of it.
const DISK: u64 = 64 << 20;
const MIN_FREE: u64 = 32 << 20;
const BALLAST: u64 = 48 << 20;

/// Starts a worker whose state directory is a separate file system. Returns the path at which this process sees the
/// directory.
async fn worker_on_a_small_disk(harness: &Harness, more: &str) -> (Worker, PathBuf) {
    let (config, state) = (harness.config(more), harness.home.path().join("state"));
    std::fs::create_dir(&state).unwrap();
    let mount = format!("mount -t tmpfs -o size={DISK} none \"$1\" && exec \"$2\" run --config \"$3\"");
    let may_mount = if rustix::process::geteuid().is_root() { "--mount" } else { "--map-root-user" };
    let mut command = Command::new("unshare");
    command.args([may_mount, "--mount", "sh", "-c", &mount, "sh"]);
    command.arg(&state).arg(sidebake().get_program()).arg(config);
    for (name, _) in sidebake().get_envs() {
        command.env_remove(name);
    }
    let worker = harness.home.spawn(command);
    let seen = PathBuf::from(format!("/proc/{}/root{}", worker.pid(), state.display()));
    harness.until("the worker opens its directory", async || seen.join("run").exists()).await;
    (worker, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_a_full_disk_fetches_nothing_until_space_is_free() {
    let harness = Harness::start();
    let port = world::free_port();
    let settings =
        format!("jobs.probe = true\nhealth.listen = \"127.0.0.1:{port}\"\nstate.min_free_bytes = {MIN_FREE}\n");
    let (worker, state) = worker_on_a_small_disk(&harness, &settings).await;
    let mirror = state.join("mirrors/branch/github.com/1");
    std::fs::create_dir_all(&mirror).unwrap();
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 5.0)).await;
    harness.is_in_flight().await;
    assert!(mirror.exists(), "the disk has room for the mirror");

    let ballast = File::create(state.join("ballast")).unwrap();
    fallocate(&ballast, FallocateFlags::empty(), 0, BALLAST).unwrap();
    harness.until("the log has the message", async || !worker.logged("disk_low").is_empty()).await;
    assert!(!mirror.exists(), "the worker removes mirrors before it stops fetching");
    let second = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    let ready = reqwest::get(format!("http://127.0.0.1:{port}/ready")).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("disk"));
    // The job's slot is free by then.
    harness.callbacks(1).await;

    drop(ballast);
    std::fs::remove_file(state.join("ballast")).unwrap();
    harness.callbacks(2).await;
    let counts = ["disk_low", "disk_has_room"].map(|event| worker.logged(event).len());
    assert_eq!(counts, [1, 1], "{}", worker.log());
    let log = worker.log();
    let begun = log.lines().position(|line| line.contains("job_started") && line.contains(&second));
    let room = log.lines().position(|line| line.contains("disk_has_room"));
    assert!(room < begun, "the second job began on a full disk:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_over_the_budget_is_removed_and_the_next_job_fetches_again() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let _worker = harness.worker("state.mirrors_max_bytes = 0");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    harness.callbacks(1).await;
    let mirrors = harness.home.path().join("state/mirrors/branch");
    let n_mirrors = || {
        let hosts = std::fs::read_dir(&mirrors).unwrap().flatten();
        hosts.map(|host| std::fs::read_dir(host.path()).unwrap().count()).sum::<usize>()
    };
    harness.until("the mirror is removed", async || n_mirrors() == 0).await;
    assert_eq!(harness.git.n_fetches(), 1);
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    assert_eq!(harness.callbacks(2).await[1]["status"], "succeeded");
    assert_eq!(harness.git.n_fetches(), 2);
}
