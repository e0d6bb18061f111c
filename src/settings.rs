//! Every setting, its default and its check.
//!
//! The one place that reads the environment. Defaults are the `Default` values below; a file and then variables named
//! `SIDEBAKE__SECTION__KEY` are laid over them. Unknown keys are refused with their path. `config/sidebake.toml` holds
//! the same defaults with an explanation of each, and a test keeps the two equal.

mod accounts;
mod builder;
mod defaults;
mod pattern;
mod queue;
mod sidekiq_yml;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::builder::DefaultState;
use config::{Config, ConfigBuilder, Environment, File, FileFormat};
use serde::Deserialize;
use serde_json::Value;

use crate::job::{Asked, Attestation, By};
use crate::json;
use crate::report::Report;
use crate::secret::{Secret, SecretBytes};

pub use accounts::{Accounts, Policy};
pub use builder::{Balance, Builder, Driver, Toleration};
pub use pattern::{NamePattern, Pattern};
pub use queue::{Capsule, Mode, Queue};

/// The capsule of `concurrency` and `queues`, by Sidekiq's name.
const DEFAULT: &str = "default";

/// The job class that tries the runtime without building anything; taken when `jobs.probe` is on.
pub const PROBE: &str = "Sidebake::Probe";

/// Characters of a `source.mtimes_key` that nobody tries out: whoever builds sees the times of their own files, and could test
/// guesses on them.
pub const MIN_MTIMES_KEY: usize = 32;

/// A configuration that cannot be used. The message names the key.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is not there, or not TOML.
    #[error("{}", without_source(.0))]
    Read(config::ConfigError),
    /// A key is unknown or its value has the wrong type.
    #[error("{path}: {message}")]
    Key {
        /// Dotted path of the key.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}

/// Everything that can be set.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Builds at once, from 1 to 1000.
    pub concurrency: usize,
    /// Repositories fetched and checked out at once.
    pub clones: usize,
    /// Queues: the first one first, or by weight.
    #[serde(deserialize_with = "queue::queues")]
    pub queues: Vec<Queue>,
    /// Slots besides `concurrency`, with queues of their own, by name.
    pub capsules: BTreeMap<String, Capsule>,
    /// Text beside the process in Sidekiq's Web UI.
    pub tag: String,
    /// More such texts.
    pub labels: Vec<String>,
    /// The connection to Sidekiq's Redis.
    pub redis: Redis,
    /// Where files are kept.
    pub state: State,
    /// How a stop goes.
    pub shutdown: Shutdown,
    /// What Kubernetes asks of the worker.
    pub health: Health,
    /// How long a worker may be silent before it is suspected dead.
    pub lease: Lease,
    /// Which jobs are taken, and how they are retried.
    pub jobs: Jobs,
    /// The GitHub App.
    pub github: Github,
    /// Fetching and checking out.
    pub source: Source,
    /// The program that bakes.
    pub buildx: Buildx,
    /// Limits of a bake.
    pub bake: Bake,
    /// The builders, by name.
    pub builders: BTreeMap<String, Builder>,
    /// What accounts have, by pattern.
    pub accounts: Accounts,
    /// What children may do.
    pub sandbox: Sandbox,
    /// The log.
    pub log: Log,
    /// What the reading has to tell, such as keys of a `sidekiq.yml` that only Ruby reads.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// The connection to Sidekiq's Redis.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// `redis://`, `rediss://` or `unix://`; may contain a password. `REDIS_URL` sets it too. With `sentinels`, its host is
    /// the name by which they know the master.
    pub url: Secret,
    /// `redis://` or `rediss://` URLs of Redis Sentinel, with one user and password for all.
    pub sentinels: Vec<Secret>,
    /// Certificates that sign the server's, PEM, in place of the usual ones.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, PEM, for a server that asks for one; with `client_key_file`.
    pub client_certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub client_key_file: Option<PathBuf>,
    /// How long one command may take before the connection is given up.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

/// Where files are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Mirrors, worktrees and working directories. May be lost at any time; must not be shared by machines.
    pub directory: PathBuf,
    /// Bytes on the disk of all mirrors together. Over it, those that nobody uses go, the least recently used first.
    pub mirrors_max_bytes: u64,
    /// Free bytes below which mirrors go as well, and then no jobs are fetched until there is room again.
    pub min_free_bytes: u64,
}

