//! Why a bake failed: its reason, from the exit and the events.
//!
//! The failed vertex is judged first, and the `ERROR:` line only when no vertex says why. Customers' text never decides:
//! BuildKit quotes commands, names and messages in its errors, and `RUN false # connection refused` is not a network failure.
//! So an error is recognized by how it begins, and a registry's answer is read without references and URLs. The end of an
//! error counts only where its beginning shows that no customer wrote the end.

mod error_line;
mod registry;

use super::evidence;
use super::progress::{Progress, Vertex};
use super::shown::Said;
use crate::process::Ended;
use crate::reason::{Class, End, Failure, Reason};
use crate::text;

use error_line::by_error_line;
use registry::{base_image, registry};

/// Bytes of a step's name and error in a failure's detail: both fit.
const MAX_NAME: usize = 600;
const MAX_ERROR: usize = 1100;

/// Why the bake failed; `None` when it succeeded.
pub(super) fn diagnose(ended: Ended, progress: &Progress) -> Option<End> {
    let failure = match ended {
        Ended::Exited(status) if status.success() => return None,
        Ended::Exited(_) => exited(progress),
        // buildx had already failed and did not exit.
        Ended::Stopped if !progress.errors().is_empty() => exited(progress),
        Ended::Stopped => return Some(End::Stopped),
        // It has no time limit of its own.
        Ended::TimedOut | Ended::Silent => {
            Failure::new(Reason::Stalled, "docker-buildx printed nothing for too long and was killed")
        }
        Ended::TooMuchOutput => {
            Failure::new(Reason::BuildFailed, "docker-buildx wrote an image to its standard output")
        }
    };
    Some(failure.into())
}

fn exited(progress: &Progress) -> Failure {
    if let Some((reason, vertex)) = progress.failed().find_map(|vertex| Some((judge(vertex)?, vertex))) {
        let evidence = vertex.own_error().and_then(|said| said.evidence);
        let failure = match progress.step_failure(vertex, None) {
            Some(step) if reason == Reason::StepFailed => Failure::saying(reason, step.sentence()),
            Some(step) => Failure::new(reason, step.sentence()),
            None => Failure::new(reason, describe(progress, vertex)),
        };
        return failure.with_evidence(evidence);
    }
    let has_failed_vertex = progress.failed().next().is_some();
    let judged = |said: &Said| {
        let reason = by_error_line(said.judged(), has_failed_vertex);
        Failure::new(reason, &said.shown).with_evidence(said.evidence)
    };
    let mut errors: Vec<Failure> = progress.errors().iter().map(judged).collect();
    // When two lines may be the error, one is a customer's imitation. Then an error that the customer can fix wins.
    let own = errors.iter().position(|failure| failure.reason.class() == Class::User);
    if let Some(failure) = own.map(|index| errors.swap_remove(index)).or_else(|| errors.pop()) {
        return failure;
    }
    match progress.last_words() {
        Some(words) => {
            let evidence = evidence::Line::parse(words).evidence();
            Failure::new(by_error_line(words, has_failed_vertex), words).with_evidence(evidence)
        }
        None => Failure::new(Reason::BuildFailed, "docker-buildx ended without an error message"),
    }
}

/// The reason in a failed vertex: a step of the Dockerfile, a base image or an export.
fn judge(vertex: &Vertex) -> Option<Reason> {
    let error = vertex.own_error()?.judged();
    if let Some((_, reason)) = STEP_ERRORS.iter().find(|(begin, _)| error.starts_with(begin)) {
        return Some(*reason);
    }
    match vertex.instruction() {
        Some("FROM") => base_image(error),
        Some("ADD") if ADD_ERRORS.iter().any(|begin| error.starts_with(begin)) => Some(Reason::StepFailed),
        Some(instruction) => is_mistake(instruction, error).then_some(Reason::StepFailed),
        None if IMAGE_CHORES.iter().any(|begin| vertex.name.starts_with(begin)) => base_image(error),
        None if vertex.name.starts_with("exporting ") => registry(error),
        None => None,
    }
}

/// Whether a step on files does not fit the image: a path leads through a file, or a file is in the place of a directory.
/// Errors of the operating system end the same way, so no other step is judged by them.
fn is_mistake(instruction: &str, error: &str) -> bool {
    let ends = [": not a directory", ": is a directory", ": file exists", ": file name too long"];
    let is_on_files = ["ADD", "COPY", "WORKDIR"].contains(&instruction);
    is_on_files
        && (Vertex::MISTAKES.iter().any(|begin| error.starts_with(begin))
            || ends.iter().any(|end| error.ends_with(end)))
}

/// How BuildKit names the look-up of a base image or a frontend.
const IMAGE_CHORES: &[&str] = &["[internal] load metadata for ", "resolve image config for "];

/// How the error of an ADD from a URL begins.
const ADD_ERRORS: &[&str] = &["Get \"", "digest mismatch ", "failed to fetch remote ", "invalid response status "];

/// How the error of a step begins. The rest quotes the customer.
const STEP_ERRORS: &[(&str, Reason)] = &[
    ("process \"", Reason::StepFailed),
    ("secret ", Reason::StepFailed),
    ("failed to calculate checksum of ref", Reason::FileNotFound),
];

fn describe(progress: &Progress, vertex: &Vertex) -> String {
    let target = progress.target_of(vertex).map(|target| format!("target {target}, ")).unwrap_or_default();
    let error = vertex.own_error().map_or("", |said| &said.shown);
    format!("{target}{}: {}", text::clip(&vertex.name, MAX_NAME), text::elide(error, MAX_ERROR))
}

#[cfg(test)]
mod tests;
