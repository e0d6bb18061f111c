//! Moves due jobs of our classes from the retry set and the schedule to their queues.
//!
//! Rails' other jobs need Ruby's client middleware and are left to Ruby's pollers. Unlike Ruby's, which pops and then
//! pushes, a crash in between loses nothing: one script moves one job. Timing follows Sidekiq 8.1.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use redis::RedisResult;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::iteration;
use super::payload::Payload;
use crate::bounds;
use crate::clock::Epoch;
use crate::redis::{Complaint, Complaints, Redis, RedisError, Script};
use crate::settings::Jobs;

static DUE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("due.lua")));
static PAGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("page.lua")));

/// Members of a page, which takes more than one request when they are long.
const MEMBERS: usize = 500;

/// Members of a set, with their scores.
type Members = Vec<(Vec<u8>, f64)>;

/// Polls until the worker goes `quiet`, as Sidekiq's does.
pub async fn run(redis: &Redis, jobs: &Jobs, quiet: &CancellationToken) {
    let mut sets = [
        ("retry", Round::default(), Complaint::that("jobs of the retry set cannot be moved")),
        ("schedule", Round::default(), Complaint::that("jobs of the schedule cannot be moved")),
    ];
    let mut wait = jobs.poll_interval.mul_f64(rand::random());
    while quiet.run_until_cancelled(sleep(wait)).await.is_some() {
        for (set, round, complaint) in &mut sets {
            // There may be very many, and each is moved by a script of its own.
            let polled = quiet.run_until_cancelled(poll(redis, jobs, set, round, Epoch::now())).await;
            let Some(polled) = polled else { return };
            complaint.hear(polled);
        }
        let n_processes = n_processes(redis).await;
        wait = match jobs.poll_interval_average {
            Some(average) => pause(average, 1, rand::random()),
            None => pause(jobs.poll_interval, n_processes, rand::random()),
        };
    }
}

/// What is kept of a set between polls.
#[derive(Debug, Default)]
struct Round {
    /// Where in the set cancelled jobs are looked for next: a page, and how many of its members were looked at.
    cursor: u64,
    n_seen: usize,
    /// Why due jobs cannot be moved.
    stuck: Complaints,
}

/// One request where nothing is to be moved.
///
/// Cancelled jobs are looked for everywhere in the set, a page each poll: the cursor wanders, and Redis sees to it that it
/// meets whatever waits for a whole round.
async fn poll(redis: &Redis, jobs: &Jobs, set: &str, round: &mut Round, now: Epoch) -> Result<(), RedisError> {
    let waiting = page(redis, set, "scan", round.cursor, round.n_seen, now).await?;
    (round.cursor, round.n_seen) =
        if waiting.is_last { (waiting.cursor, 0) } else { (round.cursor, round.n_seen + waiting.members.len()) };
    let mut stuck = BTreeSet::new();
    if waiting.n_due > 0 {
        stuck = enqueue_due(redis, jobs, set, now).await?.stuck;
    }
    for why in round.stuck.news(stuck) {
        tracing::error!(set, why, "due jobs cannot be moved");
    }
    enqueue_cancelled(redis, jobs, set, &waiting.members, now).await
}

/// Some members of a set.
struct Page {
    /// Where a scan goes on after the page.
    cursor: u64,
    /// Whether nothing more of the page follows.
    is_last: bool,
    /// How many members of the whole set are due.
    n_due: usize,
    members: Members,
}

/// What fits into one reply of a page that begins at a rank or a cursor, after `n_seen` members of it.
async fn page(redis: &Redis, set: &str, by: &str, start: u64, n_seen: usize, now: Epoch) -> Result<Page, RedisError> {
    let mut script = PAGE.key(set);
    script.arg(by).arg(start).arg(MEMBERS).arg(n_seen).arg(bounds::PAGE).arg(now.as_secs_f64());
    let (cursor, is_last, n_due, members) = redis.script(&script).await?;
    Ok(Page { cursor, is_last, n_due, members })
}

/// Pause between polls, so that the fleet as a whole polls once per `interval` on average. `jitter` is in 0..1.
fn pause(interval: Duration, n_processes: u32, jitter: f64) -> Duration {
    let average = interval * n_processes.max(1);
    if n_processes < 10 { average.mul_f64(jitter) + average / 2 } else { average.mul_f64(2.0 * jitter) }
}

/// How many processes share the polling, at least one.
async fn n_processes(redis: &Redis) -> u32 {
    let mut look = redis::pipe();
    look.cmd("SCARD").arg("processes");
    look.cmd("SET").arg(&["process_cleanup", "1", "NX", "EX", "60"]);
    let Ok((n_processes, is_our_turn)) = redis.pipeline::<(u32, bool)>(&look).await else { return 1 };
    if is_our_turn && let Err(error) = prune(redis).await {
        tracing::debug!(%error, "processes that have gone stay on the list");
    }
    n_processes
}

/// Takes processes off the list that have not beaten for a minute, once a minute in the whole fleet: what Ruby's
/// `ProcessSet#cleanup` does. Otherwise each one that was killed would make all others poll less often, for ever.
async fn prune(redis: &Redis) -> Result<(), RedisError> {
    let processes: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg("processes")).await?;
    for process in processes {
        if !redis.query::<bool>(redis::cmd("EXISTS").arg(&process)).await? {
            redis.query::<()>(redis::cmd("SREM").arg("processes").arg(&process)).await?;
        }
    }
    Ok(())
}

