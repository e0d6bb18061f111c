//! What happens during a build, as values.
//!
//! Integrations hand these to the journal and do not care who looks. A bake has the build's secrets and its registries' credentials,
//! and a step may print them: so whoever makes an event masks every text in it (`bake::mask`), makes it plain and bounds it. The
//! worker's own secrets reach no child whose output becomes an event.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::{bounds, text};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What Rails calls the build, as far as it is known; also when that changes.
    BuildId(Option<Value>),
    /// What will be built.
    Commit {
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
    /// So many targets will be built.
    Targets(usize),
    /// A target is built, and pushed when asked.
    TargetDone(String),
    /// What a run of docker-buildx made of a target, told when the run has ended.
    TargetEnded(TargetReport),
    /// Where it is built; told again when the pod is known.
    Placed(Placement),
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
    /// A line that a step printed.
    StepOutput {
        /// Which step.
        step: Step,
        /// The line, without its end.
        line: String,
    },
    /// Something that the person who asked for the build should know.
    Notice(String),
    /// One more notice than there may be.
    NoticeLeftOut,
}

/// A step of a target, as BuildKit names it. A clone shares both texts: a step may print a million lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// The target, as far as the name tells.
    pub target: Option<Arc<str>>,
    /// What the step does, such as `[2/3] RUN make`.
    pub name: Arc<str>,
}

impl Step {
    /// Which step it is, in a few words: `vote 2/3`, `vote build 2/3`. At most [`bounds::LABEL`] bytes.
    pub fn label(&self) -> String {
        let bracket = self.name.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        self.after_target(bracket.map_or(&self.name, |(inside, _)| inside), bounds::LABEL)
    }

    /// The step as people read it: `vote [2/3] RUN make`. One line, at most [`bounds::TITLE`] bytes.
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
    /// Asking Rails for the job's rows.
    Resolve,
    /// Minting the installation token.
    Token,
    /// Fetching the commit.
    Fetch,
    /// Writing the worktree.
    Checkout,
    /// `docker-buildx bake --print` and validating.
    Print,
    /// `docker-buildx bake`.
    Bake,
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
            Self::Bake => "bake",
        }
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
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
