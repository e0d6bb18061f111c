//! The `ref` of a job: the full name of a branch or tag, or any other text.
//!
//! Owns the rules for names (git-check-ref-format(1)) and the trust that each form allows. Resolves nothing: git and GitHub's API
//! interpret `main`, `heads/main`, `pull/7/head` or a commit id in their own ways, and may find a stranger's commit.

use std::fmt;

use super::Trust;
use crate::field_error::FieldError;
use crate::text::shown;

/// Bytes of a `ref` that a notice or an error shows.
const MAX_SHOWN: usize = 200;

/// A branch or tag by its full name, `refs/heads/…` or `refs/tags/…`, in a form that git allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitRef(String);

impl GitRef {
    /// Reads the `ref` of a job. `None` when it is not the full name of a branch or tag.
    ///
    /// # Errors
    ///
    /// A name that git forbids, or control characters.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, FieldError> {
        let refused = |what: &str| Err(FieldError::new("ref", format!("{what}, found {}", quoted(text))));
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

/// The trust of a build, and a notice when it is less than the job states.
///
/// A job keeps its stated trust without a `ref`, or with the full name of a branch or tag: GitHub is asked whether the commit is
/// on it. With any other `ref`, the build is a fork's.
pub(super) fn trust(stated: Option<Trust>, text: Option<&str>, git_ref: Option<&GitRef>) -> (Trust, Option<String>) {
    let stated = stated.unwrap_or_default();
    let Some(text) = text.filter(|_| git_ref.is_none() && stated != Trust::Fork) else { return (stated, None) };
    let notice = format!(
        "built as a fork's: ref {} is not the full name of a branch (refs/heads/…) or tag (refs/tags/…)",
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
