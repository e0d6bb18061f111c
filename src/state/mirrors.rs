//! The directories of mirrors: locked while they are used, and removed, the least recently used first, when there is no room.
//!
//! A user of a mirror holds a shared `flock(2)` on its directory. Removal takes the lock exclusively, without waiting, and moves
//! the directory away before it deletes anything. A lock dies with its holder, and every process on this machine sees it. The
//! directory's modification time is the time of the last use. A child writes in a subdirectory and cannot open the locked
//! directory; otherwise it could block everyone who waits for the lock.
//!
//! Mirrors are separate by trust: only builds of forks read what the child of a fork's build has written.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock, futimens};
use tokio_util::sync::CancellationToken;

use super::{JobDirectory, StateDirectory, StateError, make_private};
use crate::beneath::Directory;
use crate::job::Trust;
use crate::metric;

/// The subdirectory of a mirror that a child writes in.
const CONTENT: &str = "mirror";

/// The most levels and entries of a mirror. What has more is not a mirror.
const MAX_DEPTH: usize = 4;
const MAX_ENTRIES: usize = 100_000;

/// The directory of a mirror. No process removes it as long as this exists.
#[derive(Debug)]
pub struct MirrorDirectory {
    path: PathBuf,
    content: PathBuf,
    is_grown: Arc<AtomicBool>,
    /// Held open: the lock shows that the mirror is used.
    held: File,
}

impl MirrorDirectory {
    /// Makes the directory when it is missing, and records the use. Dropping this sets `is_grown`.
    pub(super) fn hold(path: PathBuf, is_grown: Arc<AtomicBool>) -> Result<Self, StateError> {
        let content = path.join(CONTENT);
        loop {
            make_private(&path)?;
            match lock_shared(&path) {
                Ok(Some(held)) => {
                    make_private(&content)?;
                    return Ok(Self { path, content, is_grown, held });
                }
                // Another process removed it in between.
                Ok(None) => {}
                Err(source) => return Err(StateError { path, source }),
            }
        }
    }

    /// Where a child may write.
    pub fn content(&self) -> &Path {
        &self.content
    }

