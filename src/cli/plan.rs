//! `sidebake plan`: what a job would do. Asks Rails when the job carries only an id; fetches and builds nothing.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;

use super::read_json;
use crate::attestation::Attestation;
use crate::bake::{Bake, define_application};
use crate::builder::Builders;
use crate::hex;
use crate::job::arguments;
use crate::job::{BuildJob, Recipe};
use crate::rails::Resolver;
use crate::settings::Settings;
use crate::sidekiq::payload::Payload;
use crate::source::Worktrees;
use crate::state::StateDirectory;

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// A Sidekiq payload, as JSON; `-` reads standard input
    #[arg(value_name = "FILE")]
    file: String,
}

impl Plan {
    #[expect(clippy::print_stdout, reason = "the plan is the command's result")]
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let payload = Payload::parse(read_json(&self.file)?.to_string().as_bytes())?;
        let request = build_request(settings, &payload).await?;
        let job = BuildJob::parse(&request)?;
        println!("{:#}", plan(settings, &request, &job)?);
        Ok(ExitCode::SUCCESS)
    }
}

async fn build_request(settings: &Settings, payload: &Payload) -> anyhow::Result<Value> {
    let Some(class) = settings.jobs.classes.get(&payload.class) else {
        bail!("class {} is not in jobs.classes", payload.class);
    };
    let from = arguments::read(class, &payload.arguments()?)?;
    Ok(Resolver::new(settings.ca_file())?.build_request(from).await?)
}

fn plan(settings: &Settings, request: &Value, job: &BuildJob) -> anyhow::Result<Value> {
    let scratch = tempfile::tempdir().context("failed to make a temporary directory")?;
    let state = StateDirectory::open(scratch.path(), &format!("plan:{}", hex::random::<6>()))?;
    let builders = Builders::new(settings);
    let source = Worktrees::new(settings);
    let (location, placement) = builders.plan(&job.build, &state)?;
    let run = settings.state.directory.join("run/<process>/<job>");
    let working_directory = location
        .working_directory
        .strip_prefix(scratch.path())
        .map_or_else(|_| location.working_directory.clone(), |below| settings.state.directory.join(below));
    let (environment, arguments) = Bake::new(settings).describe(&location, &run.join("solve"));
    Ok(json!({
        "job": request,
        "trust": job.build.trust.name(),
        "notices": job.notices,
        "attestations": attestations(settings, job),
        "labels": settings.bake.labels,
        "source_date_epoch": job.build.source_date_epoch.unwrap_or(settings.bake.source_date_epoch).name(),
        "fetch": {"url": source.url(&job.build.repository), "sha": job.sha.as_str()},
        "definition": definition(job)?,
        "directories": {"worktree": run.join("tree").join(&job.build.repository.name), "working_directory": working_directory},
        "placement": placement,
        "argv": arguments,
        "environment": environment,
    }))
}

/// The attestations of images whose definition sets none.
fn attestations(settings: &Settings, job: &BuildJob) -> Value {
    let asked = |attestation| job.build.asked(attestation).unwrap_or(settings.bake.asked(attestation)).to_string();
    Attestation::ALL.map(|attestation| (attestation.name(), asked(attestation))).into_iter().collect()
}

/// The definition before buildx resolves it. For a file of the repository, which is not fetched, its path and its targets.
fn definition(job: &BuildJob) -> anyhow::Result<Value> {
    Ok(match &job.build.recipe {
        Recipe::Application(template) => serde_json::from_str(&define_application(template))?,
        Recipe::Inline(definition) => serde_json::from_str(definition)?,
        Recipe::Files(files) => {
            let targets = match job.build.targets.as_slice() {
                [] => vec!["default".to_owned()],
                targets => targets.to_vec(),
            };
            json!({"files": files.paths, "targets": targets})
        }
    })
}
