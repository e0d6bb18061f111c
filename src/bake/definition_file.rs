//! A repository's file that holds a definition: whether buildx may read it, and in which directory.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{BakeError, BakeRequest};
use crate::beneath::{Directory, is_link, leads_out};
use crate::job::{Recipe, RepositoryFile};

/// The largest definition, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Refuses a definition that buildx must not even read.
///
/// It must be a regular file of the repository, not a link: buildx quotes lines that it cannot parse. The `.env` that it reads
/// with a compose file may be a link within the worktree.
pub fn admit(request: &BakeRequest<'_>) -> Result<(), BakeError> {
    let Recipe::File(RepositoryFile { path, .. }) = &request.build.recipe else { return Ok(()) };
    let refused = |what: &str| Err(BakeError::Invalid(format!("{path}: {what}")));
    let Ok(root) = Directory::open(request.worktree) else { return refused("the repository cannot be read") };
    let path = Path::new(path);
    match root.file_size(path) {
        Ok(size) if size > MAX_FILE => return refused("is larger than 1 MiB"),
        Ok(_) => {}
        Err(error) if is_link(&error) => return refused("is a symbolic link; expected a regular file"),
        Err(error) if error.kind() == ErrorKind::InvalidInput => return refused("is not a regular file"),
        Err(_) => return refused("no such file in the repository"),
    }
    let variables = root.resolve(&path.with_file_name(".env"));
    if is_compose(path) && variables.is_err_and(|error| leads_out(&error)) {
        return refused("the .env file beside it links outside of the repository");
    }
    Ok(())
}

/// The directory where the paths of a request's definition start.
pub(super) fn folder(request: &BakeRequest<'_>) -> PathBuf {
    match &request.build.recipe {
        Recipe::File(file) => locate(request.worktree, &file.path).0,
        Recipe::Application(_) | Recipe::Inline(_) => request.worktree.to_owned(),
    }
}

/// The directory and the name of a definition: a compose file is read in its own directory, a bake file in the root.
pub(super) fn locate(worktree: &Path, file: &str) -> (PathBuf, String) {
    let path = Path::new(file);
    match (is_compose(path), path.parent(), path.file_name()) {
        (true, Some(folder), Some(name)) => (worktree.join(folder), name.to_string_lossy().into_owned()),
        _ => (worktree.to_owned(), file.to_owned()),
    }
}

fn is_compose(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml")
}
