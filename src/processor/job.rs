//! One attempt at a job, as far as it is known.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::Processor;
use crate::clock::Epoch;
use crate::event::Event;
use crate::job::arguments;
use crate::job::{self, Callback};
use crate::journal::{Journal, Listener, Log, Meter, Record};
use crate::log_archive::{LogArchive, RunOf};
use crate::log_stream::Attempt;
use crate::reason::{Cause, End};
use crate::redis::Redis;
use crate::report::{Report, SharedResult};
use crate::settings::{JobClass, Jobs, PROBE, Timestamps};
use crate::sidekiq::newest;
use crate::sidekiq::payload::Payload;
use crate::sidekiq::running::Running;
use crate::sidekiq::settlement::Effect;
use crate::sidekiq::twins;
use crate::stop::Stop;
use crate::traces::{Begun, Carrier, Trace};

/// No job waits longer.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// One attempt at a job. It outlives a panic of the attempt.
#[derive(Debug)]
pub(super) struct Job {
    pub running: Running,
    pub payload: Payload,
    pub journal: Journal,
    pub record: Arc<Record>,
    pub archive: Option<Arc<LogArchive>>,
    pub trace: Option<Arc<Trace>>,
    pub meter: Arc<Meter>,
    pub stop: Stop,
    /// Set as soon as the build request is known.
    callback: Mutex<Option<Callback>>,
    /// Names the inputs of the build request, where the job has twins.
    inputs: OnceLock<String>,
    was_built: AtomicBool,
    /// The detail of the failure with the worker's paths, which customers must not read.
    detail: OnceLock<String>,
}

impl Job {
    /// An attempt with what the job itself says, before Rails is asked.
    pub(super) fn new(processor: &Processor, running: Running, payload: Payload) -> Self {
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
        let meter = Arc::new(meter(processor, &running, &payload));
        let mut listeners: Vec<Arc<dyn Listener>> = vec![
            Arc::new(Log::default()),
            Arc::clone(&meter) as _,
            Arc::clone(&running.iteration.progress) as _,
            Arc::clone(&record) as _,
        ];
        // A probe builds nothing.
        let is_build = class.is_some() && payload.class != PROBE;
        let archive = if is_build { begin_archive(processor, &running, &payload.jid, attempt) } else { None };
        if is_build {
            let attempt = Attempt {
                jid: payload.jid.clone(),
                number: attempt,
                worker: processor.identity.to_string(),
                queued_at: payload.enqueued_at(),
                began_at: running.since,
            };
            listeners.extend(processor.log_streams.begin(attempt, &record).map(|stream| stream as _));
            listeners.extend(archive.clone().map(|archive| archive as _));
        }
        let trace = begin_trace(processor, &running, &payload, attempt);
        listeners.extend(trace.clone().map(|trace| trace as _));
        let journal = Journal::new(listeners, processor.integrations.state.worker_paths());
        let stop = Stop::with(&processor.kill);
        let (callback, inputs, was_built, detail) = Default::default();
        let job = Self {
            running,
            payload,
            journal,
            record,
            archive,
            trace,
            meter,
            stop,
            callback,
            inputs,
            was_built,
            detail,
        };
        job.learn(&known);
        job
    }

    /// Takes callback and build id from a build request.
    pub(super) fn learn(&self, request: &Value) {
        *self.callback.lock().unwrap_or_else(PoisonError::into_inner) = Callback::find(request);
        let build_id = request.get("build_id").filter(|id| job::is_build_id(id)).cloned();
        self.journal.emit(Event::BuildId(build_id));
    }

    /// Stops the attempt when the job is cancelled or reclaimed. Returns when the attempt is stopped, also by a shutdown.
    pub(super) async fn stopped(&self) {
        tokio::select! {
            biased;
            () = self.running.iteration.cancelled.cancelled() => self.stop.because(self.why_cancelled()),
            () = self.running.reclaimed.cancelled() => self.stop.because(Cause::Reclaimed),
            () = self.stop.token().cancelled() => {}
        }
    }

    /// Ends an attempt at a job that was cancelled before its build began.
    pub(super) fn cancelled(&self) -> End {
        self.stop.because(self.why_cancelled());
        End::Stopped
    }

    fn why_cancelled(&self) -> Cause {
        if self.running.iteration.newer().is_some() { Cause::Superseded } else { Cause::Cancelled }
    }

    /// Notes the whole build request: its inputs are compared with those of twins.
    pub(super) fn note_inputs(&self, request: &Value) {
        if let Some(twin) = self.running.iteration.twin() {
            let _ = self.inputs.set(twins::key(twin.tenant, request.clone()));
        }
    }

