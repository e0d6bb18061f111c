//! Moves due jobs from the retry set and the schedule to their queues: this worker's own, and jobs of Ruby's that are like any other.
//!
//! Ruby's processes poll less often the more processes Sidekiq lists, and workers are listed. So one process of the fleet polls for
//! Ruby too (`jobs.poll_others`). It leaves jobs to Ruby's pollers that need Ruby's client middleware. Ruby's poller pops and then
//! pushes; here one script moves one job, so a crash in between loses nothing. Follows Sidekiq 8.1.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use redis::RedisResult;
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::payload::Payload;
use super::{Identity, keys, shown};
use crate::clock::Epoch;
use crate::redis::{Complaint, Complaints, Redis, RedisError, Script};
use crate::settings::{Jobs, PROBE, PollOthers};
use crate::{bounds, hex};

static DUE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("due.lua")));
static PAGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("page.lua")));
static POLLER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("poller.lua")));

/// Members of a page of due jobs. A page of long members takes more than one request.
const RANKED: usize = 500;

/// The pause before the next look when a look has left due jobs because there were too many.
const AGAIN: Duration = Duration::from_millis(100);

/// Members of a page of the whole set. Redis reads all of a page, so pages of long members are smaller.
const SCANNED: std::ops::RangeInclusive<usize> = 10..=500;

/// Members of a set, with their scores.
type Members = Vec<(Vec<u8>, f64)>;

/// Polls until the worker goes `quiet`, as Sidekiq's poller does.
pub async fn run(redis: &Redis, jobs: &Jobs, identity: &Identity, quiet: &CancellationToken) {
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
    let interval = jobs.poll_interval_average.unwrap_or(jobs.poll_interval);
    let turn = jobs.poll_interval_average.is_none().then(|| Turn::new(jobs, identity));
    let mut wait = interval.mul_f64(rand::random());
    'polls: while quiet.run_until_cancelled(sleep(wait)).await.is_some() {
        wait = pause(interval, rand::random());
        if let Some(turn) = &turn
            && !turn.take(redis).await
        {
            continue;
        }
        let (now, mut look) = (server_time(redis).await, Look::Complete);
        for (set, round, complaint) in &mut sets {
            // A set may hold very many due jobs, and a script moves each of them.
            let polled = quiet.run_until_cancelled(poll(redis, jobs, set, round, now)).await;
            let Some(polled) = polled else { break 'polls };
            look = look.max(complaint.hear(polled).unwrap_or(Look::Failed));
        }
        if let Err(error) = prune(redis).await {
            tracing::debug!(%error, "dead processes stay on the list");
        }
        match (look, &turn) {
            (Look::Complete, _) | (Look::Failed, None) => {}
            (Look::Cut, _) => wait = AGAIN,
            (Look::Failed, Some(turn)) => {
                turn.give_back(redis).await;
                // Longer than the longest pause of the others.
                wait += interval;
            }
        }
    }
    if let Some(turn) = turn {
        turn.give_back(redis).await;
    }
}

/// By Redis' clock: this worker's may be wrong. Without the right to TIME, this worker's clock has to do.
async fn server_time(redis: &Redis) -> Epoch {
    match redis.query::<(u64, u64)>(&redis::cmd("TIME")).await {
        Ok((seconds, microseconds)) => Epoch::from_millis(seconds * 1000 + microseconds / 1000),
        Err(_) => Epoch::now(),
    }
}

/// What a look at a set came to, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    /// All due jobs that this worker may move have moved.
    Complete,
    /// Due jobs of others are left for the next look.
    Cut,
    /// Jobs stay that another worker may be able to move.
    Failed,
}

/// The turn to poll. One process of those with the same settings has it.
struct Turn {
    key: String,
    holder: String,
    expires_after: Duration,
}

impl Turn {
    fn new(jobs: &Jobs, identity: &Identity) -> Self {
        Self { key: keys::poller(digest(jobs)), holder: identity.to_string(), expires_after: 2 * jobs.poll_interval }
    }

