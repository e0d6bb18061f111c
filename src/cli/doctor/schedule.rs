//! Whether Rails' own scheduled jobs and retries are in time beside workers.

use std::time::Duration;

use super::{Color, Finding};
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError};
use crate::settings::{PollOthers, Settings};
use crate::sidekiq::processes::{Overdue, Processes, overdue};

/// The name of the finding.
const NAME: &str = "due jobs of Rails";

/// How much longer Ruby may take before it is a problem.
const MUCH: f64 = 1.5;

/// What the list of processes means for jobs that wait for their time.
pub(super) async fn check(redis: &Redis, settings: &Settings) -> Finding {
    let found = async {
        let processes = Processes::read(redis).await?;
        Ok::<_, RedisError>((processes, overdue(redis, Epoch::now()).await?))
    };
    match found.await {
        Ok((processes, overdue)) => judge(&processes, overdue, settings),
        Err(error) => Finding::new(NAME, Color::Yellow, error.to_string()),
    }
}

fn judge(processes: &Processes, overdue: Option<Overdue>, settings: &Settings) -> Finding {
    let waiting = overdue.map_or_else(String::new, |Overdue { n_jobs, oldest }| {
        format!("; {n_jobs} due jobs wait, the first one since {}", seconds(oldest))
    });
    let (n_ruby, n_workers) = (processes.ruby.len(), processes.n_workers);
    let (Some(now), Some(alone)) = (processes.ruby_looks_every(), processes.ruby_alone_looks_every()) else {
        return Finding::new(NAME, Color::Green, format!("no Ruby process, {n_workers} workers{waiting}"));
    };
    let who = format!("{n_ruby} Ruby processes beside {n_workers} workers look every {}", seconds(now));
    if settings.jobs.poll_others != PollOthers::None && n_workers > 0 {
        let every = seconds(settings.jobs.poll_interval_average.unwrap_or(settings.jobs.poll_interval));
        return Finding::new(NAME, Color::Green, format!("{who}, and workers every {every}{waiting}"));
    }
    if now.as_secs_f64() < MUCH * alone.as_secs_f64() {
        return Finding::new(NAME, Color::Green, format!("{who}{waiting}"));
    }
    let interval = processes.interval_for_ruby().as_secs_f64();
    let remedy = format!(
        "set jobs.poll_others = \"plain\", or average_scheduled_poll_interval to {interval:.2} in Rails' sidekiq.yml"
    );
    Finding::new(NAME, Color::Yellow, format!("{who}, not {}: {remedy}{waiting}", seconds(alone)))
}

fn seconds(duration: Duration) -> String {
    format!("{:.0} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(n_ruby: usize, n_workers: usize, poll_others: PollOthers) -> (Color, String) {
        let mut settings = Settings::default();
        settings.jobs.poll_others = poll_others;
        let processes = Processes { n_workers, ruby: vec![Some([8, 1, 7]); n_ruby] };
        let Finding { health, detail, .. } = judge(&processes, None, &settings);
        (health, detail)
    }

    #[test]
    fn workers_that_delay_rails_are_found_with_the_settings_that_help() {
        let (health, detail) = judged(1, 9, PollOthers::None);
        assert_eq!(health, Color::Yellow);
        assert_eq!(
            detail,
            "1 Ruby processes beside 9 workers look every 50 s, not 5 s: set jobs.poll_others = \"plain\", or \
             average_scheduled_poll_interval to 0.50 in Rails' sidekiq.yml"
        );
        assert_eq!(judged(1, 9, PollOthers::Plain).0, Color::Green);
        assert_eq!(judged(30, 1, PollOthers::None).0, Color::Green);
        assert_eq!(judged(0, 9, PollOthers::None), (Color::Green, "no Ruby process, 9 workers".into()));
    }

    #[test]
    fn waiting_jobs_are_counted() {
        let overdue = Some(Overdue { n_jobs: 7, oldest: Duration::from_secs(90) });
        let Finding { detail, .. } = judge(&Processes::default(), overdue, &Settings::default());
        assert_eq!(detail, "no Ruby process, 0 workers; 7 due jobs wait, the first one since 90 s");
    }
}
