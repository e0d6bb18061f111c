//! A bare mirror and the locks around it.
//!
//! Two depth-1 fetches into one mirror at once destroy it (libgit2 rewrites the list of shallow commits at the end), so
//! every fetch holds `lock`. Whoever reads afterwards holds `readers`, shared, and whoever makes the mirror anew holds both
//! for itself. The worker has a third one on the directory, outside of these, for as long as the child lives: see
//! `state/mirrors.rs`. All are `flock(2)`: they die with their holder, and waiting does not poll.
//!
//! A mirror holds whole packs only. A fetch writes into a quarantine in the job's directory, as `git receive-pack` does.
//! That directory goes with the job, so a fetch that is killed leaves no pack behind.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use git2::{Odb, Repository, RepositoryInitOptions};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::request::{Failed, Fault};

/// Every fetch adds a pack and a reference, and nothing in libgit2 joins packs: a mirror with this many is made anew.
///
/// A fetch of everything costs about as much as 15 of a few changes, and 500 packs make each of those dearer by two
/// fifths. Spread over the fetches between two renewals, both together are least near 200.
pub(super) const MAX_PACKS: usize = 200;

/// A mirror that nobody else fetches into.
pub(super) struct Mirror {
    pub(super) repository: Repository,
    path: PathBuf,
    job: PathBuf,
    lock: File,
}

impl Mirror {
    /// Waits for the lock in `directory`, and opens or makes the mirror. Its fetches write below `job` until they are whole.
    pub(super) fn lock(directory: &Path, job: &Path) -> Result<Self, Failed> {
        let lock = File::create(directory.join("lock")).map_err(Failed::worker)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(Failed::worker)?;
        let path = directory.join("repository.git");
        sweep(&path);
        let repository = match Repository::open_bare(&path) {
            Ok(repository) => repository,
            // Not there, or broken.
            Err(_) => make(&path)?,
        };
        Ok(Self { repository, path, job: job.to_owned(), lock })
    }

    /// Makes the repository write new objects into a directory of the job, until the quarantine is dropped.
    pub(super) fn quarantine(&self) -> Result<Quarantine<'_>, Failed> {
        // A disk that takes no more must not cost the mirror.
        let full = |error: &dyn std::fmt::Display| Failed::new(Fault::Full, error.to_string());
        let own = self.repository.odb().map_err(Failed::worker)?;
        let directory =
            tempfile::Builder::new().prefix(".fetch-").tempdir_in(&self.job).map_err(|error| full(&error))?;
        let repository = Repository::init_opts(directory.path(), &bare()).map_err(|error| full(&error))?;
        let odb = repository.odb().map_err(|error| full(&error))?;
        odb.add_disk_alternate(&self.path.join("objects").to_string_lossy()).map_err(Failed::worker)?;
        self.repository.set_odb(&odb).map_err(Failed::worker)?;
        Ok(Quarantine { mirror: self, own, directory })
    }

    /// The same mirror, empty. Waits for those who read it.
    pub(super) fn renew(self) -> Result<Self, Failed> {
        let _nobody_reads = readers(&self.path, FlockOperation::LockExclusive)?;
        let repository = make(&self.path)?;
        Ok(Self { repository, ..self })
    }

    /// Whether it has so many packs that fetching everything again is cheaper in the long run.
    pub(super) fn is_worn(&self) -> bool {
        self.n_packs() >= MAX_PACKS
    }

    pub(super) fn n_packs(&self) -> usize {
        let entries = fs::read_dir(self.path.join("objects/pack")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack")).count()
    }

    /// Lets others fetch, and goes on reading. That is safe beside a fetch: packs appear by rename.
    pub(super) fn read(self) -> Result<Reading, Failed> {
        let shared = readers(&self.path, FlockOperation::LockShared)?;
        drop(self.lock);
        Ok(Reading { repository: self.repository, _shared: shared })
    }
}

/// Where a fetch writes. What was not released goes with it.
pub(super) struct Quarantine<'a> {
    mirror: &'a Mirror,
    /// The objects of the mirror alone.
    own: Odb<'a>,
    directory: TempDir,
}

impl Quarantine<'_> {
    /// Moves the packs that were fetched into the mirror.
    pub(super) fn release(self) -> Result<(), Failed> {
        let [from, to] = [self.directory.path(), &self.mirror.path].map(|repository| repository.join("objects/pack"));
        // The index first, as libgit2 does: without its pack it is passed over.
        for extension in ["idx", "pack"] {
            for entry in fs::read_dir(&from).map_err(Failed::worker)? {
                let name = entry.map_err(Failed::worker)?.file_name();
                if Path::new(&name).extension().is_some_and(|its| its == extension) {
                    rename(&from.join(&name), &to.join(&name)).map_err(Failed::worker)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Quarantine<'_> {
    fn drop(&mut self) {
        // A mirror that cannot be read is noticed by the walk that follows.
        let _ = self.mirror.repository.set_odb(&self.own).and_then(|()| self.own.refresh());
    }
}

/// Moves a file, and copies it where a file cannot move to another directory: Landlock before Linux 5.19.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            // The next fetch sweeps it when this one is killed here.
            let partial = to.with_file_name("pack_git2_moved");
            io::copy(&mut File::open(from)?, &mut File::create(&partial)?)?;
            fs::rename(&partial, to)
        }
        renamed => renamed,
    }
}

/// A mirror that is read, and not made anew meanwhile.
pub(super) struct Reading {
    pub(super) repository: Repository,
    _shared: File,
}

fn readers(mirror: &Path, operation: FlockOperation) -> Result<File, Failed> {
    let lock = File::create(mirror.with_file_name("readers")).map_err(Failed::worker)?;
    flock(&lock, operation).map_err(Failed::worker)?;
    Ok(lock)
}

fn make(path: &Path) -> Result<Repository, Failed> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Failed::worker(error)),
        _ => {}
    }
    let repository = Repository::init_opts(path, &bare()).map_err(Failed::worker)?;
    // libgit2 tries whether modes can be set by setting one, which the sandbox does not let it.
    repository.config().and_then(|mut config| config.set_bool("core.filemode", true)).map_err(Failed::worker)?;
    Ok(repository)
}

fn bare() -> RepositoryInitOptions {
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false).mkdir(true);
    options
}

/// Removes what a killed fetch left: locks, or a reference could never be written again. Nobody else is in here: we hold the
/// mirror's lock.
fn sweep(path: &Path) {
    for directory in [path.to_owned(), path.join("refs/jobs"), path.join("objects/pack")] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("pack_git2_") || name.ends_with(".lock") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
