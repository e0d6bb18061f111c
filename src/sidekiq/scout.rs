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
use super::{Identity, keys, tenant};
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::settings::{Jobs, Tenants};

static AHEAD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("ahead.lua")));

/// The pause between two parts. With [`PART`], ten thousand jobs are read in a second at most.
const PAUSE: Duration = Duration::from_millis(100);

/// Tenants whose jobs are copied, and jobs of each.
const TENANTS: usize = 64;
const JOBS: usize = 2;

/// Bytes of the jobs that one pass over the queue remembers.
const REMEMBERED_BYTES: usize = 4 << 20;

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
    /// How many jobs at the head have been read.
    n_read: usize,
    /// The oldest jobs of each tenant behind the head.
    found: BTreeMap<String, Vec<Arc<[u8]>>>,
    /// The copies that the workers see.
    shown: Vec<Arc<[u8]>>,
}

/// What a look at a queue came to.
enum Found {
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
                    Some(Found::Short) => drop(long.send_if_modified(|long| long.remove(queue))),
                    Some(Found::Long) => pause = PAUSE,
                    Some(Found::Taken) | None => {}
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
    async fn look(&self, queue: &str, pass: &mut Pass) -> Result<Found, RedisError> {
        let n_head = self.tenants.window;
        // The head changes all the time.
        let Some(head) = self.read(queue, 0, n_head).await? else { return Ok(Found::Taken) };
        let in_front: BTreeSet<String> = head.texts.iter().map(|text| self.tenant_of(text)).collect();
        if head.n_waiting <= n_head {
            *pass = Pass::default();
            self.show(queue, &[]).await?;
            return Ok(Found::Short);
        }
        let is_new_pass = pass.n_read < n_head || pass.n_read >= head.n_waiting;
        if is_new_pass {
            *pass = Pass { n_read: n_head, shown: std::mem::take(&mut pass.shown), ..Pass::default() };
        }
        self.forget_taken(queue, pass).await?;
        let n_before_newest = head.n_waiting.saturating_sub(NEWEST).max(n_head);
        if let Some(part) = self.read(queue, pass.n_read, PART).await? {
            // A part that ends at the end of the queue ends the pass.
            pass.n_read = if part.n_read == 0 { head.n_waiting } else { pass.n_read + part.n_read };
            self.note(pass, part.texts);
        }
        if let Some(newest) = self.read(queue, n_before_newest, NEWEST).await? {
            self.note(pass, newest.texts);
        }
        let behind: Vec<&String> = pass.found.keys().filter(|tenant| !in_front.contains(*tenant)).collect();
        let first = self.furthest_behind(behind).await?;
        pass.shown = first.iter().filter_map(|tenant| pass.found.get(tenant)).flatten().cloned().collect();
        self.show(queue, &pass.shown).await?;
        Ok(Found::Long)
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
        pass.found.values_mut().for_each(|jobs| jobs.retain(|text| !is_taken(text)));
        pass.found.retain(|_, jobs| !jobs.is_empty());
        Ok(())
    }

    fn note(&self, pass: &mut Pass, texts: Vec<Arc<[u8]>>) {
        let mut n_bytes: usize = pass.found.values().flatten().map(|text| text.len()).sum();
        for text in texts {
            if n_bytes + text.len() > REMEMBERED_BYTES {
                continue;
            }
            let jobs = pass.found.entry(self.tenant_of(&text)).or_default();
            if jobs.len() < JOBS && !jobs.contains(&text) {
                n_bytes += text.len();
                jobs.push(text);
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
    async fn show(&self, queue: &str, texts: &[Arc<[u8]>]) -> Result<(), RedisError> {
        let mut script = AHEAD.key(keys::ahead(queue));
        script.arg(COPIED.as_millis() as u64);
        texts.iter().for_each(|text| {
            script.arg(&**text);
        });
        self.redis.script(&script).await
    }
}
