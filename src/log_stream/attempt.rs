//! One attempt in the record of a build, as JSON: the report so far, and what only the record has.
//!
//! The report is the fold of the same events that makes the callback. `docs/history.md` describes the format.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::bounds;
use crate::clock::Epoch;
use crate::event::{Event, OpenPhases, Phase, Step, millis};
use crate::log_record::{StepOf, cut};
use crate::report::{Report, Status};

/// With more targets, a record has no room for the slowest steps of each.
const MAX_DETAILED: usize = 30;

/// What is known of an attempt when it begins.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The job.
    pub jid: String,
    /// From 1. An attempt that a stop interrupted has the number of the next one.
    pub number: u32,
    /// The identity of the worker.
    pub worker: String,
    /// When the job was enqueued, by the client's clock.
    pub queued_at: Option<Epoch>,
    /// When the worker began it.
    pub began_at: Epoch,
}

/// What the events say of an attempt beside its report.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    account: Option<String>,
    phases: OpenPhases,
    ended_at: Option<Epoch>,
    is_over: bool,
    slowest: HashMap<Arc<str>, Vec<SlowStep>>,
}

#[derive(Clone, Debug)]
struct SlowStep {
    step: Step,
    took: Duration,
    is_cached: bool,
}

/// An attempt in one line. That of the last attempt is the build's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Summary {
    /// As in the job; null without one.
    pub build_id: Option<Value>,
    /// The job.
    pub jid: String,
    /// From 1.
    pub attempt: u32,
    /// The identity of the worker.
    pub worker: String,
    /// The account; null before the build request is known.
    pub account: Option<String>,
    /// `owner/name`.
    pub repository: Option<String>,
    /// The commit.
    pub sha: Option<String>,
    /// As in the job.
    #[serde(rename = "ref")]
    pub git_ref: Option<String>,
    /// When the job was enqueued, in milliseconds.
    pub queued_at_ms: Option<u64>,
    /// When the attempt began, in milliseconds.
    pub began_at_ms: u64,
    /// When the attempt ended, in milliseconds; null while it runs.
    pub ended_at_ms: Option<u64>,
    /// `succeeded`, `failed` or `cancelled`; null while it runs.
    pub status: Option<String>,
    /// Why, unless it succeeded.
    pub reason: Option<String>,
    /// Whether no other attempt follows.
    #[serde(default)]
    pub is_over: bool,
}

impl Facts {
    /// Takes in one event. Returns whether the record changes with it: it need not follow every step.
    pub(super) fn take_in(&mut self, event: &Event, now: impl Fn() -> Epoch) -> bool {
        match event {
            Event::Commit { account, .. } => self.account = Some(cut(account, bounds::NAME)),
            Event::PhaseStarted(_) | Event::PhaseEnded(..) => self.phases.take_in(event),
            Event::Ended { is_over, .. } => (self.ended_at, self.is_over) = (Some(now()), *is_over),
            Event::BuildId(_) | Event::Placed(_) | Event::TargetEnded(_) => {}
            Event::StepEnded { step, is_cached, took, .. } => {
                self.rank(step, *is_cached, *took);
                return false;
            }
            _ => return false,
        }
        true
    }

    /// Keeps a step when it is one of the slowest of its target. The last run of a step counts.
    fn rank(&mut self, step: &Step, is_cached: bool, took: Duration) {
        let Some(target) = &step.target else { return };
        if !self.slowest.contains_key(target) && self.slowest.len() >= bounds::TARGETS {
            return;
        }
        let steps = self.slowest.entry(Arc::clone(target)).or_default();
        steps.retain(|known| known.step.name != step.name);
        steps.push(SlowStep { step: step.clone(), took, is_cached });
        steps.sort_by_key(|slow| Reverse(slow.took));
        steps.truncate(bounds::SLOWEST);
    }
}

impl SlowStep {
    fn to_json(&self) -> Value {
        json!({"step": StepOf::new(&self.step).step, "ms": millis(self.took), "is_cached": self.is_cached})
    }
}

impl Attempt {
    /// The attempt so far, as JSON of at most [`bounds::RECORD`] bytes.
    pub(super) fn record(&self, facts: &Facts, report: Report) -> String {
        // Fields for Rails alone.
        let report = Report { echo: Map::new(), ..report };
        let has_room = report.targets.len() <= MAX_DETAILED;
        let form = |mut json: Value| {
            let targets = json["targets"].as_array_mut();
            targets.into_iter().flatten().filter(|_| has_room).for_each(|target| facts.add_slowest(target));
            let Value::Object(fields) = &mut json else { return json };
            fields.shift_remove("moment");
            fields.insert("account".into(), json!(facts.account));
            fields.insert("worker".into(), json!(self.worker));
            fields.insert("queued_at_ms".into(), json!(self.queued_at.map(Epoch::as_millis)));
            fields.insert("began_at_ms".into(), json!(self.began_at.as_millis()));
            fields.insert("ended_at_ms".into(), json!(facts.ended_at.map(Epoch::as_millis)));
            fields.insert("is_over".into(), json!(facts.is_over));
            fields.insert("phase".into(), json!(facts.phases.innermost().map(Phase::name)));
            fields.insert("targets_left_out".into(), json!(0));
            json
        };
        let mut json = report.to_json_within(bounds::RECORD, form);
        leave_out_targets(&mut json);
        json.to_string()
    }

