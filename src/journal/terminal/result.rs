//! The result of a build for a person: a table of its targets, what the failed steps printed, and how it ended.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use super::{Color, seconds};
use crate::event::FailedStep;
use crate::report::{Report, Status, TargetReport};
use crate::{bounds, text};

/// Around the output of a failed step.
const RULE: &str = "------";

/// Prints the result of a build on standard output, in colors if it is a terminal and they are wanted. A closed output fails nothing.
pub fn print_report(report: &Report, wants_colors: bool) {
    let mut output = std::io::stdout().lock();
    let result = result(report, wants_colors && output.is_terminal());
    drop(writeln!(output, "{result}").and_then(|()| output.flush()));
}

fn result(report: &Report, has_colors: bool) -> String {
    let paint = |color: Color, text: &str| if has_colors { color.paint(text) } else { text.to_owned() };
    let mut result = text::plain(&table(report)).into_owned();
    let explained = report.targets.iter().filter_map(|target| Some((target, target.why_not_cached.as_ref()?)));
    for (n, (target, step)) in explained.enumerate() {
        let before = if n == 0 { "\n" } else { "" };
        let _ = writeln!(result, "{before}{}: {}", target.name, text::plain(&step.message));
    }
    for failure in failures(report) {
        let _ = writeln!(result, "\n{}", text::plain(&failure));
    }
    match (&report.reason, &report.message) {
        (Some(reason), Some(message)) => {
            let _ = write!(result, "\n{} {}", paint(Color::Red, &format!("{reason}:")), text::plain(message));
        }
        _ => result.push_str(&format!("\n{}", paint(Color::Green, "succeeded"))),
    }
    result.trim_start_matches('\n').to_owned()
}

