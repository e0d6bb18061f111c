//! Writes a commit's files into a new directory, as the git command does, on several processors.

use std::fs;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::{self, ScopedJoinHandle};

use git2::build::CheckoutBuilder;
use git2::{ErrorClass, ErrorCode, Index, IndexEntry, Oid, Repository};

use super::attributes;
use super::request::{Failed, Fault};
use super::submodules;

/// The most threads that write files. More would wait for libgit2's locks, and several jobs check out at once.
const MAX_THREADS: usize = 4;
/// The fewest files for a thread: opening a repository handle costs as much as a few files.
const MIN_FILES: usize = 8;
/// The fixed cost of a file, in bytes.
const FILE_BYTES: usize = 4 << 10;
/// From this size, a file is written alone: libgit2 holds each file in memory as a whole.
const LARGE_BYTES: usize = 32 << 20;

const TYPE: u32 = 0o170000;
const FILE: u32 = 0o100000;

/// Checks `commit` out into `worktree`, which must not exist yet, and returns the index of what was written, without a `.git`.
///
/// Only the handle has the work tree, and the in-memory index is filled first. Only this way libgit2 honors `.gitattributes` and
/// submodules as git does, refuses forbidden names before any file exists, and writes nothing into the mirror. The directory
/// must be new, since libgit2 follows symlinks in it.
pub(super) fn write(repository: &Repository, commit: Oid, worktree: &Path) -> Result<Index, Failed> {
    fs::create_dir(worktree).map_err(Failed::worker)?;
    write_files(repository, commit, worktree).map_err(|error| {
        let of_content = match error.class() {
            ErrorClass::Odb | ErrorClass::Object | ErrorClass::Zlib => Fault::Damaged,
            _ => Fault::Refused,
        };
        Failed::of_git(&error, of_content)
    })
}

fn write_files(repository: &Repository, commit: Oid, worktree: &Path) -> Result<Index, git2::Error> {
    repository.set_workdir(worktree, false)?;
    let tree = repository.find_commit(commit)?.tree()?;
    let mut index = Index::new()?;
    index.read_tree(&tree)?;
    repository.set_index(&mut index)?;
    let directories =
        CheckoutDirectories { mirror: repository.path(), worktree, has_filters: has_filters(repository, &index)? };
    let odb = repository.odb()?;
    let (mut files, mut rest, mut modules) = (Vec::new(), Vec::new(), Vec::new());
    for entry in index.iter().map(canonical) {
        if entry.path == submodules::FILE.as_bytes() {
            modules.push(entry);
            continue;
        }
        let n_bytes = if is_plain_file(&entry) { odb.read_header(entry.id)?.0 } else { LARGE_BYTES };
        if n_bytes < LARGE_BYTES { files.push((entry, n_bytes)) } else { rest.push(entry) }
    }
    directories.write_all(&split(files, n_processors()), &rest, &modules)?;
    Ok(index)
}

/// Whether any `.gitattributes` may change a file's content. Otherwise no file's attributes are looked up: for libgit2 that takes
/// longer than writing the file.
///
/// Only `eol`, `crlf` and `ident` matter: the machine's configuration is not read, so `text` alone changes nothing here. A word
/// that only looks like one of them costs time and nothing else.
fn has_filters(repository: &Repository, index: &Index) -> Result<bool, git2::Error> {
    attributes::mention(repository, index, &["eol", "crlf", "ident"])
}

/// The entry with the mode that git gives it. An index keeps a tree's modes, of which old programs wrote more.
pub(super) fn canonical(entry: IndexEntry) -> IndexEntry {
    let mode = match entry.mode & TYPE {
        FILE if entry.mode & 0o100 != 0 => 0o100755,
        FILE => 0o100644,
        other => other,
    };
    IndexEntry { mode, ..entry }
}

/// A regular file that does not control how others are written.
pub(super) fn is_plain_file(entry: &IndexEntry) -> bool {
    entry.mode & TYPE == FILE && !attributes::is_named_so(entry)
}

fn n_processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS)
}

/// Splits the files among at most `max_threads` threads: adjacent files together, with about equal work.
fn split(files: Vec<(IndexEntry, usize)>, max_threads: usize) -> Vec<Vec<IndexEntry>> {
    let work = |n_bytes: usize| n_bytes + FILE_BYTES;
    let n_threads = files.len().div_ceil(MIN_FILES).min(max_threads);
    let all: usize = files.iter().map(|(_, n_bytes)| work(*n_bytes)).sum();
    let mut parts: Vec<_> = (0..n_threads).map(|_| Vec::new()).collect();
    let mut before = 0;
    for (entry, n_bytes) in files {
        // The middle of a file's work decides, so a large file goes to the part that holds most of it.
        parts[(before + work(n_bytes) / 2) * n_threads / all].push(entry);
        before += work(n_bytes);
    }
    parts
}

