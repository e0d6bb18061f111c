//! Repositories and commits, as GitHub names them.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

use crate::name::{MAX_NAME, is_name};

/// `owner/name`, in the characters that GitHub allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repository {
    /// User or organization.
    pub owner: String,
    /// The name alone.
    pub name: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl Repository {
    /// Parses `owner/name`. Other characters are refused, since it becomes part of URLs and paths.
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, name) = text.split_once('/')?;
        let name = name.strip_suffix(".git").unwrap_or(name);
        // `.github` is a repository's name, and no user's. A name of dots alone is a path.
        let is_repository = is_name(name.trim_start_matches('.')) && name.len() <= MAX_NAME;
        (is_name(owner) && is_repository).then(|| Self { owner: owner.to_owned(), name: name.to_owned() })
    }

    /// Whether both belong to one user or organization. GitHub ignores case.
    pub fn is_of_owner(&self, other: &Self) -> bool {
        self.owner.eq_ignore_ascii_case(&other.owner)
    }
}

impl<'de> Deserialize<'de> for Repository {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("expected owner/name, found {text:?}")))
    }
}

/// A full commit id: 40 lower-case hexadecimal digits. A shortened one would silently fetch nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sha(String);

impl Sha {
    /// Parses a full id.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 40 && text.bytes().all(is_hex)).then(|| Self(text.to_owned()))
    }

    /// The 40 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Sha {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Sha {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom(format!("expected 40 lower-case hexadecimal digits, found {text:?}")))
    }
}
