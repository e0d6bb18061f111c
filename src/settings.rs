//! Every setting, its default and its check.
//!
//! One file for each section, with struct, defaults and check. Follows no specification; `configuration` reads the values,
//! `config/sidebake.toml` shows the defaults, and `docs/configuration.md` is made from the comments on the fields. Tests
//! keep the three equal.

mod accounts;
mod bake;
mod builder;
mod buildx;
mod credential;
mod driver;
mod github;
mod health;
mod job_class;
mod jobs;
mod journal;
mod last_builds;
mod lease;
mod log;
mod network;
mod pattern;
mod queue;
mod redis;
mod sandbox;
mod secret_source;
mod shutdown;
mod source;
mod state;
mod statsd;
mod tenants;
mod traces;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

pub use accounts::{Accounts, Cache, Policy};
pub use bake::Bake;
pub use builder::{Builder, GRACE_PERIOD, SHARD_OF, for_account, match_of, quantity};
pub use buildx::Buildx;
pub use credential::{VARIABLES as CREDENTIAL_VARIABLES, credential, is_secret};
pub use driver::{Balance, Driver, Toleration, TopologySpread};
pub use github::Github;
pub use health::Health;
pub use job_class::{JobClass, Resolve, Shape, Supersede};
pub use jobs::{Jobs, PROBE, PollOthers, Timestamps};
pub use journal::Journal;
pub use last_builds::LastBuilds;
pub use lease::Lease;
pub use log::{LOG_MODULES, Log, LogFormat};
pub use network::Network;
pub use pattern::{NamePattern, TextPattern};
pub use queue::{Capsule, Mode, Queue};
pub use redis::{Redis, decoded, passwords_of};
pub use sandbox::{Sandbox, SandboxMode};
pub use secret_source::SecretSource;
pub use shutdown::Shutdown;
pub use source::{GitDir, MIN_MTIMES_KEY, Mtimes, Source};
pub use state::State;
pub use statsd::Statsd;
pub use tenants::{Limits, Tenants};
pub use traces::Traces;

/// The capsule of `concurrency` and `queues`, by Sidekiq's name.
pub const DEFAULT_CAPSULE: &str = "default";

/// The shortest period or timeout that leaves the worker time for its work.
const SHORTEST: Duration = Duration::from_millis(50);

/// Settings without a section.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Builds at once in this process, from 1 to 1000 with all capsules.
    pub concurrency: usize,
    /// Repositories that are fetched and checked out at once.
    pub clones: usize,
    /// Queues, in order: the worker empties the first one first. With weights (`["high,6", "low,1"]`), it picks them at random,
    /// in proportion to the weights.
    #[serde(deserialize_with = "queue::queues")]
    pub queues: Vec<Queue>,
    /// More slots with queues of their own, by name: Sidekiq's capsules.
    pub capsules: BTreeMap<String, Capsule>,
    /// Text beside the process in Sidekiq's Web UI.
    pub tag: String,
    /// Labels of the process in Sidekiq's Web UI.
    pub labels: Vec<String>,
    /// The connection to Sidekiq's Redis.
    pub redis: Redis,
    /// Where the worker keeps files.
    pub state: State,
    /// How the worker stops.
    pub shutdown: Shutdown,
    /// What the worker answers over HTTP: to Kubernetes, Prometheus and autoscalers.
    pub health: Health,
    /// Metrics for StatsD.
    pub statsd: Statsd,
    /// Traces in the form of OpenTelemetry.
    pub traces: Traces,
    /// When a silent worker counts as dead.
    pub lease: Lease,
    /// Which jobs the worker runs, and how it retries them.
    pub jobs: Jobs,
    /// How accounts share the workers.
    pub tenants: Tenants,
    /// The logs of each build: the live log is a Redis Stream, and the finished log can be archived.
    pub journal: Journal,
    /// What is remembered of each build, to tell why a step was not cached.
    pub last_builds: LastBuilds,
    /// What connections to other systems have in common.
    pub network: Network,
    /// The GitHub App.
    pub github: Github,
    /// Fetch and checkout.
    pub source: Source,
    /// The program that builds.
    pub buildx: Buildx,
    /// Limits and defaults of a build.
    pub bake: Bake,
    /// The builders, by name.
    pub builders: BTreeMap<String, Builder>,
    /// What accounts have and may do.
    pub accounts: Accounts,
    /// What child processes may do.
    pub sandbox: Sandbox,
    /// The log.
    pub log: Log,
    /// Remarks for the log, such as keys of a `sidekiq.yml` that only Ruby reads.
    #[serde(skip)]
    pub notes: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 10,
            clones: 4,
            queues: vec![Queue { name: "default".into(), weight: 0 }],
            capsules: BTreeMap::new(),
            tag: String::new(),
            labels: vec!["sidebake".into()],
            redis: Redis::default(),
            state: State::default(),
            shutdown: Shutdown::default(),
            health: Health::default(),
            statsd: Statsd::default(),
            traces: Traces::default(),
            lease: Lease::default(),
            jobs: Jobs::default(),
            tenants: Tenants::default(),
            journal: Journal::default(),
            last_builds: LastBuilds::default(),
            network: Network::default(),
            github: Github::default(),
            source: Source::default(),
            buildx: Buildx::default(),
            bake: Bake::default(),
            builders: BTreeMap::new(),
            accounts: Accounts::default(),
            sandbox: Sandbox::default(),
            log: Log::default(),
            notes: Vec::new(),
        }
    }
}

