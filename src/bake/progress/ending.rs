//! The plain text that docker-buildx writes beside its events: warnings, the lines of a customer's invalid file, and the final
//! error.
//!
//! After the last event, the text is
//!
//! ```text
//! WARNING: …                 buildx's own, any number
//! NAME:LINE                  for each place in a file: its name is the customer's
//! --------------------
//!    1 |     …               the customer's lines
//! --------------------
//! ERROR: …                   the message, in which the customer is quoted, also over several lines
//! ```
//!
//! A file may be named `ERROR: x`, and a message may quote such a block. So the error is the first line that begins with
//! `ERROR: ` after the first complete block. Without a block before it, the error is the first such line, unless it is the
//! name of a Dockerfile. Follows buildx 0.29 to 0.36 and BuildKit's `errdefs.Source`.

use std::collections::BTreeSet;

use crate::bake::evidence::Line;
use crate::bake::shown::{Said, Shown};
use crate::bounds;
use crate::text::paths::is_log_line;
use crate::text::tail::Tail;

/// The rule above and below a customer's lines.
const RULE: &[u8] = b"--------------------";

/// How the line of the error begins.
const ERROR: &str = "ERROR: ";

/// How a crash of Go's runtime begins.
const CRASHES: [&str; 3] = ["panic: ", "fatal error: ", "runtime: "];

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// Names of the Dockerfiles, with which a block may begin.
    dockerfiles: BTreeSet<String>,
    /// Lines that may be the error. When there are two, one of them quotes a customer.
    pub(super) errors: Vec<Said>,
    block: Block,
    /// Whether a complete block was read.
    has_block: bool,
    /// The number at the end of the last line outside of a block: perhaps the line with which a block begins.
    place: Option<u32>,
    /// The first line of the place that the first block before the error shows.
    pub(super) line: Option<u32>,
    /// Whether a line began as an error: no event follows.
    pub(super) is_over: bool,
    /// Whether text came that buildx does not write among its events: then an event may be a customer's imitation.
    pub(super) is_doubtful: bool,
    pub(super) has_crashed: bool,
    /// Warnings since the last event.
    warnings: Vec<String>,
    pub(super) last: Tail,
}

/// The kind of the last line in a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Block {
    /// Perhaps the name with which a block begins.
    #[default]
    Name,
    /// The rule above the lines.
    Rule,
    Lines,
    /// The rule below the lines.
    End,
}

impl Ending {
    pub(super) fn new(dockerfiles: BTreeSet<String>) -> Self {
        Self { dockerfiles, ..Self::default() }
    }

