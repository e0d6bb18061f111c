//! The scout: looks behind the head of a long queue for tenants that have no job in front.
//!
//! Workers choose among the jobs at the head of a queue. A tenant that floods the queue would fill the head for hours. So one process
//! of the fleet reads the queue to its end, a part at a time, and what was pushed last more often. It copies jobs of other tenants into
//! `sidebake:ahead:<queue>`, where the workers see them. The jobs stay in the queue until a worker takes them from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::part::{BESIDE, Extent, NEWEST, PART, Part};
use super::tenant::{self, Candidate};
use super::{Identity, keys};
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::settings::{Jobs, Tenants};

static AHEAD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("ahead.lua")));

/// The pause between two parts. With [`PART`], ten thousand jobs are read in a second at most.
const PAUSE: Duration = Duration::from_millis(100);

/// Tenants whose jobs are copied, jobs of all of them, and of each at most.
const TENANTS: usize = 64;
const COPIES: usize = 128;
const JOBS: usize = 64;

/// A tenant with fewer jobs in front may have none there before the next look.
const IN_FRONT: usize = 8;

/// Bytes of the jobs that a scout remembers of a queue, and about how many of one tenant.
const REMEMBERED_BYTES: usize = 4 << 20;
const TENANT_BYTES: usize = 16 << 10;

/// The longest text that is looked at, in bytes. Longer ones wait until they are in front.
const LONGEST: usize = 32 << 10;

/// Life of the lock, and of the copies.
const LOCKED: Duration = Duration::from_secs(5);
const COPIED: Duration = Duration::from_secs(30);

/// What a scout needs.
#[derive(Debug)]
pub struct Scout<'a> {
    /// A connection.
    pub redis: &'a Redis,
    /// This process.
    pub identity: &'a Identity,
    /// How jobs are read.
    pub jobs: &'a Jobs,
    /// The size of the head.
    pub tenants: &'a Tenants,
}

/// What a pass over one queue has found.
#[derive(Debug, Default)]
struct Pass {
    /// Counts passes over the queue.
    nth: u64,
    /// How many jobs at the head have been read.
    n_read: usize,
    /// The oldest jobs of each tenant behind the head, the oldest first.
    found: BTreeMap<String, Vec<Found>>,
    /// Tenants of which this pass has left out jobs. Later ones would come before these.
    cut: BTreeSet<String>,
    /// Whether the last look read the jobs behind the head again.
    was_again: bool,
    /// The copies that the workers see.
    shown: Vec<Arc<[u8]>>,
}

/// Which part of a queue was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// The jobs right behind the head.
    Behind,
    /// Where the pass is.
    Middle,
    /// The newest jobs.
    End,
}

/// A job behind the head.
#[derive(Debug)]
struct Found {
    /// When it was enqueued, in microseconds.
    queued_us: u64,
    text: Arc<[u8]>,
    /// The pass that saw it last.
    nth_pass: u64,
    /// Whether only the end of the queue has been read where it is: jobs in front of it may be older ones of its tenant.
    is_at_end: bool,
}

/// What a look at a queue came to.
enum Look {
    /// The queue has no more jobs than the head.
    Short,
    /// It has.
    Long,
    /// Another process is the scout of the queue.
    Taken,
}

