//! The last line of docker-buildx, judged by how it begins.
//!
//! It decides only where no step says why a bake failed. The tables follow buildx 0.29 to 0.36.

use super::registry::{base_image, registry};
use crate::bake::evidence::Line;
use crate::reason::Reason;

/// The reason that the last line gives. Only a line that does not quote a field of the definition is searched for words.
pub(super) fn by_error_line(error: &str, has_failed_vertex: bool) -> Reason {
    match Line::parse(error) {
        Line::BuildKit(answer) => by_solve_error(answer, has_failed_vertex),
        Line::Buildx(line) => {
            let of_field = FIELD_ERRORS.iter().find(|(begin, _)| line.starts_with(begin));
            let known = of_field.or_else(|| BUILDX.iter().find(|(words, _)| line.contains(words)));
            known.map_or(Reason::BuildFailed, |(_, reason)| *reason)
        }
    }
}

/// The reason in BuildKit's answer. An unknown line without a failed step comes from the Dockerfile frontend: it quotes the
/// customer, and the customer can fix it.
fn by_solve_error(line: &str, has_failed_vertex: bool) -> Reason {
    if let Some((_, reason)) = SOLVE_ERRORS.iter().find(|(begin, _)| line.starts_with(begin)) {
        return *reason;
    }
    // A file name that cannot be sent to the builder, which answers with the name of its own header.
    if line.starts_with("Internal: ") && line.contains("header key \"followpaths\"") {
        return Reason::FileNotFound;
    }
    if let Some(error) = of_base_image(line) {
        return base_image(error).unwrap_or(Reason::BuildFailed);
    }
    if REGISTRY_ERRORS.iter().any(|begin| line.starts_with(begin)) {
        return registry(line).unwrap_or(Reason::RegistryUnavailable);
    }
    let is_ours =
        has_failed_vertex || INFRASTRUCTURE_ERRORS.iter().any(|begin| line.starts_with(begin)) || is_of_disk(line);
    if is_ours { Reason::BuildFailed } else { Reason::DockerfileInvalid }
}

/// The part that is about a base image or a frontend, after its reference. A reference has no spaces and no quotes, so the
/// frontend's own messages do not match.
fn of_base_image(line: &str) -> Option<&str> {
    const BEGIN: &str = "failed to resolve source metadata for ";
    if line.starts_with(BEGIN) {
        return Some(line);
    }
    let (reference, error) = line.split_once(": ")?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-/:@[]".contains(c);
    let is_reference = !reference.is_empty() && reference.chars().all(is_part);
    (is_reference && error.starts_with(BEGIN)).then_some(error)
}

/// Whether the operating system failed on one of the builder's own files.
fn is_of_disk(line: &str) -> bool {
    DISK_ERRORS.iter().any(|end| line.ends_with(end)) && FILE_OPERATIONS.iter().any(|begin| line.starts_with(begin))
}

/// BuildKit did not begin the solve within six seconds: a bake of very many targets, or an overloaded builder
/// (docker/buildx#3810).
const NO_SUCH_JOB: &str = "failed to receive status: rpc error: code = NotFound";

const SOLVE_ERRORS: &[(&str, Reason)] = &[
    // BuildKit repeats a Dockerfile in each of its messages about it.
    ("ResourceExhausted: grpc: received message larger than max ", Reason::DockerfileInvalid),
    ("ResourceExhausted: ResourceExhausted: grpc: received message larger than max ", Reason::DockerfileInvalid),
    ("process \"", Reason::StepFailed),
    ("cannot copy to non-directory: ", Reason::StepFailed),
    ("cannot replace to directory ", Reason::StepFailed),
    // From the frontend; the rest quotes the customer.
    ("failed to process ", Reason::DockerfileInvalid),
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

const REGISTRY_ERRORS: &[&str] = &[
    "failed to push ",
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

/// How errors of the operating system end. A customer's text may end the same way.
const DISK_ERRORS: &[&str] = &[": no space left on device", ": input/output error", ": read-only file system"];

/// How BuildKit's errors about its own files begin.
const FILE_OPERATIONS: &[&str] = &[
    "chmod /",
    "chown /",
    "failed to commit ",
    "failed to compute ",
    "failed to create lease",
    "failed to create snapshot",
    "failed to create temp",
    "failed to extract ",
    "failed to open ",
    "failed to stat ",
    "failed to sync ",
    "failed to write ",
    "link /",
    "lstat /",
    "mkdir /",
    "open /",
    "read /",
    "rename /",
    "stat /",
    "symlink /",
    "sync /",
    "truncate /",
    "write /",
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
