//! The worker: starts everything, goes quiet, stops by a deadline.
//!
//! [`run`] shows the whole process from top to bottom. This module owns and awaits every task.

mod startup;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Epoch;
use crate::environment;
use crate::health::{self, Health, HealthError};
use crate::last_builds::LastBuilds;
use crate::log_archive::{ArchiveError, LogArchives};
use crate::log_stream::{LogKeys, LogStreams};
use crate::network::{self, ClientError};
use crate::own_pod::OwnPod;
use crate::perform::Integrations;
use crate::processor::{Processor, process};
use crate::rails::Resolver;
use crate::reason::Cause;
use crate::redis::{Redis, RedisError, Trouble, is_forbidden};
use crate::sandbox::{self, Wall};
use crate::settings::{self, SandboxMode, Settings};
use crate::sidekiq::custody::{Custody, Handle};
use crate::sidekiq::heartbeat::{self, Process, RemoteSignal};
use crate::sidekiq::lease::{Lease, LeaseError};
use crate::sidekiq::load::Loads;
use crate::sidekiq::queued::Queued;
use crate::sidekiq::running::{Running, RunningJobs};
use crate::sidekiq::scout::Scout;
use crate::sidekiq::settlement::Settlement;
use crate::sidekiq::watch::Watch;
use crate::sidekiq::{Identity, iteration, keys, limits, poller, recovery};
use crate::state::{self, StateDirectory, StateError};
use crate::statsd::Statsd;
use crate::stop::Stop;
use crate::systemd::Systemd;
use crate::traces::{Traces, TracesError};

/// The longest wait for running builds, whatever the settings say.
const MAX_PATIENCE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// After KILL, how long killed builds may take to be requeued.
const KILLED: Duration = Duration::from_secs(3);

/// How long Redis may take for the last results. Recovery requeues the jobs of all others.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long each last message may take: that the worker is gone, that it no longer needs a token.
const GOODBYE: Duration = Duration::from_secs(1);