impl Scout<'_> {
    /// Looks behind the heads of the queues in `long`, until the worker goes `quiet`. Removes queues that are short again.
    pub async fn run(&self, long: &watch::Sender<BTreeSet<String>>, quiet: &CancellationToken) {
        let mut changes = long.subscribe();
        let mut complaint = Complaint::new("queue_not_scouted", "jobs behind the head of a long queue cannot be read");
        let mut passes: BTreeMap<String, Pass> = BTreeMap::new();
        while !quiet.is_cancelled() {
            let queues = changes.borrow_and_update().clone();
            passes.retain(|queue, _| queues.contains(queue));
            let mut pause = BESIDE;
            for queue in &queues {
                let pass = passes.entry(queue.clone()).or_default();
                match complaint.hear(self.look(queue, pass).await) {
                    Some(Look::Short) => drop(long.send_if_modified(|long| long.remove(queue))),
                    Some(Look::Long) => pause = PAUSE,
                    Some(Look::Taken) | None => {}
                }
            }
            // Nothing is lost when a branch is dropped: the receiver keeps its value.
            tokio::select! {
                () = quiet.cancelled() => {}
                Ok(()) = changes.changed(), if queues.is_empty() => {}
                () = sleep(pause), if !queues.is_empty() => {}
            }
        }
    }

    /// Reads the next part of a queue, and its end, and shows what it found.
    async fn look(&self, queue: &str, pass: &mut Pass) -> Result<Look, RedisError> {
        let n_head = self.tenants.window;
        // The head changes all the time.
        let Some(head) = self.read(queue, 0, n_head).await? else { return Ok(Look::Taken) };
        let mut n_in_front: BTreeMap<String, usize> = BTreeMap::new();
        for text in &head.texts {
            *n_in_front.entry(self.tenant_of(text)).or_default() += 1;
        }
        let is_behind = |tenant: &str| n_in_front.get(tenant).is_none_or(|n| *n < IN_FRONT);
        if head.n_waiting <= n_head {
            *pass = Pass::default();
            self.show(queue, &[], &[]).await?;
            return Ok(Look::Short);
        }
        let is_new_pass = pass.n_read < n_head || pass.n_read >= head.n_waiting;
        self.forget_taken(queue, pass).await?;
        if is_new_pass {
            // What the last pass has not seen is gone.
            pass.found.values_mut().for_each(|jobs| jobs.retain(|job| job.nth_pass == pass.nth));
            (pass.nth, pass.n_read) = (pass.nth + 1, n_head);
            pass.cut.clear();
        }
        // Jobs in front are taken without their copies.
        let in_front: BTreeSet<&Arc<[u8]>> = head.texts.iter().collect();
        pass.found.values_mut().for_each(|jobs| jobs.retain(|job| !in_front.contains(&job.text)));
        pass.found.retain(|_, jobs| !jobs.is_empty());
        let n_before_newest = head.n_waiting.saturating_sub(NEWEST).max(n_head);
        let n_found = |tenant: &String| pass.found.get(tenant).map_or(0, Vec::len);
        let is_short = pass.cut.iter().any(|tenant| is_behind(tenant) && n_found(tenant) < IN_FRONT);
        pass.was_again = is_short && !pass.was_again && !is_new_pass;
        if pass.was_again {
            if let Some(part) = self.read(queue, n_head, PART).await? {
                self.note(pass, part.texts, Where::Behind);
            }
        } else if let Some(part) = self.read(queue, pass.n_read, PART).await? {
            // A part that ends at the end of the queue ends the pass.
            pass.n_read = if part.n_read == 0 { head.n_waiting } else { pass.n_read + part.n_read };
            self.note(pass, part.texts, if is_new_pass { Where::Behind } else { Where::Middle });
        }
        if let Some(newest) = self.read(queue, n_before_newest, NEWEST).await? {
            self.note(pass, newest.texts, Where::End);
        }
        let behind: Vec<&String> = pass.found.keys().filter(|tenant| is_behind(tenant)).collect();
        let first = self.furthest_behind(behind).await?;
        let n_each = COPIES / first.len().max(1);
        let jobs = first.iter().filter_map(|tenant| pass.found.get(tenant));
        let shown: Vec<_> = jobs.flat_map(|jobs| first_jobs(jobs, n_each)).map(|job| Arc::clone(&job.text)).collect();
        self.show(queue, &pass.shown, &shown).await?;
        pass.shown = shown;
        Ok(Look::Long)
    }

    fn tenant_of(&self, text: &Arc<[u8]>) -> String {
        tenant::read(text, self.jobs, self.tenants).claim.tenant
    }

    /// Forgets jobs whose copies the workers have removed.
    async fn forget_taken(&self, queue: &str, pass: &mut Pass) -> Result<(), RedisError> {
        if pass.shown.is_empty() {
            return Ok(());
        }
        let left: BTreeSet<Vec<u8>> =
            self.redis.query(redis::cmd("LRANGE").arg(keys::ahead(queue)).arg(0).arg(-1)).await?;
        let is_taken = |text: &Arc<[u8]>| pass.shown.contains(text) && !left.contains(&**text);
        pass.found.values_mut().for_each(|jobs| jobs.retain(|job| !is_taken(&job.text)));
        pass.found.retain(|_, jobs| !jobs.is_empty());
        Ok(())
    }

    /// Notes the oldest jobs of each tenant, as long as there is room. A new tenant gets room from the one with the most jobs.
    fn note(&self, pass: &mut Pass, texts: Vec<Arc<[u8]>>, place: Where) {
        let mut n_bytes: usize = pass.found.values().flatten().map(|job| job.text.len()).sum();
        for text in texts {
            let Candidate { claim, queued_us, .. } = tenant::read(&text, self.jobs, self.tenants);
            let (tenant, is_at_end) = (claim.tenant, place == Where::End);
            let known = pass.found.get_mut(&tenant);
            let is_new = known.is_none();
            if let Some(job) = known.and_then(|jobs| jobs.iter_mut().find(|job| job.text == text)) {
                (job.nth_pass, job.is_at_end) = (pass.nth, job.is_at_end && is_at_end);
                continue;
            }
            if is_new && n_bytes + text.len() > REMEMBERED_BYTES {
                let most = pass.found.iter_mut().max_by_key(|(_, jobs)| jobs.len()).filter(|(_, jobs)| jobs.len() > 1);
                if let Some((other, jobs)) = most {
                    n_bytes -= jobs.pop().map_or(0, |job| job.text.len());
                    pass.cut.insert(other.clone());
                }
            }
            if n_bytes + text.len() > REMEMBERED_BYTES || place == Where::Middle && pass.cut.contains(&tenant) {
                pass.cut.insert(tenant);
                continue;
            }
            let (jobs, queued_us) = (pass.found.entry(tenant.clone()).or_default(), queued_us.unwrap_or(0));
            n_bytes += text.len();
            // The end of the queue was read before the middle.
            let nth = jobs.partition_point(|job| job.queued_us <= queued_us);
            jobs.insert(nth, Found { queued_us, text, nth_pass: pass.nth, is_at_end });
            let size = |jobs: &[Found]| jobs.iter().map(|job| job.text.len()).sum::<usize>();
            while jobs.len() > JOBS || jobs.len() > 1 && size(jobs) > TENANT_BYTES {
                n_bytes -= jobs.pop().map_or(0, |job| job.text.len());
                pass.cut.insert(tenant.clone());
            }
        }
    }

    /// The tenants with the least virtual time: those that have had the least for the longest time.
    async fn furthest_behind(&self, mut tenants: Vec<&String>) -> Result<Vec<String>, RedisError> {
        if tenants.len() > TENANTS {
            let times: Vec<Option<f64>> = self.redis.query(redis::cmd("HMGET").arg(keys::SHARES).arg(&tenants)).await?;
            let mut timed: Vec<(f64, &String)> =
                times.into_iter().map(|time| time.unwrap_or(0.0)).zip(tenants).collect();
            timed.sort_by(|a, b| a.0.total_cmp(&b.0));
            tenants = timed.into_iter().map(|(_, tenant)| tenant).take(TENANTS).collect();
        }
        Ok(tenants.into_iter().cloned().collect())
    }

    async fn read(&self, queue: &str, n_before: usize, n: usize) -> Result<Option<Part>, RedisError> {
        let extent = Extent { n_before, n, longest: LONGEST, locked: LOCKED };
        Part::read(self.redis, self.identity, queue, &keys::scout(queue), extent).await
    }

    /// Replaces the copies of a queue.
    async fn show(&self, queue: &str, before: &[Arc<[u8]>], texts: &[Arc<[u8]>]) -> Result<(), RedisError> {
        let before: BTreeSet<&Arc<[u8]>> = before.iter().collect();
        let mut script = AHEAD.key(keys::ahead(queue));
        script.arg(COPIED.as_millis() as u64);
        texts.iter().for_each(|text| {
            script.arg(u8::from(before.contains(text))).arg(&**text);
        });
        self.redis.script(&script).await
    }
}

/// The oldest `n` jobs of a tenant. Two while older ones may be in front of them, unread.
fn first_jobs(jobs: &[Found], n: usize) -> impl Iterator<Item = &Found> {
    let is_known = |job: &&Found| !job.is_at_end;
    let n_known = jobs.iter().filter(is_known).count();
    let n = if n_known > 0 { n } else { n.min(2) };
    jobs.iter().filter(move |job| n_known == 0 || !job.is_at_end).take(n)
}
