//! Dead workers' jobs, brought back by any living one: no job needs the dead process to come back.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Identity;
use super::turn::{Token, read_entry};
use crate::redis::{Complaint, Redis, RedisError, Script, ScriptInvocation, is_forbidden};

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
    let (answer, forbidden) = requeue(redis, owner, grace).await?;
    // It may have come back in between.
    if let Some(n_recovered) = answer.parse::<u64>().ok().filter(|n| *n > 0 || forbidden.is_none()) {
        tracing::warn!(owner, n_recovered, "worker died; its jobs are back on their queues");
    }
    forbidden.map_or(Ok(()), Err)
}

/// Requeues what an owner has in flight; with the script's answer, why some queues were left out.
///
/// An ACL refuses a script whole, for one of its keys, so each queue is tried by itself before: one that this user may not
/// touch holds up no other.
async fn requeue(redis: &Redis, owner: &str, grace: Duration) -> Result<(String, Option<RedisError>), RedisError> {
    let mut entries = inflight(redis, owner).await?;
    match recover(redis, owner, grace, &entries).await {
        Err(error) if is_forbidden(&error) => {}
        answer => return Ok((answer?, None)),
    }
    let queues: BTreeSet<String> = entries.iter().map(|(_, queue)| queue.clone()).collect();
    let mut forbidden = None;
    for queue in queues {
        match probe(redis, owner, grace, &queue).await {
            Err(error) if is_forbidden(&error) => {
                entries.retain(|(_, other)| *other != queue);
                let detail = format!("queue:{queue}: {error}");
                forbidden = Some(RedisError::from((error.kind(), "jobs stay in flight", detail)));
            }
            answer => drop(answer?),
        }
    }
    Ok((recover(redis, owner, grace, &entries).await?, forbidden))
}

/// What became of an owner's jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The identity.
    pub owner: String,
    /// How many are back on their queues; none when it is alive and keeps them.
    pub n_jobs: Option<u64>,
}

/// Requeues what every dead owner has in flight. One that loses its lease only now is given `grace` to come back.
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
                "expired" => match requeue(redis, &owner, grace).await? {
                    (answer, None) => break answer.parse().ok(),
                    (answer, Some(error)) => {
                        tracing::error!(owner, %error, "not all jobs could be requeued");
                        break answer.parse().ok();
                    }
                },
                // It had nothing in flight.
                n_jobs => break n_jobs.parse().ok(),
            }
        };
        released.push(Released { owner, n_jobs });
    }
    Ok(released)
}

/// Takes back what recovery counted against jobs of this process, which lives: all that had begun, by token and text.
pub(super) async fn withdraw(
    redis: &Redis,
    identity: &Identity,
    jobs: &[(Token, Arc<[u8]>)],
) -> Result<(), RedisError> {
    let mut script = WITHDRAW.key("sidebake:recoveries");
    script.arg(identity.to_string());
    for (token, text) in jobs {
        script.arg(token.to_string()).arg(&**text);
    }
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
    let mut script = script(owner, grace);
    let mut queues: Vec<&str> = Vec::new();
    for (field, queue) in entries {
        let place = queues.iter().position(|other| other == queue).unwrap_or_else(|| {
            script.key(format!("queue:{queue}"));
            queues.push(queue);
            queues.len() - 1
        });
        // After the seven fixed keys, counted from 1 as Lua does.
        script.arg(field).arg(place + 8);
    }
    redis.script(&script).await
}

/// The same with a queue, and nothing to requeue on it.
async fn probe(redis: &Redis, owner: &str, grace: Duration, queue: &str) -> Result<String, RedisError> {
    let mut script = script(owner, grace);
    script.key(format!("queue:{queue}"));
    redis.script(&script).await
}

/// The script with what every call has.
fn script(owner: &str, grace: Duration) -> ScriptInvocation<'static> {
    let mut script = RECOVER.key("sidebake:owners");
    script
        .key("sidebake:suspects")
        .key(format!("sidebake:lease:{owner}"))
        .key(format!("sidebake:inflight:{owner}"))
        .key("sidebake:recoveries")
        .key("queues")
        .key("sidebake:apart");
    script.arg(owner).arg(grace.as_millis() as u64).arg(COUNTED.as_secs());
    script
}
