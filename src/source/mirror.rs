//! A mirror: the packs of a repository's commits, a list of these commits, and locks.
//!
//! Nothing else of a mirror is read. Each child reads the packs through a new repository in its stage: an earlier child that a
//! stranger's pack took over may have left configuration, attributes, references, alternates or replacements, and none of them
//! applies. Objects were hashed when they were received, and in builds of forks are hashed again when they are read.
//!
//! A mirror holds only complete packs. A fetch writes into the stage, as `git receive-pack` writes into its quarantine. The stage
//! is removed with the job, so a killed fetch leaves no pack behind.
//!
//! Two simultaneous depth-1 fetches destroy a mirror, so every fetch holds `lock`. Readers share `readers`; emptying a mirror takes
//! both locks exclusively. The worker holds a third lock on the directory above while the child lives: see `state/mirrors.rs`.
//! All are `flock(2)`: they end with their holder, and waiting does not poll.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use git2::{ErrorCode, Oid, Repository, RepositoryInitOptions};
use rustix::fs::{FlockOperation, Mode, flock};

use super::fetch::{self, Tag};
use super::remote::Remote;
use super::request::{Failed, Fault};
use crate::beneath::{Directory, DirectoryEntry};

/// Every fetch adds a pack and a commit, and libgit2 cannot join packs. A mirror with this many is emptied.
///
/// A full fetch costs about as much as 15 fetches of a few changes, and 500 packs make each of those two fifths slower. The
/// total cost per fetch is lowest near 200 packs.
pub(super) const MAX_PACKS: usize = 200;

/// The longest list of commits, in bytes. A line has 41.
const MAX_COMMITS: usize = 64 << 10;
/// The most entries of a mirror's directory of packs: two per pack, and leftovers of killed fetches.
const MAX_FILES: usize = 2000;

/// The most nested annotated tags that are followed to a commit.
const MAX_TAGS: usize = 5;

const PACKS: &str = "pack";
const COMMITS: &str = "commits";
const COMMITS_NEXT: &str = "commits.next";
const LOCK: &str = "lock";
const READERS: &str = "readers";

/// Whether a child can use the content of a mirror's directory. The worker checks it, since a child cannot remove everything that
/// another child may leave.
pub(super) fn is_sound(directory: &Path) -> std::io::Result<bool> {
    let directory = Directory::open(directory)?;
    // A hard link could be locked by a child that waits under its other name.
    let is_file =
        |entry: &DirectoryEntry| entry.kind.is_file() && entry.mode.contains(Mode::RUSR) && entry.n_names == 1;
    let mut has_packs = false;
    for entry in directory.entries(8)? {
        let is_known = match &*entry.name.to_string_lossy() {
            PACKS => {
                has_packs = true;
                entry.kind.is_dir() && entry.mode.contains(Mode::RWXU)
            }
            COMMITS | COMMITS_NEXT | LOCK | READERS => is_file(&entry) && entry.mode.contains(Mode::WUSR),
            _ => false,
        };
        if !is_known {
            return Ok(false);
        }
    }
    if !has_packs {
        return Ok(true);
    }
    let packs = directory.directory(Path::new(PACKS))?.entries(MAX_FILES)?;
    Ok(packs.len() <= MAX_FILES && packs.iter().all(is_file))
}

/// A mirror that is locked for fetching.
pub(super) struct Mirror {
    pub(super) repository: Repository,
    directory: PathBuf,
    stage: PathBuf,
    lock: File,
}

impl Mirror {
    /// Waits for the lock in `directory`, and opens the packs through a new repository in `stage`.
    pub(super) fn lock(directory: &Path, stage: &Path) -> Result<Self, Failed> {
        let lock = File::create(directory.join(LOCK)).map_err(Failed::worker)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(Failed::worker)?;
        let packs = directory.join(PACKS);
        fs::create_dir_all(&packs).map_err(Failed::worker)?;
        sweep(&packs);
        let repository = open(directory, stage)?;
        Ok(Self { repository, directory: directory.to_owned(), stage: stage.to_owned(), lock })
    }

    /// Empties the mirror. Waits for its readers.
    pub(super) fn renew(self) -> Result<Self, Failed> {
        let _no_readers = readers(&self.directory, FlockOperation::LockExclusive)?;
        // The worker removes it with the stage.
        let packs = self.directory.join(PACKS);
        fs::rename(&packs, unused(&self.stage, "old")).and_then(|()| fs::create_dir(&packs)).map_err(Failed::worker)?;
        write_commits(&self.directory, &[])?;
        let repository = open(&self.directory, &self.stage)?;
        Ok(Self { repository, ..self })
    }

