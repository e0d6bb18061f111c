//! Failures of which only buildx's last line tells.

use super::*;
use crate::bake::evidence::BUILDKIT;

#[test]
fn a_solve_that_buildkit_has_not_begun_in_time_is_not_the_customers_fault() {
    let line = "failed to receive status: rpc error: code = NotFound desc = no such job xtcwi97x2fguo5z68ffeg6v5a";
    for line in [line.to_owned(), format!("target web-58: {line}"), format!("failed to solve: {line}")] {
        assert_eq!(of_line(&line), Reason::BuilderUnavailable, "{line}");
    }
    // buildx 0.36, and an older one.
    for code in ["NotFound: ", "rpc error: code = NotFound desc = "] {
        for begin in ["", "failed to solve: ", "target web-58: failed to solve: "] {
            let line = format!("{begin}{code}forwarding Ping: no such job 68h083wyaow192sgvmb9xf16k");
            assert_eq!(of_line(&line), Reason::BuilderUnavailable, "{line}");
        }
    }
    let quoted = "failed to solve: NotFound: forwarding `x y`: no such job 1";
    assert_ne!(of_line(quoted), Reason::BuilderUnavailable);
}

#[test]
fn a_message_that_is_too_large_is_the_customers_and_has_its_limit() {
    for line in [
        "failed to solve: ResourceExhausted: grpc: received message larger than max (18874368 vs. 16777216)",
        "failed to receive status: rpc error: code = ResourceExhausted desc = grpc: trying to send message larger than max (18874368 vs. 16777216)",
        "target web: failed to solve: rpc error: code = ResourceExhausted desc = grpc: received message larger than max (18874368 vs. 16777216)",
    ] {
        let failure = ended_with("Dockerfile", &format!("ERROR: {line}"));
        assert_eq!(failure.reason, Reason::BuildTooLarge, "{line}");
        assert!(failure.detail.ends_with("18874368 bytes; the limit is 16777216"), "{failure}");
    }
    for line in [
        "failed to solve: dockerfile parse error on line 1: grpc: received message larger than max (2 vs. 1)",
        "failed to solve: process \"ResourceExhausted: grpc: received message larger than max (2 vs. 1)",
    ] {
        assert_ne!(of_line(line), Reason::BuildTooLarge, "{line}");
    }
}

#[test]
fn only_a_name_that_can_be_a_stage_has_a_near_one() {
    let away = "failed to resolve source metadata for docker.io/library/biuld:latest: failed to do request: Head \"https://registry-1.docker.io/v2/\": dial tcp: no such host";
    let line = format!("failed to solve: biuld: {away} (did you mean build?)");
    assert_eq!(near_name(&line), Some(("biuld", "build")));
    for other in [
        format!("failed to solve: biuld: {away}"),
        format!("failed to solve: biuld:1: {away} (did you mean build?)"),
        format!("failed to solve: r.example/biuld: {away} (did you mean build?)"),
        format!("biuld: {away} (did you mean build?)"),
        "failed to solve: dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)".into(),
    ] {
        assert_eq!(near_name(&other), None, "{other}");
    }
}

#[test]
fn a_field_that_buildx_quotes_is_not_searched_for_words() {
    for (line, reason) in [
        ("invalid host foo=code = Unavailable", Reason::DefinitionInvalid),
        ("invalid tag \"connection refused\": invalid reference format", Reason::DefinitionInvalid),
        ("unable to prepare context: path \"code = Unavailable\" not found", Reason::ContextNotFound),
        ("failed to get build context unexpected EOF: stat x: no such file or directory", Reason::ContextNotFound),
        ("network mode \"closing transport\" not supported by buildkit - you can define", Reason::DefinitionInvalid),
        ("error from sender: open x/context deadline exceeded: permission denied", Reason::BuildFailed),
        (
            "unable to derive the IP value for host-gateway: host-gateway is not supported by the kubernetes driver",
            Reason::DefinitionInvalid,
        ),
        ("failed to receive status: rpc error: code = Unavailable desc = EOF", Reason::BuilderLost),
        ("listing workers for Build: failed to list workers: Unavailable: closing", Reason::BuilderUnavailable),
    ] {
        assert_eq!(of_line(line), reason, "{line}");
        assert_eq!(of_line(&format!("target web: {line}")), reason, "{line}");
    }
}

