//! The state directory: mirrors, working directories and, per job, a directory that goes with it.
//!
//! ```text
//! mirrors/<trust>/<host>/<repository>/mirror/    mirrors, a cache with a budget; a child writes below `mirror`
//! sticky/…                       empty directories whose names choose the pod
//! run/<identity>.lock            held as long as that process is alive
//! run/<identity>/<n>/            one job: worktree, buildx and docker configuration, temporary files
//! ```
//!
//! All of it is on one file system. The module does not know what the files are for. A process that starts removes what dead
//! processes left. A child writes in some of a job's directories and in its mirror, so only `beneath` opens and removes these.

mod disk;
mod mirrors;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use crate::beneath::{Destination, Directory};
use crate::job::Trust;
use crate::reason::{HasReason, Reason};
use crate::text::paths::WorkerPaths;

pub use disk::watch;
pub use mirrors::MirrorDirectory;

use mirrors::is_at;

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
}

impl StateError {
    /// What went wrong at a path.
    pub fn new(path: &Path, source: io::Error) -> Self {
        Self { path: path.to_owned(), source }
    }
}

impl HasReason for StateError {
    fn reason(&self) -> Option<Reason> {
        Some(Reason::WorkerFailed)
    }
}

/// This process's part of the state directory.
#[derive(Debug)]
pub struct StateDirectory {
    root: PathBuf,
    run: PathBuf,
    worker_paths: WorkerPaths,
    n_jobs: AtomicU64,
    /// Whether a mirror was used since the mirrors were last added up.
    is_grown: Arc<AtomicBool>,
    lock: PathBuf,
    /// Held open: the lock shows that this process is alive.
    _held: File,
}

impl StateDirectory {
    /// Makes missing directories, removes what dead processes left, and makes a directory for `name` (an identity).
    pub fn open(root: &Path, name: &str) -> Result<Self, StateError> {
        let runs = root.join("run");
        make_private(&runs)?;
        // So no part of a path below is a link, and the launcher of a child can refuse links.
        let root = root.canonicalize().map_err(|source| StateError { path: root.to_owned(), source })?;
        let runs = root.join("run");
        sweep(&runs);
        let lock = runs.join(format!("{name}.lock"));
        let held = hold(&lock).map_err(|source| StateError { path: lock.clone(), source })?;
        let run = runs.join(name);
        make_private(&run)?;
        Ok(Self {
            worker_paths: WorkerPaths::new(&root),
            root,
            run,
            n_jobs: AtomicU64::new(0),
            is_grown: Arc::default(),
            lock,
            _held: held,
        })
    }

    /// Makes an empty directory that only this user can enter.
    pub fn job_directory(&self) -> Result<JobDirectory, StateError> {
        let path = self.run.join(self.n_jobs.fetch_add(1, Ordering::Relaxed).to_string());
        make_private(&path)?;
        Ok(JobDirectory { path, worker_paths: self.worker_paths() })
    }

    /// The paths that customers must not read.
    pub fn worker_paths(&self) -> WorkerPaths {
        self.worker_paths.clone()
    }

    /// The directory of a repository's mirror for builds of this trust. It is made when it is missing, and not removed while it is
    /// held.
    pub fn mirror(&self, trust: Trust, host: &str, repository: &str) -> Result<MirrorDirectory, StateError> {
        let path = self.root.join("mirrors").join(trust.name()).join(host).join(repository);
        MirrorDirectory::hold(path, Arc::clone(&self.is_grown))
    }

    /// The default parent of the working directories of bakes.
    pub fn sticky(&self) -> PathBuf {
        self.root.join("sticky")
    }
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        remove(&self.run);
        // The name is unique, so no process waits for this lock.
        let _ = fs::remove_file(&self.lock);
    }
}

/// One job's directory. Dropping this removes it with everything in it.
#[derive(Debug)]
pub struct JobDirectory {
    path: PathBuf,
    worker_paths: WorkerPaths,
}

impl JobDirectory {
    /// A subdirectory, made private when it is missing.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.path.join(name);
        make_private(&path)?;
        Ok(path)
    }

    /// The same, emptied of what a child has written there.
    pub async fn fresh(&self, name: &str) -> Result<PathBuf, StateError> {
        self.clear(name).await?;
        self.subdirectory(name)
    }

    /// Removes a subdirectory without blocking the runtime.
    pub async fn clear(&self, name: &str) -> Result<(), StateError> {
        let (path, of) = (self.path.clone(), name.to_owned());
        let clear = move || Directory::open(&path).and_then(|directory| directory.remove(OsStr::new(&of)));
        let cleared = tokio::task::spawn_blocking(clear).await.expect("removing does not panic");
        cleared.map_err(|source| StateError { path: self.path.join(name), source })
    }

    /// A destination in a subdirectory of its own, in which no child writes.
    pub fn vacancy(&self, name: &str, directory: &str) -> Result<Destination, StateError> {
        let parent = self.subdirectory(name)?;
        Destination::new(&parent, directory).map_err(|source| StateError { path: parent, source })
    }

    /// The paths of this directory and its parents, which customers must not read.
    pub fn worker_paths(&self) -> WorkerPaths {
        self.worker_paths.clone()
    }

    /// A path in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes the directory without blocking the runtime: a tree can be large.
    pub async fn remove(self) {
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

impl Drop for JobDirectory {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// How often a directory is made again that is moved away meanwhile. A link that leads nowhere looks the same.
const N_TRIES: usize = 100;

/// Makes a directory and its parents, each for this user only.
pub fn make_private(path: &Path) -> Result<(), StateError> {
    let make = || fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    let mut made = make();
    for _ in 0..N_TRIES {
        match &made {
            // It existed, and another process moved it away before std could see that it is a directory.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_other(path) => made = make(),
            _ => break,
        }
    }
    made.map_err(|source| StateError { path: path.to_owned(), source })
}

/// Whether there is something at `path` that is not a directory.
fn is_other(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir())
}

/// Writes a file that only this user can read. It replaces an existing file or link, and follows no link.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), StateError> {
    let write = || -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        io::Write::write_all(&mut file, contents)
    };
    write().map_err(|source| StateError { path: path.to_owned(), source })
}