/// Where all threads read and write.
#[derive(Clone, Copy)]
struct CheckoutDirectories<'a> {
    mirror: &'a Path,
    worktree: &'a Path,
    has_filters: bool,
}

impl CheckoutDirectories<'_> {
    /// Writes the parts and the rest, then `.gitmodules`. As long as that file is missing, libgit2 creates the directories of
    /// submodules without reading it again for each of them, and every file that it includes.
    fn write_all(
        self,
        parts: &[Vec<IndexEntry>],
        rest: &[IndexEntry],
        modules: &[IndexEntry],
    ) -> Result<(), git2::Error> {
        if modules.is_empty() {
            return self.write(parts, rest);
        }
        let mut others_written = Ok(());
        let modules_written = self.check_out(modules, rest, || others_written = self.write(parts, rest));
        others_written.and(modules_written)
    }

    /// Writes each part in a thread, then the rest.
    ///
    /// Links come last, so nothing is written through one, even on a disk that ignores case. `.gitattributes` files come last too:
    /// until then libgit2 reads attributes from the index, as git does, and no thread finds a half-written one.
    ///
    /// Threads share directories: libgit2 accepts one that another thread has just created.
    fn write(self, parts: &[Vec<IndexEntry>], rest: &[IndexEntry]) -> Result<(), git2::Error> {
        // The channel carries no message: it closes when every thread has looked or failed.
        let (looking, all_have_looked) = channel::<()>();
        thread::scope(|scope| {
            let (mut threads, mut starts) = (Vec::new(), Vec::new());
            for part in parts {
                let (start, started) = channel::<()>();
                let looking = looking.clone();
                let write = move || {
                    self.check_out(part, rest, move || {
                        drop(looking);
                        let _ = started.recv();
                    })
                };
                threads.push(thread::Builder::new().spawn_scoped(scope, write).map_err(not_started)?);
                starts.push(start);
            }
            drop(looking);
            let mut parts_written = Ok(());
            let rest_written = self.check_out(rest, rest, || {
                let _ = all_have_looked.recv();
                drop(starts);
                parts_written = threads.into_iter().map(join).fold(Ok(()), Result::and);
            });
            parts_written.and(rest_written)
        })
    }

    /// Writes entries. Calls `before` when libgit2 has looked at the directory and written nothing.
    ///
    /// The directory must be empty then: libgit2 treats existing files as a user's, and compares or removes those in its handle's
    /// index. That index has only what libgit2 looks up in it: attributes and submodules.
    fn check_out(self, entries: &[IndexEntry], rest: &[IndexEntry], before: impl FnOnce()) -> Result<(), git2::Error> {
        // Each thread needs its own handle and index.
        let repository = Repository::open_bare(self.mirror)?;
        repository.set_workdir(self.worktree, false)?;
        repository.set_index(&mut index_of(rest)?)?;
        let mut before = Some(before);
        let mut options = CheckoutBuilder::new();
        options.force().update_index(false).refresh(false).disable_filters(!self.has_filters).progress(|_, _, _| {
            // Called before the first file and after each file.
            if let Some(before) = before.take() {
                before();
            }
        });
        repository.checkout_index(Some(&mut index_of(entries)?), Some(&mut options))
    }
}

fn index_of(entries: &[IndexEntry]) -> Result<Index, git2::Error> {
    let mut index = Index::new()?;
    entries.iter().try_for_each(|entry| index.add(entry))?;
    Ok(index)
}

