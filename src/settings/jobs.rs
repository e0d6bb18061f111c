//! `[jobs]`: which jobs the worker runs, and how it retries them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::{JobClass, SHORTEST};
use crate::field_error::{FieldError, refuse};

/// The job class that tests the runtime without a build. The worker runs it when `jobs.probe` is on.
pub const PROBE: &str = "Sidebake::Probe";

/// Which jobs the worker runs, and how it retries them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jobs {
    /// The job classes that are builds, by their Ruby names. Default: `BuildJob` with native arguments. A configuration that names
    /// classes replaces the default.
    pub classes: BTreeMap<String, JobClass>,
    /// Whether the worker runs `Sidebake::Probe` jobs, for benchmarks and monitoring.
    pub probe: bool,
    /// How long after its first failure a job may be retried.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Number of retries of a job that says `retry: true`.
    pub max_retries: u32,
    /// Whether a customer's failure also goes to Sidekiq's retry set and dead set. Without it, such a job ends and its callback
    /// reports the failure.
    pub raise_user_failures: bool,
    /// Number of jobs that the dead set keeps.
    pub dead_max_jobs: u32,
    /// How long the dead set keeps a job.
    #[serde(with = "humantime_serde")]
    pub dead_timeout: Duration,
    /// Average time between two looks for due retries, over all workers together.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Average time between two looks for due retries by each process. Without it, `poll_interval` counts.
    #[serde(with = "humantime_serde")]
    pub poll_interval_average: Option<Duration>,
    /// Which due jobs of other classes the workers move to their queues. Ruby's processes look for due jobs less often the more
    /// processes Sidekiq lists, and workers are among them. Ruby's client middleware does not run for a moved job.
    pub poll_others: PollOthers,
    /// Unit of the times in a job that carries no time the worker could follow.
    pub timestamps: Timestamps,
}

/// Which due jobs of other classes a worker moves to their queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PollOthers {
    /// None: only Ruby moves them.
    None,
    /// Those with only Sidekiq's own fields: no client middleware has left anything in them.
    Plain,
    /// All that Ruby's client made.
    All,
}

/// The unit in which a generation of Sidekiq writes times into jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timestamps {
    /// Integers, as Sidekiq 8 writes them.
    Milliseconds,
    /// Floats, as earlier versions write them.
    Seconds,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            classes: BTreeMap::from([("BuildJob".into(), JobClass::default())]),
            probe: false,
            max_age: Duration::from_secs(2 * 60 * 60),
            max_retries: 25,
            raise_user_failures: false,
            dead_max_jobs: 10_000,
            dead_timeout: Duration::from_secs(180 * 24 * 60 * 60),
            poll_interval: Duration::from_secs(5),
            poll_interval_average: None,
            poll_others: PollOthers::Plain,
            timestamps: Timestamps::Milliseconds,
        }
    }
}

impl Jobs {
    /// Whether this worker runs jobs of this class.
    pub fn runs(&self, class: &str) -> bool {
        self.classes.contains_key(class) || (self.probe && class == PROBE)
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.dead_max_jobs < 2 {
            return refuse("jobs.dead_max_jobs", "must be at least 2");
        }
        if self.poll_interval < SHORTEST {
            return refuse("jobs.poll_interval", "must be at least 50ms");
        }
        if self.poll_interval_average.is_some_and(|average| average < SHORTEST) {
            return refuse("jobs.poll_interval_average", "must be at least 50ms");
        }
        self.classes.iter().try_for_each(|(name, class)| class.check(&format!("jobs.classes.{name}")))
    }
}