/// Makes a link, also in place of a file or another link.
pub fn replace_link(target: &Path, path: &Path) -> Result<(), StateError> {
    let replace = || match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(target, path),
    };
    replace().map_err(|source| StateError { path: path.to_owned(), source })
}

fn remove(path: &Path) {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
    match Directory::open(parent).and_then(|parent| parent.remove(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(event = "directory_not_removed", path = %path.display(), %error, "directory could not be removed");
        }
        _ => {}
    }
}

/// Makes and locks the lock file at `path`. A sweep may find the file before it is locked, and remove it; then it is made again.
fn hold(path: &Path) -> io::Result<File> {
    loop {
        let file = File::create(path)?;
        // The name is unique. Only a sweep may hold the lock too, for a moment.
        flock(&file, FlockOperation::LockExclusive)?;
        if is_at(path, &file)? {
            return Ok(file);
        }
    }
}

/// Removes the directories of dead processes: no process holds their lock, or they have none.
fn sweep(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_lock = path.extension().is_some_and(|extension| extension == "lock");
        if !is_lock && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let run = if is_lock { path.with_extension("") } else { path };
        let lock = PathBuf::from(format!("{}.lock", run.display()));
        match lock_of_dead(&lock) {
            Ok(_held) => {
                remove(&run);
                let _ = fs::remove_file(&lock);
            }
            // A process makes its lock before its directory, and removes it after the directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_lock => remove(&run),
            Err(_) => {}
        }
    }
}

/// The lock file of a dead process, locked so that only one sweep takes it. Fails with `NotFound` when the file is missing.
fn lock_of_dead(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    if is_at(path, &file)? { Ok(file) } else { Err(io::ErrorKind::WouldBlock.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_keep_moving_away_is_made() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (path, away) = (root.path().join("a"), root.path().join("b"));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = fs::rename(&path, &away).and_then(|()| fs::remove_dir(&away));
                }
            });
            let made: Vec<_> = (0..20_000).map(|_| make_private(&path)).filter(Result::is_err).collect();
            is_over.store(true, Ordering::Relaxed);
            assert!(made.is_empty(), "{:?}", made[0]);
        });
        fs::write(root.path().join("file"), "").expect("written");
        assert!(make_private(&root.path().join("file")).is_err());
    }

    #[test]
    fn a_jobs_directory_is_removed_with_it_and_a_dead_processes_at_the_next_start() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let first = StateDirectory::open(root.path(), "web.1:7:first").expect("opened");
        let job = first.job_directory().expect("made");
        let inside = job.subdirectory("tree").expect("made");
        fs::write(inside.join("file"), "x").expect("written");
        drop(job);
        assert!(!inside.exists());

        // A process that was killed leaves its directory and its lock file, but does not hold the lock.
        fs::create_dir_all(root.path().join("run/dead/0/tree")).expect("made");
        fs::write(root.path().join("run/dead.lock"), "").expect("written");
        let _second = StateDirectory::open(root.path(), "second").expect("opened");
        assert!(!root.path().join("run/dead").exists() && !root.path().join("run/dead.lock").exists());
        assert!(root.path().join("run/web.1:7:first").exists(), "the living process keeps its directory");
        drop(first);
        assert!(!root.path().join("run/web.1:7:first.lock").exists(), "a process that ends removes its lock");
    }

    #[test]
    fn a_link_where_a_private_file_is_written_is_replaced_and_not_followed() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let [target, path] = ["target", "file"].map(|name| root.path().join(name));
        fs::write(&target, "the worker's").expect("written");
        for text in ["first", "2"] {
            std::os::unix::fs::symlink(&target, &path).or_else(|_| fs::write(&path, "longer than that")).expect("made");
            write_private(&path, text.as_bytes()).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
        }
        assert_eq!(fs::read_to_string(&target).expect("read"), "the worker's");
    }

    #[test]
    fn processes_that_start_together_sweep_the_dead_and_never_each_other() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (root, runs) = (root.path(), root.path().join("run"));
        fs::create_dir(&runs).expect("made");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let runs = &runs;
                scope.spawn(move || {
                    for n in 0..200 {
                        // As a process of an older version left it after a sweep of its lock.
                        fs::create_dir(runs.join(format!("dead:{thread}:{n}"))).expect("made");
                        let state = StateDirectory::open(root, &format!("web.1:{thread}:{n}")).expect("opened");
                        let job = state.job_directory().expect("made");
                        std::thread::yield_now();
                        assert!(is_at(&state.lock, &state._held).expect("read"), "its lock is what others find");
                        assert!(job.join("").exists(), "its directory stays");
                    }
                });
            }
        });
        // A process that another test starts has a copy of a lock for a moment.
        let started = std::time::Instant::now();
        let mut n_left = usize::MAX;
        while n_left > 0 && started.elapsed() < std::time::Duration::from_secs(10) {
            drop(StateDirectory::open(root, "last").expect("opened"));
            n_left = fs::read_dir(&runs).expect("read").count();
        }
        assert_eq!(n_left, 0);
    }
}
