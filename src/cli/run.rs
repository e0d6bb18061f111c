//! `sidebake run`: a worker, and its log.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::settings::{LogFormat, Queue, Settings};
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

    pub(super) async fn run(self, mut settings: Settings, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
        self.apply(&mut settings);
        settings.check()?;
        start_log(&settings);
        for note in &settings.notes {
            tracing::warn!(event = "settings_note", "{note}");
        }
        tracing::debug!(event = "settings_loaded", ?settings, "settings loaded");
        worker::run(settings, shutdown).await?;
        Ok(ExitCode::SUCCESS)
    }

    fn apply(self, settings: &mut Settings) {
        if let Some(concurrency) = self.concurrency {
            settings.concurrency = concurrency;
        }
        if !self.queues.is_empty() {
            settings.queues = self.queues;
        }
        if let Some(seconds) = self.timeout {
            settings.shutdown.timeout = std::time::Duration::from_secs(seconds);
        }
        if let Some(tag) = self.tag {
            settings.tag = tag;
        }
        if self.verbose {
            settings.log.level = "debug".into();
        }
        if let Some(path) = self.require {
            settings.notes.push(format!("-r {}: no Ruby is loaded", path.display()));
        }
    }
}

fn queue(text: &str) -> Result<Queue, &'static str> {
    Queue::parse(text).ok_or("expected QUEUE or QUEUE,WEIGHT")
}

/// Logs to standard output, as Sidekiq does.
fn start_log(settings: &Settings) {
    // kube logs each failed request, and the whole text of an answer that it cannot read. The builders log an outage once.
    let filter = |level: &str| EnvFilter::try_new(format!("kube_client=off,{level}"));
    let filter = filter(&settings.log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match settings.log.format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stdout())).init(),
        LogFormat::Json => log.json().init(),
    }
}
