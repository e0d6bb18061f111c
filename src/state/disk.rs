//! Room on the disk: watches the free space, removes mirrors to make room, and reports when there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::mirrors::shrink;
use super::{StateDirectory, StateError};
use crate::settings;

/// How often the free space is read, with one system call.
const LOOK: Duration = Duration::from_secs(2);

/// The shortest time between two surveys of the mirrors, which read the size of every file.
const SURVEY: Duration = Duration::from_secs(30);

/// Free inodes that a disk must have, where it counts them; on a small disk a twentieth of them.
const MIN_FREE_FILES: u64 = 100_000;

/// Keeps the mirrors within their budget and the disk above its watermark, until `ended`.
///
/// `has_room` becomes true when the first look finds room. It becomes false when there is too little even without the unused
/// mirrors. There is no second, higher watermark: with room for one job, the worker fetches one job.
pub async fn watch(
    state: Arc<StateDirectory>,
    limits: &settings::State,
    has_room: &watch::Sender<bool>,
    ended: &CancellationToken,
) {
    ended.run_until_cancelled(look(&state, limits, has_room, ended)).await;
}

async fn look(
    state: &Arc<StateDirectory>,
    limits: &settings::State,
    has_room: &watch::Sender<bool>,
    ended: &CancellationToken,
) {
    let (mut is_low, mut survey_at) = (false, Instant::now());
    loop {
        let mut free = Free::of(state);
        let missing_bytes = limits.min_free_bytes.saturating_sub(free.n_bytes);
        let is_short = missing_bytes > 0 || free.is_short_of_files();
        let is_due = Instant::now() >= survey_at;
        // Removes mirrors before the worker stops fetching.
        if is_short && (is_due || !is_low) || is_due && state.is_grown.swap(false, Ordering::Relaxed) {
            let (state, max_bytes, stop) = (Arc::clone(state), limits.mirrors_max_bytes, ended.clone());
            let is_short = {
                let state = Arc::clone(&state);
                move || Free::of(&state).is_short_of_files()
            };
            let removed = spawn_blocking(move || shrink(&state, max_bytes, missing_bytes, is_short, &stop)).await;
            removed.expect("removing mirrors does not panic");
            survey_at = Instant::now() + SURVEY;
        }
        if is_short {
            free = Free::of(state);
        }
        let is_low_now = free.n_bytes < limits.min_free_bytes || free.is_short_of_files();
        let was_low = std::mem::replace(&mut is_low, is_low_now);
        if is_low != was_low {
            log(state, is_low, free, limits.min_free_bytes);
        }
        has_room.send_if_modified(|has_room| std::mem::replace(has_room, !is_low) == is_low);
        sleep(LOOK).await;
    }
}

fn log(state: &StateDirectory, is_low: bool, free: Free, min_free_bytes: u64) {
    let path = state.root.display();
    let Free { n_bytes: free_bytes, n_files: free_files, .. } = free;
    if is_low {
        let message = "low disk space; fetching no jobs until there is room, running builds go on";
        tracing::error!(event = "disk_low", %path, free_bytes, min_free_bytes, free_files, "{message}");
    } else {
        tracing::info!(event = "disk_has_room", %path, free_bytes, min_free_bytes, free_files, "the disk has room again; fetching jobs");
    }
}

/// The free space of the state directory's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Free {
    n_bytes: u64,
    n_files: u64,
    /// All inodes; 0 where the file system counts none.
    n_files_in_all: u64,
}

impl Free {
    /// An unknown amount counts as room: the jobs will report what is wrong with the disk.
    fn of(state: &StateDirectory) -> Self {
        state.free().unwrap_or(Self { n_bytes: u64::MAX, n_files: 0, n_files_in_all: 0 })
    }

    fn is_short_of_files(self) -> bool {
        self.n_files < MIN_FREE_FILES.min(self.n_files_in_all / 20)
    }
}

impl StateDirectory {
    /// Bytes that this user may still write to the file system of the state directory.
    pub fn free_bytes(&self) -> Result<u64, StateError> {
        Ok(self.free()?.n_bytes)
    }

    fn free(&self) -> Result<Free, StateError> {
        let found = rustix::fs::statvfs(&self.root);
        let space = found.map_err(|error| StateError { path: self.root.clone(), source: error.into() })?;
        let n_bytes = space.f_bavail * space.f_frsize;
        Ok(Free { n_bytes, n_files: space.f_favail, n_files_in_all: space.f_files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_short_of_inodes_by_its_size_and_never_where_it_counts_none() {
        for (n_files, n_files_in_all, is_short) in [
            (99_999, 10_000_000, true),
            (100_000, 10_000_000, false),
            (149, 3_000, true),
            (150, 3_000, false),
            (0, 0, false),
        ] {
            let free = Free { n_bytes: 0, n_files, n_files_in_all };
            assert_eq!(free.is_short_of_files(), is_short, "{free:?}");
        }
    }
}
