//! The screen of a running build: finished steps, which scroll up, and below them what runs now, which is drawn again.
//!
//! It looks as buildx does: a row per step with its time on the right, and the last lines of a running step below it. The output of
//! a step that has ended is gone: the result shows it if the step failed.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use console::{Alignment, Term, measure_text_width, pad_str, truncate_str};

use super::{Color, note, seconds};
use crate::event::{Event, Phase, Step};
use crate::{bounds, text};

/// Rows of output below a running step.
const OUTPUT_ROWS: usize = 6;

/// Bytes of one of them. No terminal is wider.
const MAX_OUTPUT: usize = 1 << 10;

/// Turn the wrapping of long rows off and on. A row that is wider than it was measured must not become two.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// Clear the row, and go to the next one without scrolling.
const CLEAR_ROW: &str = "\x1b[2K\x1b[B";

/// Rows and columns of the terminal.
pub(super) fn size() -> (usize, usize) {
    let (n_rows, n_columns) = Term::stderr().size();
    (n_rows.into(), n_columns.into())
}

/// What a terminal shows of a build.
#[derive(Debug)]
pub(super) struct Screen {
    has_colors: bool,
    phases: Vec<(Phase, Instant)>,
    received_bytes: u64,
    n_targets: usize,
    targets_done: BTreeSet<String>,
    running: Vec<Running>,
    /// Rows that will not change, and are not written yet.
    finished: Vec<Row>,
    /// The widths of the rows that are drawn again.
    drawn: Vec<usize>,
}

/// A running step.
#[derive(Debug)]
struct Running {
    step: Step,
    since: Instant,
    /// Its last lines.
    output: VecDeque<String>,
}

/// A row of the screen.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    left: String,
    /// At the right margin.
    time: Option<Duration>,
    color: Option<Color>,
}

impl Screen {
    pub(super) fn new(has_colors: bool) -> Self {
        Self {
            has_colors,
            phases: Vec::new(),
            received_bytes: 0,
            n_targets: 0,
            targets_done: BTreeSet::new(),
            running: Vec::new(),
            finished: Vec::new(),
            drawn: Vec::new(),
        }
    }

    /// Adds one event.
    pub(super) fn take_in(&mut self, event: &Event, now: Instant) {
        match event {
            Event::PhaseStarted(phase) => self.phases.push((*phase, now)),
            Event::PhaseEnded(phase, took) => {
                self.phases.retain(|(known, _)| known != phase);
                self.finish(format!("[+] {}", phase.name()), Some(*took), None);
            }
            Event::Fetching { received_bytes } => self.received_bytes = *received_bytes,
            Event::Targets(n_targets) => self.n_targets = *n_targets,
            Event::TargetDone(target) => drop(self.targets_done.insert(target.clone())),
            Event::StepStarted(step) => self.begin(step, now),
            Event::StepEnded { step, is_cached, took, error } => {
                self.running.retain(|running| !running.step.is_same(step));
                self.end(step, *took, *is_cached, error.as_deref());
            }
            Event::StepOutput { step, lines } => lines.iter().for_each(|line| self.output(step, line)),
            Event::Warning(warning) => self.finish(warning.to_string(), None, Some(Color::Yellow)),
            Event::Notice(notice) => self.finish(note(notice), None, Some(Color::Yellow)),
            Event::Ended { .. } => self.end_all(now),
            // The result shows them.
            Event::TargetEnded(_)
            | Event::PodLost { .. }
            | Event::Caching { .. }
            | Event::CachesMoved { .. }
            | Event::NoticeLeftOut => {}
            Event::BuildId(_)
            | Event::Commit { .. }
            | Event::Placed(_)
            | Event::Superseded(_)
            | Event::Coalesced(_)
            | Event::ContextSent { .. } => {}
        }
    }

