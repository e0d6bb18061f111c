//! Reads the stream of `--progress=rawjson`: steps, their targets, and how each ended.
//!
//! The stream is JSON lines on standard error, mixed with text ([`ending`]). Events are emitted while a line is read. What is
//! kept of a build is bounded in number and in bytes, whatever it prints and however long its step names are (`bounds`).
//! Follows BuildKit's `client.SolveStatus`.

mod ending;
mod failure;
mod output;
mod printed;
mod seen;
mod stream;
mod tails;
mod targets;
mod vertex;
mod warnings;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use super::evidence;
use super::own_registries::OwnRegistries;
use super::shown::{Said, Shown};
use crate::bounds;
use crate::event::{Event, Step, Warning};
use crate::reason::Evidence;
use crate::text::one_line;
use crate::text::tail::Tail;

use ending::Ending;
use output::Output;
use stream::{StatusReport, StreamReport, VertexReport};
use tails::Tails;

pub(super) use failure::StepFailure;
pub(super) use vertex::{PROCESS, Vertex, Work};

/// Bytes of a step's name once the earlier names have used up the room.
const SHORT_NAME: usize = 64;

/// Bytes of a Dockerfile's path.
const MAX_PATH: usize = 500;

/// A longer digest is not BuildKit's.
const MAX_DIGEST: usize = 140;

/// Receives the events.
pub(super) type Emit<'t> = &'t mut dyn FnMut(Event);

/// What is baked, as known before the bake begins.
#[derive(Debug, Default)]
pub(super) struct Baked {
    /// The tags of each target, linked targets included.
    pub(super) targets: BTreeMap<String, Vec<String>>,
    /// The platforms of each target; none for the builder's own.
    pub(super) platforms: BTreeMap<String, Vec<String>>,
    /// Paths of their Dockerfiles from the root of the repository, by target.
    pub(super) dockerfiles: BTreeMap<String, String>,
    /// The names of all their Dockerfiles, without directories.
    pub(super) dockerfile_names: BTreeSet<String>,
    /// The registries that the platform pushes to or has credentials for.
    pub(super) own_registries: OwnRegistries,
}

/// Everything known of one bake.
pub(super) struct BakeProgress {
    targets: Vec<Arc<str>>,
    tags: BTreeMap<String, Vec<String>>,
    platforms: BTreeMap<String, Vec<String>>,
    own_registries: OwnRegistries,
    shown: Shown,
    vertices: Vec<Vertex>,
    /// The name of a vertex that is not named yet.
    no_name: Arc<str>,
    by_digest: HashMap<Box<str>, u32>,
    /// Steps that have ended since the beginning of the line.
    ended: Vec<u32>,
    output: Output,
    tails: Tails,
    /// Paths of Dockerfiles as shown, by target.
    dockerfiles: BTreeMap<String, String>,
    warnings: Vec<Warning>,
    /// The target, and BuildKit's warning of a base image that is not for a platform that the target names.
    foreign_base: Option<(String, Warning)>,
    ending: Ending,
    left: Left,
    has_begun: bool,
}

/// The room that is left.
#[derive(Debug)]
struct Left {
    name_bytes: usize,
    error_bytes: usize,
    n_pushes: usize,
    n_images: usize,
    /// Reports of vertices that were dropped for lack of room.
    n_left_out: usize,
    n_warnings_left_out: usize,
    n_long_lines: usize,
}

impl BakeProgress {
    /// For a bake of these targets.
    pub(super) fn new(baked: Baked, shown: Shown) -> Self {
        let path = |(target, path): (String, String)| (target, shown.name(&one_line(&path), MAX_PATH));
        Self {
            targets: baked.targets.keys().map(|name| Arc::from(name.as_str())).collect(),
            tags: baked.targets,
            platforms: baked.platforms,
            dockerfiles: baked.dockerfiles.into_iter().map(path).collect(),
            own_registries: baked.own_registries,
            shown,
            vertices: Vec::new(),
            no_name: Arc::default(),
            by_digest: HashMap::new(),
            ended: Vec::new(),
            output: Output::default(),
            tails: Tails::default(),
            ending: Ending::new(baked.dockerfile_names),
            warnings: Vec::new(),
            foreign_base: None,
            left: Left {
                name_bytes: bounds::STEP_NAMES,
                error_bytes: bounds::ERRORS,
                n_pushes: bounds::PUSHES,
                n_images: bounds::IMAGES,
                n_left_out: 0,
                n_warnings_left_out: 0,
                n_long_lines: 0,
            },
            has_begun: false,
        }
    }

