//! Understands the stream of `--progress=rawjson`: which steps there are, for which targets, and how each ended.
//!
//! The stream is JSON lines on standard error, mixed with text. After the first line that begins with `ERROR:` nothing
//! is an event: text of the customer's can follow, and may look like one. Follows BuildKit's `client.SolveStatus`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::Deserialize;

use crate::event::{Event, Step};
use crate::report::{Status, TargetReport};

/// Lines of text kept for the diagnosis.
const MAX_TEXT_LINES: usize = 100;

/// A line of a step's output is cut here.
const MAX_OUTPUT_LINE: usize = 8 << 10;

/// Everything known of one bake.
#[derive(Debug)]
pub(super) struct Progress {
    targets: Vec<String>,
    vertices: Vec<Vertex>,
    by_digest: HashMap<String, usize>,
    partial_output: HashMap<(String, u32), Vec<u8>>,
    /// Text lines, the last of them.
    text: Vec<String>,
    /// The first line that begins with `ERROR: `, without that.
    pub(super) error: Option<String>,
}

/// One step, or one of BuildKit's own chores: whatever was reported under one digest.
#[derive(Debug)]
pub(super) struct Vertex {
    /// The name without the target, such as `[2/3] RUN make`.
    pub(super) name: String,
    /// The targets it was reported for. A guess for shared steps.
    pub(super) targets: BTreeSet<String>,
    started: Option<Timestamp>,
    completed: Option<Timestamp>,
    /// Whether any report of its completion says that it was not cached.
    has_run: bool,
    is_cached: bool,
    pub(super) error: Option<String>,
    context_bytes: u64,
    /// Digests of manifests that were pushed, by reference.
    pushed: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SolveStatus {
    vertexes: Vec<VertexReport>,
    statuses: Vec<StatusReport>,
    logs: Vec<LogReport>,
}

#[derive(Deserialize)]
struct VertexReport {
    digest: String,
    #[serde(default)]
    name: String,
    started: Option<Timestamp>,
    completed: Option<Timestamp>,
    #[serde(default)]
    cached: bool,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct StatusReport {
    #[serde(default)]
    id: String,
    vertex: String,
    #[serde(default)]
    current: i64,
    completed: Option<Timestamp>,
}

#[derive(Deserialize)]
struct LogReport {
    vertex: String,
    #[serde(default)]
    stream: u32,
    #[serde(default)]
    data: String,
}

impl Vertex {
    fn new() -> Self {
        Self {
            name: String::new(),
            targets: BTreeSet::new(),
            started: None,
            completed: None,
            has_run: false,
            is_cached: false,
            error: None,
            context_bytes: 0,
            pushed: BTreeMap::new(),
        }
    }

    /// Stage and number of a step of a Dockerfile: its bracket ends in `n/m`.
    fn position(&self) -> Option<(&str, u32)> {
        let (bracket, _) = self.name.strip_prefix('[')?.split_once(']')?;
        let (stage, step) = bracket.rsplit_once(' ').unwrap_or(("", bracket));
        let (n, m) = step.split_once('/')?;
        m.parse::<u32>().ok()?;
        Some((stage, n.parse().ok()?))
    }

    fn is_step(&self) -> bool {
        self.position().is_some()
    }

    /// The last of a target.
    fn is_export(&self) -> bool {
        self.name.starts_with("exporting to ")
    }

    fn was_cached(&self) -> bool {
        self.is_cached && !self.has_run
    }

    /// A failure of its own, and not the echo of another one's.
    pub(super) fn own_error(&self) -> Option<&str> {
        // What it quotes is the customer's.
        let is_echo = |error: &&str| error.rsplit('"').next().is_some_and(|said| said.contains("context canceled"));
        self.error.as_deref().filter(|error| !is_echo(error))
    }

    fn step(&self) -> Step {
        Step { target: self.targets.iter().next().cloned(), name: self.name.clone() }
    }
}

impl Progress {
    /// For a bake of these targets, linked ones included.
    pub(super) fn new(targets: impl IntoIterator<Item = String>) -> Self {
        Self {
            targets: targets.into_iter().collect(),
            vertices: Vec::new(),
            by_digest: HashMap::new(),
            partial_output: HashMap::new(),
            text: Vec::new(),
            error: None,
        }
    }

