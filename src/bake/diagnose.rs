//! Why a bake failed: its reason, from the exit and the events.
//!
//! The failed vertex is judged first, and the `ERROR:` line only when no vertex says why. A failed step of the Dockerfile is the
//! customer's, unless its cause is a known one of the infrastructure ([`mod@step`]). Customers' text never decides:
//! BuildKit quotes commands, names and messages in its errors, and `RUN false # connection refused` is not a network failure.
//! So an error is recognized by how it begins, and a registry's answer is read without references and URLs. The end of an
//! error counts only where its beginning shows that no customer wrote the end.

mod answer;
mod error_line;
mod registry;
mod step;

use std::time::Duration;

use super::evidence::{self, Line};
use super::progress::{BakeProgress, StepFailure, Vertex, Work};
use super::shown::Said;
use crate::event::{FailedStep, Status, TargetReport};
use crate::process::Ended;
use crate::reason::{Class, End, Evidence, Failure, Reason};
use crate::text;

pub(super) use error_line::{Patterns, refused_patterns};

use error_line::{BEFORE_PATTERNS, Seen, by_error_line, near_name};
use registry::{Wanted, registry};
use step::step;

/// Bytes of a step's name and error in a failure's detail: both fit.
const MAX_NAME: usize = 600;
const MAX_ERROR: usize = 1100;

/// Finds the line of a failed step in the Dockerfile of a target.
type LineOf<'a> = &'a dyn Fn(&str, &FailedStep) -> Option<u32>;

/// Why the bake failed; `None` when it succeeded.
pub(super) fn diagnose(ended: Ended, progress: &BakeProgress, line_of: LineOf<'_>) -> Option<End> {
    let failure = match ended {
        Ended::Exited(status) if status.success() => return None,
        Ended::Exited(_) => exited(progress, line_of),
        // buildx had already failed and did not exit.
        Ended::Stopped if !progress.errors().is_empty() => exited(progress, line_of),
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

/// The exports whose push failed because the registry refused the manifest itself.
pub(super) fn refused_manifests(progress: &BakeProgress) -> impl Iterator<Item = &Vertex> {
    let is_refused = |vertex: &&Vertex| {
        vertex.work() == Work::Export && vertex.own_error().is_some_and(|said| answer::refuses_manifest(said.judged()))
    };
    progress.failed().filter(is_refused)
}

/// What an error means.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    reason: Reason,
    /// How long the failed service asked to wait.
    wait: Duration,
    /// What a customer cannot read in the error.
    advice: Option<String>,
    evidence: Option<Evidence>,
}

impl From<Reason> for Verdict {
    fn from(reason: Reason) -> Self {
        Self { reason, wait: Duration::ZERO, advice: None, evidence: None }
    }
}

impl Verdict {
    fn failure(self, detail: &str) -> Failure {
        let advice = self.advice.map(|advice| format!(": {advice}")).unwrap_or_default();
        let failure = Failure::new(self.reason, format!("{detail}{advice}")).not_before(self.wait);
        failure.with_evidence(self.evidence)
    }

    fn of_step(self, step: &StepFailure) -> Failure {
        let says_all = self.reason == Reason::StepFailed;
        let failure = self.failure(&step.sentence());
        if says_all { failure.as_sentence() } else { failure }
    }
}

fn exited(progress: &BakeProgress, line_of: LineOf<'_>) -> Failure {
    if let Some((verdict, vertex)) = progress.failed().find_map(|vertex| Some((judge(progress, vertex)?, vertex))) {
        let verdict = with_near_name(progress, verdict);
        return match progress.step_failure(vertex, None) {
            Some(step) => verdict.of_step(&step.located(line_of)),
            None => verdict.failure(&describe(progress, vertex)),
        };
    }
    let seen = Seen {
        has_failed_vertex: progress.failed().next().is_some(),
        has_steps: progress.has_steps(),
        own: progress.own_registries(),
    };
    let judged = |said: &Said| {
        let verdict = by_error_line(said.judged(), said.evidence, &seen);
        let detail = last_line(progress, &said.shown, verdict.reason);
        verdict.failure(&detail)
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
            by_error_line(words, evidence, &seen).failure(words)
        }
        None => Failure::new(Reason::BuildFailed, "docker-buildx ended without an error message"),
    }
}

/// Blames a failure without a failed step on the target that buildx names, and on no target when the builder is at fault.
pub(super) fn blame(targets: &mut [TargetReport], failure: &Failure, named: Option<&str>) {
    let is_failed = |target: &TargetReport| target.status == Some(Status::Failed);
    if [Reason::BuilderUnavailable, Reason::BuilderLost, Reason::Stalled].contains(&failure.reason) {
        for target in targets.iter_mut().filter(|target| is_failed(target) && target.failed_step.is_none()) {
            (target.status, target.error) = (None, None);
        }
    } else if failure.reason.class() == Class::User {
        // docker-buildx closed its connection at the failure of another target.
        for target in targets.iter_mut().filter(|target| is_failed(target) && is_cut_off(target)) {
            (target.status, target.error) = (None, None);
        }
        if targets.iter().any(is_failed) {
            return;
        }
        let is_only = targets.len() == 1;
        for target in targets.iter_mut().filter(|target| is_only || named == Some(&target.name)) {
            (target.status, target.error) = (Some(Status::Failed), Some(failure.detail.clone()));
        }
    }
}

