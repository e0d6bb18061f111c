//! The key of an archived log: `ACCOUNT/OWNER/REPOSITORY/ID/JID.ATTEMPT`, below the archive's prefix.
//!
//! `ID` is the `build_id`, or else the jid. A run after an interruption or a recovery has a number of its own: `JID.1-2`. Each part is
//! made of letters, digits, `.`, `_` and `-`. Any other byte is written as `=` and two hexadecimal digits. So no text of a stranger
//! adds a part, leaves the prefix or equals another one.

use std::fmt;

use sha2::{Digest, Sha256};

use super::RunOf;
use crate::hex;

/// A longer part is cut, and its hash follows: a file name has at most 255 bytes, a key 1024.
const MAX_PART: usize = 180;

/// Bytes of the hash of a part that was cut.
const HASH_BYTES: usize = 16;

/// In place of account and repository, for a build that ended before they were known. No encoded part equals it.
const UNKNOWN: &str = "=unknown";

#[derive(Clone, Debug)]
pub(super) struct ObjectKey {
    run: RunOf,
    build_id: Option<String>,
    repository: String,
}

impl ObjectKey {
    pub(super) fn new(run: RunOf) -> Self {
        Self { run, build_id: None, repository: UNKNOWN.into() }
    }

    pub(super) fn name_build(&mut self, id: &str) {
        self.build_id = Some(part(id));
    }

    /// The repository is `owner/name`.
    pub(super) fn name_repository(&mut self, account: &str, repository: &str) {
        let (owner, name) = repository.split_once('/').unwrap_or(("", repository));
        self.repository = [account, owner, name].map(part).join("/");
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RunOf { jid, attempt, n_earlier_runs } = &self.run;
        let jid = part(jid);
        let id = self.build_id.as_ref().unwrap_or(&jid);
        write!(f, "{}/{id}/{jid}.{attempt}", self.repository)?;
        if *n_earlier_runs > 0 {
            write!(f, "-{}", n_earlier_runs + 1)?;
        }
        Ok(())
    }
}

/// A text as one part of a key.
fn part(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    // `.` and `..` are directories, and an empty part is none.
    let is_dots = text.bytes().all(|byte| byte == b'.');
    let mut part = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            byte if is_plain(byte) && !is_dots => part.push(char::from(byte)),
            byte => part.push_str(&format!("={byte:02X}")),
        }
    }
    if part.is_empty() {
        return "=".into();
    }
    if part.len() > MAX_PART {
        let hash = Sha256::digest(text);
        part.truncate(MAX_PART - 2 * HASH_BYTES - 2);
        part = format!("{part}=-{}", hex::encode(&hash[..HASH_BYTES]));
    }
    part
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn key(n_earlier_runs: u32) -> ObjectKey {
        ObjectKey::new(RunOf { jid: "a1b2".into(), attempt: 2, n_earlier_runs })
    }

    #[test]
    fn a_key_names_account_repository_build_job_and_run() {
        let mut of_build = key(0);
        of_build.name_build("42");
        of_build.name_repository("acme", "acme/voting-app");
        assert_eq!(of_build.to_string(), "acme/acme/voting-app/42/a1b2.2");
        assert_eq!(key(2).to_string(), "=unknown/a1b2/a1b2.2-3");
    }

    #[test]
    fn no_text_leaves_its_part_or_equals_another() {
        let long = "x".repeat(300);
        let texts = ["", ".", "..", "...", "=", "a/b", "a=2Fb", "../../x", "é", "a b", "\0", &long, &long[1..]];
        let parts: HashSet<String> = texts.iter().map(|text| part(text)).collect();
        assert_eq!(parts.len(), texts.len(), "{parts:?}");
    }

    proptest! {
        #[test]
        fn every_part_is_a_short_plain_name(text in any::<String>()) {
            let part = part(&text);
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-=".contains(&byte);
            prop_assert!(part.bytes().all(is_plain) && (1..=MAX_PART).contains(&part.len()), "{part}");
            prop_assert!(part.bytes().any(|byte| byte != b'.'), "{part}");
        }
    }
}
