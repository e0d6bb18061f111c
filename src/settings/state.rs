//! `[state]`: where the worker keeps files.

use std::path::PathBuf;

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// Where the worker keeps files.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Directory of mirrors, worktrees and working directories. It is a cache: it may be lost at any time. Machines must not
    /// share it.
    pub directory: PathBuf,
    /// Bytes on disk of all mirrors together. Above it, the worker removes the least recently used mirrors, never one in use.
    pub mirrors_max_bytes: u64,
    /// Free bytes on that disk. Below it, the worker removes mirrors, then fetches no jobs until there is room.
    pub min_free_bytes: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { directory: "/var/lib/sidebake".into(), mirrors_max_bytes: 20 << 30, min_free_bytes: 2 << 30 }
    }
}

impl State {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if !self.directory.is_absolute() {
            return refuse("state.directory", "must be an absolute path");
        }
        Ok(())
    }
}
