//! Settings for thousands of accounts: text with placeholders such as `{account}`, and names with `*`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Placeholders of every pattern: every job has a value for them.
pub(super) const JOB_NAMES: &[&str] = &["account", "owner", "repository", "trust"];

/// Text with placeholders for what a job has: `{account}`, `{owner}`, `{repository}` and `{trust}`, and more where the
/// setting says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextPattern(String);

impl TextPattern {
    /// Takes the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The first placeholder that is neither every job's nor one of `more`.
    pub(super) fn unknown(&self, more: &[&str]) -> Option<&str> {
        let names = self.0.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or(rest));
        names.into_iter().find(|name| !JOB_NAMES.contains(name) && !more.contains(name))
    }

    /// Whether `{name}` is in it.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(&format!("{{{name}}}"))
    }

    /// The text with these values. The account, owner, repository and trust of a job contain no slash and are not `..`: the job
    /// is refused otherwise.
    pub fn expand(&self, names: &[(&str, &str)]) -> String {
        names.iter().fold(self.0.clone(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
    }
}

impl fmt::Display for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TextPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(deserializer)?))
    }
}

/// Names of accounts or repositories: text in which `*` matches anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamePattern(String);

impl NamePattern {
    /// Takes the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether the pattern matches. Case does not count, as in GitHub's names.
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

    /// Orders patterns: a name without `*` is more specific than any pattern, a longer pattern than a shorter one.
    pub fn specificity(&self) -> (bool, usize) {
        (!self.0.contains('*'), self.0.len())
    }

    /// The entry whose pattern matches the name most specifically.
    pub fn most_specific<'a, T>(entries: impl IntoIterator<Item = (&'a Self, T)>, name: &str) -> Option<(&'a Self, T)> {
        let matching = entries.into_iter().filter(|(pattern, _)| pattern.matches(name));
        matching.max_by_key(|(pattern, _)| pattern.specificity())
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NamePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)? {
            text if text.is_empty() => Err(serde::de::Error::custom("a name must not be empty")),
            text => Ok(Self(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_unknown_ones_refused() {
        let pattern = TextPattern::new("/srv/{account}/{repository}");
        assert_eq!(pattern.expand(&[("account", "acme"), ("repository", "voting-app")]), "/srv/acme/voting-app");
        assert_eq!(pattern.unknown(&[]), None);
        assert_eq!(TextPattern::new("/srv/{acount}").unknown(&["name"]), Some("acount"));
        assert_eq!(TextPattern::new("{account}/{name}").unknown(&["name"]), None);
        assert_eq!(TextPattern::new("{account").unknown(&[]), None, "plain text");
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
