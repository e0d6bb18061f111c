//! The last line of docker-buildx, judged by how it begins.
//!
//! It decides only where no step says why a bake failed. The tables follow buildx 0.29 to 0.36.

use super::Verdict;
use super::registry::{Wanted, registry};
use super::step;
use crate::bake::evidence::{Line, without, without_code};
use crate::bake::own_registries::OwnRegistries;
use crate::bake::progress::PROCESS;
use crate::reason::{Evidence, Reason};

/// What the events say beside the line.
pub(super) struct Seen<'a> {
    /// Whether a vertex failed and did not say why.
    pub(super) has_failed_vertex: bool,
    /// Whether the frontend has read a Dockerfile.
    pub(super) has_steps: bool,
    pub(super) own: &'a OwnRegistries,
}

/// The reason that the last line gives. Only a line that does not quote a field of the definition is searched for words.
pub(super) fn by_error_line(error: &str, evidence: Option<Evidence>, seen: &Seen<'_>) -> Verdict {
    let (Line::BuildKit(line) | Line::Buildx(line)) = Line::parse(error);
    if let Some(verdict) = too_large(line) {
        return verdict;
    }
    if is_without_job(line) {
        return Reason::BuilderUnavailable.into();
    }
    match Line::parse(error) {
        Line::BuildKit(answer) => by_solve_error(answer, evidence, seen),
        Line::Buildx(line) => {
            let of_field = FIELD_ERRORS.iter().find(|(begin, _)| line.starts_with(begin));
            let known = of_field.or_else(|| BUILDX.iter().find(|(words, _)| line.contains(words)));
            let reason = known.map_or(Reason::BuildFailed, |(_, reason)| *reason);
            Verdict { evidence, ..reason.into() }
        }
    }
}

/// The reason in BuildKit's answer. An unknown line without a failed step comes from the Dockerfile frontend: it quotes the
/// customer, and the customer can fix it.
fn by_solve_error(answer: &str, evidence: Option<Evidence>, seen: &Seen<'_>) -> Verdict {
    if !seen.has_steps && is_not_utf8(answer) {
        return Verdict { advice: Some("the Dockerfile is not UTF-8".into()), ..Reason::DockerfileInvalid.into() };
    }
    if refused_patterns(answer).is_some() {
        return Reason::DockerfileInvalid.into();
    }
    let line = without_code(answer);
    if line.starts_with(PROCESS) {
        return step::process(line, evidence);
    }
    if let Some((_, flag)) = ENTITLEMENTS.iter().find(|(begin, _)| line.starts_with(begin)) {
        let advice = format!("remove `{flag}` from the Dockerfile");
        return Verdict { advice: Some(advice), ..Reason::PolicyRefused.into() };
    }
    if let Some((_, reason)) = SOLVE_ERRORS.iter().find(|(begin, _)| line.starts_with(begin)) {
        return (*reason).into();
    }
    // A file name that cannot be sent to the builder, which answers with the name of its own header.
    if line.starts_with("Internal: ") && line.contains("header key \"followpaths\"") {
        return Reason::FileNotFound.into();
    }
    if let Some((reference, error)) = of_base_image(line) {
        let wanted = Wanted::Base(Some(reference));
        return registry(error, wanted, seen.own).unwrap_or_else(|| Reason::BuildFailed.into());
    }
    if REGISTRY_ERRORS.iter().any(|begin| line.starts_with(begin)) {
        let wanted = if line.starts_with(PUSH) { Wanted::Push } else { Wanted::Base(None) };
        return registry(line, wanted, seen.own).unwrap_or_else(|| Reason::RegistryUnavailable.into());
    }
    if let Some(reason) = step::disk(line) {
        return reason.into();
    }
    let is_ours = seen.has_failed_vertex || INFRASTRUCTURE_ERRORS.iter().any(|begin| answer.starts_with(begin));
    if is_ours { Reason::BuildFailed } else { Reason::DockerfileInvalid }.into()
}

/// A message that gRPC refuses for its size: `… received message larger than max (18874368 vs. 16777216)`. Lint warnings carry
/// the whole Dockerfile, so many of them exceed the limit too.
fn too_large(line: &str) -> Option<Verdict> {
    let line = line.strip_prefix("failed to receive status: ").unwrap_or(line);
    // Each process that passes it on may add the code again.
    let message = without(line, EXHAUSTED);
    if message.len() == line.len() {
        return None;
    }
    let (_, sizes) = message.strip_prefix("grpc: ")?.split_once(" larger than max (")?;
    let (size, limit) = sizes.strip_suffix(')')?.split_once(" vs. ")?;
    let (size, limit): (u64, u64) = (size.parse().ok()?, limit.parse().ok()?);
    let advice = format!("a message of the build has {size} bytes; the limit is {limit}");
    Some(Verdict { advice: Some(advice), ..Reason::BuildTooLarge.into() })
}

