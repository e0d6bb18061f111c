//! The `.git` of a worktree: one commit without its history, for programs in a build that ask git which version they build.
//!
//! It is a function of the commit, the job's branch and the commit's tags, so equal builds get equal files. It has no remote, no
//! token, no hooks and no more configuration than git needs. Follows gitrepository-layout(5).

use std::fs;
use std::path::Path;

use git2::{Index, Oid, Repository};

use super::Size;
use super::checkout::canonical;
use super::fetch::Tag;
use super::request::{CheckoutLimits, Failed, Fault};

/// The name of the directory.
pub(super) const NAME: &str = ".git";

const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n";

/// Writes it into the worktree of a commit, whose files are in `index`. Returns the size of the commit together with it.
///
/// # Errors
///
/// `Refused` when it exceeds the limit of the files. `Damaged` when the mirror is.
pub(super) fn write(
    repository: &Repository,
    commit: Oid,
    branch: Option<&str>,
    tags: &[Tag],
    (index, worktree): (&Index, &Path),
    (size, limits): (Size, CheckoutLimits),
) -> Result<Size, Failed> {
    let directory = worktree.join(NAME);
    let is_shallow = repository.find_commit(commit).map_err(Failed::worker)?.parent_count() > 0;
    let head = branch.map_or_else(|| format!("{commit}\n"), |branch| format!("ref: refs/heads/{branch}\n"));
    let files = [
        ("config", CONFIG.to_owned()),
        ("HEAD", head),
        ("packed-refs", references(commit, branch, tags)),
        // At this commit the history is cut.
        ("shallow", if is_shallow { format!("{commit}\n") } else { String::new() }),
    ];
    for folder in ["refs", "objects/pack", "objects/info"] {
        fs::create_dir_all(directory.join(folder)).map_err(Failed::worker)?;
    }
    for (name, text) in files.iter().filter(|(_, text)| !text.is_empty()) {
        fs::write(directory.join(name), text).map_err(Failed::worker)?;
    }
    write_pack(repository, commit, tags, &directory).map_err(|error| Failed::of_objects(&error))?;
    write_index(index, &directory).map_err(|error| Failed::of_git(&error, Fault::Worker))?;
    let own = size_of(&directory).map_err(Failed::worker)?;
    let all = Size { n_entries: size.n_entries + own.n_entries, n_bytes: size.n_bytes + own.n_bytes };
    if limits.taken.n_bytes.saturating_add(all.n_bytes) > limits.max_tree_bytes {
        let limit = limits.max_tree_bytes;
        return Err(Failed::new(
            Fault::Refused,
            format!("the files of the commit and its .git are larger than {limit} bytes"),
        ));
    }
    Ok(all)
}

/// The text of `packed-refs`, sorted by name as its header says.
fn references(commit: Oid, branch: Option<&str>, tags: &[Tag]) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    for Tag { name, oid } in tags {
        let peeled = if *oid == commit { String::new() } else { format!("^{commit}\n") };
        lines.push((name.clone(), format!("{oid} {name}\n{peeled}")));
    }
    if let Some(branch) = branch {
        let name = format!("refs/heads/{branch}");
        lines.push((name.clone(), format!("{commit} {name}\n")));
    }
    lines.sort();
    let text: String = lines.into_iter().map(|(_, line)| line).collect();
    if text.is_empty() { text } else { format!("# pack-refs with: peeled fully-peeled sorted \n{text}") }
}

fn write_pack(repository: &Repository, commit: Oid, tags: &[Tag], directory: &Path) -> Result<(), git2::Error> {
    let mut pack = repository.packbuilder()?;
    // With several threads, the pack would differ from one build to the next.
    pack.set_threads(1);
    pack.insert_commit(commit)?;
    for tag in tags.iter().filter(|tag| tag.oid != commit) {
        insert_tag(repository, &mut pack, tag.oid)?;
    }
    pack.write(&directory.join("objects/pack"), 0o444)
}

