//! What Rails is told at the end: the argument of the callback job.
//!
//! Owns the shape of the JSON (README, "Answers") and nothing of how it is delivered. Every field is always present,
//! so that the Ruby side can index without asking. How much of it is sent is the part of `bounded`.

mod bounded;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::job::Moment;
use crate::reason::Reason;

/// The result of one attempt.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The moment that this report is about: `started`, `retrying` or `finished`.
    pub moment: Moment,
    /// As in the job: a string or a number, or null.
    pub build_id: Option<Value>,
    /// Sidekiq's id of the job.
    pub jid: String,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// How it ended; null in `started`.
    pub status: Option<Status>,
    /// From the closed list; null on success.
    pub reason: Option<Reason>,
    /// One sentence for the customer, then what exactly happened; null on success.
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
    /// Bytes of build context that went to the builder.
    pub context_bytes: u64,
    /// Which builder, and why.
    pub placement: Option<Placement>,
    /// What the person who asked should know, such as fields that were replaced.
    pub notices: Vec<String>,
    /// Fields of the job that the configuration's `echo` names, unread.
    #[serde(flatten)]
    pub echo: Map<String, Value>,
}

impl Report {
    /// Puts the targets of one more run of docker-buildx in the place of what an earlier run said of them.
    pub fn take_in(&mut self, targets: Vec<TargetReport>) {
        for target in targets {
            match self.targets.iter_mut().find(|known| known.name == target.name) {
                Some(known) => *known = target,
                None => self.targets.push(target),
            }
        }
    }

    /// The names of the targets that were not built.
    pub fn unfinished(&self) -> BTreeSet<String> {
        let unfinished = self.targets.iter().filter(|target| target.status != Some(Status::Succeeded));
        unfinished.map(|target| target.name.clone()).collect()
    }
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every target was built, and pushed when asked.
    Succeeded,
    /// Something failed; the reason says what.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TargetReport {
    /// The target's name.
    pub name: String,
    /// `succeeded`, `failed`, or null when it was not reached.
    pub status: Option<Status>,
    /// What was pushed, `sha256:…`; null when nothing was.
    pub digest: Option<String>,
    /// Image references.
    pub tags: Vec<String>,
    /// From the first step of this target to the last, in milliseconds.
    pub duration_ms: u64,
    /// Steps of its Dockerfile that were reached.
    pub steps_total: u32,
    /// How many of those were cached.
    pub steps_cached: u32,
    /// BuildKit's error for this target.
    pub error: Option<String>,
}

/// Where the time went, each in whole milliseconds of a monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timings {
    /// From `enqueued_at` to the fetch, by the wall clocks of two machines: never negative.
    #[serde(rename = "queued_ms", serialize_with = "millis")]
    pub queued: Duration,
    /// Asking Rails.
    #[serde(rename = "resolve_ms", serialize_with = "millis")]
    pub resolve: Duration,
    /// Minting the token.
    #[serde(rename = "token_ms", serialize_with = "millis")]
    pub token: Duration,
    /// Fetching, waiting for a clone slot included.
    #[serde(rename = "fetch_ms", serialize_with = "millis")]
    pub fetch: Duration,
    /// Writing the worktree.
    #[serde(rename = "checkout_ms", serialize_with = "millis")]
    pub checkout: Duration,
    /// Resolving and policing the definition.
    #[serde(rename = "print_ms", serialize_with = "millis")]
    pub print: Duration,
    /// The bake itself.
    #[serde(rename = "bake_ms", serialize_with = "millis")]
    pub bake: Duration,
}

/// Which builder takes a build, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The builder's name in the configuration.
    pub builder: String,
    /// One part of it, when it has parts that we choose among.
    pub shard: Option<String>,
    /// The BuildKit pod, where it is known.
    pub pod: Option<String>,
    /// In words.
    pub why: String,
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
