//! How everything that a build reports is shown: plain, then masked, then without the worker's own paths, then cut. In this order
//! no cut leaves a part of a secret, and no color hides one.

use std::borrow::Cow;

use super::evidence;
use super::mask::Mask;
use super::noise;
use crate::reason::Evidence;
use crate::text::paths::WorkerPaths;
use crate::{bounds, text};

/// Lines of an error after its first one.
const MAX_LINES: usize = 8;

/// What is masked in the texts of one build.
pub(super) struct Shown {
    mask: Mask,
    worker_paths: WorkerPaths,
}

/// An error of BuildKit or buildx: as shown, and for the diagnosis unmasked.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) shown: String,
    /// Only where it differs.
    unmasked: Option<Box<str>>,
    /// Evidence in the complete text.
    pub(super) evidence: Option<Evidence>,
    /// How the step's process ended, when it is a step's error: as shown, without the command.
    pub(super) ended: Option<Box<str>>,
}

impl Said {
    /// The same, with evidence from the complete text.
    pub(super) fn with_evidence(self, evidence: Option<Evidence>) -> Self {
        Self { evidence, ..self }
    }

    /// For the diagnosis only: unmasked.
    pub(super) fn judged(&self) -> &str {
        self.unmasked.as_deref().unwrap_or(&self.shown)
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> usize {
        let others = [&self.unmasked, &self.ended];
        self.shown.len() + others.into_iter().flatten().map(|text| text.len()).sum::<usize>()
    }
}

impl Shown {
    pub(super) fn new(mask: Mask, worker_paths: WorkerPaths) -> Self {
        Self { mask, worker_paths }
    }

    /// The name of a step, at most `max_bytes` long. It contains customer's text.
    pub(super) fn name(&self, name: &str, max_bytes: usize) -> String {
        text::clip(&self.mask.plain(name), max_bytes).into_owned()
    }

    /// A warning of buildx.
    pub(super) fn notice(&self, said: &str) -> String {
        text::clip(&self.worker_paths.hide(&self.mask.plain(said)), bounds::NOTICE).into_owned()
    }

    /// An error's beginning and end, in one line and without BuildKit's noise. `is_whole`: whether all of it is known.
    pub(super) fn error(&self, said: &str, is_whole: bool) -> Said {
        let said_lines = lines(said);
        let is_whole = is_whole || said_lines.len() < said.len();
        let beginning = || self.mask.plain_beginning(&said_lines).into();
        let masked = if is_whole { self.mask.plain(&said_lines) } else { beginning() };
        let bounded = |text: &str| text::elide(&self.worker_paths.hide(text), bounds::ERROR).into_owned();
        let (shown, unmasked) = (bounded(&noise::without(&masked)), bounded(&text::plain(&said_lines)));
        let unmasked = (unmasked != shown).then(|| unmasked.into_boxed_str());
        let ended = is_whole.then(|| evidence::ended(&said_lines)).flatten();
        let ended = ended.map(|ended| bounded(&noise::without(&self.mask.plain(ended))).into_boxed_str());
        Said { shown, unmasked, evidence: None, ended }
    }

    /// Whole lines of a step's output, each with its line feed, when none of them needs a change.
    pub(super) fn unchanged<'l>(&self, lines: &'l [u8]) -> Option<&'l str> {
        let text = std::str::from_utf8(lines).ok()?;
        let has_long = || lines.split(|byte| *byte == b'\n').any(|line| line.len() > bounds::OUTPUT_PIECE);
        (text::is_plain(text) && self.mask.is_free(text) && (text.len() <= bounds::OUTPUT_PIECE || !has_long()))
            .then_some(text)
    }

    /// A line of a step's output in pieces of [`bounds::OUTPUT_PIECE`]. `n_dropped` bytes at its end are missing.
    pub(super) fn output(&self, line: &[u8], n_dropped: usize, mut on_piece: impl FnMut(&str)) {
        if n_dropped == 0 {
            return cut(&self.mask.plain(&String::from_utf8_lossy(line)), on_piece);
        }
        let whole = without_open_character(line);
        let beginning = self.mask.plain_beginning(&String::from_utf8_lossy(whole));
        let more = text::more(n_dropped);
        if beginning.len() + more.len() <= bounds::OUTPUT_PIECE {
            return on_piece(&(beginning + &more));
        }
        cut(&beginning, &mut on_piece);
        on_piece(&more);
    }
}

/// The first line of an error; of a registry's answer, also the second, where containerd writes the registry's own words. What git
/// says, and several answers of a registry, come in more lines.
fn lines(said: &str) -> Cow<'_, str> {
    let mut lines = said.lines();
    let first = lines.next().unwrap_or_default();
    if first.ends_with(':') || said[first.len()..].trim_start().starts_with("stderr:") {
        let others: Vec<&str> = lines.map(str::trim).filter(|line| !line.is_empty()).take(MAX_LINES).collect();
        let others = others.join("; ").replace("stderr:; ", "stderr: ");
        let between = if first.ends_with(':') || others.is_empty() { " " } else { "; " };
        return format!("{first}{between}{others}").trim_end().to_owned().into();
    }
    match lines.next().map(str::trim).filter(|second| !second.is_empty()) {
        Some(second) if first.contains("unexpected status from ") => format!("{first}: {second}").into(),
        _ => first.into(),
    }
}

