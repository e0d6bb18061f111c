//! A commit's files, and what they used of a build's limits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{SourceError, Submodule};
use crate::beneath::{Destination, Directory};
use crate::cache::Changes;
use crate::job::Commit;

/// What commits have used of a build's limits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Entries and bytes.
    pub size: Size,
    /// Time for fetch and checkout.
    pub time: Duration,
}

impl Spent {
    /// Adds what a worktree has used.
    pub fn add(&mut self, worktree: &Worktree) {
        self.size.n_entries = self.size.n_entries.saturating_add(worktree.size.n_entries);
        self.size.n_bytes = self.size.n_bytes.saturating_add(worktree.size.n_bytes);
        self.time += worktree.took;
    }
}

/// How large a commit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Files and directories.
    pub n_entries: u64,
    /// Bytes of all files.
    pub n_bytes: u64,
}

/// A commit's files.
#[derive(Clone, Debug)]
pub struct Worktree {
    /// Its root.
    pub path: PathBuf,
    /// The commit.
    pub commit: Option<Commit>,
    /// How long the child ran that created it: it counts against the build's limit.
    pub took: Duration,
    /// How large the commit is, without its submodules.
    pub size: Size,
    /// Files that are Git LFS pointers, by their paths from the root.
    pub lfs_pointers: Vec<PathBuf>,
    /// Its symbolic links, by their paths from the root; `None` when there are too many.
    pub links: Option<Vec<String>>,
    /// Whether the child says that the requested id is an annotated tag's.
    pub is_tag: bool,
    /// Files that git would write in another encoding, at most one more than [`super::MAX_ENCODED`].
    pub encoded: Vec<String>,
    /// How it differs from older commits.
    pub changes: Vec<Changes>,
    /// Its submodules, as empty directories: at most one more than [`super::submodules::MAX_SUBMODULES`].
    pub submodules: Vec<Submodule>,
}

impl Worktree {
    /// Removes a submodule's empty directory and returns it as the destination of the submodule's files.
    ///
    /// # Errors
    ///
    /// `Submodule` when there is no such directory, or when its path leads through a link.
    pub fn make_room(&self, submodule: &Submodule) -> Result<Destination, SourceError> {
        let refused = |message: String| SourceError::Submodule { path: submodule.path.clone(), message };
        let relative = Path::new(&submodule.path);
        let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
            return Err(refused("has no directory in the worktree".into()));
        };
        let opened = Directory::open(&self.path).and_then(|root| root.directory(parent));
        let parent = opened.map_err(|error| refused(format!("has no directory in the worktree: {error}")))?;
        parent.remove_empty(name).map_err(|error| refused(format!("has no empty directory: {error}")))?;
        Ok(Destination { path: self.path.join(relative), parent })
    }

    /// Moves all paths that the build still needs below `path`, where another worktree has this one as a submodule.
    pub fn move_below(&mut self, path: &str) {
        for pointer in &mut self.lfs_pointers {
            *pointer = Path::new(path).join(&*pointer);
        }
        for submodule in &mut self.submodules {
            submodule.path = format!("{path}/{}", submodule.path);
        }
    }
}
