//! A build on a terminal: a spinner per running step, a line per finished step, and a table at the end. Without a terminal, plain
//! lines.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the one place that speaks to a person")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::Listener;
use crate::event::Event;
use crate::report::{Report, Status, TargetReport};
use crate::{bounds, text};

/// Progress on standard error, the result on standard output.
#[derive(Debug)]
pub struct Terminal {
    bars: Option<MultiProgress>,
    running: Mutex<HashMap<String, ProgressBar>>,
}

impl Default for Terminal {
    fn default() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, running: Mutex::default() }
    }
}

impl Listener for Terminal {
    fn on_event(&self, event: &Event) {
        match event {
            Event::PhaseStarted(phase) => self.begin(phase.name()),
            Event::PhaseEnded(phase, took) => self.end(phase.name(), &format!("{} {}", phase.name(), seconds(*took))),
            Event::Fetching { received_bytes } => self.update("fetch", &format!("fetch {} KiB", received_bytes / 1024)),
            Event::StepStarted(step) => self.begin(&step.title()),
            Event::StepEnded { step, is_cached, took, error } => {
                let result = match (error, is_cached) {
                    (Some(error), _) => format!("failed: {error}"),
                    (None, true) => "cached".into(),
                    (None, false) => seconds(*took),
                };
                let title = step.title();
                self.end(&title, &format!("{title} {result}"));
            }
            Event::StepOutput { step, line } => self.line(&format!("{} | {line}", step.label())),
            Event::Warning(warning) => self.line(&warning.to_string()),
            Event::Notice(notice) => self.line(&format!("note: {notice}")),
            // The table at the end shows them.
            Event::Targets(_) | Event::TargetDone(_) | Event::TargetEnded(_) => {}
            Event::BuildId(_) | Event::Commit { .. } | Event::Placed(_) | Event::ContextSent { .. } => {}
            Event::NoticeLeftOut | Event::Ended { .. } => {}
        }
    }
}

impl Terminal {
    fn begin(&self, key: &str) {
        let Some(bars) = &self.bars else { return };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Each spinner has a thread.
        if running.len() >= bounds::SPINNERS || running.contains_key(key) {
            return;
        }
        let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}").expect("the template is valid");
        let bar = bars.add(ProgressBar::new_spinner().with_style(style).with_message(key.to_owned()));
        bar.enable_steady_tick(Duration::from_millis(100));
        running.insert(key.to_owned(), bar);
    }

    fn update(&self, key: &str, message: &str) {
        if let Some(bar) = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            bar.set_message(message.to_owned());
        }
    }

    fn end(&self, key: &str, message: &str) {
        if let Some(bar) = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(key) {
            bar.finish_and_clear();
        }
        self.line(message);
    }

    /// Strangers' control characters must have no effect.
    fn line(&self, text: &str) {
        let text = text::plain(text);
        match &self.bars {
            // A closed terminal must not fail a build.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

/// Prints the result of a build: a table of its targets, then its status.
pub fn print_report(report: &Report) {
    println!("{}", text::plain(&table(report)));
}

fn table(report: &Report) -> String {
    let header = ["target", "result", "time", "cached", "digest"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(report.targets.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    match (&report.reason, &report.message) {
        (Some(reason), Some(message)) => {
            let _ = write!(text, "\n{reason}: {message}");
        }
        _ => text.push_str("\nsucceeded"),
    }
    text
}

fn row(target: &TargetReport) -> [String; 5] {
    let result = match target.status {
        Some(Status::Succeeded) => "succeeded",
        Some(Status::Failed) => "failed",
        Some(Status::Cancelled) => "cancelled",
        None => "not reached",
    };
    [
        target.name.clone(),
        result.to_owned(),
        seconds(Duration::from_millis(target.duration_ms)),
        format!("{}/{}", target.steps_cached, target.steps_total),
        target.digest.clone().unwrap_or_else(|| "-".into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let vote = TargetReport {
            name: "vote".into(),
            status: Some(Status::Succeeded),
            digest: Some("sha256:abc".into()),
            duration_ms: 1234,
            steps_total: 3,
            steps_cached: 1,
            ..TargetReport::default()
        };
        let worker = TargetReport { name: "worker".into(), ..TargetReport::default() };
        let report = Report { targets: vec![vote, worker], ..Report::default() };
        let expected = "target  result       time  cached  digest\n\
                        vote    succeeded    1.2s  1/3     sha256:abc\n\
                        worker  not reached  0.0s  0/0     -\n\nsucceeded";
        assert_eq!(table(&report), expected);
    }
}
