//! Secrets that a setting holds or a file contains.

use crate::secret::Secret;
use crate::settings::SecretSource;

/// A secret that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read, or is not UTF-8.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// Path of the file.
        path: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The file has nothing but white space in it.
    #[error("{path} is empty")]
    Empty {
        /// Path of the file.
        path: String,
    },
}

/// The secret. A file is read at each call, so that it can be rotated; white space around its content is dropped.
///
/// # Errors
///
/// When the file cannot be read or is empty. The messages contain its path and nothing of its content.
pub fn read(source: &SecretSource) -> Result<Secret, SecretError> {
    let path = match source {
        SecretSource::Value(secret) => return Ok(secret.clone()),
        SecretSource::File(path) => path,
    };
    let shown = || path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map(Secret::new)
        .map_err(|source| SecretError::Unreadable { path: shown(), source })?;
    match text.expose().trim() {
        "" => Err(SecretError::Empty { path: shown() }),
        trimmed => Ok(Secret::new(trimmed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_not_a_secret() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let source = SecretSource::File(file.path().to_owned());
        let read_text = |text: &str| {
            std::fs::write(file.path(), text).expect("written");
            read(&source)
        };
        assert_eq!(read_text("hunter2\n").expect("a secret").expose(), "hunter2");
        for text in ["", " \n"] {
            assert!(matches!(read_text(text), Err(SecretError::Empty { .. })), "{text:?}");
        }
        std::fs::write(file.path(), [0xff]).expect("written");
        assert!(read(&source).expect_err("refused").to_string().starts_with("cannot read /"));
    }
}