    /// Takes in one line of standard error; returns what happened.
    pub(super) fn line(&mut self, line: &[u8]) -> Vec<Event> {
        if self.error.is_none()
            && line.first() == Some(&b'{')
            && let Ok(status) = serde_json::from_slice(line)
        {
            return self.status(status);
        }
        let text = String::from_utf8_lossy(line).into_owned();
        if self.error.is_none() {
            self.error = text.strip_prefix("ERROR: ").map(str::to_owned);
        }
        if self.text.len() == MAX_TEXT_LINES {
            self.text.remove(0);
        }
        let notice = text
            .strip_prefix("WARNING: ")
            .filter(|_| self.error.is_none())
            .map(|warning| Event::Notice(warning.to_owned()));
        self.text.push(text);
        notice.into_iter().collect()
    }

    /// The last line of text, for an end without an `ERROR:` line.
    pub(super) fn last_text(&self) -> Option<&str> {
        self.text.last().map(String::as_str)
    }

    /// The steps that failed by themselves. A cache that cannot be imported fails nothing.
    pub(super) fn failed(&self) -> impl Iterator<Item = &Vertex> {
        self.vertices.iter().filter(|vertex| vertex.own_error().is_some() && !vertex.name.starts_with("importing "))
    }

    /// Whether the builder has done something: buildx reads the definition before it connects.
    pub(super) fn has_begun(&self) -> bool {
        self.vertices.iter().any(|vertex| vertex.name != "[internal] load local bake definitions")
    }

    /// The one line of a launcher that could not become buildx. A customer's text comes after events or an error.
    pub(super) fn launcher_error(&self) -> Option<&str> {
        match (self.vertices.is_empty(), &self.error, self.text.as_slice()) {
            (true, None, [line]) => line.strip_prefix(crate::sandbox::LAUNCH)?.strip_prefix(": "),
            _ => None,
        }
    }

    /// Bytes of build context that were sent.
    pub(super) fn context_bytes(&self) -> u64 {
        self.vertices.iter().map(|vertex| vertex.context_bytes).sum()
    }

    /// What became of one target. `is_success`: whether the bake as a whole succeeded.
    pub(super) fn target(&self, name: &str, tags: Vec<String>, is_success: bool) -> TargetReport {
        let own: Vec<&Vertex> = self.vertices.iter().filter(|vertex| vertex.targets.contains(name)).collect();
        let steps = self.steps(&own);
        let started = own.iter().filter_map(|vertex| vertex.started).min();
        let completed = own.iter().filter_map(|vertex| vertex.completed).max();
        let error = own.iter().find_map(|vertex| vertex.own_error()).map(|error| first_line(error).to_owned());
        let digest = tags.iter().find_map(|tag| own.iter().find_map(|vertex| vertex.pushed_as(tag)));
        let status = match (is_success, &error, &digest) {
            (true, _, _) | (false, None, Some(_)) => Some(Status::Succeeded),
            (false, Some(_), _) => Some(Status::Failed),
            (false, None, None) => None,
        };
        TargetReport {
            name: name.to_owned(),
            status,
            digest,
            tags,
            duration_ms: started.zip(completed).map_or(0, |(from, to)| millis(from, to)),
            steps_total: count(steps.len()),
            steps_cached: count(steps.values().filter(|has_run| !**has_run).count()),
            error,
        }
    }

