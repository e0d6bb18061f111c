//! The lines of a step's output that explain its failure: the last ones, and earlier ones that look like an error.
//!
//! A compiler, a package manager or a test runner often reports the cause hundreds of lines before the end. Which words report an
//! error is a list ([`weight`]); a wrong guess costs some lines of the excerpt, and decides nothing.

use std::collections::VecDeque;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use crate::{bounds, text};

/// Bytes of one line.
const MAX_LINE: usize = 1 << 10;

/// Lines beside the last ones: the most error-like ones, each with the lines after it.
const MAX_BLOCKS: usize = 8;
const MAX_FOLLOWING: usize = 2;

/// Bytes of these lines, all together.
const MAX_EARLIER: usize = 3 << 10;

/// From this weight on, a line is kept that is not among the last ones.
const MIN_WEIGHT: u8 = 3;

/// A bounded excerpt of a text that is read line by line.
#[derive(Clone, Debug, Default)]
pub struct Excerpt {
    /// The number of lines so far.
    n_lines: usize,
    /// The last lines.
    last: VecDeque<String>,
    /// Earlier lines, in order.
    earlier: Vec<Block>,
    /// Bytes of all kept lines.
    n_bytes: usize,
}

/// An error-like line and the lines after it.
#[derive(Clone, Debug)]
struct Block {
    /// The number of its first line, from 0.
    at: usize,
    weight: u8,
    lines: Vec<String>,
}

impl Block {
    fn size(&self) -> usize {
        self.lines.iter().map(String::len).sum()
    }
}

impl Excerpt {
    /// Adds a plain line without a line feed.
    pub fn push(&mut self, line: &str) {
        let line = text::clip(line, MAX_LINE);
        self.n_bytes += line.len();
        self.n_lines += 1;
        self.last.push_back(line.into_owned());
        while self.last.len() > bounds::LOG_TAIL_LINES || self.last_bytes() > bounds::LOG_TAIL {
            self.set_aside();
        }
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        self.n_bytes
    }

    /// Drops the older half of its last lines, to make room for other excerpts.
    pub fn shrink(&mut self) {
        for _ in 0..self.last.len().div_ceil(2) {
            self.set_aside();
        }
        if self.last.is_empty() {
            self.n_bytes = 0;
            self.earlier.clear();
        }
    }

    fn last_bytes(&self) -> usize {
        self.n_bytes - self.earlier.iter().map(Block::size).sum::<usize>()
    }

    /// Takes the oldest of the last lines, and keeps it if it looks like an error or follows one.
    fn set_aside(&mut self) {
        let at = self.n_lines - self.last.len();
        let Some(line) = self.last.pop_front() else { return };
        self.n_bytes -= line.len();
        let weight = weight(&line);
        if let Some(block) = self.earlier.last_mut()
            && at == block.at + block.lines.len()
            && block.lines.len() <= MAX_FOLLOWING
            && weight <= block.weight
        {
            self.n_bytes += line.len();
            block.lines.push(line);
        } else if weight >= MIN_WEIGHT {
            self.n_bytes += line.len();
            self.earlier.push(Block { at, weight, lines: vec![line] });
        }
        while self.earlier.len() > MAX_BLOCKS || self.earlier.iter().map(Block::size).sum::<usize>() > MAX_EARLIER {
            self.drop_block();
        }
    }

    /// Drops the block of the least weight. Of equal ones the last goes: the first error is usually the cause.
    fn drop_block(&mut self) {
        let least = (0..self.earlier.len()).rev().min_by_key(|index| self.earlier[*index].weight);
        if let Some(index) = least {
            self.n_bytes -= self.earlier.remove(index).size();
        }
    }

    /// The excerpt: at most [`bounds::LOG_TAIL_LINES`] lines and [`bounds::LOG_TAIL`] bytes. A gap is a line that counts the missing
    /// ones. `None` without output.
    pub fn text(&self) -> Option<String> {
        let mut fitting = self.clone();
        loop {
            let lines = fitting.lines();
            let n_bytes = lines.iter().map(|line| line.len() + 1).sum::<usize>();
            if lines.len() <= bounds::LOG_TAIL_LINES && n_bytes <= bounds::LOG_TAIL {
                let text = lines.join("\n");
                return (!text.trim().is_empty()).then_some(text);
            }
            fitting.set_aside();
        }
    }

    fn lines(&self) -> Vec<String> {
        let (mut lines, mut next) = (Vec::new(), 0);
        for block in &self.earlier {
            lines.extend(gap(block.at - next));
            lines.extend(block.lines.iter().cloned());
            next = block.at + block.lines.len();
        }
        lines.extend(gap(self.n_lines - self.last.len() - next));
        lines.extend(self.last.iter().cloned());
        lines
    }

