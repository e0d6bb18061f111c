//! `sidebake show`: what is recorded of a build. Needs Redis alone.

mod page;

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::recorded::{Recorded, print};
use crate::clock::Epoch;
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The jid or the build_id
    #[arg(value_name = "BUILD_ID|JID")]
    build: String,
    /// Print a JSON object with all attempts
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let build = match Recorded::open(settings, &self.build).await? {
            Ok(build) => build,
            Err(status) => return Ok(status),
        };
        if self.json {
            let attempts: Vec<&Value> = build.record.attempts.iter().map(|attempt| &attempt.json).collect();
            let (state, owner) = (build.state.name(), build.state.owner());
            print(&format!("{}\n", json!({"id": build.id, "state": state, "owner": owner, "attempts": attempts})));
        } else {
            print(&page::page(&build, Epoch::now()));
        }
        Ok(build.exit_status())
    }
}
