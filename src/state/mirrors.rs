//! The directories of mirrors: held by who uses them, and removed, the least recently used first, when there is no room.
//!
//! Who uses one holds `flock(2)` on it, shared; who removes one holds it exclusively and without waiting, and moves it away
//! before anything in it is deleted. A lock dies with its holder and is seen by every process on this machine. When a mirror
//! was last used is its directory's modification time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock, futimens};
use tokio_util::sync::CancellationToken;

use super::{StateDirectory, StateError, make_private};

/// The directory of a mirror. Nobody removes it as long as this lives.
#[derive(Debug)]
pub struct MirrorDirectory {
    path: PathBuf,
    is_grown: Arc<AtomicBool>,
    /// Held open: the lock says that the mirror is used.
    _held: File,
}

impl MirrorDirectory {
    /// Makes it when it is missing, and notes that it is used now. Dropping this sets `is_grown`.
    pub(super) fn hold(path: PathBuf, is_grown: Arc<AtomicBool>) -> Result<Self, StateError> {
        loop {
            make_private(&path)?;
            match lock_shared(&path) {
                Ok(Some(held)) => return Ok(Self { path, is_grown, _held: held }),
                // It was removed after we had made it.
                Ok(None) => {}
                Err(source) => return Err(StateError { path, source }),
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for MirrorDirectory {
    fn drop(&mut self) {
        self.is_grown.store(true, Ordering::Relaxed);
    }
}

/// The directory at `path`, locked; none when it is not there any more.
fn lock_shared(path: &Path) -> io::Result<Option<File>> {
    let held = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // Whoever removes it holds its lock for no longer than a rename.
    flock(&held, FlockOperation::LockShared)?;
    if !is_at(path, &held)? {
        return Ok(None);
    }
    let (omitted, now) = (Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, Timespec { tv_sec: 0, tv_nsec: UTIME_NOW });
    futimens(&held, &Timestamps { last_access: omitted, last_modification: now })?;
    Ok(Some(held))
}

/// Whether `path` leads to what is open: it may have been moved away before we had the lock.
pub(super) fn is_at(path: &Path, held: &File) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.metadata()?.dev(), held.metadata()?.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A mirror as the survey found it.
struct Found {
    path: PathBuf,
    used_at: SystemTime,
    /// On the disk, which is what its removal gives back.
    size_bytes: u64,
}

/// Removes mirrors that nobody uses, the least recently used first, until all together have at most `max_bytes` and
/// `missing_bytes` were freed, or none is left, or `stop` is cancelled.
///
/// Blocks: it reads the size of every file of every mirror.
pub(super) fn shrink(state: &StateDirectory, max_bytes: u64, missing_bytes: u64, stop: &CancellationToken) {
    let mut mirrors = survey(&state.root.join("mirrors"));
    mirrors.sort_by_key(|mirror| mirror.used_at);
    let total_bytes: u64 = mirrors.iter().map(|mirror| mirror.size_bytes).sum();
    let excess_bytes = total_bytes.saturating_sub(max_bytes).max(missing_bytes);
    let (mut n_removed, mut freed_bytes) = (0, 0);
    for mirror in &mirrors {
        if freed_bytes >= excess_bytes || stop.is_cancelled() {
            break;
        }
        match remove_unused(state, mirror) {
            Ok(true) => (n_removed, freed_bytes) = (n_removed + 1, freed_bytes + mirror.size_bytes),
            Ok(false) => {}
            Err(error) => {
                // The next one would fail alike.
                tracing::warn!(path = %mirror.path.display(), %error, "a mirror could not be removed");
                break;
            }
        }
    }
    if n_removed > 0 {
        tracing::info!(n_removed, freed_bytes, of_bytes = total_bytes, "least recently used mirrors were removed");
    }
}

/// Returns whether it did: not when the mirror is in use, or was used since the survey.
fn remove_unused(state: &StateDirectory, mirror: &Found) -> Result<bool, StateError> {
    let failed = |source| StateError { path: mirror.path.clone(), source };
    let Ok(held) = File::open(&mirror.path) else { return Ok(false) };
    if flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    let used_at = held.metadata().and_then(|metadata| metadata.modified()).map_err(failed)?;
    if used_at != mirror.used_at || !is_at(&mirror.path, &held).map_err(failed)? {
        return Ok(false);
    }
    // If we are killed while it is deleted, the next start on this machine goes on with it.
    let grave = state.job_directory()?;
    fs::rename(&mirror.path, grave.join("mirror")).map_err(failed)?;
    drop(held);
    drop(grave);
    Ok(true)
}

/// What vanishes meanwhile is not counted.
fn survey(mirrors: &Path) -> Vec<Found> {
    let hosts = fs::read_dir(mirrors).into_iter().flatten().flatten();
    let repositories = hosts.flat_map(|host| fs::read_dir(host.path()).into_iter().flatten().flatten());
    repositories
        .filter_map(|entry| {
            let (path, metadata) = (entry.path(), entry.metadata().ok()?);
            let used_at = metadata.modified().ok()?;
            metadata.is_dir().then(|| Found { size_bytes: size_bytes(&path), path, used_at })
        })
        .collect()
}

fn size_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        // The unit of `blocks` is 512 bytes whatever the file system's is.
        .map(|(path, metadata)| metadata.blocks() * 512 + if metadata.is_dir() { size_bytes(&path) } else { 0 })
        .sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn open(root: &Path, name: &str) -> StateDirectory {
        StateDirectory::open(root, name).expect("opened")
    }

    /// A mirror of 1 MiB and a little that was last used `used_s` seconds after the epoch.
    fn make(state: &StateDirectory, repository: &str, used_s: u64) -> PathBuf {
        let path = state.mirror("github.com", repository).expect("made").path().to_owned();
        fs::create_dir(path.join("repository.git")).expect("made");
        fs::write(path.join("repository.git/pack"), vec![b'x'; MIB as usize]).expect("written");
        let used_at = SystemTime::UNIX_EPOCH + Duration::from_secs(used_s);
        File::open(&path).expect("opened").set_modified(used_at).expect("set");
        path
    }

    fn shrink_to(state: &StateDirectory, max_bytes: u64, missing_bytes: u64) {
        shrink(state, max_bytes, missing_bytes, &CancellationToken::new());
    }

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_needed() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let state = open(root.path(), "one");
        let [c, a, b, d] = [("c", 3), ("a", 1), ("b", 2), ("d", 4)].map(|(name, used_s)| make(&state, name, used_s));
        shrink_to(&state, 5 * MIB, 0);
        assert!(a.exists(), "within the budget nothing goes");
        shrink_to(&state, 3 * MIB + MIB / 2, 0);
        assert_eq!([&a, &b, &c, &d].map(|path| path.exists()), [false, true, true, true]);

        // A use counts, not the age.
        drop(state.mirror("github.com", "b").expect("held"));
        shrink_to(&state, 5 * MIB, MIB / 2);
        assert_eq!([&b, &c, &d].map(|path| path.exists()), [true, false, true], "the disk wants less than the budget");
        let left = fs::read_dir(root.path().join("run/one")).expect("read").count();
        assert_eq!(left, 0, "what was moved away is deleted");
    }

    #[test]
    fn a_mirror_in_use_stays_whichever_process_uses_it() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (state, other) = (open(root.path(), "one"), open(root.path(), "two"));
        let [oldest, newest] = [make(&state, "oldest", 1), make(&state, "newest", 2)];
        let used = other.mirror("github.com", "oldest").expect("held");
        let used_too = state.mirror("github.com", "oldest").expect("held by many");
        drop(used_too);
        shrink_to(&state, 0, u64::MAX);
        assert!(oldest.join("repository.git/pack").exists() && !newest.exists());
        drop(used);
        // A process that another test starts has a copy of the lock for a moment.
        let started = std::time::Instant::now();
        while oldest.exists() && started.elapsed() < Duration::from_secs(10) {
            shrink_to(&state, 0, 0);
        }
        assert!(!oldest.exists());
    }

    #[test]
    fn a_mirror_that_is_held_is_there_although_others_remove_it_all_the_time() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (state, other) = (open(root.path(), "one"), open(root.path(), "two"));
        let over = CancellationToken::new();
        std::thread::scope(|scope| {
            for remover in [&state, &other] {
                scope.spawn(|| {
                    while !over.is_cancelled() {
                        shrink_to(remover, 0, 0);
                    }
                });
            }
            let users = [&state, &other].map(|user| {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let mirror = user.mirror("github.com", "1").map_err(|error| error.to_string())?;
                        let file = mirror.path().join("file");
                        fs::write(&file, "x").map_err(|error| format!("while it is held: {error}"))?;
                        std::thread::yield_now();
                        fs::read(&file).map_err(|error| format!("while it is held: {error}"))?;
                    }
                    Ok::<_, String>(())
                })
            });
            let ends = users.map(|user| user.join().expect("no panic"));
            over.cancel();
            assert_eq!(ends, [const { Ok(()) }; 2]);
        });
    }
}
