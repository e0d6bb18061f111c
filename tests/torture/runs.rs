//! Finds jobs that ran twice at the same time, in the logs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::fleet::Fleet;
use crate::relay::Span;

/// A worker must kill lost jobs within this time after it can know of the loss.
pub const KILLED_WITHIN: Duration = Duration::from_secs(2);

/// The event of a run's start.
pub const STARTED: &str = "job_started";

/// Whether this is the event of a run's start or end.
pub fn is_start_or_end(event: &str) -> bool {
    let ends = ["job_done", "job_requeued", "job_retried", "job_failed", "job_stopped", "job_dropped"];
    event == STARTED || ends.contains(&event)
}

/// One run of one job, according to a log.
struct Run {
    log: PathBuf,
    /// The token of its entry in flight. A worker may fetch a lost job again before it knows of the loss.
    token: String,
    begun: SystemTime,
    ended: Option<SystemTime>,
}

/// A job that ran twice at the same time.
pub struct Overlap {
    pub jid: String,
    /// From the moment when the first worker could know, to the end of its run.
    pub loser_lived_on: Duration,
}

/// The overlaps and counts from the logs.
pub struct Runs {
    pub n: usize,
    pub overlaps: Vec<Overlap>,
}

impl Runs {
    pub async fn read(fleet: &Fleet) -> Self {
        let (deaths, freezes) = fleet.records().await;
        let runs = runs(fleet, &deaths.into_iter().collect());
        Self { n: runs.values().map(Vec::len).sum(), overlaps: overlaps(&runs, &freezes, &fleet.outages()) }
    }
}

fn overlaps(runs: &BTreeMap<String, Vec<Run>>, freezes: &[(PathBuf, Span)], outages: &[Span]) -> Vec<Overlap> {
    let mut found = Vec::new();
    for (jid, of_job) in runs {
        for pair in of_job.windows(2) {
            let ended = pair[0].ended.unwrap_or_else(SystemTime::now);
            if ended > pair[1].begun {
                let could_know = could_know(&pair[0], &pair[1], ended, freezes, outages);
                let loser_lived_on = ended.duration_since(could_know).unwrap_or_default();
                found.push(Overlap { jid: jid.clone(), loser_lived_on });
            }
        }
    }
    found
}

/// A worker can know only while it runs, and only after the loss.
fn could_know(
    loser: &Run,
    winner: &Run,
    ended: SystemTime,
    freezes: &[(PathBuf, Span)],
    outages: &[Span],
) -> SystemTime {
    let of_loser = freezes.iter().filter(|(log, _)| *log == loser.log).map(|(_, span)| span);
    let awake = of_loser.filter(|(since, until)| *since < ended && *until > loser.begun).map(|(_, until)| *until).max();
    let mut could_know = awake.unwrap_or(winner.begun).max(winner.begun);
    for (since, until) in outages {
        if *since < could_know + KILLED_WITHIN && *until > could_know {
            could_know = *until;
        }
    }
    could_know
}

/// Every run of every job, in the order of their starts.
fn runs(fleet: &Fleet, deaths: &BTreeMap<PathBuf, SystemTime>) -> BTreeMap<String, Vec<Run>> {
    let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for log in fleet.logs() {
        let content = std::fs::read_to_string(&log).unwrap();
        for entry in content.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let field = |name: &str| entry["fields"][name].as_str().unwrap_or_default();
            let Some(at) = entry["timestamp"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok()) else {
                continue;
            };
            if field("jid").is_empty() || !is_start_or_end(field("event")) {
                continue;
            }
            let at = SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(at.as_microsecond()).unwrap());
            let (of_job, token) = (runs.entry(field("jid").to_owned()).or_default(), field("token"));
            if field("event") == STARTED {
                of_job.push(Run { log: log.clone(), token: token.to_owned(), begun: at, ended: None });
            } else if let Some(run) = of_job.iter_mut().find(|run| run.log == log && run.token == token) {
                run.ended = Some(at);
            }
        }
    }
    for run in runs.values_mut().flatten() {
        run.ended = run.ended.or(deaths.get(&run.log).copied());
    }
    runs.values_mut().for_each(|of_job| of_job.sort_by_key(|run| run.begun));
    runs
}
