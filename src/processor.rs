//! One slot: a unit of work from its text to its settlement.
//!
//! The only file that sees both the queue and the build. What becomes of a job is decided in one place,
//! [`dispose`], from plain values.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::clock::Epoch;
use crate::event::{Event, Moment, Phase};
use crate::field_error::FieldError;
use crate::job::arguments::{self, RequestFrom};
use crate::job::{self, BuildJob, Callback};
use crate::journal::{Journal, Listener, Log, Record};
use crate::perform::{Attempt, Fence, Integrations, perform};
use crate::rails;
use crate::reason::{Cause, Class, End, Failure, Reason};
use crate::redis::Redis;
use crate::report::{Report, Status};
use crate::settings::{JobClass, Jobs, PROBE, Timestamps};
use crate::sidekiq::custody::Running;
use crate::sidekiq::fence::{announce, holds};
use crate::sidekiq::metrics::Metrics;
use crate::sidekiq::payload::Payload;
use crate::sidekiq::retry::{self, Next};
use crate::sidekiq::turn::{Effect, Settlement, UnitOfWork};
use crate::sidekiq::{Identity, iteration, shown};
use crate::stop::Stop;
use crate::text::paths::WorkerPaths;

/// A job interrupted this often waits its turn in the retry set.
const MAX_INTERRUPTIONS: u32 = 3;

/// How long a stopped build may take to end.
const CLEAN_UP: Duration = Duration::from_secs(2);

/// How long a stopped build may wait for Rails yet, which alone may know whom to tell.
const LAST_WORD: Duration = Duration::from_millis(500);

/// What all slots share.
#[derive(Debug)]
pub struct Processor {
    /// Which jobs are taken, and how they are retried.
    pub jobs: Jobs,
    /// The integrations of a build.
    pub integrations: Integrations,
    /// For callbacks in the middle of a job.
    pub redis: Redis,
    /// Ours.
    pub identity: Arc<Identity>,
    /// Sidekiq's metrics.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the worker cannot wait for running builds any more.
    pub kill: CancellationToken,
}

/// One attempt at a job, as far as it is known. It outlives a panic of the attempt.
#[derive(Debug)]
struct Job {
    running: Running,
    payload: Payload,
    journal: Journal,
    record: Arc<Record>,
    stop: Stop,
    /// Whom to notify.
    callback: Mutex<Option<Callback>>,
}

impl Job {
    /// With what the job itself tells, without Rails.
    fn new(processor: &Processor, running: Running, payload: Payload) -> Self {
        let (jid, attempt) = (payload.jid.clone(), payload.n_failures().saturating_add(1));
        let mut report = Report { jid, attempt, ..Report::default() };
        report.timings.queued = payload.enqueued_at().map_or(Duration::ZERO, |enqueued| running.since.since(enqueued));
        let args = payload.arguments().unwrap_or_default();
        let class = processor.jobs.classes.get(&payload.class);
        let probe = JobClass::default();
        let known = match class {
            _ if payload.class == PROBE => arguments::known(&probe, &args),
            Some(class) => {
                report.echo = arguments::echo(class, &args);
                arguments::known(class, &args)
            }
            None => Value::Null,
        };
        let record = Arc::new(Record::new(report));
        let listeners: Vec<Arc<dyn Listener>> =
            vec![Arc::new(Log::default()), Arc::clone(&running.iteration.progress) as _, Arc::clone(&record) as _];
        let journal = Journal::new(listeners, processor.integrations.state.worker_paths());
        let stop = Stop::with(&processor.kill);
        let job = Self { running, payload, journal, record, stop, callback: Mutex::default() };
        job.learn(&known);
        job
    }

    /// Takes in whom to notify, and of what, by the native object.
    fn learn(&self, native: &Value) {
        *self.callback.lock().unwrap_or_else(PoisonError::into_inner) = Callback::find(native);
        let build_id = native.get("build_id").filter(|id| job::is_build_id(id)).cloned();
        self.journal.emit(Event::BuildId(build_id));
    }

    /// Stops the attempt when the job was cancelled or reclaimed; returns when it is stopped, also by the end of the worker.
    async fn stopped(&self) {
        tokio::select! {
            biased;
            () = self.running.iteration.cancelled.cancelled() => self.stop.because(Cause::Cancelled),
            () = self.running.reclaimed.cancelled() => self.stop.because(Cause::Reclaimed),
            () = self.stop.token().cancelled() => {}
        }
    }

