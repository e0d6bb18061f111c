//! A view of a repository in which empty files stand for those that its definition names and it does not have.
//!
//! buildx wants to see the file of each secret even when it only prints a definition. No repository has that file, and the worker
//! replaces the secret by its own. The view is a tree of links to the worktree; its directories are those on the way to such a file.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use super::BakeError;
use crate::beneath::Directory;
use crate::state::{StateError, make_private, replace_link, write_private};

/// Entries of all its directories that the view shows.
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
    let mut n_left = MAX_ENTRIES;
    make_private(view)?;
    // In order, so that each comes after its parent.
    for directory in &directories {
        let path = view.join(directory);
        // What lies behind a link is not the view's.
        if path != view && !(path.parent().is_some_and(|parent| is_own(view, parent)) && make_one(&path)?) {
            continue;
        }
        // A directory that the worktree does not have has no entries.
        let Ok(found) = root.directory(directory) else { continue };
        let entries = found.entries(n_left).unwrap_or_default();
        if entries.len() > n_left {
            let what = format!("the directories of files of secrets have more than {MAX_ENTRIES} entries");
            return Err(BakeError::Invalid(what));
        }
        n_left -= entries.len();
        for entry in entries {
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

/// Makes a directory. Returns whether there is one: not where there is a file or a link.
fn make_one(path: &Path) -> Result<bool, StateError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Ok(path.symlink_metadata().is_ok_and(|found| found.is_dir()))
        }
        made => made.map(|()| true).map_err(|source| StateError::new(path, source)),
    }
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
    fn nothing_is_made_behind_a_link() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let (worktree, view) = (home.path().join("tree"), home.path().join("view"));
        std::fs::create_dir_all(worktree.join("secrets")).expect("made");
        std::fs::create_dir_all(home.path().join("other/0")).expect("made");
        for (link, to) in [("dangling", "/nowhere/at/all"), ("out", "../other"), ("secrets/inner", "../../other/0")] {
            std::os::unix::fs::symlink(to, worktree.join(link)).expect("linked");
        }
        let missing = ["dangling/npm/token", "dangling/a/b/c", "out/8/a/token", "out/0/token", "secrets/inner/x/y"];
        make(&worktree, &view, Path::new(""), &missing.map(PathBuf::from).into()).expect("made");
        for (directory, n_entries) in [("other", 1), ("other/0", 0)] {
            let found = std::fs::read_dir(home.path().join(directory)).expect("read").count();
            assert_eq!(found, n_entries, "{directory}");
        }
        assert!(!Path::new("/nowhere").exists());
    }

    #[test]
    fn a_view_of_very_many_entries_is_refused() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let worktree = home.path().join("tree");
        for directory in ["a", "a/b"] {
            std::fs::create_dir_all(worktree.join(directory)).expect("made");
            for n in 0..MAX_ENTRIES / 2 {
                std::fs::write(worktree.join(directory).join(n.to_string()), "").expect("written");
            }
        }
        let made = make(&worktree, &home.path().join("view"), Path::new(""), &[PathBuf::from("a/b/token")].into());
        assert!(made.expect_err("refused").to_string().contains("10000 entries"));
    }

    #[test]
    fn a_path_does_not_lead_out() {
        let of = |path: &str| below(Path::new("deploy"), Path::new(path));
        assert_eq!(of("../secrets/./x"), Some("secrets/x".into()));
        assert_eq!((of("../../x"), of("/x")), (None, None));
    }
}
