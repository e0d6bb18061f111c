//! The `.gitattributes` files of a commit, as listed in its index.

use git2::{Index, IndexEntry, Repository};

use super::submodules;

/// Their entries.
pub(super) fn files(index: &Index) -> impl Iterator<Item = IndexEntry> {
    index.iter().filter(is_named_so)
}

/// Whether an entry is one of them. Other files whose names end the same way also match: that costs time and changes nothing.
pub(super) fn is_named_so(entry: &IndexEntry) -> bool {
    entry.path.ends_with(b".gitattributes")
}

/// Whether any of them contains one of the words, anywhere.
pub(super) fn mention(repository: &Repository, index: &Index, words: &[&str]) -> Result<bool, git2::Error> {
    for entry in files(index).filter(|entry| !submodules::is_one(entry)) {
        let blob = repository.find_blob(entry.id)?;
        let has = |word: &&str| blob.content().windows(word.len()).any(|part| part == word.as_bytes());
        if words.iter().any(has) {
            return Ok(true);
        }
    }
    Ok(false)
}