/// Cuts a text between characters.
fn cut(text: &str, mut on_piece: impl FnMut(&str)) {
    let (piece, mut rest) = text.split_at(text::boundary(text, bounds::OUTPUT_PIECE));
    on_piece(piece);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(text::boundary(rest, bounds::OUTPUT_PIECE));
        on_piece(piece);
        rest = after;
    }
}

/// The line without an incomplete character at its end (RFC 3629).
fn without_open_character(line: &[u8]) -> &[u8] {
    match std::str::from_utf8(line) {
        Err(error) if error.error_len().is_none() => &line[..error.valid_up_to()],
        _ => {
            // Invalid bytes come before. The last bytes may still begin a character.
            let begin = line.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
            match std::str::from_utf8(&line[begin..]) {
                Err(error) if error.error_len().is_none() => &line[..begin],
                _ => line,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::SecretBytes;

    fn shown(secrets: &[&str]) -> Shown {
        let secrets = secrets.iter().map(|secret| SecretBytes::new(secret.as_bytes().into()));
        Shown::new(Mask::new(secrets), WorkerPaths::default())
    }

    fn pieces(secrets: &[&str], line: &[u8], n_dropped: usize) -> Vec<String> {
        let mut pieces = Vec::new();
        shown(secrets).output(line, n_dropped, |piece| pieces.push(piece.to_owned()));
        pieces
    }

    #[test]
    fn a_long_line_is_shown_in_pieces_and_a_secret_between_two_is_masked() {
        let line = format!("{}hunter2-of-the-build{}", "x".repeat(bounds::OUTPUT_PIECE - 7), "y".repeat(12_000));
        let pieces = pieces(&["hunter2-of-the-build"], line.as_bytes(), 0);
        assert_eq!(pieces.len(), 3);
        assert!(pieces.iter().all(|piece| piece.len() <= bounds::OUTPUT_PIECE));
        assert_eq!(pieces.concat(), line.replace("hunter2-of-the-build", "***"));
    }

    #[test]
    fn a_line_whose_end_is_missing_says_so() {
        assert_eq!(pieces(&[], b"", 0), [""]);
        assert_eq!(pieces(&[], b"ab", 3), ["ab… (3 more bytes)"]);
        assert_eq!(pieces(&["bcde"], b"ab", 3), ["a… (3 more bytes)"]);
        assert_eq!(pieces(&[], b"caf\xc3", 1), ["caf… (1 more bytes)"]);
        assert_eq!(pieces(&[], b"\xff caf\xc3", 1), ["\u{fffd} caf… (1 more bytes)"]);
        let long = vec![b'x'; bounds::OUTPUT_PIECE];
        assert_eq!(pieces(&[], &long, 9)[1..], ["… (9 more bytes)"]);
    }

    #[test]
    fn an_error_keeps_its_cause_and_is_judged_as_it_was() {
        let said = shown(&["process"]).error(&format!("process \"{}\": exit code: 137\nmore", "é".repeat(9000)), true);
        assert!(said.shown.starts_with("*** \"é") && said.shown.ends_with("exit code: 137"), "{said:?}");
        assert!(said.judged().starts_with("process \"") && said.size() <= 2 * bounds::ERROR, "{said:?}");
        assert_eq!(shown(&["hunter2"]).error("it is hunt", false).shown, "it is ");
    }

    #[test]
    fn an_error_is_its_first_line_and_a_registrys_own_words() {
        let said = |error: &str| shown(&[]).error(error, true).shown;
        assert_eq!(
            said("git error: exit status 128\nstderr:\nfatal: x"),
            "git error: exit status 128; stderr: fatal: x"
        );
        assert_eq!(
            said("git stderr:\nremote: no\nfatal: x\n: exit status 128"),
            "git stderr: remote: no; fatal: x; : exit status 128"
        );
        assert_eq!(
            said("failed to push r/x:1: errors:\ndenied: x\nunknown: y\n"),
            "failed to push r/x:1: errors: denied: x; unknown: y"
        );
        assert_eq!(said("a file\nand more"), "a file");
        let answer = "unexpected status from PUT request to http://r/v2/x/manifests/1: 400 Bad Request";
        assert_eq!(said(&format!("{answer}\ntag invalid: it exists")), format!("{answer}: tag invalid: it exists"));
        assert_eq!(said(&format!("{answer}\n")), answer);
    }

    proptest! {
        #[test]
        fn lines_that_need_no_change_are_the_same_alone(parts in prop::collection::vec(prop_oneof![
            Just(b"hunter2".to_vec()), Just(b"\n".to_vec()), Just(vec![b'x'; 5000]), Just(b"\x1b[1m".to_vec()),
            Just("é…".as_bytes().to_vec()), prop::collection::vec(any::<u8>(), 0..3), Just(b"a%41\\n".to_vec()),
        ], 0..9)) {
            let lines = [parts.concat(), b"\n".to_vec()].concat();
            let alone: Vec<String> =
                lines[..lines.len() - 1].split(|byte| *byte == b'\n').flat_map(|line| pieces(&["hunter2"], line, 0)).collect();
            if let Some(text) = shown(&["hunter2"]).unchanged(&lines) {
                prop_assert_eq!(text, alone.join("\n") + "\n");
            }
        }

        #[test]
        fn any_bytes_of_output_are_bounded_text(line in any::<Vec<u8>>(), n_dropped in 0_usize..3) {
            for piece in pieces(&["hunter2"], &line, n_dropped) {
                prop_assert!(piece.len() <= bounds::OUTPUT_PIECE);
                prop_assert_eq!(text::plain(&piece), piece.as_str());
            }
        }
    }
}
