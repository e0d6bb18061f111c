//! The worker: starts everything, goes quiet, stops by a deadline.
//!
//! Read [`run`] from top to bottom and you know the process. Every task is owned and awaited here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Epoch;
use crate::environment;
use crate::health::{Health, HealthError};
use crate::perform::Integrations;
use crate::processor::{Processor, process};
use crate::redis::{Redis, RedisError};
use crate::sandbox;
use crate::settings::{SandboxMode, Settings};
use crate::sidekiq::custody::{Custody, Running, RunningJobs, Signals};
use crate::sidekiq::heartbeat::{self, Process, Remote};
use crate::sidekiq::lease::{Lease, LeaseError};
use crate::sidekiq::turn::Settlement;
use crate::sidekiq::{Identity, iteration, poller, recovery};
use crate::state::{self, StateDirectory, StateError};
use crate::systemd::Systemd;

/// Nothing waits for longer, whatever the settings say.
const MAX_PATIENCE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// After KILL, how long killed builds may take to be requeued.
const KILLED: Duration = Duration::from_secs(3);

/// At the very end, how long Redis may take to learn the last results. What it does not learn, recovery brings back.
const FAREWELL: Duration = Duration::from_secs(5);

/// And how long others may take to learn that we have gone, or need a token no more.
const GOODBYE: Duration = Duration::from_secs(1);