impl Settings {
    /// Every capsule: first the one called `default`, of `concurrency` and `queues`, then the others.
    pub fn capsules(&self) -> Vec<(&str, Capsule)> {
        let default = Capsule { concurrency: self.concurrency, queues: self.queues.clone() };
        let others = self.capsules.iter().map(|(name, capsule)| (name.as_str(), capsule.clone()));
        std::iter::once((DEFAULT_CAPSULE, default)).chain(others).collect()
    }

    /// The queues of all capsules, each once.
    pub fn queues(&self) -> Vec<String> {
        let names = self.capsules().into_iter().flat_map(|(_, capsule)| capsule.queues).map(|queue| queue.name);
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Builds at once in all capsules.
    pub fn total_concurrency(&self) -> usize {
        self.capsules().iter().map(|(_, capsule)| capsule.concurrency).sum()
    }

    /// The connection to the Redis of the live logs. Without `journal.redis_url`, it is Sidekiq's.
    pub fn redis_of_logs(&self) -> Redis {
        match &self.journal.redis_url {
            Some(url) => Redis { url: url.clone(), sentinels: Vec::new(), ..self.redis.clone() },
            None => self.redis.clone(),
        }
    }

    /// Every secret of the settings that no build needs. None of them may appear in a build's output, whatever went wrong.
    /// Others are in the environment: `environment::credentials`.
    pub fn secrets(&self) -> Vec<SecretSource> {
        let urls = [Some(&self.redis.url), self.journal.redis_url.as_ref()].into_iter().flatten();
        let passwords = urls.chain(&self.redis.sentinels).flat_map(redis::passwords_of).map(SecretSource::Value);
        let of_classes = self.jobs.classes.values().filter_map(|class| class.resolver()?.secret());
        let of_archive = self.journal.archive_secrets();
        passwords.chain(self.github.private_key()).chain(of_classes).chain(of_archive).collect()
    }

    /// The certificates that are trusted beside the system's: `network.ca_file`, by its former name `source.ca_file` too.
    pub fn ca_file(&self) -> Option<&Path> {
        self.network.ca_file.as_deref().or(self.source.ca_file.as_deref())
    }

    /// Checks what the types cannot express. Call it again after a command line has changed a setting.
    ///
    /// # Errors
    ///
    /// The first setting that the worker cannot use.
    pub fn check(&self) -> Result<(), FieldError> {
        self.check_capsules()?;
        if self.clones == 0 {
            return refuse("clones", "must be at least 1");
        }
        self.redis.check()?;
        self.state.check()?;
        self.statsd.check()?;
        self.traces.check()?;
        self.lease.check()?;
        self.jobs.check()?;
        self.tenants.check()?;
        self.journal.check()?;
        self.last_builds.check()?;
        if self.source.ca_file.is_some() && self.network.ca_file.is_some() {
            return refuse("source.ca_file", "is the former name of network.ca_file; set only network.ca_file");
        }
        self.github.check()?;
        self.source.check()?;
        self.buildx.check()?;
        self.bake.check()?;
        builder::check_all(&self.builders, self.bake.timeout)?;
        self.accounts.check()?;
        self.log.check()
    }

    fn check_capsules(&self) -> Result<(), FieldError> {
        if self.capsules.contains_key(DEFAULT_CAPSULE) {
            let message = "set concurrency and queues instead: they are the capsule called default";
            return refuse("capsules.default", message);
        }
        for (name, capsule) in self.capsules() {
            let section = if name == DEFAULT_CAPSULE { String::new() } else { format!("capsules.{name}.") };
            capsule.check(&section)?;
        }
        // A turn has an argument for each slot, and the stack of Redis' Lua has room for 8000.
        if self.total_concurrency() > 1000 {
            return refuse("concurrency", "must be from 1 to 1000, with all capsules");
        }
        Ok(())
    }
}
