//! What happens during a build, as values.
//!
//! Integrations emit them to the journal and do not know its listeners. A bake has build secrets and registry credentials, and a
//! step may print them. So the code that creates an event masks every text in it (`bake::mask`), makes it plain and bounds it.
//! The worker's own secrets never reach a child whose output becomes an event.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::reason::Reason;
use crate::text::lines::Lines;
use crate::{bounds, text};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Rails' id of the build, as far as it is known; again when it changes.
    BuildId(Option<Value>),
    /// The commit to build.
    Commit {
        /// Whose build it is.
        account: String,
        /// `owner/name`.
        repository: String,
        /// The commit.
        sha: String,
        /// As in the job.
        git_ref: Option<String>,
    },
    /// A phase of the build began.
    PhaseStarted(Phase),
    /// A phase ended; how long it took on the monotonic clock.
    PhaseEnded(Phase, Duration),
    /// The number of targets to build.
    Targets(usize),
    /// A target is built, and pushed if requested.
    TargetDone(String),
    /// The result of a target in one run of docker-buildx, emitted at the end of the run.
    TargetEnded(TargetReport),
    /// Where the build runs; again when the pod is known.
    Placed(Placement),
    /// The pod of the build is lost, and the build goes on on another one.
    PodLost {
        /// The builder's name in the configuration.
        builder: String,
    },
    /// What the cache did for a target; after [`Event::TargetEnded`].
    Caching {
        /// The target.
        target: String,
        /// The first step that was not cached, and why.
        not_cached: Option<Box<NotCached>>,
        /// The total time of the cached steps when they last ran, if it is known.
        saved: Option<Duration>,
    },
    /// How long a run of docker-buildx took to import and export caches.
    CachesMoved {
        /// The longest import.
        imported: Duration,
        /// The longest export.
        exported: Duration,
    },
    /// A newer job ended this one.
    Superseded(OtherJob),
    /// The result is that of another job with the same inputs.
    Coalesced(OtherJob),
    /// Bytes of build context that a run of docker-buildx sent.
    ContextSent {
        /// Of all contexts.
        n_bytes: u64,
    },
    /// Bytes of the repository received so far.
    Fetching {
        /// Bytes over the wire.
        received_bytes: u64,
    },
    /// A step began.
    StepStarted(Step),
    /// A step ended.
    StepEnded {
        /// Which one.
        step: Step,
        /// Whether its result was in the cache.
        is_cached: bool,
        /// Wall time on the builder's clock.
        took: Duration,
        /// BuildKit's error, when it failed.
        error: Option<String>,
    },
    /// Lines that a step printed.
    StepOutput {
        /// Which step.
        step: Step,
        /// The lines, in order.
        lines: Lines,
    },
    /// BuildKit warns about a Dockerfile.
    Warning(Warning),
    /// A message for the customer.
    Notice(String),
    /// One more notice than the limit.
    NoticeLeftOut,
    /// The attempt ended.
    Ended {
        /// How.
        status: Status,
        /// Why, unless it succeeded.
        reason: Option<Reason>,
        /// The same as a sentence for the customer.
        message: Option<String>,
        /// Whether the build is over: no other attempt follows.
        is_over: bool,
        /// Where its whole log is archived.
        log_url: Option<String>,
    },
}

/// A step of a target, as BuildKit names it. Clones share both texts: a step may print a million lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// The target, as far as the step's name shows it.
    pub target: Option<Arc<str>>,
    /// What the step does, such as `[2/3] RUN make`.
    pub name: Arc<str>,
}

impl Step {
    /// Whether `other` is an event's clone of the same step. Its target may differ: targets share steps, and BuildKit names them in turn.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.name, &other.name)
    }

    /// A short label: `vote 2/3`, `vote build 2/3`. At most [`bounds::LABEL`] bytes.
    pub fn label(&self) -> String {
        let bracket = self.name.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        self.after_target(bracket.map_or(&self.name, |(inside, _)| inside), bounds::LABEL)
    }

    /// A title for people: `vote [2/3] RUN make`. One line, at most [`bounds::TITLE`] bytes.
    pub fn title(&self) -> String {
        self.after_target(&self.name, bounds::TITLE)
    }

    fn after_target(&self, what: &str, max_bytes: usize) -> String {
        let words = match &self.target {
            Some(target) => Cow::Owned(format!("{target} {what}")),
            None => Cow::Borrowed(what),
        };
        text::clip(&text::one_line(&words), max_bytes).into_owned()
    }
}

