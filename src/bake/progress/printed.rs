//! What becomes of the lines that a step prints: they are masked, kept in case that the step fails, and emitted.
//!
//! Lines go in batches: what is done once for each line decides how fast a build may print.

use super::output::{self, Output, Piece};
use super::stream::LogReport;
use super::tails::Tails;
use super::{BakeProgress, Emit};
use crate::bake::shown::Shown;
use crate::event::{Event, Step};
use crate::text::lines::Lines;

/// From this size on, a batch is emitted.
const BATCH: usize = 64 << 10;

impl BakeProgress {
    /// Reads output of a step.
    pub(super) fn log(&mut self, report: &LogReport<'_>, emit: Emit<'_>) {
        let Some(number) = self.find(&report.vertex) else { return };
        let (output, mut printed) = self.printed(number, emit);
        output.take_in((number, report.stream == 2), &report.data, |piece| printed.take_in(&piece));
        printed.emit();
    }

    /// Emits the last lines of a step, which have no line feed.
    pub(super) fn end_output(&mut self, number: u32, emit: Emit<'_>) {
        let (output, mut printed) = self.printed(number, emit);
        output.end_of(number, |piece| printed.take_in(&piece));
        printed.emit();
    }

    /// The unfinished lines, and what becomes of a step's finished ones.
    fn printed<'p>(&'p mut self, number: u32, emit: Emit<'p>) -> (&'p mut Output, Printed<'p>) {
        let step = self.step(number);
        let vertex = &self.vertices[number as usize];
        let may_fail = vertex.completed.is_none() || vertex.has_error();
        let tails = may_fail.then_some(&mut self.tails);
        (&mut self.output, Printed { number, step, shown: &self.shown, tails, text: String::new(), emit_event: emit })
    }
}

/// The lines of one step.
struct Printed<'p> {
    number: u32,
    step: Step,
    shown: &'p Shown,
    /// Where they are kept; `None` for a step that has succeeded.
    tails: Option<&'p mut Tails>,
    /// The lines as shown, each with its line feed, that are not emitted yet.
    text: String,
    emit_event: Emit<'p>,
}

impl Printed<'_> {
    fn take_in(&mut self, piece: &Piece<'_>) {
        match *piece {
            Piece::Lines(lines) => match self.shown.unchanged(lines) {
                Some(lines) if self.text.is_empty() => self.emit_lines(&Lines::new(lines)),
                Some(lines) => self.text.push_str(lines),
                None => output::each(lines, |line| self.line(line, 0)),
            },
            Piece::Line(line, n_dropped) => self.line(line, n_dropped),
        }
        if self.text.len() >= BATCH {
            self.emit();
        }
    }

    fn line(&mut self, line: &[u8], n_dropped: usize) {
        self.shown.output(line, n_dropped, |line| {
            self.text.push_str(line);
            self.text.push('\n');
        });
    }

    /// Keeps and emits the lines so far.
    fn emit(&mut self) {
        if !self.text.is_empty() {
            self.emit_lines(&Lines::new(&self.text));
            self.text.clear();
        }
    }

    fn emit_lines(&mut self, lines: &Lines) {
        if let Some(tails) = &mut self.tails {
            tails.push(self.number, lines);
        }
        (self.emit_event)(Event::StepOutput { step: self.step.clone(), lines: lines.clone() });
    }
}