    /// Removes the mirror, unless others use it as well.
    pub async fn discard(self, state: &StateDirectory) -> Result<(), StateError> {
        let failed = |source| StateError { path: self.path.clone(), source };
        if flock(&self.held, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        // Changing the lock is not atomic: the mirror may be gone.
        if is_at(&self.path, &self.held).map_err(failed)? {
            let away = move_away(state, &self.path)?;
            // Frees the lock first: removing takes longer than the rename.
            drop(self);
            away.remove().await;
        }
        Ok(())
    }
}

impl Drop for MirrorDirectory {
    fn drop(&mut self) {
        self.is_grown.store(true, Ordering::Relaxed);
    }
}

/// The directory at `path`, locked; `None` when it is gone.
fn lock_shared(path: &Path) -> io::Result<Option<File>> {
    let held = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // Removal holds the lock for no longer than a rename.
    flock(&held, FlockOperation::LockShared)?;
    if !is_at(path, &held)? {
        return Ok(None);
    }
    let (omitted, now) = (Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, Timespec { tv_sec: 0, tv_nsec: UTIME_NOW });
    futimens(&held, &Timestamps { last_access: omitted, last_modification: now })?;
    Ok(Some(held))
}

/// Whether `path` leads to the open file: it may have been moved away before it was locked.
pub(super) fn is_at(path: &Path, held: &File) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.metadata()?.dev(), held.metadata()?.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A mirror as the survey found it.
struct FoundMirror {
    path: PathBuf,
    used_at: SystemTime,
    /// Its size on the disk. `None` when it is not a mirror: a child has left something else in it, or an older version made it.
    size_bytes: Option<u64>,
}

/// Removes what is not a mirror, and then unused mirrors, the least recently used first. Stops when all together have at most
/// `max_bytes`, `missing_bytes` were freed and nothing `is_short`; also when none is left, or `stop` is cancelled.
///
/// Blocks: it reads the size of every file of every mirror.
pub(super) fn shrink(
    state: &StateDirectory,
    max_bytes: u64,
    missing_bytes: u64,
    is_short: impl Fn() -> bool,
    stop: &CancellationToken,
) {
    let mut mirrors = survey(&state.root.join("mirrors"));
    mirrors.sort_by_key(|mirror| (mirror.size_bytes.is_some(), mirror.used_at));
    let total_bytes: u64 = mirrors.iter().filter_map(|mirror| mirror.size_bytes).sum();
    let excess_bytes = total_bytes.saturating_sub(max_bytes).max(missing_bytes);
    let (mut n_removed, mut freed_bytes) = (0, 0);
    for mirror in &mirrors {
        let is_enough = mirror.size_bytes.is_some() && freed_bytes >= excess_bytes && !is_short();
        if is_enough || stop.is_cancelled() {
            break;
        }
        match remove_unused(state, mirror) {
            Ok(true) => (n_removed, freed_bytes) = (n_removed + 1, freed_bytes + mirror.size_bytes.unwrap_or(0)),
            Ok(false) => {}
            Err(error) => {
                // The next one would fail in the same way.
                tracing::warn!(event = "mirror_not_removed", path = %mirror.path.display(), %error, "mirror could not be removed");
                break;
            }
        }
    }
    metric::MIRRORS.set([], total_bytes.saturating_sub(freed_bytes) as f64);
    if n_removed > 0 {
        metric::MIRRORS_REMOVED.add([], n_removed);
        tracing::info!(
            event = "mirrors_removed",
            n_removed,
            freed_bytes,
            of_bytes = total_bytes,
            "least recently used mirrors removed"
        );
    }
}

/// Removes a mirror unless it is in use, or was used since the survey; returns whether it did.
fn remove_unused(state: &StateDirectory, mirror: &FoundMirror) -> Result<bool, StateError> {
    let failed = |source| StateError { path: mirror.path.clone(), source };
    let Ok(held) = File::open(&mirror.path) else { return Ok(false) };
    if flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    let used_at = held.metadata().and_then(|metadata| metadata.modified()).map_err(failed)?;
    if used_at != mirror.used_at || !is_at(&mirror.path, &held).map_err(failed)? {
        return Ok(false);
    }
    let trash = move_away(state, &mirror.path)?;
    drop(held);
    drop(trash);
    Ok(true)
}

/// Moves a mirror into a job's directory. If the worker is killed while it deletes it, the next start on this machine deletes the
/// rest.
fn move_away(state: &StateDirectory, mirror: &Path) -> Result<JobDirectory, StateError> {
    let trash = state.job_directory()?;
    fs::rename(mirror, trash.join(CONTENT)).map_err(|source| StateError { path: mirror.to_owned(), source })?;
    Ok(trash)
}

impl StateDirectory {
    /// How many mirrors there are, of all processes.
    pub fn n_mirrors(&self) -> usize {
        let trusts = Trust::ALL.iter().flat_map(|trust| directories(&self.root.join("mirrors").join(trust.name())));
        trusts.map(|host| directories(&host).len()).sum()
    }
}

/// Finds all mirrors. Those that vanish meanwhile are left out.
fn survey(mirrors: &Path) -> Vec<FoundMirror> {
    let is_trust = |path: &Path| Trust::ALL.iter().any(|trust| path.ends_with(trust.name()));
    // In older versions, the first level was the host.
    let (trusts, hosts): (Vec<_>, Vec<_>) = directories(mirrors).into_iter().partition(|path| is_trust(path));
    let mirrors = trusts.iter().flat_map(|trust| directories(trust)).flat_map(|host| directories(&host));
    let mirrors = mirrors.map(|path| (size_bytes(&path), path));
    let old = hosts.iter().flat_map(|host| directories(host)).map(|path| (None, path));
    let found = |(size_bytes, path): (Option<u64>, PathBuf)| {
        let used_at = path.symlink_metadata().and_then(|metadata| metadata.modified()).ok()?;
        Some(FoundMirror { path, used_at, size_bytes })
    };
    mirrors.chain(old).filter_map(found).collect()
}

/// The subdirectories of one of the worker's own directories.
fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn size_bytes(mirror: &Path) -> Option<u64> {
    Directory::open(mirror).and_then(|mirror| mirror.size_bytes(MAX_DEPTH, MAX_ENTRIES)).ok()?
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
        let mirror = state.mirror(Trust::Branch, "github.com", repository).expect("made");
        fs::write(mirror.content().join("pack"), vec![b'x'; MIB as usize]).expect("written");
        let path = mirror.path.clone();
        drop(mirror);
        let used_at = SystemTime::UNIX_EPOCH + Duration::from_secs(used_s);
        File::open(&path).expect("opened").set_modified(used_at).expect("set");
        // A process that another test starts has a copy of the lock until it executes its program.
        let unused = File::open(&path).expect("opened");
        flock(&unused, FlockOperation::LockExclusive).expect("locked");
        path
    }

