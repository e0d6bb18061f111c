//! The jobs that wait in a queue, by tenant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::keys;
use super::line::{self, Rule, Wait};
use super::payload::Payload;
use super::tenant::{self, Candidate};
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError};
use crate::settings::{Jobs, Tenants};

/// Jobs in one request.
const PAGE: usize = 100;

/// Jobs at the head of a queue whose order is computed, and bytes of their texts.
const FIRST: usize = 1000;
const FIRST_BYTES: usize = 16 << 20;

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

/// The names of the paused queues.
pub async fn paused(redis: &Redis) -> Result<BTreeSet<String>, RedisError> {
    redis.query(redis::cmd("SMEMBERS").arg(keys::PAUSED)).await
}

/// The first `n` jobs of a queue, the oldest first, or fewer when they are long. And whether there are more.
pub async fn head(
    redis: &Redis,
    queue: &str,
    jobs: &Jobs,
    tenants: &Tenants,
    n: usize,
) -> Result<(Vec<Job>, bool), RedisError> {
    let (mut candidates, mut n_bytes, mut is_over) = (Vec::new(), 0, false);
    while candidates.len() <= n && n_bytes < FIRST_BYTES && !is_over {
        let texts = page(redis, queue, candidates.len()).await?;
        is_over = texts.len() < PAGE;
        n_bytes += texts.iter().map(|text| text.len()).sum::<usize>();
        candidates.extend(texts.iter().map(|text| Arc::new(tenant::read(text, jobs, tenants))));
    }
    let has_more = !is_over || candidates.len() > n;
    candidates.truncate(n);
    Ok((placed(redis, queue, candidates, jobs, tenants).await?, has_more))
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
    let (mut first, mut n_bytes) = (Vec::new(), 0);
    for n_before in (0..).step_by(PAGE) {
        let texts = page(redis, queue, n_before).await?;
        let is_last = texts.len() < PAGE;
        for text in texts {
            let candidate = Arc::new(tenant::read(&text, jobs, tenants));
            let waiting = found.entry(candidate.claim.tenant.clone()).or_default();
            waiting.n_waiting += 1;
            let enqueued = Payload::parse_shared(&text).ok().and_then(|payload| payload.enqueued_at());
            waiting.oldest =
                waiting.oldest.into_iter().chain(enqueued).min_by(|a, b| a.as_millis().cmp(&b.as_millis()));
            if first.len() < FIRST && n_bytes < FIRST_BYTES {
                n_bytes += text.len();
                first.push(candidate);
            }
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
    for job in placed(redis, queue, first, jobs, tenants).await? {
        if let Some(waiting) = found.get_mut(&job.candidate.claim.tenant) {
            waiting.waits_for.get_or_insert(job.wait);
        }
    }
    Ok(found)
}

/// The texts behind the first `n_before` ones of a queue, the oldest first.
async fn page(redis: &Redis, queue: &str, n_before: usize) -> Result<Vec<Arc<[u8]>>, RedisError> {
    let last = -(n_before as isize) - 1;
    let mut page = redis::cmd("LRANGE");
    page.arg(keys::queue(queue)).arg(last - PAGE as isize + 1).arg(last);
    let texts: Vec<Vec<u8>> = redis.query(&page).await?;
    Ok(texts.into_iter().rev().map(Arc::from).collect())
}

/// The first jobs of a queue with what each waits for.
async fn placed(
    redis: &Redis,
    queue: &str,
    candidates: Vec<Arc<Candidate>>,
    jobs: &Jobs,
    tenants: &Tenants,
) -> Result<Vec<Job>, RedisError> {
    let standing = line::standing(redis, &candidates).await?;
    let rule = Rule::of(paused(redis).await?.contains(queue), jobs, tenants);
    let waits = line::waits(&candidates, &standing, rule);
    Ok(candidates.into_iter().zip(waits).map(|(candidate, wait)| Job { candidate, wait }).collect())
}
