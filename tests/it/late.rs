//! Requests that the network delivers late, after their sender has sent them again: a turn and a renewal.

use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::harness::{Harness, Worker, probe};
use crate::relay::{Relay, Rewrite, is_command};
use crate::scripts::Scripts;

/// The duration of the first job. It is shorter than the time to recover the job, so that the second worker stays busy.
const RUNS_S: f64 = 2.0;

/// A request, one text per argument.
type Request = Vec<Vec<u8>>;

/// Requests that the network holds.
#[derive(Default)]
struct Held {
    is_armed: bool,
    turn: Option<Request>,
    renewal: Option<Request>,
}

impl Held {
    /// Holds the first turn and the first renewal from now on. Their sender gets an error.
    fn take(&mut self, request: &mut Request) {
        let has_keys = |number: &[u8], first: [&str; 2]| {
            let starts = |(key, start): (&Vec<u8>, &str)| key.starts_with(start.as_bytes());
            (number.is_empty() || request[2] == number) && request[3..].iter().zip(first).all(starts)
        };
        let place = if has_keys(b"", ["sidebake:inflight:", "sidebake:lease:"]) {
            &mut self.turn
        } else if has_keys(b"3", ["sidebake:lease:", "sidebake:owners"]) {
            &mut self.renewal
        } else {
            return;
        };
        if self.is_armed && place.is_none() {
            *place = Some(std::mem::replace(request, vec![b"ECHO".to_vec()]));
        }
    }
}

/// Holds what `held` wants. Disables reconcile in custody, so that only the fence protects the job.
fn rewrite(held: &Arc<Mutex<Held>>, scripts: Scripts) -> Rewrite {
    let held = Arc::clone(held);
    Arc::new(move |request, is_custody| {
        if is_custody {
            scripts.blind(request);
        }
        if is_command(request, b"EVALSHA") {
            held.lock().unwrap().take(request);
        }
    })
}

async fn deliver(harness: &Harness, request: &Request) {
    let mut command = redis::cmd(std::str::from_utf8(&request[0]).unwrap());
    command.arg(&request[1..]);
    // Drops the reply of Redis.
    let _ = command.exec_async(&mut harness.redis.connection().await).await;
}

async fn has_in_flight(harness: &Harness, worker: &Worker, jid: &str) -> bool {
    let pid = format!(":{}:", worker.pid());
    let mut is_there = false;
    for key in harness.redis.keys("sidebake:inflight:*").await {
        is_there |=
            key.contains(&pid) && harness.redis.hgetall(&key).await.into_values().any(|entry| entry.contains(jid));
    }
    is_there
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_and_a_renewal_after_the_loss_of_the_lease_lose_and_double_no_job() {
    let harness = Harness::start();
    let held = Arc::new(Mutex::new(Held::default()));
    let scripts = Scripts::load(&harness.redis).await;
    let relay = Relay::to(harness.redis.port(), scripts.clone(), Some(rewrite(&held, scripts))).await;
    let config = harness.config("jobs.probe = true\nlease.ttl = \"1s\"");
    let url = format!("redis://127.0.0.1:{}/0", relay.port);
    let first = harness.worker_with_variables(&config, &["-c", "1"], &[("SIDEBAKE__REDIS__URL", url.as_str())]);
    harness.until("the worker has a lease", async || !harness.redis.keys("sidebake:lease:*").await.is_empty()).await;

    // The worker resends the turn for the job half a second later, and a renewal before that.
    held.lock().unwrap().is_armed = true;
    let x = harness.redis.push("default", "Sidebake::Probe", probe("succeed", RUNS_S)).await;
    let is_kept = |held: &Held| held.turn.is_some() && held.renewal.is_some();
    world::wait_for("the relay to hold both", || is_kept(&held.lock().unwrap())).await;
    harness.until("the job is in flight", async || has_in_flight(&harness, &first, &x).await).await;

    // The worker stops until another worker has its job. Its own run ends as soon as it continues.
    let over = tokio::time::Instant::now() + std::time::Duration::from_secs_f64(RUNS_S + 0.1);
    first.signal("STOP");
    let second = harness.worker_with(&config, &["-c", "1"]);
    harness.until("the second worker has the job", async || has_in_flight(&harness, &second, &x).await).await;
    tokio::time::sleep_until(over).await;
    let y = harness.redis.push("default", "Sidebake::Probe", probe("succeed", 0.0)).await;
    let (turn, renewal) = {
        let mut held = held.lock().unwrap();
        held.is_armed = false;
        (held.turn.take().unwrap(), held.renewal.take().unwrap())
    };
    deliver(&harness, &renewal).await;
    deliver(&harness, &turn).await;
    first.signal("CONT");

    world::wait_for("the first worker to report its result", || !first.logged("job_done").is_empty()).await;
    let mut ended: Vec<Value> = harness.callbacks(2).await.into_iter().map(|mut report| report["jid"].take()).collect();
    ended.sort_by_key(|jid| *jid == y.as_str());
    assert_eq!(ended, [x, y], "each once");
    harness.idle().await;
    assert_eq!(harness.callbacks(2).await.len(), 2);
    assert_eq!(harness.redis.get("stat:processed").await.as_deref(), Some("2"));
}
