//! Which files differ between two commits of a mirror.

use std::cmp::Ordering;

use git2::{ObjectType, Oid, Repository, Tree, TreeEntry};

use super::submodules;
use crate::cache::{Change, Changes};

/// The most files that are listed for one older commit, and the bytes of their paths. The lists of all of them are one line to the worker,
/// which reads a bounded number of values in it.
pub(super) const MAX_PATHS: usize = 500;
const MAX_BYTES: usize = 64 << 10;

/// The most entries that are compared.
const MAX_ENTRIES: usize = 200_000;

/// The most links that are listed, and the bytes of their paths.
pub(super) const MAX_LINKS: usize = 500;
const MAX_LINK_BYTES: usize = 32 << 10;

/// The type and mode of a link.
const LINK: u32 = 0o120000;

/// How a commit differs from an older one; `None` when the mirror does not have the older one's whole tree.
pub(super) fn since(repository: &Repository, older: &str, commit: Oid) -> Option<Changes> {
    let tree = |commit: Oid| repository.find_commit(commit).and_then(|commit| commit.tree()).ok();
    let (old, new) = (tree(Oid::from_str(older).ok()?)?, tree(commit)?);
    let mut walk = ChangeWalk {
        repository,
        changes: Changes { since: older.to_owned(), paths: Vec::new(), is_complete: true },
        n_bytes: 0,
        n_entries: 0,
    };
    walk.trees(Some(&old), Some(&new), "")?;
    Some(walk.changes)
}

/// Adds that the `.git` of the worktree differs: it has another commit.
pub(super) fn with_git_dir(mut changes: Changes, commit: Oid) -> Changes {
    if changes.since != commit.to_string() {
        changes.is_complete &= changes.paths.len() < MAX_PATHS;
        changes.paths.truncate(MAX_PATHS - 1);
        changes.paths.insert(0, Change { path: ".git/HEAD".into(), is_removed: false, is_special: false });
    }
    changes
}

/// The symbolic links of a commit; `None` when there are too many, or one has a name that is not UTF-8.
pub(super) fn links(index: &git2::Index) -> Option<Vec<String>> {
    let mut links = Vec::new();
    let mut n_bytes = 0;
    for entry in index.iter().filter(|entry| entry.mode & 0o170000 == LINK) {
        n_bytes += entry.path.len();
        links.push(String::from_utf8(entry.path).ok()?);
        if links.len() > MAX_LINKS || n_bytes > MAX_LINK_BYTES {
            return None;
        }
    }
    Some(links)
}

struct ChangeWalk<'a> {
    repository: &'a Repository,
    changes: Changes,
    n_bytes: usize,
    n_entries: usize,
}

impl ChangeWalk<'_> {
    /// Compares two directories by their names, and goes only into those that differ. `None` when an object is missing.
    fn trees(&mut self, old: Option<&Tree<'_>>, new: Option<&Tree<'_>>, folder: &str) -> Option<()> {
        let entries = |tree: Option<&Tree<'_>>| -> Vec<_> {
            let mut all: Vec<_> = tree.iter().flat_map(|tree| tree.iter().map(|entry| entry.to_owned())).collect();
            all.sort_by(|one, other| one.name_bytes().cmp(other.name_bytes()));
            all
        };
        let (old, new) = (entries(old), entries(new));
        self.n_entries += old.len() + new.len();
        self.changes.is_complete &= self.n_entries <= MAX_ENTRIES;
        let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
        while self.changes.is_complete {
            let order = match (olds.peek(), news.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.name_bytes().cmp(new.name_bytes()),
            };
            let old = if order.is_le() { olds.next() } else { None };
            let new = if order.is_ge() { news.next() } else { None };
            self.entry(old, new, folder)?;
        }
        Some(())
    }

    fn entry(&mut self, old: Option<&TreeEntry<'_>>, new: Option<&TreeEntry<'_>>, folder: &str) -> Option<()> {
        let is_same = |old: &TreeEntry<'_>, new: &TreeEntry<'_>| old.id() == new.id() && mode(old) == mode(new);
        if old.zip(new).is_some_and(|(old, new)| is_same(old, new)) {
            return Some(());
        }
        let Ok(name) = std::str::from_utf8(old.or(new)?.name_bytes()) else {
            self.changes.is_complete = false;
            return Some(());
        };
        let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let repository = self.repository;
        let tree = |entry: Option<&TreeEntry<'_>>| match entry.filter(|entry| is_tree(entry)) {
            Some(entry) => repository.find_tree(entry.id()).map(Some).ok(),
            None => Some(None),
        };
        let (old_tree, new_tree) = (tree(old)?, tree(new)?);
        if old_tree.is_some() || new_tree.is_some() {
            self.trees(old_tree.as_ref(), new_tree.as_ref(), &path)?;
        }
        let files = [old, new].map(|entry| entry.filter(|entry| !is_tree(entry)));
        if files.iter().any(Option::is_some) {
            let is_special = files.iter().flatten().any(|entry| [LINK, submodules::MODE].contains(&mode(entry)));
            self.add(Change { path, is_removed: new.is_none(), is_special });
        }
        Some(())
    }

    fn add(&mut self, change: Change) {
        self.n_bytes += change.path.len();
        if self.changes.paths.len() == MAX_PATHS || self.n_bytes > MAX_BYTES {
            self.changes.is_complete = false;
        } else {
            self.changes.paths.push(change);
        }
    }
}