#[test]
fn a_customers_own_words_are_not_matched() {
    for (line, reason) in [
        (
            r#"process "/bin/sh -c false # connection refused, code = Unavailable" did not complete successfully: exit code: 1"#,
            Reason::StepFailed,
        ),
        (r#"failed to process "${NOPE:?no": NOPE: connection refused"#, Reason::DockerfileInvalid),
        (
            r#"failed to process "\"${B:?x: no space left on device}\"": B: x: no space left on device"#,
            Reason::DockerfileInvalid,
        ),
        (
            r#"failed to process "${B:?a: failed to resolve source metadata for x: 503 service}": B: a: failed to resolve source metadata for x: 503 service"#,
            Reason::DockerfileInvalid,
        ),
        ("invalid signal: dial tcp: connection refused", Reason::DockerfileInvalid),
        ("invalid signal: x: no space left on device", Reason::DockerfileInvalid),
        (r#"target stage "x: no space left on device" could not be found"#, Reason::DockerfileInvalid),
        ("invalid boolean value for multi-platform: x: no space left on device", Reason::DefinitionInvalid),
        ("index annotations not supported for single platform export", Reason::DefinitionInvalid),
        ("mkdir /var/lib/buildkit/snapshots/9: no space left on device", Reason::BuilderDiskFull),
        ("failed to prepare x: write /var/lib/buildkit/x: input/output error", Reason::BuildFailed),
        ("failed to parse platform dial tcp: connection refused: not an OS", Reason::DockerfileInvalid),
        ("Invalid containerPort: a", Reason::DockerfileInvalid),
        ("failed to load LLB: network.host is not allowed", Reason::PolicyRefused),
        (
            "r.example/toomanyrequests:1: failed to resolve source metadata for r.example/toomanyrequests:1: not found",
            Reason::BaseImageNotFound,
        ),
        (
            r#"failed to push r.example/x:1: failed to do request: Head "http://r.example/v2": dial tcp r.example: connect: connection refused"#,
            Reason::RegistryUnavailable,
        ),
        ("ResourceExhausted: grpc: received message larger than max (7531213 vs. 4194304)", Reason::BuildTooLarge),
        ("Internal: something broke", Reason::BuildFailed),
        (
            "rpc error: code = Unknown desc = invalid excludepatterns: [*.log [a]: syntax error in pattern",
            Reason::DockerfileInvalid,
        ),
        (
            "rpc error: code = Unknown desc = invalid includepatterns: [[a-z]: syntax error in pattern",
            Reason::DockerfileInvalid,
        ),
        ("illegal exclusion pattern: \"!\"", Reason::DockerfileInvalid),
        ("DeadlineExceeded: context deadline exceeded", Reason::BuilderUnavailable),
        (
            r#"Internal: rpc error: code = Internal desc = header key "followpaths" contains value with non-printable ASCII characters"#,
            Reason::FileNotFound,
        ),
        (
            "r.example/x:1: failed to resolve source metadata for r.example/x:1: failed to fetch anonymous token: dial tcp 10.0.0.1:99: connect: permission denied",
            Reason::RegistryDenied,
        ),
        (
            "x: failed to resolve source metadata for docker.io/library/x:latest: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
            Reason::BaseImageNotFound,
        ),
    ] {
        for begin in BUILDKIT {
            assert_eq!(of_line(&format!("{begin}{line}")), reason, "{line}");
            assert_eq!(of_line(&format!("target web: {begin}{line}")), reason, "{line}");
        }
    }
}