/// The worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The kernel cannot enforce the sandbox, and it is required.
    #[error(
        "the sandbox is required, and this kernel cannot enforce it: {0}; sandbox.mode = \"best effort\" starts all the same"
    )]
    Sandbox(String),
    /// The state directory cannot be used.
    #[error("the state directory cannot be used: {0}")]
    State(#[from] StateError),
    /// The URL of Redis is wrong.
    #[error("redis.url: {0}")]
    Redis(#[from] RedisError),
    /// The server is of a kind that Sidekiq does not work on.
    #[error("{0}")]
    Cluster(String),
    /// The health listener has no port.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// Nothing would show that the worker is alive.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The HTTP client cannot be made.
    #[error("HTTP cannot be used: {0}")]
    Http(#[from] reqwest::Error),
}

/// How a worker is told to end.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Fetch nothing more (TSTP).
    pub quiet: CancellationToken,
    /// Finish by the deadline (TERM).
    pub stop: CancellationToken,
    /// Do not wait any longer (a second TERM).
    pub now: CancellationToken,
    /// Notified when somebody wants to know what runs (TTIN); it ends nothing.
    pub show: Arc<Notify>,
}

impl Shutdown {
    /// The first call stops by the deadline, the second at once.
    pub fn stop(&self) {
        if self.stop.is_cancelled() {
            self.now.cancel();
        }
        self.quiet.cancel();
        self.stop.cancel();
    }
}

/// Runs until `shutdown` says otherwise, and returns when every task has ended.
pub async fn run(settings: Settings, shutdown: Shutdown) -> Result<(), WorkerError> {
    check_sandbox(settings.sandbox.mode)?;
    let identity = Arc::new(Identity::new(environment::hostname()));
    let state = Arc::new(StateDirectory::open(&settings.state.directory, &identity.to_string())?);
    let health = Health::bind(settings.health.listen).await?;
    let signals = Signals::default();
    let redis = Redis::new(&settings.redis)?;
    check_server(&redis).await?;
    let (ended, running) = (CancellationToken::new(), RunningJobs::default());
    // Not known before the first look.
    let (room, has_room) = watch::channel(false);

    let custody = custody(&settings, &identity, &signals, &running, &shutdown, &has_room)?;
    let processor = Arc::new(Processor {
        jobs: settings.jobs.clone(),
        integrations: Integrations::new(&settings, Arc::clone(&state))?,
        redis: Redis::new(&settings.redis)?,
        identity: Arc::clone(&identity),
        metrics: Arc::default(),
        kill: CancellationToken::new(),
    });
    let metrics = Arc::clone(&processor.metrics);
    let process_info = Process {
        identity: Arc::clone(&identity),
        started_at: Epoch::now(),
        tag: settings.tag.clone(),
        labels: settings.labels.clone(),
        capsules: settings.capsules().into_iter().map(|(name, capsule)| (name.to_owned(), capsule)).collect(),
    };
    tracing::info!(%identity, capsules = ?process_info.capsules, "worker starts");

    let (ttl, stop) = (settings.lease.ttl, shutdown.stop.clone());
    let lease = Lease::start(&settings.redis, ttl, Arc::clone(&identity), signals.clone(), stop)?;
    let (settle, settlements) = mpsc::unbounded_channel();
    let (deliver, units) = mpsc::unbounded_channel();
    let (remote, mut remote_signals) = mpsc::unbounded_channel();
    let custody = tokio::spawn(custody.run(settlements, deliver));
    let (probed, identity_text) = (Redis::new(&settings.redis)?, identity.to_string());
    let (socket, watchdog) = environment::notify().unzip();
    let systemd = Systemd::new(socket, watchdog.flatten());
    systemd.tell("READY=1");
    // They go on beside the last builds, and end with `ended`; what only brings new ones ends with `quiet`.
    let side_tasks = async {
        tokio::join!(
            heartbeat::run(&redis, &process_info, &running, &shutdown.quiet, &ended, &metrics, &remote),
            poller::run(&redis, &settings.jobs, &shutdown.quiet),
            iteration::run(&redis, &identity, &running, &ended),
            recovery::run(&redis, settings.lease.ttl, &ended),
            processor.integrations.builders.occupancy.run(&redis, &identity_text, &ended),
            health.run(probed, &shutdown.quiet, has_room, &ended),
            state::watch(state, &settings.state, &room, &ended),
            beat(&lease, &systemd, &ended),
            show(&running, &shutdown.show, &ended),
            say_goodbye(&systemd, &shutdown.stop, &ended),
            obey(&mut remote_signals, &shutdown, &ended),
        );
    };
    // A worker that takes nothing must not look alive.
    let watch = async {
        let is_lost = ended.run_until_cancelled(lease.lost()).await.is_some();
        if is_lost {
            tracing::error!("the thread that renews the lease has ended: stopping");
            shutdown.stop();
        }
        is_lost
    };
    // A task of its own: each unit would wake all that is joined with it.
    let work =
        tokio::spawn(take_units(Arc::clone(&processor), units, settle, shutdown.clone(), settings.shutdown.timeout));
    let end = async {
        work.await.expect("taking units does not panic");
        // Custody ends when the last settlement is answered: every sender is gone by now.
        if timeout(FAREWELL, custody).await.is_err() {
            match signals.n_unsettled() + running.snapshot().len() {
                0 => tracing::warn!("Redis does not answer; no result was waiting for it"),
                n_jobs => tracing::error!(n_jobs, "Redis did not take the last results; recovery requeues these jobs"),
            }
        }
        let _ = timeout(GOODBYE, processor.integrations.github.finish()).await;
        ended.cancel();
    };
    let ((), (), has_lost_lease) = tokio::join!(side_tasks, end, watch);
    if !matches!(timeout(GOODBYE, lease.give_up(&redis, &identity)).await, Ok(Ok(()))) {
        tracing::debug!("the lease runs out by itself");
    }
    tracing::info!("worker has ended");
    if has_lost_lease { Err(LeaseError::Lost.into()) } else { Ok(()) }
}

/// Says what is wrong with the server. One that is away or still loading is waited for later, like any outage.
async fn check_server(redis: &Redis) -> Result<(), WorkerError> {
    let Ok(info) = redis.server_info().await else { return Ok(()) };
    for trouble in &info.troubles {
        tracing::warn!(version = info.version, trouble.message, "Redis");
    }
    info.refusal().map_or(Ok(()), |refusal| Err(WorkerError::Cluster(refusal.to_owned())))
}

fn check_sandbox(mode: SandboxMode) -> Result<(), WorkerError> {
    match (mode, sandbox::lacking()) {
        (_, None) | (SandboxMode::Off, _) => Ok(()),
        (SandboxMode::Required, Some(lack)) => Err(WorkerError::Sandbox(lack)),
        (SandboxMode::BestEffort, Some(lack)) => {
            tracing::warn!(lack, "this kernel cannot enforce the whole sandbox");
            Ok(())
        }
    }
}

fn custody(
    settings: &Settings,
    identity: &Arc<Identity>,
    signals: &Signals,
    running: &RunningJobs,
    shutdown: &Shutdown,
    has_room: &watch::Receiver<bool>,
) -> Result<Custody, RedisError> {
    let capsules: Vec<_> = settings.capsules().into_iter().map(|(_, capsule)| capsule).collect();
    let queues = capsules.iter().flat_map(|capsule| &capsule.queues).map(|queue| format!("queue:{}", queue.name));
    let keys = queues.chain(["paused".to_owned()]).collect();
    Ok(Custody {
        redis: Redis::waking(&settings.redis, keys, Arc::clone(&signals.work))?,
        identity: Arc::clone(identity),
        capsules,
        jobs: settings.jobs.clone(),
        reconcile_every: settings.lease.ttl / 6,
        signals: signals.clone(),
        running: running.clone(),
        quiet: shutdown.quiet.clone(),
        has_room: has_room.clone(),
    })
}

/// Processes what is fetched until the worker is told to stop; then waits for it, kills what is left, and sees it requeued.
///
/// Returning drops the slots, and with them the last senders of settlements: that is how custody knows that nothing more comes,
/// not even from a slot that hangs.
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
            () = shutdown.stop.cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + patience.min(MAX_PATIENCE));
                tracing::info!(n_running = slots.len(), patience_s = patience.as_secs(), "stopping: running builds may finish");
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
            () = shutdown.now.cancelled() => break,
        }
    }
    if !slots.is_empty() {
        tracing::warn!(n_running = slots.len(), "stopping: the rest is killed and put back");
        processor.kill.cancel();
        let _ = timeout(KILLED, drain(&mut slots)).await;
    }
    // A unit that custody fetches from here on goes back on its queue by custody's own hand.
    units.close();
    while let Some(unit) = units.recv().await {
        let _ = settle.send(Settlement::requeue(&unit.unit));
    }
}