/// How a stop goes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long running builds may go on after TERM.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

/// What Kubernetes asks of the worker.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Address for `/live` and `/ready`; none without it.
    pub listen: Option<SocketAddr>,
}

/// How long a worker may be silent before it is suspected dead.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lease {
    /// Life of the lease; it is renewed every sixth of it. A suspect has half as long again to come back.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

/// Which jobs are taken, and how they are retried.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jobs {
    /// The job classes that are builds, by their Ruby names.
    pub classes: BTreeMap<String, JobClass>,
    /// Whether `Sidebake::Probe` jobs are run.
    pub probe: bool,
    /// No retry later than this after the first failure.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Retries of a job that says `retry: true`.
    pub max_retries: u32,
    /// Puts user failures on Sidekiq's own failure path (retry set, dead set).
    pub raise_user_failures: bool,
    /// Entries kept in the dead set.
    pub dead_max_jobs: u32,
    /// How long an entry stays in the dead set.
    #[serde(with = "humantime_serde")]
    pub dead_timeout: Duration,
    /// How often due retries are looked for, on average and per fleet.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// The same for each process, however many there are; none without it.
    #[serde(with = "humantime_serde")]
    pub poll_interval_average: Option<Duration>,
    /// The form of times in jobs that have none to go by.
    pub timestamps: Timestamps,
}

impl Jobs {
    /// Whether jobs of this class are run here.
    pub fn is_ours(&self, class: &str) -> bool {
        self.classes.contains_key(class) || (self.probe && class == PROBE)
    }
}

/// The form in which a generation of Sidekiq writes times into jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timestamps {
    /// Integers, from Sidekiq 8 on.
    Milliseconds,
    /// Floats, before.
    Seconds,
}

/// How the arguments of one job class become a build.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobClass {
    /// Which of the three shapes.
    pub arguments: Shape,
    /// `mapped`: field of the native object (dots for nested ones) to JSON Pointer into `args`.
    pub map: BTreeMap<String, String>,
    /// `mapped`: fields with a fixed value.
    pub constants: BTreeMap<String, Value>,
    /// `mapped`: fields used where the pointer finds nothing.
    pub defaults: BTreeMap<String, Value>,
    /// Fields of the report to JSON Pointer into `args`: given back to Rails unread.
    pub echo: BTreeMap<String, String>,
    /// `resolved`: where to ask.
    pub resolve: Option<Resolve>,
}

/// The shape of a class's arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// One native object.
    #[default]
    Native,
    /// Anything, through a map.
    Mapped,
    /// An id; Rails is asked for the native object.
    Resolved,
}

/// Where Rails answers for an id.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// URL in which `{0}` is the first argument, `{1}` the second.
    pub url: String,
    /// Shared secret of the signature.
    pub secret: Option<Secret>,
    /// File that holds it; read for each job, so that it can be rotated.
    pub secret_file: Option<PathBuf>,
}

/// The GitHub App.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Github {
    /// Base of the REST API.
    pub api_url: String,
    /// Base of the git URLs.
    pub git_url: String,
    /// App id or client id.
    pub app_id: Option<String>,
    /// The App's private key, PEM.
    pub private_key: Option<Secret>,
    /// File that holds it.
    pub private_key_file: Option<PathBuf>,
    /// Whether a job's token is given back as soon as the source is there.
    pub revoke: bool,
    /// Whether a commit has to be on the branch or tag that its job names.
    pub check_ref: bool,
    /// For one request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

/// Fetching and checking out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// For the connection to the git host.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Without a byte from the git host.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// For fetch and checkout together.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Files and directories of a commit.
    pub max_entries: u64,
    /// All files of a commit together.
    pub max_tree_bytes: u64,
    /// One file.
    pub max_file_bytes: u64,
    /// Bytes received in one fetch.
    pub max_fetch_bytes: u64,
    /// Certificates by which the git host is judged.
    pub ca_file: PathBuf,
    /// Repositories (`owner/name`) whose submodules are fetched.
    pub submodules: Vec<NamePattern>,
    /// Where the modification times of files come from.
    pub mtimes: Mtimes,
    /// The same for some repositories, by `owner/name`; the closest pattern counts.
    pub mtimes_for: BTreeMap<NamePattern, Mtimes>,
    /// Key of the times that come from content, at least 32 characters; the same on every worker.
    pub mtimes_key: Option<Secret>,
    /// File that holds it; read for each job.
    pub mtimes_key_file: Option<PathBuf>,
}

