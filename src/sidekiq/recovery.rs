//! Recovery: any living worker requeues the jobs of a dead one.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::inflight::{Token, list};
use super::{Identity, keys};
use crate::metric;
use crate::redis::{Complaint, Redis, RedisError, Script, ScriptInvocation, is_forbidden};

static SCAN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scan.lua")));
static RECOVER: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("claims.lua"), include_str!("recover.lua"))));
static SWEEP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("sweep.lua")));
static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("forget.lua")));
static WITHDRAW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("withdraw.lua")));

/// How long a recovery of a job counts, as long as Sidekiq Pro counts poison pills.
const COUNTED: Duration = Duration::from_secs(72 * 60 * 60);

/// With more counts than these, old ones are dropped. A count has some 60 bytes.
const MANY_COUNTS: usize = 1000;

/// How many scans pass before old counts are dropped again.
const FORGET_EVERY: u64 = 100;

/// How soon `release` asks again for a suspect owner.
const PAUSE: Duration = Duration::from_millis(500);

/// Looks for dead owners until `stop`. One process of the fleet scans at a time.
pub async fn run(redis: &Redis, lease_ttl: Duration, stop: &CancellationToken) {
    let every = lease_ttl / 6;
    let mut complaint = Complaint::new("recovery_failed", "jobs of dead workers cannot be recovered");
    let mut complaint_of_counts = Complaint::new("counts_not_dropped", "old crash counts cannot be dropped");
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
    let mut script = SCAN.key(keys::SCAN);
    script.key(keys::OWNERS).key(keys::SUSPECTS).arg(every.as_millis() as u64);
    let owners: Vec<String> = redis.script(&script).await?;
    let mut last = Ok(());
    for owner in &owners {
        // An owner that cannot be recovered must not hide the others.
        last = recover_owner(redis, owner, lease_ttl / 2).await.and(last);
    }
    if owners.is_empty() { last } else { sweep(redis).await.and(last) }
}

/// Corrects the counters of running jobs, where Redis lost a part of what they count.
async fn sweep(redis: &Redis) -> Result<(), RedisError> {
    let mut script = SWEEP.key(keys::RUNNING);
    script.key(keys::SHARES).key(keys::OWNERS);
    let n_dropped: u64 = redis.script(&script).await?;
    if n_dropped > 0 {
        tracing::warn!(event = "claims_dropped", n_dropped, "dropped claims of jobs that are not in flight");
    }
    Ok(())
}

async fn recover_owner(redis: &Redis, owner: &str, grace: Duration) -> Result<(), RedisError> {
    if recover(redis, owner, grace, &[]).await? != "expired" {
        return Ok(());
    }
    let (answer, forbidden) = requeue(redis, owner, grace).await?;
    // The owner may have come back in between.
    if let Some(n_recovered) = answer.parse::<u64>().ok().filter(|n| *n > 0 || forbidden.is_none()) {
        metric::RECOVERED_JOBS.add([], n_recovered);
        tracing::warn!(event = "jobs_recovered", owner, n_recovered, "worker died; requeued its jobs");
    }
    forbidden.map_or(Ok(()), Err)
}

/// Requeues the jobs that an owner has in flight. Returns the script's answer, and why it left out some queues.
///
/// An ACL that forbids one key refuses the whole script. Then each queue is tried by itself first, so that a forbidden queue
/// does not hold up the others.
async fn requeue(redis: &Redis, owner: &str, grace: Duration) -> Result<(String, Option<RedisError>), RedisError> {
    let mut entries = newest_first(redis, owner).await?;
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
                let detail = format!("{}: {error}", keys::queue(queue));
                forbidden = Some(RedisError::from((error.kind(), "jobs stay in flight", detail)));
            }
            answer => drop(answer?),
        }
    }
    Ok((recover(redis, owner, grace, &entries).await?, forbidden))
}

/// What happened to an owner's jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The identity.
    pub owner: String,
    /// How many were requeued; `None` when the owner is alive and keeps them.
    pub n_jobs: Option<u64>,
}

