//! The metrics of a worker: the name, the labels and the meaning of each.
//!
//! A metric is recorded where its fact is known, as a log message is. Nothing is recorded before [`begin`], which the worker calls first
//! and only when it serves `/metrics`. Names and units follow Prometheus' conventions. Every label has few values: no account, repository or jid,
//! but for the accounts with the most jobs ([`top`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, SharedString, with_recorder};

/// Accounts that have series of their own. All others are counted together.
pub const TOP: usize = 10;

/// Series of a metric that are found quickly. The others are found by the exporter.
const MOST_HANDLES: usize = 100;

/// The label of all other accounts.
pub const OTHER: &str = "other";

/// Seconds: from a step of the worker's own work to the longest build.
const DURATIONS_S: &[f64] =
    &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// Seconds of a round trip.
const ROUND_TRIPS_S: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Where a metric is recorded; part of the `metrics` crate's interface.
const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// Whether anything is recorded: without it, a label is not even copied.
static IS_RECORDING: AtomicBool = AtomicBool::new(false);

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only increases.
    Counter,
    /// Has a value at the time of the scrape.
    Gauge,
    /// Counts values by these upper bounds.
    Histogram(&'static [f64]),
}

/// One row of `docs/metrics.md`.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Its name in Prometheus.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it measures.
    pub help: &'static str,
}

/// A counter with `N` labels.
#[derive(Debug)]
pub struct Counter<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
    handles: Handles<N, metrics::Counter>,
}

/// A gauge with `N` labels.
#[derive(Debug)]
pub struct Gauge<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
}

/// A histogram with `N` labels.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
    handles: Handles<N, metrics::Histogram>,
}

/// The series of a metric that were recorded before. The exporter takes longer to find one than a short job takes for everything else.
#[derive(Debug)]
struct Handles<const N: usize, T>(RwLock<Vec<([String; N], T)>>);

impl<const N: usize, T: Clone> Handles<N, T> {
    const fn new() -> Self {
        Self(RwLock::new(Vec::new()))
    }

    /// The series with these values of the labels, made by `register` when it is new.
    fn get(&self, values: [&str; N], register: impl FnOnce() -> T) -> T {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, handle)) = known.iter().find(|(of, _)| of.iter().zip(values).all(|(of, value)| of == value)) {
            return handle.clone();
        }
        drop(known);
        let handle = register();
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MOST_HANDLES {
            known.push((values.map(str::to_owned), handle.clone()));
        }
        handle
    }
}

impl<const N: usize> Counter<N> {
    /// Adds `n`, with the values of the labels in their order.
    pub fn add(&self, values: [&str; N], n: u64) {
        if IS_RECORDING.load(Ordering::Relaxed) {
            let key = || key(self.name, self.labels, values);
            self.handles
                .get(values, || with_recorder(|recorder| recorder.register_counter(&key(), &METADATA)))
                .increment(n);
        }
    }
}

impl<const N: usize> Gauge<N> {
    /// Sets the value, with the values of the labels in their order.
    pub fn set(&self, values: [&str; N], value: f64) {
        with_recorder(|recorder| recorder.register_gauge(&key(self.name, self.labels, values), &METADATA)).set(value);
    }
}

impl<const N: usize> Histogram<N> {
    /// Records a duration in seconds, with the values of the labels in their order.
    pub fn record(&self, values: [&str; N], took: Duration) {
        if IS_RECORDING.load(Ordering::Relaxed) {
            let key = || key(self.name, self.labels, values);
            let register = || with_recorder(|recorder| recorder.register_histogram(&key(), &METADATA));
            self.handles.get(values, register).record(took.as_secs_f64());
        }
    }
}

fn key<const N: usize>(name: &'static str, labels: [&'static str; N], values: [&str; N]) -> Key {
    let labels = labels.into_iter().zip(values);
    // Prometheus treats an empty label as absent.
    let labels = labels.filter(|(_, value)| !value.is_empty()).map(|(name, value)| Label::new(name, plain(value)));
    Key::from_parts(name, labels.collect::<Vec<_>>())
}

/// A value without the characters that the text format escapes: the exporter does not escape each of them in a form of its own.
fn plain(value: &str) -> String {
    value.replace(['\\', '"', '\n'], "_")
}

