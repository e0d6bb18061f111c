//! The command line.

mod build;
mod builder;
mod cancel;
mod doctor;
mod enqueue;
mod list;
mod logs;
mod plan;
mod queue;
mod recorded;
mod release;
mod show;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

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
    /// A settings file (config/sidebake.toml shows every setting) or a sidekiq.yml; repeat for both
    #[arg(short = 'C', long, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run build jobs from Redis until a signal stops the worker
    Run(Run),
    /// Build one directory or repository now
    Build(build::Build),
    /// Enqueue a build job, as Rails does
    Enqueue(enqueue::Enqueue),
    /// Cancel a build that is queued, scheduled, waiting for a retry or running
    Cancel(cancel::Cancel),
    /// Print the live log of a build
    Logs(logs::Logs),
    /// Show what is recorded of a build
    Show(show::Show),
    /// List builds, the newest first
    List(list::List),
    /// Show the accounts whose builds wait in a queue
    Queue(queue::Queue),
    /// Say why the targets of a build were not cached
    Why(why::Why),
    /// Requeue in-flight jobs of dead workers
    Release(release::Release),
    /// Show what a job would do, without building
    Plan(plan::Plan),
    /// Create, show and change builders
    Builder(builder::Builder),
    /// Check everything that a worker needs
    Doctor(doctor::Doctor),
}

#[derive(Debug, Args)]
struct Run {
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

impl Cli {
    /// Runs the command; returns 1 when a build failed or was stopped, or a check is red.
    ///
    /// # Errors
    ///
    /// When the command could not run. The message is for the user.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
        let environment = match &self.command {
            Command::Run(run) => run.environment.as_deref(),
            _ => None,
        };
        let mut settings = configuration::load(&self.config, environment).context("failed to load the settings")?;
        match self.command {
            Command::Run(run) => {
                run.apply(&mut settings);
                settings.check()?;
                start_log(&settings);
                for note in &settings.notes {
                    tracing::warn!(event = "settings_note", "{note}");
                }
                tracing::info!(event = "settings_loaded", ?settings, "settings loaded");
                worker::run(settings, shutdown).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Build(build) => build.run(settings, &shutdown).await,
            Command::Enqueue(enqueue) => enqueue.run(&settings).await,
            Command::Cancel(cancel) => cancel.run(&settings).await,
            Command::Logs(logs) => logs.run(&settings).await,
            Command::Show(show) => show.run(&settings).await,
            Command::List(list) => list.run(&settings).await,
            Command::Queue(queue) => queue.run(&settings).await,
            Command::Why(why) => why.run(&settings).await,
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

/// Reads a JSON file, or standard input for `-`.
fn read_json(file: &str) -> anyhow::Result<serde_json::Value> {
    let text = if file == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.with_context(|| format!("failed to read {file}"))?;
    serde_json::from_str(&text).with_context(|| format!("{file} is not valid JSON"))
}
