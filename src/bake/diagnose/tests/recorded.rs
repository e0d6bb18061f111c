//! Recorded failures.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;
use crate::reason::Evidence;

fn diagnosis(version: &str, case: &str, targets: &[&str]) -> Option<Failure> {
    let folder = format!("{}/tests/fixtures/buildx/{version}/{case}", env!("CARGO_MANIFEST_DIR"));
    let stderr = std::fs::read(format!("{folder}.stderr")).expect("a fixture");
    let exit: i32 =
        std::fs::read_to_string(format!("{folder}.exit")).expect("a fixture").trim().parse().expect("a number");
    let mut progress = progress(targets, "Dockerfile");
    let lines = stderr.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.for_each(|line| progress.line(line, &mut |_| {}));
    match diagnose(Ended::Exited(ExitStatus::from_raw(exit << 8)), &progress, &NO_LINE) {
        Some(End::Failed(failure)) => Some(failure),
        Some(End::Stopped) => panic!("no test stops a bake"),
        None => None,
    }
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
    assert_eq!(diagnosis("0.29", "server-killed", &["slow"]).map(|failure| failure.reason), Some(Reason::BuilderLost));
    assert_eq!(diagnosis("0.29", "success-with-canceled-vertex", &["api"]), None);
    assert_eq!(diagnosis("0.29", "server-graceful-stop", &["slow"]), None);
}

#[test]
fn every_failure_of_a_real_engine_has_its_reason() {
    for (case, reason) in [
        ("copy-selflink", Reason::StepFailed),
        ("workdir-on-file", Reason::StepFailed),
        ("copy-into-file", Reason::StepFailed),
        ("copy-from-missing", Reason::FileNotFound),
        ("add-checksum", Reason::StepFailed),
        ("add-truncated", Reason::StepFailed),
        ("ssh-required", Reason::StepFailed),
        ("exit137", Reason::OutOfMemory),
        ("syntax-nosuch", Reason::FrontendNotFound),
        ("syntax-away", Reason::RegistryUnavailable),
        ("syntax-not-frontend", Reason::FrontendNotFound),
        ("utf16", Reason::DockerfileInvalid),
        ("dockerfile-too-large", Reason::BuildTooLarge),
        ("stage-typo", Reason::BaseImageNotFound),
        ("from-nohost", Reason::BaseImageNotFound),
        ("push400", Reason::RegistryRejected),
        ("push404", Reason::RegistryRejected),
        ("push405", Reason::RegistryRejected),
        ("push412", Reason::RegistryRejected),
        ("push413", Reason::RegistryRejected),
        ("push415", Reason::RegistryRejected),
        ("push429", Reason::RegistryRateLimited),
        ("push403", Reason::RegistryDenied),
        ("push500", Reason::RegistryUnavailable),
        ("pull400", Reason::RegistryRejected),
        ("pull403", Reason::BaseImageDenied),
        ("pull429", Reason::RegistryRateLimited),
        ("from-truncated", Reason::RegistryUnavailable),
        ("from-wrongdigest", Reason::RegistryUnavailable),
        ("from-html", Reason::RegistryUnavailable),
        ("from-blob429", Reason::RegistryRateLimited),
    ] {
        let failure = diagnosis("engine-26.1", case, &["web"]).expect("a failure");
        assert_eq!(failure.reason, reason, "{case}: {failure}");
    }
    let detail = |case: &str| diagnosis("engine-26.1", case, &["web"]).expect("a failure").detail;
    assert_eq!(
        detail("copy-from-missing"),
        "Step 2/2 of `web` failed: `COPY --from=registry.example.test/base:1 /missing /x` (line 3): \
         lstat /missing: no such file or directory"
    );
    assert_eq!(detail("copy-selflink"), "Step 2/2 of `web` failed: `COPY a /x` (line 3): too many symlinks: /a");
    assert!(detail("stage-typo").ends_with("no stage or image is called biuld; did you mean build?"));
    assert!(detail("ssh-required").ends_with("builds get no SSH agent; use a build secret"));
    assert!(detail("from-nohost").ends_with("no registry is called no-such-host.invalid"));
    assert!(detail("dockerfile-too-large").ends_with("has 17512501 bytes; the limit is 16777216"));
    assert!(detail("utf16").ends_with("the Dockerfile is not UTF-8"));
    let killed = diagnosis("0.36", "memory-limited-step-killed", &["mem"]).expect("a failure");
    assert_eq!((killed.reason, killed.evidence), (Reason::OutOfMemory, Some(Evidence::OutOfMemory)));
}

#[test]
fn every_failure_of_a_new_buildkit_has_its_reason_and_names_what_to_change() {
    for (case, reason, detail) in [
        (
            "push-unknown-repository",
            Reason::RegistryRejected,
            "unknown: The repository with name 'shop/web' does not exist",
        ),
        ("push-immutable-tag", Reason::RegistryRejected, "cannot be overwritten because the tag is immutable."),
        (
            "push-denied",
            Reason::RegistryDenied,
            "denied: Permission \"artifactregistry.repositories.uploadArtifacts\" denied",
        ),
        ("push-quota", Reason::RegistryRejected, "denied: Quota has been exceeded on namespace"),
        ("push-two-errors", Reason::RegistryDenied, "errors: denied: first; unsupported: second"),
        ("push-failing", Reason::RegistryUnavailable, "failed to push other.example.test/z-500unk:1: unknown"),
        ("push-unsupported", Reason::RegistryRejected, "unsupported: The repository is in read-only mode"),
        ("push-limited", Reason::RegistryRateLimited, "toomanyrequests: Rate exceeded"),
        (
            "mount-source-missing",
            Reason::FileNotFound,
            "target=/p cat /p` (line 2): open /nope: no such file or directory",
        ),
        ("copy-into-file", Reason::StepFailed, "`COPY dir /file` (line 3): cannot copy to non-directory: /file"),
        ("from-chart", Reason::BaseImageNotFound, "it is not an image that BuildKit can use"),
        ("from-schema1", Reason::BaseImageNotFound, "it is not an image that BuildKit can use"),
        ("from-other-platform", Reason::BaseImageNotFound, "the image does not exist for the platform of the build"),
        ("syntax-chart", Reason::FrontendNotFound, "frontend `other.example.test/m-artifact:1` of `web`: "),
        ("add-git-missing", Reason::StepFailed, "git stderr: remote: 404 page not found; fatal: repository "),
        ("chmod-invalid", Reason::DockerfileInvalid, "invalid syntax"),
        ("security-insecure", Reason::PolicyRefused, "not allowed: remove `--security=insecure` from the Dockerfile"),
        ("copy-excluded-pattern", Reason::FileNotFound, "(line 2): lstat /nowhere: no such file or directory"),
        ("every-lint-rule", Reason::FileNotFound, "`COPY secret.txt /x` (line 15): \"/secret.txt\": not found"),
    ] {
        let failure = diagnosis("buildkit-2026-11", case, &["web"]).expect("a failure");
        assert_eq!(failure.reason, reason, "{case}: {failure}");
        assert!(failure.detail.contains(detail), "{case}: {failure}");
        for noise in ["failed to solve", "snapshots", "of ref ", "[internal]"] {
            assert!(!failure.detail.contains(noise), "{case}: {failure}");
        }
    }
}

#[test]
fn the_detail_names_target_and_step() {
    let failure = diagnosis("0.36", "one-of-three-fails", &["api", "web", "broken"]).expect("a failure");
    assert_eq!(
        failure.message(),
        "Step 2/2 of `broken` failed: `RUN sleep 0.2 && exit 3` (line 2) exited with 3 and printed nothing"
    );
}
