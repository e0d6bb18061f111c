//! A value that cannot be printed.
//!
//! Owns the types in which keys, tokens and passwords travel through the program. They show as `***` in every
//! format, are wiped when dropped, and their values leave only through `expose`, which is easy to search for.

use std::fmt;

use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Deserializer};

/// A key, token, password, or a URL that may contain one.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes the value in.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// The value itself: for the wire, a pipe or a private file, never for a message.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// What a build is given as a file: any bytes, such as those of a keystore.
#[derive(Clone)]
pub struct SecretBytes(SecretSlice<u8>);

impl SecretBytes {
    /// Takes the bytes in.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The bytes themselves: for a private file, never for a message.
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }

    /// As somebody sees them who takes them for text (UTF-8, what is not is U+FFFD).
    pub fn to_text(&self) -> Secret {
        Secret::new(String::from_utf8_lossy(self.expose()))
    }
}

impl From<&Secret> for SecretBytes {
    fn from(secret: &Secret) -> Self {
        Self::new(secret.expose().as_bytes().into())
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_stars_in_every_format() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(secret.expose(), "hunter2");
        let bytes = SecretBytes::new(b"hunter2".into());
        assert_eq!(format!("{bytes:?} {:?}", Some(&bytes)), "*** Some(***)");
    }
}