/// The phases of a build, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Asking Rails for the build request.
    Resolve,
    /// Minting the installation token.
    Token,
    /// Fetching the commit.
    Fetch,
    /// Writing the worktree.
    Checkout,
    /// `docker-buildx bake --print` and validating.
    Print,
    /// Building base images on a new pod.
    Warm,
    /// `docker-buildx bake`.
    Bake,
    /// Exporting caches after the bake.
    CacheExport,
}

impl Phase {
    /// Lower case, as in log fields.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Token => "token",
            Self::Fetch => "fetch",
            Self::Checkout => "checkout",
            Self::Print => "print",
            Self::Warm => "warm",
            Self::Bake => "bake",
            Self::CacheExport => "cache_export",
        }
    }
}

/// The phases that have begun and not ended. One may begin within another.
#[derive(Clone, Debug, Default)]
pub struct OpenPhases(Vec<Phase>);

impl OpenPhases {
    /// Takes in one event.
    pub fn take_in(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted(phase) => self.0.push(*phase),
            Event::PhaseEnded(phase, _) => self.0.retain(|open| open != phase),
            _ => {}
        }
    }

    /// The phase that began last.
    pub fn innermost(&self) -> Option<Phase> {
        self.0.last().copied()
    }
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A moment of a build of which Rails can be notified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// An attempt began.
    Started,
    /// An attempt failed and will be retried.
    Retrying,
    /// The build is over.
    #[default]
    Finished,
}

impl Moment {
    /// As in the job's `callback.on`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Retrying => "retrying",
            Self::Finished => "finished",
        }
    }
}

/// The job that this one ended for, or whose result it has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OtherJob {
    /// Sidekiq's id of the job.
    pub jid: String,
    /// As in the job: a string or a number; null when the job says none, or only Rails knows it.
    pub build_id: Option<Value>,
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every target was built, and pushed if requested.
    Succeeded,
    /// It failed; the reason says why.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// A newer job builds the same.
    Superseded,
}

impl Status {
    /// As in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }
}

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TargetReport {
    /// The target's name.
    pub name: String,
    /// `succeeded`, `failed`, or null when it was not reached.
    pub status: Option<Status>,
    /// The pushed digest, `sha256:…`; null without a push.
    pub digest: Option<String>,
    /// The digest of the image in it: of an index, without its attestations. Null when it is not known.
    pub image_digest: Option<ImageDigest>,
    /// Image references.
    pub tags: Vec<String>,
    /// From the first step of this target to the last, in milliseconds.
    pub duration_ms: u64,
    /// Steps of its Dockerfile that were reached.
    pub steps_total: u32,
    /// How many of those were cached.
    pub steps_cached: u32,
    /// The step that failed.
    pub failed_step: Option<FailedStep>,
    /// The output of this step that explains the failure: its last lines, and earlier ones that look like an error. At most
    /// [`bounds::LOG_TAIL_LINES`] lines and [`bounds::LOG_TAIL`] bytes.
    pub log_tail: Option<String>,
    /// The total time of the cached steps when they last ran, in milliseconds; null when it is not known.
    pub saved_ms: Option<u64>,
    /// The first step that was not cached, and why; null when all were, or when no step was reached.
    pub why_not_cached: Option<Box<NotCached>>,
    /// Why this target failed, without the step's instruction.
    pub error: Option<String>,
}

/// The digests of a target's images. Those of two builds are equal when the images are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum ImageDigest {
    /// Of an image for one platform.
    Single(String),
    /// By platform, as the definition names it.
    ByPlatform(BTreeMap<String, String>),
}

/// A step of a Dockerfile that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct FailedStep {
    /// Its number in its stage, from 1.
    pub number: u32,
    /// How many steps the stage has.
    pub total: u32,
    /// The stage's name, when it is not the last one or the Dockerfile has several.
    pub stage: Option<String>,
    /// The instruction as BuildKit shows it, such as `RUN npm ci`.
    pub instruction: String,
    /// Path of the Dockerfile from the root of the repository; null for an inline one.
    pub dockerfile: Option<String>,
    /// The instruction's first line in the Dockerfile, from 1, when it is known.
    pub line: Option<u32>,
    /// How the step's process ended; null when the step has none, or it was not started.
    pub exit_code: Option<i32>,
}

