//! A disk that fills up, and the mirrors on it.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use serde_json::json;
use world::Script;

use crate::harness::{Harness, probe};

/// What a test takes from the disk and gives back: far more than its neighbours write meanwhile.
const BALLAST: u64 = 1 << 30;

fn free_bytes(path: &Path) -> u64 {
    let space = statvfs(path).unwrap();
    space.f_bavail * space.f_frsize
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_a_full_disk_fetches_nothing_until_there_is_room_again() {
    let harness = Harness::start();
    let home = harness.home.path();
    let mirror = home.join("state/mirrors/branch/github.com/1");
    std::fs::create_dir_all(&mirror).unwrap();
    let (port, min) = (world::free_port(), free_bytes(home).checked_sub(BALLAST / 2).expect("a disk with some room"));
    let settings = format!("jobs.probe = true\nhealth.listen = \"127.0.0.1:{port}\"\nstate.min_free_bytes = {min}\n");
    let worker = harness.worker(&settings);
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 5.0)).await;
    harness.is_in_flight().await;
    assert!(mirror.exists(), "there is room for it");

    let ballast = File::create(home.join("ballast")).unwrap();
    fallocate(&ballast, FallocateFlags::empty(), 0, BALLAST).unwrap();
    harness.until("the log says it", async || !worker.logged("disk_low").is_empty()).await;
    assert!(!mirror.exists(), "mirrors go before the worker stops fetching");
    harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    let ready = reqwest::get(format!("http://127.0.0.1:{port}/ready")).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("disk"));
    harness.callbacks(1).await;
    // Its slot is free now. Longer than a worker needs for a push, and for the next look.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(harness.redis.queue("default").await.len(), 1);

    drop(ballast);
    std::fs::remove_file(home.join("ballast")).unwrap();
    harness.callbacks(2).await;
    let counts = ["disk_low", "disk_has_room"].map(|event| worker.logged(event).len());
    assert_eq!(counts, [1, 1], "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_over_the_budget_goes_and_the_next_job_fetches_again() {
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
    harness.until("the mirror has gone", async || n_mirrors() == 0).await;
    assert_eq!(harness.git.n_fetches(), 1);
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    assert_eq!(harness.callbacks(2).await[1]["status"], "succeeded");
    assert_eq!(harness.git.n_fetches(), 2);
}
