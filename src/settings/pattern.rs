//! Settings for thousands of accounts: text with `{account}` and `{repository}` in it, and names with `*` in them.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// Text in which `{account}`, `{owner}` and `{repository}` stand for those of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Takes the text, or says which name in braces is unknown.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        let rest = text.replace("{account}", "").replace("{owner}", "").replace("{repository}", "");
        match rest.find('{') {
            Some(at) => Err(format!("unknown name in the pattern {text:?}, at {:?}", &rest[at..])),
            None => Ok(Self(text)),
        }
    }

    /// The text for one job. None of the three can contain a slash or be `..`: they are checked when a job is parsed.
    pub fn expand(&self, account: &str, owner: &str, repository: &str) -> String {
        self.0.replace("{account}", account).replace("{owner}", owner).replace("{repository}", repository)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Names of accounts or repositories: text in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamePattern(String);

impl NamePattern {
    /// Takes the text.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether the name is meant; GitHub's names are the same in upper and lower case.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.to_ascii_lowercase(), name.to_ascii_lowercase());
        let mut parts = pattern.split('*');
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }

    /// How closely it says who is meant: a name more than any pattern, a longer pattern more than a shorter one.
    pub fn closeness(&self) -> (bool, usize) {
        (!self.0.contains('*'), self.0.len())
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)? {
            text if text.is_empty() => Err(serde::de::Error::custom("a name is not empty")),
            text => Ok(Self(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_unknown_ones_refused() {
        let pattern = Pattern::new("/srv/{account}/{repository}").expect("valid");
        assert_eq!(pattern.expand("acme", "acme", "voting-app"), "/srv/acme/voting-app");
        assert!(Pattern::new("/srv/{acount}").is_err());
    }

    #[test]
    fn a_star_stands_for_anything() {
        let table = [
            ("*", "acme", true),
            ("acme", "acme", true),
            ("acme", "acme2", false),
            ("acme-*", "acme-web", true),
            ("acme-*", "acme", false),
            ("*-internal", "acme-internal", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("ab*ba", "aba", false),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(NamePattern::new(pattern).matches(name), expected, "{pattern} {name}");
        }
    }
}