    /// The end of a job that was cancelled before it began.
    fn cancelled(&self) -> End {
        self.stop.because(Cause::Cancelled);
        End::Stopped
    }

    fn callback(&self) -> Option<Callback> {
        self.callback.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn timestamps(&self, jobs: &Jobs) -> Timestamps {
        self.payload.timestamps().unwrap_or(jobs.timestamps)
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It did what it was to do.
    Succeeded,
    /// It failed.
    Failed(Failure),
    /// It was stopped.
    Stopped(Cause),
}

impl Outcome {
    fn of(result: Result<(), End>, stop: &Stop) -> Self {
        match result {
            Ok(()) => Self::Succeeded,
            Err(End::Failed(failure)) => Self::Failed(failure),
            // Nothing else stops a build without a word.
            Err(End::Stopped) => Self::Stopped(stop.cause().unwrap_or(Cause::Shutdown)),
        }
    }

    /// What is told of it; `None` when it succeeded.
    fn failure(&self) -> Option<Failure> {
        match self {
            Self::Succeeded => None,
            Self::Failed(failure) => Some(failure.clone()),
            Self::Stopped(cause) => Some(cause.failure()),
        }
    }
}

/// What becomes of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Disposition {
    /// It is over, and has not failed as Sidekiq sees it.
    Acknowledge,
    /// It runs again at this time.
    RetryAt(Epoch),
    /// To the dead set.
    Dead,
    /// It has failed, and goes nowhere: `retry: false`, or `dead: false`.
    Drop,
    /// Back to the head of its queue, as if it had never been fetched.
    Requeue,
}

/// Processes one unit of work to its end, and hands in the settlement. A panic in it fails this job and no other.
pub async fn process(processor: Arc<Processor>, running: Running, settlements: UnboundedSender<Settlement>) {
    let (unit, started) = (running.unit.clone(), Instant::now());
    let promise = Promise { unit: Some(unit.clone()), settlements, timestamps: processor.jobs.timestamps };
    let payload = match Payload::parse_shared(&unit.text) {
        Ok(payload) => payload,
        Err(error) => {
            tracing::error!(event = "malformed_job", queue = unit.queue, %error, "malformed job moved to the dead set");
            let failure = Failure::new(Reason::InvalidArguments, error.to_string());
            return promise.keep(dead(unit, &failure, processor.jobs.timestamps));
        }
    };
    let jid = payload.jid.as_str();
    if let Some(flaw) = payload.flaw() {
        tracing::error!(event = "malformed_job", queue = unit.queue, jid, error = flaw, "malformed job not run");
    }
    running.iteration.begin_job(&processor.jobs, &payload);
    let span = tracing::info_span!("job", jid);
    // One that is poison, or was cancelled while it waited, ends without having begun.
    if !running.iteration.is_waiting() {
        tracing::debug!(jid, token = %unit.token, "job begins");
    }
    let job = Arc::new(Job::new(&processor, running, payload));
    let attempt = attempt(Arc::clone(&processor), Arc::clone(&job)).instrument(span);
    let panicked = |error| Err(Failure::new(Reason::Panicked, panic_message(error)).into());
    let outcome = Outcome::of(tokio::spawn(attempt).await.unwrap_or_else(panicked), &job.stop);
    if job.running.reclaimed.is_cancelled() {
        // Another worker has the job, and custody drops this settlement. It only frees the slot.
        tracing::warn!(token = %unit.token, "the build was killed, since the job belongs to another worker now");
    }
    let settlement = settle(&processor.jobs, &job, &outcome);
    // As in Ruby, where a class that is not known fails before anybody counts.
    if settlement.is_processed && processor.jobs.is_ours(&job.payload.class) {
        processor.metrics.record(&job.payload.class, started.elapsed(), settlement.is_failed);
    }
    promise.keep(settlement);
}

/// That a unit of work is settled, whatever happens: a bug of ours in settling must strand neither the job nor its slot.
struct Promise {
    unit: Option<UnitOfWork>,
    settlements: UnboundedSender<Settlement>,
    timestamps: Timestamps,
}

impl Promise {
    fn keep(mut self, settlement: Settlement) {
        self.unit = None;
        // The receiver goes last; when it is gone all the same, recovery brings the job back.
        let _ = self.settlements.send(settlement);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let Some(unit) = self.unit.take() else { return };
        // An aborted slot is the end of the process: recovery brings the job back.
        if std::thread::panicking() {
            tracing::error!(event = "unsettled_job", token = %unit.token, queue = unit.queue, "job not settled; moved to the dead set");
            let failure = Failure::new(Reason::Panicked, "the job's result could not be settled");
            let _ = self.settlements.send(dead(unit, &failure, self.timestamps));
        }
    }
}

/// The settlement of a text that is not a job, or that cannot be settled in any other way.
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

async fn attempt(processor: Arc<Processor>, job: Arc<Job>) -> Result<(), End> {
    let (unit, payload) = (&job.running.unit, &job.payload);
    if unit.is_poison() {
        let times = unit.n_crashes;
        return Err(Failure::new(Reason::Poison, format!("crashed its worker {times} times while it ran alone")).into());
    }
    if let Some(flaw) = payload.flaw() {
        return Err(Failure::new(Reason::InvalidArguments, flaw).into());
    }
    if payload.class == PROBE && processor.jobs.probe {
        return probe(&job).await;
    }
    // On the heap: it is many kilobytes, which a job that builds nothing need not carry from task to task.
    let work = Box::pin(build(&processor, &job));
    let given_up = async {
        job.stopped().await;
        // To end its child and remove its directory.
        tokio::time::sleep(CLEAN_UP).await;
    };
    tokio::select! {
        built = work => built,
        // What does not listen to the stop, a request to Rails or GitHub, is dropped.
        () = given_up => Err(End::Stopped),
    }
}

/// A build job: its arguments, perhaps Rails, then the integrations.
async fn build(processor: &Processor, job: &Job) -> Result<(), End> {
    let (running, payload) = (&job.running, &job.payload);
    let Some(class) = processor.jobs.classes.get(&payload.class) else {
        let message = format!("{} is not a class of this worker's configuration", payload.class);
        return Err(Failure::new(Reason::WorkerFailed, message).into());
    };
    let args = payload.arguments().map_err(|error| Failure::new(Reason::InvalidArguments, error.to_string()))?;
    let request = arguments::read(class, &args).map_err(invalid);
    drop(args);
    let native = ask_rails(class, request, job).await;
    // What is read of a job is not kept while the worker waits for anything.
    let parsed = native.map(|native| {
        job.learn(&native);
        BuildJob::parse(&native)
    });
    // It may have been cancelled while it waited, also where Rails cannot be asked whom to tell of that. When Redis does not
    // answer, it is found out later.
    let _ = iteration::look(&processor.redis, &processor.identity, std::slice::from_ref(running)).await;
    let is_cancelled = running.iteration.cancelled.is_cancelled();
    if parsed.is_err() && is_cancelled {
        return Err(job.cancelled());
    }
    let parsed = parsed?;
    refuse_expired(payload)?;
    if is_cancelled {
        return Err(job.cancelled());
    }
    let build_job = parsed.map_err(invalid)?;
    job.journal.emit(Event::Commit {
        repository: build_job.build.repository.to_string(),
        sha: build_job.sha.to_string(),
        git_ref: build_job.git_ref.clone(),
    });
    notify_started(processor, job).await;
    let fence = InFlight { processor, unit: &running.unit };
    let attempt = Attempt { journal: &job.journal, stop: &job.stop, fence: Some(&fence) };
    let built = perform(&processor.integrations, &build_job, attempt).await;
    let worker_paths = processor.integrations.state.worker_paths();
    built.map_err(|end| end.map(|failure| for_customer(failure, &worker_paths)))
}

/// The native object, as soon as it is there; a build that is stopped waits for Rails a moment longer.
async fn ask_rails(class: &JobClass, request: Result<RequestFrom, Failure>, job: &Job) -> Result<Value, End> {
    let _phase = job.journal.begin(Phase::Resolve);
    let no_word = async {
        job.stop.token().cancelled().await;
        tokio::time::sleep(LAST_WORD).await;
    };
    tokio::select! {
        native = native(class, request) => native,
        () = no_word => Err(End::Stopped),
    }
}

/// A failure as the customer may read it. The log has all of it.
fn for_customer(failure: Failure, worker_paths: &WorkerPaths) -> Failure {
    let told = failure.clone().without(worker_paths);
    if told != failure {
        tracing::warn!(detail = failure.detail, "the failure in full");
    }
    told
}

/// The fence of a build: its entry in flight.
#[derive(Debug)]
struct InFlight<'a> {
    processor: &'a Processor,
    unit: &'a UnitOfWork,
}