    /// Looks for a newer job that builds the same, which cancels this one, and for the result of a twin, which is returned.
    ///
    /// While Redis does not answer, the build goes on like every running build.
    pub(super) async fn look_for_others(&self, redis: &Redis) -> Result<Option<SharedResult>, End> {
        let iteration = &self.running.iteration;
        let own = iteration.twin().zip(self.inputs.get());
        let mut is_next = true;
        if let Some(edition) = iteration.edition() {
            // Another commit may have been built since the twin.
            is_next = own.is_none() || newest::follows_its_twin(redis, edition).await.unwrap_or(false);
            if let Ok(Some(newer)) = newest::enter(redis, edition).await {
                iteration.supersede(newer);
                return Err(self.cancelled());
            }
        }
        let result = match own {
            Some((twin, inputs)) if is_next => {
                let result = twins::result(redis, twin.key, twin.queued_us).await.unwrap_or(None);
                result.filter(|result| result.is_for(&self.payload.jid, inputs))
            }
            _ => None,
        };
        // It fills no slot, so it must not run: Redis has lost the record.
        if result.is_none() && self.running.unit.token.is_beside() {
            self.stop.because(Cause::Shutdown);
            return Err(End::Stopped);
        }
        Ok(result)
    }

    /// Ends the attempt with the result of a twin.
    pub(super) fn end_as(&self, twin: &SharedResult) -> Result<(), End> {
        twin.events().into_iter().for_each(|event| self.journal.emit(event));
        twin.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Notes that the build itself ended: its twins may have the result.
    pub(super) fn was_built(&self) {
        self.was_built.store(true, Ordering::Relaxed);
    }

    /// Notes the whole detail of the failure, for the log.
    pub(super) fn note_detail(&self, detail: String) {
        let _ = self.detail.set(detail);
    }

    /// The whole detail of the failure, when the customer's may lack the worker's paths.
    pub(super) fn detail(&self) -> Option<&str> {
        self.detail.get().map(String::as_str)
    }

    /// The result for the twins of the job, where the build itself ended.
    pub(super) fn shared(&self, report: &Report) -> Option<Effect> {
        let (twin, inputs) = (self.running.iteration.twin()?, self.inputs.get()?);
        if !self.was_built.load(Ordering::Relaxed) {
            return None;
        }
        Some(twins::share(twin.key, &SharedResult::of(report, inputs.clone())?))
    }

    /// The callback, once it is known.
    pub(super) fn callback(&self) -> Option<Callback> {
        self.callback.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a callback carries of the trace: that of this attempt, or that of the job itself when nothing is sent.
    pub(super) fn trace_of(&self, callback: &Callback) -> Carrier {
        let own = self.trace.as_ref().map(|trace| trace.callback(&callback.class, &callback.queue));
        own.unwrap_or_else(|| self.payload.trace())
    }

    /// The form of the times in callbacks of this job.
    pub(super) fn timestamps(&self, jobs: &Jobs) -> Timestamps {
        self.payload.timestamps().unwrap_or(jobs.timestamps)
    }
}

/// The metrics of an attempt.
fn meter(processor: &Processor, running: &Running, payload: &Payload) -> Meter {
    let class = if processor.jobs.runs(&payload.class) { payload.class.clone() } else { String::new() };
    // A job beside the slots only ends, so its queue time is not recorded.
    let queued_at = queued_at(running, payload).filter(|_| !running.unit.token.is_beside());
    Meter::new(running.unit.queue.clone(), class, queued_at.map(|queued_at| running.since.since(queued_at)))
}

/// When a job was enqueued, by the client's clock. A time that cannot be one is `None`: it would drown all others in a sum.
fn queued_at(running: &Running, payload: &Payload) -> Option<Epoch> {
    let enqueued = payload.enqueued_at()?;
    // The clocks of two machines differ by some milliseconds.
    let queued_at = if enqueued > running.since { running.since } else { enqueued };
    (running.since.since(queued_at) < LONGEST_WAIT).then_some(queued_at)
}

fn begin_trace(processor: &Processor, running: &Running, payload: &Payload, attempt: u32) -> Option<Arc<Trace>> {
    if !processor.traces.is_on() {
        return None;
    }
    processor.traces.begin(&Begun {
        queue: &running.unit.queue,
        class: &payload.class,
        jid: &payload.jid,
        attempt,
        queued_at: queued_at(running, payload),
        began_at: running.since,
        carrier: &payload.trace(),
    })
}

fn begin_archive(processor: &Processor, running: &Running, jid: &str, attempt: u32) -> Option<Arc<LogArchive>> {
    let n_earlier_runs = running.unit.n_interruptions.saturating_add(running.unit.n_crashes);
    let run = RunOf { jid: jid.to_owned(), attempt, n_earlier_runs };
    processor.log_archives.begin(run, &processor.integrations.state)
}
