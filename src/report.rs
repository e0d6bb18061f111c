//! The result of an attempt: the argument of the callback job.
//!
//! Owns the JSON's form (docs/callbacks.md), not its delivery. Every field is always present, so that Ruby code can index it without
//! checks. `bounded` limits its size.

mod bounded;
mod shared;

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::event::{Event, Phase, Warning, millis};
use crate::reason::Reason;

pub use shared::SharedResult;

pub use crate::event::{CacheMiss, ImageDigest, Moment, NotCached, OtherJob, Placement, Status, TargetReport};

/// The result of one attempt: what the processor knows beforehand, and a fold over the attempt's events.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The moment of this report: `started`, `retrying` or `finished`.
    pub moment: Moment,
    /// As in the job: a string or a number, or null.
    pub build_id: Option<Value>,
    /// Sidekiq's id of the job.
    pub jid: String,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// How it ended; null in `started`.
    pub status: Option<Status>,
    /// The reason of the failure; null on success.
    pub reason: Option<Reason>,
    /// One sentence for the customer, then the details; null on success.
    pub message: Option<String>,
    /// The repository, `owner/name`.
    pub repository: Option<String>,
    /// The commit that was built.
    pub sha: Option<String>,
    /// As in the job.
    #[serde(rename = "ref")]
    pub git_ref: Option<String>,
    /// One entry for each image.
    pub targets: Vec<TargetReport>,
    /// Where the time went, in milliseconds.
    pub timings: Timings,
    /// Bytes of build context that were sent to the builder.
    pub context_bytes: u64,
    /// Where it was built, and why.
    pub placement: Option<Placement>,
    /// BuildKit's warnings about the Dockerfiles.
    pub warnings: Vec<Warning>,
    /// Messages for the customer, such as replaced fields.
    pub notices: Vec<String>,
    /// The newer job, when `status` is `superseded`; otherwise null.
    pub superseded_by: Option<OtherJob>,
    /// The job with the same inputs that was built, when this one has its result; otherwise null.
    pub coalesced_with: Option<OtherJob>,
    /// Where the whole log of the attempt is archived; null without an archive, and when it did not take the log.
    pub log_url: Option<String>,
    /// How many further notices the last one counts.
    #[serde(skip)]
    pub n_more_notices: usize,
    /// Fields of the job that the configuration's `echo` names, unread.
    #[serde(flatten)]
    pub echo: Map<String, Value>,
}

impl Report {
    /// Adds one event. Events that do not concern the result change nothing.
    ///
    /// The times of a repeated phase are summed, such as those of fetching submodules. The last run of docker-buildx decides a target,
    /// the last placement counts, and the last notice counts those that the journal left out.
    pub fn take_in(&mut self, event: &Event) {
        match event {
            Event::Commit { repository, sha, git_ref, .. } => {
                self.repository = Some(repository.clone());
                self.sha = Some(sha.clone());
                self.git_ref.clone_from(git_ref);
            }
            Event::BuildId(build_id) => self.build_id.clone_from(build_id),
            Event::PhaseEnded(phase, took) => *self.timings.of(*phase) += *took,
            Event::Placed(placement) => self.placement = Some(placement.clone()),
            Event::Superseded(newer) => self.superseded_by = Some(newer.clone()),
            Event::Coalesced(leader) => self.coalesced_with = Some(leader.clone()),
            Event::ContextSent { n_bytes } => self.context_bytes += n_bytes,
            Event::TargetEnded(target) => match self.targets.iter_mut().find(|known| known.name == target.name) {
                Some(known) => known.clone_from(target),
                None => self.targets.push(target.clone()),
            },
            Event::Caching { target, not_cached, saved } => {
                if let Some(known) = self.targets.iter_mut().find(|known| known.name == *target) {
                    (known.why_not_cached, known.saved_ms) = (not_cached.clone(), saved.map(millis));
                }
            }
            Event::CachesMoved { imported, exported } => {
                self.timings.cache_import += *imported;
                self.timings.cache_export += *exported;
            }
            Event::Warning(warning) if !self.warnings.contains(warning) => self.warnings.push(warning.clone()),
            Event::Notice(notice) => self.notices.push(notice.clone()),
            Event::NoticeLeftOut => self.count_notice(),
            Event::Ended { status, reason, message, log_url, .. } => {
                (self.status, self.reason) = (Some(*status), *reason);
                self.message.clone_from(message);
                self.log_url.clone_from(log_url);
            }
            Event::PhaseStarted(_)
            | Event::Targets(_)
            | Event::TargetDone(_)
            | Event::PodLost { .. }
            | Event::Fetching { .. }
            | Event::StepStarted(_)
            | Event::StepEnded { .. }
            | Event::StepOutput { .. }
            | Event::Warning(_) => {}
        }
    }

    fn count_notice(&mut self) {
        self.n_more_notices += if self.n_more_notices == 0 { 2 } else { 1 };
        self.notices.pop();
        self.notices.push(format!("and {} more notices", self.n_more_notices));
    }
}