impl Fence for InFlight<'_> {
    /// While Redis does not answer the build goes on, as every running one does.
    fn holds(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        let Processor { redis, identity, .. } = self.processor;
        Box::pin(async move { holds(redis, identity, self.unit).await.unwrap_or(true) })
    }
}

fn invalid(error: FieldError) -> Failure {
    Failure::new(Reason::InvalidArguments, error.to_string())
}

/// A job that Sidekiq Pro would drop.
fn refuse_expired(payload: &Payload) -> Result<(), Failure> {
    match payload.expiry().filter(|expiry| *expiry < Epoch::now()) {
        Some(expiry) => Err(Failure::new(Reason::Expired, format!("at {}", expiry.timestamp()))),
        None => Ok(()),
    }
}

/// The native object, from the arguments or from Rails.
async fn native(class: &JobClass, request: Result<RequestFrom, Failure>) -> Result<Value, End> {
    match (request?, &class.resolve) {
        (RequestFrom::Rails(url), Some(resolve)) => Ok(rails::resolve(resolve, &url).await?),
        (RequestFrom::Rails(url), None) => {
            Err(Failure::new(Reason::WorkerFailed, format!("no resolver for {url}")).into())
        }
        (RequestFrom::Arguments(native), _) => Ok(native),
    }
}