/// Requeues the jobs of every dead owner. An owner that loses its lease only now has `grace` to come back.
pub async fn release(redis: &Redis, grace: Duration) -> Result<Vec<Released>, RedisError> {
    let owners: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg(keys::OWNERS)).await?;
    // Makes all of them suspects now, so that their grace periods run side by side.
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
                        tracing::error!(event = "recovery_incomplete", owner, %error, "some jobs could not be requeued");
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

/// Takes back the crashes that recovery counted against jobs of this process, which is alive. `jobs` are those that had begun.
pub(super) async fn withdraw(
    redis: &Redis,
    identity: &Identity,
    jobs: &[(Token, Arc<[u8]>)],
) -> Result<(), RedisError> {
    let mut script = WITHDRAW.key(keys::RECOVERIES);
    script.arg(identity.to_string());
    for (token, text) in jobs {
        script.arg(token.as_str()).arg(digest(text));
    }
    redis.script(&script).await
}

/// Whether another worker has counted its recovery of each of these jobs, which this process ran. A recovery that counts no crash
/// leaves no trace.
pub(super) async fn are_recovered(
    redis: &Redis,
    identity: &Identity,
    jobs: &[(Token, Arc<[u8]>)],
) -> Result<Vec<bool>, RedisError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let mut look = redis::cmd("HMGET");
    look.arg(keys::RECOVERIES);
    for (_, text) in jobs {
        look.arg(digest(text));
    }
    let counts: Vec<Option<String>> = redis.query(&look).await?;
    let is_of = |(count, (token, _)): (&Option<String>, &(Token, Arc<[u8]>))| {
        count.as_ref().is_some_and(|count| count.ends_with(&format!(" {identity} {token}")))
    };
    Ok(counts.iter().zip(jobs).map(is_of).collect())
}

/// The field of a job in `sidebake:recoveries`.
fn digest(text: &[u8]) -> String {
    sha1_smol::Sha1::from(text).digest().to_string()
}

/// Drops old counts, where there are many.
async fn forget(redis: &Redis) -> Result<(), RedisError> {
    let mut script = FORGET.key(keys::RECOVERIES);
    script.key(keys::INTERRUPTIONS).arg(COUNTED.as_secs()).arg(MANY_COUNTS);
    redis.script(&script).await
}

/// Field and queue of each of an owner's entries, the newest first. Pushed to the heads of their queues in this order, the
/// oldest comes out next.
async fn newest_first(redis: &Redis, owner: &str) -> Result<Vec<(String, String)>, RedisError> {
    let mut entries = list(redis, owner).await?;
    entries.sort_by_cached_key(|entry| Reverse(entry.token()));
    Ok(entries.into_iter().map(|entry| (entry.field, entry.queue)).collect())
}

/// Runs the script; returns its answer in words, or the number of jobs it requeued.
async fn recover(
    redis: &Redis,
    owner: &str,
    grace: Duration,
    entries: &[(String, String)],
) -> Result<String, RedisError> {
    let mut script = script(owner, grace);
    let mut queues: Vec<&str> = Vec::new();
    for (field, queue) in entries {
        let index = queues.iter().position(|other| other == queue).unwrap_or_else(|| {
            script.key(keys::queue(queue));
            queues.push(queue);
            queues.len() - 1
        });
        // After the eight fixed keys; Lua counts from 1.
        script.arg(field).arg(index + 9);
    }
    redis.script(&script).await
}

/// Runs the script with the key of a queue and without entries, to see whether the ACL allows it.
async fn probe(redis: &Redis, owner: &str, grace: Duration, queue: &str) -> Result<String, RedisError> {
    let mut script = script(owner, grace);
    script.key(keys::queue(queue));
    redis.script(&script).await
}

/// The script with the keys and arguments of every call.
fn script(owner: &str, grace: Duration) -> ScriptInvocation<'static> {
    let mut script = RECOVER.key(keys::OWNERS);
    script
        .key(keys::SUSPECTS)
        .key(keys::lease(owner))
        .key(keys::inflight(owner))
        .key(keys::RECOVERIES)
        .key(keys::QUEUES)
        .key(keys::APART)
        .key(keys::claims(owner));
    script.arg(owner).arg(grace.as_millis() as u64).arg(COUNTED.as_secs());
    script
}
