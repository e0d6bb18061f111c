//! Why a build ended: the closed list of reasons.
//!
//! Owns, for each reason, its class, the one sentence that a customer reads, and what to do. An integration's error answers
//! `reason()`, and [`Reason::class`] alone decides whether a failure is retried. `docs/reasons.md` is made from this list.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

impl Class {
    /// Lower case, as in the documentation and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Infrastructure => "infrastructure",
            Self::Control => "control",
        }
    }
}

/// Declares the closed list once: variant, name on the wire, class, sentence, remedy.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $class:ident, $sentence:literal, $remedy:literal;)+) => {
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

            /// What it means, for the documentation.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }

            /// What the customer or the operator does about it, for the documentation.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)+ }
            }
        }
    };
}

reasons! {
    /// The arguments are not a valid build request.
    InvalidArguments = "invalid_arguments", User, "The build request is not valid.",
        "Correct the field that the message names.";
    /// Rails answered that the build no longer exists (404 or 410).
    Gone = "gone", User, "The build no longer exists in the application.",
        "Nothing. The application deleted the build.";
    /// The App is not installed on the repository, or the repository does not exist.
    RepositoryNotFound = "repository_not_found", User, "The repository does not exist, or the GitHub App does not have access to it.",
        "Check the repository's name. Give the GitHub App access to it.";
    /// GitHub refuses the App this repository: a suspended installation, an address allow list, a blocked repository.
    RepositoryDenied = "repository_denied", User, "GitHub does not let the GitHub App read the repository.",
        "Read GitHub's answer in the message. Resume the App's installation, or allow the worker's addresses.";
    /// The commit is not in the repository, or not on the job's branch or tag.
    CommitNotFound = "commit_not_found", User, "The commit was not found.",
        "Push the commit to the branch or tag of the build.";
    /// The repository's content exceeds a limit, or git forbids it.
    SourceRefused = "source_refused", User, "The repository's files cannot be checked out.",
        "Change the file that the message names.";
    /// buildx does not accept the definition.
    DefinitionInvalid = "definition_invalid", User, "The build definition is not valid.",
        "Correct the field that the message names.";
    /// The definition asks for something that the account is not allowed.
    PolicyRefused = "policy_refused", User, "The build definition asks for something that is not allowed.",
        "Remove the field that the message names.";
    /// A message to or from the builder is larger than BuildKit accepts.
    BuildTooLarge = "build_too_large", User, "The Dockerfile or the build definition is too large for the builder.",
        "Move long texts from the Dockerfile into files, and copy them. Fix lint warnings of a long Dockerfile.";
    /// The Dockerfile or its ignore file does not parse, or is not UTF-8.
    DockerfileInvalid = "dockerfile_invalid", User, "The Dockerfile has an error.",
        "Correct the line that the message names. Save the file as UTF-8.";
    /// The Dockerfile does not exist.
    DockerfileNotFound = "dockerfile_not_found", User, "The Dockerfile was not found.",
        "Commit the Dockerfile, or correct its path.";
    /// The image named in `# syntax=` does not exist, is not accessible, or is not a frontend.
    FrontendNotFound = "frontend_not_found", User, "The Dockerfile frontend named in `# syntax=` was not found, or is not a frontend.",
        "Correct or remove the `# syntax=` line.";
    /// A build context does not exist.
    ContextNotFound = "context_not_found", User, "The build context was not found.",
        "Commit the directory, or correct its path. Upper and lower case differ.";
    /// A file named in COPY, ADD or a mount is not in the context, stage or image.
    FileNotFound = "file_not_found", User, "A file that the Dockerfile copies was not found.",
        "Commit the file, correct its path, or remove it from `.dockerignore`.";
    /// A step of the Dockerfile ended with an error.
    StepFailed = "step_failed", User, "A step of the Dockerfile failed.",
        "Read the step's output, and correct the step.";
    /// A step was killed by KILL (exit code 137), or the kernel reported that its memory ran out. Only a builder with
    /// cgroup v2 reports the second. On others, a step that kills itself looks the same.
    OutOfMemory = "out_of_memory", User, "A step of the Dockerfile was killed, most likely because it needed more memory than the builder allows.",
        "Make the step use less memory, such as with fewer parallel jobs. Operators: see `builders.NAME.limits`.";
    /// The image named in FROM, COPY --from or a mount does not exist, nor a stage of that name; or its registry's host
    /// does not exist; or it is not an image, or not one for the platform of the build.
    BaseImageNotFound = "base_image_not_found", User, "The base image was not found, or cannot be used.",
        "Correct the name, the tag or the stage.";
    /// A registry that the platform neither pushes to nor has credentials for refuses a base image.
    BaseImageDenied = "base_image_denied", User, "The registry of the base image does not give access to it.",
        "Make the base image public, or use another one.";
    /// A registry permanently refuses a request: 400, 404, 405, 412, 413, 415, an immutable tag, a quota.
    RegistryRejected = "registry_rejected", User, "The image registry rejected the request.",
        "Read the registry's answer in the message. Use another tag, or make the image smaller.";
    /// The build exceeded the job's time limit.
    TimedOut = "timed_out", User, "The build exceeded its time limit.",
        "Make the build faster, or raise the job's `timeout_s`.";

    /// Rails' resolver cannot be reached, fails, or answers invalid data.
    ResolverUnavailable = "resolver_unavailable", Infrastructure, "The application did not provide the build request.",
        "Check the application's resolver endpoint.";
    /// Rails' resolver refuses our signature (401 or 403): configuration.
    ResolverRefused = "resolver_refused", Infrastructure, "The application refused the worker's request for the build.",
        "Check that both sides have the same secret and time.";
    /// GitHub cannot be reached, fails, or limits the request rate.
    GithubUnavailable = "github_unavailable", Infrastructure, "GitHub is not answering.",
        "Wait. Check GitHub's status.";
    /// GitHub refuses the App itself: wrong key, wrong id: configuration.
    GithubRefused = "github_refused", Infrastructure, "GitHub refused the App's credentials.",
        "Check the App's id and key.";
    /// The git host cannot be reached, stalls or disconnects.
    GitUnavailable = "git_unavailable", Infrastructure, "The repository could not be fetched.",
        "Wait. Check the connection to the git host.";
    /// The builder cannot be reached or has no ready pod.
    BuilderUnavailable = "builder_unavailable", Infrastructure, "The builder is not available.",
        "Check the builder with `sidebake doctor`.";
    /// The builder was lost during a build.
    BuilderLost = "builder_lost", Infrastructure, "The builder was lost during the build.",
        "Check why the builder's pod or BuildKit ended.";
    /// BuildKit itself found the builder's disk full. A command that says so does not prove it.
    BuilderDiskFull = "builder_disk_full", Infrastructure, "The builder's disk is full.",
        "Enlarge the builder's disk, or lower BuildKit's garbage collection limits.";
    /// The build printed nothing for too long.
    Stalled = "stalled", Infrastructure, "The build stopped making progress.",
        "Check the builder. Raise `bake.silence` for steps that print nothing.";
    /// A registry cannot be reached, fails, or sends broken content.
    RegistryUnavailable = "registry_unavailable", Infrastructure, "The image registry is not answering.",
        "Wait. Check the registry and the builder's connection to it.";
    /// A registry limits the request rate (429).
    RegistryRateLimited = "registry_rate_limited", Infrastructure, "The image registry limits the request rate.",
        "Wait. Configure credentials for the registry, or a mirror.";
    /// A registry refuses the platform's credentials: configuration.
    RegistryDenied = "registry_denied", Infrastructure, "The image registry refused access.",
        "Check the account's registry credentials and `sandbox.registry_ports`.";
    /// buildx failed in an unknown way.
    BuildFailed = "build_failed", Infrastructure, "The build failed for an unknown reason.",
        "Read the message and the worker's log. Report it, so that it gets its own reason.";
    /// The worker itself failed: disk, process, sandbox.
    WorkerFailed = "worker_failed", Infrastructure, "The build worker failed.",
        "Read the worker's log. Check it with `sidebake doctor`.";
    /// The job panicked: a bug.
    Panicked = "panicked", Infrastructure, "The build worker had an internal error.",
        "Report the error in the worker's log.";
    /// The job crashed its worker three times while nothing else ran in it.
    Poison = "poison", Infrastructure, "The build repeatedly crashed the worker that ran it.",
        "Read the worker's log, and check its memory limit. Then retry the job from the dead set.";

    /// The build was cancelled.
    Cancelled = "cancelled", Control, "The build was cancelled.",
        "Nothing.";
    /// A newer job of the same account, repository and ref, or with the same `supersede_key`, was enqueued.
    Superseded = "superseded", Control, "A newer build of the same branch replaced this one.",
        "Nothing. The newer build has its own result.";
    /// The job was fetched after its `expiry`.
    Expired = "expired", Control, "The build request expired before the build started.",
        "Enqueue the build again. Add workers when this happens often.";
    /// The worker stopped before the build ended.
    Interrupted = "interrupted", Control, "The build was interrupted and will start again.",
        "Nothing. The job is back on its queue.";
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

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Self::ALL.iter().find(|reason| reason.name() == name);
        found.copied().ok_or_else(|| serde::de::Error::custom(format!("unknown reason {name:?}")))
    }
}

/// What is known of a failure beside its reason. It decides whether another pod is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// TERM ended the step. A pod that ends kills its steps first.
    StepKilled,
    /// KILL ended the step, or the kernel reported that its memory ran out.
    OutOfMemory,
    /// The error of a step is not a known one. A builder that ends may cause it.
    UnknownError,
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

    /// The same. Its detail says all that the reason's sentence does, so the message does not repeat that.
    #[must_use]
    pub fn as_sentence(self) -> Self {
        Self { is_sentence: true, ..self }
    }

    /// The same, with another detail.
    #[must_use]
    pub fn with_detail(self, detail: &str) -> Self {
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
    /// A newer job builds the same.
    Superseded,
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
            Self::Reclaimed => {
                Failure::new(Reason::Interrupted, "Redis no longer had the job in flight at this worker")
            }
            Self::Cancelled => Failure::new(Reason::Cancelled, ""),
            Self::Superseded => Failure::new(Reason::Superseded, ""),
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
            for prose in [reason.sentence(), reason.meaning(), reason.remedy()] {
                assert!(prose.ends_with('.') && !prose.contains("  "), "{reason}: {prose}");
            }
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