    /// Whether nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.phases.is_empty() && self.running.is_empty()
    }

    fn begin(&mut self, step: &Step, now: Instant) {
        let is_known = self.running.iter().any(|running| running.step.is_same(step));
        if !is_known && self.running.len() < bounds::SPINNERS {
            self.running.push(Running { step: step.clone(), since: now, output: VecDeque::new() });
        }
    }

    fn output(&mut self, step: &Step, line: &str) {
        let Some(running) = self.running.iter_mut().find(|running| running.step.is_same(step)) else { return };
        if line.trim().is_empty() {
            return;
        }
        if running.output.len() == OUTPUT_ROWS {
            running.output.pop_front();
        }
        running.output.push_back(text::clip(line, MAX_OUTPUT).into_owned());
    }

    fn end(&mut self, step: &Step, took: Duration, is_cached: bool, error: Option<&str>) {
        let title = step.title();
        match error {
            Some(error) => {
                self.finish(format!(" => ERROR {title}"), Some(took), Some(Color::Red));
                let error = text::one_line(error);
                self.finish(format!(" => => {}", text::elide(&error, bounds::TITLE)), None, Some(Color::Red));
            }
            None if is_cached => self.finish(format!(" => CACHED {title}"), Some(took), Some(Color::Blue)),
            None => self.finish(format!(" => {title}"), Some(took), Some(Color::Blue)),
        }
    }

    /// The build is over: what has not ended was stopped.
    fn end_all(&mut self, now: Instant) {
        for Running { step, since, .. } in std::mem::take(&mut self.running) {
            self.finish(format!(" => CANCELED {}", step.title()), Some(now - since), Some(Color::Yellow));
        }
    }

    fn finish(&mut self, left: String, time: Option<Duration>, color: Option<Color>) {
        self.finished.push(Row { left, time, color });
    }

    /// What to write to the terminal so that it shows the current state: it clears the rows that were drawn, and writes new ones.
    pub(super) fn redrawn(&mut self, now: Instant, (n_rows, n_columns): (usize, usize)) -> String {
        let mut drawing = String::new();
        // A terminal that became narrower has wrapped them.
        let n_up: usize = self.drawn.iter().map(|width| width.div_ceil(n_columns.max(1)).max(1)).sum();
        if n_up > 0 {
            // Row by row: tmux keeps a copy of what is cleared from the first row of the screen on.
            let _ = write!(drawing, "\r\x1b[{n_up}A{}\x1b[{n_up}A", CLEAR_ROW.repeat(n_up));
        }
        for row in std::mem::take(&mut self.finished) {
            let _ = writeln!(drawing, "{}", row.painted(&row.fitted(n_columns), self.has_colors));
        }
        let rows = self.rows(now, n_rows.saturating_sub(1));
        self.drawn.clear();
        if !rows.is_empty() {
            drawing.push_str(NO_WRAP);
            for row in rows {
                let fitted = truncate_str(&row.fitted(n_columns), n_columns, "…").into_owned();
                self.drawn.push(measure_text_width(&fitted));
                let _ = writeln!(drawing, "{}", row.painted(&fitted, self.has_colors));
            }
            drawing.push_str(WRAP);
        }
        drawing
    }

    /// What runs now, in at most `max_rows` rows.
    fn rows(&self, now: Instant, max_rows: usize) -> Vec<Row> {
        let mut rows: Vec<Row> = self.phases.iter().map(|(phase, since)| self.phase(*phase, now - *since)).collect();
        let room = max_rows.saturating_sub(rows.len());
        let n_shown = if self.running.len() <= room { room } else { room.saturating_sub(1) };
        let n_printing = self.running.iter().filter(|running| !running.output.is_empty()).count();
        let room_of_each = room.saturating_sub(self.running.len()) / n_printing.max(1);
        for running in self.running.iter().take(n_shown) {
            rows.extend(running.rows(now, room_of_each));
        }
        if self.running.len() > n_shown {
            let left = format!(" => {} more steps", self.running.len() - n_shown);
            rows.push(Row { left, time: None, color: None });
        }
        rows.truncate(max_rows);
        rows
    }

    fn phase(&self, phase: Phase, took: Duration) -> Row {
        let detail = match phase {
            Phase::Fetch => format!(", {} KiB", self.received_bytes / 1024),
            Phase::Bake => format!(", {} of {} targets", self.targets_done.len(), self.n_targets),
            _ => String::new(),
        };
        Row { left: format!("[+] {}{detail}", phase.name()), time: Some(took), color: None }
    }
}

impl Running {
    /// The step, and the last lines of its output.
    fn rows(&self, now: Instant, max_output: usize) -> impl Iterator<Item = Row> {
        let step = Row { left: format!(" => {}", self.step.title()), time: Some(now - self.since), color: None };
        let n_left_out = self.output.len().saturating_sub(max_output);
        let output = self.output.iter().skip(n_left_out).map(|line| Row {
            left: format!(" => => # {line}"),
            time: None,
            color: Some(Color::Gray),
        });
        std::iter::once(step).chain(output)
    }
}

