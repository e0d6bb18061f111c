//! `/metrics`: what was recorded, and what is measured at the time of the scrape.
//!
//! The second part has a recorder of its own for each scrape. So a pod that is gone, or an account without jobs, has no series.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::time::Instant;

use super::{PATIENCE, Worker};
use crate::builder::{BuilderStatus, Builders};
use crate::clock::Epoch;
use crate::metric::{self, Kind};
use crate::settings::Driver;
use crate::sidekiq::load::Load;
use crate::sidekiq::tenant;

/// The text format of Prometheus, which also has an `openmetrics` form.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How soon Kubernetes is asked about the builders again, and how long an answer is shown.
const FRESH: Duration = Duration::from_secs(30);
const STALE: Duration = Duration::from_secs(180);

/// What this process has recorded. The recorder of a process cannot be replaced.
static RECORDED: OnceLock<PrometheusHandle> = OnceLock::new();

/// The page of a worker.
pub(super) struct Page {
    recorded: PrometheusHandle,
    builders: Arc<Mutex<Surveyed>>,
}

/// What Kubernetes said of the builders.
#[derive(Default)]
struct Surveyed {
    is_asking: bool,
    answered_at: Option<Instant>,
    builders: Vec<BuilderStatus>,
}

impl Page {
    /// Begins to record.
    pub(super) fn begin() -> Self {
        Self { recorded: RECORDED.get_or_init(record).clone(), builders: Arc::default() }
    }

    /// Adds up the values of the histograms.
    pub(super) fn add_up(&self) {
        self.recorded.run_upkeep();
    }

    /// The page.
    pub(super) async fn render(&self, worker: &Worker) -> impl IntoResponse + use<> {
        let load = worker.load().await;
        self.survey(worker);
        let recorder = PrometheusBuilder::new().build_recorder();
        metric::describe(&recorder);
        metrics::with_local_recorder(&recorder, || {
            let process = metrics_process::Collector::default();
            process.describe();
            process.collect();
            record_worker(worker);
            metric::REDIS_UP.set([], f64::from(!matches!(load, Err(NotKnown::NoAnswer))));
            if let Ok(load) = &load {
                record_load(worker, load);
            }
            record_builders(worker, self.surveyed().fresh());
        });
        ([(CONTENT_TYPE, TEXT)], self.recorded.render() + &recorder.handle().render())
    }

    /// Asks Kubernetes about the builders, when the last answer is old. This scrape does not wait for it.
    fn survey(&self, worker: &Worker) {
        let mut surveyed = self.surveyed();
        if surveyed.is_asking || surveyed.answered_at.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        surveyed.is_asking = true;
        let (known, builders) = (Arc::clone(&self.builders), Arc::clone(&worker.builders));
        tokio::spawn(async move {
            let builders = statuses(&builders).await;
            let answered = Surveyed { is_asking: false, answered_at: Some(Instant::now()), builders };
            *known.lock().unwrap_or_else(PoisonError::into_inner) = answered;
        });
    }

    fn surveyed(&self) -> MutexGuard<'_, Surveyed> {
        self.builders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

impl Surveyed {
    /// The builders, as long as the answer counts.
    fn fresh(&self) -> &[BuilderStatus] {
        if self.answered_at.is_some_and(|at| at.elapsed() < STALE) { &self.builders } else { &[] }
    }
}

/// Installs the recorder of this process.
fn record() -> PrometheusHandle {
    let histograms = metric::ALL.iter().filter_map(|metric| match metric.kind {
        Kind::Histogram(bounds) => Some((metric.name, bounds)),
        _ => None,
    });
    let with_bounds = |builder: PrometheusBuilder, (name, bounds): (&str, &[f64])| {
        builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds).expect("a histogram has bounds")
    };
    let recorder = histograms.fold(PrometheusBuilder::new(), with_bounds).build_recorder();
    let recorded = recorder.handle();
    metric::describe(&recorder);
    metric::begin(&recorder);
    metrics::set_global_recorder(recorder).expect("nothing else installs a recorder");
    recorded
}

/// Why the load is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotKnown {
    /// Redis does not answer.
    NoAnswer,
    /// Redis refuses a command, or another worker takes long to read it.
    Refused,
}

