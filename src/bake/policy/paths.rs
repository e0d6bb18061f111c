//! Contexts and Dockerfiles: inside the worktree, after symbolic links.
//!
//! `cwd://` is a path from the directory where buildx reads the definition. It gets the same check.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::arguments::check_name;
use super::image_name::ImageName;
use super::near::near;
use super::{Refusal, Rules, dockerfile};
use crate::beneath::{Directory, ResolvedPath, leads_out};
use crate::bounds;
use crate::name::reference;
use crate::reason::Reason;

/// The prefix of a path from buildx's working directory.
const FROM_HERE: &str = "cwd://";

/// The most named contexts of a target.
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
        let Value::Object(contexts) = value else { return Err(self.invalid("contexts", "expected an object")) };
        if contexts.len() > MAX_CONTEXTS {
            return Err(self.refusal("contexts", format!("at most {MAX_CONTEXTS} are allowed")));
        }
        let validate_one = |(name, value): (String, Value)| {
            let path = self.path(&format!("contexts.{}", name.escape_debug()));
            self.check_context_name(&name).map_err(|message| Refusal::not_allowed(&path, message))?;
            let text = value.as_str().ok_or_else(|| Refusal::invalid(&path, "expected a string"))?;
            if let Some(target) = text.strip_prefix("target:") {
                let is_known = self.names.iter().any(|name| name == target);
                return if is_known {
                    Ok((name, value))
                } else {
                    Err(Refusal::invalid(path, format!("no target {target:?} in the definition")))
                };
            }
            if let Some(image) = text.strip_prefix("docker-image://") {
                reference::check_reference(image).map_err(|message| Refusal::invalid(&path, message))?;
                return Ok((name, value));
            }
            if self.is_remote_allowed(text) {
                return Ok((name, value));
            }
            let inside = self.inside(&path, self.folder, text)?;
            Ok((name, json!(inside)))
        };
        contexts.into_iter().map(validate_one).collect()
    }

    /// Refuses a named context with the name of the frontend: it would replace the frontend, even a pinned one.
    fn check_context_name(&self, name: &str) -> Result<(), String> {
        check_name(name)?;
        let frontend = self.grants.policy.frontend.as_deref().and_then(|frontend| frontend.split_whitespace().next());
        // The name may be limited to one platform.
        let image = name.split("::").next().unwrap_or(name);
        match frontend {
            Some(frontend) if ImageName::parse(frontend) == ImageName::parse(image) => {
                Err(format!("would replace the frontend {frontend}; choose another name"))
            }
            _ => Ok(()),
        }
    }

    /// A Dockerfile, relative to its context. It may be a link and may lie outside of the context, but not of the worktree.
    pub(super) fn dockerfile(&self, value: &Value, context: &Value, is_inline: bool) -> Result<Value, Refusal> {
        let path = self.path("dockerfile");
        let text = value.as_str().ok_or_else(|| Refusal::invalid(&path, "expected a string"))?;
        let refused = |area: &str| Err(Refusal::not_allowed(&path, format!("{text:?} is outside of the {area}")));
        let context = context.as_str().unwrap_or_default();
        if self.is_remote_allowed(context) {
            // A path in the source that the builder fetches.
            let is_below = !text.contains("://") && !text.starts_with('/') && !leads_up(text);
            return if is_below { Ok(json!(text)) } else { refused("context") };
        }
        let (file, value) = match text.strip_prefix(FROM_HERE) {
            // The bake's working directory differs from the one where the definition was read.
            Some(from_here) => {
                let file = fold(&self.folder.join(from_here));
                let value = json!(file);
                (file, value)
            }
            None if text.contains("://") => return refused("repository"),
            None => (dockerfile(Path::new(context), text), json!(text)),
        };
        match self.resolve(&path, &file)? {
            Resolved::Outside => refused("repository"),
            // The field is a default without meaning.
            _ if is_inline => Ok(value),
            Resolved::Inside { is_directory: true, .. } => {
                Err(Refusal::new(Reason::DockerfileNotFound, path, format!("{text:?} is a directory")))
            }
            Resolved::Inside { path: found, .. } => self.check_dockerfile(&path, text, &found).map(|()| value),
            Resolved::Nowhere if self.has_lower_case(&file) => Ok(value),
            Resolved::Nowhere => Err(self.missing(Reason::DockerfileNotFound, &path, text, &file)),
        }
    }

    /// Checks the text of a Dockerfile, which BuildKit reads up to a size.
    fn check_dockerfile(&self, path: &str, text: &str, found: &Path) -> Result<(), Refusal> {
        let invalid = |message: String| Refusal::new(Reason::DockerfileInvalid, path, format!("{text:?}: {message}"));
        let root = self.request.worktree;
        let (Ok(directory), Ok(found)) = (Directory::open(root), found.strip_prefix(root)) else { return Ok(()) };
        // The instruction that makes a file too large is named up to some size.
        match directory.read(found, 4 * bounds::DOCKERFILE) {
            Ok(content) => dockerfile::check(&content).map_err(invalid),
            Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                let size = directory.file_size(found).unwrap_or_default();
                Err(invalid(dockerfile::too_large(size, "")))
            }
            // BuildKit reports it.
            Err(_) => Ok(()),
        }
    }

    /// Whether BuildKit takes `dockerfile` in place of `Dockerfile`.
    fn has_lower_case(&self, file: &Path) -> bool {
        let root = self.request.worktree;
        let other = file.with_file_name("dockerfile");
        let (Ok(directory), Ok(other)) = (Directory::open(root), other.strip_prefix(root)) else { return false };
        file.file_name().is_some_and(|name| name == "Dockerfile") && directory.is_there(other)
    }

    /// The refusal of a path to nothing, with the name that it probably means.
    fn missing(&self, reason: Reason, field: &str, text: &str, file: &Path) -> Refusal {
        let root = self.request.worktree;
        let file = fold(file);
        let inside = Directory::open(root).ok().zip(file.strip_prefix(root).ok());
        let other = inside.and_then(|(root, file)| near(&root, file, reason == Reason::ContextNotFound));
        let hint = other.map(|other| format!(", but {other:?} is")).unwrap_or_default();
        Refusal::new(reason, field, format!("{text:?} is not in the repository{hint}"))
    }

    fn is_remote_allowed(&self, text: &str) -> bool {
        // A URL that leads elsewhere than it says matches no pattern.
        let is_plain = !leads_up(text) && !text.contains(['\\', '%', '@']);
        let url = without_default_port(text);
        let mut patterns = self.grants.policy.remote_contexts.iter();
        text.contains("://") && is_plain && !self.grants.is_fork() && patterns.any(|pattern| pattern.matches(&url))
    }

    /// A path below `base` that is inside the worktree, with symbolic links resolved.
    fn inside(&self, path: &str, base: &Path, text: &str) -> Result<PathBuf, Refusal> {
        let text = text.strip_prefix(FROM_HERE).unwrap_or(text);
        // Not paths for buildx, so not paths here.
        let is_remote = text.contains("://") || text.starts_with("git@") || text.starts_with("oci-layout:");
        if is_remote || text == "-" || text.starts_with("target:") {
            return Err(Refusal::not_allowed(path, format!("{text:?} is not a directory of the repository")));
        }
        let file = base.join(text);
        match self.resolve(path, &file)? {
            Resolved::Inside { path: found, is_directory: true } => Ok(found),
            Resolved::Inside { .. } => {
                Err(Refusal::new(Reason::ContextNotFound, path, format!("{text:?} is a file; expected a directory")))
            }
            Resolved::Outside => Err(Refusal::not_allowed(path, format!("{text:?} is outside of the repository"))),
            Resolved::Nowhere => Err(self.missing(Reason::ContextNotFound, path, text, &file)),
        }
    }

    /// Resolves a path through the worktree's links. Never looks outside of the worktree.
    fn resolve(&self, path: &str, file: &Path) -> Result<Resolved, Refusal> {
        let root = self.request.worktree;
        let Ok(relative) = file.strip_prefix(root) else { return Ok(Resolved::Outside) };
        let directory = Directory::open(root).map_err(|error| {
            Refusal::new(Reason::WorkerFailed, path, format!("the worktree cannot be read: {error}"))
        })?;
        Ok(match directory.resolve(relative) {
            // Joining an empty path would add a slash.
            Ok(ResolvedPath { path, .. }) if path == Path::new("") => {
                Resolved::Inside { path: root.to_owned(), is_directory: true }
            }
            Ok(ResolvedPath { path, is_directory }) => Resolved::Inside { path: root.join(path), is_directory },
            Err(error) if leads_out(&error) => Resolved::Outside,
            Err(_) => Resolved::Nowhere,
        })
    }
}

/// The result of resolving a path.
enum Resolved {
    /// Its path has no links.
    Inside {
        path: PathBuf,
        is_directory: bool,
    },
    Outside,
    Nowhere,
}

/// The URL without its default port. Patterns ignore case.
fn without_default_port(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    format!("{scheme}://{}{path}", host.strip_suffix(port).unwrap_or(host))
}

fn leads_up(text: &str) -> bool {
    Path::new(text).components().any(|part| part == Component::ParentDir)
}

/// Where buildx looks for the Dockerfile of a local context. buildx removes `..` from the text before it follows links, so
/// this path must be the one that is checked.
pub(in crate::bake) fn dockerfile(context: &Path, path: &str) -> PathBuf {
    fold(&context.join(path))
}

/// The path without `.` and `..`, removed from the text alone.
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