    /// Called for an event: the warnings before it were buildx's own.
    pub(super) fn event(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Reads one line that is not an event.
    pub(super) fn line(&mut self, line: &[u8], shown: &Shown) {
        let is_whole = line.len() < bounds::LINE;
        let text = String::from_utf8_lossy(line);
        if let Some(error) = text.strip_prefix(ERROR) {
            self.error(error, shown, is_whole);
        } else {
            self.follow_block(line);
        }
        self.has_crashed |= CRASHES.iter().any(|begin| text.starts_with(begin));
        match text.strip_prefix("WARNING: ") {
            Some(warning) if !self.is_doubtful && self.warnings.len() < bounds::NOTICES => {
                self.warnings.push(shown.notice(warning));
            }
            Some(_) => {}
            None => self.is_doubtful |= !is_log_line(&text),
        }
        self.last.push(shown.error(&text, is_whole).shown);
    }

    fn error(&mut self, error: &str, shown: &Shown, is_whole: bool) {
        self.is_over = true;
        let after_block = self.block == Block::End;
        self.block = Block::Name;
        let is_first = self.errors.is_empty() && !self.is_dockerfile(error);
        // The first one after the first block. A second block is quoted by the error.
        if (after_block || is_first) && !self.has_block {
            self.errors.push(shown.error(error, is_whole).with_evidence(Line::parse(error).evidence()));
        }
        self.has_block |= after_block;
    }

    /// Whether a line, without `ERROR: `, is the name of a Dockerfile and a line number.
    fn is_dockerfile(&self, line: &str) -> bool {
        let Some((name, number)) = line.rsplit_once(':') else { return false };
        !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && self.dockerfiles.iter().any(|dockerfile| dockerfile.strip_prefix(ERROR) == Some(name))
    }

    fn follow_block(&mut self, line: &[u8]) {
        self.block = match self.block {
            Block::Name if line == RULE => Block::Rule,
            Block::Rule | Block::Lines if is_numbered(line) => Block::Lines,
            Block::Lines if line == RULE => Block::End,
            _ => Block::Name,
        };
        match self.block {
            Block::Name => self.place = number_at_end(line),
            Block::Lines if !self.has_block => self.line = self.place,
            Block::Rule | Block::Lines | Block::End => {}
        }
    }
}

/// The number of `NAME:LINE`.
fn number_at_end(line: &[u8]) -> Option<u32> {
    let number = &line[line.iter().rposition(|byte| *byte == b':')? + 1..];
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Whether a line is a numbered line of a file: `   3 | >>> RUN make`.
fn is_numbered(line: &[u8]) -> bool {
    let Some(bar) = line.windows(3).position(|three| three == b" | ") else { return false };
    let number = line[..bar].trim_ascii_start();
    !number.is_empty() && number.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bake::mask::Mask;
    use crate::text::paths::WorkerPaths;

    fn read(dockerfile: &str, text: &str) -> Ending {
        let shown = Shown::new(Mask::new([]), WorkerPaths::default());
        let mut ending = Ending::new([dockerfile.to_owned()].into());
        text.lines().for_each(|line| ending.line(line.as_bytes(), &shown));
        ending
    }

    fn block(name: &str) -> String {
        format!("{name}:2\n{0}\n   1 |     FROM base\n   2 | >>> ERROR: x\n   3 |     \n{0}\n", "-".repeat(20))
    }

    #[test]
    fn the_place_of_an_error_is_the_one_above_its_lines() {
        let rule = "-".repeat(20);
        for (line, text) in [
            (Some(2), format!("{}{OWN}\n", block("Dockerfile"))),
            (Some(2), format!("x:77\n{rule}\n{}{OWN}\n", block("Dockerfile"))),
            (Some(2), format!("x:77\n{}{OWN}\n{}", block("Dockerfile"), block("y:9"))),
            (None, format!("{OWN}\n")),
        ] {
            assert_eq!(read("Dockerfile", &text).line, line, "{text}");
        }
    }

    const LOST: &str = "ERROR: failed to solve: rpc error: code = Unavailable";
    const OWN: &str = "ERROR: failed to solve: dockerfile parse error on line 2: unknown instruction: ERROR:";

    #[test]
    fn the_error_is_the_one_after_the_customers_lines_whatever_their_file_is_called() {
        for (name, text) in [
            ("Dockerfile", format!("WARNING: No output\n{}{OWN}\n", block("Dockerfile"))),
            ("Dockerfile", format!("{}{OWN}\n{LOST}\n", block("Dockerfile"))),
            ("Dockerfile", format!("{}{OWN}:2\n{}\n{LOST}\n", block("Dockerfile"), &block("x")[4..])),
            ("Dockerfile", format!("{0}{0}{OWN}\n", block("Dockerfile"))),
            (LOST, format!("{}{OWN}\n", block(LOST))),
            (LOST, format!("{}{OWN}\n{}{LOST}\n", block(LOST), block(LOST))),
            ("WARNING: x", format!("{}{OWN}\n", block("WARNING: x"))),
            ("Dockerfile", format!("{OWN}\n{LOST}\n")),
        ] {
            let ending = read(name, &text);
            let errors: Vec<&str> = ending.errors.iter().map(|said| said.shown.as_str()).collect();
            let expected = OWN.strip_prefix(ERROR).expect("an error");
            assert!(errors.len() == 1 && errors[0].starts_with(expected), "{errors:?} of {text}");
            assert!(ending.is_over);
        }
    }

    #[test]
    fn where_it_is_not_certain_both_are_told() {
        let ending = read("Dockerfile", &format!("{}{OWN}\n{LOST}\n", block(LOST)));
        assert_eq!(ending.errors.len(), 2, "{ending:?}");
    }

    #[test]
    fn a_warning_is_told_when_an_event_follows_and_no_customer_can_have_written_it() {
        let mut ending =
            read("Dockerfile", "WARNING: one\nE1124 04:18:04.264391    6145 v2.go:105] \"x\"\nWARNING: two");
        assert_eq!((ending.event(), ending.is_doubtful), (vec!["one".into(), "two".into()], false));
        assert_eq!(ending.event(), Vec::<String>::new());
        let mut ending = read("WARNING: x", &format!("{}WARNING: forged", block("Dockerfile")));
        assert_eq!((ending.event(), ending.is_doubtful), (vec![], true));
    }
}
