//! `sidebake cancel`: ends a build wherever it is. Rails gets its callback.

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::Outcome;
use crate::clock::Epoch;
use crate::job::arguments;
use crate::redis::Redis;
use crate::settings::{Jobs, Settings, Shape};
use crate::sidekiq::cancel::{cancel, find};
use crate::sidekiq::payload::Payload;

#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// Jid, or `build_id` of the build request, or the id that a `resolved` job carries.
    #[arg(value_name = "BUILD_ID|JID")]
    build: String,
}

impl Cancel {
    #[expect(clippy::print_stdout, reason = "what was cancelled is the command's result")]
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let redis = Redis::new(&settings.redis)?;
        let found = find(&redis, |payload| is_meant(&settings.jobs, payload, &self.build)).await?;
        if found.is_empty() {
            bail!("found no build {} that is queued, scheduled, waiting for a retry or running", self.build);
        }
        for job in &found {
            cancel(&redis, &settings.jobs, job, Epoch::now()).await?;
            println!("{} {}", job.jid, job.place);
        }
        Ok(Outcome::Good)
    }
}

/// Whether this worker runs the job, and `build` is its jid, its `build_id`, or the id that a `resolved` job carries.
fn is_meant(jobs: &Jobs, payload: &Payload, build: &str) -> bool {
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
