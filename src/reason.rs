//! Why a build ended: the closed list of reasons.
//!
//! Owns, for each reason, its class and the one sentence that a customer reads. An integration's error answers `reason()`, and
//! [`Reason::class`] alone decides whether a failure is retried.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::text::paths::WorkerPaths;
use crate::{bounds, text};

/// Whose matter a reason is, and so what happens to the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The customer, or the author of the job, must change something: finished, reported, not retried.
    User,
    /// A failure of ours or of a third party: retried.
    Infrastructure,
    /// The build was ended on purpose: never counts as a retry.
    Control,
}

/// Declares the closed list once: variant, name on the wire, class, sentence.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $class:ident, $sentence:literal;)+) => {
        /// Why a build did not succeed. The names are public: Rails and alert rules match on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// Every reason, in the order of the list.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name on the wire, in snake case.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Whose matter it is.
            pub fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }

            /// One plain sentence that a customer can act on.
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)+ }
            }
        }
    };
}

reasons! {
    /// The arguments are not a valid build request.
    InvalidArguments = "invalid_arguments", User, "The build request is not valid.";
    /// Rails answered that the build no longer exists (404 or 410).
    Gone = "gone", User, "The build no longer exists in the application.";
    /// The App is not installed on the repository, or the repository does not exist.
    RepositoryNotFound = "repository_not_found", User, "The repository does not exist, or the GitHub App does not have access to it.";
    /// The commit is not in the repository, or not on the job's branch or tag.
    CommitNotFound = "commit_not_found", User, "The commit was not found.";
    /// The repository's content exceeds a limit, or git forbids it.
    SourceRefused = "source_refused", User, "The repository's files cannot be checked out.";
    /// buildx does not accept the definition.
    DefinitionInvalid = "definition_invalid", User, "The build definition is not valid.";
    /// The definition asks for something that the account is not allowed.
    PolicyRefused = "policy_refused", User, "The build definition asks for something that is not allowed.";
    /// The Dockerfile does not parse.
    DockerfileInvalid = "dockerfile_invalid", User, "The Dockerfile has an error.";
    /// The Dockerfile does not exist.
    DockerfileNotFound = "dockerfile_not_found", User, "The Dockerfile was not found.";
    /// A build context does not exist.
    ContextNotFound = "context_not_found", User, "The build context was not found.";
    /// A file named in COPY or ADD is not in the context.
    FileNotFound = "file_not_found", User, "A file that the Dockerfile copies is not in the build context.";
    /// A step of the Dockerfile ended with an error.
    StepFailed = "step_failed", User, "A step of the Dockerfile failed.";
    /// The image named in FROM does not exist.
    BaseImageNotFound = "base_image_not_found", User, "The base image was not found.";
    /// The build exceeded the job's time limit.
    TimedOut = "timed_out", User, "The build exceeded its time limit.";

    /// Rails' resolver cannot be reached, fails, or answers invalid data.
    ResolverUnavailable = "resolver_unavailable", Infrastructure, "The application did not provide the build request.";
    /// Rails' resolver refuses our signature (401 or 403): configuration.
    ResolverRefused = "resolver_refused", Infrastructure, "The application refused the worker's request for the build.";
    /// GitHub cannot be reached, fails, or limits the request rate.
    GithubUnavailable = "github_unavailable", Infrastructure, "GitHub is not answering.";
    /// GitHub refuses the App itself: wrong key, wrong id, suspended: configuration.
    GithubRefused = "github_refused", Infrastructure, "GitHub refused the App's credentials.";
    /// The git host cannot be reached, stalls or disconnects.
    GitUnavailable = "git_unavailable", Infrastructure, "The repository could not be fetched.";
    /// The builder cannot be reached or has no ready pod.
    BuilderUnavailable = "builder_unavailable", Infrastructure, "The builder is not available.";
    /// The builder was lost during a build.
    BuilderLost = "builder_lost", Infrastructure, "The builder was lost during the build.";
    /// The build printed nothing for too long.
    Stalled = "stalled", Infrastructure, "The build stopped making progress.";
    /// A registry cannot be reached, fails, or limits the request rate.
    RegistryUnavailable = "registry_unavailable", Infrastructure, "The image registry is not answering.";
    /// A registry refuses the credentials: configuration.
    RegistryDenied = "registry_denied", Infrastructure, "The image registry refused access.";
    /// buildx failed in an unknown way.
    BuildFailed = "build_failed", Infrastructure, "The build failed for an unknown reason.";
    /// The worker itself failed: disk, process, sandbox.
    WorkerFailed = "worker_failed", Infrastructure, "The build worker failed.";
    /// The job panicked: a bug.
    Panicked = "panicked", Infrastructure, "The build worker had an internal error.";
    /// The job crashed its worker three times while nothing else ran in it.
    Poison = "poison", Infrastructure, "The build repeatedly crashed the worker that ran it.";

    /// The build was cancelled.
    Cancelled = "cancelled", Control, "The build was cancelled.";
    /// The job was fetched after its `expiry`.
    Expired = "expired", Control, "The build request expired before the build started.";
    /// The worker stopped before the build ended.
    Interrupted = "interrupted", Control, "The build was interrupted and will start again.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What is known of a failure beside its reason. It decides whether another pod is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A signal ended the step, or its memory ran out. A pod that ends kills its steps first.
    StepKilled,
    /// Kubernetes forbids the request, whatever the pod.
    Forbidden,
}

