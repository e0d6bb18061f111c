//! Processes one unit of work, from its text to its settlement.
//!
//! Only this module sees both the queue and the build. [`dispose`] alone decides what happens to a job, from plain values.

mod build;
mod disposition;
mod job;
mod job_log;
mod probe;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::clock::Epoch;
use crate::event::{Event, Moment};
use crate::field_error::FieldError;
use crate::log_archive::LogArchives;
use crate::log_stream::LogStreams;
use crate::metric;
use crate::perform::Integrations;
use crate::rails::{self, Resolver};
use crate::reason::{Cause, End, Failure, Reason};
use crate::redis::Redis;
use crate::report::Report;
use crate::settings::{Jobs, PROBE, Tenants, Timestamps};
use crate::sidekiq::inflight::UnitOfWork;
use crate::sidekiq::metrics::Metrics;
use crate::sidekiq::payload::Payload;
use crate::sidekiq::running::Running;
use crate::sidekiq::settlement::{Effect, Settlement};
use crate::sidekiq::{Identity, shown, tenant, watch};
use crate::statsd::Statsd;
use crate::traces::Traces;

use disposition::{label, run_end};
use job::Job;

pub use disposition::{AttemptOutcome, Disposition, dispose};

/// How long a stopped build may take to end.
const CLEAN_UP: Duration = Duration::from_secs(2);

/// How long the log of a killed build may take to be archived: its job waits to be requeued.
const LAST_UPLOAD: Duration = Duration::from_millis(500);

/// What all slots share.
#[derive(Debug)]
pub struct Processor {
    /// Which jobs are taken, and how they are retried.
    pub jobs: Jobs,
    /// Which jobs build the same.
    pub tenants: Tenants,
    /// Asks Rails for the builds of jobs that carry only an id.
    pub resolver: Resolver,
    /// The integrations of a build.
    pub integrations: Integrations,
    /// For callbacks of running jobs.
    pub redis: Redis,
    /// This process.
    pub identity: Arc<Identity>,
    /// The live logs of builds.
    pub log_streams: LogStreams,
    /// The archived logs of builds.
    pub log_archives: LogArchives,
    /// Sidekiq's metrics.
    pub metrics: Arc<Metrics>,
    /// StatsD's metrics.
    pub statsd: Statsd,
    /// OpenTelemetry's traces.
    pub traces: Traces,
    /// Cancelled when the worker stops waiting for running builds.
    pub kill: CancellationToken,
}

/// Processes one unit of work to its end, and sends its settlement. A panic fails this job and no other.
pub async fn process(processor: Arc<Processor>, running: Running, settlements: UnboundedSender<Settlement>) {
    let (unit, started) = (running.unit.clone(), Instant::now());
    let promise = Promise { unit: Some(unit.clone()), settlements, timestamps: processor.jobs.timestamps };
    let payload = match Payload::parse_shared(&unit.text) {
        Ok(payload) => payload,
        Err(error) => {
            tracing::error!(event = "malformed_job", queue = unit.queue, %error, "malformed job moved to the dead set");
            let failure = Failure::new(Reason::InvalidArguments, error.to_string());
            let (reason, class) = (failure.reason.name(), failure.reason.class().name());
            metric::JOBS.add([&unit.queue, "", "failed", reason, class], 1);
            return promise.keep(dead(unit, &failure, processor.jobs.timestamps));
        }
    };
    let jid = payload.jid.as_str();
    if let Some(flaw) = payload.flaw() {
        tracing::error!(event = "malformed_job", queue = unit.queue, jid, error = flaw, "malformed job not run");
    }
    running.iteration.begin_job(&processor.jobs, &payload);
    if watch::is_on(&processor.jobs, &processor.tenants) {
        running.iteration.take_part(tenant::read(&unit.text, &processor.jobs, &processor.tenants));
    }
    let span = tracing::info_span!("job", jid);
    let job = Arc::new(Job::new(&processor, running, payload));
    // A job that is poison, or was cancelled while it waited, ends without a start.
    if !job.running.iteration.is_waiting() {
        job_log::start(&job);
    }
    let run = run_job(Arc::clone(&processor), Arc::clone(&job)).instrument(span);
    let panicked = |error| Err(Failure::new(Reason::Panicked, panic_message(error)).into());
    let outcome = AttemptOutcome::of(tokio::spawn(run).await.unwrap_or_else(panicked), &job.stop);
    let ended = Instant::now();
    let settlement = settle(&processor, &job, &outcome).await;
    metric::PHASE_DURATION.record(["settle"], ended.elapsed());
    // As in Ruby, where an unknown class fails before the metrics count the job.
    if settlement.is_processed && processor.jobs.runs(&job.payload.class) {
        let (class, took, is_failed) = (&job.payload.class, started.elapsed(), settlement.is_failed);
        processor.metrics.record(class, took, is_failed);
        processor.statsd.record(class, &job.running.unit.queue, took, is_failed);
    }
    promise.keep(settlement);
}

