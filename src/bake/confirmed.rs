//! Which definitions buildx has confirmed. Their text differs from build to build only in what this worker wrote into it: paths of
//! the job's directory, the commit and its time. buildx reads all values of these alike, so it confirms each text once.
//!
//! A confirmation counts for its own account, repository and trust: a child that was taken over could forge it.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::{BakeRequest, Definition};

/// The most texts that are remembered; with more, some are confirmed again.
const MAX_SHAPES: usize = 10_000;

/// How many digits of a commit its short names have.
const SHORT: [usize; 3] = [12, 8, 7];

/// The shortest value that is left out. A shorter one could be a part of any word.
const MIN_BYTES: usize = 7;

/// The hash of a text without what differs from build to build.
pub(super) type Shape = [u8; 32];

/// The shapes that buildx has confirmed.
#[derive(Debug, Default)]
pub(super) struct Confirmed(Mutex<HashSet<Shape>>);

impl Confirmed {
    pub(super) fn has(&self, shape: &Shape) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(shape)
    }

    pub(super) fn add(&self, shape: Shape) {
        let mut shapes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shapes.len() >= MAX_SHAPES {
            shapes.clear();
        }
        shapes.insert(shape);
    }
}

/// The shape of a definition. `None` with a compose file: buildx changes that text in more ways. The binary is a part of the shape.
pub(super) fn shape(definition: &Definition, request: &BakeRequest<'_>, buildx: &Path) -> Option<Shape> {
    if definition.compose.is_some() {
        return None;
    }
    let build = request.build;
    let binary = std::fs::metadata(buildx).ok()?;
    let mut shape = Sha256::new();
    for number in [binary.dev(), binary.ino(), binary.size(), binary.mtime().cast_unsigned()] {
        shape.update(number.to_le_bytes());
    }
    for part in [&*build.account, &build.repository.to_string(), build.trust.name()] {
        shape.update(part);
        shape.update([0]);
    }
    for (name, value) in &build.variables {
        shape.update(format!("{name}={value}\0"));
    }
    shape.update(without(&definition.text, &varying(definition, request)));
    Some(shape.finalize().into())
}

/// What differs from build to build, the longer before its own parts.
fn varying(definition: &Definition, request: &BakeRequest<'_>) -> Vec<String> {
    let paths = [request.worktree, &definition.secrets].map(|path| path.to_string_lossy().into_owned());
    let of_commit = request.commit.map(|commit| {
        let sha = commit.sha.to_string();
        let short = SHORT.map(|n_digits| sha[..n_digits].to_owned());
        let time = commit.committed_at.unwrap_or_default();
        [sha].into_iter().chain(short).chain([time.to_string(), time.as_second().to_string()])
    });
    paths.into_iter().chain(of_commit.into_iter().flatten()).collect()
}

/// The text with a mark in place of each value. No text of JSON contains the marks, so two builds with one result have one text,
/// apart from these values. A value that bake could read as more than plain text stays.
fn without(text: &str, values: &[String]) -> String {
    let is_plain = |value: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/".contains(&byte);
        value.len() >= MIN_BYTES && value.bytes().all(is_plain)
    };
    let mut text = text.to_owned();
    for (value, mark) in values.iter().zip('\u{1}'..).filter(|(value, _)| is_plain(value)) {
        text = text.replace(value, &mark.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_alike_only_when_nothing_but_the_values_differs() {
        let alike = |one: (&str, &[&str]), other: (&str, &[&str])| {
            let [one, other] = [one, other].map(|(text, values)| {
                without(text, &values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
            });
            one == other
        };
        let [one, other] = ["/jobs/1", "/jobs/2"];
        assert!(alike(("/jobs/1/a:c0ffee0", &[one, "c0ffee0"]), ("/jobs/2/a:decade0", &[other, "decade0"])));
        assert!(!alike(("/jobs/1/a", &[one]), ("/jobs/2/b", &[other])));
        // Elsewhere it is the other's own text.
        assert!(!alike(("c0ffee0 c0ffee0", &["c0ffee0"]), ("decade0 c0ffee0", &["decade0"])));
        assert!(!alike(("/jobs/1", &[one]), ("c0ffee0", &[other, "c0ffee0"])));
        assert!(!alike(("${upper}", &["${upper}"]), ("c0ffee0", &["c0ffee0"])));
        assert!(!alike(("80", &["0"]), ("81", &["1"])));
    }
}