/// A tag may point to another tag.
fn insert_tag(repository: &Repository, pack: &mut git2::PackBuilder<'_>, tag: Oid) -> Result<(), git2::Error> {
    let mut next = Some(tag);
    while let Some(tag) = next.and_then(|oid| repository.find_tag(oid).ok()) {
        pack.insert_object(tag.id(), None)?;
        next = Some(tag.target_id());
    }
    Ok(())
}

/// An index without the times and sizes of files: git compares their content, wherever they were copied to.
fn write_index(index: &Index, directory: &Path) -> Result<(), git2::Error> {
    let mut written = Index::open(&directory.join("index"))?;
    index.iter().map(canonical).try_for_each(|entry| written.add(&entry))?;
    written.write()
}

fn size_of(directory: &Path) -> std::io::Result<Size> {
    let mut size = Size { n_entries: 1, n_bytes: 0 };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let inner =
            if metadata.is_dir() { size_of(&entry.path())? } else { Size { n_entries: 1, n_bytes: metadata.len() } };
        size = Size { n_entries: size.n_entries + inner.n_entries, n_bytes: size.n_bytes + inner.n_bytes };
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use git2::{IndexEntry, IndexTime, RepositoryInitOptions, Signature};
    use tempfile::TempDir;

    use super::*;
    use crate::settings::Source;

    /// A mirror with a commit of one file.
    fn mirror() -> (TempDir, Repository, Oid, Index) {
        let directory = tempfile::tempdir().expect("a directory");
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        let repository = Repository::init_opts(directory.path().join("mirror"), &options).expect("a mirror");
        let text: String = (0..10_000).map(|n| format!("{n}\n")).collect();
        let id = repository.blob(text.as_bytes()).expect("written");
        let time = IndexTime::new(0, 0);
        let entry = IndexEntry {
            ctime: time,
            mtime: time,
            dev: 0,
            ino: 0,
            mode: 0o100644,
            uid: 0,
            gid: 0,
            file_size: 0,
            id,
            flags: 0,
            flags_extended: 0,
            path: b"file".into(),
        };
        let mut index = Index::new().expect("an index");
        index.add(&entry).expect("added");
        let tree = index.write_tree_to(&repository).expect("a tree");
        let author = Signature::now("test", "test@localhost").expect("a name");
        let tree = repository.find_tree(tree).expect("a tree");
        let commit = repository.commit(None, &author, &author, "test", &tree, &[]).expect("a commit");
        drop(tree);
        (directory, repository, commit, index)
    }

    /// The file of a loose object.
    fn path_of(repository: &Repository, id: Oid) -> PathBuf {
        let id = id.to_string();
        repository.path().join("objects").join(&id[..2]).join(&id[2..])
    }

    #[test]
    fn a_damaged_mirror_is_told_from_a_failure_of_the_machine() {
        let (directory, repository, commit, index) = mirror();
        let object = path_of(&repository, index.get(0).expect("a file").id);
        let whole = fs::read(&object).expect("an object");
        let written = |name: &str| {
            let worktree = directory.path().join(name);
            fs::create_dir(&worktree).expect("made");
            // Another handle keeps nothing of the object.
            let repository = Repository::open_bare(repository.path()).expect("a mirror");
            let sizes = (Size::default(), CheckoutLimits::from(&Source::default()));
            write(&repository, commit, None, &[], (&index, &worktree), sizes).map(drop).map_err(|failed| failed.fault)
        };
        assert_eq!(written("whole"), Ok(()));
        fs::remove_file(&object).expect("removed");
        fs::write(&object, [&whole[..whole.len() - 6], &[0; 6]].concat()).expect("written");
        assert_eq!(written("damaged"), Err(Fault::Damaged));
        fs::remove_file(&object).expect("removed");
        assert_eq!(written("missing"), Err(Fault::Damaged));
    }
}
