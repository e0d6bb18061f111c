//! Judges the end of each job by the content of Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use world::{CALLBACKS, Redis};

use crate::Verdict;
use crate::faults::Counts;
use crate::fleet::Fleet;
use crate::jobs::{LIMITS, Plan, REFUSED};
use crate::leftovers;
use crate::look;
use crate::runs::{KILLED_WITHIN, Runs};
use crate::samples::Samples;
use crate::strays::Dead;

/// How many jobs each kind of failure lists.
const MANY: usize = 5;

/// All data for the verdict.
pub struct Ending {
    plan: Plan,
    /// How many callbacks report the end of each job.
    finished: BTreeMap<String, usize>,
    /// jids of callbacks that came more than once.
    repeated: Vec<String>,
    /// jids of jobs that a newer one ended.
    superseded: BTreeSet<String>,
    /// jids of jobs with the result of another one, by which they have.
    coalesced: BTreeMap<String, String>,
    at_once: BTreeMap<String, usize>,
    n_retrying: usize,
    n_processed: usize,
    poisoned: BTreeSet<String>,
    dead: Vec<Dead>,
    /// Entries of the queues, the retry set and the in-flight hashes when they should have been empty.
    stuck: Vec<String>,
    /// Leftovers after the end of all workers.
    leftovers: Vec<String>,
    runs: Runs,
    used_twice: Vec<String>,
    n_tracked_keys: u64,
    worker_megabytes: u64,
}

impl Ending {
    /// Stops the workers and reads all data.
    pub async fn read(redis: &Redis, fleet: &Fleet, plan: Plan, mut stuck: Vec<String>, samples: &Samples) -> Self {
        let ended = fleet.ended_by_itself().await;
        stuck.extend(ended.iter().map(|log| format!("a worker ended unexpectedly: {}", log.display())));
        fleet.end().await;
        let members: Vec<Vec<u8>> = look::ask(redis, redis::cmd("ZRANGE").arg(&["dead", "0", "-1"])).await.unwrap();
        let mut ending = Self {
            plan,
            finished: BTreeMap::new(),
            repeated: Vec::new(),
            superseded: BTreeSet::new(),
            coalesced: BTreeMap::new(),
            at_once: samples.at_once(),
            n_retrying: 0,
            n_processed: redis.get("stat:processed").await.unwrap_or_default().parse().unwrap_or(0),
            poisoned: BTreeSet::new(),
            dead: members.into_iter().map(Dead::read).collect(),
            stuck,
            leftovers: leftovers::find(redis, fleet, samples).await,
            runs: Runs::read(fleet).await,
            used_twice: samples.used_twice(),
            n_tracked_keys: samples.n_tracked_keys(),
            worker_megabytes: samples.worker_megabytes(),
        };
        for queue in [CALLBACKS, REFUSED] {
            ending.take_in(&redis.queue(queue).await);
        }
        ending
    }

    fn take_in(&mut self, callbacks: &[String]) {
        let mut seen = BTreeSet::new();
        for callback in callbacks {
            let callback: Value = serde_json::from_str(callback).unwrap();
            let (jid, report) = (text(&callback["jid"]), &callback["args"][0]);
            if !seen.insert(jid.clone()) {
                self.repeated.push(jid);
            }
            match text(&report["moment"]).as_str() {
                "finished" => *self.finished.entry(text(&report["jid"])).or_default() += 1,
                _ => self.n_retrying += 1,
            }
            if report["status"] == "superseded" {
                self.superseded.insert(text(&report["jid"]));
            }
            if let Some(leader) = report["coalesced_with"]["jid"].as_str() {
                self.coalesced.insert(text(&report["jid"]), leader.to_owned());
            }
            if report["reason"] == "poison" {
                self.poisoned.insert(text(&report["jid"]));
            }
        }
    }

    /// Two lines of counts, with three times: the end of the last fault, the end of the last job, and the end of the
    /// audit.
    pub fn counts(&self, faults: &Counts, until: [Duration; 3]) -> Vec<String> {
        let [whole_s, dry_s, took_s] = until.map(|duration| duration.as_secs());
        let (n_jobs, n_faults) = (self.plan.healthy.len(), faults.values().sum::<usize>());
        let happened = format!(
            "{n_jobs} jobs, {} culprits, {} strays, {n_faults} faults in {took_s} s (whole at {whole_s}, dry at {dry_s}): {} finished, {} of them poison, {} superseded, {} coalesced, {} retried; \
             {} runs, {} of them beside another of the same job; {} keys tracked, {} MB at most",
            self.plan.culprits.len(),
            self.plan.strays.len(),
            self.finished.len(),
            self.poisoned.len(),
            self.superseded.len(),
            self.coalesced.len(),
            self.n_retrying,
            self.runs.n,
            self.runs.overlaps.len(),
            self.n_tracked_keys,
            self.worker_megabytes,
        );
        vec![happened, format!("faults: {faults:?}")]
    }

