//! The record of a build as a page for people, of 80 columns where words allow it.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::recorded::{Recorded, State, duration, time, why_not_cached};
use crate::clock::Epoch;
use crate::log_stream::{AttemptRecord, Summary};
use crate::text;

const WIDTH: usize = 80;

/// Bytes of a step's title.
const TITLE: usize = 64;

/// The whole page.
pub(super) fn page(build: &Recorded, now: Epoch) -> String {
    let mut page = Page::default();
    page.build(build, now);
    let n_earlier = build.record.attempts.len() - 1;
    for (n, recorded) in build.record.attempts.iter().enumerate() {
        page.attempt(&recorded.attempt, n == n_earlier && runs(build));
    }
    page.0
}

/// Whether the last attempt runs now.
fn runs(build: &Recorded) -> bool {
    let last = &build.last().summary;
    last.ended_at_ms.is_none() && matches!(&build.state, State::Running(owner) if *owner == last.worker)
}

#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        let _ = writeln!(self.0, "{}", line.trim_end());
    }

    /// A text of several words, with breaks between them.
    fn text(&mut self, first: &str, indent: usize, words: &str) {
        let plain = text::plain(words);
        let (mut line, mut is_first) = (first.to_owned(), true);
        for word in plain.split_whitespace() {
            if !is_first && line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.line(&line);
                (line, is_first) = (" ".repeat(indent), true);
            }
            line.push_str(if is_first { "" } else { " " });
            line.push_str(word);
            is_first = false;
        }
        self.line(&line);
    }

    fn field(&mut self, label: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(&format!("{label:<11} "), 12, value);
        }
    }

    fn build(&mut self, build: &Recorded, now: Epoch) {
        let last = &build.last().summary;
        self.text("", 2, &format!("build {}: {}", build.id, state(build, now)));
        self.field("repository", last.repository.as_deref());
        self.field("commit", last.sha.as_deref());
        self.field("ref", last.git_ref.as_deref());
        self.field("account", last.account.as_deref());
        let first = &build.record.attempts[0].attempt.summary;
        let at = |ms: Option<u64>| ms.map(|ms| format!("{} UTC", time(ms)));
        self.field("queued", at(first.queued_at_ms).as_deref());
        self.field("began", at(Some(first.began_at_ms)).as_deref());
        self.field("ended", at(last.ended_at_ms.filter(|_| last.is_over)).as_deref());
        self.field("log", build.last().log_url.as_str());
    }

    fn attempt(&mut self, attempt: &AttemptRecord, is_running: bool) {
        let summary = &attempt.summary;
        self.line("");
        let took = summary.ended_at_ms.map(|ended| duration(ended.saturating_sub(summary.began_at_ms)));
        let end = match (&summary.status, is_running) {
            (Some(status), _) => format!("{} in {}", result(status, summary), took.unwrap_or_default()),
            (None, true) => attempt.phase.as_ref().map_or("running".into(), |phase| format!("running, {phase}")),
            (None, false) => "no end is recorded; its worker died, or did not reach Redis".into(),
        };
        let head = format!("attempt {}: {end}", summary.attempt);
        self.text("", 2, &head);
        self.text("  job ", 6, &summary.jid);
        self.text("  worker ", 9, &format!("{}, since {} UTC", summary.worker, time(summary.began_at_ms)));
        if let Some(at) = &attempt.placement {
            let pod = at.pod.as_ref().map(|pod| format!(", pod {pod}")).unwrap_or_default();
            self.text("  builder ", 10, &format!("{}{pod}: {}", at.builder, at.why));
        }
        let phases = phases(attempt);
        if !phases.is_empty() {
            self.text("  phases ", 9, &phases);
        }
        if let Some(message) = &attempt.message {
            self.text("  ", 2, message);
        }
        attempt.targets.iter().for_each(|target| self.target(target, attempt.message.as_deref()));
        if attempt.targets_left_out > 0 {
            self.line(&format!("  … {} more targets are not recorded", attempt.targets_left_out));
        }
        for warning in &attempt.warnings {
            let target = warning.target.as_ref().map(|target| format!("{target}: ")).unwrap_or_default();
            self.text("  ", 4, &format!("{target}{warning}"));
        }
        attempt.notices.iter().for_each(|notice| self.text("  notice: ", 4, notice));
    }

    /// A target. What the attempt's message says already is left out.
    fn target(&mut self, target: &Value, message: Option<&str>) {
        let word = |field: &str| target[field].as_str();
        let status = word("status").unwrap_or("not reached");
        let name = word("name").unwrap_or("?");
        let took = duration(target["duration_ms"].as_u64().unwrap_or(0));
        let n = |field: &str| target[field].as_u64().unwrap_or(0);
        let saved = target["saved_ms"].as_u64().map(|ms| format!(", which saved {}", duration(ms)));
        let saved = saved.unwrap_or_default();
        let cached = format!("{} of {} steps cached{saved}", n("steps_cached"), n("steps_total"));
        self.text("  target ", 4, &format!("{name}: {status} in {took}, {cached}"));
        word("digest").into_iter().for_each(|digest| self.text("    ", 4, digest));
        let tags = target["tags"].as_array().into_iter().flatten().filter_map(Value::as_str);
        tags.for_each(|tag| self.text("    ", 4, tag));
        why_not_cached(target).into_iter().for_each(|why| self.text("    not cached: ", 6, &why));
        let error = word("error").filter(|error| !message.is_some_and(|message| message.contains(error)));
        error.into_iter().for_each(|error| self.text("    error: ", 6, error));
        let steps: Vec<&Value> = target["slowest_steps"].as_array().into_iter().flatten().collect();
        if !steps.is_empty() {
            self.line("    slowest steps:");
        }
        for step in steps {
            let title = text::one_line(step["step"].as_str().unwrap_or("?"));
            let cached = if step["is_cached"] == true { " (cached)" } else { "" };
            let took = duration(step["ms"].as_u64().unwrap_or(0));
            self.line(&format!("    {took:>8}  {}{cached}", text::clip(&title, TITLE)));
        }
        if let Some(tail) = word("log_tail") {
            self.line("    output:");
            text::plain(tail).lines().for_each(|line| self.line(&format!("    | {line}")));
        }
    }
}

