//! The heartbeat: writes what Sidekiq's API and Web UI show of this process, every ten seconds.
//!
//! The keys expire a minute after the process dies.
//!
//! Follows Sidekiq 8.1 (`Launcher#beat`); `concurrency` is written in both places where generations read it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::running::{Running, RunningJobs};
use super::{Identity, keys, payload};
use crate::clock::Epoch;
use crate::redis::{Complaint, Redis, RedisError};
use crate::settings::{Capsule, Mode};

const PERIOD: Duration = Duration::from_secs(10);
const TTL_S: u64 = 60;

/// What does not change during the life of the process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its identity.
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

/// A signal that arrives through Sidekiq's Web UI or API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteSignal {
    /// `TSTP`: fetch nothing more.
    Quiet,
    /// `TERM`: stop.
    Stop,
    /// `TTIN`: log what runs.
    Show,
}

/// Beats until `stop`, then takes the process off the list.
///
/// A later beat would make the process reappear, so nothing else writes these keys.
pub async fn run(
    redis: &Redis,
    process: &Process,
    running: &RunningJobs,
    quiet: &CancellationToken,
    stop: &CancellationToken,
    metrics: &Metrics,
    remote: &mpsc::UnboundedSender<RemoteSignal>,
) {
    let mut heart = Heart::new(redis, process);
    let mut ticks = interval(PERIOD);
    let mut complaint = Complaint::new("heartbeat_failed", "the heartbeat cannot be written");
    let mut complaint_of_metrics =
        Complaint::new("metrics_not_written", "the metrics of the last seconds cannot be written");
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
        tracing::warn!(event = "process_not_removed", %error, "the process stays on Sidekiq's list for a minute");
    }
}

fn read_signal(name: &str) -> Option<RemoteSignal> {
    match name {
        "TSTP" => Some(RemoteSignal::Quiet),
        "TERM" => Some(RemoteSignal::Stop),
        "TTIN" => Some(RemoteSignal::Show),
        other => {
            tracing::info!(
                event = "unknown_signal",
                signal = other,
                "ignoring a signal that only Ruby's Sidekiq knows"
            );
            None
        }
    }
}

/// Writes the heartbeat. It sends only jobs that Redis does not have, since their texts are large.
#[derive(Debug)]
pub struct Heart<'a> {
    redis: &'a Redis,
    process: &'a Process,
    rtt: Duration,
    /// The jobs in each of the [`keys::work`], as of the last answer; none when an answer was lost.
    shown: [BTreeSet<String>; 2],
}

impl<'a> Heart<'a> {
    /// For a process that is not on the list yet.
    pub fn new(redis: &'a Redis, process: &'a Process) -> Self {
        Self { redis, process, rtt: Duration::ZERO, shown: Default::default() }
    }

    /// Beats once; returns the name of a signal that has arrived.
    pub async fn beat(&mut self, running: &[Running], is_quiet: bool) -> Result<Option<String>, RedisError> {
        let identity = self.process.identity.to_string();
        let mut beat = redis::pipe();
        beat.atomic();
        let running_now: BTreeSet<String> = running.iter().map(work_field).collect();
        for (work, shown) in keys::work(&identity).iter().zip(std::mem::take(&mut self.shown)) {
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
        beat.sadd(keys::PROCESSES, &identity).ignore();
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
        beat.rpop(keys::signals(&identity), None);
        let sent = Instant::now();
        let (work, workers, signal): (BTreeSet<String>, BTreeSet<String>, Option<String>) =
            self.redis.pipeline(&beat).await?;
        self.rtt = sent.elapsed();
        self.shown = [work, workers];
        Ok(signal)
    }
}

async fn leave(redis: &Redis, process: &Process) -> Result<(), RedisError> {
    let identity = process.identity.to_string();
    let mut goodbye = redis::pipe();
    goodbye.atomic().srem(keys::PROCESSES, &identity).ignore().cmd("UNLINK").arg(&keys::work(&identity)).ignore();
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

/// The field of a job in `<identity>:work`. It changes when the job begins, so that the new value with its `run_at` is sent.
fn work_field(job: &Running) -> String {
    job.unit.token.field(job.iteration.is_waiting())
}

/// The value of a field of `<identity>:work`: the job's text is a string in it, not an object.
fn work_entry(job: &Running) -> String {
    let text = payload::running(&job.unit.text, &job.unit.queue, job.since);
    let run_at = job.since.as_millis() / 1000;
    json!({"queue": job.unit.queue, "payload": text, "run_at": run_at}).to_string()
}

/// `VmRSS` of `/proc/self/status`, in kB; 0 where it cannot be read.
fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
