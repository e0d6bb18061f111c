//! The versions of buildx for which a row of the table is.

use std::fmt;

/// Major and minor.
pub type Version = (u32, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    All,
    Before(Version),
    From(Version),
}

impl Versions {
    pub fn have(self, version: Version) -> bool {
        match self {
            Self::All => true,
            Self::Before(end) => version < end,
            Self::From(start) => version >= start,
        }
    }

    /// The versions without these; `None` when these are all.
    pub fn others(self) -> Option<Self> {
        match self {
            Self::All => None,
            Self::Before(version) => Some(Self::From(version)),
            Self::From(version) => Some(Self::Before(version)),
        }
    }

    /// Reads a field of the table.
    pub fn parse(text: &str) -> Option<Self> {
        let version = |text: &str| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        match text.split_once(' ') {
            None => (text == "all").then_some(Self::All),
            Some(("before", end)) => version(end).map(Self::Before),
            Some(("from", start)) => version(start).map(Self::From),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(f, "all"),
            Self::Before((major, minor)) => write!(f, "before {major}.{minor}"),
            Self::From((major, minor)) => write!(f, "from {major}.{minor}"),
        }
    }
}
