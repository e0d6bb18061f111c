//! What Redis says at the end, and what the logs say of jobs that ran twice at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use world::Redis;

use crate::Verdict;
use crate::faults::Counts;
use crate::fleet::Fleet;

/// A worker that wakes up and has lost its jobs must have killed them this soon.
const KILLED_WITHIN: Duration = Duration::from_secs(2);

/// Everything that is to be judged.
pub struct Ending {
    pushed: BTreeSet<String>,
    /// How often each job was told to be finished.
    finished: BTreeMap<String, usize>,
    /// jids of callbacks that came more than once.
    repeated: Vec<String>,
    n_retrying: usize,
    n_processed: usize,
    poisoned: BTreeSet<String>,
    dead: BTreeSet<String>,
    /// What the queues, the retry set and the hashes in flight had when they should have been empty.
    stuck: Vec<String>,
    overlaps: Vec<Overlap>,
}

/// A job that ran twice at a time.
struct Overlap {
    jid: String,
    /// From the moment that the first one could know, to its end.
    loser_lived_on: Duration,
}

/// One run of one job, by a log.
struct Run {
    log: PathBuf,
    /// Of its entry in flight: a worker that has lost a job may take it up again before it knows.
    token: String,
    begun: SystemTime,
    ended: Option<SystemTime>,
}

impl Ending {
    pub async fn read(
        redis: &Redis,
        fleet: &Fleet,
        pushed: BTreeSet<String>,
        counts: Counts,
        stuck: Vec<String>,
        took: Duration,
    ) -> Self {
        let callbacks: Vec<Value> =
            redis.queue("callbacks").await.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let (mut finished, mut seen) = (BTreeMap::new(), BTreeSet::new());
        let (mut repeated, mut n_retrying, mut poisoned) = (Vec::new(), 0, BTreeSet::new());
        for callback in &callbacks {
            let (jid, report) = (text(&callback["jid"]), &callback["args"][0]);
            if !seen.insert(jid.clone()) {
                repeated.push(jid);
            }
            match text(&report["moment"]).as_str() {
                "finished" => *finished.entry(text(&report["jid"])).or_default() += 1,
                _ => n_retrying += 1,
            }
            if report["reason"] == "poison" {
                poisoned.insert(text(&report["jid"]));
            }
        }
        let dead = redis.sorted_set("dead").await;
        let dead = dead.iter().filter_map(|(job, _)| serde_json::from_str::<Value>(job).ok());
        let dead = dead.map(|job| text(&job["jid"])).collect();
        let runs = runs(fleet);
        let ending = Self {
            pushed,
            finished,
            repeated,
            n_retrying,
            n_processed: redis.get("stat:processed").await.unwrap_or_default().parse().unwrap_or(0),
            poisoned,
            dead,
            stuck,
            overlaps: overlaps(fleet, &runs),
        };
        let n_runs: usize = runs.values().map(Vec::len).sum();
        ending.print(&counts, n_runs, took);
        ending
    }

    fn print(&self, counts: &Counts, n_runs: usize, took: Duration) {
        let n_faults: usize = counts.values().sum();
        println!(
            "  {} jobs, {n_faults} faults in {:.0} s: {} finished, {} of them poison, {} retried; {n_runs} runs, {} of them beside another of the same job",
            self.pushed.len(),
            took.as_secs_f64(),
            self.finished.len(),
            self.poisoned.len(),
            self.n_retrying,
            self.overlaps.len(),
        );
        println!("  faults: {counts:?}");
    }