/// Aligned columns, with digests after a push. Empty without targets.
fn table(report: &Report) -> String {
    if report.targets.is_empty() {
        return String::new();
    }
    let has_digests = report.targets.iter().any(|target| target.digest.is_some());
    let n_columns = if has_digests { 5 } else { 4 };
    let header = ["target", "result", "time", "cached", "digest"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(report.targets.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

fn row(target: &TargetReport) -> [String; 5] {
    let result = match target.status {
        Some(Status::Succeeded) => "succeeded",
        Some(Status::Failed) => "failed",
        Some(Status::Cancelled) => "cancelled",
        Some(Status::Superseded) => "superseded",
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

/// The failed steps with their output, each once: targets can share a step. A target that failed otherwise has its error here when the
/// report's message is about another one.
fn failures(report: &Report) -> Vec<String> {
    let mut shown: Vec<(&FailedStep, &Option<String>)> = Vec::new();
    let mut failures = Vec::new();
    for target in &report.targets {
        match (&target.failed_step, &target.error) {
            (Some(step), _) if shown.contains(&(step, &target.log_tail)) => {}
            (Some(step), _) => {
                shown.push((step, &target.log_tail));
                let output = target.log_tail.as_deref().unwrap_or("(no output)");
                failures.push(format!("{RULE}\n > {}:\n{output}\n{RULE}", title(&target.name, step)));
            }
            (None, Some(error)) if !report.message.as_ref().is_some_and(|message| message.contains(error)) => {
                failures.push(format!(" > {}: {error}", target.name));
            }
            (None, _) => {}
        }
    }
    failures
}

/// As on the screen, and where the step stands: `vote [2/3] RUN make (vote/Dockerfile:4)`.
fn title(target: &str, step: &FailedStep) -> String {
    let FailedStep { number, total, stage, instruction, dockerfile, line, .. } = step;
    let stage = stage.as_ref().map(|stage| format!("{stage} ")).unwrap_or_default();
    let title = format!("{target} [{stage}{number}/{total}] {instruction}");
    let place = match (dockerfile, line) {
        (Some(path), Some(line)) => format!(" ({path}:{line})"),
        (Some(path), None) => format!(" ({path})"),
        (None, Some(line)) => format!(" (line {line})"),
        (None, None) => String::new(),
    };
    format!("{}{place}", text::clip(&text::one_line(&title), bounds::TITLE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;
    use crate::report::{CacheMiss, NotCached};

    fn target(name: &str, status: Status) -> TargetReport {
        TargetReport { name: name.into(), status: Some(status), duration_ms: 1234, ..TargetReport::default() }
    }

    #[test]
    fn the_table_lines_up_and_has_digests_where_something_was_pushed() {
        let vote = TargetReport { steps_total: 3, steps_cached: 1, ..target("vote", Status::Succeeded) };
        let pushed = TargetReport { digest: Some("sha256:abc".into()), ..vote.clone() };
        let worker = TargetReport { name: "worker".into(), ..TargetReport::default() };
        let report = |vote: &TargetReport| Report { targets: vec![vote.clone(), worker.clone()], ..Report::default() };
        let expected = "target  result       time  cached  digest\n\
                        vote    succeeded    1.2s  1/3     sha256:abc\n\
                        worker  not reached  0.0s  0/0     -\n\nsucceeded";
        assert_eq!(result(&report(&pushed), false), expected);
        let expected = "target  result       time  cached\n\
                        vote    succeeded    1.2s  1/3\n\
                        worker  not reached  0.0s  0/0\n\n\x1b[32msucceeded\x1b[0m";
        assert_eq!(result(&report(&vote), true), expected);
    }

    #[test]
    fn a_build_without_targets_is_one_sentence() {
        let (reason, message) = (Some(Reason::DefinitionInvalid), Some("set TOKEN".to_owned()));
        assert_eq!(result(&Report { reason, message, ..Report::default() }, false), "definition_invalid: set TOKEN");
    }

    #[test]
    fn the_steps_that_were_not_cached_follow_the_table() {
        let explained = |name: &str| TargetReport {
            why_not_cached: Some(Box::new(NotCached {
                number: 2,
                total: 3,
                stage: None,
                instruction: "RUN make".into(),
                dockerfile: None,
                line: Some(2),
                cause: CacheMiss::Evicted,
                message: format!("{name}\x1b[2J"),
            })),
            ..target(name, Status::Succeeded)
        };
        let targets = vec![explained("vote"), target("api", Status::Succeeded), explained("web")];
        let result = result(&Report { targets, ..Report::default() }, false);
        let (_, after_table) = result.split_once("\n\n").expect("a table");
        assert_eq!(after_table, "vote: vote\nweb: web\n\nsucceeded");
    }

    #[test]
    fn a_failed_step_is_shown_once_with_its_output_and_the_sentence_comes_last() {
        let failed_step = FailedStep {
            number: 2,
            total: 3,
            instruction: "RUN make".into(),
            dockerfile: Some("vote/Dockerfile".into()),
            line: Some(4),
            ..FailedStep::default()
        };
        let failed = |name: &str| TargetReport {
            failed_step: Some(failed_step.clone()),
            log_tail: Some("cc main.c\nmain.c:1: \x1b[2Jerror: no".into()),
            error: Some("exited with 2".into()),
            ..target(name, Status::Failed)
        };
        let other = TargetReport { error: Some("no such file".into()), ..target("web", Status::Failed) };
        let message = "Step 2/3 of `vote` failed: `RUN make` (vote/Dockerfile:4) exited with 2: `main.c:1: error: no`";
        let report = Report {
            targets: vec![failed("vote"), failed("worker"), other],
            reason: Some(Reason::StepFailed),
            message: Some(message.into()),
            ..Report::default()
        };
        let result = result(&report, false);
        let (_, after_table) = result.split_once("\n\n").expect("a table");
        let expected = format!(
            "------\n > vote [2/3] RUN make (vote/Dockerfile:4):\ncc main.c\nmain.c:1: error: no\n------\n\n \
             > web: no such file\n\nstep_failed: {message}"
        );
        assert_eq!(after_table, expected);
    }
}
