//! Which words in a line show that it names the cause of a failure.
//!
//! The words are those of compilers, package managers, test runners and shells, and of the messages of an operating system.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Match};

use super::MAX_LINE;
use crate::text;
use crate::text::quads::{QUAD, Quads, lower, of_word};

/// The weight of a line that only says that something failed.
pub(super) const GENERIC: u8 = 1;

/// The least weight of a line after a heading: that of a report at the margin.
const EXPLANATION: u8 = 4;

/// The weight of the mark of a failed test, and of the root of an exception. What passed tests print is noise.
const TEST: u8 = 7;

/// The weight of a line that names an exhausted resource: every other error may follow from it.
const DECISIVE: u8 = 8;

/// In how many places a word is looked for before the whole line is searched, and in how many bytes there may be one place more. Then
/// no line takes much longer than another.
const MAX_TRIED: usize = 8;
const BYTES_OF_TRY: usize = 16;

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

/// What a word in a line shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The line is a warning, a comment, a check, or counts no errors.
    Harmless,
    /// It only says that something failed, or where to read more.
    Generic,
    /// It reports an error.
    Report,
    /// It names what is wrong.
    Cause,
    /// It reports an error and names where: a compiler's diagnostic, a failed test.
    Both,
    /// It marks a failed test.
    Test,
    /// A resource of the machine is exhausted.
    Decisive,
}

/// The words, ready to be found in one pass over a line.
struct List {
    automaton: AhoCorasick,
    /// By pattern: what it shows, and whether only at the beginning of a line.
    kinds: Vec<(Kind, bool)>,
    /// Of the words that may be anywhere.
    quads: Quads,
    /// The quads of these words, in lower case and in the order of their buckets, each with its word and its place by [`of_word`].
    by_quad: Vec<([u8; QUAD], &'static [u8], usize)>,
    /// Where each bucket begins.
    buckets: Vec<u16>,
    /// Of the others: a bit for their first two bytes, in lower case.
    beginnings: Vec<u64>,
}

impl List {
    /// Whether a line of this margin may have one of the words. Most lines have none.
    fn may_be_in(&self, line: &str, margin: usize) -> bool {
        self.begins(&line.as_bytes()[margin..]) || self.next(line.as_bytes(), 0).is_some()
    }

    /// Whether a text may begin with one of the words for the beginning of a line.
    fn begins(&self, text: &[u8]) -> bool {
        let Some(two) = text.first_chunk() else { return false };
        let place = place_of_two(*two);
        self.beginnings[place / 64] >> (place % 64) & 1 != 0
    }

    /// A place, not before `from`, in the first of the words that may be anywhere. Where tries are frequent, a guess.
    fn next(&self, text: &[u8], from: usize) -> Option<usize> {
        let (mut tried_to, mut n_tried) = (from, 0);
        loop {
            let at = self.quads.candidate(text, tried_to)?;
            n_tried += 1;
            if n_tried > MAX_TRIED + (at - from) / BYTES_OF_TRY || self.is_word(text, at) {
                return Some(at);
            }
            tried_to = at + 1;
        }
    }

    /// Whether a quad is of a word that is there.
    fn is_word(&self, text: &[u8], at: usize) -> bool {
        let quad = lower(&text[at..]);
        let bucket = bucket_of(quad);
        let (first, end) = (self.buckets[bucket], self.buckets[bucket + 1]);
        self.by_quad[usize::from(first)..usize::from(end)].iter().any(|(other, word, quad_at)| {
            let found = || (at + 1).checked_sub(*quad_at).and_then(|from| text.get(from..from + word.len()));
            *other == quad && found().is_some_and(|found| found.eq_ignore_ascii_case(word))
        })
    }
}

/// Finds the lines of a text that may have words. All of it is searched together: most batches have none.
pub(super) struct Search<'t> {
    text: &'t [u8],
    /// The next place in a word; the end of the text without one.
    next: usize,
}