/// Declares the closed list once: the static, its kind, its name, its labels and its meaning.
macro_rules! metrics {
    (@kind Counter) => { Kind::Counter };
    (@kind Gauge) => { Kind::Gauge };
    (@kind Histogram $bounds:ident) => { Kind::Histogram($bounds) };
    (@static Counter, $name:literal, $labels:expr) => { Counter { name: $name, labels: $labels, handles: Handles::new() } };
    (@static Gauge, $name:literal, $labels:expr) => { Gauge { name: $name, labels: $labels } };
    (@static Histogram, $name:literal, $labels:expr) => {
        Histogram { name: $name, labels: $labels, handles: Handles::new() }
    };
    ($($kind:ident $(($bounds:ident))? $metric:ident: $n:literal = $name:literal, $labels:expr, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $metric: $kind<$n> = metrics!(@static $kind, $name, $labels);
        )+

        /// All metrics, in the order of the page about them.
        pub const ALL: &[Definition] = &[
            $(Definition { name: $name, kind: metrics!(@kind $kind $($bounds)?), labels: &$labels, help: $help },)+
        ];
    };
}

metrics! {
    Gauge BUILD_INFO: 1 = "sidebake_build_info", ["version"], "Always 1. The version of the worker.";
    Gauge ACCEPTING_JOBS: 0 = "sidebake_accepting_jobs", [],
        "1 while the worker fetches jobs. 0 while it is quiet, its disk is low, or Redis does not take its turns.";
    Gauge SLOTS: 1 = "sidebake_slots", ["capsule"], "Jobs that the worker can run at once.";
    Gauge RUNNING_JOBS: 1 = "sidebake_running_jobs", ["account"],
        "Jobs that the worker runs. The accounts with the most jobs have a series each, all others have one together, `other`.";

    Gauge REDIS_UP: 0 = "sidebake_redis_up", [], "1 when Redis answered this scrape.";
    Gauge QUEUE_JOBS: 1 = "sidebake_queue_jobs", ["queue"],
        "Jobs in a queue, also those that no worker may run now. All workers report the same number: use `max`, not `sum`.";
    Gauge QUEUE_OLDEST: 1 = "sidebake_queue_oldest_seconds", ["queue"],
        "How long the next job of a queue has waited; 0 when none waits. The same from all workers.";
    Gauge QUEUE_PAUSED: 1 = "sidebake_queue_paused", ["queue"], "1 while a queue is paused. The same from all workers.";
    Gauge WAITING_JOBS: 2 = "sidebake_waiting_jobs", ["queue", "account"],
        "Jobs among the first ones of a queue (at most 1,000, and 512 KiB), by account. The accounts with the most jobs have a series each, all others have one together, `other`. The same from all workers.";
    Gauge BLOCKED_JOBS: 1 = "sidebake_blocked_jobs", ["queue"],
        "Jobs among the first ones of a queue (at most 1,000, and 512 KiB) that no worker may run now: a limit of their account is used up, or another build of their branch comes first. The same from all workers.";
    Gauge SET_JOBS: 1 = "sidebake_set_jobs", ["set"],
        "Jobs in Sidekiq's sorted sets `retry`, `schedule` and `dead`. The same from all workers.";
    Gauge WANTED_WORKERS: 0 = "sidebake_wanted_workers", [],
        "Workers that the waiting and the running jobs need, as in `/scale`. The same from all workers.";
    Gauge WANTED_SHARDS: 1 = "sidebake_wanted_shards", ["builder"],
        "Shards that the waiting and the running builds of a builder need, as in `/scale`. The same from all workers.";

    Counter JOBS: 5 = "sidebake_jobs_total", ["queue", "class", "outcome", "reason", "reason_class"],
        "Attempts that ended. `outcome`: `succeeded`, `failed`, `cancelled`, `superseded`, `retrying`, `requeued`, or `reclaimed` when another worker has the job. `reason` and `reason_class` as in the callback; both are missing after a success.";
    Histogram(DURATIONS_S) JOB_DURATION: 2 = "sidebake_job_duration_seconds", ["queue", "class"],
        "How long attempts took, without their time in the queue.";
    Histogram(DURATIONS_S) PHASE_DURATION: 1 = "sidebake_phase_duration_seconds", ["phase"],
        "How long the phases of attempts took. `queued` is the time in the queue, `settle` the end of an attempt: archiving its log and making its callback.";
    Counter STEPS: 1 = "sidebake_steps_total", ["cached"], "Steps of builds that ended, by whether BuildKit had them in its cache: `true` or `false`.";
    Counter CONTEXT_BYTES: 0 = "sidebake_context_bytes_total", [], "Bytes of build contexts that were sent to builders.";
    Counter FETCHED_BYTES: 0 = "sidebake_fetched_bytes_total", [], "Bytes that were fetched from git hosts.";
    Counter POD_RETRIES: 1 = "sidebake_pod_retries_total", ["builder"],
        "Builds that went on on another pod, because theirs was lost or absent.";
    Counter RECOVERED_JOBS: 0 = "sidebake_recovered_jobs_total", [], "Jobs of dead workers that this worker requeued.";
    Counter POISON_JOBS: 0 = "sidebake_poison_jobs_total", [], "Jobs that ended because they had crashed their workers repeatedly.";

    Gauge BUILDS: 2 = "sidebake_pod_builds", ["builder", "pod"],
        "Builds of this worker on each pod. The sum over all workers is the load of the pod.";
    Gauge POD_READY: 3 = "sidebake_pod_ready", ["builder", "shard", "pod"],
        "1 when a pod of a builder takes builds, 0 when it does not. Read from Kubernetes at most every 30 seconds, and missing when it does not answer. The same from all workers.";
    Gauge WANTED_PODS: 2 = "sidebake_builder_wanted_pods", ["builder", "shard"],
        "Pods that a builder should have, by its Deployment. The same from all workers.";

    Counter GITHUB_REQUESTS: 1 = "sidebake_github_requests_total", ["status"],
        "Requests to GitHub's API, by the status of the answer; `none` when there was none.";
    Gauge GITHUB_REMAINING: 1 = "sidebake_github_rate_limit_remaining", ["bearer"],
        "Requests that GitHub still allows in this hour, by its last answer to this worker: for the App itself (`app`), and for the installation that was asked last (`installation`).";
    Counter TOKENS: 0 = "sidebake_installation_tokens_total", [], "Installation tokens that were minted.";

    Gauge STATE_FREE: 0 = "sidebake_state_free_bytes", [], "Bytes that are free on the disk of the state directory.";
    Gauge MIRRORS: 0 = "sidebake_mirrors_bytes", [], "Bytes of all mirrors on this machine, at the last survey.";
    Counter MIRRORS_REMOVED: 0 = "sidebake_mirrors_removed_total", [], "Mirrors that were removed to make room.";
    Gauge CHILD_PEAK: 0 = "sidebake_child_memory_peak_bytes", [],
        "The largest resident memory of any child process that has ended since the worker started.";
    Counter LOG_STREAMS_LOST: 0 = "sidebake_log_streams_lost_total", [],
        "Live logs whose end was not written, because Redis did not take it.";

    Counter REDIS_ROUND_TRIPS: 0 = "sidebake_redis_round_trips_total", [], "Requests to Redis that were answered.";
    Counter REDIS_ERRORS: 1 = "sidebake_redis_errors_total", ["kind"],
        "Requests to Redis that failed. `kind`: `refused` when Redis answered with an error, `connection` when it did not answer.";
    Histogram(ROUND_TRIPS_S) TURN_DURATION: 0 = "sidebake_turn_duration_seconds", [],
        "How long Redis took for a turn that it answered, which settles finished jobs and fetches new ones.";
}

