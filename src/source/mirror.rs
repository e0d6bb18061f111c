//! A bare mirror and the locks around it.
//!
//! Two depth-1 fetches into one mirror at once destroy it (libgit2 rewrites the list of shallow commits at the end), so
//! every fetch holds `lock`. Whoever reads afterwards holds `readers`, shared, and whoever makes the mirror anew holds both
//! for itself. The worker has a third one on the directory, outside of these, for as long as the child lives: see
//! `state/mirrors.rs`. All are `flock(2)`: they die with their holder, and waiting does not poll.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use git2::{Repository, RepositoryInitOptions};
use rustix::fs::{FlockOperation, flock};

use super::request::Failed;

/// Every fetch adds a pack and a reference, and nothing in libgit2 joins packs: a mirror with this many is made anew.
///
/// A fetch of everything costs about as much as 15 of a few changes, and 500 packs make each of those dearer by two
/// fifths. Spread over the fetches between two renewals, both together are least near 200.
pub(super) const MAX_PACKS: usize = 200;

/// A mirror that nobody else fetches into.
pub(super) struct Mirror {
    pub(super) repository: Repository,
    path: PathBuf,
    lock: File,
}

impl Mirror {
    /// Waits for the lock in `directory`, and opens or makes the mirror.
    pub(super) fn lock(directory: &Path) -> Result<Self, Failed> {
        let lock = File::create(directory.join("lock")).map_err(Failed::worker)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(Failed::worker)?;
        let path = directory.join("repository.git");
        sweep(&path);
        let repository = match Repository::open_bare(&path) {
            Ok(repository) => repository,
            // Not there, or broken.
            Err(_) => make(&path)?,
        };
        Ok(Self { repository, path, lock })
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
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false).mkdir(true);
    let repository = Repository::init_opts(path, &options).map_err(Failed::worker)?;
    // libgit2 tries whether modes can be set by setting one, which the sandbox does not let it.
    repository.config().and_then(|mut config| config.set_bool("core.filemode", true)).map_err(Failed::worker)?;
    Ok(repository)
}

/// Removes what a killed fetch left. Nobody else is in here: we hold the lock.
fn sweep(path: &Path) {
    for directory in [path.to_owned(), path.join("objects/pack")] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("pack_git2_") || name.ends_with(".lock") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
