//! Why a bake failed: one entry of the closed list, from its exit and its events.
//!
//! Steps are judged first, by the vertex that failed; only then is the last `ERROR:` line read. What a customer wrote is
//! never matched: BuildKit quotes commands in its errors, and `RUN false # connection refused` is no network failure.

use super::progress::{Progress, StepFailure, Vertex};
use crate::process::Ended;
use crate::reason::{Failure, Reason};

/// Why the bake failed; `None` when it succeeded.
pub(super) fn diagnose(ended: Ended, progress: &Progress) -> Option<Failure> {
    match ended {
        Ended::Exited(status) if status.success() => None,
        Ended::Exited(_) => Some(exited(progress)),
        Ended::TimedOut => Some(Failure::new(Reason::TimedOut, "the build was stopped at its time limit")),
        Ended::Silent => Some(Failure::new(Reason::Stalled, "docker-buildx said nothing for too long and was killed")),
        Ended::TooMuchOutput => {
            Some(Failure::new(Reason::BuildFailed, "docker-buildx wrote an image to its standard output"))
        }
        Ended::Stopped => Some(Failure::new(Reason::Interrupted, "the build was stopped")),
    }
}

fn exited(progress: &Progress) -> Failure {
    if let Some((reason, vertex)) = progress.failed().find_map(judge) {
        return Failure::new(reason, describe(vertex));
    }
    let error = progress.error.as_deref().or(progress.last_text()).unwrap_or("docker-buildx ended without a word");
    let reason = by_error_line(error).unwrap_or(Reason::BuildFailed);
    Failure::new(reason, error.chars().take(2000).collect::<String>())
}

/// What a failed vertex says: a step of the Dockerfile, a base image, an export.
fn judge(vertex: &Vertex) -> Option<StepFailure<'_>> {
    let error = vertex.own_error()?;
    let reason = if error.contains("did not complete successfully: ") {
        // The quoted command is the customer's; the words after it are BuildKit's.
        Reason::StepFailed
    } else if error.contains("failed to calculate checksum of ref") && error.contains("not found") {
        Reason::FileNotFound
    } else if vertex.name.contains("load metadata for ") || vertex.name.contains("] FROM ") {
        registry(error).unwrap_or(Reason::BaseImageNotFound)
    } else {
        registry(error)?
    };
    Some((reason, vertex))
}

/// What a registry's answer means; `None` when it is not about a registry.
fn registry(error: &str) -> Option<Reason> {
    let error = error.to_ascii_lowercase();
    let says = |patterns: &[&str]| patterns.iter().any(|pattern| error.contains(pattern));
    if says(DENIED) {
        Some(Reason::RegistryDenied)
    } else if says(UNAVAILABLE) {
        Some(Reason::RegistryUnavailable)
    } else {
        None
    }
}

/// What a registry that refuses the credentials makes BuildKit say, in lower case.
const DENIED: &[&str] = &[
    "401 unauthorized",
    "403 forbidden",
    "authorization failed",
    "access denied",
    "insufficient_scope",
    "no basic auth",
];

/// What a registry that is away, failing or overrun makes BuildKit say, in lower case.
const UNAVAILABLE: &[&str] = &[
    "429 too many requests",
    "toomanyrequests",
    "500 internal",
    "502 bad",
    "503 service",
    "504 gateway",
    "connection refused",
    "no such host",
    "i/o timeout",
    "connection reset",
    "tls handshake",
    "dial tcp",
];

/// The last resort: what buildx itself says. In the order of their certainty.
fn by_error_line(error: &str) -> Option<Reason> {
    const PATTERNS: &[(&str, Reason)] = &[
        ("did not complete successfully: exit code", Reason::StepFailed),
        ("failed to read dockerfile", Reason::DockerfileNotFound),
        ("dockerfile parse error", Reason::DockerfileInvalid),
        ("unknown instruction", Reason::DockerfileInvalid),
        ("the Dockerfile cannot be empty", Reason::DockerfileInvalid),
        ("failed to parse stage name", Reason::DockerfileInvalid),
        ("target stage", Reason::DockerfileInvalid),
        ("failed to calculate checksum of ref", Reason::FileNotFound),
        ("unable to prepare context", Reason::ContextNotFound),
        ("tag is needed when pushing", Reason::DefinitionInvalid),
        ("invalid reference format", Reason::DefinitionInvalid),
        ("failed to find target", Reason::DefinitionInvalid),
        ("granting entitlement", Reason::PolicyRefused),
        ("error reading from server", Reason::BuilderLost),
        ("closing transport", Reason::BuilderLost),
        ("graceful_stop", Reason::BuilderLost),
        ("code = Unavailable", Reason::BuilderLost),
        ("no running buildkit pods", Reason::BuilderUnavailable),
        ("no pod found for key", Reason::BuilderUnavailable),
        ("replicas to be ready", Reason::BuilderUnavailable),
        ("failed to dial", Reason::BuilderUnavailable),
        ("is forbidden", Reason::BuilderUnavailable),
        ("context deadline exceeded", Reason::BuilderUnavailable),
        ("error reading server preface", Reason::BuilderUnavailable),
        ("Cannot connect to the Docker daemon", Reason::BuilderUnavailable),
    ];
    if error.starts_with("no builder ") || error.starts_with("listing workers for Build") {
        return Some(Reason::BuilderUnavailable);
    }
    let said = outside_of_quotes(error);
    if said.contains("failed to resolve source metadata") {
        return registry(&said).or(Some(Reason::BaseImageNotFound));
    }
    let found = PATTERNS.iter().find(|(pattern, _)| said.contains(pattern)).map(|(_, reason)| *reason);
    found.or_else(|| registry(&said))
}