async fn notify_started(processor: &Processor, job: &Job) {
    let Some(callback) = job.callback() else { return };
    let report = Report { moment: Moment::Started, ..job.record.report() };
    let (unit, timestamps) = (&job.running.unit, job.timestamps(&processor.jobs));
    let text = rails::callback_job(&callback, &report, &unit.text, Epoch::now(), timestamps);
    let Some(text) = text else { return };
    let (redis, identity) = (&processor.redis, &processor.identity);
    if let Err(error) = announce(redis, identity, unit, &callback.queue, &text).await {
        tracing::warn!(%error, jid = report.jid, "Rails is not told that the build has started");
    }
}

/// The argument of a probe job.
#[derive(Deserialize)]
struct Probe {
    outcome: ProbeOutcome,
    #[serde(default)]
    sleep_s: f64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ProbeOutcome {
    Succeed,
    User,
    Infrastructure,
    Panic,
}

/// A job that goes through the whole runtime and builds nothing. Further fields and arguments are ignored.
async fn probe(job: &Job) -> Result<(), End> {
    let payload = &job.payload;
    refuse_expired(payload)?;
    let args = payload.arguments().map_err(|error| Failure::new(Reason::InvalidArguments, error.to_string()))?;
    let probe = Probe::deserialize(args.value(0).map_err(invalid)?)
        .map_err(|error| Failure::new(Reason::InvalidArguments, format!("args[0]: {error}")))?;
    let sleep = Duration::try_from_secs_f64(probe.sleep_s).unwrap_or_default();
    let slept = async {
        // A timer for no time at all waits for the next whole millisecond.
        if !sleep.is_zero() {
            tokio::time::sleep(sleep).await;
        }
    };
    // One that was cancelled before it began does not run, however short it is.
    tokio::select! {
        biased;
        () = job.stopped() => return Err(End::Stopped),
        () = slept => {}
    }
    match probe.outcome {
        ProbeOutcome::Succeed => Ok(()),
        ProbeOutcome::User => Err(Failure::new(Reason::StepFailed, probe.message).into()),
        ProbeOutcome::Infrastructure => Err(Failure::new(Reason::BuilderUnavailable, probe.message).into()),
        ProbeOutcome::Panic => panic!("{}", probe.message),
    }
}

/// Decides what becomes of a job. `jitter` is a number in 0..1.
///
/// A user failure is a finished job, when there is somebody to tell: without a callback nobody would see it, so it goes
/// to the dead set. A control end never counts as a retry.
pub fn dispose(
    outcome: &Outcome,
    payload: &Payload,
    jobs: &Jobs,
    has_callback: bool,
    n_interruptions: u32,
    now: Epoch,
    jitter: f64,
) -> Disposition {
    let dead = if payload.may_die() { Disposition::Dead } else { Disposition::Drop };
    let next = |wait| retry::next(payload, jobs, now, wait, jitter);
    let failure = match outcome {
        Outcome::Succeeded | Outcome::Stopped(Cause::Cancelled) => return Disposition::Acknowledge,
        Outcome::Stopped(_) if n_interruptions + 1 < MAX_INTERRUPTIONS => return Disposition::Requeue,
        // It is always in the way of a stop. A job that has no retries goes on as it was: it has not failed.
        Outcome::Stopped(_) => match next(Duration::ZERO) {
            Next::RetryAt(at) => return Disposition::RetryAt(at),
            Next::Die | Next::Drop => return Disposition::Requeue,
        },
        Outcome::Failed(failure) => failure,
    };
    match (failure.reason, failure.reason.class()) {
        (Reason::Poison, _) => dead,
        (_, Class::Control) => Disposition::Acknowledge,
        (_, Class::User) if !jobs.raise_user_failures => {
            if has_callback {
                Disposition::Acknowledge
            } else {
                dead
            }
        }
        (_, Class::User | Class::Infrastructure) => match next(failure.wait) {
            // Sidekiq could not show it in the retry set, and another attempt would end in the same way.
            Next::RetryAt(_) if payload.flaw().is_some() => dead,
            Next::RetryAt(at) => Disposition::RetryAt(at),
            Next::Die => Disposition::Dead,
            Next::Drop => Disposition::Drop,
        },
    }
}

/// The settlement of an attempt: what becomes of the job, and what Rails is told, in one step.
fn settle(jobs: &Jobs, job: &Job, outcome: &Outcome) -> Settlement {
    let (unit, payload, now) = (&job.running.unit, &job.payload, Epoch::now());
    let (mut report, callback) = (job.record.report(), job.callback());
    let has_callback = callback.as_ref().is_some_and(|callback| callback.wants(Moment::Finished));
    let disposition = dispose(outcome, payload, jobs, has_callback, unit.n_interruptions, now, rand::random());
    log_end(outcome, &report, disposition, &job.running);

    let failure = outcome.failure();
    conclude(&mut report, failure.as_ref());
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
    let told = moment.zip(callback.as_ref()).and_then(|(moment, callback)| {
        let report = Report { moment, ..report };
        let text = rails::callback_job(callback, &report, &unit.text, now, job.timestamps(jobs))?;
        Some(Effect::Push { queue: callback.queue.clone(), text })
    });
    // A mark that comes too late for this attempt is there for the next one.
    let is_over = matches!(disposition, Disposition::Acknowledge | Disposition::Dead | Disposition::Drop);
    let ended = job.running.iteration.key().filter(|_| is_over).map(|key| Effect::Unlink { key });
    Settlement {
        is_processed: disposition != Disposition::Requeue,
        is_failed: matches!(disposition, Disposition::RetryAt(_) | Disposition::Dead | Disposition::Drop),
        effects: effect.into_iter().chain(told).chain(ended).collect(),
        ..Settlement::of(unit)
    }
}

fn conclude(report: &mut Report, failure: Option<&Failure>) {
    report.status = Some(match failure.map(|failure| failure.reason) {
        None => Status::Succeeded,
        Some(Reason::Cancelled | Reason::Expired) => Status::Cancelled,
        Some(_) => Status::Failed,
    });
    report.reason = failure.map(|failure| failure.reason);
    report.message = failure.map(Failure::message);
}

fn log_end(outcome: &Outcome, report: &Report, disposition: Disposition, running: &Running) {
    let took_s = Epoch::now().since(running.since).as_secs_f64();
    // One worker may run a job twice at a time, until it learns that it has lost the first of the two.
    let token = &running.unit.token;
    let (jid, repository, sha) = (&report.jid, report.repository.as_deref(), report.sha.as_deref());
    match (outcome.failure(), disposition) {
        (None, _) => tracing::info!(jid, %token, repository, sha, took_s, "job done"),
        (Some(failure), Disposition::Requeue) => {
            tracing::info!(jid, %token, repository, %failure, took_s, "job put back")
        }
        (Some(failure), Disposition::RetryAt(at)) => {
            let retry_at_s = at.as_secs_f64();
            tracing::warn!(jid, %token, repository, sha, reason = %failure.reason, detail = failure.detail, took_s, retry_at_s, "job failed, will be retried");
        }
        (Some(failure), _) => {
            tracing::warn!(jid, %token, repository, sha, reason = %failure.reason, detail = failure.detail, took_s, "job failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(reason: Option<Reason>, text: &str, has_callback: bool) -> Disposition {
        let payload = Payload::parse(text.as_bytes()).expect("a job");
        let outcome = reason.map_or(Outcome::Succeeded, |reason| Outcome::Failed(Failure::new(reason, "x")));
        dispose(&outcome, &payload, &Jobs::default(), has_callback, 0, Epoch::from_secs_f64(100.0), 0.0)
    }

    #[test]
    fn what_becomes_of_a_job() {
        let job = r#"{"class":"BuildJob","args":[]}"#;
        let retry_at = Disposition::RetryAt(Epoch::from_secs_f64(115.0));
        for (reason, text, has_callback, expected) in [
            (None, job, false, Disposition::Acknowledge),
            (Some(Reason::StepFailed), job, true, Disposition::Acknowledge),
            (Some(Reason::StepFailed), job, false, Disposition::Dead),
            (Some(Reason::StepFailed), r#"{"class":"BuildJob","args":[],"dead":false}"#, false, Disposition::Drop),
            (
                Some(Reason::StepFailed),
                r#"{"class":"BuildJob","args":[],"dead":false}"#,
                true,
                Disposition::Acknowledge,
            ),
            (Some(Reason::GitUnavailable), job, true, retry_at),
            (Some(Reason::Panicked), job, false, retry_at),
            (Some(Reason::GitUnavailable), r#"{"class":"BuildJob","args":[],"retry":0}"#, true, Disposition::Dead),
            (Some(Reason::GitUnavailable), r#"{"class":"BuildJob","args":[],"retry":false}"#, true, Disposition::Drop),
            (
                Some(Reason::GitUnavailable),
                r#"{"class":"BuildJob","args":[],"retry":0,"dead":false}"#,
                true,
                Disposition::Drop,
            ),
            (Some(Reason::Expired), job, false, Disposition::Acknowledge),
            (Some(Reason::Poison), job, true, Disposition::Dead),
            (Some(Reason::Poison), r#"{"class":"BuildJob","args":[],"dead":false}"#, true, Disposition::Drop),
        ] {
            assert_eq!(decide(reason, text, has_callback), expected, "{reason:?} {text} {has_callback}");
        }
    }

    #[test]
    fn the_third_interruption_is_a_retry_where_there_are_any() {
        let decide_for = |cause, text: &str, n| {
            let payload = Payload::parse(text.as_bytes()).expect("a job");
            dispose(&Outcome::Stopped(cause), &payload, &Jobs::default(), true, n, Epoch::from_secs_f64(100.0), 0.0)
        };
        let job = r#"{"class":"BuildJob","args":[]}"#;
        for cause in [Cause::Shutdown, Cause::Reclaimed] {
            assert_eq!([0, 1].map(|n| decide_for(cause, job, n)), [Disposition::Requeue; 2]);
        }
        assert_eq!(decide_for(Cause::Cancelled, job, 0), Disposition::Acknowledge);
        let decide = |text, n| decide_for(Cause::Shutdown, text, n);
        assert_eq!(decide(r#"{"class":"BuildJob","args":[],"retry":0}"#, 0), Disposition::Requeue);
        assert_eq!(decide(job, 2), Disposition::RetryAt(Epoch::from_secs_f64(115.0)));
        assert_eq!(decide(r#"{"class":"BuildJob","args":[],"retry":false}"#, 2), Disposition::Requeue);
    }

    #[test]
    fn shops_that_count_on_sidekiqs_failure_path_get_it() {
        let jobs = Jobs { raise_user_failures: true, ..Jobs::default() };
        let payload = Payload::parse(br#"{"class":"BuildJob","args":[]}"#).expect("a job");
        let failed = Outcome::Failed(Failure::new(Reason::StepFailed, "x"));
        let decide = |payload: &Payload| dispose(&failed, payload, &jobs, true, 0, Epoch::from_secs_f64(100.0), 0.0);
        assert_eq!(decide(&payload), Disposition::RetryAt(Epoch::from_secs_f64(115.0)));
        let malformed = Payload::parse(br#"{"class":"BuildJob","args":null}"#).expect("a job");
        assert_eq!(decide(&malformed), Disposition::Dead, "the retry set could not show it");
    }
}