/// Where the modification times of a worktree's files come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mtimes {
    /// The clock, when they are written: right for every build.
    Checkout,
    /// What is in them, so that a builder that has seen a file does not get it again. For builds that do not compare
    /// times (make, ninja and cargo do): a changed file may look older than what was made from it.
    Content,
}

impl Source {
    /// Where the times of this repository's files come from; `repository` is `owner/name`.
    pub fn mtimes_of(&self, repository: &str) -> Mtimes {
        let meant = self.mtimes_for.iter().filter(|(pattern, _)| pattern.matches(repository));
        meant.max_by_key(|(pattern, _)| pattern.closeness()).map_or(self.mtimes, |(_, mtimes)| *mtimes)
    }

    /// Whether any repository's files have times that come from content.
    pub fn needs_mtimes_key(&self) -> bool {
        self.mtimes_for.values().chain([&self.mtimes]).any(|mtimes| *mtimes == Mtimes::Content)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let refuse = |key: &str, message: &str| {
            Err(SettingsError::Key { path: format!("source.{key}"), message: message.into() })
        };
        match (&self.mtimes_key, &self.mtimes_key_file) {
            (Some(_), Some(_)) => refuse("mtimes_key_file", "mtimes_key is set as well"),
            (None, None) if self.needs_mtimes_key() => {
                refuse("mtimes_key_file", "is needed for times that come from content")
            }
            (Some(key), None) if key.expose().len() < MIN_MTIMES_KEY => {
                refuse("mtimes_key", &format!("must have at least {MIN_MTIMES_KEY} characters"))
            }
            _ => Ok(()),
        }
    }
}

/// The program that bakes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Buildx {
    /// Absolute path of `docker-buildx`.
    pub binary: PathBuf,
}

/// Limits of a bake.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bake {
    /// For `--print`.
    #[serde(with = "humantime_serde")]
    pub print_timeout: Duration,
    /// Definitions that are resolved at once.
    pub prints: usize,
    /// Bytes that `--print` may write.
    pub max_print_bytes: usize,
    /// For a build, when the job does not say.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Without a byte from `docker-buildx`.
    #[serde(with = "humantime_serde")]
    pub silence: Duration,
    /// Targets of one definition.
    pub max_targets: usize,
    /// Whether to attest how images are built, where neither the platform's definition nor the job says. An option
    /// `builder-id` is in every such attestation.
    pub provenance: Asked,
    /// Whether to attest what is in images; the same, with an option `generator`: the image that looks into others.
    pub sbom: Asked,
}

impl Bake {
    /// What is said here of an attestation.
    pub fn asked(&self, attestation: Attestation) -> &Asked {
        match attestation {
            Attestation::Provenance => &self.provenance,
            Attestation::Sbom => &self.sbom,
        }
    }

    fn check(&self) -> Result<(), SettingsError> {
        Attestation::ALL.into_iter().try_for_each(|attestation| {
            let refused = |message| SettingsError::Key { path: format!("bake.{}", attestation.name()), message };
            self.asked(attestation).check(attestation, By::Configuration).map_err(refused)
        })
    }
}

/// What children may do.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// What happens on a kernel that cannot enforce all of it.
    pub mode: SandboxMode,
    /// TCP ports of registries, to which `docker-buildx` may connect.
    pub registry_ports: Vec<u16>,
    /// Memory that a child may use for data.
    pub max_data_bytes: u64,
}

/// What happens on a kernel that cannot enforce all of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SandboxMode {
    /// The worker does not start.
    #[serde(rename = "required")]
    Required,
    /// What the kernel has is used, what it lacks is logged.
    #[serde(rename = "best effort")]
    BestEffort,
    /// No sandbox.
    #[serde(rename = "off")]
    Off,
}