/// The promise that a unit of work is settled: a bug in settling must not strand the job and its slot.
struct Promise {
    unit: Option<UnitOfWork>,
    settlements: UnboundedSender<Settlement>,
    timestamps: Timestamps,
}

impl Promise {
    fn keep(mut self, settlement: Settlement) {
        self.unit = None;
        // The receiver ends after all senders. If it is gone nevertheless, recovery requeues the job.
        let _ = self.settlements.send(settlement);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let Some(unit) = self.unit.take() else { return };
        // An aborted slot is the end of the process: recovery requeues the job.
        if std::thread::panicking() {
            tracing::error!(event = "unsettled_job", token = %unit.token, queue = unit.queue, "job not settled; moved to the dead set");
            let failure = Failure::new(Reason::Panicked, "the job's result could not be settled");
            let _ = self.settlements.send(dead(unit, &failure, self.timestamps));
        }
    }
}

/// Moves a text to the dead set that is not a job, or that cannot be settled in any other way.
fn dead(unit: UnitOfWork, failure: &Failure, timestamps: Timestamps) -> Settlement {
    let text = shown::envelope(&unit.text, "", &unit.queue, failure, Epoch::now(), timestamps);
    Settlement { effects: vec![Effect::Dead { text }], ..Settlement::of(&unit) }
}

fn panic_message(error: tokio::task::JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else { return "the attempt was aborted".into() };
    let text =
        panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".into())
}

/// Runs a job until it ends or was stopped. A job that is poison or malformed fails without a run.
async fn run_job(processor: Arc<Processor>, job: Arc<Job>) -> Result<(), End> {
    let (unit, payload) = (&job.running.unit, &job.payload);
    if unit.is_poison() {
        metric::POISON_JOBS.add([], 1);
        let times = unit.n_crashes;
        return Err(Failure::new(Reason::Poison, format!("crashed its worker {times} times while it ran alone")).into());
    }
    if let Some(flaw) = payload.flaw() {
        return Err(Failure::new(Reason::InvalidArguments, flaw).into());
    }
    if payload.class == PROBE && processor.jobs.probe {
        return probe::probe(&processor.redis, &job).await;
    }
    // On the heap: the future has many kilobytes, which would move from task to task with every job.
    let work = Box::pin(build::build(&processor, &job));
    let given_up = async {
        job.stopped().await;
        // Time to end the child and to remove the directory.
        tokio::time::sleep(CLEAN_UP).await;
        tracing::warn!(
            event = "stop_ignored",
            jid = job.payload.jid,
            "build did not end within 2 s of its stop; dropped"
        );
    };
    tokio::select! {
        built = work => built,
        // Drops what does not listen to the stop, such as a request to GitHub.
        () = given_up => Err(End::Stopped),
    }
}

fn invalid(error: FieldError) -> Failure {
    Failure::new(Reason::InvalidArguments, error.to_string())
}

/// Refuses a job that Sidekiq Pro would drop.
fn refuse_expired(payload: &Payload) -> Result<(), Failure> {
    match payload.expiry().filter(|expiry| *expiry < Epoch::now()) {
        Some(expiry) => Err(Failure::new(Reason::Expired, format!("at {}", expiry.timestamp()))),
        None => Ok(()),
    }
}