impl<'t> Search<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        let text = text.as_bytes();
        Self { text, next: LIST.next(text, 0).unwrap_or(text.len()) }
    }

    /// Whether the line that begins at `from` may have a word. `false` is certain. Asked in the order of the lines.
    pub(super) fn may_be_in(&mut self, line: &str, from: usize) -> bool {
        if self.next < from {
            self.next = LIST.next(self.text, from).unwrap_or(self.text.len());
        }
        self.next < from + line.len() || LIST.begins(&line.as_bytes()[margin(line)..]) || line.starts_with(CAUSED_BY)
    }
}

static LIST: LazyLock<List> = LazyLock::new(|| {
    let words = || TABLE.iter().flat_map(|(kind, words)| words.iter().map(move |word| (*kind, *word)));
    let automaton = AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .kind(Some(AhoCorasickKind::DFA))
        .build(words().map(|(_, word)| word.trim_start_matches('^')))
        .expect("the words are few and short");
    let (at_margin, anywhere): (Vec<&'static [u8]>, Vec<&'static [u8]>) =
        words().map(|(_, word)| word.as_bytes()).partition(|word| word.starts_with(b"^"));
    let quads = |word: &'static [u8]| of_word(word).into_iter().map(move |(quad, at)| (lower(&quad), word, at));
    let mut by_quad: Vec<_> = anywhere.iter().copied().flat_map(quads).collect();
    by_quad.sort_by_key(|(quad, ..)| bucket_of(*quad));
    let before = |bucket| by_quad.partition_point(|(quad, ..)| bucket_of(*quad) < bucket);
    let buckets = (0..=N_BUCKETS).map(|bucket| u16::try_from(before(bucket)).expect("the words are few")).collect();
    let mut beginnings = vec![0; (1 << 16) / 64];
    for word in &at_margin {
        let place = place_of_two([word[1], word[2]]);
        beginnings[place / 64] |= 1_u64 << (place % 64);
    }
    List {
        automaton,
        kinds: words().map(|(kind, word)| (kind, word.starts_with('^'))).collect(),
        quads: Quads::ignoring_case(anywhere),
        by_quad,
        buckets,
        beginnings,
    }
});

/// Buckets of quads: some for each word.
const N_BUCKETS: usize = 1 << 11;

/// The bucket of a quad, by Fibonacci hashing.
fn bucket_of(quad: [u8; QUAD]) -> usize {
    (u32::from_ne_bytes(quad).wrapping_mul(0x9e37_79b9) >> (u32::BITS - N_BUCKETS.ilog2())) as usize
}

/// A number for two bytes, without regard to case.
fn place_of_two(two: [u8; 2]) -> usize {
    usize::from(u16::from_ne_bytes(two.map(|byte| byte.to_ascii_lowercase())))
}

/// Words of the table that a line with a colon at its end explains in the next line.
const HEADINGS: [&str; 4] = ["cmake error at", "panicked at", "treated as error", "what went wrong"];

/// How tools say that they take warnings for errors.
const STRICT: [&str; 5] = ["as error", "due to warnings", "max-warnings", "too many warnings", "-werror"];

/// How lines begin that point to a place.
const PLACES: [&str; 8] = ["-->", "at ", "|", "\u{2502}", "\u{2514}", "\u{2570}", "^", "~"];