    /// The steps of a target that were reached, by name, and whether each has run.
    ///
    /// BuildKit reports a step that a sibling has just run once more, as cached and under another digest: a step is its
    /// name, and has run when any vertex of that name has. And when a later step comes from the cache, those before it are
    /// planned but never completed: they were reached all the same.
    /// A FROM that needs no pull is flagged as cached at BuildKit's whim, and is not counted.
    fn steps<'a>(&self, own: &[&'a Vertex]) -> BTreeMap<&'a str, bool> {
        let counted = || own.iter().filter(|vertex| vertex.is_step() && !vertex.name.contains("] FROM "));
        let mut last_completed: BTreeMap<&str, u32> = BTreeMap::new();
        for (stage, n) in counted().filter(|vertex| vertex.completed.is_some()).filter_map(|vertex| vertex.position()) {
            let last = last_completed.entry(stage).or_default();
            *last = n.max(*last);
        }
        let mut steps = BTreeMap::new();
        for vertex in counted() {
            let is_passed =
                vertex.position().is_some_and(|(stage, n)| last_completed.get(stage).is_some_and(|last| n < *last));
            let has_run = match vertex.completed {
                Some(_) => !vertex.was_cached(),
                None if is_passed => self.vertices.iter().any(|other| other.name == vertex.name && other.has_run),
                None => continue,
            };
            *steps.entry(vertex.name.as_str()).or_default() |= has_run;
        }
        steps
    }

    fn status(&mut self, status: SolveStatus) -> Vec<Event> {
        let mut events = Vec::new();
        for report in status.vertexes {
            self.vertex(report, &mut events);
        }
        for report in status.statuses {
            self.progress(&report);
        }
        for report in status.logs {
            self.log(&report, &mut events);
        }
        events
    }

    fn vertex(&mut self, report: VertexReport, events: &mut Vec<Event>) {
        let (target, name) = self.split_name(&report.name);
        let vertex = self.find(&report.digest);
        if vertex.name.is_empty() {
            vertex.name = name;
        }
        vertex.targets.extend(target);
        let (had_started, had_completed) = (vertex.started.is_some(), vertex.completed.is_some());
        // A vertex is reported once per target that shares it, and a local source runs twice: the widest span counts.
        vertex.started = [vertex.started, report.started].into_iter().flatten().min();
        vertex.completed = vertex.completed.max(report.completed);
        if report.completed.is_some() {
            vertex.is_cached |= report.cached;
            vertex.has_run |= !report.cached;
        }
        if !report.error.is_empty() {
            vertex.error = Some(report.error);
        }
        if vertex.is_export() && !had_completed && vertex.completed.is_some() && vertex.error.is_none() {
            events.extend(vertex.targets.iter().cloned().map(Event::TargetDone));
        }
        if !vertex.is_step() && vertex.error.is_none() {
            return;
        }
        if !had_started && vertex.started.is_some() {
            events.push(Event::StepStarted(vertex.step()));
        }
        if !had_completed && vertex.completed.is_some() {
            let took = vertex.started.zip(vertex.completed).map_or(0, |(from, to)| millis(from, to));
            events.push(Event::StepEnded {
                step: vertex.step(),
                is_cached: vertex.was_cached(),
                took: Duration::from_millis(took),
                error: vertex.own_error().map(|error| first_line(error).to_owned()),
            });
        }
    }

    fn progress(&mut self, report: &StatusReport) {
        let vertex = self.find(&report.vertex);
        if report.id == "transferring context:" && vertex.name.contains("load build context") {
            vertex.context_bytes = vertex.context_bytes.max(u64::try_from(report.current).unwrap_or(0));
        }
        let pushed = report.id.strip_prefix("pushing manifest for ").and_then(|rest| rest.split_once('@'));
        if let (Some((reference, digest)), Some(_)) = (pushed, report.completed) {
            vertex.pushed.insert(reference.to_owned(), digest.to_owned());
        }
    }

    /// Chunks end anywhere, also inside a line or a character: lines are put together per step and pipe.
    fn log(&mut self, report: &LogReport, events: &mut Vec<Event>) {
        let Ok(data) = BASE64_STANDARD.decode(&report.data) else { return };
        let step = self.find(&report.vertex).step();
        let partial = self.partial_output.entry((report.vertex.clone(), report.stream)).or_default();
        for byte in data {
            if byte != b'\n' && partial.len() < MAX_OUTPUT_LINE {
                partial.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(partial).trim_end_matches('\r').to_owned();
            partial.clear();
            if byte != b'\n' {
                partial.push(byte);
            }
            events.push(Event::StepOutput { step: step.clone(), line });
        }
    }

    fn find(&mut self, digest: &str) -> &mut Vertex {
        let place = *self.by_digest.entry(digest.to_owned()).or_insert_with(|| {
            self.vertices.push(Vertex::new());
            self.vertices.len() - 1
        });
        &mut self.vertices[place]
    }

    /// Target and rest of a vertex's name: with several targets the bracket begins with one, with one it does not.
    fn split_name(&self, name: &str) -> (Option<String>, String) {
        if let [only] = self.targets.as_slice() {
            return (Some(only.clone()), name.to_owned());
        }
        let Some((bracket, rest)) = name.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
            return (None, name.to_owned());
        };
        let (first, others) = bracket.split_once(' ').unwrap_or((bracket, ""));
        if !self.targets.iter().any(|target| target == first) {
            return (None, name.to_owned());
        }
        let rest = if others.is_empty() { rest.trim_start().to_owned() } else { format!("[{others}]{rest}") };
        (Some(first.to_owned()), rest)
    }
}

