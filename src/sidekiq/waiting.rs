//! The jobs that wait in a queue, by tenant.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys;
use super::line::{self, Rule, Wait};
use super::payload::Payload;
use super::tenant::{self, Candidate};
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError};
use crate::settings::{Jobs, Tenants};

/// Jobs in one request.
const PAGE: isize = 100;

/// Jobs at the head of a queue whose order is computed.
const FIRST: usize = 1000;

/// A tenant of one queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    /// Jobs that wait.
    pub n_waiting: usize,
    /// When the first of them was enqueued, by the client's clock.
    pub oldest: Option<Epoch>,
    /// Jobs of the tenant that run in the whole fleet, from any queue.
    pub n_running: u32,
    /// What its first job waits for, when it is among the first of the queue.
    pub waits_for: Option<Wait>,
}

/// A job that waits in a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// What it says of itself.
    pub candidate: Arc<Candidate>,
    /// What it waits for.
    pub wait: Wait,
}

/// The first `n` jobs of a queue, the oldest first, or fewer when they are long. And whether there are more.
pub async fn head(
    redis: &Redis,
    queue: &str,
    jobs: &Jobs,
    tenants: &Tenants,
    n: usize,
) -> Result<(Vec<Job>, bool), RedisError> {
    let (texts, has_more) = line::head(redis, queue, n).await?;
    let candidates = line::read(&texts, jobs, tenants);
    let standing = line::standing(redis, &candidates).await?;
    let paused: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg(keys::PAUSED)).await?;
    let rule = Rule::of(paused.iter().any(|paused| paused == queue), jobs, tenants);
    let waits = line::waits(&candidates, &standing, rule);
    Ok((candidates.into_iter().zip(waits).map(|(candidate, wait)| Job { candidate, wait }).collect(), has_more))
}

/// The tenants with jobs in a queue, and those with running jobs.
///
/// Reads the whole queue, page by page. A job that moves meanwhile may be counted twice or not at all.
pub async fn by_tenant(
    redis: &Redis,
    queue: &str,
    jobs: &Jobs,
    tenants: &Tenants,
) -> Result<BTreeMap<String, Waiting>, RedisError> {
    let mut found: BTreeMap<String, Waiting> = BTreeMap::new();
    let key = keys::queue(queue);
    for page in 1.. {
        let last = -(page - 1) * PAGE - 1;
        let texts: Vec<Vec<u8>> = redis.query(redis::cmd("LRANGE").arg(&key).arg(last - PAGE + 1).arg(last)).await?;
        let is_last = texts.len() < PAGE.unsigned_abs();
        for text in texts.into_iter().rev() {
            let text: Arc<[u8]> = text.into();
            let waiting = found.entry(tenant::read(&text, jobs, tenants).claim.tenant).or_default();
            waiting.n_waiting += 1;
            let enqueued = Payload::parse_shared(&text).ok().and_then(|payload| payload.enqueued_at());
            waiting.oldest =
                waiting.oldest.into_iter().chain(enqueued).min_by(|a, b| a.as_millis().cmp(&b.as_millis()));
        }
        if is_last {
            break;
        }
    }
    let running: BTreeMap<String, i64> = redis.query(redis::cmd("HGETALL").arg(keys::RUNNING)).await?;
    for (counter, n) in running {
        if let Some(tenant) = tenant::of_counter(&counter) {
            // Redis counts below zero only where it lost data.
            found.entry(tenant.to_owned()).or_default().n_running = n.max(0) as u32;
        }
    }
    for job in head(redis, queue, jobs, tenants, FIRST).await?.0 {
        if let Some(waiting) = found.get_mut(&job.candidate.claim.tenant) {
            waiting.waits_for.get_or_insert(job.wait);
        }
    }
    Ok(found)
}