    /// Reads one line of standard error and emits its events.
    pub(super) fn line(&mut self, line: &[u8], emit: Emit<'_>) {
        if line.len() >= bounds::LINE {
            self.left.n_long_lines += 1;
        }
        let looks_like_event = line.starts_with(b"{") && line.ends_with(b"}");
        if looks_like_event && !self.ending.is_over && self.event(line, emit).is_ok() {
            return;
        }
        // The beginning of an event that was cut is not text.
        if !(line.starts_with(b"{") && line.len() >= bounds::LINE) {
            self.ending.line(line, &self.shown);
        }
    }

    /// Emits the rest when docker-buildx has ended: last lines without a line feed, and notices of what was dropped.
    pub(super) fn finish(&mut self, emit: Emit<'_>) {
        self.fail_running_step(emit);
        self.output.steps().into_iter().for_each(|step| self.end_output(step, emit));
        let Left { n_left_out, n_warnings_left_out, n_long_lines, .. } = self.left;
        if n_left_out > 0 {
            let message =
                format!("the build has more than {} steps; {n_left_out} reports were left out", bounds::VERTICES);
            emit(Event::Notice(message));
        }
        if n_warnings_left_out > 0 {
            emit(Event::Notice(format!("{n_warnings_left_out} more warnings about the Dockerfiles were left out")));
        }
        if n_long_lines > 0 {
            let message =
                format!("{n_long_lines} lines of docker-buildx were longer than {} bytes and were cut", bounds::LINE);
            emit(Event::Notice(message));
        }
    }

    /// Gives the final error to the step that was running. buildx drops what BuildKit has not sent three seconds after the failure:
    /// the end of a long output, and the step's error.
    fn fail_running_step(&mut self, emit: Emit<'_>) {
        let [reported] = self.ending.errors.as_slice() else { return };
        let evidence::Line::BuildKit(answer) = evidence::Line::parse(reported.judged()) else { return };
        if self.failed().next().is_some() {
            return;
        }
        let is_meant = |vertex: &&Vertex| vertex.is_running() && vertex.runs(answer);
        let meant: Vec<u32> = self.vertices.iter().filter(is_meant).map(|vertex| vertex.number).collect();
        let &[number] = meant.as_slice() else { return };
        let (answer, evidence) = (answer.to_owned(), reported.evidence);
        self.fail(number, &answer, evidence);
        let step = self.step(number).title();
        emit(Event::Notice(format!("the end of the output of {step} is missing: docker-buildx did not report it")));
        emit(self.step_ended(number));
    }

    fn event(&mut self, line: &[u8], emit: Emit<'_>) -> serde_json::Result<()> {
        let result = stream::read(line, &mut |report| match report {
            StreamReport::Vertex(report) => self.vertex(&report, emit),
            StreamReport::Status(report) => self.progress(&report),
            StreamReport::Log(report) => self.log(&report, emit),
            StreamReport::Warning(report) => self.warning(&report, emit),
        });
        // A line reports the end of a step before the step's last output.
        for number in std::mem::take(&mut self.ended) {
            self.end_output(number, emit);
            // A target that shares the step may report its failure later.
            if !self.vertices[number as usize].has_error() {
                self.tails.forget(number);
            }
            if self.vertices[number as usize].is_shown() {
                emit(self.step_ended(number));
            }
        }
        if result.is_ok() {
            self.ending.event().into_iter().for_each(|warning| emit(Event::Notice(warning)));
        }
        result
    }

    fn vertex(&mut self, report: &VertexReport<'_>, emit: Emit<'_>) {
        let (target, name) = self.split_name(&report.name);
        let Some(number) = self.find(&report.digest) else { return };
        self.name(number, name);
        // No error that may be forged decides anything.
        if !report.error.is_empty() && !self.ending.is_doubtful {
            self.fail(number, &report.error, evidence::of_step(&report.error));
        }
        let vertex = &mut self.vertices[number as usize];
        if let Some(target) = target {
            vertex.is_for(target);
        }
        let (had_started, had_completed) = (vertex.started.is_some(), vertex.completed.is_some());
        vertex.take_in(report);
        let (begins, ends) = (!had_started && vertex.started.is_some(), !had_completed && vertex.completed.is_some());
        if ends {
            self.ended.push(number);
        }
        let vertex = &self.vertices[number as usize];
        if ends && vertex.is_export() && !vertex.has_error() {
            vertex
                .targets
                .iter()
                .for_each(|target| emit(Event::TargetDone(self.targets[*target as usize].to_string())));
        }
        if begins && vertex.is_shown() {
            emit(Event::StepStarted(self.step(number)));
        }
    }