    /// The line that most likely names the cause. Of equal ones the first counts. `None` without output.
    pub fn cause(&self) -> Option<&str> {
        let lines = || self.earlier.iter().flat_map(|block| &block.lines).chain(&self.last).map(|line| line.trim());
        let best = lines().map(weight).max().filter(|weight| *weight > GENERIC);
        let of_weight = best.and_then(|best| lines().find(|line| weight(line) == best));
        // Nothing looks like an error: the last line that does not only repeat that something failed.
        let last = || lines().rfind(|line| !line.is_empty());
        let last_other = || lines().rfind(|line| !line.is_empty() && weight(line) != GENERIC);
        of_weight.or_else(last_other).or_else(last)
    }
}

/// The line that stands for `n` missing lines.
fn gap(n: usize) -> Option<String> {
    match n {
        0 => None,
        1 => Some("… (1 line left out)".into()),
        n => Some(format!("… ({n} lines left out)")),
    }
}

/// The weight of a line that only says that something failed.
const GENERIC: u8 = 1;

/// How much a line looks like the cause of a failure: 0 not at all, [`GENERIC`], 2 names a cause, 3 reports an error, 5 both. A line
/// that begins at the margin counts one more: an indented one usually quotes source code.
fn weight(line: &str) -> u8 {
    let line = &line[..text::boundary(line, MAX_LINE)];
    let (mut is_generic, mut is_harmless, mut reports, mut names) = (false, false, 0, 0);
    for found in WORDS.find_overlapping_iter(line) {
        match KINDS[found.pattern().as_usize()] {
            Kind::Harmless => is_harmless = true,
            Kind::Generic => is_generic = true,
            Kind::Report => reports = 3,
            Kind::Cause => names = 2,
        }
    }
    match reports + names {
        0 if is_generic => GENERIC,
        0 => 0,
        _ if is_harmless => 0,
        _ if is_generic => GENERIC,
        weight => weight + u8::from(!line.starts_with([' ', '\t'])),
    }
}

/// What a word in a line shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The line is a warning or counts no errors.
    Harmless,
    /// It only says that something failed, or where to read more.
    Generic,
    /// It reports an error.
    Report,
    /// It names what is wrong.
    Cause,
}

static KINDS: LazyLock<Vec<Kind>> =
    LazyLock::new(|| TABLE.iter().flat_map(|(kind, words)| words.iter().map(|_| *kind)).collect());

static WORDS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let words = TABLE.iter().flat_map(|(_, words)| words.iter());
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .kind(Some(AhoCorasickKind::DFA))
        .build(words)
        .expect("the words are few and short")
});

