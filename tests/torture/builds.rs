//! Builds by a scripted docker-buildx: after any kill, no child, directory or lock may remain.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use world::{Script, Step};

use crate::harness::{CALLBACKS, Harness, Worker};
use crate::{Verdict, story};

const N_FAULTS: usize = 20;
const N_BUILDS: usize = 4 * N_FAULTS;

const SETTINGS: &str = "lease.ttl = \"2s\"\nshutdown.timeout = \"1s\"\nredis.timeout = \"1s\"";

pub async fn run(seed: u64) -> Verdict {
    let mut random = StdRng::seed_from_u64(seed);
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]).after(vec![Step::WaitMs(1000)]));
    let mut workers: Vec<Worker> = (0..3).map(|_| harness.worker(SETTINGS)).collect();
    for _ in 0..N_FAULTS {
        for _ in 0..N_BUILDS / N_FAULTS {
            harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(50..600))).await;
        let i = random.random_range(0..workers.len());
        match random.random_range(0..3) {
            0 => workers[i].signal("KILL"),
            1 => workers[i].signal("TERM"),
            _ => {
                workers[i].signal("STOP");
                tokio::time::sleep(Duration::from_millis(random.random_range(500..5000))).await;
                workers[i].signal("CONT");
                continue;
            }
        }
        workers[i].ended().await;
        workers[i] = harness.worker(SETTINGS);
    }
    let started = Instant::now();
    let mut n_finished = 0;
    while n_finished < N_BUILDS && started.elapsed() < Duration::from_secs(90) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        n_finished = harness.redis.queue(CALLBACKS).await.len();
    }
    let left = story::left(&harness.redis).await;
    for mut worker in workers {
        worker.signal("TERM");
        worker.ended().await;
    }
    // The next start on the machine removes the leftovers of a killed worker.
    let mut last = harness.worker(SETTINGS);
    harness.until("the worker starts", async || !last.logged("worker_started").is_empty()).await;
    last.signal("TERM");
    last.ended().await;

    println!("  {N_BUILDS} builds, {N_FAULTS} faults: {n_finished} finished in {} runs", harness.builder.runs().len());
    let mut wrong = Vec::new();
    let reports: Vec<Value> = harness.callbacks(n_finished).await;
    let bad: Vec<&Value> = reports.iter().filter(|report| report["status"] != "succeeded").collect();
    if n_finished != N_BUILDS {
        wrong.push(format!("{n_finished} of {N_BUILDS} builds ended; {left:?}"));
    }
    if let Some(report) = bad.first() {
        wrong.push(format!("a build has failed: {report}"));
    }
    if harness.builder.running() != 0 {
        wrong.push(format!("{} builds still run", harness.builder.running()));
    }
    let left = processes_of(harness.home.path());
    if !left.is_empty() {
        wrong.push(format!("processes are left: {left:?}"));
    }
    if !harness.job_directories().is_empty() {
        wrong.push(format!("directories are left: {:?}", harness.job_directories()));
    }
    let state = harness.home.path().join("state");
    let run: Vec<_> = std::fs::read_dir(state.join("run")).unwrap().flatten().map(|entry| entry.path()).collect();
    if !run.is_empty() {
        wrong.push(format!("files of processes are left: {run:?}"));
    }
    let locked = locked_files(&state);
    if !locked.is_empty() {
        wrong.push(format!("locks are held: {locked:?}"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Command lines that contain the directory.
fn processes_of(home: &Path) -> Vec<String> {
    let home = home.display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines
        .filter(|line| line.contains(&home) && !line.starts_with("redis-server") && !line.contains("git-http-backend"))
        .collect()
}

/// Files below a directory that a process has locked by `flock`.
fn locked_files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(locked_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "lock")
            && std::fs::File::open(&path)
                .is_ok_and(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_err())
        {
            found.push(path.display().to_string());
        }
    }
    found
}
