//! Writes a commit's files into a new directory, as the git command would.

use std::fs;
use std::path::Path;

use git2::build::CheckoutBuilder;
use git2::{ErrorClass, Index, Oid, Repository};

use super::attributes;
use super::request::{Failed, Fault};

/// Checks `commit` out into `worktree`, which must not exist yet, and returns the index of what was written. There is no
/// `.git` in it.
///
/// The work tree is set on the handle only and the index, in memory, is filled first: the one recipe that honours
/// `.gitattributes` and submodule entries as git does, refuses names that git forbids before a file exists, and writes
/// nothing into the mirror. A reused directory would be a way out of it (libgit2 follows symlinks that lie there).
pub(super) fn write(repository: &Repository, commit: Oid, worktree: &Path) -> Result<Index, Failed> {
    fs::create_dir(worktree).map_err(Failed::worker)?;
    write_files(repository, commit, worktree).map_err(|error| {
        let fault = match error.class() {
            ErrorClass::Os | ErrorClass::Filesystem => Fault::Worker,
            ErrorClass::Odb | ErrorClass::Object | ErrorClass::Zlib => Fault::Damaged,
            _ => Fault::Refused,
        };
        Failed::new(fault, error.message())
    })
}

fn write_files(repository: &Repository, commit: Oid, worktree: &Path) -> Result<Index, git2::Error> {
    repository.set_workdir(worktree, false)?;
    let tree = repository.find_commit(commit)?.tree()?;
    let mut index = Index::new()?;
    index.read_tree(&tree)?;
    repository.set_index(&mut index)?;
    let mut options = CheckoutBuilder::new();
    options.force().update_index(false).refresh(false).disable_filters(!has_filters(repository, &index)?);
    repository.checkout_tree(tree.as_object(), Some(&mut options))?;
    Ok(index)
}

/// Whether any `.gitattributes` may change what is written. Where none does, each file's attributes need not be looked for,
/// which takes libgit2 longer than writing it.
///
/// Of all attributes it heeds `eol`, `crlf` and `ident` only, as the machine's configuration is not read and lines end here
/// as they do in git (`text` alone says nothing then). A word that only looks like one of them costs time and nothing else.
fn has_filters(repository: &Repository, index: &Index) -> Result<bool, git2::Error> {
    attributes::mention(repository, index, &["eol", "crlf", "ident"])
}
