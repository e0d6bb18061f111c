//! Which words in a line show that it names the cause of a failure.
//!
//! The words are those of compilers, package managers, test runners and shells, and of the messages of an operating system.

mod list;
mod table;

use aho_corasick::Match;

use super::MAX_LINE;
use crate::text;

use list::LIST;
use table::{HEADINGS, Kind, PLACES, STRICT};

pub(super) use list::Search;

/// The weight of a line that only says that something failed.
pub(super) const GENERIC: u8 = 1;

/// The least weight of a line after a heading: that of a report at the margin.
const EXPLANATION: u8 = 4;

/// The weight of the mark of a failed test, and of the root of an exception. What passed tests print is noise.
const TEST: u8 = 7;

/// The weight of a line that names an exhausted resource: every other error may follow from it.
const DECISIVE: u8 = 8;

/// How Java begins the cause of an exception.
pub(super) const CAUSED_BY: &str = "Caused by: ";

/// How much a line looks like the cause of a failure: 0 not at all, [`GENERIC`], 2 names a cause, 3 reports an error, 5 both,
/// [`TEST`], [`DECISIVE`]. A line that begins at the margin counts one more: an indented one usually quotes source code.
fn weight(line: &str) -> u8 {
    Words::of(line).weight(line)
}

/// Whether the line says that warnings made the command fail.
pub(super) fn makes_warnings_errors(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    line.contains("warning") && STRICT.iter().any(|words| line.contains(words))
}

/// Whether the line is a warning with a text.
pub(super) fn is_warning(line: &str) -> bool {
    line.trim_start().to_ascii_lowercase().starts_with("warning: ")
}

/// Whether the line only points to a place, or goes on with a stack trace.
pub(super) fn is_place(line: &str) -> bool {
    PLACES.iter().any(|begin| line.trim_start().starts_with(begin))
}

/// What the words of a line show.
#[derive(Default)]
pub(super) struct Words {
    /// The line is a warning, a comment or a check, or says that its error is expected.
    pub(super) is_harmless: bool,
    is_generic: bool,
    is_decisive: bool,
    is_test: bool,
    reports: bool,
    names: bool,
}

impl Words {
    /// The weight of their line.
    pub(super) fn weight(&self, line: &str) -> u8 {
        match 3 * u8::from(self.reports) + 2 * u8::from(self.names) {
            _ if self.is_harmless => 0,
            _ if self.is_decisive => DECISIVE,
            _ if self.is_generic => GENERIC,
            _ if self.is_test || line.starts_with(CAUSED_BY) => TEST,
            0 => 0,
            weight => weight + u8::from(margin(line) == 0),
        }
    }

    pub(super) fn of(line: &str) -> Self {
        let line = &line[..text::boundary(line, MAX_LINE)];
        let (margin, mut words) = (margin(line), Self::default());
        if !LIST.may_be_in(line, margin) {
            return words;
        }
        for found in LIST.automaton.find_overlapping_iter(line) {
            let (kind, is_at_margin) = LIST.kinds[found.pattern().as_usize()];
            match kind {
                _ if is_at_margin && found.start() != margin => {}
                Kind::Harmless => words.is_harmless = true,
                Kind::Generic => words.is_generic = true,
                Kind::Report => words.reports = true,
                Kind::Cause => words.names = true,
                Kind::Both => (words.reports, words.names) = (true, true),
                Kind::Test => words.is_test = true,
                Kind::Decisive => words.is_decisive = true,
            }
        }
        words
    }
}

/// What a line with a colon at its end says of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    /// Nothing.
    None,
    /// The next line tells what failed. This one is a mere "Failures:", or the place of a panic.
    Heading,
    /// This line, of this weight and margin, reports what failed, and an indented one may go into detail.
    Report(u8, usize),
    /// This line, of this weight, reports an error that the next line names.
    Nameless(u8),
}

impl Lead {
    pub(super) fn of(line: &str, weight: u8) -> Self {
        let line = &line[..text::boundary(line, MAX_LINE)];
        match line.trim_end().ends_with(':') {
            true if is_heading(line) => Self::Heading,
            true if weight > GENERIC && !Words::of(line).names => Self::Nameless(weight),
            true if weight > GENERIC => Self::Report(weight, margin(line)),
            _ => Self::None,
        }
    }

    /// The weight of the next line.
    pub(super) fn weight_of(self, line: &str) -> u8 {
        match (self, weight(line)) {
            (_, GENERIC) => GENERIC,
            (Self::Heading, own) => own.max(EXPLANATION),
            (Self::Report(weight, margin_before), own) if own > GENERIC && margin(line) > margin_before => {
                own.max(weight + 1)
            }
            (Self::Nameless(weight), own) if own > GENERIC => own.max(weight + 1),
            (_, own) => own,
        }
    }
}

fn margin(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Whether a line with a colon at its end only says that something failed, or where.
fn is_heading(line: &str) -> bool {
    let line = line.trim_end();
    let is_lead = |found: Match| {
        let word = &line[found.range()];
        HEADINGS.iter().any(|heading| word.eq_ignore_ascii_case(heading))
            || (found.end() == line.len() && is_report(found) && !line.trim().contains(' '))
    };
    LIST.automaton.find_overlapping_iter(line).any(is_lead)
}

fn is_report(found: Match) -> bool {
    LIST.kinds[found.pattern().as_usize()].0 == Kind::Report
}