/// What became of the due jobs of a set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Enqueued {
    /// How many are on their queues.
    pub n_moved: usize,
    /// Why others are not: a queue, and what Redis says of it.
    pub stuck: BTreeSet<String>,
}

/// Moves every job of this worker's classes in `set` that is due at `now`.
pub async fn enqueue_due(redis: &Redis, jobs: &Jobs, set: &str, now: Epoch) -> Result<Enqueued, RedisError> {
    let (mut enqueued, mut n_left) = (Enqueued::default(), 0);
    loop {
        // By rank, which Redis finds at once. It would count off an offset into a range of scores, for each page anew.
        let Page { is_last, members, .. } = page(redis, set, "rank", n_left, 0, now).await?;
        let is_due = |score: f64| score <= now.as_secs_f64();
        let is_last = is_last && members.len() < MEMBERS || members.last().is_some_and(|(_, score)| !is_due(*score));
        for (member, _) in members.into_iter().take_while(|(_, score)| is_due(*score)) {
            // What stays, others' jobs and what is no job at all, must not hide what comes after it.
            match moved_text(jobs, &member, now) {
                Some((queue, text)) => match move_one(redis, set, &member, &queue, &text).await {
                    Ok(n) => enqueued.n_moved += n,
                    // Such as a queue of the wrong type: it must not hold up the jobs behind it.
                    Err(error) if matches!(error.code(), Some("REFUSED" | "NOPERM")) => {
                        enqueued.stuck.insert(format!("queue:{queue}: {error}"));
                        n_left += 1;
                    }
                    Err(error) => return Err(error),
                },
                None => n_left += 1,
            }
        }
        if is_last {
            return Ok(enqueued);
        }
    }
}

/// Moves jobs of ours among these members of `set` that are cancelled: their end need not wait for their time. The error is
/// the first one; it hides no other job.
async fn enqueue_cancelled(
    redis: &Redis,
    jobs: &Jobs,
    set: &str,
    members: &[(Vec<u8>, f64)],
    now: Epoch,
) -> Result<(), RedisError> {
    let ours = members.iter().filter_map(|(member, _)| {
        let payload = Payload::parse(member).ok()?;
        (jobs.runs(&payload.class) && !payload.jid.is_empty()).then_some((member, payload.jid))
    });
    let ours: Vec<_> = ours.collect();
    if ours.is_empty() {
        return Ok(());
    }
    let mut marks = redis::pipe();
    marks.ignore_errors();
    for (_, jid) in &ours {
        marks.cmd("HEXISTS").arg(iteration::key(jid)).arg("cancelled");
    }
    let marks: Vec<RedisResult<bool>> = redis.pipeline(&marks).await?;
    let mut result = Ok(());
    for ((member, _), is_cancelled) in ours.iter().zip(marks) {
        let moved = match is_cancelled {
            Ok(true) => enqueue_member(redis, jobs, set, member, now).await.map(drop),
            other => other.map(drop),
        };
        result = result.and(moved);
    }
    result
}

/// Moves one member of a set to its queue, when it is a job of ours and still there.
pub(super) async fn enqueue_member(
    redis: &Redis,
    jobs: &Jobs,
    set: &str,
    member: &[u8],
    now: Epoch,
) -> Result<usize, RedisError> {
    match moved_text(jobs, member, now) {
        Some((queue, text)) => move_one(redis, set, member, &queue, &text).await,
        None => Ok(0),
    }
}

/// Queue and text of a job of ours; `None` for anything else.
fn moved_text(jobs: &Jobs, member: &[u8], now: Epoch) -> Option<(String, Vec<u8>)> {
    let payload = Payload::parse(member).ok()?;
    jobs.runs(&payload.class).then(|| {
        let queue = payload.queue().unwrap_or_else(|| "default".into());
        let text = payload.enqueued(&queue, now, jobs.timestamps);
        (queue, text)
    })
}

async fn move_one(redis: &Redis, set: &str, member: &[u8], queue: &str, text: &[u8]) -> Result<usize, RedisError> {
    let mut script = DUE.key(set);
    script.key("queues").key(format!("queue:{queue}")).arg(member).arg(text).arg(super::random_hex::<16>());
    redis.script(&script).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_fleet_polls_less_often_each() {
        let five = Duration::from_secs(5);
        assert_eq!(pause(five, 1, 0.0), Duration::from_millis(2500));
        assert_eq!(pause(five, 1, 1.0), Duration::from_millis(7500));
        assert_eq!(pause(five, 10, 0.5), Duration::from_secs(50));
    }

    #[test]
    fn only_our_classes_are_moved_and_only_enqueued_at_changes() {
        let jobs = Jobs::default();
        let member =
            br#"{"class":"BuildJob","args":[],"queue":"builds","x":1e400,"jid":"j","created_at":1795491695123}"#;
        let (queue, text) = moved_text(&jobs, member, Epoch::from_secs_f64(2.0)).expect("ours");
        assert_eq!(queue, "builds");
        assert_eq!(
            String::from_utf8(text).expect("UTF-8"),
            r#"{"class":"BuildJob","args":[],"queue":"builds","x":1e400,"jid":"j","created_at":1795491695123,"enqueued_at":2000}"#
        );
        assert!(moved_text(&jobs, br#"{"class":"MailJob"}"#, Epoch::now()).is_none());
        assert!(moved_text(&jobs, br#"{"class":"Sidebake::Probe"}"#, Epoch::now()).is_none());
        assert!(moved_text(&jobs, b"nonsense", Epoch::now()).is_none());
    }
}
