//! A field that is refused: its path, and what is wrong with it.
//!
//! Settings, build requests and bake definitions share this one form, so a reader gets the same kind of sentence for all.

use crate::{bounds, text};

/// A refused field. The message begins with the path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// Such as `application.images[2].args.FOO`; `.` for the whole.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl FieldError {
    /// Makes both plain and cuts them: they quote a stranger's names and values.
    pub fn new(path: impl AsRef<str>, message: impl AsRef<str>) -> Self {
        let short = |text: &str| text::shown(text, bounds::NOTICE);
        Self { path: short(path.as_ref()), message: short(message.as_ref()) }
    }
}

/// A check that found something wrong.
pub fn refuse(path: impl AsRef<str>, message: impl AsRef<str>) -> Result<(), FieldError> {
    Err(FieldError::new(path, message))
}
