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
mod run;
mod show;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::configuration;
use crate::worker::Shutdown;

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
    Run(run::Run),
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

impl Cli {
    /// Whether HUP is for the program: it makes a worker read the level of its log again, and ends every other command.
    pub fn obeys_hang_up(&self) -> bool {
        matches!(self.command, Command::Run(_))
    }

    /// Runs the command; returns 1 when a build failed or was stopped, or a check is red.
    ///
    /// # Errors
    ///
    /// When the command could not run. The message is for the user.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
        let environment = match &self.command {
            Command::Run(run) => run.environment(),
            _ => None,
        };
        let settings = configuration::load(&self.config, environment).context("failed to load the settings")?;
        match self.command {
            Command::Run(run) => run.run(settings, &self.config, shutdown).await,
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

/// Reads a JSON file, or standard input for `-`.
fn read_json(file: &str) -> anyhow::Result<serde_json::Value> {
    let text = if file == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.with_context(|| format!("failed to read {file}"))?;
    serde_json::from_str(&text).with_context(|| format!("{file} is not valid JSON"))
}
