//! `sidebake run`: a worker, and its log.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::configuration::{self, ConfigurationError};
use crate::settings::{self, LogFormat, Queue, Settings};
use crate::worker::{self, Shutdown};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Number of concurrent builds
    #[arg(short, long, value_name = "N")]
    concurrency: Option<usize>,
    /// A queue to fetch jobs from; repeat for more. Without weights, earlier queues come first
    #[arg(short, long = "queue", value_name = "QUEUE[,WEIGHT]", value_parser = queue)]
    queues: Vec<Queue>,
    /// Seconds to wait for running builds after TERM
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Tag of the process in Sidekiq's Web UI
    #[arg(short = 'g', long, value_name = "TAG")]
    tag: Option<String>,
    /// The section of sidekiq.yml to use; default: APP_ENV, RAILS_ENV, RACK_ENV or development
    #[arg(short, long, value_name = "ENVIRONMENT")]
    environment: Option<String>,
    /// Accepted for compatibility with Sidekiq; no Ruby is loaded
    #[arg(short, long, value_name = "PATH")]
    require: Option<PathBuf>,
    /// Log at level debug
    #[arg(short, long)]
    verbose: bool,
}

impl Run {
    /// The section of a `sidekiq.yml` that counts, if the command line names one.
    pub(super) fn environment(&self) -> Option<&str> {
        self.environment.as_deref()
    }

    /// Runs a worker with these settings, which were read from `files`.
    pub(super) async fn run(
        self,
        mut settings: Settings,
        files: &[PathBuf],
        shutdown: Shutdown,
    ) -> anyhow::Result<ExitCode> {
        self.apply(&mut settings);
        settings.check()?;
        let level = start_log(&settings.log);
        for note in &settings.notes {
            tracing::warn!(event = "settings_note", "{note}");
        }
        tracing::debug!(event = "settings_loaded", ?settings, "settings loaded");
        let (reload, ended) = (Arc::clone(&shutdown.reload), CancellationToken::new());
        let work = async {
            let end = worker::run(settings, shutdown).await;
            ended.cancel();
            end
        };
        let (end, _) = tokio::join!(work, ended.run_until_cancelled(self.follow(files, &reload, &level)));
        end?;
        Ok(ExitCode::SUCCESS)
    }

    /// Sets the level of the log again at each HUP. Everything else takes a new worker.
    async fn follow(&self, files: &[PathBuf], reload: &Notify, level: &Level) {
        loop {
            reload.notified().await;
            match self.log_settings(files) {
                Ok(log) => set(level, &log),
                Err(error) => {
                    let error = error.to_string();
                    tracing::error!(event = "log_level_kept", error, "settings not usable; log level kept");
                }
            }
        }
    }

    fn log_settings(&self, files: &[PathBuf]) -> Result<settings::Log, ConfigurationError> {
        let mut settings = configuration::load(files, self.environment())?;
        self.apply(&mut settings);
        Ok(settings.log)
    }

    fn apply(&self, settings: &mut Settings) {
        if let Some(concurrency) = self.concurrency {
            settings.concurrency = concurrency;
        }
        if !self.queues.is_empty() {
            settings.queues.clone_from(&self.queues);
        }
        if let Some(seconds) = self.timeout {
            settings.shutdown.timeout = std::time::Duration::from_secs(seconds);
        }
        if let Some(tag) = &self.tag {
            settings.tag.clone_from(tag);
        }
        if self.verbose {
            settings.log.level = "debug".into();
        }
        if let Some(path) = &self.require {
            settings.notes.push(format!("-r {}: no Ruby is loaded", path.display()));
        }
    }
}

fn queue(text: &str) -> Result<Queue, &'static str> {
    Queue::parse(text).ok_or("expected QUEUE or QUEUE,WEIGHT")
}

/// Changes what is logged while the worker runs.
type Level = reload::Handle<EnvFilter, Registry>;

/// Logs to standard output, as Sidekiq does.
fn start_log(log: &settings::Log) -> Level {
    let (filter, level) = reload::Layer::new(filter(log));
    let (registry, lines) = (tracing_subscriber::registry().with(filter), fmt::layer().with_target(false));
    match log.format {
        LogFormat::Text => {
            registry.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stdout()))).init();
        }
        LogFormat::Json => registry.with(lines.json()).init(),
    }
    level
}

fn filter(log: &settings::Log) -> EnvFilter {
    // kube logs each failed request, and the whole text of an answer that it cannot read. The builders log an outage once.
    let filter = EnvFilter::try_new(format!("kube_client=off,{}", log.directives()));
    filter.unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Sets what is logged from now on. The log says so once, at the old level or at the new one.
fn set(level: &Level, log: &settings::Log) {
    let say = || tracing::info!(event = "log_level_reloaded", level = log.directives(), "log level reloaded");
    let is_heard = tracing::enabled!(tracing::Level::INFO);
    if is_heard {
        say();
    }
    level.reload(filter(log)).expect("the log lasts as long as the process");
    if !is_heard {
        say();
    }
}