/// Durations, in whole milliseconds of a monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timings {
    /// From `enqueued_at` to the fetch, by the clocks of two machines: never negative.
    #[serde(rename = "queued_ms", serialize_with = "as_millis")]
    pub queued: Duration,
    /// Asking Rails.
    #[serde(rename = "resolve_ms", serialize_with = "as_millis")]
    pub resolve: Duration,
    /// Minting the token.
    #[serde(rename = "token_ms", serialize_with = "as_millis")]
    pub token: Duration,
    /// Fetching, including the wait for a clone slot.
    #[serde(rename = "fetch_ms", serialize_with = "as_millis")]
    pub fetch: Duration,
    /// Writing the worktree.
    #[serde(rename = "checkout_ms", serialize_with = "as_millis")]
    pub checkout: Duration,
    /// Resolving and validating the definition.
    #[serde(rename = "print_ms", serialize_with = "as_millis")]
    pub print: Duration,
    /// From the choice of a builder to the end of the last run of docker-buildx.
    #[serde(rename = "bake_ms", serialize_with = "as_millis")]
    pub bake: Duration,
    /// Building base images on a new pod: a part of `bake_ms`.
    #[serde(rename = "warm_ms", serialize_with = "as_millis")]
    pub warm: Duration,
    /// Importing caches from a registry: a part of `bake_ms`.
    #[serde(rename = "cache_import_ms", serialize_with = "as_millis")]
    pub cache_import: Duration,
    /// Exporting caches to a registry: a part of `bake_ms`.
    #[serde(rename = "cache_export_ms", serialize_with = "as_millis")]
    pub cache_export: Duration,
}

impl Timings {
    fn of(&mut self, phase: Phase) -> &mut Duration {
        match phase {
            Phase::Resolve => &mut self.resolve,
            Phase::Token => &mut self.token,
            Phase::Fetch => &mut self.fetch,
            Phase::Checkout => &mut self.checkout,
            Phase::Print => &mut self.print,
            Phase::Warm => &mut self.warm,
            Phase::Bake => &mut self.bake,
            Phase::CacheExport => &mut self.cache_export,
        }
    }
}

fn as_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(millis(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(events: impl IntoIterator<Item = Event>) -> Report {
        let mut report = Report::default();
        events.into_iter().for_each(|event| report.take_in(&event));
        report
    }

    fn target(name: &str, status: Status) -> Event {
        Event::TargetEnded(TargetReport { name: name.into(), status: Some(status), ..TargetReport::default() })
    }

    #[test]
    fn each_fact_comes_from_the_events_of_its_kind() {
        let placed = |pod: Option<&str>| {
            let pod = pod.map(str::to_owned);
            Event::Placed(Placement { builder: "default".into(), shard: None, pod, why: "any".into() })
        };
        let ms = Duration::from_millis;
        let report = folded([
            Event::BuildId(Some(7.into())),
            Event::Commit { account: "acme".into(), repository: "acme/app".into(), sha: "0".repeat(40), git_ref: None },
            Event::PhaseStarted(Phase::Fetch),
            Event::PhaseEnded(Phase::Fetch, ms(5)),
            Event::PhaseEnded(Phase::Checkout, ms(1)),
            Event::PhaseEnded(Phase::Fetch, ms(20)),
            placed(None),
            Event::ContextSent { n_bytes: 10 },
            target("web", Status::Failed),
            target("api", Status::Succeeded),
            placed(Some("pod-1")),
            Event::ContextSent { n_bytes: 3 },
            target("web", Status::Succeeded),
            Event::Ended {
                status: Status::Failed,
                reason: Some(Reason::StepFailed),
                message: Some("a step".into()),
                is_over: true,
                log_url: Some("s3://logs/1".into()),
            },
        ]);
        assert_eq!(report.log_url.as_deref(), Some("s3://logs/1"));
        let end = (report.status, report.reason, report.message.as_deref());
        assert_eq!(end, (Some(Status::Failed), Some(Reason::StepFailed), Some("a step")));
        assert_eq!((report.build_id, report.repository.as_deref()), (Some(7.into()), Some("acme/app")));
        assert_eq!((report.timings.fetch, report.timings.checkout, report.timings.bake), (ms(25), ms(1), ms(0)));
        assert_eq!((report.context_bytes, report.placement.and_then(|its| its.pod).as_deref()), (13, Some("pod-1")));
        let targets: Vec<_> = report.targets.iter().map(|target| (&*target.name, target.status)).collect();
        assert_eq!(targets, [("web", Some(Status::Succeeded)), ("api", Some(Status::Succeeded))]);
    }

    #[test]
    fn the_last_notice_counts_those_that_were_left_out() {
        let events = |n_left_out| {
            let notices = ["a", "b"].map(|notice| Event::Notice(notice.into()));
            notices.into_iter().chain(std::iter::repeat_n(Event::NoticeLeftOut, n_left_out))
        };
        assert_eq!(folded(events(0)).notices, ["a", "b"]);
        assert_eq!(folded(events(1)).notices, ["a", "and 2 more notices"]);
        assert_eq!(folded(events(9)).notices, ["a", "and 10 more notices"]);
    }
}
