//! `sidebake release`: requeues the in-flight jobs of dead workers when no living worker can.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::redis::Redis;
use crate::settings::Settings;
use crate::sidekiq::recovery::{self, Released};

/// The grace period of `--now`. Once Redis answers, a living worker tries twice within it to make its lease.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Release {
    /// Wait one second for a worker to come back, instead of half a lease
    ///
    /// Use it only when no worker is left. Right after an outage of Redis, a living worker may have no lease yet. Other workers
    /// would then start its builds again, and it would kill its own.
    #[arg(long)]
    now: bool,
}

impl Release {
    #[expect(clippy::print_stdout, reason = "what was released is the command's result")]
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let grace = if self.now { MOMENT } else { settings.lease.ttl / 2 };
        let released = recovery::release(&Redis::new(&settings.redis)?, grace).await?;
        for Released { owner, n_jobs } in &released {
            match n_jobs {
                Some(n_jobs) => println!("{owner}: requeued {n_jobs} jobs"),
                None => println!("{owner}: alive, keeps its jobs"),
            }
        }
        if released.is_empty() {
            println!("no worker has jobs in flight");
        }
        Ok(ExitCode::SUCCESS)
    }
}