/// The log.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `sidebake=debug,info`.
    pub level: String,
    /// One line for each event, as text or JSON.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Levels of the log, the fewest lines first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Settings that are lists, by their keys.
type Lists = Vec<(String, Vec<config::Value>)>;

impl Settings {
    /// Reads defaults, then `files`, then the environment, and checks the whole.
    ///
    /// Files ending in `.yml`, `.yaml` or `.erb` are Sidekiq's, and are read as defaults; `environment` is the section of
    /// them that counts, or the one that `APP_ENV` and its like name.
    #[expect(clippy::disallowed_methods, reason = "the environment is read here")]
    pub fn load(files: &[PathBuf], environment: Option<&str>) -> Result<Self, SettingsError> {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::read(files, environment, variables)
    }

    fn read(
        files: &[PathBuf],
        environment: Option<&str>,
        variables: BTreeMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let (mut builder, mut notes) = (Config::builder(), Vec::new());
        let default = |builder: ConfigBuilder<DefaultState>, path: &str, value: config::Value| {
            builder.set_default(path, value).map_err(SettingsError::Read)
        };
        if let Some(url) = redis_url(&variables) {
            builder = default(builder, "redis.url", url.as_str().into())?;
        }
        if let Some(threads) = variables.get("RAILS_MAX_THREADS") {
            builder = default(builder, "concurrency", threads.as_str().into())?;
        }
        let (sidekiqs, ours): (Vec<_>, Vec<_>) = files.iter().partition(|path| is_sidekiqs(path));
        for path in sidekiqs {
            let refuse = |message| SettingsError::Key { path: path.display().to_string(), message };
            let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
            let yml = sidekiq_yml::read(&text, environment_of(environment, &variables)).map_err(refuse)?;
            for (key, value) in yml.settings {
                builder = default(builder, key, value)?;
            }
            notes.extend(yml.notes.into_iter().map(|note| format!("{}: {note}", path.display())));
        }
        for path in ours {
            builder = builder.add_source(File::from(path.as_path()).format(FileFormat::Toml));
        }
        let (lists, variables) = lists(variables)?;
        let environment = Environment::with_prefix("SIDEBAKE")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("queues")
            .with_list_parse_key("labels")
            .with_list_parse_key("sandbox.registry_ports")
            .source(Some(variables.into_iter().collect()));
        builder = builder.add_source(environment);
        for (key, list) in lists {
            builder = builder.set_override(key, list).map_err(SettingsError::Read)?;
        }
        let merged = builder.build().map_err(SettingsError::Read)?;
        let settings: Self = serde_path_to_error::deserialize(merged).map_err(|error| SettingsError::Key {
            path: error.path().to_string(),
            message: error.inner().to_string(),
        })?;
        settings.check()?;
        Ok(Self { notes, ..settings })
    }

    /// Every capsule: the one called `default`, of `concurrency` and `queues`, and then the others.
    pub fn capsules(&self) -> Vec<(&str, Capsule)> {
        let default = Capsule { concurrency: self.concurrency, queues: self.queues.clone() };
        let others = self.capsules.iter().map(|(name, capsule)| (name.as_str(), capsule.clone()));
        std::iter::once((DEFAULT, default)).chain(others).collect()
    }

    /// Builds at once in all capsules.
    pub fn total_concurrency(&self) -> usize {
        self.capsules().iter().map(|(_, capsule)| capsule.concurrency).sum()
    }