/// Whether a target has no error but that its connection to BuildKit ended, in the words of gRPC.
fn is_cut_off(target: &TargetReport) -> bool {
    let begins = ["rpc error: code = Unavailable ", "rpc error: code = Canceled "];
    target.failed_step.is_none()
        && target.error.as_ref().is_some_and(|error| begins.iter().any(|begin| error.starts_with(begin)))
}

/// What a failed vertex says: a step of the Dockerfile, a base image or an export.
fn judge(progress: &BakeProgress, vertex: &Vertex) -> Option<Verdict> {
    let said = vertex.own_error()?;
    let (error, own) = (said.judged(), progress.own_registries());
    let of_disk = || step::disk(error).map(Verdict::from);
    match vertex.instruction() {
        Some("FROM") => registry(error, Wanted::Base(vertex.image()), own).or_else(|| step("FROM", error, None, own)),
        Some(instruction) => step(instruction, error, said.evidence, own),
        None => match vertex.work() {
            Work::Base(reference) => registry(error, Wanted::Base(Some(reference)), own).or_else(of_disk),
            Work::Frontend(reference) => registry(error, Wanted::Frontend(reference), own).or_else(of_disk),
            Work::Export => of_disk().or_else(|| registry(error, Wanted::Push, own)),
            Work::Other => of_disk(),
        },
    }
}

/// The same, with the stage that BuildKit supposes was meant. A name without a registry and a tag is a stage before it is an
/// image, so a registry that does not answer is not the cause.
fn with_near_name(progress: &BakeProgress, verdict: Verdict) -> Verdict {
    let [said] = progress.errors() else { return verdict };
    match near_name(said.judged()) {
        Some((name, near)) if matches!(verdict.reason, Reason::RegistryUnavailable | Reason::BaseImageNotFound) => {
            let advice = format!("no stage or image is called {name}; did you mean {near}?");
            Verdict { advice: Some(advice), ..Reason::BaseImageNotFound.into() }
        }
        _ => verdict,
    }
}

/// A failure that buildx reports only with its last line, without buildx's own words. An error of a Dockerfile begins with its
/// place.
fn last_line(progress: &BakeProgress, shown: &str, reason: Reason) -> String {
    let Line::BuildKit(answer) = Line::parse(shown) else { return shown.to_owned() };
    let is_of_dockerfile = reason == Reason::DockerfileInvalid && refused_patterns(answer) != Some(Patterns::Ignored);
    let answer = evidence::without(answer, if is_of_dockerfile { BEFORE_PATTERNS } else { &[] });
    match progress.place_of_error(None).filter(|_| is_of_dockerfile) {
        Some(place) => format!("{place}: {}", without_line(answer, &place)),
        None => {
            let target = evidence::split_target(shown).0.map(|target| format!("target {target}: "));
            format!("{}{answer}", target.unwrap_or_default())
        }
    }
}

/// The error of a Dockerfile without its line, if the place has it.
fn without_line<'a>(answer: &'a str, place: &str) -> &'a str {
    let numbered = answer.strip_prefix("dockerfile parse error on line ").and_then(|rest| rest.split_once(": "));
    match numbered {
        Some((line, error)) if place.ends_with(&format!(":{line}")) => error,
        _ => answer,
    }
}

/// A failure of BuildKit's own work, in which a customer recognizes the Dockerfile.
fn describe(progress: &BakeProgress, vertex: &Vertex) -> String {
    let target = progress.target_of(vertex);
    let error = text::elide(vertex.own_error().map_or("", |said| &said.shown), MAX_ERROR);
    let (kind, reference) = match vertex.work() {
        Work::Base(reference) => ("base image", reference),
        Work::Frontend(reference) => ("frontend", reference),
        Work::Export | Work::Other => {
            let target = target.map(|target| format!("target {target}, ")).unwrap_or_default();
            return format!("{target}{}: {error}", text::clip(&vertex.name, MAX_NAME));
        }
    };
    let of = target.map(|target| format!(" of `{target}`")).unwrap_or_default();
    let place = target.and_then(|target| progress.place_of_error(Some(target)));
    let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
    // BuildKit repeats the reference.
    let error = error.strip_prefix(reference).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&error);
    format!("{kind} `{}`{of}{place}: {error}", text::clip(reference, MAX_NAME))
}

#[cfg(test)]
mod tests;
