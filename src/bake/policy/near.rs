//! The name that a path to nothing probably means: the same but for upper and lower case, or but for one edit.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;

use crate::beneath::Directory;

/// Entries of a directory that are compared.
const MAX_ENTRIES: usize = 2_000;

/// In a shorter name, one edit changes too much.
const MIN_EDITED: usize = 3;

/// A path below `root` that exists and is near to `path`, in each of its parts. A path without `..`.
pub(in crate::bake) fn near(root: &Directory, path: &Path, is_directory: bool) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else { return None };
        let is_last = parts.peek().is_none();
        let exact = found.join(name);
        if root.is_there(&exact) {
            found = exact;
            continue;
        }
        let wanted =
            |kind: FileType| kind == FileType::Symlink || (kind == FileType::Directory) == (is_directory || !is_last);
        found = found.join(near_entry(root, &found, name.to_str()?, wanted)?);
    }
    (found != path).then_some(found)
}

/// The nearest name in a directory. One that differs in case alone comes first.
fn near_entry(root: &Directory, folder: &Path, name: &str, wanted: impl Fn(FileType) -> bool) -> Option<String> {
    let folder = root.resolve(folder).ok()?;
    let entries = root.directory(&folder.path).and_then(|folder| folder.entries(MAX_ENTRIES)).ok()?;
    let names = entries.iter().filter(|entry| wanted(entry.kind)).map(|entry| &*entry.name).filter_map(OsStr::to_str);
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let same = names.iter().find(|other| other.to_lowercase() == name.to_lowercase());
    let is_edit = |other: &&&str| {
        let (one, other) = (name.to_lowercase(), other.to_lowercase());
        one.len().min(other.len()) >= MIN_EDITED && is_one_edit(&one, &other)
    };
    same.or_else(|| names.iter().find(is_edit)).map(|name| (*name).to_owned())
}

/// Whether one character is added, removed or replaced, or two neighbors are swapped.
fn is_one_edit(one: &str, other: &str) -> bool {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let n_same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let (one, other) = (&one[n_same..], &other[n_same..]);
    let is_swap =
        matches!((one, other), ([a, b, rest @ ..], [c, d, others @ ..]) if a == d && b == c && rest == others);
    match (one, other) {
        ([_, rest @ ..], others) if rest == others => true,
        (rest, [_, others @ ..]) if rest == others => true,
        ([_, rest @ ..], [_, others @ ..]) if rest == others => true,
        _ => is_swap,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_name_is_near_when_case_or_one_edit_differs() {
        let tree = tempfile::tempdir().expect("a temporary directory");
        for folder in ["web/src", "API", "ab", "apps/backend"] {
            fs::create_dir_all(tree.path().join(folder)).expect("made");
        }
        for file in ["web/Dockerfile.prod", "web/dockerfile", "backend"] {
            fs::write(tree.path().join(file), "").expect("written");
        }
        std::os::unix::fs::symlink("web", tree.path().join("site")).expect("linked");
        let root = Directory::open(tree.path()).expect("opened");
        let near = |path: &str, is_directory| near(&root, Path::new(path), is_directory);
        for (path, expected) in [
            ("Web", Some("web")),
            ("api", Some("API")),
            ("wbe", Some("web")),
            ("weeb", Some("web")),
            ("we", None),
            ("ac", None),
            ("Web/SRC", Some("web/src")),
            ("site/scr", Some("site/src")),
            ("apps/backnd", Some("apps/backend")),
            ("backen", None),
            ("other", None),
        ] {
            assert_eq!(near(path, true), expected.map(PathBuf::from), "{path}");
        }
        assert_eq!(near("web/Dockerfile.prd", false), Some("web/Dockerfile.prod".into()));
        assert_eq!(near("Web/Dockerfle", false), Some("web/dockerfile".into()));
        assert_eq!(near("web/Dockerfile.staging", false), None);
    }
}
