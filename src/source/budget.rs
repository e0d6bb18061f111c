//! Walks a commit's tree before any of it is written: checks that it is complete and within the limits.

use std::collections::HashSet;

use git2::{ErrorCode, ObjectType, Odb, Oid, Repository};

use super::Size;
use super::request::{CheckoutLimits, Failed, Fault};
use crate::text;

/// The deepest nesting of directories.
const MAX_DEPTH: usize = 200;
/// The longest path, in bytes: below the kernel's limit, with room for the worktree's own path.
const MAX_PATH: usize = 3000;
/// The longest name, in bytes, on Linux file systems (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// The result of a walk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Everything is there; its size.
    Complete(Size),
    /// Something is missing.
    Missing,
}

/// Walks the tree of `commit`, in about 5 µs per entry.
///
/// # Errors
///
/// `Refused` when a limit is exceeded (a small pack can hold a tree of 10¹⁰ files), or when a directory has a duplicate name or
/// one with a slash. `Damaged` when the objects are not a commit or a tree.
pub(super) fn walk(repository: &Repository, commit: Oid, limits: CheckoutLimits) -> Result<Verdict, Failed> {
    let tree = match repository.find_commit(commit).and_then(|commit| commit.tree()) {
        Ok(tree) => tree,
        Err(error) if error.code() == ErrorCode::NotFound => return Ok(Verdict::Missing),
        Err(error) => return Err(damaged("the commit", &error)),
    };
    let odb = repository.odb().map_err(Failed::worker)?;
    let mut walk = TreeWalk { repository, odb, limits, size: Size::default() };
    Ok(if walk.tree(&tree, 0, 0)? { Verdict::Complete(walk.size) } else { Verdict::Missing })
}

fn damaged(what: &str, error: &git2::Error) -> Failed {
    Failed::new(Fault::Damaged, format!("{what} cannot be read: {}", error.message()))
}

struct TreeWalk<'a> {
    repository: &'a Repository,
    odb: Odb<'a>,
    limits: CheckoutLimits,
    size: Size,
}

impl TreeWalk<'_> {
    /// Whether the whole tree is there.
    fn tree(&mut self, tree: &git2::Tree<'_>, depth: usize, path_length: usize) -> Result<bool, Failed> {
        let refused = |what: String| Err(Failed::new(Fault::Refused, what));
        if depth > MAX_DEPTH {
            return refused(format!("directories are nested more than {MAX_DEPTH} levels deep"));
        }
        let mut names = HashSet::new();
        for entry in tree {
            self.size.n_entries += 1;
            if self.limits.taken.n_entries.saturating_add(self.size.n_entries) > self.limits.max_entries {
                return refused(format!(
                    "the commit{} has more than {} files and directories",
                    self.others(),
                    self.limits.max_entries
                ));
            }
            // Both could make git write the files of a directory through a link.
            let name = String::from_utf8_lossy(entry.name_bytes());
            if name.contains('/') {
                return refused(format!("the file name {name:?} contains a slash"));
            }
            if !names.insert(entry.name_bytes().to_vec()) {
                return refused(format!("a directory has two entries named {name:?}"));
            }
            if entry.name_bytes().len() > MAX_NAME {
                return refused(format!("the file name {:?} is longer than {MAX_NAME} bytes", text::clip(&name, 40)));
            }
            let length = path_length + 1 + entry.name_bytes().len();
            if length > MAX_PATH {
                return refused(format!("a path is longer than {MAX_PATH} bytes"));
            }
            let is_complete = match entry.kind() {
                Some(ObjectType::Tree) => match self.repository.find_tree(entry.id()) {
                    Ok(subtree) => self.tree(&subtree, depth + 1, length)?,
                    Err(error) if error.code() == ErrorCode::NotFound => false,
                    Err(error) => return Err(damaged(&format!("the directory {name:?}"), &error)),
                },
                Some(ObjectType::Blob) => self.blob(entry.id(), &name)?,
                // A submodule: an empty directory.
                _ => true,
            };
            if !is_complete {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn blob(&mut self, id: Oid, name: &str) -> Result<bool, Failed> {
        let Ok((size, _)) = self.odb.read_header(id) else { return Ok(false) };
        let size = size as u64;
        self.size.n_bytes += size;
        if size > self.limits.max_file_bytes {
            let limit = self.limits.max_file_bytes;
            return Err(Failed::new(Fault::Refused, format!("the file {name:?} is larger than {limit} bytes")));
        }
        if self.limits.taken.n_bytes.saturating_add(self.size.n_bytes) > self.limits.max_tree_bytes {
            let limit = self.limits.max_tree_bytes;
            return Err(Failed::new(
                Fault::Refused,
                format!("the files of the commit{} are larger than {limit} bytes", self.others()),
            ));
        }
        Ok(true)
    }

    /// Mentions the build's other commits when they count too.
    fn others(&self) -> &'static str {
        if self.limits.taken == Size::default() { "" } else { ", together with the build's other commits," }
    }
}