/// The words, without regard to case: of compilers, package managers, test runners and shells.
const TABLE: [(Kind, &[&str]); 4] = [
    (
        Kind::Harmless,
        &[
            " 0 errors",
            " 0 failed",
            " 0 failures",
            ", 0 error",
            "errors: 0",
            "failures: 0",
            "failed: 0",
            "(0 errors",
            "no errors",
            "warning:",
            "warning ",
            "npm warn",
            "[warning]",
            "[warn]",
            "warn:",
            "debconf:",
            "... ok",
            "... no",
            "... yes",
        ],
    ),
    (
        Kind::Generic,
        &[
            "a complete log of this run",
            "aborting due to",
            "build failed",
            "build stopped",
            "command failed",
            "could not compile",
            "elifecycle",
            "error originates",
            "exit code",
            "exit status",
            "exited with",
            "failed to execute goal",
            "failed with code",
            "failed with error",
            "for more information",
            "full stack trace",
            "help 1",
            "lifecycle script",
            "likely not a problem with pip",
            "logs can be found",
            "make: ***",
            "make[",
            "non-zero",
            "nonzero",
            "process completed",
            "re-run maven",
            "run with --",
            "rake aborted",
            "see above",
            "subprocess-exited",
            "the command '",
            "traceback (most recent",
            "tests failed",
            "what went wrong",
            "returned error",
        ],
    ),
    (
        Kind::Report,
        &[
            " err:",
            "assert",
            "assertionerror",
            "core dumped",
            "e: ",
            "err!",
            "error -",
            "error ts",
            "error:",
            "error[",
            "error ",
            "exception:",
            "exception in",
            "failed:",
            "failure:",
            "fatal",
            "killed",
            "panic:",
            "panicked at",
            "segmentation fault",
            "[error]",
            "\u{2717}",
            "\u{2718}",
            "\u{2716}",
            "err_",
        ],
    ),
    (
        Kind::Cause,
        &[
            "already exists",
            "cannot ",
            "can't ",
            "conflict",
            "could not ",
            "couldn't ",
            "denied",
            "does not exist",
            "doesn't exist",
            "does not satisfy",
            "expected",
            "forbidden",
            "incompatible",
            "invalid",
            "is not a ",
            "is not set",
            "mismatch",
            "missing",
            "must be",
            "no matching",
            "no module named",
            "no space left",
            "no such file",
            "no such",
            "not allowed",
            "not defined",
            "not found",
            "not installed",
            "not permitted",
            "not supported",
            "out of memory",
            "outdated",
            "please install",
            "please set",
            "refused",
            "required",
            "requires",
            "timed out",
            "timeout",
            "too old",
            "unable to",
            "unauthorized",
            "undefined",
            "undeclared",
            "unexpected",
            "uninitialized",
            "unknown",
            "unrecognized",
            "unresolved",
            "unsupported",
            "unterminated",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Excerpt {
        let mut excerpt = Excerpt::default();
        lines.into_iter().for_each(|line| excerpt.push(line.as_ref()));
        excerpt
    }

    #[test]
    fn a_short_output_is_shown_whole() {
        assert_eq!(of(["one", "", "three"]).text().as_deref(), Some("one\n\nthree"));
        assert_eq!(of(["", ""]).text(), None);
        assert_eq!(Excerpt::default().text(), None);
    }

    #[test]
    fn a_long_output_keeps_its_end_and_earlier_errors_with_the_gaps_marked() {
        let noise = |n: usize| (0..n).map(|n| format!("copying file {n}"));
        let error = ["src/main.c:5:10: fatal error: pq.h: No such file or directory", "    5 | #include <pq.h>"];
        let output =
            noise(300).chain(error.map(str::to_owned)).chain(noise(500)).chain(["make: *** [all] Error 1".to_owned()]);
        let excerpt = of(output);
        let text = excerpt.text().expect("output");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["… (300 lines left out)", error[0], error[1]]);
        assert!(lines[4].ends_with(" lines left out)") && lines.len() == bounds::LOG_TAIL_LINES, "{text}");
        assert_eq!(lines.last(), Some(&"make: *** [all] Error 1"));
        assert_eq!(excerpt.cause(), Some(error[0]));
    }

    #[test]
    fn the_cause_is_the_line_that_names_it() {
        for (cause, output) in [
            (
                "npm ERR! missing script: build",
                "npm ERR! missing script: build\nnpm ERR! A complete log of this run can be found in:\nnpm ERR!     /root/.npm/_logs/x.log",
            ),
            (
                "E: Unable to locate package libpq-devel",
                "Reading package lists...\nE: Unable to locate package libpq-devel",
            ),
            (
                "ModuleNotFoundError: No module named 'flask'",
                "Traceback (most recent call last):\n  File \"/app/x.py\", line 1, in <module>\n    import flask\nModuleNotFoundError: No module named 'flask'",
            ),
            (
                "error[E0432]: unresolved import `serde`",
                "   Compiling app v0.1.0\nerror[E0432]: unresolved import `serde`\n --> src/main.rs:1:5\nerror: aborting due to 1 previous error\nerror: could not compile `app`",
            ),
            ("./main.go:7:2: undefined: fmtt", "# example.com/app\n./main.go:7:2: undefined: fmtt"),
            ("/bin/sh: 1: yarn: not found", "/bin/sh: 1: yarn: not found"),
            ("please install libpq-dev", "checking for pg_config... no\nplease install libpq-dev"),
            (
                "[ERROR] /src/App.java:[5,9] cannot find symbol",
                "[INFO] Compiling\n[ERROR] /src/App.java:[5,9] cannot find symbol\n[ERROR] Failed to execute goal x: Compilation failure\n[ERROR] For more information about the errors, read",
            ),
            (
                "ERROR: Could not find a version that satisfies the requirement nosuch==9 (from versions: none)",
                "Collecting nosuch==9\nERROR: Could not find a version that satisfies the requirement nosuch==9 (from versions: none)\nERROR: No matching distribution found for nosuch==9",
            ),
            ("the license has run out", "starting\nthe license has run out\nCommand failed with exit code 3.\n"),
            (
                "ArgumentError: Missing `secret_key_base` for 'production' environment",
                "rake aborted!\nArgumentError: Missing `secret_key_base` for 'production' environment\n/app/config/environment.rb:5:in `<main>'",
            ),
        ] {
            assert_eq!(of(output.split('\n')).cause(), Some(cause), "{output}");
        }
        assert_eq!(Excerpt::default().cause(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_output_fits(lines in prop::collection::vec("(error: )?[a-zé]{0,300}", 0..120)) {
            let excerpt = of(&lines);
            let text = excerpt.text().unwrap_or_default();
            prop_assert!(text.len() <= bounds::LOG_TAIL && text.lines().count() <= bounds::LOG_TAIL_LINES);
            prop_assert!(excerpt.size() <= bounds::LOG_TAIL + MAX_EARLIER);
        }

        #[test]
        fn the_counted_bytes_are_those_that_are_kept(lines in prop::collection::vec("(fatal: missing )?[a-z]{0,300}", 0..120), n in 0_usize..5) {
            let mut excerpt = of(&lines);
            (0..n).for_each(|_| excerpt.shrink());
            let kept = excerpt.last.iter().chain(excerpt.earlier.iter().flat_map(|block| &block.lines));
            prop_assert_eq!(excerpt.size(), kept.map(String::len).sum::<usize>());
        }
    }
}
