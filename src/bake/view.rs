//! A view of a repository in which empty files stand for those that its definition names and it does not have.
//!
//! buildx wants to see the file of each secret even when it only prints a definition. No repository has that file, and the worker
//! replaces the secret by its own. The view is a tree of links to the worktree; its directories are those on the way to such a file.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::BakeError;
use crate::beneath::Directory;
use crate::state::{make_private, replace_link, write_private};

/// Entries of a directory that the view shows.
const MAX_ENTRIES: usize = 10_000;

/// Makes a view of the worktree at `view`, a path where nothing is yet: with a real directory `folder`, and with these files.
///
/// Paths start at the root of the worktree and have no `..`. A file where the worktree has a link or a file on the way is left
/// out.
pub(super) fn make(worktree: &Path, view: &Path, folder: &Path, files: &BTreeSet<PathBuf>) -> Result<(), BakeError> {
    let is_below = |file: &&PathBuf| file.file_name().is_some();
    let parents = files.iter().filter(is_below).filter_map(|file| file.parent());
    let directories: BTreeSet<&Path> = parents.chain([folder]).flat_map(Path::ancestors).collect();
    let root = Directory::open(worktree).map_err(|_| BakeError::Invalid("the repository cannot be read".into()))?;
    // In order, so that each comes after its parent.
    for directory in &directories {
        let path = view.join(directory);
        if path.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            continue;
        }
        make_private(&path)?;
        let entries = root.directory(directory).and_then(|directory| directory.entries(MAX_ENTRIES));
        for entry in entries.unwrap_or_default() {
            let below = directory.join(&entry.name);
            if !(directories.contains(below.as_path()) && entry.kind.is_dir()) {
                replace_link(&worktree.join(&below), &view.join(&below))?;
            }
        }
    }
    for file in files.iter().filter(is_below) {
        let path = view.join(file);
        let is_free = path.symlink_metadata().is_err() && path.parent().is_some_and(|parent| is_own(view, parent));
        if is_free {
            write_private(&path, b"")?;
        }
    }
    Ok(())
}

/// Whether a path below the view has no links.
fn is_own(view: &Path, path: &Path) -> bool {
    path.ancestors()
        .take_while(|path| *path != view)
        .all(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir()))
}

/// A path from the root of the worktree, without `.` and `..`; `None` when it leads out by its text.
pub(super) fn below(folder: &Path, path: &Path) -> Option<PathBuf> {
    folder.join(path).components().try_fold(PathBuf::new(), |mut below, part| match part {
        Component::Normal(name) => {
            below.push(name);
            Some(below)
        }
        Component::CurDir => Some(below),
        Component::ParentDir => below.pop().then_some(below),
        Component::RootDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_has_what_the_worktree_has_and_the_missing_files() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let (worktree, view) = (home.path().join("tree"), home.path().join("view"));
        for directory in ["deploy/web", "secrets", "other"] {
            std::fs::create_dir_all(worktree.join(directory)).expect("made");
        }
        for (file, text) in [("deploy/.env", "A=1"), ("deploy/web/x", "x"), ("secrets/known", "k"), ("file", "f")] {
            std::fs::write(worktree.join(file), text).expect("written");
        }
        std::os::unix::fs::symlink("other", worktree.join("linked")).expect("linked");
        let missing = ["secrets/npm", "deploy/new/token", "file/below", "linked/token"];
        make(&worktree, &view, Path::new("deploy"), &missing.map(PathBuf::from).into()).expect("made");

        for (file, text) in [("deploy/.env", "A=1"), ("deploy/web/x", "x"), ("secrets/known", "k"), ("file", "f")] {
            assert_eq!(std::fs::read_to_string(view.join(file)).expect(file), text, "{file}");
        }
        for file in ["secrets/npm", "deploy/new/token", "deploy/../secrets/npm"] {
            assert_eq!(std::fs::read_to_string(view.join(file)).expect(file), "", "{file}");
        }
        assert!(!view.join("linked/token").exists() && !worktree.join("other/token").exists());
        assert!(!worktree.join("secrets/npm").exists() && !worktree.join("deploy/new").exists());
    }

    #[test]
    fn a_path_does_not_lead_out() {
        let of = |path: &str| below(Path::new("deploy"), Path::new(path));
        assert_eq!(of("../secrets/./x"), Some("secrets/x".into()));
        assert_eq!((of("../../x"), of("/x")), (None, None));
    }
}