fn join(thread: ScopedJoinHandle<'_, Result<(), git2::Error>>) -> Result<(), git2::Error> {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn not_started(error: std::io::Error) -> git2::Error {
    git2::Error::new(ErrorCode::GenericError, ErrorClass::Os, format!("a thread cannot be started: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use git2::{ObjectType, RepositoryInitOptions, Signature};
    use tempfile::TempDir;

    use super::*;

    struct TestMirror {
        directory: TempDir,
        repository: Repository,
    }

    impl TestMirror {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let mut options = RepositoryInitOptions::new();
            options.bare(true).external_template(false);
            let repository = Repository::init_opts(directory.path().join("mirror"), &options).expect("a mirror");
            Self { directory, repository }
        }

        fn blob(&self, text: &str) -> Oid {
            self.repository.blob(text.as_bytes()).expect("written")
        }

        fn commit(&self, tree: Oid) -> Oid {
            let tree = self.repository.find_tree(tree).expect("a tree");
            let author = Signature::now("test", "test@localhost").expect("a name");
            self.repository.commit(None, &author, &author, "test", &tree, &[]).expect("a commit")
        }

        /// A commit of these files.
        fn commit_of(&self, paths: &[String]) -> Oid {
            let file = |path: &String| entry(path, FILE | 0o644, self.blob(&content(path)));
            let entries: Vec<_> = paths.iter().map(file).collect();
            let tree = index_of(&entries).expect("an index").write_tree_to(&self.repository).expect("a tree");
            self.commit(tree)
        }

        fn write(&self, commit: Oid) -> (PathBuf, Result<(), Failed>) {
            let worktree =
                tempfile::tempdir_in(self.directory.path()).expect("a temporary directory").keep().join("tree");
            let written = write(&self.repository, commit, &worktree).map(drop);
            (worktree, written)
        }
    }

    /// More than libgit2 reads of an object when it asks for the size.
    fn content(path: &str) -> String {
        path.repeat(1 + 10_000 / path.len())
    }

    fn entry(path: &str, mode: u32, id: Oid) -> IndexEntry {
        let never = git2::IndexTime::new(0, 0);
        IndexEntry {
            ctime: never,
            mtime: never,
            dev: 0,
            ino: 0,
            mode,
            uid: 0,
            gid: 0,
            file_size: 0,
            id,
            flags: 0,
            flags_extended: 0,
            path: path.into(),
        }
    }

    #[test]
    fn threads_write_neighbours_and_have_the_same_work() {
        let n_files = |sizes: &[usize], max_threads| -> Vec<usize> {
            let file = |(n, size): (usize, &usize)| (entry(&format!("{n:04}"), FILE, Oid::ZERO_SHA1), *size);
            let parts = split(sizes.iter().enumerate().map(file).collect(), max_threads);
            let paths: Vec<_> = parts.iter().flatten().map(|entry| &entry.path).collect();
            assert!(paths.is_sorted() && paths.len() == sizes.len(), "each file once, in order");
            parts.iter().map(Vec::len).collect()
        };
        assert_eq!(n_files(&[], 4), [0; 0]);
        assert_eq!(n_files(&[9], 4), [1]);
        assert_eq!(n_files(&[0; MIN_FILES], 4), [MIN_FILES]);
        assert_eq!(n_files(&[0; MIN_FILES * 2], 4), [MIN_FILES, MIN_FILES]);
        assert_eq!(n_files(&[1000; 1000], 4), [250, 250, 250, 250]);
        assert_eq!(n_files(&[1000; 1000], 1), [1000]);
        let mut sizes = [0; 1000];
        sizes[999] = 1000 * FILE_BYTES;
        assert_eq!(n_files(&sizes, 2), [999, 1], "one file can be half of it");
    }

    #[test]
    fn threads_that_need_the_same_directories_all_find_them() {
        let mirror = TestMirror::new();
        let deep = ["deep"; 40].join("/");
        let paths: Vec<String> = (0..64).map(|n| format!("{deep}/file{n}")).collect();
        let commit = mirror.commit_of(&paths);
        for _ in 0..20 {
            let (worktree, written) = mirror.write(commit);
            written.expect("written");
            for path in &paths {
                assert_eq!(fs::read_to_string(worktree.join(path)).expect("a file"), content(path));
            }
        }
    }

    #[test]
    fn a_file_that_one_thread_cannot_read_fails_the_whole_in_its_own_words() {
        let mirror = TestMirror::new();
        let paths: Vec<String> = (0..64).map(|n| format!("file{n:02}")).collect();
        for (n, path) in paths.iter().enumerate().step_by(21) {
            let commit = mirror.commit_of(&paths);
            let id = mirror.blob(&content(path)).to_string();
            let object = mirror.repository.path().join("objects").join(&id[..2]).join(&id[2..]);
            let whole = fs::read(&object).expect("an object");
            fs::remove_file(&object).expect("removed");
            // Its size can still be read.
            fs::write(&object, [&whole[..whole.len() - 6], &[0; 6]].concat()).expect("written");
            let mirror_of_today = Repository::open_bare(mirror.repository.path()).expect("a mirror");
            let worktree = mirror.directory.path().join(format!("tree{n}"));
            let failed = write(&mirror_of_today, commit, &worktree).map(drop).expect_err("damaged");
            assert_eq!(failed.fault, Fault::Damaged, "{}", failed.message);
            fs::write(&object, whole).expect("written");
        }
    }

    #[test]
    fn modes_of_old_programs_become_gits() {
        let mirror = TestMirror::new();
        let table = [("100600", 0o644), ("100644", 0o644), ("100664", 0o644), ("100700", 0o755), ("100777", 0o755)];
        let mut tree = Vec::new();
        for (mode, _) in table {
            tree.extend_from_slice(format!("{mode} file{mode}\0").as_bytes());
            tree.extend_from_slice(mirror.blob(mode).as_bytes());
        }
        let odb = mirror.repository.odb().expect("a database");
        let (worktree, written) = mirror.write(mirror.commit(odb.write(ObjectType::Tree, &tree).expect("a tree")));
        written.expect("written");
        for (mode, expected) in table {
            let metadata = fs::metadata(worktree.join(format!("file{mode}"))).expect("a file");
            assert_eq!(metadata.permissions().mode() & 0o777, expected, "{mode}");
        }
    }
}