    /// The verdict when every job must be settled exactly once.
    pub fn verdict(&self) -> Verdict {
        let mut wrong = self.left();
        let all = || self.plan.healthy.iter().chain(&self.plan.culprits);
        wrong.extend(told("jobs were never finished", all().filter(|jid| !self.finished.contains_key(*jid))));
        wrong
            .extend(told("jobs were settled twice", self.finished.iter().filter(|(_, n)| **n > 1).map(|(jid, _)| jid)));
        wrong.extend(told("callbacks came twice", self.repeated.iter()));
        wrong.extend(told("tokens were used twice", self.used_twice.iter()));
        wrong.extend(self.miscounted());
        wrong.extend(self.misjudged());
        wrong.extend(self.missed_shares());
        for overlap in self.runs.overlaps.iter().filter(|overlap| overlap.loser_lived_on > KILLED_WITHIN) {
            let seconds = overlap.loser_lived_on.as_secs_f64();
            wrong.push(format!("{} went on for {seconds:.1} s on a worker that had lost it", overlap.jid));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The verdict when Redis may forget. Only counts lost and repeated jobs.
    pub fn verdict_when_redis_forgets(&self) -> Verdict {
        let n_lost = self.plan.healthy.iter().filter(|jid| !self.finished.contains_key(*jid)).count();
        let n_twice = self.finished.values().filter(|n| **n > 1).count();
        println!("  Redis forgot: {n_lost} jobs never ended, {n_twice} ended twice");
        let wrong = self.left();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn left(&self) -> Vec<String> {
        let stuck = self.stuck.iter().map(|what| format!("stuck: {what}"));
        stuck.chain(self.leftovers.iter().cloned()).collect()
    }

    /// Compares the number of processed jobs. Strays have no callback, and workers process some of them.
    fn miscounted(&self) -> Option<String> {
        let n_told = self.finished.values().sum::<usize>() + self.n_retrying;
        let most = n_told + self.plan.strays.len();
        let is_right = (n_told..=most).contains(&self.n_processed);
        (!is_right).then(|| format!("stat:processed is {}, and {n_told} ends were told", self.n_processed))
    }

    /// No limit was exceeded, one job of a branch and one of each group of twins ran at a time, no newest job was superseded, and twins
    /// have the results of twins.
    fn missed_shares(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, n) in &self.at_once {
            let of_account = LIMITS.iter().find(|(account, _)| account == name).map(|(_, limit)| *limit);
            let is_single =
                self.plan.branches.contains_key(name) || self.plan.groups.values().any(|group| group == name);
            let limit = of_account.or(is_single.then_some(1));
            if limit.is_some_and(|limit| *n > limit) {
                wrong.push(format!("{n} jobs of {name} ran at once"));
            }
        }
        let group = |jid: &String| self.plan.groups.get(jid);
        let strangers = self.coalesced.iter().filter(|(jid, leader)| group(jid) != group(leader));
        wrong.extend(told("jobs have the result of a job with other inputs", strangers.map(|(jid, _)| jid)));
        let newest: BTreeSet<&String> = self.plan.branches.values().filter_map(|jids| jids.last()).collect();
        wrong.extend(told(
            "newest jobs of their branch were superseded",
            self.superseded.iter().filter(|jid| newest.contains(jid)),
        ));
        wrong
    }

    /// Every job that takes its worker down is poison, and no other job is.
    fn misjudged(&self) -> Vec<String> {
        let dead: BTreeSet<&str> = self.dead.iter().map(Dead::jid).collect();
        let mut wrong = leftovers::of_dead(&self.dead, &self.plan);
        let (poisoned, culprits) = (&self.poisoned, &self.plan.culprits);
        let (refused, innocent): (Vec<_>, Vec<_>) =
            poisoned.difference(culprits).partition(|jid| self.plan.refused.contains(*jid));
        wrong.extend(told("healthy jobs were declared poison", innocent.into_iter()));
        wrong.extend(told("jobs whose result was refused were declared poison", refused.into_iter()));
        wrong.extend(told("culprits are not poison", culprits.iter().filter(|jid| !poisoned.contains(*jid))));
        wrong.extend(told(
            "poison jobs are not in the dead set",
            poisoned.iter().filter(|jid| !dead.contains(&jid[..])),
        ));
        wrong
    }
}

/// "3 jobs …" with the first few of them, or none when there are no jobs.
fn told<'a>(what: &str, jids: impl Iterator<Item = &'a String>) -> Option<String> {
    let jids: Vec<&String> = jids.collect();
    (!jids.is_empty()).then(|| format!("{} {what}: {:?}", jids.len(), &jids[..jids.len().min(MANY)]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
