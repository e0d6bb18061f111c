//! Secrets that a setting holds or a file contains.

use std::io;
use std::path::Path;

use crate::secret::{Secret, SecretBytes};
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
    let bytes = read_file(path)?;
    let text = std::str::from_utf8(bytes.expose()).map_err(|_| SecretError::Unreadable {
        path: path.display().to_string(),
        source: io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"),
    })?;
    Ok(Secret::new(text.trim()))
}

/// The secret as its bytes are, with the white space around it. Errors as of [`read`], but a file need not be UTF-8.
pub fn read_bytes(source: &SecretSource) -> Result<SecretBytes, SecretError> {
    match source {
        SecretSource::Value(secret) => Ok(secret.into()),
        SecretSource::File(path) => read_file(path),
    }
}

fn read_file(path: &Path) -> Result<SecretBytes, SecretError> {
    let shown = || path.display().to_string();
    let bytes = std::fs::read(path).map(SecretBytes::new);
    let bytes = bytes.map_err(|source| SecretError::Unreadable { path: shown(), source })?;
    let is_empty = bytes.expose().trim_ascii().is_empty();
    if is_empty { Err(SecretError::Empty { path: shown() }) } else { Ok(bytes) }
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