    /// Fetches a commit with its tree and files, by its own id or by that of an annotated tag.
    pub(super) fn fetch(&mut self, remote: &Remote<'_>, id: Oid) -> Result<(), Failed> {
        let mut commits = commits(&self.directory);
        self.fetch_objects(remote, &[id], &commits)?;
        let Some(commit) = self.peeled(id)? else { return Ok(()) };
        if !commits.contains(&commit) {
            commits.push(commit);
            write_commits(&self.directory, &commits)?;
        }
        Ok(())
    }

    /// The remote's tags of a commit that is here, `first` before the others. Fetches those that are annotated.
    pub(super) fn tags(&mut self, remote: &Remote<'_>, commit: Oid, first: Option<&str>) -> Result<Vec<Tag>, Failed> {
        let tags = fetch::tags_of(remote, commit, first)?;
        let is_missing = |oid: &Oid| self.repository.find_object(*oid, None).is_err();
        let missing: Vec<Oid> = tags.iter().map(|tag| tag.oid).filter(is_missing).collect();
        if !missing.is_empty() {
            self.fetch_objects(remote, &missing, &commits(&self.directory))?;
        }
        Ok(tags)
    }

    fn fetch_objects(&mut self, remote: &Remote<'_>, objects: &[Oid], known: &[Oid]) -> Result<(), Failed> {
        fetch::fetch(&self.repository, remote, objects, known)?;
        self.take_in_packs().map_err(Failed::worker)?;
        // The open packs were moved.
        self.repository = Repository::open_bare(self.repository.path()).map_err(Failed::worker)?;
        Ok(())
    }

    /// The commit with this id, or the one to which the annotated tag with this id leads; `None` when an object is missing.
    ///
    /// # Errors
    ///
    /// `CommitNotFound` when the id is a directory's or a file's: a remote also sends those by their ids.
    pub(super) fn peeled(&self, id: Oid) -> Result<Option<Oid>, Failed> {
        let mut next = id;
        for _ in 0..=MAX_TAGS {
            let object = match self.repository.find_object(next, None) {
                Ok(object) => object,
                Err(error) if error.code() == ErrorCode::NotFound => return Ok(None),
                Err(error) => {
                    return Err(Failed::new(Fault::Damaged, format!("{next} cannot be read: {}", error.message())));
                }
            };
            let kind = object.kind().map_or("object", |kind| kind.str());
            match object.as_tag().map(git2::Tag::target_id) {
                Some(target) => next = target,
                None if kind == "commit" => return Ok(Some(next)),
                None if next == id => return Err(not_a_commit(format!("{id} is the id of a {kind}, not of a commit"))),
                None => return Err(not_a_commit(format!("{id} is a tag of a {kind}, not of a commit"))),
            }
        }
        Err(not_a_commit(format!("{id} is a tag of a tag, more than {MAX_TAGS} times")))
    }

    /// Moves the fetched packs from the stage into the mirror.
    fn take_in_packs(&self) -> io::Result<()> {
        let (from, to) = (self.repository.path().join("objects/pack"), self.directory.join(PACKS));
        // The index first, as in libgit2: without its pack it is ignored.
        for extension in ["idx", "pack"] {
            for entry in fs::read_dir(&from)? {
                let name = entry?.file_name();
                if Path::new(&name).extension().is_some_and(|its| its == extension) {
                    rename(&from.join(&name), &to.join(&name))?;
                }
            }
        }
        Ok(())
    }

    /// Whether it has so many packs that emptying it is cheaper in the long run.
    pub(super) fn is_worn(&self) -> bool {
        self.n_packs() >= MAX_PACKS
    }

