//! The result of a build, for other jobs with the same inputs.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{OtherJob, Placement, Report, TargetReport};
use crate::event::{Event, Warning};
use crate::reason::{Class, Failure, Reason};

/// What jobs with the same inputs have in common.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SharedResult {
    jid: String,
    build_id: Option<Value>,
    /// Names the inputs as they were when it was built: Rails may have changed them.
    inputs: String,
    /// `None` after a success.
    reason: Option<Reason>,
    message: Option<String>,
    targets: Vec<TargetReport>,
    placement: Option<Placement>,
    warnings: Vec<Warning>,
    notices: Vec<String>,
}

impl SharedResult {
    /// The result of a build, where another one would end in the same way: a success, or a failure that is the customer's.
    pub fn of(report: &Report, inputs: String) -> Option<Self> {
        let would_repeat = report.reason.is_none_or(|reason| reason.class() == Class::User);
        (report.status.is_some() && would_repeat).then(|| Self {
            inputs,
            jid: report.jid.clone(),
            build_id: report.build_id.clone(),
            reason: report.reason,
            message: report.message.clone(),
            targets: report.targets.clone(),
            placement: report.placement.clone(),
            warnings: report.warnings.clone(),
            notices: report.notices.clone(),
        })
    }

    /// Whether a job gets it that has these inputs. Never the same job: its retry is built.
    pub fn is_for(&self, jid: &str, inputs: &str) -> bool {
        self.jid != jid && self.inputs == inputs
    }

    /// The events of a job that gets this result.
    pub fn events(&self) -> Vec<Event> {
        let notice = "this is the result of a build with the same inputs that ran at the same time";
        let leader = OtherJob { jid: self.jid.clone(), build_id: self.build_id.clone() };
        let mut events = vec![Event::Notice(notice.into()), Event::Coalesced(leader)];
        events.extend(self.placement.clone().map(Event::Placed));
        events.extend(self.warnings.iter().cloned().map(Event::Warning));
        events.extend(self.notices.iter().cloned().map(Event::Notice));
        events.extend(self.targets.iter().cloned().map(Event::TargetEnded));
        events
    }

    /// The failure; `None` after a success.
    pub fn failure(&self) -> Option<Failure> {
        self.reason.map(|reason| Failure::new(reason, self.message.as_deref().unwrap_or_default()).as_sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Status;

    #[test]
    fn a_job_with_a_shared_result_has_the_same_report_and_names_the_other_one() {
        let target = TargetReport {
            name: "web".into(),
            status: Some(Status::Succeeded),
            digest: Some("sha256:1".into()),
            ..TargetReport::default()
        };
        let leader = Report {
            jid: "a".into(),
            build_id: Some(Value::from(7)),
            status: Some(Status::Succeeded),
            targets: vec![target],
            ..Report::default()
        };
        let shared = SharedResult::of(&leader, "inputs".into()).expect("a success is shared");
        let text = serde_json::to_string(&shared).expect("plain data");
        let shared: SharedResult = serde_json::from_str(&text).expect("the same");
        assert_eq!(
            [("b", "inputs"), ("a", "inputs"), ("b", "others")].map(|(j, i)| shared.is_for(j, i)),
            [true, false, false]
        );
        let mut follower = Report { jid: "b".into(), ..Report::default() };
        shared.events().iter().for_each(|event| follower.take_in(event));
        assert_eq!(follower.targets, leader.targets);
        let named = OtherJob { jid: "a".into(), build_id: Some(Value::from(7)) };
        assert_eq!(follower.coalesced_with, Some(named));
    }

    #[test]
    fn only_what_another_build_would_repeat_is_shared() {
        let message_of = |reason| {
            let (status, message) = (Some(Status::Failed), Some("m".to_owned()));
            let report = Report { status, reason: Some(reason), message, ..Report::default() };
            SharedResult::of(&report, String::new())
                .and_then(|shared| shared.failure())
                .map(|failure| failure.message())
        };
        assert_eq!(message_of(Reason::StepFailed), Some("m".into()));
        assert_eq!([Reason::BuilderLost, Reason::Cancelled, Reason::Superseded].map(message_of), [None, None, None]);
    }
}