    /// Nothing lost, nothing twice, nothing left.
    pub fn verdict(&self) -> Verdict {
        let mut wrong = self.stuck();
        let lost: Vec<&String> = self.pushed.iter().filter(|jid| !self.finished.contains_key(*jid)).collect();
        if !lost.is_empty() {
            wrong.push(format!("{} jobs were never finished: {:?}", lost.len(), &lost[..lost.len().min(5)]));
        }
        let twice: Vec<&String> = self.finished.iter().filter(|(_, n)| **n > 1).map(|(jid, _)| jid).collect();
        if !twice.is_empty() || !self.repeated.is_empty() {
            wrong.push(format!("{} jobs were settled twice: {:?}", twice.len(), &twice[..twice.len().min(5)]));
        }
        let n_told = self.finished.values().sum::<usize>() + self.n_retrying;
        if self.n_processed != n_told {
            wrong.push(format!("stat:processed is {}, and {n_told} ends were told", self.n_processed));
        }
        if let Some(jid) = self.poisoned.iter().find(|jid| !self.dead.contains(*jid)) {
            wrong.push(format!("{jid} is poison, and not in the dead set"));
        }
        for overlap in self.overlaps.iter().filter(|overlap| overlap.loser_lived_on > KILLED_WITHIN) {
            let seconds = overlap.loser_lived_on.as_secs_f64();
            wrong.push(format!("{} went on for {seconds:.1} s on a worker that had lost it", overlap.jid));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Nothing left; what Redis forgot is only counted.
    pub fn verdict_when_redis_forgets(&self) -> Verdict {
        let n_lost = self.pushed.iter().filter(|jid| !self.finished.contains_key(*jid)).count();
        let n_twice = self.finished.values().filter(|n| **n > 1).count();
        println!("  Redis forgot: {n_lost} jobs without an end, {n_twice} with two");
        let wrong = self.stuck();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn stuck(&self) -> Vec<String> {
        self.stuck.iter().map(|what| format!("stuck: {what}")).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Every run of every job, in the order of their beginnings.
fn runs(fleet: &Fleet) -> BTreeMap<String, Vec<Run>> {
    let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for log in fleet.logs() {
        let content = std::fs::read_to_string(&log).unwrap();
        for entry in content.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let Some(jid) = entry["fields"]["jid"].as_str() else { continue };
            let Some(at) = entry["timestamp"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok()) else {
                continue;
            };
            let (at, of_job) = (
                SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(at.as_microsecond()).unwrap()),
                runs.entry(jid.to_owned()).or_default(),
            );
            let token = text(&entry["fields"]["token"]);
            let message = entry["fields"]["message"].as_str().unwrap_or_default();
            if message == "job begins" {
                of_job.push(Run { log: log.clone(), token, begun: at, ended: None });
            } else if message.starts_with("job ")
                && let Some(run) = of_job.iter_mut().find(|run| run.log == log && run.token == token)
            {
                run.ended = Some(at);
            }
        }
    }
    let deaths: BTreeMap<&PathBuf, SystemTime> =
        fleet.workers.iter().flat_map(|worker| &worker.deaths).map(|(log, at)| (log, *at)).collect();
    for run in runs.values_mut().flatten() {
        run.ended = run.ended.or(deaths.get(&run.log).copied());
    }
    runs.values_mut().for_each(|of_job| of_job.sort_by_key(|run| run.begun));
    runs
}

fn overlaps(fleet: &Fleet, runs: &BTreeMap<String, Vec<Run>>) -> Vec<Overlap> {
    let mut found = Vec::new();
    for (jid, of_job) in runs {
        for pair in of_job.windows(2) {
            let ended = pair[0].ended.unwrap_or_else(SystemTime::now);
            if ended <= pair[1].begun {
                continue;
            }
            // It can only know when it runs, and when there is something to know.
            let freezes = fleet.workers.iter().flat_map(|worker| &worker.freezes);
            let awake =
                freezes.filter(|(log, since, until)| *log == pair[0].log && *since < ended && *until > pair[0].begun);
            let mut could_know = awake.map(|(_, _, until)| *until).max().unwrap_or(pair[1].begun).max(pair[1].begun);
            for (since, until) in &fleet.outages {
                if *since < could_know + KILLED_WITHIN && *until > could_know {
                    could_know = *until;
                }
            }
            let loser_lived_on = ended.duration_since(could_know).unwrap_or_default();
            found.push(Overlap { jid: jid.clone(), loser_lived_on });
        }
    }
    found
}