    /// Whether this process polls now. The one that polled last goes on, since it knows what it has seen.
    async fn take(&self, redis: &Redis) -> bool {
        // Moving jobs matters more than saving work. An outage also fails the poll, which complains.
        self.send(redis, self.expires_after).await.unwrap_or(true)
    }

    /// Lets another process poll.
    async fn give_back(&self, redis: &Redis) {
        if let Err(error) = self.send(redis, Duration::ZERO).await {
            tracing::debug!(%error, "the turn to poll is kept until it expires");
        }
    }

    async fn send(&self, redis: &Redis, expires_after: Duration) -> Result<bool, RedisError> {
        let mut script = POLLER.key(&self.key);
        script.arg(&self.holder).arg(expires_after.as_millis() as u64);
        redis.script(&script).await
    }
}

/// Names the settings that decide which jobs a process moves, and how often. Processes with the same ones take turns.
fn digest(jobs: &Jobs) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{:?} {} {:?}", jobs.poll_others, jobs.probe, jobs.poll_interval));
    jobs.classes.keys().for_each(|class| digest.update(format!("\n{class}")));
    hex::encode(&digest.finalize()[..6])
}

/// What the poller keeps of a set between polls.
#[derive(Debug, Default)]
struct Round {
    /// Where the search for cancelled jobs goes on: a page, and how many of its members it has read.
    cursor: u64,
    n_seen: usize,
    /// Members of a page. The first one is small.
    n_members: usize,
    /// The due jobs of the last look that are left in the set.
    seen: Option<Seen>,
    /// Where the moving of other classes' jobs goes on, after a look that was cut.
    rest: Option<Seen>,
    /// Why due jobs cannot be moved: what is logged, and what this round of pages has met.
    stuck: Complaints,
    met: BTreeSet<String>,
}

/// Due jobs that were looked at and left, such as Ruby's own while no Ruby process runs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    /// Jobs with at most this score.
    until: f64,
    n_left: usize,
}

impl Round {
    /// The rank of the first due job that may be new; `None` when all of them have been looked at.
    ///
    /// A job that comes in among old ones makes them more. When another one leaves at the same time, the round of pages finds it.
    fn new_from(&mut self, page: &Page) -> Option<usize> {
        let Some(seen) = &mut self.seen else { return (page.n_due > 0).then_some(0) };
        if page.n_old > seen.n_left {
            return Some(0);
        }
        seen.n_left = page.n_old;
        (page.n_due > page.n_old).then_some(page.n_old)
    }

    /// Goes on behind what was read of a page.
    fn advance(&mut self, page: &Page) {
        if !page.is_last {
            self.n_seen += page.n_read;
            return;
        }
        (self.cursor, self.n_seen) = (page.cursor, 0);
        let n_members = self.page_size();
        self.n_members = if page.size_bytes > bounds::PAGE { n_members / 2 } else { n_members * 2 };
    }

    fn page_size(&self) -> usize {
        self.n_members.clamp(*SCANNED.start(), *SCANNED.end())
    }

    /// Takes the failures of a poll; returns what is new. A failure is over only when a whole round of pages has not met it.
    fn hear(&mut self, stuck: BTreeSet<String>) -> Vec<String> {
        self.met.extend(stuck);
        let is_over = (self.cursor, self.n_seen) == (0, 0);
        let known = if is_over { BTreeSet::new() } else { self.stuck.last().clone() };
        let now = known.union(&self.met).cloned().collect();
        if is_over {
            self.met.clear();
        }
        self.stuck.news(now)
    }
}

