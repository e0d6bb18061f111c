//! Why a build ended as it did: the closed list.
//!
//! Owns, for each reason, whose matter it is and the one sentence that a customer reads. Nothing else in the program
//! decides whether a failure is retried: an integration's error answers `reason()`, and [`Reason::class`] says the rest.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::text::places::Places;
use crate::{bounds, text};

/// Whose matter a reason is, and so what becomes of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The customer, or whoever wrote the job, must change something: finished, reported, not retried.
    User,
    /// Something of ours or a third party's broke: retried.
    Infrastructure,
    /// Somebody decided that the build should end: never counts as a retry.
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
    /// The arguments are not a build that this version understands.
    InvalidArguments = "invalid_arguments", User, "The build request is not valid.";
    /// Rails answered that the build no longer exists (404 or 410).
    Gone = "gone", User, "The build no longer exists in the application.";
    /// The App is not installed on the repository, or there is no such repository.
    RepositoryNotFound = "repository_not_found", User, "The repository does not exist, or the GitHub App may not see it.";
    /// The commit is not in the repository.
    CommitNotFound = "commit_not_found", User, "The commit is not in the repository.";
    /// The content of the repository cannot be checked out: a limit, or a name that git forbids.
    SourceRefused = "source_refused", User, "The content of the repository cannot be checked out.";
    /// buildx cannot make sense of the definition.
    DefinitionInvalid = "definition_invalid", User, "The build definition is not valid.";
    /// The definition asks for something that this account may not do.
    PolicyRefused = "policy_refused", User, "The build definition asks for something that is not allowed.";
    /// The Dockerfile does not parse.
    DockerfileInvalid = "dockerfile_invalid", User, "The Dockerfile has an error.";
    /// There is no Dockerfile at the given path.
    DockerfileNotFound = "dockerfile_not_found", User, "The Dockerfile was not found.";
    /// A build context is not there.
    ContextNotFound = "context_not_found", User, "The build context was not found.";
    /// A file named in COPY or ADD is not in the context.
    FileNotFound = "file_not_found", User, "A file that the Dockerfile copies was not found.";
    /// A step of the Dockerfile ended with an error.
    StepFailed = "step_failed", User, "A step of the Dockerfile failed.";
    /// The image named in FROM does not exist.
    BaseImageNotFound = "base_image_not_found", User, "The base image was not found.";
    /// The build took longer than the job allows.
    TimedOut = "timed_out", User, "The build took longer than allowed.";

    /// Rails' resolver cannot be reached, or answers an error or nonsense.
    ResolverUnavailable = "resolver_unavailable", Infrastructure, "The application could not be asked for the build.";
    /// Rails' resolver refuses our signature (401 or 403): configuration.
    ResolverRefused = "resolver_refused", Infrastructure, "The application refused to describe the build.";
    /// GitHub cannot be reached, is failing, or limits our rate.
    GithubUnavailable = "github_unavailable", Infrastructure, "GitHub is not answering.";
    /// GitHub refuses the App itself: wrong key, wrong id, suspended: configuration.
    GithubRefused = "github_refused", Infrastructure, "GitHub refused the App's credentials.";
    /// The git host cannot be reached, stalls or breaks off.
    GitUnavailable = "git_unavailable", Infrastructure, "The repository could not be fetched.";
    /// The builder cannot be reached or has no ready pod.
    BuilderUnavailable = "builder_unavailable", Infrastructure, "The builder is not available.";
    /// The builder went away in the middle of a build.
    BuilderLost = "builder_lost", Infrastructure, "The builder went away during the build.";
    /// There was no output for too long.
    Stalled = "stalled", Infrastructure, "The build stopped making progress.";
    /// A registry cannot be reached, is failing, or limits our rate.
    RegistryUnavailable = "registry_unavailable", Infrastructure, "The image registry is not answering.";
    /// A registry refuses the credentials: configuration.
    RegistryDenied = "registry_denied", Infrastructure, "The image registry refused access.";
    /// buildx failed in a way that we do not know.
    BuildFailed = "build_failed", Infrastructure, "The build failed for an unknown reason.";
    /// The worker itself failed: disk, process, sandbox.
    WorkerFailed = "worker_failed", Infrastructure, "The build worker had a problem of its own.";
    /// The job panicked: a bug of ours.
    Panicked = "panicked", Infrastructure, "The build worker had an internal error.";
    /// The job crashed its worker three times while nothing else ran in it.
    Poison = "poison", Infrastructure, "The build repeatedly crashed the worker that ran it.";

    /// Somebody cancelled the build.
    Cancelled = "cancelled", Control, "The build was cancelled.";
    /// The job was fetched after its `expiry`.
    Expired = "expired", Control, "The build request had expired before it could start.";
    /// The worker was told to stop before the build had ended.
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

/// An attempt that did not succeed: the reason, and what exactly happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The entry of the closed list.
    pub reason: Reason,
    /// What happened, for a person: names the file, target, URL or field. Never contains a secret. Plain text of at most
    /// [`bounds::MESSAGE`] bytes, since every failure is made here.
    pub detail: String,
    /// How long whoever failed us wants to be left alone; no retry comes sooner.
    pub wait: Duration,
}

impl Failure {
    /// A failure with its detail, of which the middle goes when it is too long.
    pub fn new(reason: Reason, detail: impl AsRef<str>) -> Self {
        let detail = text::elide(&text::plain(detail.as_ref()), bounds::MESSAGE).into_owned();
        Self { reason, detail, wait: Duration::ZERO }
    }

    /// The same, of a part of the build that has a name.
    #[must_use]
    pub fn of(self, part: &str) -> Self {
        Self { wait: self.wait, ..Self::new(self.reason, format!("{part}: {}", self.detail)) }
    }

    /// The same, without what a customer should not read of the worker.
    #[must_use]
    pub fn without(self, places: &Places) -> Self {
        Self { wait: self.wait, ..Self::new(self.reason, places.hide(&self.detail)) }
    }

    /// The same, with the time before which a retry would be in vain.
    #[must_use]
    pub fn not_before(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// For the customer: the sentence of the reason, and what exactly happened. At most [`bounds::MESSAGE`] bytes.
    pub fn message(&self) -> String {
        let message = format!("{} {}", self.reason.sentence(), self.detail);
        text::elide(message.trim_end(), bounds::MESSAGE).into_owned()
    }
}

/// Why a build was stopped before it had ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The worker ends.
    Shutdown,
    /// The job was given to another worker.
    Reclaimed,
    /// The build was cancelled.
    Cancelled,
}

impl Cause {
    /// What is told of it, where anybody is told.
    pub fn failure(self) -> Failure {
        match self {
            Self::Shutdown => Failure::new(Reason::Interrupted, "the worker stopped"),
            Self::Reclaimed => Failure::new(Reason::Interrupted, "the job was given to another worker"),
            Self::Cancelled => Failure::new(Reason::Cancelled, ""),
        }
    }
}

/// Why an attempt did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It failed.
    Failed(Failure),
    /// It was stopped. Why is known to whoever stopped it.
    Stopped,
}

impl End {
    /// The same, with a failure that `f` has made of its own.
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

    /// How long whoever failed us wants to be left alone.
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