    /// What types cannot say. Called by [`Settings::load`], and again when a command line has changed something.
    pub fn check(&self) -> Result<(), SettingsError> {
        let refuse = |path: String, message: &str| Err(SettingsError::Key { path, message: message.into() });
        if self.capsules.contains_key(DEFAULT) {
            return refuse("capsules.default".into(), "is what `concurrency` and `queues` are");
        }
        for (name, capsule) in self.capsules() {
            let path = |key: &str| if name == DEFAULT { key.to_owned() } else { format!("capsules.{name}.{key}") };
            if capsule.concurrency == 0 {
                return refuse(path("concurrency"), "must be from 1 to 1000");
            }
            if capsule.queues.is_empty() {
                return refuse(path("queues"), "must name at least one queue");
            }
            if let Some(queue) = capsule.queues.iter().find(|queue| !Queue::is_name(&queue.name)) {
                return refuse(path("queues"), &format!("{:?}: is no name of a queue", queue.name));
            }
        }
        // A turn has an argument for each slot, and Redis' Lua a stack for 8000 of them.
        if self.total_concurrency() > 1000 {
            return refuse("concurrency".into(), "must be from 1 to 1000, with all capsules");
        }
        if self.clones == 0 {
            return refuse("clones".into(), "must be at least 1");
        }
        if self.bake.prints == 0 {
            return refuse("bake.prints".into(), "must be at least 1");
        }
        if self.jobs.dead_max_jobs < 2 {
            return refuse("jobs.dead_max_jobs".into(), "must be at least 2");
        }
        if self.redis.client_certificate_file.is_some() != self.redis.client_key_file.is_some() {
            return refuse("redis".into(), "client_certificate_file and client_key_file belong together");
        }
        let moment = Duration::from_millis(50);
        let average = self.jobs.poll_interval_average.unwrap_or(moment);
        if self.jobs.poll_interval < moment || average < moment || self.redis.timeout < moment {
            let keys = "jobs.poll_interval, jobs.poll_interval_average, redis.timeout";
            return refuse(keys.into(), "must be at least 50ms");
        }
        if self.github.private_key.is_some() && self.github.private_key_file.is_some() {
            return refuse("github".into(), "set either private_key or private_key_file, not both");
        }
        if let Some(unknown) = self.log.unknown_level() {
            let known = LEVELS.join(", ");
            return refuse("log.level".into(), &format!("unknown level {unknown:?}; known: {known}, TARGET=LEVEL"));
        }
        if self.lease.ttl < Duration::from_secs(1) {
            return refuse("lease.ttl".into(), "must be at least 1s");
        }
        if !self.buildx.binary.is_absolute() {
            return refuse("buildx.binary".into(), "must be an absolute path");
        }
        if !self.state.directory.is_absolute() {
            return refuse("state.directory".into(), "must be an absolute path");
        }
        self.source.check()?;
        self.bake.check()?;
        self.accounts.check()?;
        for (name, class) in &self.jobs.classes {
            class.check(&format!("jobs.classes.{name}"))?;
        }
        let mut deployments = BTreeMap::new();
        for (name, builder) in &self.builders {
            builder.check(name)?;
            // Two names for the same pods would look as if their accounts were apart.
            let place = (&builder.kubeconfig, &builder.context, &builder.namespace, builder.node_name(name));
            if builder.driver == Driver::Kubernetes
                && let Some(other) = deployments.insert(place, name)
            {
                return refuse(format!("builders.{name}"), &format!("is the same Deployment as builders.{other}"));
            }
        }
        Ok(())
    }
}

impl Log {
    /// What is no level where one is expected. As a directive it would be a target, and nothing else would be logged.
    fn unknown_level(&self) -> Option<&str> {
        let levels = self.level.split(',').map(|directive| directive.rsplit('=').next().unwrap_or(directive).trim());
        levels.into_iter().find(|level| !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)))
    }
}

/// Variables that are a list in JSON, by the keys of their settings, and all others.
fn lists(variables: BTreeMap<String, String>) -> Result<(Lists, BTreeMap<String, String>), SettingsError> {
    let is_list = |name: &str, text: &str| name.starts_with("SIDEBAKE__") && text.trim_start().starts_with('[');
    let (lists, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        variables.into_iter().partition(|(name, text)| is_list(name, text));
    let read = |(name, text): (String, String)| {
        let key = name.trim_start_matches("SIDEBAKE__").to_lowercase().replace("__", ".");
        let refuse = || SettingsError::Key {
            path: name.clone(),
            message: "not a list of texts or numbers; write a,b or [\"a\",\"b\"]".into(),
        };
        let items: Vec<serde_json::Value> = json::read(text.as_bytes()).map_err(|_| refuse())?;
        let value = |item: serde_json::Value| match item {
            serde_json::Value::String(text) => Some(config::Value::from(text)),
            serde_json::Value::Number(number) => number.as_i64().map(config::Value::from),
            _ => None,
        };
        let items: Option<Vec<config::Value>> = items.into_iter().map(value).collect();
        Ok((key, items.ok_or_else(refuse)?))
    };
    Ok((lists.into_iter().map(read).collect::<Result<_, _>>()?, others))
}

/// What is wrong and where, without the lines of the file that a TOML error shows: there may be a secret in them.
fn without_source(error: &config::ConfigError) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains('|') && !line.trim().is_empty()).collect();
    lines.join(": ")
}