async fn drain(slots: &mut JoinSet<()>) {
    while slots.join_next().await.is_some() {}
}

/// Shows the lease's thread, and systemd's watchdog, that the runtime moves.
async fn beat(lease: &Lease, systemd: &Systemd, ended: &CancellationToken) {
    let (pulse, second) = (lease.pulse(), Duration::from_secs(1));
    let period = systemd.period().map_or(second, |period| period.min(second));
    while ended.run_until_cancelled(sleep(period)).await.is_some() {
        pulse.beat();
        if systemd.period().is_some() {
            systemd.tell("WATCHDOG=1");
        }
    }
}

/// Tells systemd of the stop when it begins.
async fn say_goodbye(systemd: &Systemd, stop: &CancellationToken, ended: &CancellationToken) {
    if ended.run_until_cancelled(stop.cancelled()).await.is_some() {
        systemd.tell("STOPPING=1");
    }
}

/// Logs what runs, where Ruby's Sidekiq logs the stack of each thread.
async fn show(running: &RunningJobs, asked: &Notify, ended: &CancellationToken) {
    while ended.run_until_cancelled(asked.notified()).await.is_some() {
        let (jobs, now) = (running.snapshot(), Epoch::now());
        tracing::info!(n_running = jobs.len(), "TTIN: what runs");
        for job in jobs {
            let running_s = now.since(job.since).as_secs();
            let (jid, progress) = (job.iteration.jid(), job.iteration.text());
            tracing::info!(jid, token = %job.unit.token, queue = job.unit.queue, progress, running_s, "runs");
        }
    }
}

/// Does what Sidekiq's Web UI asks for.
async fn obey(signals: &mut mpsc::UnboundedReceiver<Remote>, shutdown: &Shutdown, ended: &CancellationToken) {
    while let Some(Some(signal)) = ended.run_until_cancelled(signals.recv()).await {
        tracing::info!(?signal, "asked through Redis");
        match signal {
            Remote::Quiet => shutdown.quiet.cancel(),
            Remote::Stop => shutdown.stop(),
            Remote::Show => shutdown.show.notify_one(),
        }
    }
}
