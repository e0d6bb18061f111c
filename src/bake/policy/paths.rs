//! Contexts and Dockerfiles: inside the worktree, after symbolic links.
//!
//! `cwd://` is a path from the directory in which buildx reads the definition, and gets the same check.

use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::arguments::check_name;
use super::image_name::ImageName;
use super::{Refusal, Rules};
use crate::beneath::{Directory, leads_out};

/// What buildx takes for a path from its working directory.
const FROM_HERE: &str = "cwd://";

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
            let path = self.path(&format!("contexts.{}", name.escape_debug()));
            self.check_context_name(&name).map_err(|message| Refusal::new(&path, message))?;
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

    /// A context of the frontend's own name takes its place, also where the configuration pins it.
    fn check_context_name(&self, name: &str) -> Result<(), String> {
        check_name(name)?;
        let frontend = self.grants.policy.frontend.as_deref().and_then(|frontend| frontend.split_whitespace().next());
        // It may be for one platform.
        let image = name.split("::").next().unwrap_or(name);
        match frontend {
            Some(frontend) if ImageName::parse(frontend) == ImageName::parse(image) => {
                Err(format!("would take the place of the frontend {frontend}"))
            }
            _ => Ok(()),
        }
    }

    /// A Dockerfile, from its context: it may be a link, and may lie outside of the context, but not of the worktree.
    pub(super) fn dockerfile(&self, value: &Value, context: &Value) -> Result<Value, Refusal> {
        let path = self.path("dockerfile");
        let text = value.as_str().ok_or_else(|| Refusal::new(&path, "expected a string"))?;
        let refused = |place: &str| Err(Refusal::new(&path, format!("{text:?} is outside of the {place}")));
        let context = context.as_str().unwrap_or_default();
        if self.is_remote_allowed(context) {
            // A path in what the builder fetches.
            let is_below = !text.contains("://") && !text.starts_with('/') && !leads_up(text);
            return if is_below { Ok(json!(text)) } else { refused("context") };
        }
        let (file, value) = match text.strip_prefix(FROM_HERE) {
            // The bake runs in another directory than the one in which the definition was read.
            Some(from_here) => {
                let file = fold(&self.folder.join(from_here));
                let value = json!(file);
                (file, value)
            }
            None if text.contains("://") => return refused("repository"),
            None => (dockerfile(Path::new(context), text), json!(text)),
        };
        match self.resolve(&path, &file)? {
            Place::Outside => refused("repository"),
            // BuildKit says better than we could that it is not there.
            Place::Inside(_) | Place::Nowhere => Ok(value),
        }
    }

    fn is_remote_allowed(&self, text: &str) -> bool {
        // What would lead elsewhere than it says is no pattern's match.
        let is_plain = !leads_up(text) && !text.contains(['\\', '%', '@']);
        let url = without_default_port(text);
        let mut patterns = self.grants.policy.remote_contexts.iter();
        text.contains("://") && is_plain && !self.grants.is_fork() && patterns.any(|pattern| pattern.matches(&url))
    }

    /// A path below `base` that stays inside the worktree after symbolic links.
    fn inside(&self, path: &str, base: &Path, text: &str) -> Result<PathBuf, Refusal> {
        let text = text.strip_prefix(FROM_HERE).unwrap_or(text);
        // What is not a path for buildx must not be one for us.
        let is_remote = text.contains("://") || text.starts_with("git@") || text.starts_with("oci-layout:");
        if is_remote || text == "-" || text.starts_with("target:") {
            return Err(Refusal::new(path, format!("{text:?} is not a directory of the repository")));
        }
        match self.resolve(path, &base.join(text))? {
            Place::Inside(found) => Ok(found),
            Place::Outside => Err(Refusal::new(path, format!("{text:?} is outside of the repository"))),
            Place::Nowhere => Err(Refusal::new(path, format!("{text:?} is not in the repository"))),
        }
    }

    /// Where a path leads by the links of the worktree. Nothing outside of it is looked at.
    fn resolve(&self, path: &str, file: &Path) -> Result<Place, Refusal> {
        let root = self.request.worktree;
        let Ok(relative) = file.strip_prefix(root) else { return Ok(Place::Outside) };
        let directory = Directory::open(root)
            .map_err(|error| Refusal::new(path, format!("the worktree cannot be read: {error}")))?;
        Ok(match directory.resolve(relative) {
            // Joined with nothing, a path gets a slash at its end.
            Ok(found) if found.path == Path::new("") => Place::Inside(root.to_owned()),
            Ok(found) => Place::Inside(root.join(found.path)),
            Err(error) if leads_out(&error) => Place::Outside,
            Err(_) => Place::Nowhere,
        })
    }
}

/// Where a path leads.
enum Place {
    /// To this path in the worktree, in which no link is left.
    Inside(PathBuf),
    Outside,
    Nowhere,
}

/// The URL as patterns have it; upper and lower case do not matter to them.
fn without_default_port(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    format!("{scheme}://{}{path}", host.strip_suffix(port).unwrap_or(host))
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
