//! Finds jobs wherever they are, and cancels them: in the queues, the schedule, the retry set, and in flight.
//!
//! The mark is Sidekiq's own, `cancelled` in `it-<jid>`. Whoever runs the job sees it; one that waits for a time is put on
//! its queue at once, so that the answer does not wait with it.

use std::collections::HashMap;
use std::fmt;

use super::iteration::{TTL, key};
use super::payload::Payload;
use super::poller::enqueue_member;
use super::turn::{is_idle, read_entry};
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError};
use crate::settings::Jobs;

/// Members looked at in one request: each may be megabytes.
const PAGE: usize = 50;

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this queue.
    Queue(String),
    /// In the schedule, until its time.
    Schedule,
    /// In the retry set, until its time.
    Retry,
    /// With this process.
    InFlight(String),
    /// With this process, which does not run it: it has not begun, or has ended.
    Held(String),
}

impl fmt::Display for Place {
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
pub struct Found {
    /// Where.
    pub place: Place,
    /// Its id.
    pub jid: String,
    text: Vec<u8>,
}

/// Every job that is meant. Looked for twice: a job that moves back while we look, from in flight to the retry set or to its
/// queue, is where it was looked for already. And once more when one that was there is not: it has ended, or moved again.
pub async fn find(redis: &Redis, is_meant: impl Fn(&Payload) -> bool) -> Result<Vec<Found>, RedisError> {
    let first = look(redis, &is_meant).await?;
    let mut found = look(redis, &is_meant).await?;
    let is_in = |found: &[Found], job: &Found| found.iter().any(|known| known.jid == job.jid);
    if !first.iter().all(|job| is_in(&found, job)) {
        let third = look(redis, &is_meant).await?;
        let missed: Vec<Found> = third.into_iter().filter(|job| !is_in(&found, job)).collect();
        found.extend(missed);
    }
    Ok(found)
}

/// Looks everywhere, in the order in which jobs move, so that one that moves meanwhile is met all the same.
async fn look(redis: &Redis, is_meant: impl Fn(&Payload) -> bool) -> Result<Vec<Found>, RedisError> {
    let mut search = Search { is_meant, found: Vec::new() };
    for (place, set) in [(Place::Schedule, "schedule"), (Place::Retry, "retry")] {
        search.sorted_set(redis, &place, set).await?;
    }
    let mut queues: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg("queues")).await?;
    queues.sort_unstable();
    for queue in queues {
        search.list(redis, &queue).await?;
    }
    let owners: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg("sidebake:owners")).await?;
    for owner in owners {
        let hash = format!("sidebake:inflight:{owner}");
        let entries: HashMap<String, Vec<u8>> = redis.query(redis::cmd("HGETALL").arg(hash)).await?;
        for (field, entry) in &entries {
            let place = if is_idle(field) { Place::Held(owner.clone()) } else { Place::InFlight(owner.clone()) };
            search.look_at(&place, read_entry(entry).map(|(_, text)| text).unwrap_or_default());
        }
    }
    Ok(search.found)
}

struct Search<F> {
    is_meant: F,
    found: Vec<Found>,
}

impl<F: Fn(&Payload) -> bool> Search<F> {
    fn look_at(&mut self, place: &Place, text: &[u8]) {
        let Ok(payload) = Payload::parse(text) else { return };
        if payload.jid.is_empty() || !(self.is_meant)(&payload) {
            return;
        }
        // A push moves the rest of a list to the right, so one text may be seen on two pages.
        if !self.found.iter().any(|known| known.jid == payload.jid && known.place == *place) {
            self.found.push(Found { place: place.clone(), jid: payload.jid, text: text.to_vec() });
        }
    }

    async fn sorted_set(&mut self, redis: &Redis, place: &Place, set: &str) -> Result<(), RedisError> {
        let mut cursor = 0;
        loop {
            let scan = redis.query(redis::cmd("ZSCAN").arg(set).arg(cursor).arg("COUNT").arg(PAGE)).await?;
            let (next, members): (u64, Vec<(Vec<u8>, f64)>) = scan;
            members.iter().for_each(|(text, _)| self.look_at(place, text));
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    async fn list(&mut self, redis: &Redis, queue: &str) -> Result<(), RedisError> {
        let (key, place) = (format!("queue:{queue}"), Place::Queue(queue.to_owned()));
        for start in (0..).step_by(PAGE) {
            let page = redis.query(redis::cmd("LRANGE").arg(&key).arg(start).arg(start + PAGE - 1)).await;
            let texts: Vec<Vec<u8>> = match page {
                // Somebody's key of another type is no queue.
                Err(error) if error.code() == Some("WRONGTYPE") => break,
                page => page?,
            };
            texts.iter().for_each(|text| self.look_at(&place, text));
            if texts.len() < PAGE {
                break;
            }
        }
        Ok(())
    }
}

/// Marks a job as cancelled, and has it looked at now where it waits for a time.
pub async fn cancel(redis: &Redis, jobs: &Jobs, found: &Found, now: Epoch) -> Result<(), RedisError> {
    let key = key(&found.jid);
    let mut mark = redis::pipe();
    mark.cmd("HSETNX").arg(&key).arg("cancelled").arg(now.as_millis() / 1000).ignore();
    mark.cmd("EXPIRE").arg(&key).arg(TTL.as_secs()).ignore();
    redis.pipeline::<()>(&mark).await?;
    let set = match found.place {
        Place::Schedule => "schedule",
        Place::Retry => "retry",
        Place::Queue(_) | Place::InFlight(_) | Place::Held(_) => return Ok(()),
    };
    enqueue_member(redis, jobs, set, &found.text, now).await.map(drop)
}