impl Worker {
    /// What waits and runs.
    pub(super) async fn load(&self) -> Result<Load, NotKnown> {
        let loads = Arc::clone(&self.loads);
        // A timed-out reading goes on: only its own failure drops a dead connection, or finds the next sentinel.
        let read = tokio::spawn(async move { loads.read().await });
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(Ok(load))) => load.ok_or(NotKnown::Refused),
            Ok(Ok(Err(error))) => {
                tracing::debug!(%error, "the load is not known");
                Err(if error.code().is_some() { NotKnown::Refused } else { NotKnown::NoAnswer })
            }
            Ok(Err(_)) | Err(_) => Err(NotKnown::NoAnswer),
        }
    }
}

/// What Kubernetes says of each builder. A builder that it does not know, or whose API server does not answer, is left out.
async fn statuses(builders: &Builders) -> Vec<BuilderStatus> {
    let mut found = Vec::new();
    for name in builders.names() {
        match builders.status(name).await {
            Ok(statuses) => found.extend(statuses),
            Err(error) => tracing::debug!(builder = name, %error, "the pods of a builder are not known"),
        }
    }
    found
}

fn record_worker(worker: &Worker) {
    metric::BUILD_INFO.set([env!("CARGO_PKG_VERSION")], 1.0);
    metric::ACCEPTING_JOBS.set([], f64::from(worker.known_obstacle().is_none()));
    for (capsule, n_slots) in &worker.capsules {
        metric::SLOTS.set([capsule], *n_slots as f64);
    }
    let mut accounts = BTreeMap::new();
    for job in worker.running.snapshot() {
        let read = || tenant::read(&job.unit.text, &worker.loads.jobs, &worker.loads.tenants).claim.tenant;
        *accounts.entry(job.iteration.tenant(read).to_owned()).or_default() += 1;
    }
    for (account, n_jobs) in metric::top(accounts) {
        metric::RUNNING_JOBS.set([&account], n_jobs as f64);
    }
    if let Ok(free_bytes) = worker.state.free_bytes() {
        metric::STATE_FREE.set([], free_bytes as f64);
    }
    if let Ok(children) = getrusage(UsageWho::RUSAGE_CHILDREN) {
        // Linux counts in kilobytes.
        metric::CHILD_PEAK.set([], children.max_rss() as f64 * 1024.0);
    }
}

fn record_load(worker: &Worker, load: &Load) {
    let now = Epoch::now();
    for (name, queue) in &load.queues {
        metric::QUEUE_JOBS.set([name], queue.n_jobs as f64);
        metric::QUEUE_PAUSED.set([name], f64::from(queue.is_paused));
        metric::BLOCKED_JOBS.set([name], queue.n_blocked as f64);
        let age = queue.oldest_ms.map(|oldest_ms| now.since(Epoch::from_millis(oldest_ms)));
        metric::QUEUE_OLDEST.set([name], age.unwrap_or_default().as_secs_f64());
        for (account, n_jobs) in &queue.accounts {
            metric::WAITING_JOBS.set([name, account], *n_jobs as f64);
        }
    }
    for (set, n_jobs) in &load.sets {
        metric::SET_JOBS.set([set], *n_jobs as f64);
    }
    metric::WANTED_WORKERS.set([], load.wanted_workers(worker.n_slots()) as f64);
    for (builder, n_builds) in &worker.shard_builds {
        metric::WANTED_SHARDS.set([builder], load.wanted_shards(builder, *n_builds) as f64);
    }
}

fn record_builders(worker: &Worker, builders: &[BuilderStatus]) {
    for (builder, pods) in worker.builders.occupancy.of_process() {
        for (pod, n_builds) in pods {
            metric::BUILDS.set([&builder, &pod], f64::from(n_builds));
        }
    }
    // Other drivers have no pods.
    let deployed = builders.iter().filter(|status| status.driver == Driver::Kubernetes.name() && status.exists);
    for BuilderStatus { builder, shard, n_wanted, pods, .. } in deployed {
        let shard = shard.as_deref().unwrap_or_default();
        metric::WANTED_PODS.set([builder, shard], *n_wanted as f64);
        for pod in pods {
            metric::POD_READY.set([builder, shard, &pod.name], f64::from(pod.is_ready && !pod.is_going));
        }
    }
}
