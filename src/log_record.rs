//! The records of a build's log, as JSON and as text for people. `docs/logs.md` describes both.
//!
//! The live log and the archived log have the same records. Every text is plain and bounded. A reader ignores types and fields that it
//! does not know.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::event::{Event, Step, Warning, millis};
use crate::{bounds, text};

/// One record.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type")]
pub enum LogRecord {
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
        /// The shard, if the builder has shards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shard: Option<String>,
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
    /// A long step still prints. Its lines come when it ends; this is only a sign of progress.
    #[serde(rename = "progress")]
    Progress {
        /// The step.
        #[serde(flatten)]
        of: StepOf,
        /// Lines that were printed and are not shown yet.
        lines: u64,
        /// Their bytes, without their ends.
        bytes: u64,
        /// The beginning of the latest line.
        last: String,
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
        /// Where the whole log is archived.
        #[serde(default)]
        log_url: Option<String>,
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
    pub fn new(step: &Step) -> Self {
        let target = step.target.as_deref().map(|target| cut(target, bounds::NAME));
        Self { target, step: text::clip(&text::one_line(&step.name), bounds::TITLE).into_owned() }
    }

    /// A short label before its lines, such as `vote 2/3`.
    pub fn label(self) -> String {
        Step { target: self.target.map(Into::into), name: self.step.into() }.label()
    }
}

impl LogRecord {
    /// The record of an event. `None` for events without one: such as the build's id, and a line of output.
    pub fn of(event: &Event) -> Option<Self> {
        let name = |name: &str| cut(name, bounds::NAME);
        Some(match event {
            Event::Commit { repository, sha, git_ref, .. } => {
                Self::Commit { repository: name(repository), sha: name(sha), r#ref: git_ref.as_deref().map(name) }
            }
            Event::PhaseStarted(phase) => Self::Phase { phase: phase.name().into() },
            Event::PhaseEnded(phase, took) => Self::PhaseEnd { phase: phase.name().into(), ms: millis(*took) },
            Event::Targets(count) => Self::Targets { count: *count },
            Event::Placed(at) => Self::Placed {
                builder: name(&at.builder),
                shard: at.shard.as_deref().map(name),
                pod: at.pod.as_deref().map(name),
                why: name(&at.why),
            },
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
            Event::Ended { status, reason, message, is_over, log_url } => Self::End {
                status: status.name().into(),
                reason: reason.map(|reason| reason.name().into()),
                message: message.as_deref().map(|message| cut(message, bounds::MESSAGE)),
                is_over: *is_over,
                log_url: log_url.clone(),
            },
            Event::BuildId(_)
            | Event::StepOutput { .. }
            | Event::Superseded(_)
            | Event::Coalesced(_)
            | Event::ContextSent { .. }
            | Event::PodLost { .. }
            | Event::Fetching { .. }
            | Event::Caching { .. }
            | Event::CachesMoved { .. } => return None,
        })
    }

    /// Writes the record as lines of `label | text`. The end of a phase or a step that succeeded has none.
    pub fn write_text(self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Output { of, lines } => {
                let label = of.label();
                lines.iter().try_for_each(|line| writeln!(out, "{label} | {}", text::plain(line)))
            }
            record => match line_of(record) {
                Some((label, line)) => writeln!(out, "{label} | {}", text::one_line(&line)),
                None => Ok(()),
            },
        }
    }

    /// The record as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a record is plain data")
    }
}

/// Plain text of at most so many bytes.
pub(crate) fn cut(words: &str, max_bytes: usize) -> String {
    text::clip(&text::plain(words), max_bytes).into_owned()
}

/// The label and the line of a record other than output. The end of a phase or a step says nothing new.
fn line_of(record: LogRecord) -> Option<(String, String)> {
    let of_build = |line: String| Some(("build".to_owned(), line));
    match record {
        LogRecord::Attempt { jid, number, removed_bytes: 0 } => of_build(format!("attempt {number} of job {jid}")),
        LogRecord::Attempt { jid, number, removed_bytes } => {
            of_build(format!("attempt {number} of job {jid}; earlier attempts were removed ({removed_bytes} bytes)"))
        }
        LogRecord::Commit { repository, sha, .. } => of_build(format!("{repository} at {sha}")),
        LogRecord::Phase { phase } => of_build(phase),
        LogRecord::Placed { builder, shard, pod, why } => {
            let builder = shard.map_or(builder.clone(), |shard| format!("{builder}, shard {shard}"));
            let at = pod.map_or(builder.clone(), |pod| format!("{builder}, pod {pod}"));
            of_build(format!("on builder {at}: {why}"))
        }
        LogRecord::Step { of } => {
            let title = of.step.clone();
            Some((of.label(), title))
        }
        LogRecord::Missing { of, lines, bytes } => {
            Some((of.label(), format!("… {lines} lines ({bytes} bytes) are missing here")))
        }
        LogRecord::StepEnd { of, error: Some(error), .. } => Some((of.label(), format!("failed: {error}"))),
        LogRecord::StepEnd { of, is_cached: true, .. } => Some((of.label(), "cached".into())),
        LogRecord::TargetEnd { target, status, digest, .. } => {
            let status = status.unwrap_or_else(|| "not reached".into());
            Some((target, digest.map_or(status.clone(), |digest| format!("{status}, {digest}"))))
        }
        LogRecord::Warning { target, message, dockerfile, line } => {
            let warning = Warning { target: None, message, dockerfile, line, url: None };
            Some((target.unwrap_or_else(|| "build".into()), warning.to_string()))
        }
        LogRecord::Notice { message } => of_build(format!("notice: {message}")),
        LogRecord::LeftOut { records, lines } => {
            of_build(format!("… {records} records and {lines} lines are left out here"))
        }
        LogRecord::End { status, message, is_over, log_url, .. } => {
            let rest = message.map_or(String::new(), |message| format!(": {message}"));
            let more = if is_over { "" } else { "; another attempt follows" };
            let archived = log_url.map_or(String::new(), |url| format!("; the whole log is at {url}"));
            of_build(format!("{status}{rest}{more}{archived}"))
        }
        LogRecord::Output { .. }
        | LogRecord::Progress { .. }
        | LogRecord::PhaseEnd { .. }
        | LogRecord::Targets { .. }
        | LogRecord::StepEnd { .. }
        | LogRecord::TargetDone { .. } => None,
    }
}
