//! The `ref` of a job: the full name of a branch or tag, or a text that is neither.
//!
//! Owns the rules for names (git-check-ref-format(1)) and the trust that each form leaves to a build. It resolves nothing:
//! git and GitHub's API read `main`, `heads/main`, `pull/7/head` or a commit id as they see fit, and what they find may be
//! a stranger's.

use std::fmt;

use super::{JobError, Trust};
use crate::text::shown;

/// Bytes of a `ref` that a notice or an error shows.
const MAX_SHOWN: usize = 200;

/// A branch or tag by its full name, `refs/heads/…` or `refs/tags/…`, in a form that git allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitRef(String);

impl GitRef {
    /// Reads the `ref` of a job. `None` for a text that is not the full name of a branch or tag.
    ///
    /// # Errors
    ///
    /// A name that git forbids, and control characters in any form.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, JobError> {
        let refused = |what: &str| Err(JobError::new("ref", format!("{what}, found {}", quoted(text))));
        if text.contains(char::is_control) {
            return refused("expected no control characters");
        }
        let Some(name) = ["refs/heads/", "refs/tags/"].iter().find_map(|prefix| text.strip_prefix(prefix)) else {
            return Ok(None);
        };
        if is_allowed(name) { Ok(Some(Self(text.to_owned()))) } else { refused("expected a name that git allows") }
    }

    /// The name below `refs/`: `heads/main`.
    pub fn below_refs(&self) -> &str {
        self.0.strip_prefix("refs/").unwrap_or(&self.0)
    }

    /// The branch, if it is one.
    pub fn branch(&self) -> Option<&str> {
        self.0.strip_prefix("refs/heads/")
    }
}

impl fmt::Display for GitRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The trust of a build, and why it is less than the job states.
///
/// A job without a `ref` keeps its stated trust. So does one whose `ref` is the full name of a branch or tag: GitHub is
/// asked whether the commit is on it. Every other `ref` makes the build a fork's.
pub(super) fn trust(stated: Option<Trust>, text: Option<&str>, git_ref: Option<&GitRef>) -> (Trust, Option<String>) {
    let stated = stated.unwrap_or_default();
    let Some(text) = text.filter(|_| git_ref.is_none() && stated != Trust::Fork) else { return (stated, None) };
    let notice = format!(
        "a fork's build: ref {} is not the full name of a branch (refs/heads/…) or tag (refs/tags/…)",
        quoted(text)
    );
    (Trust::Fork, Some(notice))
}

/// Whether git allows this name of a branch or tag.
fn is_allowed(name: &str) -> bool {
    let is_allowed_part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let is_forbidden = |c: char| matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    let has_forbidden =
        name.contains(is_forbidden) || name.contains("..") || name.contains("@{") || name.ends_with('.');
    name.split('/').all(is_allowed_part) && !has_forbidden
}

fn quoted(text: &str) -> String {
    format!("{:?}", shown(text, MAX_SHOWN))
}
