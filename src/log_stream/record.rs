//! The records of a log stream, as JSON. `docs/logs.md` describes the format for readers in other languages.
//!
//! Every text is plain and bounded. A reader ignores types and fields that it does not know.

use serde::{Deserialize, Serialize};

use crate::event::{Event, Step, millis};
use crate::{bounds, text};

/// One record.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type")]
pub enum Record {
    /// An attempt at the build began.
    #[serde(rename = "attempt")]
    Attempt {
        /// The job.
        jid: String,
        /// From 1.
        number: u32,
        /// Bytes of earlier attempts that were removed to make room.
        #[serde(default)]
        removed_bytes: usize,
    },
    /// The commit to build.
    #[serde(rename = "commit")]
    Commit {
        /// `owner/name`.
        repository: String,
        /// The commit.
        sha: String,
        /// As in the job.
        r#ref: Option<String>,
    },
    /// A phase began.
    #[serde(rename = "phase")]
    Phase {
        /// Its name.
        phase: String,
    },
    /// A phase ended.
    #[serde(rename = "phase_end")]
    PhaseEnd {
        /// Its name.
        phase: String,
        /// How long it took.
        ms: u64,
    },
    /// The number of targets to build.
    #[serde(rename = "targets")]
    Targets {
        /// How many.
        count: usize,
    },
    /// Where the build runs.
    #[serde(rename = "placed")]
    Placed {
        /// The builder's name in the configuration.
        builder: String,
        /// The BuildKit pod, if it is known.
        pod: Option<String>,
        /// The reason, in words.
        why: String,
    },
    /// A step began.
    #[serde(rename = "step")]
    Step {
        /// The step.
        #[serde(flatten)]
        of: StepOf,
    },
    /// Lines that a step printed.
    #[serde(rename = "output")]
    Output {
        /// The step.
        #[serde(flatten)]
        of: StepOf,
        /// The lines, without their ends.
        lines: Vec<String>,
    },
    /// Output of a step that is missing here.
    #[serde(rename = "missing")]
    Missing {
        /// The step.
        #[serde(flatten)]
        of: StepOf,
        /// How many lines.
        lines: u64,
        /// Their bytes, without their ends.
        bytes: u64,
    },
    /// A step ended.
    #[serde(rename = "step_end")]
    StepEnd {
        /// The step.
        #[serde(flatten)]
        of: StepOf,
        /// Whether its result was in the cache.
        is_cached: bool,
        /// How long it took.
        ms: u64,
        /// BuildKit's error, when it failed.
        error: Option<String>,
    },
    /// A target is built, and pushed if requested.
    #[serde(rename = "target_done")]
    TargetDone {
        /// Its name.
        target: String,
    },
    /// The result of a target in one run of docker-buildx.
    #[serde(rename = "target_end")]
    TargetEnd {
        /// Its name.
        target: String,
        /// `succeeded`, `failed`, or null when it was not reached.
        status: Option<String>,
        /// The pushed digest.
        digest: Option<String>,
        /// From its first step to its last.
        ms: u64,
        /// Steps of its Dockerfile that were reached.
        steps_total: u32,
        /// How many of those were cached.
        steps_cached: u32,
    },
    /// BuildKit warns about a Dockerfile.
    #[serde(rename = "warning")]
    Warning {
        /// The target.
        target: Option<String>,
        /// What is wrong.
        message: String,
        /// Path of the Dockerfile from the root of the repository.
        dockerfile: Option<String>,
        /// The first line that it is about.
        line: Option<u32>,
    },
    /// A message for the customer.
    #[serde(rename = "notice")]
    Notice {
        /// The message.
        message: String,
    },
    /// What is missing here beside the output of single steps.
    #[serde(rename = "left_out")]
    LeftOut {
        /// How many records.
        records: u64,
        /// How many lines of output.
        lines: u64,
    },
    /// The attempt ended.
    #[serde(rename = "end")]
    End {
        /// `succeeded`, `failed` or `cancelled`.
        status: String,
        /// Why, unless it succeeded.
        reason: Option<String>,
        /// The same as a sentence.
        message: Option<String>,
        /// Whether the build is over: no other attempt follows.
        is_over: bool,
    },
}

/// The step of a record.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct StepOf {
    /// The target, as far as the step's name shows it.
    pub target: Option<String>,
    /// The step's name on one line, such as `[2/3] RUN make`.
    pub step: String,
}

impl StepOf {
    /// The step of an event.
    pub(super) fn new(step: &Step) -> Self {
        let target = step.target.as_deref().map(|target| cut(target, bounds::NAME));
        Self { target, step: text::clip(&text::one_line(&step.name), bounds::TITLE).into_owned() }
    }
}

impl Record {
    /// The record of an event. `None` for events without one: such as the build's id, and a line of output.
    pub(super) fn of(event: &Event) -> Option<Self> {
        let name = |name: &str| cut(name, bounds::NAME);
        Some(match event {
            Event::Commit { repository, sha, git_ref, .. } => {
                Self::Commit { repository: name(repository), sha: name(sha), r#ref: git_ref.as_deref().map(name) }
            }
            Event::PhaseStarted(phase) => Self::Phase { phase: phase.name().into() },
            Event::PhaseEnded(phase, took) => Self::PhaseEnd { phase: phase.name().into(), ms: millis(*took) },
            Event::Targets(count) => Self::Targets { count: *count },
            Event::Placed(at) => {
                Self::Placed { builder: name(&at.builder), pod: at.pod.as_deref().map(name), why: name(&at.why) }
            }
            Event::StepStarted(step) => Self::Step { of: StepOf::new(step) },
            Event::StepEnded { step, is_cached, took, error } => {
                let error = error.as_deref().map(|error| cut(error, bounds::NOTICE));
                Self::StepEnd { of: StepOf::new(step), is_cached: *is_cached, ms: millis(*took), error }
            }
            Event::TargetDone(target) => Self::TargetDone { target: name(target) },
            Event::TargetEnded(target) => Self::TargetEnd {
                target: name(&target.name),
                status: target.status.map(|status| status.name().into()),
                digest: target.digest.as_deref().map(name),
                ms: target.duration_ms,
                steps_total: target.steps_total,
                steps_cached: target.steps_cached,
            },
            Event::Warning(warning) => Self::Warning {
                target: warning.target.as_deref().map(name),
                message: cut(&warning.message, bounds::NOTICE),
                dockerfile: warning.dockerfile.as_deref().map(name),
                line: warning.line,
            },
            Event::Notice(message) => Self::Notice { message: cut(message, bounds::NOTICE) },
            Event::NoticeLeftOut => Self::LeftOut { records: 1, lines: 0 },
            Event::Ended { status, reason, message, is_over } => Self::End {
                status: status.name().into(),
                reason: reason.map(|reason| reason.name().into()),
                message: message.as_deref().map(|message| cut(message, bounds::MESSAGE)),
                is_over: *is_over,
            },
            Event::BuildId(_) | Event::StepOutput { .. } | Event::ContextSent { .. } | Event::Fetching { .. } => {
                return None;
            }
        })
    }

    /// The record as JSON.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a record is plain data")
    }
}

/// Plain text of at most so many bytes.
pub(super) fn cut(words: &str, max_bytes: usize) -> String {
    text::clip(&text::plain(words), max_bytes).into_owned()
}
