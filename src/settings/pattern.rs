//! Settings for thousands of accounts: text with `{account}` and `{repository}` in it.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_unknown_ones_refused() {
        let pattern = Pattern::new("/srv/{account}/{repository}").expect("valid");
        assert_eq!(pattern.expand("acme", "acme", "voting-app"), "/srv/acme/voting-app");
        assert!(Pattern::new("/srv/{acount}").is_err());
    }
}