/// Polls one set. Sends one request when there is nothing to move, however many due jobs are left to Ruby.
///
/// Each poll reads one page of the whole set for cancelled jobs. ZSCAN guarantees that a round of pages meets every job that
/// stays in the set that long.
async fn poll(redis: &Redis, jobs: &Jobs, set: &str, round: &mut Round, now: Epoch) -> Result<Look, RedisError> {
    let until = round.seen.map_or(f64::NEG_INFINITY, |seen| seen.until);
    let (start, n_members, n_seen) = (round.cursor, round.page_size(), round.n_seen);
    let request = PageRequest { by: "scan", start, n_members, n_seen, until };
    let page = request.send(redis, jobs, set, now).await?;
    round.advance(&page);
    let mut stuck = BTreeSet::new();
    let from = round.new_from(&page);
    if let Some(from) = from {
        let own = Jobs { poll_others: PollOthers::None, ..jobs.clone() };
        let enqueued = enqueue_due(redis, &own, set, from, usize::MAX, now).await?;
        round.seen = Some(Seen { until: now.as_secs_f64(), n_left: from + enqueued.n_left });
        stuck = enqueued.stuck;
    }
    let waiting = enqueue_waiting(redis, jobs, set, &page.members, until, now).await;
    stuck.extend(waiting.stuck);
    for why in round.hear(stuck) {
        tracing::error!(event = "due_jobs_stuck", set, why, "due jobs cannot be moved");
    }
    let is_denied = jobs.poll_others != PollOthers::None && enqueue_others(redis, jobs, set, round, from, now).await?;
    waiting.result?;
    Ok(match round.rest {
        _ if is_denied || !round.stuck.last().is_empty() => Look::Failed,
        Some(_) => Look::Cut,
        None => Look::Complete,
    })
}

/// Moves due jobs of other classes, after this worker's own: from this rank on, and from where the last look was cut. Returns
/// whether Redis refused any of them.
async fn enqueue_others(
    redis: &Redis,
    jobs: &Jobs,
    set: &str,
    round: &mut Round,
    from: Option<usize>,
    now: Epoch,
) -> Result<bool, RedisError> {
    let from = match (round.rest, from) {
        (Some(rest), _) => {
            let n_old: usize = redis.query(redis::cmd("ZCOUNT").arg(set).arg("-inf").arg(rest.until)).await?;
            // A job that came in among those that were looked at may be anywhere among them.
            if n_old > rest.n_left { 0 } else { n_old }
        }
        (None, Some(from)) => from,
        (None, None) => return Ok(false),
    };
    let enqueued = enqueue_due(redis, jobs, set, from, bounds::OTHERS_DUE, now).await?;
    round.rest = enqueued.cut_at.map(|until| Seen { until, n_left: from + enqueued.n_left });
    if let Some(seen) = &mut round.seen {
        seen.n_left = seen.n_left.saturating_sub(enqueued.n_moved);
    }
    Ok(enqueued.is_denied)
}

/// Asks for a page.
#[derive(Clone, Copy)]
struct PageRequest {
    by: &'static str,
    /// A rank or a cursor.
    start: u64,
    n_members: usize,
    /// How many members of the page were read before.
    n_seen: usize,
    /// A score up to which members are counted.
    until: f64,
}

/// Some members of a set.
struct Page {
    /// The cursor of the next page.
    cursor: u64,
    /// Whether the page was read to its end.
    is_last: bool,
    /// How many members of the whole set are due.
    n_due: usize,
    /// How many members have at most the score of the request.
    n_old: usize,
    /// How many members were read.
    n_read: usize,
    /// Of all members of the page.
    size_bytes: usize,
    /// Those of them that this worker may move.
    members: Members,
}

impl PageRequest {
    /// The due members from this rank on.
    fn by_rank(start: usize) -> Self {
        Self { by: "rank", start: start as u64, n_members: RANKED, n_seen: 0, until: f64::NEG_INFINITY }
    }

