//! A field that policy refuses, and the reason that the customer gets. The code that finds the fault decides the reason.

use crate::field_error::FieldError;
use crate::reason::Reason;

/// A refused field of a definition. It reads as its path and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}")]
pub struct Refusal {
    /// The entry of the closed list.
    pub reason: Reason,
    field: FieldError,
}

impl Refusal {
    pub(in crate::bake) fn new(reason: Reason, path: impl AsRef<str>, message: impl AsRef<str>) -> Self {
        Self { reason, field: FieldError::new(path, message) }
    }

    /// A field of the job names something that its definition does not have.
    pub(in crate::bake) fn of_job(field: FieldError) -> Self {
        Self { reason: Reason::InvalidArguments, field }
    }

    /// The account may not do this.
    pub(in crate::bake) fn not_allowed(path: impl AsRef<str>, message: impl AsRef<str>) -> Self {
        Self::new(Reason::PolicyRefused, path, message)
    }

    /// No account may write this: buildx or BuildKit could not read it.
    pub(in crate::bake) fn invalid(path: impl AsRef<str>, message: impl AsRef<str>) -> Self {
        Self::new(Reason::DefinitionInvalid, path, message)
    }
}