/// The text without what BuildKit quotes of the customer's.
fn outside_of_quotes(error: &str) -> String {
    match (error.find("process \""), error.rfind("\" did not complete")) {
        (Some(from), Some(to)) if from < to => format!("{}{}", &error[..from], &error[to..]),
        _ => error.to_owned(),
    }
}

fn describe(vertex: &Vertex) -> String {
    let target = vertex.targets.iter().next().map(|target| format!("target {target}, ")).unwrap_or_default();
    let error = vertex.own_error().unwrap_or_default();
    format!("{target}{}: {error}", vertex.name).chars().take(2000).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn diagnosis(version: &str, case: &str, targets: &[&str]) -> Option<Failure> {
        let folder = format!("{}/tests/fixtures/buildx/{version}/{case}", env!("CARGO_MANIFEST_DIR"));
        let stderr = std::fs::read(format!("{folder}.stderr")).expect("a fixture");
        let exit: i32 =
            std::fs::read_to_string(format!("{folder}.exit")).expect("a fixture").trim().parse().expect("a number");
        let mut progress = Progress::new(targets.iter().map(|target| (*target).to_owned()));
        for line in stderr.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            progress.line(line);
        }
        diagnose(Ended::Exited(ExitStatus::from_raw(exit << 8)), &progress)
    }

    #[test]
    fn every_recorded_failure_has_its_reason() {
        for version in ["0.29", "0.36"] {
            for (case, reason) in [
                ("success-push", None),
                ("cached-push", None),
                ("failing-run", Some(Reason::StepFailed)),
                ("one-of-three-fails", Some(Reason::StepFailed)),
                ("missing-dockerfile", Some(Reason::DockerfileNotFound)),
                ("missing-context", Some(Reason::ContextNotFound)),
                ("missing-copy-source", Some(Reason::FileNotFound)),
                ("missing-base-image", Some(Reason::BaseImageNotFound)),
                ("dockerfile-syntax", Some(Reason::DockerfileInvalid)),
                ("unknown-target", Some(Reason::DefinitionInvalid)),
                ("push-refused", Some(Reason::RegistryUnavailable)),
                ("push-unauthorized", Some(Reason::RegistryDenied)),
                ("missing-builder", Some(Reason::BuilderUnavailable)),
            ] {
                let found = diagnosis(version, case, &["api"]).map(|failure| failure.reason);
                assert_eq!(found, reason, "{version}/{case}");
            }
        }
        let lost = diagnosis("0.36", "exec-stream-lost", &["slow"]).expect("a failure");
        assert_eq!(lost.reason, Reason::BuilderLost);
        assert_eq!(
            diagnosis("0.29", "server-killed", &["slow"]).map(|failure| failure.reason),
            Some(Reason::BuilderLost)
        );
        assert_eq!(diagnosis("0.29", "success-with-canceled-vertex", &["api"]), None);
        assert_eq!(diagnosis("0.29", "server-graceful-stop", &["slow"]), None);
    }

    #[test]
    fn the_detail_names_target_and_step() {
        let failure = diagnosis("0.36", "one-of-three-fails", &["api", "web", "broken"]).expect("a failure");
        assert!(failure.detail.starts_with("target broken, ["), "{failure}");
        assert!(failure.detail.contains("exit code: 3"), "{failure}");
    }

    #[test]
    fn a_customers_own_words_are_not_matched() {
        let line = r#"failed to solve: process "/bin/sh -c false # connection refused, code = Unavailable" did not complete successfully: exit code: 1"#;
        assert_eq!(by_error_line(line), Some(Reason::StepFailed));
    }
}