/// The worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The kernel lacks a wall of the sandbox that is required.
    #[error("{}; {} would start the worker without it", .0.lack(), .0.waiver())]
    Sandbox(Wall),
    /// The state directory cannot be used.
    #[error("failed to use the state directory: {0}")]
    State(#[from] StateError),
    /// The Redis URL is not valid.
    #[error("redis.url: {0}")]
    Redis(#[from] RedisError),
    /// The Redis URL of the live logs is not valid.
    #[error("journal.redis_url: {0}")]
    LogStreams(RedisError),
    /// The archive of logs cannot be used.
    #[error("journal.archive: {0}")]
    LogArchives(#[from] ArchiveError),
    /// Sidekiq does not work on this kind of server.
    #[error("{0}")]
    Cluster(String),
    /// The health listener cannot bind its port.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// Traces cannot be sent.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The thread that renews the lease cannot start, or ended.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Certificates or a proxy variable cannot be used.
    #[error(transparent)]
    Http(#[from] ClientError),
}

/// The signals that end a worker.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Fetch nothing more (TSTP).
    pub quiet: CancellationToken,
    /// Finish by the deadline (TERM, INT). A worker does not read the cause: its jobs are interrupted, whatever the signal.
    pub stop: Stop,
    /// End now (a second TERM).
    pub now: CancellationToken,
    /// Notified by TTIN: log what runs. It ends nothing.
    pub show: Arc<Notify>,
    /// Notified by HUP: read the level of the log again. It ends nothing.
    pub reload: Arc<Notify>,
}

impl Default for Shutdown {
    fn default() -> Self {
        let [root, quiet, now] = std::array::from_fn(|_| CancellationToken::new());
        Self { quiet, stop: Stop::with(&root), now, show: Arc::default(), reload: Arc::default() }
    }
}

impl Shutdown {
    /// The first call stops by the deadline, the second at once. The cause of the first one counts.
    pub fn stop(&self, cause: Cause) {
        if self.stop.token().is_cancelled() {
            self.now.cancel();
        }
        self.quiet.cancel();
        self.stop.because(cause);
    }
}

/// Runs until `shutdown` ends it, and returns when every task has ended.
pub async fn run(settings: Settings, shutdown: Shutdown) -> Result<(), WorkerError> {
    let identity = Arc::new(Identity::new(environment::hostname()));
    tracing::info!(event = "worker_starting", version = env!("CARGO_PKG_VERSION"), %identity, "worker starting");
    check_sandbox(&settings.sandbox)?;
    network::check(&settings)?;
    let state = Arc::new(StateDirectory::open(&settings.state.directory, &identity.to_string())?);
    let health = Health::bind(settings.health.listen).await?;
    let redis = Redis::new(&settings.redis)?;
    let server_version = check_server(&redis).await?;
    let (handle, running, ended) = (Handle::default(), RunningJobs::default(), CancellationToken::new());
    // Unknown before the first look.
    let (room, has_room) = watch::channel(false);
    let custody = custody(&settings, &identity, &handle, &running, &shutdown, &has_room)?;
    let processor = Arc::new(Processor {
        jobs: settings.jobs.clone(),
        tenants: settings.tenants.clone(),
        resolver: Resolver::new(settings.ca_file())?,
        integrations: Integrations::new(&settings, LastBuilds::new(&settings, keys::last_builds)?, Arc::clone(&state))?,
        redis: Redis::new(&settings.redis)?,
        identity: Arc::clone(&identity),
        log_streams: LogStreams::new(&settings, log_keys()).map_err(WorkerError::LogStreams)?,
        log_archives: LogArchives::new(&settings)?,
        metrics: Arc::default(),
        statsd: Statsd::new(settings.statsd.clone()),
        traces: Traces::new(&settings.traces, settings.ca_file(), &identity.to_string())?,
        kill: CancellationToken::new(),
    });
    let process = process_shown(&settings, &identity);
    startup::log(&settings, &state, &custody.redis, server_version.as_deref()).await;
    tracing::info!(event = "worker_started", %identity, "worker started");

    let (ttl, stop) = (settings.lease.ttl, shutdown.stop.token().clone());
    let lease = Lease::start(&settings.redis, ttl, Arc::clone(&identity), handle.clone(), stop)?;
    let (settle, settlements) = mpsc::unbounded_channel();
    let (deliver, units) = mpsc::unbounded_channel();
    let (remote, mut remote_signals) = mpsc::unbounded_channel();
    let custody = tokio::spawn(custody.run(settlements, deliver));
    let occupancy_key = keys::occupancy(&identity);
    let reported = reported(&settings, &processor, &handle, &running, &shutdown, has_room)?;
    let (socket, watchdog) = environment::notify().unzip();
    let systemd = Systemd::new(socket, watchdog.flatten());
    systemd.notify("READY=1");
    let scout = Scout { redis: &redis, identity: &identity, jobs: &settings.jobs, tenants: &settings.tenants };
    let watch = Watch {
        redis: &redis,
        identity: &identity,
        jobs: &settings.jobs,
        tenants: &settings.tenants,
        queues: settings.queues(),
        n_slots: settings.total_concurrency(),
        running: &running,
        handle: &handle,
    };
    let queued = Queued {
        redis: &redis,
        identity: &identity,
        jobs: &settings.jobs,
        tenants: &settings.tenants,
        queues: settings.queues(),
        running: &running,
        handle: &handle,
    };
    // Tasks that go on beside the last builds end with `ended`. Tasks that only bring new jobs end with `quiet`.
    let side_tasks = async {
        tokio::join!(
            heartbeat::run(&redis, &process, &running, &shutdown.quiet, &ended, &processor.metrics, &remote),
            poller::run(&redis, &settings.jobs, &identity, &shutdown.quiet),
            scout.run(handle.long_queues(), &shutdown.quiet),
            watch.run(&shutdown.quiet, &ended),
            queued.run(&shutdown.quiet),
            limits::run(&redis, &settings.tenants, handle.limits(), &ended),
            iteration::run(&redis, &identity, &running, &ended),
            recovery::run(&redis, settings.lease.ttl, &ended),
            processor.integrations.builders.occupancy.run(&redis, &occupancy_key, &ended),
            processor.log_streams.run(&ended),
            processor.statsd.run(&ended),
            health.run(reported, &ended),
            state::watch(state, &settings.state, &room, &ended),
            keep_deletion_cost(&running, &ended),
            beat(&lease, &systemd, &ended),
            show(&running, &shutdown.show, &ended),
            notify_stop(&systemd, shutdown.stop.token(), &ended),
            obey(&mut remote_signals, &shutdown, &ended),
        );
    };
    // A task of its own: joined with the others, each unit would wake all of them.
    let work =
        tokio::spawn(take_units(Arc::clone(&processor), units, settle, shutdown.clone(), settings.shutdown.timeout));
    let end = async {
        work.await.expect("taking units does not panic");
        finish_custody(custody, &handle, &running).await;
        let goodbyes = async { tokio::join!(processor.integrations.github.finish(), processor.traces.finish(GOODBYE)) };
        let _ = timeout(GOODBYE, goodbyes).await;
        ended.cancel();
    };
    let ((), (), has_lost_lease) = tokio::join!(side_tasks, end, watch_lease(&lease, &shutdown, &ended));
    if !matches!(timeout(GOODBYE, lease.give_up(&redis, &identity)).await, Ok(Ok(()))) {
        tracing::debug!("the lease was not given up; it will expire");
    }
    tracing::info!(event = "worker_ended", "worker ended");
    if has_lost_lease { Err(LeaseError::Lost.into()) } else { Ok(()) }
}

/// Waits for custody, which ends when Redis has answered the last settlement: every sender of settlements is gone.
async fn finish_custody(custody: JoinHandle<()>, handle: &Handle, running: &RunningJobs) {
    if timeout(FAREWELL, custody).await.is_ok() {
        return;
    }
    match handle.n_unsettled() + running.n_jobs() {
        0 => tracing::warn!(event = "redis_unavailable_at_stop", "Redis does not answer; all results are settled"),
        n_jobs => {
            tracing::error!(
                event = "results_not_taken",
                n_jobs,
                "Redis did not take the last results; recovery requeues these jobs"
            );
        }
    }
}

/// Stops the worker when the lease's thread ends: a worker without a lease must not look alive. Returns whether it ended.
async fn watch_lease(lease: &Lease, shutdown: &Shutdown, ended: &CancellationToken) -> bool {
    let is_lost = ended.run_until_cancelled(lease.lost()).await.is_some();
    if is_lost {
        tracing::error!(event = "lease_thread_ended", "the thread that renews the lease ended; stopping the worker");
        shutdown.stop(Cause::Shutdown);
    }
    is_lost
}

fn log_keys() -> LogKeys {
    LogKeys {
        events: keys::build_events,
        log: keys::build_log,
        archive: keys::build_archive,
        record: keys::build_record,
        builds: keys::BUILDS,
    }
}

/// Lets Kubernetes end idle workers first. Outside a pod, it does nothing.
async fn keep_deletion_cost(running: &RunningJobs, ended: &CancellationToken) {
    if let Some((name, namespace)) = environment::own_pod() {
        OwnPod { name, namespace }.run(|| running.n_jobs(), ended).await;
    }
}

/// What the listener reports.
fn reported(
    settings: &Settings,
    processor: &Processor,
    handle: &Handle,
    running: &RunningJobs,
    shutdown: &Shutdown,
    has_room: watch::Receiver<bool>,
) -> Result<health::Worker, RedisError> {
    let sharded = settings.builders.iter().filter(|(_, builder)| builder.shards.is_some());
    Ok(health::Worker {
        loads: Arc::new(loads(settings, &processor.identity, handle)?),
        handle: handle.clone(),
        running: running.clone(),
        builders: Arc::clone(&processor.integrations.builders),
        state: Arc::clone(&processor.integrations.state),
        capsules: settings.capsules().into_iter().map(|(name, its)| (name.to_owned(), its.concurrency)).collect(),
        shard_builds: sharded.map(|(name, builder)| (name.clone(), builder.shard_builds.into())).collect(),
        quiet: shutdown.quiet.clone(),
        has_room,
    })
}

/// What reads the load of the queues.
fn loads(settings: &Settings, identity: &Arc<Identity>, handle: &Handle) -> Result<Loads, RedisError> {
    let sharded = settings.builders.iter().filter(|(_, builder)| builder.shards.is_some());
    Ok(Loads {
        redis: Redis::new(&settings.redis)?,
        identity: Arc::clone(identity),
        jobs: settings.jobs.clone(),
        tenants: settings.tenants.clone(),
        limits: handle.limits().subscribe(),
        queues: settings.queues(),
        sharded: sharded.map(|(name, _)| name.clone()).collect(),
    })
}

/// What the Web UI shows of this process.
fn process_shown(settings: &Settings, identity: &Arc<Identity>) -> Process {
    Process {
        identity: Arc::clone(identity),
        started_at: Epoch::now(),
        tag: settings.tag.clone(),
        labels: settings.labels.clone(),
        capsules: settings.capsules().into_iter().map(|(name, capsule)| (name.to_owned(), capsule)).collect(),
    }
}

/// Logs the problems of the server, and returns its version. `None` when it does not answer or still loads its data: the worker
/// waits for it later.
async fn check_server(redis: &Redis) -> Result<Option<String>, WorkerError> {
    let info = match redis.server_info().await {
        Ok(info) => info,
        // An ACL may forbid the question.
        Err(error) if is_forbidden(&error) => return Ok(Some("unknown".into())),
        Err(_) => return Ok(None),
    };
    for trouble in &info.troubles {
        let Trouble { about, message, .. } = trouble;
        tracing::warn!(event = "redis_problem", version = info.version, about, "{message}");
    }
    info.refusal().map_or(Ok(Some(info.version.clone())), |refusal| Err(WorkerError::Cluster(refusal.to_owned())))
}

fn check_sandbox(settings: &settings::Sandbox) -> Result<(), WorkerError> {
    if settings.mode == SandboxMode::Off {
        return Ok(());
    }
    for wall in sandbox::missing_walls() {
        if wall.is_required(settings) {
            return Err(WorkerError::Sandbox(wall));
        }
        tracing::warn!(event = "sandbox_incomplete", wall = wall.name(), "{}", wall.lack());
    }
    Ok(())
}

fn custody(
    settings: &Settings,
    identity: &Arc<Identity>,
    handle: &Handle,
    running: &RunningJobs,
    shutdown: &Shutdown,
    has_room: &watch::Receiver<bool>,
) -> Result<Custody, RedisError> {
    let capsules: Vec<_> = settings.capsules().into_iter().map(|(_, capsule)| capsule).collect();
    let queues = capsules.iter().flat_map(|capsule| &capsule.queues).map(|queue| keys::queue(&queue.name));
    let keys = queues.chain([keys::PAUSED.to_owned()]).collect();
    Ok(Custody {
        redis: Redis::waking(&settings.redis, keys, Arc::clone(&handle.work))?,
        identity: Arc::clone(identity),
        capsules,
        jobs: settings.jobs.clone(),
        tenants: settings.tenants.clone(),
        reconcile_every: settings.lease.ttl / 6,
        handle: handle.clone(),
        running: running.clone(),
        quiet: shutdown.quiet.clone(),
        has_room: has_room.clone(),
    })
}

/// Processes fetched units until the worker stops. Then waits for running builds until the deadline, kills the rest, and
/// requeues their jobs.
///
/// Returning drops the slots, and with them the last senders of settlements. So custody ends even when a slot hangs.
async fn take_units(
    processor: Arc<Processor>,
    mut units: mpsc::UnboundedReceiver<Running>,
    settle: mpsc::UnboundedSender<Settlement>,
    shutdown: Shutdown,
    patience: Duration,
) {
    let mut slots = JoinSet::new();
    let mut deadline = None;
    while deadline.is_none() || !slots.is_empty() {
        // Dropping a branch loses nothing: the unit stays in the channel, the slot in its set.
        tokio::select! {
            unit = units.recv() => match unit {
                Some(unit) if shutdown.quiet.is_cancelled() => drop(settle.send(Settlement::requeue(&unit.unit))),
                Some(unit) => drop(slots.spawn(process(Arc::clone(&processor), unit, settle.clone()))),
                None => break,
            },
            Some(_) = slots.join_next() => {}
            () = shutdown.stop.token().cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + patience.min(MAX_PATIENCE));
                let (n_running, timeout_s) = (slots.len(), patience.as_secs());
                tracing::info!(event = "worker_stopping", n_running, timeout_s, "stopping; waiting for running builds");
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
            () = shutdown.now.cancelled() => break,
        }
    }
    if !slots.is_empty() {
        tracing::warn!(
            event = "builds_killed",
            n_running = slots.len(),
            "killing running builds and requeueing their jobs"
        );
        processor.kill.cancel();
        let _ = timeout(KILLED, drain(&mut slots)).await;
    }
    // From here on, custody itself requeues what it fetches.
    units.close();
    while let Some(unit) = units.recv().await {
        let _ = settle.send(Settlement::requeue(&unit.unit));
    }
}

async fn drain(slots: &mut JoinSet<()>) {
    while slots.join_next().await.is_some() {}
}

/// Shows the lease's thread and systemd's watchdog that the runtime moves.
async fn beat(lease: &Lease, systemd: &Systemd, ended: &CancellationToken) {
    let (pulse, second) = (lease.pulse(), Duration::from_secs(1));
    let period = systemd.period().map_or(second, |period| period.min(second));
    while ended.run_until_cancelled(sleep(period)).await.is_some() {
        pulse.beat();
        if systemd.period().is_some() {
            systemd.notify("WATCHDOG=1");
        }
    }
}

/// Notifies systemd when the worker begins to stop.
async fn notify_stop(systemd: &Systemd, stop: &CancellationToken, ended: &CancellationToken) {
    if ended.run_until_cancelled(stop.cancelled()).await.is_some() {
        systemd.notify("STOPPING=1");
    }
}

/// Logs running jobs, where Ruby's Sidekiq logs the stack of each thread.
async fn show(running: &RunningJobs, asked: &Notify, ended: &CancellationToken) {
    while ended.run_until_cancelled(asked.notified()).await.is_some() {
        let (jobs, now) = (running.snapshot(), Epoch::now());
        tracing::info!(event = "running_jobs", n_running = jobs.len(), "TTIN: running jobs");
        for job in jobs {
            let running_s = now.since(job.since).as_secs();
            let (jid, progress) = (job.iteration.jid(), job.iteration.text());
            tracing::info!(event = "job_running", jid, token = %job.unit.token, queue = job.unit.queue, progress, running_s, "job is running");
        }
    }
}

/// Obeys the signals of Sidekiq's Web UI.
async fn obey(signals: &mut mpsc::UnboundedReceiver<RemoteSignal>, shutdown: &Shutdown, ended: &CancellationToken) {
    while let Some(Some(signal)) = ended.run_until_cancelled(signals.recv()).await {
        tracing::info!(event = "signal_received", ?signal, "signal received through Redis");
        match signal {
            RemoteSignal::Quiet => shutdown.quiet.cancel(),
            RemoteSignal::Stop => shutdown.stop(Cause::Shutdown),
            RemoteSignal::Show => shutdown.show.notify_one(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_signal_means_now_and_leaves_the_first_cause() {
        let shutdown = Shutdown::default();
        shutdown.stop(Cause::Cancelled);
        assert!(shutdown.quiet.is_cancelled() && shutdown.stop.token().is_cancelled() && !shutdown.now.is_cancelled());
        shutdown.stop(Cause::Shutdown);
        assert!(shutdown.now.is_cancelled());
        assert_eq!(shutdown.stop.cause(), Some(Cause::Cancelled));
    }
}
