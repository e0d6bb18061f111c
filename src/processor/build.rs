//! A build job: its arguments, perhaps Rails, then the build.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::job::Job;
use super::{Processor, invalid, refuse_expired};
use crate::builder::Fleet;
use crate::clock::Epoch;
use crate::event::{Event, Moment, Phase};
use crate::job::BuildJob;
use crate::job::arguments::{self, RequestFrom};
use crate::perform::{AskBases, Attempt, Fence, authorize, perform};
use crate::rails::{self, Resolver};
use crate::reason::{End, Failure, Reason};
use crate::report::Report;
use crate::sidekiq::fence::{announce, holds};
use crate::sidekiq::inflight::UnitOfWork;
use crate::sidekiq::iteration;
use crate::sidekiq::{shard, warm};
use crate::text::paths::WorkerPaths;

/// How long a stopped build still waits for Rails, which alone may know the callback.
const RAILS_GRACE: Duration = Duration::from_millis(500);

/// Runs a build job to its end.
pub(super) async fn build(processor: &Arc<Processor>, job: &Job) -> Result<(), End> {
    let (running, payload) = (&job.running, &job.payload);
    let Some(class) = processor.jobs.classes.get(&payload.class) else {
        let message = format!("{} is not a class of this worker's configuration", payload.class);
        return Err(Failure::new(Reason::WorkerFailed, message).into());
    };
    let args = payload.arguments().map_err(|error| Failure::new(Reason::InvalidArguments, error.to_string()))?;
    let request = arguments::read(class, &args).map_err(invalid);
    drop(args);
    let request = resolve(&processor.resolver, request, job).await;
    // The parsed request is dropped here, so that it takes no memory while the worker waits.
    let parsed = request.map(|request| {
        job.learn(&request);
        job.note_inputs(&request);
        BuildJob::parse(&request)
    });
    // The job may have been cancelled while it was queued, also when Rails does not answer. Without an answer from Redis, the
    // iteration task finds the mark later.
    let _ = iteration::sync(&processor.redis, &processor.identity, std::slice::from_ref(running)).await;
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
    // Only now: a job that cannot be built ends no other.
    let twin = job.look_for_others(&processor.redis).await?;
    job.journal.emit(Event::Commit {
        account: build_job.build.account.clone(),
        repository: build_job.build.repository.to_string(),
        sha: build_job.sha.to_string(),
        git_ref: build_job.git_ref.clone(),
    });
    let (fence, fleet) = (fence(processor, &running.unit), fleet(processor, &running.unit));
    let ask_bases = ask_bases(processor);
    let attempt = Attempt {
        journal: &job.journal,
        stop: &job.stop,
        fence: Some(&*fence),
        fleet: Some(&*fleet),
        ask_bases: Some(&*ask_bases),
    };
    if let Some(twin) = twin {
        authorize(&processor.integrations, &build_job, attempt).await?;
        return job.end_as(&twin);
    }
    notify_started(processor, job).await;
    let built = perform(&processor.integrations, &build_job, attempt).await;
    job.was_built();
    let worker_paths = processor.integrations.state.worker_paths();
    built.map_err(|end| end.map(|failure| for_customer(failure, &worker_paths, job)))
}

/// The build request, from the arguments or from Rails. A stopped build waits for Rails a moment longer.
async fn resolve(resolver: &Resolver, request: Result<RequestFrom<'_>, Failure>, job: &Job) -> Result<Value, End> {
    let _phase = job.journal.begin(Phase::Resolve);
    let resolved = async { Ok(resolver.build_request(request?).await?) };
    let given_up = async {
        job.stop.token().cancelled().await;
        tokio::time::sleep(RAILS_GRACE).await;
    };
    tokio::select! {
        request = resolved => request,
        () = given_up => Err(End::Stopped),
    }
}

/// The failure without what customers must not read. The log has all of it.
fn for_customer(failure: Failure, worker_paths: &WorkerPaths, job: &Job) -> Failure {
    let shown = failure.clone().without(worker_paths);
    job.note_detail(failure.detail);
    shown
}

/// Asks whether the job's entry is still in the in-flight hash. While Redis does not answer, the build goes on like every running
/// build.
fn fence(processor: &Arc<Processor>, unit: &UnitOfWork) -> Box<Fence> {
    let (processor, unit) = (Arc::clone(processor), unit.clone());
    Box::new(move || {
        let (processor, unit) = (Arc::clone(&processor), unit.clone());
        Box::pin(async move { holds(&processor.redis, &processor.identity, &unit).await.unwrap_or(true) })
    })
}

/// Chooses a shard by the builds of the fleet. Without an answer from Redis, the builder chooses by itself.
fn fleet(processor: &Arc<Processor>, unit: &UnitOfWork) -> Box<Fleet> {
    let (processor, unit) = (Arc::clone(processor), unit.clone());
    Box::new(move |question| {
        let (processor, unit) = (Arc::clone(&processor), unit.clone());
        Box::pin(async move {
            let answer = shard::choose(&processor.redis, &processor.identity, &unit, &question).await;
            let told = answer.inspect_err(|error| {
                tracing::warn!(event = "shard_not_chosen", %error, "Redis does not choose the shard of a build; the worker does");
            });
            told.ok().flatten()
        })
    })
}

/// Asks Redis which base images a pod has built.
fn ask_bases(processor: &Arc<Processor>) -> Box<AskBases> {
    let processor = Arc::clone(processor);
    Box::new(move |question| {
        let processor = Arc::clone(&processor);
        Box::pin(async move { warm::ask(&processor.redis, &question).await.ok() })
    })
}

async fn notify_started(processor: &Processor, job: &Job) {
    let Some(callback) = job.callback() else { return };
    let report = Report { moment: Moment::Started, ..job.record.report() };
    let (unit, timestamps) = (&job.running.unit, job.timestamps(&processor.jobs));
    let text =
        rails::callback_job(&callback, &report, &unit.text, Epoch::now(), timestamps, || job.trace_of(&callback));
    let Some(text) = text else { return };
    let (redis, identity) = (&processor.redis, &processor.identity);
    if let Err(error) = announce(redis, identity, unit, &callback.queue, &text).await {
        tracing::warn!(event = "started_callback_lost", %error, jid = report.jid, "the callback `started` could not be pushed");
    }
}
