//! The file that `--metadata-file` leaves: digests of what a successful bake pushed.
//!
//! docker-buildx writes it, so its content is not trusted: only a regular file of bounded size is read, and only valid digests
//! are accepted.

use std::collections::BTreeMap;
use std::path::Path;

use crate::beneath::Directory;
use crate::{bounds, json};

/// Digests by target, from the file of this name in the run's directory. Empty when there is no file: buildx writes none
/// after a failure. Only the digest of each target is read.
pub(super) fn digests(private: &Path, name: &str, is_target: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let read = || Directory::open(private)?.read(Path::new(name), bounds::METADATA);
    let text = match read() {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, event = "metadata_refused", "metadata file of docker-buildx was not read");
            return BTreeMap::new();
        }
        text => String::from_utf8(text.unwrap_or_default()).unwrap_or_default(),
    };
    if json::is_json(&text).is_err() {
        return BTreeMap::new();
    }
    let targets = json::fields(&text).filter(|(name, _)| is_target(name));
    targets.filter_map(|(name, target)| Some((name.into_owned(), digest(target)?))).collect()
}

fn digest(target: &str) -> Option<String> {
    let (_, digest) = json::fields(target).filter(|(name, _)| name == "containerimage.digest").last()?;
    // A digest has no escapes.
    digest.strip_prefix('"')?.strip_suffix('"').filter(|digest| is_digest(digest)).map(str::to_owned)
}

fn is_digest(text: &str) -> bool {
    let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    text.strip_prefix("sha256:").is_some_and(|hash| hash.len() == 64 && hash.bytes().all(is_hex))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/buildx/0.29/success-push.metadata.json");

    #[test]
    fn digests_are_read_and_other_keys_skipped() {
        let path = Path::new(FIXTURE);
        let digests = digests(path.parent().expect("a directory"), "success-push.metadata.json", |name| name != "web");
        assert_eq!(digests.keys().map(String::as_str).collect::<Vec<_>>(), ["api", "worker"]);
        assert!(digests.values().all(|digest| digest.starts_with("sha256:")));
    }

    #[test]
    fn a_file_that_was_made_to_hurt_has_no_digest() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| home.path().join(name);
        symlink("/dev/zero", path("zero")).expect("linked");
        symlink(FIXTURE, path("link")).expect("linked");
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("made");
        fs::create_dir(path("directory")).expect("made");
        File::create(path("sparse")).and_then(|file| file.set_len(1 << 40)).expect("made");
        fs::write(path("deep"), "[".repeat(1 << 20)).expect("written");
        let forged = r#"{"a": {"containerimage.digest": "sha256:abc"}, "b": {"containerimage.digest": 1}, "c": []}"#;
        fs::write(path("forged"), forged).expect("written");
        fs::write(path("text"), [&br#"{"a": ""#[..], &[0xff], b"\"}"].concat()).expect("written");
        for name in ["zero", "link", "fifo", "directory", "sparse", "deep", "forged", "none", "text"] {
            assert_eq!(digests(home.path(), name, |_| true), BTreeMap::new(), "{name}");
        }
    }
}
