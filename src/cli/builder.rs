//! `sidebake builder ensure|status|apply`: the builders themselves, for operators and for deployments.

use anyhow::bail;
use clap::{Args, Subcommand};
use std::process::ExitCode;

use crate::builder::{BuilderStatus, Builders, Counts, PodStatus, of_fleet};
use crate::redis::Redis;
use crate::settings::Settings;
use crate::sidekiq::keys;

#[derive(Debug, Args)]
pub(super) struct Builder {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create missing builders and wait until they are ready; change nothing that exists
    Ensure(Names),
    /// Show each builder's pods, and the differences between its Deployment and the configuration
    Status {
        #[command(flatten)]
        names: Names,
        /// Print a JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Change Deployments to the configuration, shards one after the other, and wait until they are ready
    Apply(Names),
}

#[derive(Debug, Args)]
struct Names {
    /// Names of builders; default: all
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

impl Builder {
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let builders = Builders::new(settings);
        match self.verb {
            Verb::Ensure(names) => ensure(&builders, &names.of(&builders)?).await,
            Verb::Apply(names) => apply(&builders, &names.of(&builders)?).await,
            Verb::Status { names, json } => status(settings, &builders, &names.of(&builders)?, json).await,
        }
    }
}

impl Names {
    fn of(self, builders: &Builders) -> anyhow::Result<Vec<String>> {
        let names = if self.names.is_empty() { builders.names().map(str::to_owned).collect() } else { self.names };
        if names.is_empty() {
            bail!("no builder is configured");
        }
        Ok(names)
    }
}

#[expect(clippy::print_stdout, reason = "the answer is the command's result")]
async fn ensure(builders: &Builders, names: &[String]) -> anyhow::Result<ExitCode> {
    for name in names {
        let are_new = builders.ensure(name).await?;
        for (is_new, status) in are_new.into_iter().zip(builders.status(name).await?) {
            println!("{name}: {} {}", status.at, if is_new { "created and ready" } else { "exists and is ready" });
            print_drift(&status);
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the answer is the command's result")]
async fn apply(builders: &Builders, names: &[String]) -> anyhow::Result<ExitCode> {
    for name in names {
        for BuilderStatus { at, drift, .. } in builders.apply(name).await? {
            println!("{name}: {at} matches the configuration and is ready");
            for drift in drift {
                println!("  {}: changed from {} to {}", drift.path, drift.live, drift.configured);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the answer is the command's result")]
async fn status(settings: &Settings, builders: &Builders, names: &[String], as_json: bool) -> anyhow::Result<ExitCode> {
    let running = running(settings).await;
    let mut all = Vec::new();
    for name in names {
        let mut statuses = builders.status(name).await?;
        for pod in statuses.iter_mut().flat_map(|status| &mut status.pods) {
            let n = |counts: &Counts| counts.get(name).and_then(|pods| pods.get(&pod.name)).copied().unwrap_or(0);
            pod.n_builds = running.as_ref().map(n);
        }
        all.extend(statuses);
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        all.iter().for_each(print_status);
    }
    let is_good = |status: &BuilderStatus| status.exists && status.why.is_none();
    Ok(if all.iter().all(is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The running builds of the fleet; `None` when Redis does not answer.
async fn running(settings: &Settings) -> Option<Counts> {
    of_fleet(&Redis::new(&settings.redis).ok()?, keys::OCCUPANCIES).await.ok()
}

#[expect(clippy::print_stdout, reason = "the answer is the command's result")]
fn print_status(status: &BuilderStatus) {
    let state = match (status.driver, status.exists) {
        ("kubernetes", false) => "missing; `sidebake builder ensure` creates it".to_owned(),
        ("kubernetes", true) => format!("{} of {} pods ready", status.n_ready, status.n_wanted),
        _ => "not managed by sidebake".to_owned(),
    };
    println!("{}  {}  {}  {state}  for {}", status.builder, status.driver, status.at, status.accounts.join(", "));
    if !status.pods.is_empty() {
        println!("  {:<40} {:<20} {:>6} {:<6} {:>8} {:>8}", "POD", "NODE", "AGE", "READY", "RESTARTS", "BUILDS");
        for pod in &status.pods {
            print_pod(pod);
        }
    }
    if let Some(why) = &status.why {
        println!("  problem: {why}");
    }
    print_drift(status);
}

#[expect(clippy::print_stdout, reason = "the answer is the command's result")]
fn print_pod(pod: &PodStatus) {
    let ready = match (pod.is_going, pod.is_ready) {
        (true, _) => "stopping",
        (false, true) => "yes",
        (false, false) => "no",
    };
    let node = pod.node.as_deref().unwrap_or("none");
    let age = pod.age_s.map(age).unwrap_or_default();
    let builds = pod.n_builds.map_or("?".to_owned(), |n| n.to_string());
    println!("  {:<40} {node:<20} {age:>6} {ready:<6} {:>8} {builds:>8}", pod.name, pod.n_restarts);
}

#[expect(clippy::print_stdout, reason = "the answer is the command's result")]
fn print_drift(status: &BuilderStatus) {
    for drift in &status.drift {
        println!("  drift: {} is {}; configured: {}", drift.path, drift.live, drift.configured);
    }
}

/// Seconds as kubectl shows an age.
fn age(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
