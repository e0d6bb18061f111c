//! Dead workers' jobs, brought back by any living one: no job needs the dead process to come back.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::turn::{Token, read_entry};
use crate::redis::{Complaint, Redis, RedisError, Script};

static SCAN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scan.lua")));
static RECOVER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("recover.lua")));
static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("forget.lua")));
static WITHDRAW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("withdraw.lua")));

/// How long recoveries of a job are counted: as Sidekiq Pro counts poison pills.
const COUNTED: Duration = Duration::from_secs(72 * 60 * 60);

/// More counts than these, and the old ones are looked for: they are some 60 bytes each.
const MANY_COUNTS: usize = 1000;

/// After so many scans.
const FORGET_EVERY: u64 = 100;

/// How often a suspect is looked at.
const PAUSE: Duration = Duration::from_millis(500);

/// Looks for dead owners until `stop`; one process of the fleet scans at a time.
pub async fn run(redis: &Redis, lease_ttl: Duration, stop: &CancellationToken) {
    let every = lease_ttl / 6;
    let mut complaint = Complaint::that("dead workers cannot be looked for");
    let mut complaint_of_counts = Complaint::that("old counts cannot be dropped");
    let mut n_scans = 0_u64;
    while stop.run_until_cancelled(sleep(every)).await.is_some() {
        complaint.hear(scan(redis, lease_ttl, every).await);
        if n_scans.is_multiple_of(FORGET_EVERY) {
            complaint_of_counts.hear(forget(redis).await);
        }
        n_scans += 1;
    }
}

async fn scan(redis: &Redis, lease_ttl: Duration, every: Duration) -> Result<(), RedisError> {
    let mut script = SCAN.key("sidebake:scan");
    script.key("sidebake:owners").key("sidebake:suspects").arg(every.as_millis() as u64);
    let owners: Vec<String> = redis.script(&script).await?;
    let mut last = Ok(());
    for owner in owners {
        // One that cannot be recovered must not hide the others.
        last = recover_owner(redis, &owner, lease_ttl / 2).await.and(last);
    }
    last
}

async fn recover_owner(redis: &Redis, owner: &str, grace: Duration) -> Result<(), RedisError> {
    if recover(redis, owner, grace, &[]).await? != "expired" {
        return Ok(());
    }
    let entries = inflight(redis, owner).await?;
    // It may have come back in between.
    if let Ok(n_recovered) = recover(redis, owner, grace, &entries).await?.parse::<u64>() {
        tracing::warn!(owner, n_recovered, "worker died; its jobs are back on their queues");
    }
    Ok(())
}

/// What became of an owner's jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The identity.
    pub owner: String,
    /// How many are back on their queues; none when it is alive and keeps them.
    pub n_jobs: Option<u64>,
}

/// Puts back what every dead owner has in flight. One that loses its lease only now is given `grace` to come back.
pub async fn release(redis: &Redis, grace: Duration) -> Result<Vec<Released>, RedisError> {
    let owners: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg("sidebake:owners")).await?;
    // All are suspects from now on, and not each one after the other.
    for owner in &owners {
        recover(redis, owner, grace, &[]).await?;
    }
    let mut released = Vec::new();
    for owner in owners {
        let n_jobs = loop {
            match recover(redis, &owner, grace, &[]).await?.as_str() {
                "alive" => break None,
                "suspected" => sleep(PAUSE).await,
                "expired" => {
                    let entries = inflight(redis, &owner).await?;
                    let answer = recover(redis, &owner, grace, &entries).await?;
                    break answer.parse().ok();
                }
                // It had nothing in flight.
                n_jobs => break n_jobs.parse().ok(),
            }
        };
        released.push(Released { owner, n_jobs });
    }
    Ok(released)
}

/// Takes back what recovery counted against jobs of this process, which lives: all that had begun, by their texts.
pub(super) async fn withdraw(redis: &Redis, texts: &[Vec<u8>]) -> Result<(), RedisError> {
    let mut script = WITHDRAW.key("sidebake:recoveries");
    script.arg(u8::from(texts.len() == 1)).arg(texts);
    redis.script(&script).await
}

/// Old counts go, where there are many.
async fn forget(redis: &Redis) -> Result<(), RedisError> {
    let mut script = FORGET.key("sidebake:recoveries");
    script.key("sidebake:interruptions").arg(COUNTED.as_secs()).arg(MANY_COUNTS);
    redis.script(&script).await
}

/// Fields of an owner's in-flight hash, each with the queue of its job, newest first: pushed to the heads in this order, the
/// oldest comes out next.
async fn inflight(redis: &Redis, owner: &str) -> Result<Vec<(String, String)>, RedisError> {
    let entries: HashMap<String, Vec<u8>> =
        redis.query(redis::cmd("HGETALL").arg(format!("sidebake:inflight:{owner}"))).await?;
    let queues = entries.iter().filter_map(|(field, entry)| Some((field.clone(), read_entry(entry)?.0.to_owned())));
    let mut queues: Vec<(String, String)> = queues.collect();
    queues.sort_by_cached_key(|(field, _)| Reverse(Token::of_field(field)));
    Ok(queues)
}

/// The script's answer in words, or the number of jobs it requeued.
async fn recover(
    redis: &Redis,
    owner: &str,
    grace: Duration,
    entries: &[(String, String)],
) -> Result<String, RedisError> {
    let mut script = RECOVER.key("sidebake:owners");
    script
        .key("sidebake:suspects")
        .key(format!("sidebake:lease:{owner}"))
        .key(format!("sidebake:inflight:{owner}"))
        .key("sidebake:recoveries")
        .key("queues");
    script.arg(owner).arg(grace.as_millis() as u64).arg(COUNTED.as_secs());
    let mut queues: Vec<&str> = Vec::new();
    for (field, queue) in entries {
        let place = queues.iter().position(|other| other == queue).unwrap_or_else(|| {
            script.key(format!("queue:{queue}"));
            queues.push(queue);
            queues.len() - 1
        });
        // After the six fixed keys, counted from 1 as Lua does.
        script.arg(field).arg(place + 7);
    }
    redis.script(&script).await
}
