//! Keeps build secrets and registry credentials out of what is said of a build: a step may print what it was given, and a
//! registry's refusal what it was sent.

use crate::event::{Event, Step};
use crate::report::TargetReport;
use crate::secret::Secret;

/// What is shown instead.
const SHOWN: &str = "***";

/// A shorter text is in too much that is no secret, and so is one of replacement characters: bytes that are no text.
const MIN_LENGTH: usize = 4;

/// The lines of all secrets of a build: what a step prints arrives by the line.
#[derive(Clone, Debug, Default)]
pub(super) struct Mask(Vec<Secret>);

impl Mask {
    pub(super) fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let mut lines: Vec<Secret> = Vec::new();
        for secret in secrets {
            let all = secret.expose().lines().map(str::trim);
            let is_telling =
                |line: &&str| line.split(char::REPLACEMENT_CHARACTER).map(str::len).sum::<usize>() >= MIN_LENGTH;
            lines.extend(all.filter(is_telling).map(Secret::new));
        }
        // One may be a part of another.
        lines.sort_by(|a, b| (b.expose().len(), b.expose()).cmp(&(a.expose().len(), a.expose())));
        lines.dedup_by(|a, b| a.expose() == b.expose());
        Self(lines)
    }

    /// The same, and more secrets.
    pub(super) fn with(&self, secrets: impl IntoIterator<Item = Secret>) -> Self {
        Self::new(self.0.iter().cloned().chain(secrets))
    }

    pub(super) fn text(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, line| text.replace(line.expose(), SHOWN))
    }

    pub(super) fn event(&self, event: Event) -> Event {
        match event {
            _ if self.0.is_empty() => event,
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
        assert_eq!(Mask::default().text("x"), "x");
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