/// Describes all metrics to a recorder.
pub fn describe(recorder: &dyn Recorder) {
    for Definition { name, kind, help, .. } in ALL {
        let (name, help) = (KeyName::from_const_str(name), SharedString::const_str(help));
        match kind {
            Kind::Counter => recorder.describe_counter(name, None, help),
            Kind::Gauge => recorder.describe_gauge(name, None, help),
            Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
        }
    }
}

/// Registers these counters at zero, so that a rate sees the first increase.
pub fn begin(recorder: &dyn Recorder) {
    IS_RECORDING.store(true, Ordering::Relaxed);
    metrics::with_local_recorder(recorder, || {
        ["refused", "connection"].iter().for_each(|kind| REDIS_ERRORS.add([kind], 0));
    });
    let is_plain = |metric: &&Definition| metric.kind == Kind::Counter && metric.labels.is_empty();
    for metric in ALL.iter().filter(is_plain) {
        recorder.register_counter(&Key::from_static_name(metric.name), &METADATA).increment(0);
    }
}

/// The [`TOP`] accounts with the most jobs, and the sum of all others as [`OTHER`]. Among equals, the first by name.
pub fn top(accounts: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut sorted: Vec<(String, u64)> = accounts.into_iter().collect();
    sorted.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let rest: u64 = sorted.iter().skip(TOP).map(|(_, n)| n).sum();
    sorted.truncate(TOP);
    let mut top: BTreeMap<String, u64> = sorted.into_iter().collect();
    if rest > 0 {
        *top.entry(OTHER.to_owned()).or_default() += rest;
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounts_with_the_most_jobs_have_a_number_each_and_the_others_one() {
        let accounts = |n: u64| (1..=n).map(|n| (format!("account-{n:02}"), n)).collect::<BTreeMap<_, _>>();
        assert_eq!(top(accounts(10)).len(), 10);
        let top = top(accounts(13));
        assert_eq!((top.len(), top["account-13"], top[OTHER]), (11, 13, 1 + 2 + 3));
    }

    #[test]
    fn names_follow_the_conventions_and_are_used_once() {
        let mut names = std::collections::BTreeSet::new();
        for Definition { name, kind, help, .. } in ALL {
            assert!(names.insert(*name), "{name} is used twice");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(!matches!(kind, Kind::Histogram(_)) || name.ends_with("_seconds"), "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
        }
    }
}