fn is_tree(entry: &TreeEntry<'_>) -> bool {
    entry.kind() == Some(ObjectType::Tree)
}

/// The mode as git writes the file: old programs wrote more modes into trees.
fn mode(entry: &TreeEntry<'_>) -> u32 {
    match u32::try_from(entry.filemode()).unwrap_or_default() {
        mode if mode & 0o170000 == 0o100000 => {
            if mode & 0o100 == 0 {
                0o100644
            } else {
                0o100755
            }
        }
        mode => mode & 0o170000,
    }
}

#[cfg(test)]
mod tests {
    use world::{File, GitHost};

    use super::*;

    /// The changes between two commits, as `path`, `-path` for a removed one and `@path` for a link.
    fn changed(before: &[File], after: &[File]) -> (Vec<String>, bool) {
        let host = GitHost::open();
        let repository = host.repository("acme/app");
        let older = repository.commit_with("main", before);
        let newer = repository.commit_with("main", after);
        let mirror = Repository::open(host.root().join("acme/app.git")).expect("a repository");
        let changes = since(&mirror, &older, Oid::from_str(&newer).expect("a sha")).expect("both are there");
        let shown = |change: &Change| {
            let mark = if change.is_special {
                "@"
            } else if change.is_removed {
                "-"
            } else {
                ""
            };
            format!("{mark}{}", change.path)
        };
        (changes.paths.iter().map(shown).collect(), changes.is_complete)
    }

    #[test]
    fn only_what_differs_is_listed_in_order() {
        let before = [File::new("a/b/c", "1"), File::new("a/d", "1"), File::new("z", "1"), File::symlink("l", "z")];
        let after = [File::new("a/b/c", "2"), File::new("new/x", "1"), File::symlink("l", "a/d")];
        assert_eq!(changed(&before, &after), (vec!["a/b/c".into(), "@l".into(), "new/x".into()], true));
        assert_eq!(changed(&before, &[]).0, Vec::<String>::new());
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let files: Vec<File> = (0..=MAX_PATHS).map(|n| File::new(&format!("f{n:05}"), "x")).collect();
        let (paths, is_complete) = changed(&[File::new("a", "x")], &files);
        assert_eq!((paths.len(), is_complete), (MAX_PATHS, false));
    }

    #[test]
    fn a_commit_that_is_not_there_has_no_changes() {
        let host = GitHost::open();
        let sha = host.repository("acme/app").commit(&[("a", "1")]);
        let mirror = Repository::open(host.root().join("acme/app.git")).expect("a repository");
        let commit = Oid::from_str(&sha).expect("a sha");
        assert_eq!(since(&mirror, &"1".repeat(40), commit), None);
        assert_eq!(since(&mirror, "no sha", commit), None);
    }
}
