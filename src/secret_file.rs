//! Secrets that a setting holds or a file contains.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::json;
use crate::secret::{Secret, SecretBytes};
use crate::settings::{SecretSource, is_secret};

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

/// Every secret in these sources, to be masked. A source that cannot be read is left out: what needs it reports it.
///
/// Some appear nowhere as a whole. Of a JSON object, such as Google's key files, the secret fields count. Of a signed query, such
/// as Azure's, the signature counts too.
pub fn secrets_in<'a>(sources: impl IntoIterator<Item = &'a SecretSource>) -> impl Iterator<Item = Secret> {
    sources.into_iter().filter_map(|source| read(source).ok()).flat_map(parts)
}

fn parts(secret: Secret) -> Vec<Secret> {
    let fields = json::read::<BTreeMap<String, Value>>(secret.expose().as_bytes()).unwrap_or_default();
    let fields = fields.iter().filter(|(name, _)| is_secret(name)).filter_map(|(_, value)| value.as_str());
    let fields: Vec<Secret> = fields.map(Secret::new).collect();
    if !fields.is_empty() {
        return fields;
    }
    let query = secret.expose().trim_start_matches('?').split('&');
    let signatures = query.filter_map(|field| field.strip_prefix("sig="));
    let signature = signatures.map(|signature| Secret::new(percent_decode_str(signature).decode_utf8_lossy()));
    signature.chain([secret.clone()]).collect()
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
    fn the_secrets_in_a_text_are_found() {
        let of = |text: &str| {
            let source = SecretSource::Value(Secret::new(text));
            secrets_in([&source]).map(|secret| secret.expose().to_owned()).collect::<Vec<_>>()
        };
        let google = r#"{"type": "service_account", "private_key_id": "id", "private_key": "line\nline", "token_uri": "https://x"}"#;
        assert_eq!(of(google), ["line\nline"]);
        assert_eq!(of(r#"{"client_secret": "a", "refresh_token": "b", "client_id": "c"}"#), ["a", "b"]);
        assert_eq!(of("?sv=1&sig=a%2Fb%2bc%3D&se=2"), ["a/b+c=", "?sv=1&sig=a%2Fb%2bc%3D&se=2"]);
        for whole in ["hunter2", "{}", r#"{"other": "x"}"#, "[1]"] {
            assert_eq!(of(whole), [whole]);
        }
    }

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
