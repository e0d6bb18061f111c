//! What Sidekiq's API and Web UI know of this process: every ten seconds, and no longer than a minute after its death.
//!
//! Follows Sidekiq 8.1 (`Launcher#beat`); `concurrency` is written in both places where generations read it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::Identity;
use super::custody::{Running, RunningJobs};
use super::metrics::Metrics;
use super::shown;
use crate::clock::Epoch;
use crate::redis::{Complaint, Redis, RedisError};
use crate::settings::{Capsule, Mode};

const PERIOD: Duration = Duration::from_secs(10);
const TTL_S: u64 = 60;

/// What of this process does not change.
#[derive(Clone, Debug)]
pub struct Process {
    /// Ours.
    pub identity: Arc<Identity>,
    /// When it started.
    pub started_at: Epoch,
    /// Text for the Web UI.
    pub tag: String,
    /// More such texts.
    pub labels: Vec<String>,
    /// Slots and queues, by name.
    pub capsules: Vec<(String, Capsule)>,
}

impl Process {
    fn concurrency(&self) -> usize {
        self.capsules.iter().map(|(_, capsule)| capsule.concurrency).sum()
    }
}

/// What somebody asks of this process through the Web UI or the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// `TSTP`: fetch nothing more.
    Quiet,
    /// `TERM`: stop.
    Stop,
    /// `TTIN`: say what runs.
    Show,
}

/// Beats until `stop`, then takes the process off the list.
///
/// A beat after that would make the process reappear, so this is the last user of the keys.
pub async fn run(
    redis: &Redis,
    process: &Process,
    running: &RunningJobs,
    quiet: &CancellationToken,
    stop: &CancellationToken,
    metrics: &Metrics,
    remote: &mpsc::UnboundedSender<Remote>,
) {
    let mut heart = Heart::new(redis, process);
    let mut ticks = interval(PERIOD);
    let mut complaint = Complaint::that("there is no heartbeat");
    let mut complaint_of_metrics = Complaint::that("the metrics of the last seconds cannot be written");
    loop {
        let is_over = stop.run_until_cancelled(ticks.tick()).await.is_none();
        if is_over {
            break;
        }
        let signal = complaint.hear(heart.beat(&running.snapshot(), quiet.is_cancelled()).await);
        signal.flatten().and_then(|signal| read_signal(&signal)).map(|signal| remote.send(signal));
        complaint_of_metrics.hear(metrics.flush(redis, Epoch::now()).await);
    }
    complaint_of_metrics.hear(metrics.flush(redis, Epoch::now()).await);
    if let Err(error) = leave(redis, process).await {
        tracing::warn!(%error, "the process stays on Sidekiq's list for a minute");
    }
}

fn read_signal(name: &str) -> Option<Remote> {
    match name {
        "TSTP" => Some(Remote::Quiet),
        "TERM" => Some(Remote::Stop),
        "TTIN" => Some(Remote::Show),
        other => {
            tracing::info!(signal = other, "asked for something that only Ruby can do");
            None
        }
    }
}

/// Tells Redis of this process, and only what is new to it: the texts of running jobs are large.
#[derive(Debug)]
pub struct Heart<'a> {
    redis: &'a Redis,
    process: &'a Process,
    rtt: Duration,
    /// The jobs that each of the [`work_keys`] has, by Redis' last word; none when an answer was lost.
    shown: [BTreeSet<String>; 2],
}

impl<'a> Heart<'a> {
    /// Of a process that is not on the list yet.
    pub fn new(redis: &'a Redis, process: &'a Process) -> Self {
        Self { redis, process, rtt: Duration::ZERO, shown: Default::default() }
    }

