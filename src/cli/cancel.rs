//! `sidebake cancel`: cancels a build wherever it is. The callback notifies Rails.

use anyhow::bail;
use clap::Args;
use serde_json::Value;
use std::process::ExitCode;

use crate::clock::Epoch;
use crate::job::arguments;
use crate::redis::Redis;
use crate::settings::{Jobs, Settings, Shape};
use crate::sidekiq::cancel::{cancel, find};
use crate::sidekiq::payload::Payload;

#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// The jid or the build_id; for a class whose jobs carry only an id, that id
    #[arg(value_name = "BUILD_ID|JID")]
    build: String,
}

impl Cancel {
    #[expect(clippy::print_stdout, reason = "what was cancelled is the command's result")]
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let redis = Redis::new(&settings.redis)?;
        let found = find(&redis, |payload| is_meant(&settings.jobs, payload, &self.build)).await?;
        if found.is_empty() {
            bail!("no build {} is queued, scheduled, waiting for a retry or running", self.build);
        }
        for job in &found {
            cancel(&redis, &settings.jobs, job, Epoch::now()).await?;
            println!("{} {}", job.jid, job.location);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether this is a job of this worker's classes with this jid or `build_id`. A job that carries only an id has it as its first
/// argument.
pub(super) fn is_meant(jobs: &Jobs, payload: &Payload, build: &str) -> bool {
    if !jobs.runs(&payload.class) {
        return false;
    }
    if payload.jid == build {
        return true;
    }
    let (Some(class), Ok(args)) = (jobs.classes.get(&payload.class), payload.arguments()) else { return false };
    let is_it = |id: Option<&Value>| match id {
        Some(Value::String(text)) => text == build,
        Some(Value::Number(number)) => number.to_string() == build,
        _ => false,
    };
    match class.arguments {
        Shape::Resolved => is_it(args.value(0).ok().as_ref()),
        Shape::Native | Shape::Mapped => is_it(arguments::known(class, &args).get("build_id")),
    }
}