    /// The attempt in one line, as JSON.
    pub(super) fn summary(&self, facts: &Facts, report: &Report) -> String {
        let name = |name: &String| cut(name, bounds::NAME);
        let summary = Summary {
            build_id: report.build_id.clone(),
            jid: self.jid.clone(),
            attempt: self.number,
            worker: self.worker.clone(),
            account: facts.account.clone(),
            repository: report.repository.as_ref().map(name),
            sha: report.sha.as_ref().map(name),
            git_ref: report.git_ref.as_ref().map(name),
            queued_at_ms: self.queued_at.map(Epoch::as_millis),
            began_at_ms: self.began_at.as_millis(),
            ended_at_ms: facts.ended_at.map(Epoch::as_millis),
            status: report.status.map(Status::name).map(str::to_owned),
            reason: report.reason.map(|reason| reason.name().to_owned()),
            is_over: facts.is_over,
        };
        serde_json::to_string(&summary).expect("a summary is plain data")
    }
}

impl Facts {
    fn add_slowest(&self, target: &mut Value) {
        let steps = target["name"].as_str().and_then(|name| self.slowest.get(name));
        let steps: Vec<Value> = steps.into_iter().flatten().map(SlowStep::to_json).collect();
        target["slowest_steps"] = Value::Array(steps);
    }
}

/// Names and digests of very many targets are too long together.
fn leave_out_targets(attempt: &mut Value) {
    let mut n_left_out = 0;
    while attempt.to_string().len() > bounds::RECORD {
        let Some(targets) = attempt["targets"].as_array_mut().filter(|targets| !targets.is_empty()) else { return };
        let n_kept = targets.len() / 2;
        n_left_out += targets.len() - n_kept;
        targets.truncate(n_kept);
        attempt["targets_left_out"] = n_left_out.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::TargetReport;

    fn attempt() -> Attempt {
        let began_at = Epoch::from_millis(1_000);
        Attempt { jid: "j".into(), number: 2, worker: "host:1:a".into(), queued_at: None, began_at }
    }

    fn step_ended(target: &str, name: &str, seconds: u64) -> Event {
        let step = Step { target: Some(target.into()), name: name.into() };
        Event::StepEnded { step, is_cached: false, took: Duration::from_secs(seconds), error: None }
    }

    fn target(name: &str) -> TargetReport {
        TargetReport { name: name.into(), digest: Some("d".repeat(71)), ..TargetReport::default() }
    }

    #[test]
    fn each_target_has_its_slowest_steps_and_the_last_run_of_a_step_counts() {
        let mut facts = Facts::default();
        let now = || Epoch::from_millis(2_000);
        for (name, seconds) in [("b", 9), ("a", 1), ("c", 3), ("b", 2), ("d", 4), ("e", 5), ("f", 6)] {
            assert!(!facts.take_in(&step_ended("vote", name, seconds), now));
        }
        let report = Report { targets: vec![target("vote"), target("web")], ..Report::default() };
        let record: Value = serde_json::from_str(&attempt().record(&facts, report)).expect("JSON");
        let steps = record["targets"][0]["slowest_steps"].as_array().expect("steps");
        let steps: Vec<_> = steps.iter().map(|step| (step["step"].as_str(), step["ms"].as_u64())).collect();
        let expected = [("f", 6_000), ("e", 5_000), ("d", 4_000), ("c", 3_000), ("b", 2_000)];
        assert_eq!(steps, expected.map(|(step, ms)| (Some(step), Some(ms))));
        assert_eq!(record["targets"][1]["slowest_steps"], json!([]));
    }

    #[test]
    fn a_record_of_a_thousand_targets_is_bounded_and_counts_what_it_leaves_out() {
        let mut facts = Facts::default();
        let names: Vec<String> = (0..bounds::TARGETS + 9).map(|n| format!("target-{n}-{}", "x".repeat(200))).collect();
        for name in &names {
            facts.take_in(&step_ended(name, &"s".repeat(2_000), 1), || Epoch::from_millis(0));
        }
        assert_eq!(facts.slowest.len(), bounds::TARGETS);
        let echo = json!({"note": "n".repeat(60_000)}).as_object().cloned().expect("an object");
        let report = Report { targets: names.iter().map(|name| target(name)).collect(), echo, ..Report::default() };
        let text = attempt().record(&facts, report);
        assert!(text.len() <= bounds::RECORD && !text.contains("nnn"), "{} bytes", text.len());
        let record: Value = serde_json::from_str(&text).expect("JSON");
        let n_targets = record["targets"].as_array().expect("targets").len();
        assert!(n_targets > 20);
        assert_eq!(record["targets_left_out"], names.len() - n_targets);
    }
}
