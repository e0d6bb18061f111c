//! Moves due jobs of this worker's classes from the retry set and the schedule to their queues.
//!
//! It leaves all other jobs to Ruby's pollers, since they need Ruby's client middleware. Ruby's poller pops and then pushes;
//! here one script moves one job, so a crash in between loses nothing. Timing follows Sidekiq 8.1.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use redis::RedisResult;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::keys;
use super::payload::Payload;
use crate::clock::Epoch;
use crate::redis::{Complaint, Complaints, Redis, RedisError, Script};
use crate::settings::Jobs;
use crate::{bounds, hex};

static DUE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("due.lua")));
static PAGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("page.lua")));

/// Members of a page. A page of long members takes more than one request.
const MEMBERS: usize = 500;

/// Members of a set, with their scores.
type Members = Vec<(Vec<u8>, f64)>;

/// Polls until the worker goes `quiet`, as Sidekiq's poller does.
pub async fn run(redis: &Redis, jobs: &Jobs, quiet: &CancellationToken) {
    let mut sets = [
        (
            keys::RETRY,
            Round::default(),
            Complaint::new("retry_set_not_polled", "jobs of the retry set cannot be moved"),
        ),
        (
            keys::SCHEDULE,
            Round::default(),
            Complaint::new("schedule_not_polled", "jobs of the schedule cannot be moved"),
        ),
    ];
    let mut wait = jobs.poll_interval.mul_f64(rand::random());
    while quiet.run_until_cancelled(sleep(wait)).await.is_some() {
        for (set, round, complaint) in &mut sets {
            // A set may hold very many due jobs, and a script moves each of them.
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

/// What the poller keeps of a set between polls.
#[derive(Debug, Default)]
struct Round {
    /// Where the search for cancelled jobs goes on: a page, and how many of its members it has read.
    cursor: u64,
    n_seen: usize,
    /// Why due jobs cannot be moved.
    stuck: Complaints,
}

/// Polls one set. Sends one request when there is nothing to move.
///
/// Each poll reads one page of the whole set for cancelled jobs. ZSCAN guarantees that a round of pages meets every job that
/// stays in the set that long.
async fn poll(redis: &Redis, jobs: &Jobs, set: &str, round: &mut Round, now: Epoch) -> Result<(), RedisError> {
    let waiting = page(redis, set, "scan", round.cursor, round.n_seen, now).await?;
    (round.cursor, round.n_seen) =
        if waiting.is_last { (waiting.cursor, 0) } else { (round.cursor, round.n_seen + waiting.members.len()) };
    let mut stuck = BTreeSet::new();
    if waiting.n_due > 0 {
        stuck = enqueue_due(redis, jobs, set, now).await?.stuck;
    }
    for why in round.stuck.news(stuck) {
        tracing::error!(event = "due_jobs_stuck", set, why, "due jobs cannot be moved");
    }
    enqueue_cancelled(redis, jobs, set, &waiting.members, now).await
}

/// Some members of a set.
struct Page {
    /// The cursor of the next page.
    cursor: u64,
    /// Whether these are the last members of the page.
    is_last: bool,
    /// How many members of the whole set are due.
    n_due: usize,
    members: Members,
}

/// Reads what fits into one reply of a page that begins at a rank or a cursor, after `n_seen` of its members.
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
    let mut count = redis::pipe();
    count.cmd("SCARD").arg(keys::PROCESSES);
    count.cmd("SET").arg(&[keys::PROCESS_CLEANUP, "1", "NX", "EX", "60"]);
    let Ok((n_processes, has_lock)) = redis.pipeline::<(u32, bool)>(&count).await else { return 1 };
    if has_lock && let Err(error) = prune(redis).await {
        tracing::debug!(%error, "dead processes stay on the list");
    }
    n_processes
}

/// Removes processes without a heartbeat for a minute from the list, once a minute in the whole fleet. Follows Ruby's
/// `ProcessSet#cleanup`. Otherwise each killed process would make all others poll less often forever.
async fn prune(redis: &Redis) -> Result<(), RedisError> {
    let processes: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg(keys::PROCESSES)).await?;
    for process in processes {
        if !redis.query::<bool>(redis::cmd("EXISTS").arg(&process)).await? {
            redis.query::<()>(redis::cmd("SREM").arg(keys::PROCESSES).arg(&process)).await?;
        }
    }
    Ok(())
}

/// What happened to the due jobs of a set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Enqueued {
    /// How many moved to their queues.
    pub n_moved: usize,
    /// Why others did not: a queue, and Redis' error.
    pub stuck: BTreeSet<String>,
}

/// Moves every job of this worker's classes in `set` that is due at `now`.
pub async fn enqueue_due(redis: &Redis, jobs: &Jobs, set: &str, now: Epoch) -> Result<Enqueued, RedisError> {
    let (mut enqueued, mut n_left) = (Enqueued::default(), 0);
    loop {
        // By rank, which Redis finds at once. It would count off an offset into a range of scores again for each page.
        let Page { is_last, members, .. } = page(redis, set, "rank", n_left, 0, now).await?;
        let is_due = |score: f64| score <= now.as_secs_f64();
        let is_last = is_last && members.len() < MEMBERS || members.last().is_some_and(|(_, score)| !is_due(*score));
        for (member, _) in members.into_iter().take_while(|(_, score)| is_due(*score)) {
            // Members that stay, such as other classes' jobs, must not hide what comes after them.
            match moved_text(jobs, &member, now) {
                Some((queue, text)) => match move_one(redis, set, &member, &queue, &text).await {
                    Ok(n) => enqueued.n_moved += n,
                    // A queue of the wrong type, for example, must not hold up the jobs behind it.
                    Err(error) if matches!(error.code(), Some("REFUSED" | "NOPERM")) => {
                        enqueued.stuck.insert(format!("{}: {error}", keys::queue(&queue)));
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

/// Moves this worker's cancelled jobs among these members of `set` to their queues, whatever their time. Goes on after an
/// error, and returns the first one.
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
        marks.cmd("HEXISTS").arg(keys::iteration(jid)).arg("cancelled");
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

/// Moves one member of a set to its queue, if it is one of this worker's jobs and still there.
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

/// Queue and text of one of this worker's jobs; `None` for anything else.
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
    script.key(keys::QUEUES).key(keys::queue(queue)).arg(member).arg(text).arg(hex::random::<16>());
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
