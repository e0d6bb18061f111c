//! The command line.

mod build;
mod builder;
mod cancel;
mod doctor;
mod enqueue;
mod plan;
mod release;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::configuration;
use crate::settings::{LogFormat, Queue, Settings};
use crate::worker::{self, Shutdown};

/// A Sidekiq-compatible build worker for docker buildx bake.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Cli {
    /// Settings file (TOML, see config/sidebake.toml) or sidekiq.yml; repeat for both.
    #[arg(short = 'C', long, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the worker: fetch build jobs from Redis until a signal stops it.
    Run(Run),
    /// Build a directory or repository on this machine, without Redis and GitHub.
    Build(build::Build),
    /// Push a build job to its queue, as Rails does.
    Enqueue(enqueue::Enqueue),
    /// Cancel a build that is queued, scheduled, waiting for a retry or running.
    Cancel(cancel::Cancel),
    /// Requeue in-flight jobs of dead workers.
    Release(release::Release),
    /// Show what a job would do, without a build.
    Plan(plan::Plan),
    /// Create, show and change builders.
    Builder(builder::Builder),
    /// Check everything that a worker needs.
    Doctor(doctor::Doctor),
}

#[derive(Debug, Args)]
struct Run {
    /// Number of builds at once.
    #[arg(short, long, value_name = "N")]
    concurrency: Option<usize>,
    /// Queue to fetch jobs from, with an optional weight; repeat for more. Without weights, the first one comes first.
    #[arg(short, long = "queue", value_name = "QUEUE[,WEIGHT]", value_parser = queue)]
    queues: Vec<Queue>,
    /// Seconds that running builds may continue after TERM.
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Text beside the process in Sidekiq's Web UI.
    #[arg(short = 'g', long, value_name = "TAG")]
    tag: Option<String>,
    /// Section of a sidekiq.yml that counts. Default: APP_ENV, RAILS_ENV, RACK_ENV or development.
    #[arg(short, long, value_name = "ENVIRONMENT")]
    environment: Option<String>,
    /// Ignored: accepted for compatibility with Sidekiq. sidebake loads no Ruby.
    #[arg(short, long, value_name = "PATH")]
    require: Option<PathBuf>,
    /// Log more (level debug).
    #[arg(short, long)]
    verbose: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded: exit status 0.
    Good,
    /// A build failed, or a check found a fault: exit status 1.
    Bad,
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// When the command could not run at all. The message is for a person.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<Outcome> {
        let environment = match &self.command {
            Command::Run(run) => run.environment.as_deref(),
            _ => None,
        };
        let mut settings = configuration::load(&self.config, environment).context("cannot use the configuration")?;
        match self.command {
            Command::Run(run) => {
                run.apply(&mut settings);
                settings.check()?;
                start_log(&settings);
                for note in &settings.notes {
                    tracing::warn!("{note}");
                }
                tracing::info!(?settings, "settings");
                worker::run(settings, shutdown).await?;
                Ok(Outcome::Good)
            }
            Command::Build(build) => build.run(settings, &shutdown).await,
            Command::Enqueue(enqueue) => enqueue.run(&settings).await,
            Command::Cancel(cancel) => cancel.run(&settings).await,
            Command::Release(release) => release.run(&settings).await,
            Command::Plan(plan) => plan.run(&settings).await,
            Command::Builder(builder) => builder.run(&settings).await,
            Command::Doctor(doctor) => doctor.run(&settings).await,
        }
    }
}

impl Run {
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
            settings.notes.push(format!("-r {}: ignored; sidebake loads no Ruby", path.display()));
        }
    }
}

fn queue(text: &str) -> Result<Queue, &'static str> {
    Queue::parse(text).ok_or("expected NAME or NAME,WEIGHT")
}

/// Logs to standard output, as Sidekiq does.
fn start_log(settings: &Settings) {
    // kube logs the whole of an answer that it cannot read. The error itself is logged where it is handled.
    let filter = |level: &str| EnvFilter::try_new(format!("kube_client=error,{level}"));
    let filter = filter(&settings.log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match settings.log.format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stdout())).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Reads a JSON file, or standard input for `-`.
fn read_json(file: &str) -> anyhow::Result<serde_json::Value> {
    let text = if file == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.with_context(|| format!("cannot read {file}"))?;
    serde_json::from_str(&text).with_context(|| format!("{file} is not JSON"))
}