    fn step_ended(&self, number: u32) -> Event {
        let vertex = &self.vertices[number as usize];
        Event::StepEnded {
            step: self.step(number),
            is_cached: vertex.was_cached(),
            took: vertex.took(),
            error: vertex.shown_error().map(str::to_owned),
        }
    }

    /// Names a vertex that has no name yet.
    fn name(&mut self, number: u32, name: Cow<'_, str>) {
        let vertex = &mut self.vertices[number as usize];
        if !vertex.name.is_empty() || name.is_empty() {
            return;
        }
        let max_bytes = if self.left.name_bytes >= bounds::STEP_NAME { bounds::STEP_NAME } else { SHORT_NAME };
        let name = self.shown.name(&name, max_bytes);
        self.left.name_bytes = self.left.name_bytes.saturating_sub(name.len());
        self.has_begun |= name != "[internal] load local bake definitions";
        vertex.name = name.into();
    }

    fn fail(&mut self, number: u32, error: &str, evidence: Option<Evidence>) {
        let vertex = &mut self.vertices[number as usize];
        if Vertex::is_echo(error) {
            return vertex.echo();
        }
        self.left.error_bytes += vertex.own_error().map_or(0, Said::size);
        let said = self.shown.error(error, true).with_evidence(evidence);
        let room = self.left.error_bytes.checked_sub(said.size());
        vertex.fail(room.is_some().then_some(said));
        self.left.error_bytes = room.unwrap_or(self.left.error_bytes);
    }

    fn progress(&mut self, report: &StatusReport<'_>) {
        let Some(number) = self.find(&report.vertex) else { return };
        let vertex = &mut self.vertices[number as usize];
        if report.id == "transferring context:" && vertex.name.contains("load build context") {
            vertex.context_bytes = vertex.context_bytes.max(u64::try_from(report.current).unwrap_or(0));
        }
        if report.completed.is_none() || self.ending.is_doubtful {
            return;
        }
        let pushed = report.id.strip_prefix("pushing manifest for ").and_then(|rest| rest.split_once('@'));
        if let Some((reference, digest)) = pushed {
            self.pushed(number, reference, digest);
        } else if let Some(digest) = report.id.strip_prefix("exporting manifest ") {
            self.exported(number, report.started, digest);
        }
    }

    /// Notes the image of one platform. The ids of an index and of an attestation begin otherwise, and are not digests here.
    fn exported(&mut self, number: u32, started: Option<Timestamp>, digest: &str) {
        let exported = &mut self.vertices[number as usize].exported;
        let is_known = exported.iter().any(|(_, known)| **known == *digest);
        if is_digest(digest) && !is_known && self.left.n_images > 0 {
            self.left.n_images -= 1;
            exported.push((started, digest.into()));
        }
    }

    /// Docker's engine reports a reference with its registry and tag.
    fn pushed(&mut self, number: u32, reference: &str, digest: &str) {
        let is_same = |tag: &&String| {
            reference == *tag
                || reference.strip_suffix(tag.as_str()).is_some_and(|rest| rest.ends_with('/'))
                || reference.strip_suffix(":latest") == Some(tag)
        };
        let pushed = &mut self.vertices[number as usize].pushed;
        for tag in self.tags.values().flatten().filter(is_same) {
            let is_known = pushed.iter().any(|(known, _)| **known == **tag);
            if is_digest(digest) && !is_known && self.left.n_pushes > 0 {
                self.left.n_pushes -= 1;
                pushed.push((tag.as_str().into(), digest.into()));
            }
        }
    }

    /// How long the longest import and the longest export of a cache took.
    pub(super) fn caches_moved(&self) -> Event {
        let longest = |beginning: &str| {
            let of = self.vertices.iter().filter(|vertex| vertex.name.starts_with(beginning));
            of.map(Vertex::took).max().unwrap_or_default()
        };
        Event::CachesMoved {
            imported: longest("importing cache manifest from "),
            exported: longest("exporting cache to "),
        }
    }

    fn step(&self, number: u32) -> Step {
        let vertex = &self.vertices[number as usize];
        let target = vertex.targets.first().map(|target| Arc::clone(&self.targets[*target as usize]));
        Step { target, name: Arc::clone(&vertex.name) }
    }