/// Whether BuildKit has not begun the solve that buildx calls: `NotFound: forwarding Ping: no such job 68h083wyaow1`. An overloaded
/// builder takes longer than the three seconds that BuildKit waits for it.
fn is_without_job(line: &str) -> bool {
    let message = without(line, NOT_FOUND);
    let is_found = message.len() == line.len();
    let call = message.strip_prefix("forwarding ").and_then(|rest| rest.split_once(": no such job "));
    !is_found && call.is_some_and(|(name, _)| name.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// How gRPC writes that something was not found.
const NOT_FOUND: &[&str] = &["NotFound: ", "rpc error: code = NotFound desc = "];

/// How gRPC writes the code with which it refuses a message.
const EXHAUSTED: &[&str] = &["ResourceExhausted: ", "rpc error: code = ResourceExhausted desc = "];

/// Whose patterns BuildKit refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bake) enum Patterns {
    /// Those of an ignore file.
    Ignored,
    /// The files that a COPY, an ADD or a mount takes.
    Copied,
}

/// The patterns that BuildKit refuses in an answer, if it does.
pub(in crate::bake) fn refused_patterns(answer: &str) -> Option<Patterns> {
    let said = without(answer, BEFORE_PATTERNS);
    let begins = |begin: &str| said.starts_with(begin);
    if said == "syntax error in pattern" || begins("illegal exclusion pattern: ") || begins("invalid excludepatterns: ")
    {
        Some(Patterns::Ignored)
    } else {
        begins("invalid includepatterns: ").then_some(Patterns::Copied)
    }
}

/// What stands before a refused pattern: buildx refuses it when it sends the context.
pub(super) const BEFORE_PATTERNS: &[&str] = &["rpc error: code = Unknown desc = ", "error from sender: "];

/// Whether gRPC could not carry a text of the Dockerfile. A field of its messages is UTF-8.
fn is_not_utf8(answer: &str) -> bool {
    let internal =
        answer.strip_prefix("Internal: ").or_else(|| answer.strip_prefix("rpc error: code = Internal desc = "));
    internal.is_some_and(|error| {
        error.ends_with("string field contains invalid UTF-8")
            || error.ends_with("stream terminated by RST_STREAM with error code: INTERNAL_ERROR")
    })
}

/// The reference that a base image or a frontend has, and the error about it. A reference has no spaces and no quotes, so the
/// frontend's own messages do not match.
fn of_base_image(line: &str) -> Option<(&str, &str)> {
    let line = match line.split_once(": ") {
        Some((name, rest)) if is_reference(name) => rest,
        _ => line,
    };
    line.strip_prefix("failed to resolve source metadata for ")?.split_once(": ")
}

fn is_reference(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@[]".contains(c))
}

/// A name that is neither a stage nor an image, and the stage or image that BuildKit supposes was meant:
/// `biuld: failed to resolve source metadata for docker.io/library/biuld:latest: … (did you mean build?)`. Only a name without
/// registry and tag: it can be a stage. BuildKit supposes nothing for the name of a stage or of a popular image.
pub(super) fn near_name(error: &str) -> Option<(&str, &str)> {
    let Line::BuildKit(answer) = Line::parse(error) else { return None };
    let (name, rest) = answer.split_once(": ")?;
    let (_, near) = rest.strip_suffix("?)")?.rsplit_once(" (did you mean ")?;
    let is_name = |name: &str| is_reference(name) && !name.contains(['/', ':', '@']);
    (is_name(name) && is_name(near) && of_base_image(answer).is_some()).then_some((name, near))
}

/// BuildKit did not begin the solve within six seconds: a bake of very many targets, or an overloaded builder
/// (docker/buildx#3810).
const NO_SUCH_JOB: &str = "failed to receive status: rpc error: code = NotFound";

/// How BuildKit refuses what a build has no entitlement for, and the flag of RUN that asks for it.
const ENTITLEMENTS: &[(&str, &str)] = &[
    ("failed to load LLB: network.host ", "--network=host"),
    ("failed to load LLB: security.insecure ", "--security=insecure"),
];

const SOLVE_ERRORS: &[(&str, Reason)] = &[
    // The image of `# syntax=` is a program that is not a frontend.
    ("exit code: ", Reason::FrontendNotFound),
    ("cannot copy to non-directory: ", Reason::StepFailed),
    ("cannot replace to directory ", Reason::StepFailed),
    // From the frontend; the rest quotes the customer.
    ("failed to process ", Reason::DockerfileInvalid),
    // What the base image says of itself.
    ("failed to parse image config: ", Reason::BaseImageNotFound),
    ("failed to parse ", Reason::DockerfileInvalid),
    ("target stage ", Reason::DockerfileInvalid),
    ("invalid boolean value for ", Reason::DefinitionInvalid),
    ("index annotations not supported ", Reason::DefinitionInvalid),
    ("failed to configure registry cache ", Reason::DefinitionInvalid),
    ("failed to load cache key", Reason::StepFailed),
    ("failed to read dockerfile", Reason::DockerfileNotFound),
    ("dockerfile parse error", Reason::DockerfileInvalid),
    ("failed to compute cache key: failed to calculate checksum of ref", Reason::FileNotFound),
    ("failed to calculate checksum of ref", Reason::FileNotFound),
    ("failed to load LLB: ", Reason::PolicyRefused),
    ("granting entitlement", Reason::PolicyRefused),
    ("tag is needed when pushing", Reason::DefinitionInvalid),
    ("rpc error: code = Unavailable", Reason::BuilderLost),
    ("Unavailable: ", Reason::BuilderLost),
    (NO_SUCH_JOB, Reason::BuilderUnavailable),
    ("failed to receive status", Reason::BuilderLost),
    // An overloaded BuildKit gave up on itself or on buildx's session.
    ("DeadlineExceeded: ", Reason::BuilderUnavailable),
    ("no active session", Reason::BuilderUnavailable),
    ("exporter \"", Reason::BuilderUnavailable),
];

const PUSH: &str = "failed to push ";

const REGISTRY_ERRORS: &[&str] = &[
    PUSH,
    "failed to do request",
    "failed to authorize",
    "failed to fetch ",
    "failed to copy",
    "failed commit on ref",
    "error writing ",
    "unexpected status from ",
];

const INFRASTRUCTURE_ERRORS: &[&str] = &[
    "Canceled: ",
    "FailedPrecondition: ",
    "Internal: ",
    "ResourceExhausted: ",
    "Unknown: ",
    "context canceled",
    "error from sender",
    "failed to dial",
    "failed to mount",
    "failed to prepare",
    "frontend grpc server closed",
    "mount callback failed",
    "rpc error",
];

/// How buildx begins to refuse a field of the definition; the rest quotes the customer. Follows `build/opt.go`,
/// `build/utils.go` and `build/build.go` of buildx 0.29 to 0.36.
const FIELD_ERRORS: &[(&str, Reason)] = &[
    ("unable to prepare context", Reason::ContextNotFound),
    ("failed to get build context ", Reason::ContextNotFound),
    ("resolve : lstat ", Reason::DockerfileNotFound),
    ("failed to read dockerfile", Reason::DockerfileNotFound),
    ("failed to find target", Reason::DefinitionInvalid),
    ("failed to use ", Reason::DefinitionInvalid),
    ("invalid host ", Reason::DefinitionInvalid),
    ("invalid tag ", Reason::DefinitionInvalid),
    ("network mode ", Reason::DefinitionInvalid),
    ("tag is needed when pushing", Reason::DefinitionInvalid),
    ("unable to derive the IP value for host-gateway: host-gateway is not supported", Reason::DefinitionInvalid),
    // About a file of the context.
    ("error from sender: ", Reason::BuildFailed),
];

/// What buildx reports when BuildKit was not reached or was lost.
const BUILDX: &[(&str, Reason)] = &[
    ("granting entitlement", Reason::PolicyRefused),
    ("no builder ", Reason::BuilderUnavailable),
    ("no running buildkit pods", Reason::BuilderUnavailable),
    ("no pod found for key", Reason::BuilderUnavailable),
    ("replicas to be ready", Reason::BuilderUnavailable),
    ("is forbidden", Reason::BuilderUnavailable),
    ("listing workers", Reason::BuilderUnavailable),
    ("error reading server preface", Reason::BuilderUnavailable),
    ("error reading from server", Reason::BuilderLost),
    ("closing transport", Reason::BuilderLost),
    ("graceful_stop", Reason::BuilderLost),
    ("code = Unavailable", Reason::BuilderLost),
    (NO_SUCH_JOB, Reason::BuilderUnavailable),
    ("context deadline exceeded", Reason::BuilderUnavailable),
    ("failed to dial", Reason::BuilderUnavailable),
    ("Cannot connect to the Docker daemon", Reason::BuilderUnavailable),
    ("failed to connect to the docker API", Reason::BuilderUnavailable),
    // From the API server and the kubelet: an exec into a pod that is gone, ending or not BuildKit.
    ("command terminated with exit code ", Reason::BuilderLost),
    ("unable to upgrade connection", Reason::BuilderLost),
    ("cannot exec in", Reason::BuilderLost),
    ("pods \"", Reason::BuilderLost),
    ("error dialing backend", Reason::BuilderUnavailable),
    ("Internal error occurred", Reason::BuilderUnavailable),
    // The API server is down.
    ("dial tcp ", Reason::BuilderUnavailable),
    ("TLS handshake timeout", Reason::BuilderUnavailable),
    ("connection refused", Reason::BuilderUnavailable),
    ("client connection lost", Reason::BuilderUnavailable),
    ("unexpected EOF", Reason::BuilderUnavailable),
];