/// A failed attempt: the reason, and the details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The entry of the closed list.
    pub reason: Reason,
    /// What happened, for a person: names the file, target, URL or field. Never contains a secret. Plain text of at most
    /// [`bounds::MESSAGE`] bytes.
    pub detail: String,
    /// No retry comes sooner than this: the failed service asked for it.
    pub wait: Duration,
    /// What else is known. No decision reads `detail`.
    pub evidence: Option<Evidence>,
    /// Whether the detail says all that the reason's sentence does.
    is_sentence: bool,
}

impl Failure {
    /// A failure with its detail. A long detail loses its middle.
    pub fn new(reason: Reason, detail: impl AsRef<str>) -> Self {
        let failure = Self { reason, detail: String::new(), wait: Duration::ZERO, evidence: None, is_sentence: false };
        failure.with_detail(detail.as_ref())
    }

    /// A failure whose detail is a sentence that says all: the message does not repeat the reason's own.
    pub fn saying(reason: Reason, sentence: impl AsRef<str>) -> Self {
        Self { is_sentence: true, ..Self::new(reason, sentence) }
    }

    fn with_detail(self, detail: &str) -> Self {
        Self { detail: text::elide(&text::plain(detail), bounds::MESSAGE).into_owned(), ..self }
    }

    /// The same, with the name of a part of the build.
    #[must_use]
    pub fn of(self, part: &str) -> Self {
        let detail = format!("{part}: {}", self.detail);
        self.with_detail(&detail)
    }

    /// The same, without the worker's paths.
    #[must_use]
    pub fn without(self, worker_paths: &WorkerPaths) -> Self {
        let detail = worker_paths.hide(&self.detail).into_owned();
        self.with_detail(&detail)
    }

    /// The same, with the time before which a retry would fail again.
    #[must_use]
    pub fn not_before(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// The same, with what else is known.
    #[must_use]
    pub fn with_evidence(self, evidence: Option<Evidence>) -> Self {
        Self { evidence, ..self }
    }

    /// For the customer: the reason's sentence, and the detail. At most [`bounds::MESSAGE`] bytes.
    pub fn message(&self) -> String {
        let sentence = if self.is_sentence { "" } else { self.reason.sentence() };
        let message = format!("{sentence} {}", self.detail);
        text::elide(message.trim(), bounds::MESSAGE).into_owned()
    }
}

/// Why a build was stopped before its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The worker stops.
    Shutdown,
    /// The job was reclaimed by another worker.
    Reclaimed,
    /// The build was cancelled.
    Cancelled,
    /// The build reached its time limit.
    TimedOut {
        /// The limit.
        limit: Duration,
    },
}

impl Cause {
    /// The failure that is reported, where one is.
    pub fn failure(self) -> Failure {
        match self {
            Self::Shutdown => Failure::new(Reason::Interrupted, "the worker stopped"),
            Self::Reclaimed => Failure::new(Reason::Interrupted, "the job was given to another worker"),
            Self::Cancelled => Failure::new(Reason::Cancelled, ""),
            Self::TimedOut { limit } => Failure::new(Reason::TimedOut, format!("the limit is {} s", limit.as_secs())),
        }
    }
}

/// Why an attempt did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It failed.
    Failed(Failure),
    /// It was stopped. Its cause is known to the code that stopped it.
    Stopped,
}

impl End {
    /// The same, with its failure mapped by `f`.
    #[must_use]
    pub fn map(self, f: impl FnOnce(Failure) -> Failure) -> Self {
        match self {
            Self::Failed(failure) => Self::Failed(f(failure)),
            Self::Stopped => Self::Stopped,
        }
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// An error that ends an attempt. The reason is decided where the cause is known.
pub trait HasReason: fmt::Display {
    /// The entry of the closed list; `None` when the attempt was stopped.
    fn reason(&self) -> Option<Reason>;

    /// How long the failed service asked to wait.
    fn wait(&self) -> Duration {
        Duration::ZERO
    }
}

impl<E: HasReason> From<E> for End {
    fn from(error: E) -> Self {
        match error.reason() {
            Some(reason) => Self::Failed(Failure::new(reason, error.to_string()).not_before(error.wait())),
            None => Self::Stopped,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_unique_and_sentences_are_sentences() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!(reason.sentence().ends_with('.'), "{reason}");
            assert!(reason.name().chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn a_failure_of_any_text_is_plain_and_bounded(text in any::<String>(), n in 1_usize..2000) {
            let failure = Failure::new(Reason::StepFailed, text.repeat(n)).of(&text);
            for said in [&failure.detail, &failure.message()] {
                prop_assert!(said.len() <= bounds::MESSAGE, "{} bytes", said.len());
                prop_assert_eq!(text::plain(said), said.as_str());
            }
        }
    }
}