/// The words, without regard to case. A `^` stands for the beginning of the line.
const TABLE: [(Kind, &[&str]); 7] = [
    (
        Kind::Harmless,
        &[
            "^# ",
            "^=== run",
            "(0 errors",
            "^+ ",
            "^++ ",
            ", 0 error",
            "^-- ",
            "... no",
            "... ok",
            "... yes",
            "^// ",
            " 0 error(s)",
            " 0 errors",
            " 0 failed",
            " 0 failures",
            " 0 problems",
            "^[info]",
            "[warn]",
            "[warning]",
            "debconf:",
            "errors: 0",
            "failed: 0",
            "failures: 0",
            "^info: ",
            "no errors",
            "^note: ",
            "npm warn",
            "^pass ",
            "^warn ",
            "(expected)",
            "avertissement",
            "advertencia",
            "avviso:",
            "aviso:",
            "waarschuwing",
            "warnung:",
            "warn:",
            "warning ",
            "warning:",
            "warning[",
        ],
    ),
    (
        Kind::Generic,
        &[
            "]: *** [",
            "a complete log of this run",
            "a failure occurred while",
            "aborted!",
            "aborting",
            "an error occurred while",
            "build failed",
            "build failure",
            "build stopped",
            "cannot continue",
            "child returned status",
            "cmake error at",
            "command failed",
            "compilation error",
            "compilation failed",
            "compilation terminated",
            "could not build",
            "could not compile",
            "could not create makefile",
            "could not read from remote",
            "could not resolve all",
            "did not run successfully",
            "due to previous",
            "elifecycle",
            "entering directory",
            "err! code",
            "err! cwd",
            "err! errno",
            "err! path",
            "err! syscall",
            "error cwd",
            "error errno",
            "error originates",
            "error path",
            "error syscall",
            "errors occurred",
            "execution failed for task",
            "exit code",
            "exit status",
            "exited with",
            "exiting now",
            "exiting with failure",
            "failed building",
            "failed examples",
            "failed tests",
            "failed to build",
            "failed to compile",
            "failed to execute goal",
            "failed with code",
            "failed with error",
            "failed with exit",
            "failing tests",
            "for more information",
            "full stack trace",
            "giving up",
            "had errors",
            "help 1",
            "is not recoverable",
            "leaving directory",
            "lifecycle script",
            "likely not a problem with pip",
            "logs can be found",
            "make: *** [",
            "must be fixed",
            "no solution found",
            "non-zero",
            "nonzero",
            "npm error code",
            "problem (",
            "problems (",
            "process completed",
            "re-run maven",
            "resolutionimpossible",
            "returned 1 exit",
            "run with --",
            "see above",
            "subprocess-exited",
            "test failed.",
            "test suites:",
            "tests failed",
            "tests:  ",
            "the command '",
            "there was 1",
            "there were ",
            "traceback (most recent",
            "treated as error",
            "waiting for unfinished jobs",
            "what went wrong",
        ],
    ),
    (
        Kind::Report,
        &[
            "(error)",
            ": error ",
            ": failed",
            "> error ",
            "[error] ",
            "] error ",
            "^abort",
            "assertion `",
            "assertion failed",
            "assertionerror",
            "core dumped",
            "^e/",
            "^e: ",
            "err! ",
            " err:",
            "^err_",
            " err_pnpm",
            "^error ",
            " error  ",
            "error -",
            " error 4",
            " error 5",
            "error:",
            "error[",
            "exception in",
            "exception:",
            "^fail ",
            "^failed ",
            "failed:",
            "failure:",
            "fehler:",
            "erreur:",
            "erreur :",
            "errore:",
            "erro:",
            "\u{43e}\u{448}\u{438}\u{431}\u{43a}\u{430}:",
            "^fatal ",
            "fatal error",
            "fatal:",
            " killed",
            "npm error ",
            "panic:",
            "panicked at",
            "segmentation fault",
            "| error ",
        ],
    ),
    (
        Kind::Cause,
        &[
            "already exists",
            "already in use",
            "ambiguous",
            "authentication failed",
            "bad interpreter",
            "can't ",
            "cannot ",
            "caused by:",
            "certificate has",
            "certificate is",
            "certificate problem",
            "certificate verif",
            "checksum does",
            "checksum fail",
            "checksum mis",
            "conflict",
            "connection reset",
            "could not ",
            "couldn't ",
            "deadline exceeded",
            "denied",
            "does not exist",
            "does not satisfy",
            "doesn't exist",
            "duplicate",
            "exec format error",
            "failed to ",
            "forbidden",
            "has no ",
            "illegal",
            "in json at",
            "incompatible",
            "integrity check",
            "invalid",
            "is a directory",
            "is missing",
            "is not a ",
            "is not in ",
            "is not set",
            "is required",
            "mismatch",
            "missing",
            "must be",
            "no matching",
            "no module",
            "no rule to make",
            "no space left",
            "no such",
            "no version",
            "not a directory",
            "not a git",
            "not allowed",
            "not assignable",
            "not defined",
            "not find",
            "not found",
            "not in gzip format",
            "not in scope",
            "not installed",
            "not permitted",
            "not recognized",
            "not satisfiable",
            "not supported",
            "not writable",
            "nothing provides",
            "only install with",
            "out of date",
            "outdated",
            "parse error",
            "please install",
            "please set",
            "read-only file",
            "redefinition",
            "refused",
            "requires",
            "self signed certificate",
            "self-signed certificate",
            "syntax error",
            "timed out",
            "timeout",
            "too large",
            "too many",
            "too old",
            "unable to",
            "unauthorized",
            "unbound variable",
            "undeclared",
            "undefined",
            "unexpected",
            "uninitialized",
            "unknown ",
            "unmet",
            "unrecognized",
            "unresolved",
            "unsatisf",
            "unsupported",
            "unterminated",
            "verification failed",
            // German, French, Spanish, Portuguese, Italian, Dutch: scripts of customers.
            "fehlgeschlagen",
            "fehlt",
            "kann nicht",
            "konnte nicht",
            "nicht gefunden",
            "nicht vorhanden",
            "ung\u{fc}ltig",
            "impossible d",
            "introuvable",
            "manquant",
            "n'existe pas",
            "n\u{2019}existe pas",
            "no existe",
            "no se encontr",
            "no se pudo",
            "no se puede",
            "n\u{e3}o encontrad",
            "n\u{e3}o existe",
            "n\u{e3}o foi poss\u{ed}vel",
            "impossibile",
            "non trovat",
            "kan niet",
            "niet gevonden",
            "ontbreekt",
        ],
    ),
    (
        Kind::Test,
        &[
            "^(fail) ",
            "^--- fail",
            "^e   ",
            "^fail: ",
            "failure/error:",
            "^not ok ",
            "\u{2715} ",
            "\u{2716} ",
            "\u{2717} ",
        ],
    ),
    (Kind::Decisive, &["disk quota exceeded", "enospc", "^killed", "no space left on device", "out of memory"]),
    (
        Kind::Both,
        &[
            "): error",
            "^cause: ",
            "\u{25b6} because ",
            ": error:",
            ":error:",
            "curl: (",
            "error [err",
            "error[e",
            "fatal error:",
            "undefined reference to",
            "undefined symbol",
            "\u{2718} ",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_that_is_not_searched_has_no_word(
            before in "[ \t]{0,2}[a-z\u{2003}]{0,3}",
            n in any::<prop::sample::Index>(),
            after in "[ -~é]{0,9}",
            is_upper in any::<bool>(),
        ) {
            let words: Vec<&str> = TABLE.iter().flat_map(|(_, words)| *words).copied().collect();
            let word = words[n.index(words.len())].trim_start_matches('^');
            let word = if is_upper { word.to_ascii_uppercase() } else { word.to_owned() };
            let line = format!("{before}{word}{after}");
            let margin = margin(&line);
            let is_found = |found: Match| !LIST.kinds[found.pattern().as_usize()].1 || found.start() == margin;
            let has_word = LIST.automaton.find_overlapping_iter(&line).any(is_found);
            prop_assert!(!has_word || LIST.may_be_in(&line, margin), "{line:?}");
        }
    }

    #[test]
    fn most_lines_have_no_word() {
        let lines =
            (0..1000).map(|n| format!("  CC    src/module_{n}/file_{}.o with -O2 -Wall -Wextra -std=c17", n * 7));
        assert_eq!(lines.filter(|line| LIST.may_be_in(line, margin(line))).count(), 0);
    }
}