    /// Reads what fits into one reply.
    async fn send(self, redis: &Redis, jobs: &Jobs, set: &str, now: Epoch) -> Result<Page, RedisError> {
        let mut script = PAGE.key(set);
        script.arg(self.by).arg(self.start).arg(self.n_members).arg(self.n_seen).arg(bounds::PAGE);
        script.arg(now.as_secs_f64()).arg(self.until);
        // The search for cancelled jobs is about this worker's own.
        if self.by == "scan" || jobs.poll_others == PollOthers::None {
            for name in names(jobs) {
                script.arg(name);
            }
        }
        let (cursor, is_last, n_due, n_old, n_read, size_bytes, members) = redis.script(&script).await?;
        Ok(Page { cursor, is_last, n_due, n_old, n_read, size_bytes, members })
    }
}

/// Texts of which each of this worker's jobs has one; none when JSON may spell a name in another way.
fn names(jobs: &Jobs) -> impl Iterator<Item = &str> {
    let is_spelled = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:.".contains(&byte));
    let can_filter = jobs.classes.keys().all(|name| is_spelled(name));
    let own = [shown::MALFORMED, PROBE];
    jobs.classes.keys().map(String::as_str).chain(own).filter(move |_| can_filter)
}

/// Pause between polls. `jitter` is in 0..1.
fn pause(interval: Duration, jitter: f64) -> Duration {
    interval.mul_f64(jitter) + interval / 2
}

/// Removes processes without a heartbeat for a minute from the list, once a minute in the whole fleet. Follows Ruby's
/// `ProcessSet#cleanup`. Otherwise each killed process would make all others poll less often forever.
async fn prune(redis: &Redis) -> Result<(), RedisError> {
    let lock = redis::cmd("SET").arg(&[keys::PROCESS_CLEANUP, "1", "NX", "EX", "60"]).to_owned();
    if !redis.query::<bool>(&lock).await? {
        return Ok(());
    }
    let processes: Vec<String> = redis.query(redis::cmd("SMEMBERS").arg(keys::PROCESSES)).await?;
    for process in processes {
        if !redis.query::<bool>(redis::cmd("EXISTS").arg(&process)).await? {
            redis.query::<()>(redis::cmd("SREM").arg(keys::PROCESSES).arg(&process)).await?;
        }
    }
    Ok(())
}

/// What happened to the due jobs of a set.
#[derive(Debug, Default, PartialEq)]
pub struct Enqueued {
    /// How many moved to their queues.
    pub n_moved: usize,
    /// How many of those that were looked at stay.
    pub n_left: usize,
    /// The score of the last job that was looked at, when there were more jobs than may move.
    pub cut_at: Option<f64>,
    /// Whether Redis refused to move a job of another class.
    pub is_denied: bool,
    /// Why jobs of this worker stay: a queue, and Redis' error.
    pub stuck: BTreeSet<String>,
}

/// Moves up to `max` of the jobs in `set` that are due at `now`, from this rank on, as far as they are this worker's to move.
pub async fn enqueue_due(
    redis: &Redis,
    jobs: &Jobs,
    set: &str,
    from: usize,
    max: usize,
    now: Epoch,
) -> Result<Enqueued, RedisError> {
    let mut enqueued = Enqueued::default();
    loop {
        // By rank, which Redis finds at once. It would count off an offset into a range of scores again for each page.
        let start = from + enqueued.n_left;
        let page = PageRequest::by_rank(start).send(redis, jobs, set, now).await?;
        let mut n_gone = 0;
        for (index, (member, score)) in page.members.iter().enumerate() {
            match enqueue_member(redis, jobs, set, member, now).await? {
                Move::Gone => n_gone += 1,
                Move::Left => {}
                Move::Denied => enqueued.is_denied = true,
                Move::Stuck(why) => {
                    enqueued.stuck.insert(why);
                }
            }
            if enqueued.n_moved + n_gone == max {
                enqueued.n_moved = max;
                enqueued.n_left += index + 1 - n_gone;
                enqueued.cut_at = Some(*score);
                return Ok(enqueued);
            }
        }
        enqueued.n_moved += n_gone;
        // Members that stay, such as other classes' jobs, must not hide what comes after them.
        enqueued.n_left += page.n_read - n_gone;
        if page.n_read == 0 || start + page.n_read >= page.n_due {
            return Ok(enqueued);
        }
    }
}