/// The settlement of an attempt: what happens to the job, and the callback to Rails, in one step.
async fn settle(processor: &Processor, job: &Job, outcome: &AttemptOutcome) -> Settlement {
    let jobs = &processor.jobs;
    let (unit, payload, now) = (&job.running.unit, &job.payload, Epoch::now());
    let callback = job.callback();
    let has_callback = callback.as_ref().is_some_and(|callback| callback.wants(Moment::Finished));
    // It filled no slot and never ran.
    let is_returned = unit.token.is_beside() && matches!(outcome, AttemptOutcome::Stopped(Cause::Shutdown));
    let disposition = if is_returned {
        Disposition::Requeue
    } else {
        dispose(outcome, payload, jobs, has_callback, unit.n_interruptions, now, rand::random())
    };
    let failure = outcome.failure();
    let (reason, message) = failure.as_ref().map(|failure| (failure.reason, failure.message())).unzip();
    let is_over = matches!(disposition, Disposition::Acknowledge | Disposition::Dead | Disposition::Drop);
    let ended = |log_url| Event::Ended {
        status: outcome.status(),
        reason,
        message: message.clone(),
        // Another worker may take the job over while the log is archived.
        is_over: is_over && !job.running.reclaimed.is_cancelled(),
        log_url,
    };
    if let (AttemptOutcome::Stopped(Cause::Superseded), Some(newer)) = (outcome, job.running.iteration.newer()) {
        job.journal.emit(Event::Superseded(newer.clone()));
    }
    let log_url = archive(processor, job, &ended(None)).await;
    job.journal.emit(ended(log_url));
    let is_reclaimed = job.running.reclaimed.is_cancelled();
    let report = job.record.report();
    job_log::end(outcome, &report, disposition, job);
    job.meter.end(label(outcome, disposition, is_reclaimed), reason);
    if is_returned && !is_reclaimed {
        return Settlement::requeue(unit);
    }
    let dead_or_due = || match &failure {
        Some(failure) => payload.after_failure(&unit.queue, failure, now, jobs.timestamps),
        None => Vec::new(),
    };
    let due = || String::from_utf8_lossy(&dead_or_due()).into_owned();
    let (moment, effect) = match disposition {
        Disposition::Acknowledge | Disposition::Drop => (Some(Moment::Finished), None),
        Disposition::RetryAt(at) => (Some(Moment::Retrying), Some(Effect::Retry { at, text: due() })),
        Disposition::Dead => (Some(Moment::Finished), Some(Effect::Dead { text: dead_or_due() })),
        Disposition::Requeue => (None, Some(Effect::Requeue { queue: unit.queue.clone(), is_interrupted: true })),
    };
    let share = job.shared(&report);
    let push = moment.zip(callback.as_ref()).and_then(|(moment, callback)| {
        let report = Report { moment, ..report };
        let text =
            rails::callback_job(callback, &report, &unit.text, now, job.timestamps(jobs), || job.trace_of(callback))?;
        Some(Effect::Push { queue: callback.queue.clone(), text })
    });
    // A cancellation that comes too late for this attempt stays for the next one.
    let unlink = job.running.iteration.key().filter(|_| is_over).map(|key| Effect::Unlink { key });
    Settlement {
        run_end: run_end(outcome, disposition, is_reclaimed),
        is_processed: disposition != Disposition::Requeue,
        is_failed: matches!(disposition, Disposition::RetryAt(_) | Disposition::Dead | Disposition::Drop),
        effects: effect.into_iter().chain(push).chain(unlink).chain(share).collect(),
        ..Settlement::of(unit)
    }
}

/// Archives the log of the attempt. Returns its URL. A failure is a notice.
async fn archive(processor: &Processor, job: &Job, ended: &Event) -> Option<String> {
    let archive = job.archive.as_ref()?;
    let given_up = async {
        // Neither loses anything when it is dropped.
        tokio::select! {
            () = job.running.reclaimed.cancelled() => {}
            () = processor.kill.cancelled() => tokio::time::sleep(LAST_UPLOAD).await,
        }
    };
    match archive.finish(ended, given_up).await {
        Ok(url) => url,
        Err(error) => {
            let jid = job.payload.jid.as_str();
            tracing::warn!(event = "log_not_archived", jid, %error, "log of a build not archived");
            job.journal.emit(Event::Notice(error.notice()));
            None
        }
    }
}
