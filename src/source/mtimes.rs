//! Modification times from content: the same file has the same time in every build and on every worker.
//!
//! BuildKit's transfer of a context skips files with unchanged name, mode, size, owner and time. So two contents of one size must
//! have different times. An author who could compute times would find a collision in minutes, or make one for another
//! repository. So the hash has a key per account.

use std::fs::File;
use std::path::Path;

use git2::{Index, Oid};
use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::{AtFlags, Timespec, Timestamps, utimensat};
use sha2::{Digest, Sha256};

use super::attributes;
use super::request::Failed;
use crate::hex;
use crate::secret::Secret;

/// The second day of 1980, in seconds since 1970: ZIP cannot store earlier times, so tools that make wheels or jars would fail.
const FIRST_S: u128 = 315_619_200;
/// The end of 2024: in the past for every build. Tools loop on files from the future.
const LAST_S: u128 = 1_735_689_600;
const NANOS: u128 = 1_000_000_000;

/// The mode of a submodule, here an empty directory.
const SUBMODULE: u32 = 0o160000;

/// The key of one account's times: HMAC-SHA256 over the account's name, as 64 hexadecimal digits.
pub(super) fn account_key(key: &Secret, account: &str) -> Secret {
    let mut mac = keyed(key.expose().as_bytes());
    mac.update(b"sidebake mtimes v1 ");
    mac.update(account.as_bytes());
    Secret::new(hex::encode(mac.finalize().into_bytes()))
}

/// Sets the time of each file and link that was just written from `index` into `worktree`.
///
/// Directories keep their times, which BuildKit does not compare.
pub(super) fn set(worktree: &Path, index: &Index, account_key: &str) -> Result<(), Failed> {
    let directory = File::open(worktree).map_err(Failed::worker)?;
    let (keyed, attributes) = (keyed(account_key.as_bytes()), attributes_hash(index));
    for entry in index.iter().filter(|entry| entry.mode != SUBMODULE) {
        let time = time(keyed.clone(), &attributes, &entry.path, entry.id);
        let times = Timestamps { last_access: time, last_modification: time };
        // No directory in the path is a link: libgit2 has just created them all, and fails when a name is both.
        utimensat(&directory, entry.path.as_slice(), &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Failed::worker)?;
    }
    Ok(())
}

/// A time between [`FIRST_S`] and [`LAST_S`], of 2^60 possible ones.
fn time(mut mac: Hmac<Sha256>, attributes: &[u8], path: &[u8], blob: Oid) -> Timespec {
    // All but the last have a fixed length, so no part can be read as another.
    mac.update(attributes);
    mac.update(blob.as_bytes());
    mac.update(path);
    let mut number = [0; 16];
    number.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    let moment = u128::from_be_bytes(number) % ((LAST_S - FIRST_S) * NANOS);
    let bare = |number: u128| i64::try_from(number).expect("it is below 2^31");
    Timespec { tv_sec: bare(FIRST_S + moment / NANOS), tv_nsec: bare(moment % NANOS) }
}

/// A hash of all `.gitattributes` files: with `ident` or `eol` they change the file that a blob becomes.
fn attributes_hash(index: &Index) -> [u8; 32] {
    let mut hash = Sha256::new();
    for entry in attributes::files(index) {
        hash.update(entry.id.as_bytes());
        hash.update(&entry.path);
        hash.update([0]);
    }
    hash.finalize().into()
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("a key of any length will do")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn moment(account: &str, attributes: &[u8], path: &str, blob: &str) -> (i64, i64) {
        let key = account_key(&Secret::new("a key that every worker has"), account);
        let blob = Oid::hash_object(git2::ObjectType::Blob, blob.as_bytes()).expect("hashed");
        let time = time(keyed(key.expose().as_bytes()), attributes, path.as_bytes(), blob);
        (time.tv_sec, time.tv_nsec)
    }

    #[test]
    fn a_time_is_of_the_account_the_path_the_content_and_the_attributes() {
        let usual = moment("acme", b"", "app/main.rs", "fn main() {}");
        assert_eq!(usual, moment("acme", b"", "app/main.rs", "fn main() {}"));
        for other in [
            moment("umbrella", b"", "app/main.rs", "fn main() {}"),
            moment("acme", b"x", "app/main.rs", "fn main() {}"),
            moment("acme", b"", "app/main.r", "fn main() {}"),
            moment("acme", b"", "app/main.rs", "fn main() { }"),
        ] {
            assert_ne!(usual, other);
        }
    }

    #[test]
    fn times_are_past_and_spread_over_seconds_and_nanoseconds() {
        let moments: Vec<_> = (0..4000).map(|n| moment("acme", b"", "a", &n.to_string())).collect();
        let (first, last) = (FIRST_S as i64, LAST_S as i64);
        assert!(moments.iter().all(|(s, ns)| (first..last).contains(s) && (0..1_000_000_000).contains(ns)));
        // Of 4000 draws from 1.4 and 1.0 thousand million, a handful at most are drawn twice.
        let seconds: BTreeSet<_> = moments.iter().map(|(s, _)| s).collect();
        let nanos: BTreeSet<_> = moments.iter().map(|(_, ns)| ns).collect();
        assert!(seconds.len() > 3950 && nanos.len() > 3950, "{} {}", seconds.len(), nanos.len());
        let early = moments.iter().filter(|(s, _)| *s < (first + last) / 2).count();
        assert!((1700..2300).contains(&early), "{early} of 4000 in the first half");
    }
}
