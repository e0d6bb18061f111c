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
    /// `None` after a success.
    reason: Option<Reason>,
    message: Option<String>,
    targets: Vec<TargetReport>,
    placement: Option<Placement>,
    warnings: Vec<Warning>,
    notices: Vec<String>,
}

impl SharedResult {
    /// The result of a report, where another build would end in the same way: a success, or a failure that is the customer's.
    pub fn of(report: &Report) -> Option<Self> {
        let is_own = report.status.is_some() && report.coalesced_with.is_none();
        let would_repeat = report.reason.is_none_or(|reason| reason.class() == Class::User);
        (is_own && would_repeat).then(|| Self {
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

    /// The events of the job `jid` that gets this result. It may be the job's own: its worker died before it was settled.
    pub fn events(&self, jid: &str) -> Vec<Event> {
        let mut events = Vec::new();
        if self.jid != jid {
            let notice = "this is the result of a build with the same inputs that ran at the same time";
            let leader = OtherJob { jid: self.jid.clone(), build_id: self.build_id.clone() };
            events.extend([Event::Notice(notice.into()), Event::Coalesced(leader)]);
        }
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
        let shared = SharedResult::of(&leader).expect("a success is shared");
        let text = serde_json::to_string(&shared).expect("plain data");
        let shared: SharedResult = serde_json::from_str(&text).expect("the same");
        let report_of = |jid: &str| {
            let mut report = Report { jid: jid.into(), ..Report::default() };
            shared.events(jid).iter().for_each(|event| report.take_in(event));
            report
        };
        let (follower, again) = (report_of("b"), report_of("a"));
        assert_eq!([&follower.targets, &again.targets], [&leader.targets, &leader.targets]);
        let named = OtherJob { jid: "a".into(), build_id: Some(Value::from(7)) };
        assert_eq!((follower.coalesced_with, again.coalesced_with), (Some(named), None));
        assert_eq!(
            SharedResult::of(&Report { jid: "b".into(), ..leader.clone() }).map(|own| own.jid),
            Some("b".into())
        );
    }

    #[test]
    fn only_what_another_build_would_repeat_is_shared() {
        let message_of = |reason| {
            let (status, message) = (Some(Status::Failed), Some("m".to_owned()));
            let report = Report { status, reason: Some(reason), message, ..Report::default() };
            SharedResult::of(&report).and_then(|shared| shared.failure()).map(|failure| failure.message())
        };
        assert_eq!(message_of(Reason::StepFailed), Some("m".into()));
        assert_eq!([Reason::BuilderLost, Reason::Cancelled, Reason::Superseded].map(message_of), [None, None, None]);
    }
}