fn is_sidekiqs(file: &Path) -> bool {
    file.extension().is_some_and(|extension| ["yml", "yaml", "erb"].iter().any(|known| extension == *known))
}

/// Which section of a `sidekiq.yml` counts, as Sidekiq has it.
fn environment_of<'a>(given: Option<&'a str>, variables: &'a BTreeMap<String, String>) -> &'a str {
    let named = ["APP_ENV", "RAILS_ENV", "RACK_ENV"].into_iter().find_map(|name| variables.get(name));
    given.or(named.map(String::as_str)).unwrap_or("development")
}

/// The socket on which systemd wants to hear from us, and how often at least it wants a sign of life.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn systemd() -> Option<(OsString, Option<Duration>)> {
    let socket = std::env::var_os("NOTIFY_SOCKET")?;
    let variable = |name| std::env::var(name).ok();
    // One that is meant for another process is none of ours.
    let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let period = variable("WATCHDOG_USEC").filter(|_| is_ours).and_then(|text| text.parse().ok());
    Some((socket, period.map(Duration::from_micros)))
}

/// The name of this host in Sidekiq's Web UI: `DYNO` where it is set, as Sidekiq has it.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn hostname() -> String {
    let node = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    std::env::var("DYNO").unwrap_or_else(|_| node())
}

/// `DOCKER_HOST`: the engine that somebody at a terminal uses.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn docker_host() -> Option<String> {
    std::env::var("DOCKER_HOST").ok()
}

/// What a kubeconfig's plugin gets: this process's environment, as from kubectl, without our own secrets.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn plugin_environment() -> impl Iterator<Item = (OsString, OsString)> {
    let provider = std::env::var_os("REDIS_PROVIDER").unwrap_or_else(|| "REDIS_URL".into());
    std::env::vars_os().filter(move |(name, _)| *name != provider && !name.as_encoded_bytes().starts_with(b"SIDEBAKE_"))
}

/// A variable that holds a build secret: all but NUL may be in it.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn secret_variable(name: &str) -> Option<SecretBytes> {
    std::env::var_os(name).map(|value| SecretBytes::new(value.into_encoded_bytes()))
}

/// `REDIS_URL`, or the variable that `REDIS_PROVIDER` names: as Sidekiq reads them.
fn redis_url(variables: &BTreeMap<String, String>) -> Option<&String> {
    let name = variables.get("REDIS_PROVIDER").map_or("REDIS_URL", String::as_str);
    variables.get(name)
}

