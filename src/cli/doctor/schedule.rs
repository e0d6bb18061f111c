//! Whether Rails' own scheduled jobs and retries are in time beside workers.

use std::time::Duration;

use super::{Color, Finding};
use crate::clock::Epoch;
use crate::redis::{Redis, RedisError};
use crate::settings::{PollOthers, Settings};
use crate::sidekiq::poller::oldest_of_others;
use crate::sidekiq::processes::{Overdue, Processes, overdue};

/// The name of the finding.
const NAME: &str = "due jobs of Rails";

/// How much longer Ruby may take before it is a problem.
const MUCH: f64 = 1.5;

/// After so many intervals of the workers, a due job of Rails should have moved.
const LATE: u32 = 3;

/// What the list of processes means for jobs that wait for their time.
pub(super) async fn check(redis: &Redis, settings: &Settings) -> Finding {
    let found = async {
        let processes = Processes::read(redis).await?;
        let (now, jobs) = (Epoch::now(), &settings.jobs);
        Ok::<_, RedisError>((processes, overdue(redis, now).await?, oldest_of_others(redis, jobs, now).await?))
    };
    match found.await {
        Ok((processes, overdue, of_rails)) => judge(&processes, overdue, of_rails, settings),
        Err(error) => Finding::new(NAME, Color::Yellow, error.to_string()),
    }
}

/// `of_rails` is how long the oldest due job of Rails has waited.
fn judge(processes: &Processes, overdue: Option<Overdue>, of_rails: Option<Duration>, settings: &Settings) -> Finding {
    let waiting = overdue.map_or_else(String::new, |Overdue { n_jobs, oldest }| {
        format!("; {n_jobs} due jobs wait, the first one since {}", seconds(oldest))
    });
    let (n_ruby, n_workers) = (processes.ruby.len(), processes.n_workers);
    let (Some(now), Some(alone)) = (processes.ruby_looks_every(), processes.ruby_alone_looks_every()) else {
        return Finding::new(NAME, Color::Green, format!("no Ruby process, {n_workers} workers{waiting}"));
    };
    let who = format!("{n_ruby} Ruby processes beside {n_workers} workers look every {}", seconds(now));
    if n_workers > 0 && settings.jobs.poll_others != PollOthers::None {
        return judge_moved(processes, now, of_rails, settings, &who, &waiting);
    }
    if now.as_secs_f64() < MUCH * alone.as_secs_f64() {
        return Finding::new(NAME, Color::Green, format!("{who}{waiting}"));
    }
    let remedy = format!("set jobs.poll_others = \"plain\", or {}", shorter_interval(processes));
    Finding::new(NAME, Color::Yellow, format!("{who}, not {}: {remedy}{waiting}", seconds(alone)))
}

/// The finding where workers move jobs of Rails too. `now` is how often Ruby looks.
fn judge_moved(
    processes: &Processes,
    now: Duration,
    of_rails: Option<Duration>,
    settings: &Settings,
    who: &str,
    waiting: &str,
) -> Finding {
    let every = settings.jobs.poll_interval_average.unwrap_or(settings.jobs.poll_interval);
    let (moved, setting) = match settings.jobs.poll_others {
        PollOthers::All => ("jobs of Rails", ""),
        PollOthers::Plain | PollOthers::None => ("plain jobs", "jobs.poll_others = \"all\", or "),
    };
    let who = format!("{who}, and workers move {moved} every {}", seconds(every));
    let Some(waited) = of_rails.filter(|waited| *waited > LATE * every.min(now)) else {
        return Finding::new(NAME, Color::Green, format!("{who}{waiting}"));
    };
    let remedy = format!(
        "set {setting}{}; check that workers may push to Rails' queues and run this version",
        shorter_interval(processes)
    );
    let detail = format!("{who}; a due job of Rails has waited {}: {remedy}{waiting}", seconds(waited));
    Finding::new(NAME, Color::Yellow, detail)
}

/// The setting with which Ruby looks as often as without workers.
fn shorter_interval(processes: &Processes) -> String {
    let interval = processes.interval_for_ruby().as_secs_f64();
    format!("average_scheduled_poll_interval to {interval:.2} in Rails' sidekiq.yml")
}

fn seconds(duration: Duration) -> String {
    format!("{:.0} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(n_ruby: usize, n_workers: usize, poll_others: PollOthers) -> (Color, String) {
        judged_after(None, n_ruby, n_workers, poll_others)
    }

    /// `waited` is how many seconds the oldest due job of Rails has waited.
    fn judged_after(waited: Option<u64>, n_ruby: usize, n_workers: usize, poll_others: PollOthers) -> (Color, String) {
        let mut settings = Settings::default();
        settings.jobs.poll_others = poll_others;
        let processes = Processes { n_workers, ruby: vec![Some([8, 1, 7]); n_ruby] };
        let Finding { health, detail, .. } = judge(&processes, None, waited.map(Duration::from_secs), &settings);
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
    fn jobs_of_rails_that_workers_do_not_move_are_found() {
        assert_eq!(judged_after(Some(15), 1, 9, PollOthers::Plain).0, Color::Green);
        assert_eq!(
            judged_after(Some(16), 1, 9, PollOthers::Plain),
            (
                Color::Yellow,
                "1 Ruby processes beside 9 workers look every 50 s, and workers move plain jobs every 5 s; a due job of Rails \
                 has waited 16 s: set jobs.poll_others = \"all\", or average_scheduled_poll_interval to 0.50 in Rails' \
                 sidekiq.yml; check that workers may push to Rails' queues and run this version"
                    .into()
            )
        );
        let (health, detail) = judged_after(Some(90), 1, 9, PollOthers::All);
        assert!(health == Color::Yellow && !detail.contains("poll_others"), "{detail}");
    }

    #[test]
    fn waiting_jobs_are_counted() {
        let overdue = Some(Overdue { n_jobs: 7, oldest: Duration::from_secs(90) });
        let Finding { detail, .. } = judge(&Processes::default(), overdue, None, &Settings::default());
        assert_eq!(detail, "no Ruby process, 0 workers; 7 due jobs wait, the first one since 90 s");
    }
}