/// How long the oldest due job of another class has waited. Looks at the first page of each set.
pub async fn oldest_of_others(redis: &Redis, jobs: &Jobs, now: Epoch) -> Result<Option<Duration>, RedisError> {
    let all = Jobs { poll_others: PollOthers::All, ..jobs.clone() };
    let is_others = |member: &[u8]| Payload::parse(member).is_ok_and(|payload| !jobs.runs(&payload.class));
    let mut oldest = None;
    for set in [keys::RETRY, keys::SCHEDULE] {
        let page = PageRequest::by_rank(0).send(redis, &all, set, now).await?;
        let first = page.members.iter().find(|(member, _)| is_others(member));
        oldest = oldest.max(first.map(|(_, score)| now.since(Epoch::from_secs_f64(score.max(0.0)))));
    }
    Ok(oldest)
}

/// What came of the waiting jobs of a page.
struct Waiting {
    stuck: BTreeSet<String>,
    result: Result<(), RedisError>,
}

/// Moves this worker's jobs among these members of `set` that are cancelled, whatever their time, and those that an earlier look at due
/// jobs has left. Goes on after an error, and returns the first one.
async fn enqueue_waiting(
    redis: &Redis,
    jobs: &Jobs,
    set: &str,
    members: &[(Vec<u8>, f64)],
    until: f64,
    now: Epoch,
) -> Waiting {
    let mut waiting = Waiting { stuck: BTreeSet::new(), result: Ok(()) };
    let ours = members.iter().filter_map(|(member, score)| {
        let payload = Payload::parse(member).ok()?;
        jobs.runs(&payload.class).then_some((member, *score <= until, payload.jid))
    });
    let ours: Vec<_> = ours.collect();
    let mut marks = redis::pipe();
    marks.ignore_errors();
    for (_, is_old, jid) in &ours {
        if !is_old && !jid.is_empty() {
            marks.cmd("HEXISTS").arg(keys::iteration(jid)).arg("cancelled");
        }
    }
    let mut marks: std::vec::IntoIter<RedisResult<bool>> = if marks.is_empty() {
        Vec::new().into_iter()
    } else {
        match redis.pipeline::<Vec<RedisResult<bool>>>(&marks).await {
            Ok(marks) => marks.into_iter(),
            Err(error) => return Waiting { result: Err(error), ..waiting },
        }
    };
    for (member, is_old, jid) in ours {
        let is_wanted = if is_old || jid.is_empty() { Ok(is_old) } else { marks.next().unwrap_or(Ok(false)) };
        let moved = match is_wanted {
            Ok(true) => enqueue_member(redis, jobs, set, member, now).await,
            other => other.map(|_| Move::Left),
        };
        match moved {
            Ok(Move::Stuck(why)) => {
                waiting.stuck.insert(why);
            }
            moved => waiting.result = waiting.result.and(moved.map(drop)),
        }
    }
    waiting
}

/// What came of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// It is on its queue: this process or another one moved it.
    Gone,
    /// It is not this worker's to move.
    Left,
    /// It is another class's, and Redis refuses to move it for this worker.
    Denied,
    /// It stays for this reason, which names its queue. Jobs behind it can be moved.
    Stuck(String),
}

/// Moves one member of a set to its queue, if it is this worker's to move and still there.
pub(super) async fn enqueue_member(
    redis: &Redis,
    jobs: &Jobs,
    set: &str,
    member: &[u8],
    now: Epoch,
) -> Result<Move, RedisError> {
    let Some(Movable { queue, text, is_own }) = Movable::read(jobs, member, now) else { return Ok(Move::Left) };
    let mut script = DUE.key(set);
    script.key(keys::QUEUES).key(keys::queue(&queue)).arg(member).arg(text).arg(hex::random::<16>());
    match redis.script::<()>(&script).await {
        Ok(()) => Ok(Move::Gone),
        Err(error) if matches!(error.code(), Some("REFUSED" | "NOPERM")) => {
            // Ruby or another worker may have the right that this worker lacks.
            Ok(if is_own { Move::Stuck(format!("{}: {error}", keys::queue(&queue))) } else { Move::Denied })
        }
        Err(error) => Err(error),
    }
}

