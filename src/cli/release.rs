//! `sidebake release`: puts what dead workers have left in flight back on its queues, where no worker is left to do it.

use std::time::Duration;

use clap::Args;

use super::Outcome;
use crate::redis::Redis;
use crate::settings::Settings;
use crate::sidekiq::recovery::{self, Released};

/// In which a worker that lives tries twice to have its lease again, once Redis answers.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Release {
    /// Waits a second, and not half a lease, to see whether a worker comes back: where none is left. One that lives, and has
    /// lost its lease by an outage that is not quite over, would have its builds started again by others, and kill its own.
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
                Some(n_jobs) => println!("{owner}: {n_jobs} jobs are back on their queues"),
                None => println!("{owner}: is alive, and keeps its jobs"),
            }
        }
        if released.is_empty() {
            println!("no worker has left anything");
        }
        Ok(Outcome::Good)
    }
}
