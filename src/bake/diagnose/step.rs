//! A failed step of the Dockerfile: the customer's, unless its cause is a known one of the infrastructure.
//!
//! The cause is read where BuildKit begins or ends the error. What a customer wrote stands between.

use super::Verdict;
use super::registry::{Wanted, registry};
use crate::bake::evidence::{ended, without_code};
use crate::bake::noise;
use crate::bake::own_registries::OwnRegistries;
use crate::bake::progress::{PROCESS, Vertex};
use crate::reason::{Evidence, Reason};

/// Why a step failed; `None` when the builder was lost, or its own work failed.
pub(super) fn step(instruction: &str, error: &str, evidence: Option<Evidence>, own: &OwnRegistries) -> Option<Verdict> {
    let error = without_code(error);
    if error.starts_with(PROCESS) {
        return Some(process(error, evidence));
    }
    let error = ["failed to compute cache key: ", "failed to load cache key: "]
        .iter()
        .find_map(|begin| error.strip_prefix(begin))
        .unwrap_or(error);
    let cause = noise::of_checksum(error).unwrap_or(error);
    if Vertex::MISTAKES.iter().any(|begin| cause.starts_with(begin)) {
        return Some(Verdict { advice: advice(cause), ..Reason::StepFailed.into() });
    }
    let is_fetch = instruction == "ADD" && FETCH.iter().any(|begin| cause.starts_with(begin));
    if is_fetch {
        return Some(Reason::StepFailed.into());
    }
    if REGISTRY.iter().any(|begin| cause.starts_with(begin)) {
        return registry(cause, Wanted::Base(None), own);
    }
    if let Some(reason) = disk(cause) {
        return Some(reason.into());
    }
    let is_archive = instruction == "ADD" && cause == "unexpected EOF";
    if !is_archive && INFRASTRUCTURE.iter().any(|begin| cause.starts_with(begin)) {
        return None;
    }
    let is_missing = [" not found", ": no such file or directory"].iter().any(|end| cause.ends_with(end));
    let is_copied = ["COPY", "ADD"].contains(&instruction) || cause.len() < error.len();
    if is_missing && is_copied {
        return Some(Reason::FileNotFound.into());
    }
    Some(Verdict { evidence: Some(Evidence::UnknownError), ..Reason::StepFailed.into() })
}

/// Why a command failed: how it ended stands after the command.
pub(super) fn process(error: &str, evidence: Option<Evidence>) -> Verdict {
    let reason = match evidence {
        Some(Evidence::OutOfMemory) => Reason::OutOfMemory,
        _ if DISK_FULL.iter().any(|end| error.ends_with(end)) => Reason::BuilderDiskFull,
        _ if ended(error).is_some_and(lacks_source) => Reason::FileNotFound,
        _ => Reason::StepFailed,
    };
    Verdict { evidence, ..reason.into() }
}

/// Whether a command did not begin, because the stage or image of a mount does not have the mount's source.
fn lacks_source(ended: &str) -> bool {
    let is_lookup = ["lstat /", "open /", "stat /"].iter().any(|begin| ended.starts_with(begin));
    is_lookup && ended.ends_with(": no such file or directory")
}

/// The reason when the operating system failed on one of the builder's own files.
pub(super) fn disk(error: &str) -> Option<Reason> {
    let is_operation = FILE_OPERATIONS.iter().any(|begin| error.starts_with(begin));
    if !is_operation {
        None
    } else if DISK_FULL.iter().any(|end| error.ends_with(end)) {
        Some(Reason::BuilderDiskFull)
    } else {
        DISK_ERRORS.iter().any(|end| error.ends_with(end)).then_some(Reason::BuildFailed)
    }
}

fn advice(cause: &str) -> Option<String> {
    let is_ssh = ["unset ssh forward key ", "no SSH key "].iter().any(|begin| cause.starts_with(begin));
    is_ssh.then(|| "builds get no SSH agent; use a build secret".to_owned())
}

/// How BuildKit begins an error of a layer that it pulls only when a step needs it.
const REGISTRY: &[&str] = &[
    "failed to authorize: ",
    "failed to copy: ",
    "failed to do request: ",
    "failed to fetch anonymous token: ",
    "failed to fetch oauth token: ",
    "failed to read expected number of bytes: ",
    "failed commit on ref \"",
    "failed size validation: ",
    "httpReadSeeker: ",
    "short read: ",
    "unexpected status ",
];

/// How BuildKit begins the error of an ADD from a URL. The URL is the customer's, and so is its host.
const FETCH: &[&str] =
    &["Get \"", "digest mismatch ", "error fetching ", "failed to fetch remote ", "invalid response status "];

/// How errors begin that are the builder's own, or say that it was lost.
const INFRASTRUCTURE: &[&str] = &[
    "Aborted: ",
    "Canceled: ",
    "DeadlineExceeded: ",
    "Internal: ",
    "Unavailable: ",
    "connection error: ",
    "context canceled",
    "context deadline exceeded",
    "error committing ",
    "error from sender",
    "error reading from server",
    "failed to commit ",
    "failed to create lease",
    "failed to create snapshot",
    "failed to create temp",
    "failed to dial",
    "failed to extract ",
    "failed to get edge",
    "failed to load ref",
    "failed to mount",
    "failed to prepare",
    "failed to register layer",
    "failed to resolve rootfs",
    "frontend grpc server closed",
    "inconsistent graph state",
    "missing descriptor handlers",
    "mount callback failed",
    "no active session",
    "rpc error",
    "transport: ",
    "unexpected EOF",
];

/// How errors of the operating system end when a disk is full.
const DISK_FULL: &[&str] = &[": no space left on device", ": disk quota exceeded"];

/// How other errors of a disk end. A customer's text may end the same way.
const DISK_ERRORS: &[&str] = &[": input/output error", ": read-only file system"];

/// How BuildKit's errors about its own files begin.
const FILE_OPERATIONS: &[&str] = &[
    "chmod /",
    "chown /",
    "copy file range failed",
    "copy_file_range /",
    "error committing ",
    "failed to commit ",
    "failed to compute ",
    "failed to copy file",
    "failed to create lease",
    "failed to create snapshot",
    "failed to create temp",
    "failed to extract ",
    "failed to mount ",
    "failed to open ",
    "failed to prepare ",
    "failed to register layer",
    "failed to stat ",
    "failed to sync ",
    "failed to walk ",
    "failed to write ",
    "fsync /",
    "lchown /",
    "link /",
    "lstat /",
    "mkdir /",
    "mknod /",
    "mount callback failed",
    "open /",
    "read /",
    "rename /",
    "stat /",
    "symlink /",
    "sync /",
    "truncate /",
    "userspace copy failed",
    "write /",
];