/// A job that this worker may move.
#[derive(Debug, PartialEq, Eq)]
struct Movable {
    queue: String,
    /// The text for the queue.
    text: Vec<u8>,
    is_own: bool,
}

impl Movable {
    fn read(jobs: &Jobs, member: &[u8], now: Epoch) -> Option<Self> {
        let payload = Payload::parse(member).ok()?;
        if jobs.runs(&payload.class) {
            let queue = payload.queue().unwrap_or_else(|| "default".into());
            let text = payload.enqueued(&queue, now, jobs.timestamps);
            return Some(Self { queue, text, is_own: true });
        }
        let is_for_us = match jobs.poll_others {
            PollOthers::None => false,
            PollOthers::Plain => payload.is_plain(),
            PollOthers::All => true,
        };
        if !is_for_us || payload.class.starts_with("Sidebake::") {
            return None;
        }
        Some(Self { queue: payload.queue()?, text: payload.enqueued_for_ruby(member, now)?, is_own: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::JobClass;

    #[test]
    fn one_process_polls_once_in_each_interval() {
        let five = Duration::from_secs(5);
        assert_eq!(pause(five, 0.0), Duration::from_millis(2500));
        assert_eq!(pause(five, 1.0), Duration::from_millis(7500));
    }

    fn jobs_of(class: &str) -> Jobs {
        Jobs { classes: [(class.to_owned(), JobClass::default())].into(), ..Jobs::default() }
    }

    #[test]
    fn workers_that_move_other_jobs_do_not_take_turns_with_each_other() {
        let turns = [
            jobs_of("A"),
            jobs_of("B"),
            Jobs { probe: true, ..jobs_of("A") },
            Jobs { poll_others: PollOthers::All, ..jobs_of("A") },
            Jobs { poll_interval: Duration::from_secs(3600), ..jobs_of("A") },
        ];
        let turns: BTreeSet<String> = turns.iter().map(digest).collect();
        assert_eq!(turns.len(), 5);
        assert!(turns.contains(&digest(&Jobs { max_retries: 1, ..jobs_of("A") })));
    }

    #[test]
    fn a_page_leaves_out_texts_without_the_name_of_a_class_unless_json_may_spell_it_otherwise() {
        assert_eq!(names(&jobs_of("A::Build_1")).collect::<Vec<_>>(), ["A::Build_1", shown::MALFORMED, PROBE]);
        assert_eq!(names(&jobs_of("Bäcker")).count(), 0);
    }

    fn moved(poll_others: PollOthers, member: &str) -> Option<(String, String)> {
        let jobs = Jobs { poll_others, ..Jobs::default() };
        let movable = Movable::read(&jobs, member.as_bytes(), Epoch::from_secs_f64(2.0))?;
        Some((movable.queue, String::from_utf8(movable.text).expect("UTF-8")))
    }

    #[test]
    fn only_enqueued_at_changes_in_a_job_of_ours() {
        let member =
            r#"{"class":"BuildJob","args":[],"queue":"builds","x":1e400,"jid":"j","created_at":1795491695123}"#;
        let (queue, text) = moved(PollOthers::None, member).expect("ours");
        assert_eq!(queue, "builds");
        assert_eq!(
            text,
            r#"{"class":"BuildJob","args":[],"queue":"builds","x":1e400,"jid":"j","created_at":1795491695123,"enqueued_at":2000}"#
        );
        assert_eq!(moved(PollOthers::All, "nonsense"), None);
    }

    /// What Sidekiq 7.3 and 8.1 put into the schedule, and what client middleware leaves in it.
    #[test]
    fn a_job_of_another_class_is_moved_as_the_settings_say_and_as_ruby_moves_it() {
        let job = r#"{"retry":true,"queue":"mails","class":"MailJob","args":[1.10,1e400],"jid":"j","created_at":1795491695.5}"#;
        let enqueued = job.replace("95.5}", r#"95.5,"enqueued_at":2.0}"#);
        let as_moved = Some(("mails".to_owned(), enqueued));
        assert_eq!(moved(PollOthers::None, job), None);
        assert_eq!([moved(PollOthers::Plain, job), moved(PollOthers::All, job)], [as_moved.clone(), as_moved]);

        let marked = job.replace(r#""jid""#, r#""unique_for":60,"jid""#);
        assert_eq!(moved(PollOthers::Plain, &marked), None);
        assert!(moved(PollOthers::All, &marked).is_some());
        // Ruby's client would add the field, or sidebake could not carry the job as it is.
        for (from, to) in [
            (r#""retry":true,"#, ""),
            (r#","jid":"j""#, ""),
            (r#""queue":"mails""#, r#""queue":"""#),
            (r#""args":[1.10,1e400]"#, r#""args":{}"#),
            (r#""jid":"j""#, r#""jid":"j","tags":7"#),
            ("MailJob", "Sidebake::Probe"),
            (r#""jid":"j""#, r#""jid":"j","at":1795491700"#),
        ] {
            assert!(job.contains(from));
            assert_eq!(moved(PollOthers::All, &job.replace(from, to)), None, "{to}");
        }
    }

    fn page() -> Page {
        Page { cursor: 0, is_last: true, n_due: 0, n_old: 0, n_read: 0, size_bytes: 0, members: Vec::new() }
    }

    #[test]
    fn pages_of_long_members_are_smaller_and_the_rest_of_a_page_comes_first() {
        let mut round = Round::default();
        let mut sizes = Vec::new();
        for size_bytes in [0, 0, 0, 0, 0, 0, 0, bounds::PAGE + 1, bounds::PAGE + 1, 0] {
            sizes.push(round.page_size());
            round.advance(&Page { cursor: 7, size_bytes, ..page() });
        }
        assert_eq!(sizes, [10, 20, 40, 80, 160, 320, 500, 500, 250, 125]);
        let n_members = round.page_size();
        round.advance(&Page { is_last: false, n_read: 3, ..page() });
        assert_eq!((round.cursor, round.n_seen, round.page_size()), (7, 3, n_members));
    }

    #[test]
    fn due_jobs_that_stay_are_looked_at_once() {
        let page = |n_due, n_old| Page { n_due, n_old, ..page() };
        let mut round = Round::default();
        assert_eq!((round.new_from(&page(0, 0)), round.new_from(&page(7, 0))), (None, Some(0)));
        round.seen = Some(Seen { until: 1.0, n_left: 7 });
        assert_eq!(round.new_from(&page(7, 7)), None);
        assert_eq!(round.new_from(&page(9, 7)), Some(7), "two of them are new");
        assert_eq!(round.new_from(&page(9, 8)), Some(0), "one came in among them");
        assert_eq!(round.new_from(&page(5, 5)), None, "Ruby has moved two");
        assert_eq!(round.new_from(&page(6, 6)), Some(0));
    }

    #[test]
    fn a_failure_is_news_once_until_a_whole_round_has_not_met_it() {
        let (mut round, why) = (Round::default(), || BTreeSet::from(["why".to_owned()]));
        round.cursor = 7;
        assert_eq!((round.hear(why()).len(), round.hear(BTreeSet::new()).len(), round.hear(why()).len()), (1, 0, 0));
        round.cursor = 0;
        assert_eq!((round.hear(BTreeSet::new()).len(), round.hear(BTreeSet::new()).len()), (0, 0));
        assert_eq!(round.hear(why()).len(), 1);
    }
}