impl Row {
    /// Its plain text, with the time at the right margin.
    fn fitted(&self, n_columns: usize) -> String {
        let left = text::plain(&self.left).replace('\t', "    ");
        let Some(time) = self.time.map(seconds) else { return left };
        let room = n_columns.saturating_sub(time.len() + 1);
        format!("{} {time}", pad_str(&left, room, Alignment::Left, Some("…")))
    }

    fn painted(&self, text: &str, has_colors: bool) -> String {
        match self.color {
            Some(color) if has_colors => color.paint(text),
            _ => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Status;
    use crate::text::lines::Lines;

    const SECOND: Duration = Duration::from_secs(1);

    fn step(name: &str) -> Step {
        Step { target: Some("vote".into()), name: name.into() }
    }

    /// A screen that bakes one target since `now`.
    fn screen(now: Instant) -> Screen {
        let mut screen = Screen::new(false);
        screen.take_in(&Event::Targets(1), now);
        screen.take_in(&Event::PhaseStarted(Phase::Bake), now);
        screen
    }

    fn print(screen: &mut Screen, step: &Step, lines: impl IntoIterator<Item = String>) {
        let (now, printed) = (Instant::now(), lines.into_iter().map(|line| line + "\n").collect::<String>());
        screen.take_in(&Event::StepOutput { step: step.clone(), lines: Lines::new(&printed) }, now);
    }

    fn end(step: &Step, is_cached: bool, error: Option<&str>) -> Event {
        Event::StepEnded { step: step.clone(), is_cached, took: SECOND * 2, error: error.map(str::to_owned) }
    }

    /// The rows that one drawing adds or draws again.
    fn drawn(screen: &mut Screen, now: Instant, size: (usize, usize)) -> Vec<String> {
        let drawing = screen.redrawn(now, size).replace(NO_WRAP, "").replace(WRAP, "");
        let last_move = drawing.rfind("\x1b[").and_then(|at| drawing[at..].split_once('A'));
        let rows = last_move.map_or(drawing.as_str(), |(_, rows)| rows);
        rows.lines().map(|row| row.trim_end().to_owned()).collect()
    }

    #[test]
    fn a_running_step_shows_its_last_lines_and_a_finished_one_is_written_once() {
        let now = Instant::now();
        let (mut screen, make) = (screen(now), step("[2/3] RUN make"));
        screen.take_in(&Event::StepStarted(make.clone()), now);
        print(&mut screen, &make, (1..9).map(|n| format!("line {n}")));
        let running = [
            "[+] bake, 0 of 1 targets            3.0s",
            " => vote [2/3] RUN make             3.0s",
            " => => # line 3",
            " => => # line 4",
            " => => # line 5",
            " => => # line 6",
            " => => # line 7",
            " => => # line 8",
        ];
        assert_eq!(drawn(&mut screen, now + 3 * SECOND, (24, 40)), running);
        assert_eq!(drawn(&mut screen, now + 3 * SECOND, (24, 40)), running);
        screen.take_in(&end(&step("[1/3] FROM base"), true, None), now);
        screen.take_in(&end(&make, false, Some("exit code: 2")), now);
        let over = [
            " => CACHED vote [1/3] FROM base     2.0s",
            " => ERROR vote [2/3] RUN make       2.0s",
            " => => exit code: 2",
            "[+] bake, 0 of 1 targets            3.0s",
        ];
        assert_eq!(drawn(&mut screen, now + 3 * SECOND, (24, 40)), over);
        assert_eq!(drawn(&mut screen, now + 3 * SECOND, (24, 40)), over[3..]);
    }

    #[test]
    fn a_step_that_two_targets_share_ends_once_and_steps_with_one_name_apart() {
        let now = Instant::now();
        let (mut screen, shared) = (screen(now), step("[1/3] FROM base"));
        screen.take_in(&Event::StepStarted(shared.clone()), now);
        screen.take_in(&Event::StepStarted(step("[1/3] FROM base")), now);
        screen.take_in(&end(&Step { target: Some("web".into()), ..shared }, false, None), now);
        let expected = [
            " => web [1/3] FROM base             2.0s",
            "[+] bake, 0 of 1 targets            0.0s",
            " => vote [1/3] FROM base            0.0s",
        ];
        assert_eq!(drawn(&mut screen, now, (24, 40)), expected);
    }

    #[test]
    fn a_drawing_clears_the_rows_before_it_also_when_the_terminal_became_narrower() {
        let now = Instant::now();
        let (mut screen, make) = (screen(now), step("[2/3] RUN make"));
        screen.take_in(&Event::StepStarted(make.clone()), now);
        assert!(!screen.redrawn(now, (24, 40)).contains(CLEAR_ROW));
        for (n_columns, n_rows) in [(40, 2), (20, 4), (20, 2)] {
            let cleared = format!("\r\x1b[{n_rows}A{}\x1b[{n_rows}A{NO_WRAP}", CLEAR_ROW.repeat(n_rows));
            assert!(screen.redrawn(now, (24, n_columns)).starts_with(&cleared), "{n_columns}");
        }
    }

    #[test]
    fn the_end_clears_the_screen_and_names_what_was_stopped() {
        let now = Instant::now();
        let (mut screen, make) = (screen(now), step("[2/3] RUN make"));
        screen.take_in(&Event::StepStarted(make.clone()), now);
        screen.take_in(&Event::PhaseEnded(Phase::Bake, SECOND), now);
        assert!(!screen.is_idle());
        screen.take_in(
            &Event::Ended { status: Status::Cancelled, reason: None, message: None, is_over: true, log_url: None },
            now + SECOND,
        );
        assert!(screen.is_idle());
        let expected = ["[+] bake                            1.0s", " => CANCELED vote [2/3] RUN make    1.0s"];
        assert_eq!(drawn(&mut screen, now, (24, 40)), expected);
        assert_eq!(screen.redrawn(now, (24, 40)), "");
    }

    #[test]
    fn many_steps_fit_into_a_low_terminal_and_none_is_forgotten() {
        let now = Instant::now();
        let mut screen = screen(now);
        for n in 0..bounds::SPINNERS + 9 {
            let step = step(&format!("[{n}/99] RUN make"));
            screen.take_in(&Event::StepStarted(step.clone()), now);
            print(&mut screen, &step, (0..100).map(|n| format!("line {n}")));
        }
        for n_rows in [0, 1, 2, 10, 24, 100, 1000] {
            let rows = drawn(&mut screen, now, (n_rows, 80));
            let is_whole = |row: &&String| row.starts_with(" => vote");
            let n_more: usize =
                rows.iter().filter_map(|row| row.strip_suffix(" more steps")?[4..].parse::<usize>().ok()).sum();
            assert!(rows.len() <= n_rows.saturating_sub(1), "{n_rows}: {rows:#?}");
            if n_rows > 2 {
                assert_eq!(rows.iter().filter(is_whole).count() + n_more, bounds::SPINNERS, "{n_rows}: {rows:#?}");
            }
        }
        assert!(screen.running.iter().all(|running| running.output.len() == OUTPUT_ROWS));
    }

    #[test]
    fn a_strangers_text_moves_no_cursor_and_stays_in_its_row() {
        let now = Instant::now();
        let mut screen = screen(now);
        let step = step("[2/3] RUN \x1b[2J\u{9b}2J\nmake \u{202e}");
        screen.take_in(&Event::StepStarted(step.clone()), now);
        print(&mut screen, &step, ["\x1b[2Ja\rb\tc".to_owned(), "宽".repeat(400), "x".repeat(60_000)]);
        let rows = drawn(&mut screen, now, (24, 40));
        assert_eq!(rows.len(), 5, "{rows:#?}");
        assert_eq!(rows[2], " => => # a␍b    c");
        for row in &rows {
            assert!(measure_text_width(row) <= 40 && !row.chars().any(char::is_control), "{row:?}");
        }
        screen.take_in(&end(&step, false, Some("\x1b]0;title\x07bad")), now);
        let rows = drawn(&mut screen, now, (24, 40));
        assert!(rows.len() == 3 && !rows.concat().chars().any(char::is_control), "{rows:?}");
    }

    #[test]
    fn colors_are_of_whole_rows() {
        let now = Instant::now();
        let mut screen = Screen::new(true);
        screen.take_in(&end(&step("[1/3] FROM base"), true, None), now);
        let drawing = screen.redrawn(now, (24, 40));
        assert_eq!(drawing, "\x1b[34m => CACHED vote [1/3] FROM base     2.0s\x1b[0m\n");
    }
}