/// A step of a Dockerfile that was not cached, and why.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct NotCached {
    /// Its number in its stage, from 1.
    pub number: u32,
    /// How many steps the stage has.
    pub total: u32,
    /// The stage's name, when the Dockerfile gives it one and has several.
    pub stage: Option<String>,
    /// The instruction as BuildKit shows it, such as `COPY . .`.
    pub instruction: String,
    /// Path of the Dockerfile from the root of the repository; null for an inline one.
    pub dockerfile: Option<String>,
    /// The instruction's first line in the Dockerfile, from 1; null when it is not known.
    pub line: Option<u32>,
    /// Why.
    pub cause: CacheMiss,
    /// The same as a sentence for the customer.
    pub message: String,
}

/// Why a step was not cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMiss {
    /// The job or the target wants nothing from the cache.
    NoCache,
    /// No earlier build of the target is known.
    FirstBuild,
    /// The instruction, or one before it that it depends on, is new or changed.
    InstructionChanged,
    /// A build argument that it depends on changed.
    ArgumentChanged,
    /// The base image has another digest.
    BaseChanged,
    /// A file that it reads changed.
    FilesChanged,
    /// The last build ran on another pod.
    OtherPod,
    /// The last build began this step and did not finish it.
    NotFinished,
    /// Nothing changed, and the builder no longer has the result.
    Evicted,
    /// None of these is certain.
    NotKnown,
}

impl CacheMiss {
    /// As in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCache => "no_cache",
            Self::FirstBuild => "first_build",
            Self::InstructionChanged => "instruction_changed",
            Self::ArgumentChanged => "argument_changed",
            Self::BaseChanged => "base_changed",
            Self::FilesChanged => "files_changed",
            Self::OtherPod => "other_pod",
            Self::NotFinished => "not_finished",
            Self::Evicted => "evicted",
            Self::NotKnown => "not_known",
        }
    }
}

/// A warning of BuildKit about a Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Warning {
    /// The target.
    pub target: Option<String>,
    /// What is wrong, and the name of the rule.
    pub message: String,
    /// Path of the Dockerfile from the root of the repository; null for an inline one.
    pub dockerfile: Option<String>,
    /// The first line that it is about, from 1.
    pub line: Option<u32>,
    /// Where the rule is explained.
    pub url: Option<String>,
}

/// The builder and pod of a build, and why they were chosen.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Placement {
    /// The builder's name in the configuration.
    pub builder: String,
    /// The shard, if the builder has shards: its Deployment's name.
    #[serde(default)]
    pub shard: Option<String>,
    /// The BuildKit pod, if it is known.
    pub pod: Option<String>,
    /// The reason, in words.
    pub why: String,
}

impl Placement {
    /// The name of what has the cache: the shard, whose disk outlives its pod, else the pod.
    pub fn cache(&self) -> Option<&str> {
        self.shard.as_deref().or(self.pod.as_deref())
    }
}

impl fmt::Display for Warning {
    /// `warning: web/Dockerfile:3: MESSAGE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("warning: ")?;
        if let Some(dockerfile) = &self.dockerfile {
            f.write_str(dockerfile)?;
            self.line.map_or(Ok(()), |line| write!(f, ":{line}"))?;
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_a_label_and_a_title_of_bounded_length() {
        let step = |name: &str| Step { target: Some("vote".into()), name: name.into() };
        assert_eq!(step("[2/3] RUN make").label(), "vote 2/3");
        assert_eq!(step("[build 2/3] RUN make").label(), "vote build 2/3");
        assert_eq!(step("exporting to image").label(), "vote exporting to image");
        assert_eq!(step("[2/3] RUN <<EOF\nmake\nEOF").title(), "vote [2/3] RUN <<EOF make EOF");
        let long = step(&format!("[2/3] RUN {}", "x".repeat(60_000)));
        assert_eq!(long.label(), "vote 2/3");
        assert!(long.title().len() <= bounds::TITLE && long.title().ends_with(" more bytes)"), "{}", long.title());
    }
}
