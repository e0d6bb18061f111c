//! Contexts and Dockerfiles: inside the worktree, after symbolic links.

use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::{Refusal, Rules};

/// Named contexts of one target.
const MAX_CONTEXTS: usize = 50;

impl Rules<'_> {
    /// A build context: a directory of the worktree as an absolute path, or a URL that the account may use.
    pub(super) fn context(&self, context: &str) -> Result<Value, Refusal> {
        let path = self.path("context");
        if self.is_remote_allowed(context) {
            return Ok(json!(context));
        }
        Ok(json!(self.inside(&path, self.folder, context)?))
    }

    pub(super) fn named_contexts(&self, value: Value) -> Result<Value, Refusal> {
        let Value::Object(contexts) = value else { return Err(self.refusal("contexts", "expected an object")) };
        if contexts.len() > MAX_CONTEXTS {
            return Err(self.refusal("contexts", format!("at most {MAX_CONTEXTS} are allowed")));
        }
        let police_one = |(name, value): (String, Value)| {
            let path = self.path(&format!("contexts.{name}"));
            let text = value.as_str().ok_or_else(|| Refusal::new(&path, "expected a string"))?;
            if let Some(target) = text.strip_prefix("target:") {
                let is_known = self.names.iter().any(|name| name == target);
                return if is_known { Ok((name, value)) } else { Err(Refusal::new(path, "there is no such target")) };
            }
            if text.starts_with("docker-image://") || self.is_remote_allowed(text) {
                return Ok((name, value));
            }
            let inside = self.inside(&path, self.folder, text)?;
            Ok((name, json!(inside)))
        };
        contexts.into_iter().map(police_one).collect()
    }

    /// A Dockerfile, from its context: it may be a link, and may lie outside of the context, but not of the worktree.
    pub(super) fn dockerfile(&self, value: Value, context: &Value) -> Result<Value, Refusal> {
        let path = self.path("dockerfile");
        let text = value.as_str().ok_or_else(|| Refusal::new(&path, "expected a string"))?;
        let context = context.as_str().unwrap_or_default();
        if self.is_remote_allowed(context) {
            // A path in what the builder fetches.
            let is_below = !text.contains("://") && !text.starts_with('/') && !leads_up(text);
            return match is_below {
                true => Ok(value),
                false => Err(Refusal::new(path, format!("{text:?} is outside of the context"))),
            };
        }
        if text.contains("://") {
            return Err(Refusal::new(path, format!("{text:?} is outside of the repository")));
        }
        let context = Path::new(context);
        let file = dockerfile(context, text);
        if file.symlink_metadata().is_ok() {
            return self.inside(&path, context, &file.to_string_lossy()).map(|_| value);
        }
        // It is not there, and BuildKit says so better than we could; where it would be must be ours all the same.
        let root = self.root(&path)?;
        let folder = file.ancestors().find_map(|folder| folder.canonicalize().ok());
        let is_ours = file.starts_with(&root) && folder.is_some_and(|folder| folder.starts_with(&root));
        if is_ours { Ok(value) } else { Err(Refusal::new(path, format!("{text:?} is outside of the repository"))) }
    }

    fn is_remote_allowed(&self, text: &str) -> bool {
        // What would lead elsewhere than it says is no pattern's match.
        let is_plain = !leads_up(text) && !text.contains(['\\', '%', '@']);
        let mut patterns = self.grants.policy.remote_contexts.iter();
        text.contains("://") && is_plain && !self.grants.is_fork() && patterns.any(|pattern| pattern.matches(text))
    }

    fn root(&self, path: &str) -> Result<PathBuf, Refusal> {
        let root = self.order.worktree.canonicalize();
        root.map_err(|error| Refusal::new(path, format!("the worktree cannot be read: {error}")))
    }

    /// A path below `base` that stays inside the worktree after symbolic links.
    fn inside(&self, path: &str, base: &Path, text: &str) -> Result<PathBuf, Refusal> {
        // What is not a path for buildx must not be one for us.
        let is_remote = text.contains("://") || text.starts_with("git@") || text.starts_with("oci-layout:");
        if is_remote || text == "-" || text.starts_with("target:") {
            return Err(Refusal::new(path, format!("{text:?} is not a directory of the repository")));
        }
        let root = self.root(path)?;
        let found = base
            .join(text)
            .canonicalize()
            .map_err(|_| Refusal::new(path, format!("{text:?} is not in the repository")))?;
        if found.starts_with(&root) {
            Ok(found)
        } else {
            Err(Refusal::new(path, format!("{text:?} is outside of the repository")))
        }
    }
}

fn leads_up(text: &str) -> bool {
    Path::new(text).components().any(|part| part == Component::ParentDir)
}

/// Where buildx looks for the Dockerfile of a local context: it folds `..` as text, before any link is followed, and so what is
/// judged must be that path.
pub(in crate::bake) fn dockerfile(context: &Path, path: &str) -> PathBuf {
    fold(&context.join(path))
}

/// The path without `.` and `..`, as text, whatever is there.
fn fold(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut folded, part| {
        match part {
            Component::ParentDir => drop(folded.pop()),
            Component::CurDir => {}
            other => folded.push(other),
        }
        folded
    })
}