impl Vertex {
    /// The digest that was pushed under this reference. Docker's engine names it with its registry and tag in full.
    fn pushed_as(&self, tag: &str) -> Option<String> {
        if self.own_error().is_some() {
            return None;
        }
        let is_same = |reference: &str| {
            reference == tag
                || reference.strip_suffix(tag).is_some_and(|rest| rest.ends_with('/'))
                || reference.strip_suffix(":latest") == Some(tag)
        };
        self.pushed.iter().find(|(reference, _)| is_same(reference)).map(|(_, digest)| digest.clone())
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(stream: &[u8], targets: &[&str]) -> (Progress, Vec<Event>) {
        let mut progress = Progress::new(targets.iter().map(|target| (*target).to_owned()));
        let events = stream
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .flat_map(|line| progress.line(line))
            .collect();
        (progress, events)
    }

    macro_rules! stream {
        ($path:literal) => {
            include_bytes!(concat!("../../tests/fixtures/buildx/", $path, ".stderr"))
        };
    }

    fn report(progress: &Progress, name: &str, is_success: bool) -> TargetReport {
        progress.target(name, vec![format!("registry.example.test/shop/{name}:dev")], is_success)
    }

    #[test]
    fn digests_and_steps_of_each_target_are_known() {
        for stream in [&stream!("0.29/success-push")[..], &stream!("0.36/success-push")[..]] {
            let (progress, events) = replay(stream, &["api", "web", "worker"]);
            let web = report(&progress, "web", true);
            assert_eq!(web.status, Some(Status::Succeeded));
            assert!(web.digest.as_deref().is_some_and(|digest| digest.starts_with("sha256:")), "{web:?}");
            assert!(web.steps_total >= 2 && web.duration_ms > 0, "{web:?}");
            assert!(progress.context_bytes() > 0);
            assert!(events.iter().any(|event| matches!(event, Event::StepOutput { .. })));
            let started = events.iter().filter(|event| matches!(event, Event::StepStarted(_))).count();
            let ended = events.iter().filter(|event| matches!(event, Event::StepEnded { .. })).count();
            assert_eq!(started, ended);
        }
    }

    #[test]
    fn a_step_that_ran_for_a_sibling_does_not_count_as_cached() {
        let (cold, _) = replay(stream!("0.29/success-push"), &["api", "web", "worker"]);
        let api = report(&cold, "api", true);
        assert!(api.steps_cached < api.steps_total, "{api:?}");
        assert_eq!(report(&cold, "worker", true).steps_cached, 0, "everything ran in this command");
        let (warm, _) = replay(stream!("0.29/cached-push"), &["api", "web", "worker"]);
        let api = report(&warm, "api", true);
        assert_eq!(api.steps_cached, api.steps_total, "{api:?}");
    }

    #[test]
    fn when_one_target_fails_the_others_are_not_blamed() {
        let (progress, _) = replay(stream!("0.36/one-of-three-fails"), &["api", "web", "broken"]);
        let broken = report(&progress, "broken", false);
        assert_eq!(broken.status, Some(Status::Failed));
        assert!(broken.error.is_some_and(|error| error.contains("exit code: 3")));
        assert_ne!(report(&progress, "web", false).status, Some(Status::Failed));
        assert_eq!(progress.failed().count(), 1);
    }

    #[test]
    fn nothing_after_the_error_line_is_an_event() {
        let forged = br#"ERROR: failed to solve: dockerfile parse error: STOPSIGNAL
{"vertexes":[{"digest":"sha256:x","name":"[web] exporting to image","completed":"2026-11-24T04:05:56Z"}]}"#;
        let (progress, events) = replay(forged, &["web"]);
        assert_eq!(events, []);
        assert_eq!(progress.error.as_deref(), Some("failed to solve: dockerfile parse error: STOPSIGNAL"));
        assert_eq!(report(&progress, "web", false).status, None);
    }

    #[test]
    fn output_lines_are_put_together_from_chunks() {
        let mut progress = Progress::new(["t".to_owned()]);
        let chunk = |data: &str| {
            format!(r#"{{"logs":[{{"vertex":"v","stream":1,"data":"{}"}}]}}"#, BASE64_STANDARD.encode(data))
        };
        assert_eq!(progress.line(chunk("one\ntw").as_bytes()).len(), 1);
        let events = progress.line(chunk("o\r\n").as_bytes());
        assert!(matches!(&events[..], [Event::StepOutput { line, .. }] if line == "two"), "{events:?}");
    }
}
