//! Room on the disk: looked at all the time, made by removing mirrors, and told when there is none.

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

/// How often the free space is looked at, which is one system call.
const LOOK: Duration = Duration::from_secs(2);

/// How often at most the mirrors are added up, which is one for each of their files.
const SURVEY: Duration = Duration::from_secs(30);

/// Keeps the mirrors within their budget and the disk above its watermark, until `ended`.
///
/// `has_room` becomes true when the first look finds room, and false when there is too little even without the mirrors that
/// nobody uses. There is no second, higher watermark: with room for one job, one job is taken.
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
        let mut free_bytes = free(state);
        let missing_bytes = limits.min_free_bytes.saturating_sub(free_bytes);
        let is_due = Instant::now() >= survey_at;
        // Before the worker stops fetching, mirrors go.
        if missing_bytes > 0 && (is_due || !is_low) || is_due && state.is_grown.swap(false, Ordering::Relaxed) {
            let (state, max_bytes, stop) = (Arc::clone(state), limits.mirrors_max_bytes, ended.clone());
            let removed = spawn_blocking(move || shrink(&state, max_bytes, missing_bytes, &stop)).await;
            removed.expect("removing mirrors does not panic");
            survey_at = Instant::now() + SURVEY;
        }
        if missing_bytes > 0 {
            free_bytes = free(state);
        }
        let was_low = std::mem::replace(&mut is_low, free_bytes < limits.min_free_bytes);
        if is_low != was_low {
            tell(state, is_low, free_bytes, limits.min_free_bytes);
        }
        has_room.send_if_modified(|has_room| std::mem::replace(has_room, !is_low) == is_low);
        sleep(LOOK).await;
    }
}

fn tell(state: &StateDirectory, is_low: bool, free_bytes: u64, min_free_bytes: u64) {
    let path = state.root.display();
    if is_low {
        let what = "the disk is low: no jobs are fetched until it has room again; running builds go on";
        tracing::error!(%path, free_bytes, min_free_bytes, "{what}");
    } else {
        tracing::info!(%path, free_bytes, min_free_bytes, "the disk has room again: jobs are fetched");
    }
}

/// Without an answer there is room: the jobs will say what is wrong with the disk.
fn free(state: &StateDirectory) -> u64 {
    state.free_bytes().unwrap_or(u64::MAX)
}

impl StateDirectory {
    /// Bytes that this user may still write to the file system of the state directory.
    pub fn free_bytes(&self) -> Result<u64, StateError> {
        let found = rustix::fs::statvfs(&self.root);
        let space = found.map_err(|error| StateError { path: self.root.clone(), source: error.into() })?;
        Ok(space.f_bavail * space.f_frsize)
    }
}