/// What is true of the build, in words.
fn state(build: &Recorded, now: Epoch) -> String {
    let last = &build.last().summary;
    let n_attempts = build.record.attempts.len();
    let attempts = if n_attempts == 1 { String::new() } else { format!(", {n_attempts} attempts") };
    let unended = if last.status.is_none() { "; the end of its last attempt is not recorded" } else { "" };
    match &build.state {
        State::Over => format!("{}{attempts}", result(last.status.as_deref().unwrap_or("over"), last)),
        State::Running(_) if runs(build) => {
            let for_ms = now.as_millis().saturating_sub(last.began_at_ms);
            format!("running since {} UTC, for {}{attempts}", time(last.began_at_ms), duration(for_ms))
        }
        State::Running(owner) => format!("runs again in {owner}, which has not recorded it yet{unended}"),
        State::Silent(owner) => format!(
            "not known to run: {owner} holds its job and has no lease. When that worker is dead, another one requeues the job"
        ),
        State::Held(owner) => format!("held by {owner}, which does not run it now{unended}"),
        State::Waiting(location) => format!("{location}{unended}"),
        State::Lost if last.status.is_some() => {
            "not over when it was recorded, and no queue or worker has its job".into()
        }
        State::Lost => "its end is not recorded, and no queue or worker has its job".into(),
        State::Unknown(error) => {
            format!("not over when it was recorded; where its job is, Redis does not say: {error}")
        }
    }
}

fn result(status: &str, summary: &Summary) -> String {
    match &summary.reason {
        Some(reason) if reason != status => format!("{status} ({reason})"),
        _ => status.to_owned(),
    }
}

/// Such as `queued 0.3s, fetch 1.2s`.
fn phases(attempt: &AttemptRecord) -> String {
    let phases = attempt.timings.iter().filter_map(|(name, ms)| Some((name.strip_suffix("_ms")?, ms.as_u64()?)));
    let phases: Vec<String> =
        phases.filter(|(_, ms)| *ms > 0).map(|(name, ms)| format!("{name} {}", duration(ms))).collect();
    phases.join(", ")
}

#[cfg(test)]
mod tests;