    /// The number of a vertex; `None` when there are too many, or when it is not BuildKit's.
    fn find(&mut self, digest: &str) -> Option<u32> {
        if let Some(number) = self.by_digest.get(digest) {
            return Some(*number);
        }
        if self.vertices.len() >= bounds::VERTICES || digest.len() > MAX_DIGEST {
            self.left.n_left_out += 1;
            return None;
        }
        let number = u32::try_from(self.vertices.len()).ok()?;
        self.by_digest.insert(digest.into(), number);
        self.vertices.push(Vertex::new(number, Arc::clone(&self.no_name)));
        Some(number)
    }

    /// The target and the rest of a vertex's name. With several targets, the bracket begins with the target's name.
    fn split_name<'a>(&self, name: &'a str) -> (Option<u16>, Cow<'a, str>) {
        if self.targets.len() == 1 {
            return (Some(0), name.into());
        }
        let Some((bracket, rest)) = name.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
            return (None, name.into());
        };
        let (first, others) = bracket.split_once(' ').unwrap_or((bracket, ""));
        let Some(target) = self.targets.iter().position(|target| **target == *first) else {
            return (None, name.into());
        };
        let rest = if others.is_empty() { rest.trim_start().into() } else { format!("[{others}]{rest}").into() };
        (u16::try_from(target).ok(), rest)
    }
}

/// The whole stream's results.
impl BakeProgress {
    /// The lines that may be the final error.
    pub(super) fn errors(&self) -> &[Said] {
        &self.ending.errors
    }

    /// The target that the final error names. buildx does so when it builds several.
    pub(super) fn blamed(&self) -> Option<&str> {
        // When two lines may be the error, one is a customer's imitation.
        let [error] = self.errors() else { return None };
        let name = evidence::split_target(error.judged()).0?;
        self.targets.iter().map(|target| &**target).find(|target| *target == name)
    }

    /// The last text of docker-buildx, for an exit without an error; `None` when it crashed.
    pub(super) fn last_words(&self) -> Option<&str> {
        self.ending.last.last().filter(|_| !self.ending.has_crashed)
    }

    /// The last lines that were not events, for the operator.
    pub(super) fn said(&self) -> &Tail {
        &self.ending.last
    }

    /// The steps and chores that broke the build.
    pub(super) fn failed(&self) -> impl Iterator<Item = &Vertex> {
        self.vertices.iter().filter(|vertex| vertex.breaks_build())
    }

    /// The first of a vertex's targets.
    pub(super) fn target_of(&self, vertex: &Vertex) -> Option<&str> {
        vertex.targets.first().map(|target| &*self.targets[*target as usize])
    }

    /// The tags of a vertex's target.
    pub(super) fn tags_of(&self, vertex: &Vertex) -> &[String] {
        self.target_of(vertex).and_then(|target| self.tags.get(target)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Notes that the registry has a vertex's image under these tags, each with its digest there: its push has not failed.
    pub(super) fn settle(&mut self, number: u32, tags: Vec<(String, String)>) {
        let vertex = &mut self.vertices[number as usize];
        vertex.forgive();
        vertex.pushed = tags.into_iter().map(|(tag, digest)| (tag.into(), digest.into())).collect();
    }

    /// Whether any step of a Dockerfile is known: then the frontend has read its Dockerfile.
    pub(super) fn has_steps(&self) -> bool {
        self.vertices.iter().any(Vertex::is_step)
    }

    /// The registries that the platform pushes to or has credentials for.
    pub(super) fn own_registries(&self) -> &OwnRegistries {
        &self.own_registries
    }

    /// Whether the builder has begun to work: before that, buildx only reads the definition.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Bytes of build context that were sent.
    pub(super) fn context_bytes(&self) -> u64 {
        self.vertices.iter().map(|vertex| vertex.context_bytes).sum()
    }
}

/// A digest as in registries, such as `sha256:…`.
fn is_digest(text: &str) -> bool {
    let is_part = |part: &str, allowed: fn(&u8) -> bool| !part.is_empty() && part.as_bytes().iter().all(allowed);
    let parts = text.split_once(':').filter(|_| text.len() <= MAX_DIGEST);
    parts.is_some_and(|(algorithm, hash)| {
        is_part(algorithm, |byte| byte.is_ascii_alphanumeric() || b"+._-".contains(byte))
            && is_part(hash, u8::is_ascii_hexdigit)
    })
}

fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
