//! `sidebake doctor`: checks everything that a worker needs. Prints a line for each check; exits with 1 when one is red.

mod network;
mod schedule;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::bake::Bake;
use crate::builder::{BuilderStatus, Builders, PlaceRequest, Worker};
use crate::github::App;
use crate::hex;
use crate::job::{Build, Recipe, Repository, Trust};
use crate::log_archive;
use crate::log_stream;
use crate::redis::{Redis, RedisError};
use crate::sandbox;
use crate::settings::{self, Limits, SandboxMode, Settings};
use crate::sidekiq::{limits, rights};
use crate::source::Worktrees;
use crate::state::{StateDirectory, StateError};
use crate::version::{Ability, Program, Version};

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Print a JSON array instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    health: Color,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Color {
    Green,
    Yellow,
    Red,
}

impl Finding {
    fn new(name: &str, health: Color, detail: impl Into<String>) -> Self {
        Self { name: name.into(), health, detail: detail.into() }
    }

    /// Green with the result, red with the error.
    fn of(name: &str, found: Result<String, impl std::fmt::Display>) -> Self {
        match found {
            Ok(detail) => Self::new(name, Color::Green, detail),
            Err(error) => Self::new(name, Color::Red, error.to_string()),
        }
    }
}

impl Doctor {
    #[expect(clippy::print_stdout, reason = "the findings are the command's result")]
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let mut findings = redis(settings).await;
        findings.push(github(settings).await);
        findings.extend(network::findings(settings).await);
        findings.extend(mtimes(settings));
        findings.push(buildx(settings).await);
        findings.extend(builders(settings).await);
        findings.push(kernel(&settings.sandbox));
        findings.push(disk(settings));
        let archive = log_archive::probe(settings).await;
        findings.extend(archive.map(|found| Finding::of("log archive", found.map(|url| format!("{url} takes logs")))));
        if self.json {
            println!("{}", serde_json::to_string_pretty(&findings)?);
        } else {
            for finding in &findings {
                let mark = match finding.health {
                    Color::Green => "ok  ",
                    Color::Yellow => "warn",
                    Color::Red => "FAIL",
                };
                println!("{mark}  {:<18} {}", finding.name, finding.detail);
            }
        }
        let is_red = findings.iter().any(|finding| finding.health == Color::Red);
        Ok(if is_red { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

async fn redis(settings: &Settings) -> Vec<Finding> {
    let redis = match Redis::new(&settings.redis) {
        Ok(redis) => redis,
        Err(error) => return vec![Finding::new("redis", Color::Red, error.to_string())],
    };
    let info = match redis.server_info().await {
        Ok(info) => info,
        Err(error) => return vec![Finding::new("redis", Color::Red, error.to_string())],
    };
    let mut findings = vec![Finding::new("redis", Color::Green, format!("version {}", info.version))];
    for (about, good) in [("redis memory", "noeviction"), ("redis persistence", "append-only file")] {
        if info.troubles.iter().all(|trouble| trouble.about != about) {
            findings.push(Finding::new(about, Color::Green, good));
        }
    }
    findings.extend(info.troubles.into_iter().map(|trouble| {
        let health = if trouble.is_fatal { Color::Red } else { Color::Yellow };
        Finding::new(trouble.about, health, trouble.message)
    }));
    findings.push(commands(settings).await);
    findings.extend(log_stream(settings).await);
    findings.extend(tracking(settings).await);
    findings.push(schedule::check(&redis, settings).await);
    findings.extend(limits(&redis, settings).await);
    findings
}

/// Whether other workers have other limits of tenants.
async fn limits(redis: &Redis, settings: &Settings) -> Option<Finding> {
    let own = settings.tenants.own_limits();
    let others: Vec<Limits> = limits::of_fleet(redis).await.ok()?.into_iter().filter(|other| *other != own).collect();
    let other = others.first()?;
    let shown = serde_json::to_string(other).unwrap_or_default();
    let more = if others.len() > 1 { format!(", and {} more", others.len() - 1) } else { String::new() };
    let detail = format!("other workers have other limits; the stricter one holds: {shown}{more}");
    Some(Finding::new("tenant limits", Color::Yellow, detail))
}

/// Whether the user may use every command that a worker sends.
async fn commands(settings: &Settings) -> Finding {
    let missing = match Redis::new(&settings.redis) {
        Ok(redis) => rights::missing(redis, rights::COMMANDS).await,
        Err(error) => Err(error),
    };
    let found = match missing.map_err(|error| error.to_string()) {
        Ok(missing) if missing.is_empty() => Ok("the user may use all commands that a worker needs".to_owned()),
        Ok(missing) => {
            Err(format!("the ACL of this user lacks {}; docs/redis.md has the complete ACL", missing.join(", ")))
        }
        Err(error) => Err(error),
    };
    Finding::of("redis commands", found)
}

/// Whether the live logs can be written. Builds do not need them, so this is never red.
async fn log_stream(settings: &Settings) -> Option<Finding> {
    if !settings.journal.stream {
        return None;
    }
    let missing = match Redis::new(&settings.redis_of_logs()) {
        Ok(redis) => rights::missing(redis, log_stream::COMMANDS).await,
        Err(error) => Err(error),
    };
    let (health, detail) = match missing {
        Ok(missing) if missing.is_empty() => (Color::Green, "the user may write live logs".to_owned()),
        Ok(missing) => {
            (Color::Yellow, format!("the ACL of this user lacks {}: builds have no live log", missing.join(", ")))
        }
        Err(error) => (Color::Yellow, format!("builds have no live log: {error}")),
    };
    Some(Finding::new("live log", health, detail))
}

/// Whether the connection that fetches jobs works, and whether Redis can push new jobs to an idle worker.
async fn tracking(settings: &Settings) -> Option<Finding> {
    let asked = async {
        let redis = Redis::waking(&settings.redis, Vec::new(), Arc::default())?;
        redis.query::<String>(&redis::cmd("PING")).await?;
        Ok::<_, RedisError>(redis.has_tracking())
    };
    let message = "no CLIENT TRACKING: workers poll for new jobs twice a second";
    match asked.await {
        Ok(true) => None,
        Ok(false) => Some(Finding::new("redis tracking", Color::Yellow, message)),
        Err(error) => Some(Finding::new("redis tracking", Color::Red, error.to_string())),
    }
}

async fn github(settings: &Settings) -> Finding {
    let name = async {
        App::new(settings).map_err(|error| error.to_string())?.name().await.map_err(|error| error.to_string())
    };
    Finding::of("github app", name.await.map(|name| format!("{name:?} at {}", settings.github.api_url)))
}

/// Whether there is a key for modification times from content, if a repository has them.
fn mtimes(settings: &Settings) -> Option<Finding> {
    let key = settings.source.needs_mtimes_key().then(|| Worktrees::new(settings).configured_mtimes_key())?;
    Some(Finding::of("source.mtimes_key", key.map(|_| "a key for times from content".to_owned())))
}

async fn buildx(settings: &Settings) -> Finding {
    let bake = Bake::new(settings);
    let version = match bake.version().await {
        Ok(version) => version,
        Err(error) => return Finding::new("buildx", Color::Red, error.to_string()),
    };
    let health = match (version.can(Ability::Progress), version.can(Ability::EndsWithPod)) {
        (false, _) => Color::Red,
        (true, false) => Color::Yellow,
        (true, true) => Color::Green,
    };
    Finding::new("buildx", health, format!("{version}{}", lacking(version, |_| true)))
}

/// What a version cannot do that matters, for the end of a sentence.
fn lacking(version: &Version, matters: impl Fn(Ability) -> bool) -> String {
    let lacking = version.lacking().filter(|(ability, ..)| matters(*ability));
    lacking.map(|(_, first, instead)| format!("; before {first}, {instead}")).collect()
}

/// The state of each builder, and whether it would take a build.
async fn builders(settings: &Settings) -> Vec<Finding> {
    if settings.builders.is_empty() {
        return vec![Finding::new("builder", Color::Red, "no builder is configured")];
    }
    let mut findings = Vec::new();
    let all = Builders::new(settings);
    for name in all.names() {
        let label = format!("builder {name}");
        findings.push(Finding::of(&label, try_builder(settings, &all, name).await));
        for status in all.status(name).await.unwrap_or_default() {
            let drift = status.drift.iter().map(|one| format!("{} is {}, not {}", one.path, one.live, one.configured));
            let drift: Vec<String> = drift.collect();
            if !drift.is_empty() {
                let shard = status.shard.map(|shard| format!("{shard}: ")).unwrap_or_default();
                let detail = format!("{shard}{}; `sidebake builder apply` changes it", drift.join(", "));
                findings.push(Finding::new(&label, Color::Yellow, detail));
            }
        }
        let accounts: Vec<String> = settings.builders[name].accounts.iter().map(ToString::to_string).collect();
        if accounts != ["*"] || all.names().count() == 1 {
            findings.push(sharing(&label, &accounts));
        }
    }
    findings
}

/// Which accounts share a builder's layers: an operator must know it, and nothing else shows it.
fn sharing(label: &str, accounts: &[String]) -> Finding {
    let who = if accounts == ["*"] { "every account".to_owned() } else { accounts.join(", ") };
    let detail = match accounts {
        [one] if !one.contains('*') => format!("only for account {one}"),
        _ => format!("shared by {who}: they can read each other's layers and cached files"),
    };
    Finding::new(label, Color::Green, detail)
}

async fn try_builder(settings: &Settings, builders: &Builders, name: &str) -> anyhow::Result<String> {
    let mut builder = settings.builders.get(name).context("the builder is configured")?.clone();
    // The user waits for the answer, and a pod that is not ready now is a failed check.
    builder.timeout = Duration::ZERO;
    let own = Builders::new(&Settings { builders: [(name.to_owned(), builder)].into(), ..settings.clone() });
    let scratch = tempfile::tempdir()?;
    let state = open_state(scratch.path())?;
    let account = settings.builders.get(name).and_then(|builder| builder.accounts.first());
    let repository = Repository { owner: "doctor".into(), name: "doctor".into() };
    let build = Build {
        account: account.map(|pattern| pattern.to_string().replace('*', "x")).unwrap_or_default(),
        builder: Some(name.to_owned()),
        ..Build::new(repository, Trust::Fork, Recipe::Inline("{}".into()))
    };
    let directory = state.job_directory()?;
    let session = own.place(PlaceRequest::new(&build, &state, &directory)).await?;
    if session.has_others() {
        let Worker { hostname, buildkit, machine } = session.dial().await?;
        let buildkit = match buildkit.map(|version| Version::of(Program::BuildKit, &version)) {
            Some(version) => {
                let builder = &settings.builders[name];
                let matters = |ability| match ability {
                    Ability::DiskLimits => builder.shards.is_some(),
                    Ability::BasePlatforms => builder.emulation,
                    _ => true,
                };
                format!("BuildKit {version}{}", lacking(&version, matters))
            }
            None => "BuildKit of an unknown version".to_owned(),
        };
        let statuses = builders.status(name).await?;
        let of =
            |status: &BuilderStatus| format!("{}: {} of {} pods ready", status.at, status.n_ready, status.n_wanted);
        if let Some((status, why)) = statuses.iter().find_map(|status| Some((status, status.why.as_ref()?))) {
            anyhow::bail!("{}: {why}", status.at);
        }
        let all: Vec<String> = statuses.iter().map(of).collect();
        let own = machine.own().map(|own| format!(" on {own}")).unwrap_or_default();
        return Ok(format!("{}; {hostname} answers: {buildkit}{own}", all.join("; ")));
    }
    let endpoint = builders.status(name).await?.remove(0).at;
    let connect = async {
        match (endpoint.strip_prefix("unix://"), endpoint.strip_prefix("tcp://")) {
            (Some(path), _) => tokio::net::UnixStream::connect(path).await.map(drop),
            (_, Some(address)) => tokio::net::TcpStream::connect(address).await.map(drop),
            _ => Ok(()),
        }
    };
    tokio::time::timeout(Duration::from_secs(5), connect)
        .await
        .map_err(|_| anyhow::anyhow!("{endpoint} does not answer"))??;
    Ok(format!("{endpoint} answers"))
}

fn kernel(settings: &settings::Sandbox) -> Finding {
    let missing = sandbox::missing_walls();
    if settings.mode == SandboxMode::Off {
        let although = if missing.is_empty() { ", although this kernel can enforce it" } else { "" };
        return Finding::new("sandbox", Color::Yellow, format!("switched off{although}"));
    }
    let is_required = missing.iter().any(|wall| wall.is_required(settings));
    let color = match missing.as_slice() {
        [] => Color::Green,
        _ if is_required => Color::Red,
        _ => Color::Yellow,
    };
    let lacks: String = missing.iter().map(|wall| format!("; {}", wall.lack())).collect();
    Finding::new("sandbox", color, sandbox::enforced() + &lacks)
}

/// The state directory at `path`, beside the workers that use it.
fn open_state(path: &Path) -> Result<StateDirectory, StateError> {
    StateDirectory::open(path, &format!("doctor:{}", hex::random::<6>()))
}

fn disk(settings: &Settings) -> Finding {
    let (path, min_free_bytes) = (&settings.state.directory, settings.state.min_free_bytes);
    let opened = open_state(path);
    match opened.and_then(|state| state.free_bytes()) {
        Ok(free) if free < min_free_bytes => {
            let (free, min) = (free >> 20, min_free_bytes >> 20);
            let detail = format!("{free} MiB free in {}; a worker fetches no jobs below {min} MiB", path.display());
            Finding::new("disk", Color::Red, detail)
        }
        Ok(free) => Finding::new("disk", Color::Green, format!("{} MiB free in {}", free >> 20, path.display())),
        Err(error) => Finding::new("disk", Color::Red, error.to_string()),
    }
}
