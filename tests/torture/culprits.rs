//! Jobs that take their worker down on every run, like a build whose worker the kernel kills at its memory limit.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;
use world::Redis;

use crate::fleet::Fleet;
use crate::look;
use crate::runs::{STARTED, is_start_or_end};

const LOOK: Duration = Duration::from_millis(100);

/// Kills each worker that runs one of them, a moment after its start. Continues until it is dropped.
pub async fn kill(culprits: &BTreeSet<String>, seed: u64, fleet: &Fleet, redis: &Redis) {
    let mut random = StdRng::seed_from_u64(seed ^ 0xc0);
    loop {
        tokio::time::sleep(LOOK).await;
        if culprits.is_empty() {
            continue;
        }
        for (pid, entries) in look::inflight(redis).await {
            let is_here = |jid: &&String| entries.iter().any(|entry| look::is_of(entry, jid));
            let Some(i) = fleet.of_process(pid) else { continue };
            for jid in culprits.iter().filter(is_here) {
                let moment = Duration::from_secs_f64(random.random_range(0.0..0.4));
                take_down(i, pid, jid, moment, fleet).await;
            }
        }
    }
}

/// An entry in flight may not run yet, because a worker may let it wait.
async fn take_down(i: usize, pid: u32, jid: &str, moment: Duration, fleet: &Fleet) {
    let mut worker = fleet.worker(i).await;
    if fleet.pid(i) != pid || !runs(&worker.log(), jid) {
        return;
    }
    tokio::time::sleep(moment).await;
    if runs(&worker.log(), jid) {
        fleet.n_crashes.fetch_add(1, Ordering::Relaxed);
        worker.signal(Signal::KILL);
        fleet.again(i, &mut worker).await;
    }
}

/// Whether a process runs a job, according to its log.
fn runs(log: &Path, jid: &str) -> bool {
    let content = std::fs::read_to_string(log).unwrap_or_default();
    let lines = content.lines().filter(|line| line.contains(jid));
    let mut starts = lines.filter_map(|line| {
        let entry: Value = serde_json::from_str(line).ok()?;
        let event = entry["fields"]["event"].as_str()?;
        is_start_or_end(event).then(|| event == STARTED)
    });
    starts.next_back().unwrap_or(false)
}
