//! The files named `.gitattributes` in a commit, as its index has them.

use git2::{Index, IndexEntry, Repository};

use super::submodules;

/// Their entries.
pub(super) fn files(index: &Index) -> impl Iterator<Item = IndexEntry> {
    index.iter().filter(is_named_so)
}

/// Whether an entry is one of them. Others whose names only end like that are taken for some: they cost time and change
/// nothing.
pub(super) fn is_named_so(entry: &IndexEntry) -> bool {
    entry.path.ends_with(b".gitattributes")
}

/// Whether any of them has one of the words, wherever it stands.
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