    fn shrink_to(state: &StateDirectory, max_bytes: u64, missing_bytes: u64) {
        shrink(state, max_bytes, missing_bytes, || false, &CancellationToken::new());
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
        drop(state.mirror(Trust::Branch, "github.com", "b").expect("held"));
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
        let used = other.mirror(Trust::Branch, "github.com", "oldest").expect("held");
        let used_too = state.mirror(Trust::Branch, "github.com", "oldest").expect("held by many");
        drop(used_too);
        shrink_to(&state, 0, u64::MAX);
        assert!(oldest.join("mirror/pack").exists() && !newest.exists());
        drop(used);
        // A process that another test starts has a copy of the lock for a moment.
        let started = std::time::Instant::now();
        while oldest.exists() && started.elapsed() < Duration::from_secs(10) {
            shrink_to(&state, 0, 0);
        }
        assert!(!oldest.exists());
    }

    #[test]
    fn a_held_mirror_survives_constant_removals() {
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
                        let mirror =
                            user.mirror(Trust::Branch, "github.com", "1").map_err(|error| error.to_string())?;
                        let file = mirror.content().join("file");
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

    #[test]
    fn what_is_not_a_mirror_is_removed_within_the_budget_too() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let state = open(root.path(), "one");
        let whole = make(&state, "whole", 1);
        // As in older versions, which had no level for the trust.
        let old = root.path().join("mirrors/github.com/7");
        fs::create_dir_all(old.join("repository.git/refs")).expect("made");
        for file in ["lock", "readers"] {
            fs::write(old.join(file), "").expect("written");
        }
        let nest = make(&state, "nest", 2);
        fs::create_dir_all(nest.join("mirror/a/b/c/d/e")).expect("made");
        // The disk stores it once, and each name would count.
        let linked = make(&state, "linked", 3);
        fs::hard_link(linked.join("mirror/pack"), linked.join("mirror/again")).expect("linked");
        shrink_to(&state, 5 * MIB, 0);
        assert_eq!([&whole, &old, &nest, &linked].map(|path| path.exists()), [true, false, false, false]);

        // One that is in use stays.
        fs::create_dir_all(&old).expect("made");
        let held = File::open(&old).expect("opened");
        flock(&held, FlockOperation::LockShared).expect("locked");
        shrink_to(&state, 5 * MIB, 0);
        assert!(old.exists());
    }

    #[tokio::test]
    async fn only_the_last_user_discards_a_mirror_and_mirrors_are_separate_by_trust() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let state = open(root.path(), "one");
        let [fork, branch] =
            [Trust::Fork, Trust::Branch].map(|trust| state.mirror(trust, "github.com", "1").expect("made"));
        for mirror in [&fork, &branch] {
            fs::write(mirror.content().join("file"), "x").expect("written");
        }
        let again = state.mirror(Trust::Fork, "github.com", "1").expect("held by two");
        again.discard(&state).await.expect("left");
        assert!(fork.content().join("file").exists(), "others use it");
        fork.discard(&state).await.expect("removed");
        let fork = state.mirror(Trust::Fork, "github.com", "1").expect("made");
        assert_eq!([&fork, &branch].map(|mirror| mirror.content().join("file").exists()), [false, true]);
    }
}
