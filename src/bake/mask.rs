//! Keeps build secrets and registry credentials out of what is said of a build: a step may print what it was given, and a
//! registry's refusal what it was sent.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::event::{Event, Step};
use crate::report::TargetReport;
use crate::secret::Secret;

/// What is shown instead.
const SHOWN: &str = "***";

/// A shorter text is in too much that is no secret, and so is one of replacement characters: bytes that are no text.
const MIN_LENGTH: usize = 4;

/// Finds the lines of all secrets of a build: what a step prints arrives by the line.
pub(super) struct Mask(AhoCorasick);

impl Mask {
    pub(super) fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let secrets: Vec<Secret> = secrets.into_iter().collect();
        let lines = secrets.iter().flat_map(|secret| secret.expose().lines()).map(str::trim);
        let is_telling =
            |line: &&str| line.split(char::REPLACEMENT_CHARACTER).map(str::len).sum::<usize>() >= MIN_LENGTH;
        // One may be a part of another. The other kinds of automaton are larger: by a thousand times for a long line.
        let mut builder = AhoCorasick::builder();
        builder.match_kind(MatchKind::LeftmostLongest).kind(Some(AhoCorasickKind::ContiguousNFA));
        Self(builder.build(lines.filter(is_telling)).expect("secrets have less than two gibibytes"))
    }

    pub(super) fn text(&self, text: &str) -> String {
        let mut masked = String::with_capacity(text.len());
        self.0.replace_all_with(text, &mut masked, |_, _, masked| {
            masked.push_str(SHOWN);
            true
        });
        masked
    }

    pub(super) fn event(&self, event: Event) -> Event {
        match event {
            _ if self.0.patterns_len() == 0 => event,
            Event::StepStarted(step) => Event::StepStarted(self.step(step)),
            Event::StepOutput { step, line } => Event::StepOutput { step: self.step(step), line: self.text(&line) },
            Event::StepEnded { step, is_cached, took, error } => {
                let error = error.map(|error| self.text(&error));
                Event::StepEnded { step: self.step(step), is_cached, took, error }
            }
            Event::Notice(notice) => Event::Notice(self.text(&notice)),
            // Nothing of a build's own words is in these.
            Event::PhaseStarted(_) | Event::PhaseEnded(..) | Event::Fetching { .. } => event,
            Event::Targets(_) | Event::TargetDone(_) => event,
        }
    }

    /// A step is called by its command, in which somebody may have written a secret.
    fn step(&self, step: Step) -> Step {
        Step { name: self.text(&step.name), ..step }
    }

    pub(super) fn report(&self, report: TargetReport) -> TargetReport {
        TargetReport { error: report.error.map(|error| self.text(&error)), ..report }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretBytes;

    #[test]
    fn every_line_of_a_secret_is_masked_and_the_longest_first() {
        let mask = Mask::new(["hunter2\n", "-----BEGIN\nabcdef\nx\n", "hunter2-long"].map(Secret::new));
        let table = [
            ("token=hunter2 and more", "token=*** and more"),
            ("hunter2-long", "***"),
            ("abcdef x", "*** x"),
            ("nothing", "nothing"),
        ];
        for (text, expected) in table {
            assert_eq!(mask.text(text), expected);
        }
        assert_eq!(Mask::new([]).text("x"), "x");
    }

    #[test]
    fn of_bytes_that_are_no_text_what_can_be_read_is_masked() {
        let secret = SecretBytes::new(b"\x00\xff\xfekey=hunter2\xff\n\xff\xfe\xfd\xfc\n\xffab\n".into());
        let mask = Mask::new([secret.to_text()]);
        let printed = String::from_utf8_lossy(b"it is \x00\xff\xfekey=hunter2\xff");
        assert_eq!(mask.text(&printed), "it is ***");
        let others = String::from_utf8_lossy(b"\xff\xfe\xfd\xfc caf\xe9 \xffab");
        assert_eq!(mask.text(&others), others, "no more than a log of another encoding");
    }
}
