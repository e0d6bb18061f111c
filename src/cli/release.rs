//! `sidebake release`: requeues in-flight jobs of dead workers, where no living worker does it.

use std::time::Duration;

use clap::Args;

use super::Outcome;
use crate::redis::Redis;
use crate::settings::Settings;
use crate::sidekiq::recovery::{self, Released};

/// Enough for a living worker to renew its lease twice, once Redis answers.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Release {
    /// Wait one second instead of half a lease for a worker to come back. Use it when no worker is left: a living worker that
    /// lost its lease in an outage would kill its builds, and another worker would start them again.
    #[arg(long)]
    now: bool,
}

impl Release {
    #[expect(clippy::print_stdout, reason = "what was released is the command's result")]
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let grace = if self.now { MOMENT } else { settings.lease.ttl / 2 };
        let released = recovery::release(&Redis::new(&settings.redis)?, grace).await?;
        for Released { owner, n_jobs } in &released {
            match n_jobs {
                Some(n_jobs) => println!("{owner}: requeued {n_jobs} jobs"),
                None => println!("{owner}: alive; keeps its jobs"),
            }
        }
        if released.is_empty() {
            println!("found no job of a dead worker");
        }
        Ok(Outcome::Good)
    }
}