impl JobClass {
    fn check(&self, path: &str) -> Result<(), SettingsError> {
        let refuse = |key: &str, message: String| Err(SettingsError::Key { path: format!("{path}{key}"), message });
        for (field, pointer) in self.map.iter().chain(&self.echo) {
            if !pointer.starts_with('/') {
                return refuse("", format!("the JSON Pointer of {field} must begin with /, found {pointer:?}"));
            }
        }
        let report = serde_json::to_value(Report::default()).unwrap_or_default();
        if let Some(field) = self.echo.keys().find(|field| report.get(field.as_str()).is_some()) {
            return refuse(".echo", format!("{field} is a field of the report itself"));
        }
        match (self.arguments, &self.resolve) {
            (Shape::Mapped, _) if self.map.is_empty() => refuse(".map", "is needed for mapped arguments".into()),
            (Shape::Resolved, None) => refuse(".resolve", "is needed for resolved arguments".into()),
            (Shape::Resolved, Some(resolve)) if resolve.secret.is_none() == resolve.secret_file.is_none() => {
                refuse(".resolve", "needs either secret or secret_file".into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a temporary file");
        std::fs::write(file.path(), toml).expect("written");
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::read(&[file.path().to_owned()], None, variables)
    }

    fn names(settings: &Settings) -> Vec<&str> {
        settings.queues.iter().map(|queue| queue.name.as_str()).collect()
    }

    fn message(toml: &str) -> String {
        read(toml, &[]).expect_err("refused").to_string()
    }

    #[test]
    fn the_example_file_holds_the_defaults() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sidebake.toml");
        let read = Settings::read(&[example], None, BTreeMap::new()).expect("the example is valid");
        assert_eq!(format!("{read:#?}"), format!("{:#?}", Settings::default()));
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let file = "concurrency = 3\nqueues = [\"a\"]\n[redis]\nurl = \"redis://file\"\n";
        let settings = read(file, &[("SIDEBAKE__QUEUES", "b,c"), ("REDIS_URL", "redis://env")]).expect("valid");
        assert_eq!((settings.concurrency, settings.clones), (3, 4));
        assert_eq!(names(&settings), ["b", "c"]);
        assert_eq!(settings.redis.url.expose(), "redis://file", "REDIS_URL is a default, as for Sidekiq");
        let settings = read("", &[("SIDEBAKE__REDIS__URL", "redis://x"), ("REDIS_URL", "redis://env")]).expect("valid");
        assert_eq!(settings.redis.url.expose(), "redis://x");
        let settings = read("", &[("SIDEBAKE__QUEUES", "b,3,c")]).expect("valid");
        assert_eq!((names(&settings), settings.queues[0].weight), (vec!["b", "c"], 3));
    }

    #[test]
    fn sidekiqs_own_file_and_variables_are_defaults() {
        let file = |name: &str, text: &str| {
            let file = tempfile::NamedTempFile::with_suffix(name).expect("a temporary file");
            std::fs::write(file.path(), text).expect("written");
            file
        };
        let yml = file(".yml", ":concurrency: 5\n:timeout: 8\nstaging:\n  concurrency: 6\n:pidfile: x\n");
        let toml = file(".toml", "shutdown.timeout = \"9s\"\n");
        let read = |environment, variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let files = [toml.path().to_owned(), yml.path().to_owned()];
            Settings::read(&files, environment, variables).expect("valid")
        };
        let settings = read(None, &[("RAILS_MAX_THREADS", "7"), ("RAILS_ENV", "staging")]);
        assert_eq!((settings.concurrency, settings.shutdown.timeout.as_secs()), (6, 9));
        assert!(settings.notes[0].ends_with("pidfile is not read"), "{:?}", settings.notes);
        assert_eq!(read(Some("test"), &[("RACK_ENV", "staging")]).concurrency, 5);
        let threads = Settings::read(&[], None, BTreeMap::from([("RAILS_MAX_THREADS".into(), "7".into())]));
        assert_eq!(threads.expect("valid").concurrency, 7);
    }

    #[test]
    fn a_typo_is_refused_with_its_path() {
        assert!(message("concurency = 3").contains("concurency"));
        let nested = message("[github]\nappid = \"1\"");
        assert!(nested.contains("github") && nested.contains("appid"), "{nested}");
        let wrong = message("[jobs]\nmax_age = \"soon\"");
        assert!(wrong.contains("jobs.max_age"), "{wrong}");
    }

    #[test]
    fn what_cannot_work_is_refused_before_the_start() {
        assert_eq!(message("concurrency = 0"), "concurrency: must be from 1 to 1000");
        assert!(message("queues = [\"a,often\"]").contains("\"a,often\": expected a queue"));
        let empty = message("[capsules.slow]\nconcurrency = 1\nqueues = []");
        assert_eq!(empty, "capsules.slow.queues: must name at least one queue");
        let double = message("[capsules.default]\nconcurrency = 1\nqueues = [\"a\"]");
        assert_eq!(double, "capsules.default: is what `concurrency` and `queues` are");
        let crowd = message("concurrency = 999\n[capsules.slow]\nconcurrency = 2\nqueues = [\"a\"]");
        assert_eq!(crowd, "concurrency: must be from 1 to 1000, with all capsules");
        assert!(message("queues = [\"a\\nb\"]").contains("no name of a queue"));
        assert_eq!(message("bake.prints = 0"), "bake.prints: must be at least 1");
        assert_eq!(message("jobs.dead_max_jobs = 1"), "jobs.dead_max_jobs: must be at least 2");
        assert_eq!(message("queues = []"), "queues: must name at least one queue");
        let keys = message("[github]\nprivate_key = \"x\"\nprivate_key_file = \"/x\"");
        assert_eq!(keys, "github: set either private_key or private_key_file, not both");
        let attested = message("bake.provenance = \"mode=huge\"");
        assert_eq!(attested, "bake.provenance: unknown value \"huge\" of the option mode");
        let resolved = message("[jobs.classes.B]\narguments = \"resolved\"");
        assert_eq!(resolved, "jobs.classes.B.resolve: is needed for resolved arguments");
        let keyless = message("source.mtimes_for = { \"acme/app\" = \"content\" }");
        assert_eq!(keyless, "source.mtimes_key_file: is needed for times that come from content");
        let short = message("source.mtimes_key = \"hunter2\"");
        assert_eq!(short, "source.mtimes_key: must have at least 32 characters");
        let remote = message("[builders.default]\ndriver = \"remote\"");
        assert_eq!(remote, "builders.default.endpoint: is needed for the remote driver: tcp://host:port");
    }

    #[test]
    fn a_variable_may_be_a_list_in_json() {
        let ports = |text: &str| read("", &[("SIDEBAKE__SANDBOX__REGISTRY_PORTS", text)]);
        for text in ["443,5000", "[443,5000]", " [443, 5000]", "[\"443\",\"5000\"]"] {
            assert_eq!(ports(text).expect("valid").sandbox.registry_ports, [443, 5000], "{text}");
        }
        let queues = read("", &[("SIDEBAKE__QUEUES", r#"["high,6","low"]"#)]).expect("valid").queues;
        let queues: Vec<_> = queues.iter().map(|queue| (&*queue.name, queue.weight)).collect();
        assert_eq!(queues[0], ("high", 6));
        let accounts = read("", &[("SIDEBAKE__SOURCE__SUBMODULES", r#"["acme/*"]"#)]).expect("valid");
        assert_eq!(accounts.source.submodules.len(), 1);
        let expected = "SIDEBAKE__SANDBOX__REGISTRY_PORTS: not a list of texts or numbers; write a,b or [\"a\",\"b\"]";
        for text in ["[443", "[[443]]", "[null]"] {
            assert_eq!(ports(text).expect_err("refused").to_string(), expected, "{text}");
        }
    }

    #[test]
    fn a_level_of_the_log_that_is_none_is_refused() {
        let refused = "log.level: unknown level \"loud\"; known: off, error, warn, info, debug, trace, TARGET=LEVEL";
        for level in ["loud", "info,loud", "sidebake=loud"] {
            assert_eq!(message(&format!("log.level = \"{level}\"")), refused);
        }
        for level in ["info", "WARN", "sidebake=debug,info", "sidebake=trace, warn"] {
            assert!(read(&format!("log.level = \"{level}\""), &[]).is_ok(), "{level}");
        }
    }

    #[test]
    fn the_closest_repository_says_where_its_times_come_from() {
        let file = "[source]\nmtimes_key_file = \"/run/secrets/key\"\n\
                    mtimes_for = { \"acme/*\" = \"content\", \"acme/Make-*\" = \"checkout\", \"acme/make-no\" = \"content\" }\n";
        let source = read(file, &[]).expect("valid").source;
        let content = ["acme/app", "acme/make-no"].map(|name| source.mtimes_of(name));
        assert_eq!(content, [Mtimes::Content; 2]);
        let checkout = ["acme/make-it", "umbrella/app"].map(|name| source.mtimes_of(name));
        assert_eq!(checkout, [Mtimes::Checkout; 2]);
    }

    #[test]
    fn secrets_do_not_show_in_the_logged_settings() {
        let settings = read("[redis]\nurl = \"redis://:hunter2@host\"", &[]).expect("valid");
        assert!(!format!("{settings:?}").contains("hunter2"));
        let broken = message("[redis]\nurl = \"redis://:hunter2@host\" x");
        assert!(broken.contains("line 2") && !broken.contains("hunter2"), "{broken}");
    }
}
