//! The file that `--metadata-file` leaves: digests of what a successful bake pushed.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

/// Digest by target. Empty when the file is not there: buildx writes none when the bake failed.
pub(super) fn digests(path: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read(path).unwrap_or_default();
    let targets: Map<String, Value> = serde_json::from_slice(&text).unwrap_or_default();
    let digest = |(name, target): (String, Value)| {
        let digest = target.get("containerimage.digest")?.as_str()?.to_owned();
        Some((name, digest))
    };
    targets.into_iter().filter_map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_and_other_keys_skipped() {
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/buildx/0.29/success-push.metadata.json");
        let digests = digests(&fixture);
        assert_eq!(digests.keys().map(String::as_str).collect::<Vec<_>>(), ["api", "web", "worker"]);
        assert!(digests.values().all(|digest| digest.starts_with("sha256:")));
    }
}