    /// Beats once; returns the name of the signal that somebody has sent.
    pub async fn beat(&mut self, running: &[Running], is_quiet: bool) -> Result<Option<String>, RedisError> {
        let identity = self.process.identity.to_string();
        let mut beat = redis::pipe();
        beat.atomic();
        let running_now: BTreeSet<String> = running.iter().map(work_field).collect();
        for (work, shown) in work_keys(&identity).iter().zip(std::mem::take(&mut self.shown)) {
            let jobs = running.iter().map(|job| (work_field(job), job));
            let new = jobs.filter(|(field, _)| !shown.contains(field)).map(|(field, job)| (field, work_entry(job)));
            let (new, ended): (Vec<_>, Vec<_>) = (new.collect(), shown.difference(&running_now).collect());
            if !ended.is_empty() {
                beat.hdel(work, &ended).ignore();
            }
            if !new.is_empty() {
                beat.hset_multiple(work, &new).ignore();
            }
            beat.expire(work, TTL_S as i64).ignore().hkeys(work);
        }
        beat.sadd("processes", &identity).ignore();
        let fields = [
            ("info", info(self.process)),
            ("concurrency", self.process.concurrency().to_string()),
            ("busy", running.len().to_string()),
            ("beat", format!("{:?}", Epoch::now().as_secs_f64())),
            ("rtt_us", self.rtt.as_micros().to_string()),
            ("quiet", is_quiet.to_string()),
            ("rss", resident_kilobytes().to_string()),
        ];
        beat.hset_multiple(&identity, &fields).ignore();
        beat.expire(&identity, TTL_S as i64).ignore();
        beat.rpop(format!("{identity}-signals"), None);
        let sent = Instant::now();
        let (work, workers, signal): (BTreeSet<String>, BTreeSet<String>, Option<String>) =
            self.redis.pipeline(&beat).await?;
        self.rtt = sent.elapsed();
        self.shown = [work, workers];
        Ok(signal)
    }
}

/// Where running jobs are looked for: from Sidekiq 6.4.2 on, and before.
fn work_keys(identity: &str) -> [String; 2] {
    [format!("{identity}:work"), format!("{identity}:workers")]
}

async fn leave(redis: &Redis, process: &Process) -> Result<(), RedisError> {
    let identity = process.identity.to_string();
    let mut goodbye = redis::pipe();
    goodbye.atomic().srem("processes", &identity).ignore().cmd("UNLINK").arg(&work_keys(&identity)).ignore();
    redis.pipeline(&goodbye).await
}

/// The `info` field: JSON, constant for the life of the process.
fn info(process: &Process) -> String {
    let weights = |capsule: &Capsule| -> Map<String, Value> {
        capsule.queues.iter().map(|queue| (queue.name.clone(), json!(queue.weight))).collect()
    };
    let capsules: Map<String, Value> = process
        .capsules
        .iter()
        .map(|(name, capsule)| {
            let mode = Mode::of(&capsule.queues).name();
            let shown = json!({"concurrency": capsule.concurrency, "mode": mode, "weights": weights(capsule)});
            (name.clone(), shown)
        })
        .collect();
    let all_weights: Vec<_> = process.capsules.iter().map(|(_, capsule)| weights(capsule)).collect();
    let mut queues: Vec<&String> = Vec::new();
    for queue in all_weights.iter().flat_map(Map::keys) {
        if !queues.contains(&queue) {
            queues.push(queue);
        }
    }
    json!({
        "hostname": process.identity.hostname,
        "started_at": process.started_at.as_secs_f64(),
        "pid": process.identity.pid,
        "tag": process.tag,
        "concurrency": process.concurrency(),
        "capsules": capsules,
        "queues": queues,
        "weights": all_weights,
        "labels": process.labels,
        "identity": process.identity.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "embedded": false,
    })
    .to_string()
}

/// The name of a job's field, which is another one while the job has not begun: the Web UI shows when it began.
fn work_field(job: &Running) -> String {
    let token = &job.unit.token;
    if job.iteration.is_waiting() { format!("{token}:idle") } else { token.to_string() }
}

/// The value of a field of `<identity>:work`: the job's text is a string in it, not an object.
fn work_entry(job: &Running) -> String {
    let text = shown::running(&job.unit.text, &job.unit.queue, job.since);
    let run_at = job.since.as_millis() / 1000;
    json!({"queue": job.unit.queue, "payload": text, "run_at": run_at}).to_string()
}

/// `VmRSS` of `/proc/self/status`, in kB; 0 where it cannot be read.
fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
