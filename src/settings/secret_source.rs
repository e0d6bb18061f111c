//! A secret that a setting holds, or the file that contains it.

use std::path::PathBuf;

use crate::field_error::{FieldError, refuse};
use crate::secret::Secret;

/// Where a secret is: in the configuration, or in a file of its own. `secret_file::read` reads either.
#[derive(Clone, Debug)]
pub enum SecretSource {
    /// The secret.
    Value(Secret),
    /// The path of the file that contains it.
    File(PathBuf),
}

impl SecretSource {
    /// From a setting `key` and its neighbor `key_file`. `None` when neither is set.
    pub(super) fn of(value: Option<&Secret>, file: Option<&PathBuf>) -> Option<Self> {
        value.cloned().map(Self::Value).or_else(|| file.cloned().map(Self::File))
    }

    /// Refuses two sources for one secret, and an empty secret. `section` is the path of the setting's section.
    pub(super) fn check(
        section: &str,
        key: &str,
        value: Option<&Secret>,
        file: Option<&PathBuf>,
    ) -> Result<(), FieldError> {
        if value.is_some() && file.is_some() {
            return refuse(section, format!("set either {key} or {key}_file, not both"));
        }
        if value.is_some_and(|secret| secret.expose().trim().is_empty()) {
            return refuse(format!("{section}.{key}"), "must not be empty");
        }
        Ok(())
    }
}
