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
    payload.jid == build || id_in(jobs, payload).is_some_and(|id| id == build)
}

/// The `build_id` in a job, or the id that it carries instead of a build request.
pub(super) fn id_in(jobs: &Jobs, payload: &Payload) -> Option<String> {
    let (class, args) = (jobs.classes.get(&payload.class)?, payload.arguments().ok()?);
    let id = match &class.arguments {
        Shape::Resolved(_) => args.value(0).ok()?,
        Shape::Native | Shape::Mapped => arguments::known(class, &args).get("build_id")?.clone(),
    };
    match id {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
