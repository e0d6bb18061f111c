//! What the repository's own files say about a failure that BuildKit reports without naming them.

use std::path::PathBuf;

use super::Definition;
use super::diagnose::{Patterns, refused_patterns};
use super::evidence::Line;
use super::ignore::Excluded;
use super::noise;
use super::progress::{BakeProgress, Vertex};
use crate::reason::{Failure, Reason};

/// What a customer must know whose build reads `.git`, and whom to ask.
const NO_GIT_DIR: &str =
    "The repository's .git is not part of the build context, unless the operator sets source.git_dir to \"minimal\"";

/// The failure, with the file and the line that explain it.
pub(super) fn explain(failure: Failure, progress: &BakeProgress, definition: &Definition) -> Failure {
    match failure.reason {
        Reason::FileNotFound => with_cause(failure, progress, definition),
        Reason::DockerfileInvalid if has_bad_pattern(progress) => match definition.invalid_ignore_line() {
            Some((file, line)) => {
                let detail = format!("line {line} of {} is not a pattern", file.display());
                Failure::new(Reason::DockerfileInvalid, detail)
            }
            None => failure,
        },
        Reason::BuildFailed | Reason::DockerfileInvalid if is_internal(progress) => match definition.not_utf8() {
            Some((file, line)) => {
                let detail = format!("line {line} of {} is not UTF-8; save the file as UTF-8", file.display());
                Failure::new(Reason::DockerfileInvalid, detail)
            }
            None => failure,
        },
        _ => failure,
    }
}

/// Whether BuildKit could not even say what failed: gRPC does not transfer an error with text that is not UTF-8.
fn is_internal(progress: &BakeProgress) -> bool {
    let is_internal = |line: &str| matches!(Line::parse(line), Line::BuildKit(said) if said.starts_with("Internal: "));
    progress.failed().next().is_none() && progress.errors().iter().any(|said| is_internal(said.judged()))
}

/// Whether BuildKit refuses a pattern of an ignore file.
fn has_bad_pattern(progress: &BakeProgress) -> bool {
    let is_bad = |line: &str| matches!(Line::parse(line), Line::BuildKit(said) if refused_patterns(said) == Some(Patterns::Ignored));
    progress.errors().iter().any(|said| is_bad(said.judged()))
}

/// Names the line of the ignore file that excludes a missing file, or the file that was probably meant.
fn with_cause(failure: Failure, progress: &BakeProgress, definition: &Definition) -> Failure {
    let cause = progress.failed().find_map(|vertex| {
        let (path, target) = (missing(vertex)?, progress.target_of(vertex)?);
        if path.starts_with(".git") && definition.worktree.join(".git").symlink_metadata().is_err() {
            return Some(NO_GIT_DIR.to_owned());
        }
        let Some(Excluded { path, by, line }) = definition.excluded_by(target, &path) else {
            let near = definition.near_to(target, &path)?;
            return Some(format!("The repository has {}", near.display()));
        };
        Some(format!("The repository has {}, but line {line} of {} excludes it", path.display(), by.display()))
    });
    match cause {
        Some(cause) => {
            let detail = format!("{}. {cause}", failure.detail);
            failure.with_detail(&detail)
        }
        None => failure,
    }
}

/// The path from the root of the context that a step did not find there.
fn missing(vertex: &Vertex) -> Option<PathBuf> {
    let instruction = vertex.instruction()?;
    let is_of_context = match instruction {
        "COPY" | "ADD" => !has_source(&vertex.name),
        // A mount can come from another stage.
        "RUN" => !vertex.name.contains("from="),
        _ => false,
    };
    is_of_context.then(|| path(vertex.own_error()?.judged())).flatten()
}

/// Whether a COPY takes its files from another stage or image.
fn has_source(name: &str) -> bool {
    let words = name.split_once(']').map_or("", |(_, rest)| rest).split_whitespace().skip(1);
    words.take_while(|word| word.starts_with("--")).any(|word| word.starts_with("--from="))
}

/// The path in BuildKit's error: in quotes, or after the operation that failed. A path that Go had to escape is not read.
fn path(error: &str) -> Option<PathBuf> {
    let path = match error.strip_suffix("\": not found") {
        Some(rest) => rest.split_once(": \"").map(|(_, path)| path).filter(|path| !path.contains('\\'))?,
        None => {
            let error = noise::without(error);
            let (_, path) = error.strip_suffix(": no such file or directory")?.rsplit_once("lstat /")?;
            return Some(path.into());
        }
    };
    Some(path.trim_start_matches('/').into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_path_is_read_from_each_form_of_the_error() {
        for (error, expected) in [
            (r#"failed to calculate checksum of ref a::b: "/dist": not found"#, Some("dist")),
            (r#"failed to calculate checksum of ref a::b: "/a \"b\"": not found"#, None),
            ("lstat /var/lib/buildkit/tmp/buildkit-mount1513798385/dist: no such file or directory", Some("dist")),
            (
                "failed to walk /x/buildkit-mount2/a: lstat /x/buildkit-mount2/a/b: no such file or directory",
                Some("a/b"),
            ),
            ("lstat /dist: no such file or directory", Some("dist")),
            ("open /dist: no such file or directory", None),
            ("process \"x\" did not complete successfully: exit code: 1", None),
        ] {
            assert_eq!(path(error), expected.map(PathBuf::from), "{error}");
        }
    }

    #[test]
    fn a_copy_from_a_stage_takes_nothing_from_the_context() {
        assert!(has_source("[2/3] COPY --chown=1 --from=build /dist /app"));
        assert!(!has_source("[2/3] COPY --chown=1 dist --from=x /app"));
    }
}
