//! Finds jobs in the queues, the schedule, the retry set and in flight, and cancels them.
//!
//! The mark is Sidekiq's own: `cancelled` in `it-<jid>`. The worker that runs the job reads it. A job that waits for its time
//! moves to its queue at once, so that its callback does not wait.

use std::fmt;

use super::inflight::entries;
use super::iteration::TTL;
use super::keys;
use super::payload::Payload;
use super::poller::{Move, enqueue_member};
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError};
use crate::settings::Jobs;

/// Members read in one request: each may be megabytes.
const PAGE: usize = 50;

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobLocation {
    /// In this queue.
    Queue(String),
    /// In the schedule, until its time.
    Schedule,
    /// In the retry set, until its time.
    Retry,
    /// This process runs it.
    InFlight(String),
    /// This process holds it without running it: it has not begun, or has ended.
    Held(String),
}

impl fmt::Display for JobLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queued on {name}"),
            Self::Schedule => f.write_str("scheduled"),
            Self::Retry => f.write_str("waiting for a retry"),
            Self::InFlight(owner) => write!(f, "running in {owner}"),
            Self::Held(owner) => write!(f, "in {owner}, which does not run it now"),
        }
    }
}

/// A job that was found.
#[derive(Clone, Debug)]
pub struct FoundJob {
    /// Where it is.
    pub location: JobLocation,
    /// Its jid.
    pub jid: String,
    text: Vec<u8>,
}

/// Every job for which `is_meant` holds.
///
/// Searches twice: a job that moves back during a search, from in flight to the retry set or to its queue, is where the search
/// has been. Searches a third time when a job of the first search is missing in the second: it has ended, or moved again.
pub async fn find(redis: &Redis, is_meant: impl Fn(&Payload) -> bool) -> Result<Vec<FoundJob>, RedisError> {
    let first = search(redis, &is_meant).await?;
    let mut found = search(redis, &is_meant).await?;
    let is_in = |found: &[FoundJob], job: &FoundJob| found.iter().any(|known| known.jid == job.jid);
    if !first.iter().all(|job| is_in(&found, job)) {
        let third = search(redis, &is_meant).await?;
        let missed: Vec<FoundJob> = third.into_iter().filter(|job| !is_in(&found, job)).collect();
        found.extend(missed);
    }
    Ok(found)
}

/// Searches everywhere, in the order in which jobs move, so that it meets a job that moves meanwhile.
async fn search(redis: &Redis, is_meant: impl Fn(&Payload) -> bool) -> Result<Vec<FoundJob>, RedisError> {
    let mut search = JobSearch { is_meant, found: Vec::new() };
    for (location, set) in [(JobLocation::Schedule, keys::SCHEDULE), (JobLocation::Retry, keys::RETRY)] {
        search.sorted_set(redis, &location, set).await?;
    }
    let mut queues: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg(keys::QUEUES)).await?;
    queues.sort_unstable();
    for queue in queues {
        search.list(redis, &queue).await?;
    }
    let owners: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg(keys::OWNERS)).await?;
    for owner in owners {
        for entry in entries(redis, &owner).await? {
            let holder = owner.clone();
            let location = if entry.is_idle { JobLocation::Held(holder) } else { JobLocation::InFlight(holder) };
            search.look_at(&location, &entry.text);
        }
    }
    Ok(search.found)
}

struct JobSearch<F> {
    is_meant: F,
    found: Vec<FoundJob>,
}

impl<F: Fn(&Payload) -> bool> JobSearch<F> {
    fn look_at(&mut self, location: &JobLocation, text: &[u8]) {
        let Ok(payload) = Payload::parse(text) else { return };
        if payload.jid.is_empty() || !(self.is_meant)(&payload) {
            return;
        }
        // A push moves the rest of a list to the right, so one text may be seen on two pages.
        if !self.found.iter().any(|known| known.jid == payload.jid && known.location == *location) {
            self.found.push(FoundJob { location: location.clone(), jid: payload.jid, text: text.to_vec() });
        }
    }

    async fn sorted_set(&mut self, redis: &Redis, location: &JobLocation, set: &str) -> Result<(), RedisError> {
        let mut cursor = 0;
        loop {
            let scan = redis.query(redis::cmd("ZSCAN").arg(set).arg(cursor).arg("COUNT").arg(PAGE)).await?;
            let (next, members): (u64, Vec<(Vec<u8>, f64)>) = scan;
            members.iter().for_each(|(text, _)| self.look_at(location, text));
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    async fn list(&mut self, redis: &Redis, queue: &str) -> Result<(), RedisError> {
        let (key, location) = (keys::queue(queue), JobLocation::Queue(queue.to_owned()));
        for start in (0..).step_by(PAGE) {
            let page = redis.query(redis::cmd("LRANGE").arg(&key).arg(start).arg(start + PAGE - 1)).await;
            let texts: Vec<Vec<u8>> = match page {
                // A key of another type is not a queue.
                Err(error) if error.code() == Some("WRONGTYPE") => break,
                page => page?,
            };
            texts.iter().for_each(|text| self.look_at(&location, text));
            if texts.len() < PAGE {
                break;
            }
        }
        Ok(())
    }
}

/// Marks a job as cancelled. One that waits for its time moves to its queue.
pub async fn cancel(redis: &Redis, jobs: &Jobs, found: &FoundJob, now: Epoch) -> Result<(), RedisError> {
    let key = keys::iteration(&found.jid);
    let mut mark = redis::pipe();
    mark.cmd("HSETNX").arg(&key).arg("cancelled").arg(now.as_millis() / 1000).ignore();
    mark.cmd("EXPIRE").arg(&key).arg(TTL.as_secs()).ignore();
    redis.pipeline::<()>(&mark).await?;
    let set = match found.location {
        JobLocation::Schedule => keys::SCHEDULE,
        JobLocation::Retry => keys::RETRY,
        JobLocation::Queue(_) | JobLocation::InFlight(_) | JobLocation::Held(_) => return Ok(()),
    };
    // A job of another class waits for its time.
    if !Payload::parse(&found.text).is_ok_and(|payload| jobs.runs(&payload.class)) {
        return Ok(());
    }
    match enqueue_member(redis, jobs, set, &found.text, now).await? {
        Move::Gone | Move::Left | Move::Denied => Ok(()),
        Move::Stuck(why) => Err(RedisError::from((redis::ErrorKind::Extension, "the job stays in its set", why))),
    }
}