    pub(super) fn n_packs(&self) -> usize {
        let entries = fs::read_dir(self.directory.join(PACKS)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack")).count()
    }

    /// Lets others fetch while this child reads. That is safe: new packs appear by rename.
    pub(super) fn read(self) -> Result<SharedMirror, Failed> {
        let shared = readers(&self.directory, FlockOperation::LockShared)?;
        drop(self.lock);
        Ok(SharedMirror { repository: self.repository, _shared: shared })
    }
}

/// A mirror that is being read: it is not emptied meanwhile.
pub(super) struct SharedMirror {
    pub(super) repository: Repository,
    _shared: File,
}

fn not_a_commit(message: String) -> Failed {
    Failed::new(Fault::CommitNotFound, message)
}

fn readers(directory: &Path, operation: FlockOperation) -> Result<File, Failed> {
    let lock = File::create(directory.join(READERS)).map_err(Failed::worker)?;
    flock(&lock, operation).map_err(Failed::worker)?;
    Ok(lock)
}

/// A new bare repository on the mirror's packs. It needs no references, and nothing in it asks for a commit's history.
fn open(directory: &Path, stage: &Path) -> Result<Repository, Failed> {
    let path = unused(stage, "repository");
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false).mkdir(true);
    let made = Repository::init_opts(&path, &options).map_err(Failed::worker)?;
    // libgit2 would test it by changing a file's mode, which the sandbox prevents.
    let mut config = made.config().map_err(Failed::worker)?;
    config.set_bool("core.filemode", true).map_err(Failed::worker)?;
    // A pack that is made here has no deltas: the search for them takes minutes and the memory of ten large files. libgit2 reads the
    // size from which on a file has none by the other name.
    for name in ["core.bigFileThreshold", "pack.deltaCacheSize"] {
        config.set_i64(name, 1).map_err(Failed::worker)?;
    }
    let alternates = format!("{}\n", directory.display());
    fs::write(path.join("objects/info/alternates"), alternates).map_err(Failed::worker)?;
    Repository::open_bare(&path).map_err(Failed::worker)
}

/// The fetched commits, which the remote need not send again. Empty when the list is invalid.
fn commits(directory: &Path) -> Vec<Oid> {
    let read = || Directory::open(directory)?.read(Path::new(COMMITS), MAX_COMMITS);
    let text = read().ok().and_then(|text| String::from_utf8(text).ok()).unwrap_or_default();
    let parsed: Option<Vec<Oid>> = text.lines().map(|line| Oid::from_str(line).ok()).collect();
    parsed.unwrap_or_default()
}

fn write_commits(directory: &Path, commits: &[Oid]) -> Result<(), Failed> {
    let text: String = commits.iter().map(|commit| format!("{commit}\n")).collect();
    let next = directory.join(COMMITS_NEXT);
    fs::write(&next, text).and_then(|()| fs::rename(&next, directory.join(COMMITS))).map_err(Failed::worker)
}

/// An unused path in `stage`.
fn unused(stage: &Path, name: &str) -> PathBuf {
    let numbered = (0..).map(|n| stage.join(format!("{name}{n}")));
    numbered.into_iter().find(|path| path.symlink_metadata().is_err()).expect("there are more numbers than files")
}

/// Moves a file. Copies it where Landlock (before Linux 5.19) prevents moves between directories.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            // The next fetch removes it when this one is killed here.
            let partial = to.with_file_name("moved");
            io::copy(&mut File::open(from)?, &mut File::create(&partial)?)?;
            fs::rename(&partial, to)
        }
        renamed => renamed,
    }
}

/// Removes leftovers of a killed fetch: everything except packs with their indices. No fetch runs: we hold the lock.
fn sweep(packs: &Path) {
    for entry in fs::read_dir(packs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        let has_pack = name.ends_with(".pack") || name.ends_with(".idx") && path.with_extension("pack").exists();
        if !(name.starts_with("pack-") && has_pack) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_fetch_left_goes_and_whole_packs_stay() {
        let packs = tempfile::tempdir().expect("made");
        let all = ["pack-a.pack", "pack-a.idx", "pack-b.idx", "pack-c.pack", "moved", "tmp_pack"];
        all.iter().for_each(|name| fs::write(packs.path().join(name), "x").expect("written"));
        sweep(packs.path());
        let is_left = |name: &&&str| packs.path().join(name).exists();
        assert_eq!(Vec::from_iter(all.iter().filter(is_left)), [&"pack-a.pack", &"pack-a.idx", &"pack-c.pack"]);
    }

    #[test]
    fn a_file_moves_to_another_file_system_whole() {
        let (from, to) = (tempfile::tempdir().expect("made"), tempfile::tempdir_in("/dev/shm").expect("made"));
        let [from, to] = [from.path().join("a.pack"), to.path().join("a.pack")];
        fs::write(&from, "pack").expect("written");
        rename(&from, &to).expect("moved");
        assert_eq!(fs::read_to_string(&to).expect("read"), "pack");
        assert_eq!(fs::read_dir(to.parent().expect("a directory")).expect("read").count(), 1);
    }
}
