//! What a `.dockerignore` leaves out of a build context.
//!
//! Follows moby's `ignorefile` and `patternmatcher`, by which BuildKit's transfer decides, with its ways: a directory's verdict
//! on a pattern holds for all that is in it. Where we cannot say what that would do, nothing is left out.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Bytes of a file that is read. Longer ones are somebody's mistake, or an attempt on our time.
const MAX_FILE: u64 = 64 << 10;
/// Each of them becomes a regular expression, of at most so many bytes.
const MAX_PATTERNS: usize = 500;
const MAX_REGEX: usize = 64 << 10;
/// Bytes of patterns times bytes of paths that one context may cost: some tenths of a second.
const MAX_WORK: usize = 32 << 20;

/// The patterns of one file, in its order.
#[derive(Debug, Default)]
struct Ignore {
    patterns: Vec<Pattern>,
    n_bytes: usize,
}

#[derive(Debug)]
struct Pattern {
    regex: Regex,
    /// Whether it takes in what earlier ones have left out: `!pattern`.
    is_exception: bool,
}

/// Those of the files of the worktree `root`, by their paths from there, that a builder is sent with a context.
///
/// The context is a path after symbolic links; `dockerfile` is none where the definition has it in itself.
pub(super) fn sent<'a>(root: &Path, context: &Path, dockerfile: Option<&Path>, files: &'a [PathBuf]) -> Vec<&'a Path> {
    let Ok(folder) = context.strip_prefix(root) else { return Vec::new() };
    let inside = |file: &&Path| file.starts_with(folder);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).filter(inside).collect();
    if files.is_empty() {
        return files;
    }
    let n_bytes: usize = files.iter().map(|file| file.as_os_str().len()).sum();
    let ignore = Ignore::of(root, context, dockerfile);
    if n_bytes.saturating_mul(ignore.n_bytes) > MAX_WORK {
        return files;
    }
    let path = |file: &'a Path| file.strip_prefix(folder).ok().and_then(Path::to_str);
    files.into_iter().filter(|file| path(file).is_none_or(|path| !ignore.leaves_out(path))).collect()
}

impl Ignore {
    /// The file that counts: that beside the Dockerfile, else that of the context.
    fn of(root: &Path, context: &Path, dockerfile: Option<&Path>) -> Self {
        let beside = dockerfile.map(|path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".dockerignore");
            name.into()
        });
        let mut paths = beside.into_iter().chain([context.join(".dockerignore")]);
        let found = paths.find(|path: &PathBuf| path.symlink_metadata().is_ok());
        found.and_then(|path| Self::parse(&read(root, &path)?)).unwrap_or_default()
    }

    /// `None` when it has a pattern that we do not understand, which may mean that BuildKit fails.
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim).filter(|line| !line.is_empty());
        let mut patterns = Vec::new();
        for line in lines {
            let (is_exception, pattern) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            match clean(pattern) {
                // The context itself, which cannot be left out.
                cleaned if cleaned.is_empty() && !is_exception => {}
                cleaned if cleaned.is_empty() => return None,
                cleaned => patterns.push(Pattern { regex: regex(&cleaned)?, is_exception }),
            }
            if patterns.len() > MAX_PATTERNS {
                return None;
            }
        }
        Some(Self { patterns, n_bytes: text.len() })
    }

    fn leaves_out(&self, path: &str) -> bool {
        let mut has_matched = vec![false; self.patterns.len()];
        let mut is_out = false;
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for part in ends.map(|end| &path[..end]) {
            is_out = false;
            for (pattern, has_matched) in self.patterns.iter().zip(&mut has_matched) {
                // One that would change nothing is not asked, and so is not remembered for what lies below.
                if !*has_matched && pattern.is_exception == is_out {
                    *has_matched = pattern.regex.is_match(part);
                }
                if *has_matched {
                    is_out = !pattern.is_exception;
                }
            }
        }
        is_out
    }
}

/// A file of the worktree, and not what a link leads to: BuildKit would look for that in the context alone.
fn read(root: &Path, path: &Path) -> Option<String> {
    let metadata = path.symlink_metadata().ok()?;
    let is_inside = path.parent()?.canonicalize().ok()?.starts_with(root);
    (is_inside && metadata.is_file() && metadata.len() <= MAX_FILE).then(|| fs::read_to_string(path).ok())?
}

/// Without `.`, `..`, doubled slashes, and a slash at either end.
fn clean(pattern: &str) -> String {
    let mut parts = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => _ = parts.pop(),
            ".." if pattern.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The pattern as a regular expression, as moby makes it; `None` where the two of us would not mean the same by it.
fn regex(pattern: &str) -> Option<Regex> {
    if let Some(suffix) = pattern.strip_prefix("**").filter(|suffix| !suffix.contains(['*', '?', '[', ']', '\\'])) {
        // Not of a whole name: `**model` leaves out `a/small-model` as well.
        let whole = suffix.strip_prefix('/').map(|whole| format!("^{}$|", regex::escape(whole))).unwrap_or_default();
        return compile(&format!("{whole}{}$", regex::escape(suffix)));
    }
    let (mut text, mut class) = (String::from("^"), None);
    let mut rest = pattern.chars().peekable();
    while let Some(character) = rest.next() {
        match (character, class) {
            ('*' | '?', Some(_)) | ('-', Some('-')) => return None,
            ('*', None) if rest.next_if_eq(&'*').is_some() => {
                rest.next_if_eq(&'/');
                text.push_str(if rest.peek().is_some() { "(.*/)?" } else { ".*" });
            }
            ('*', None) => text.push_str("[^/]*"),
            ('?', None) => text.push_str("[^/]"),
            // Before a letter, it makes a class of characters to some and stands for the letter to others.
            ('\\', _) => text.push_str(&literal(rest.next().filter(|next| !next.is_ascii_alphanumeric())?)),
            (']', _) | ('[', None) | ('^', None | Some('[')) | ('-', Some(_)) => text.push(character),
            _ => text.push_str(&literal(character)),
        }
        class = match character {
            '[' if class.is_none() => Some('['),
            ']' => None,
            // What stands before, since it matters to some.
            _ => class.map(|_| if character == '[' { 'x' } else { character }),
        };
    }
    compile(&(text + "$"))
}

fn literal(character: char) -> String {
    regex::escape(character.encode_utf8(&mut [0; 4]))
}

fn compile(text: &str) -> Option<Regex> {
    regex::RegexBuilder::new(text).size_limit(MAX_REGEX).dfa_size_limit(MAX_REGEX).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves_out(text: &str, path: &str) -> bool {
        Ignore::parse(text).expect("understood").leaves_out(path)
    }

    /// Most are from moby's own tests.
    #[test]
    fn a_pattern_leaves_out_what_it_leaves_out_of_a_buildkit_context() {
        let table = [
            ("**", "file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "file", false),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "dir/file", true),
            ("**file", "dir/dir/file", true),
            ("**/file", "file", true),
            ("**/file", "dir/profile", false),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txt", true),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aze", false),
            ("a[^b-d]e", "aze", true),
            ("a[^b-d]e", "ace", false),
            ("a[[^]e", "a^e", true),
            ("a[&&z]e", "a&e", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "a-b", false),
            ("a?b", "a/b", false),
            ("a.b|c+(d){2}$", "a.b|c+(d){2}$", true),
            ("a.b", "axb", false),
            ("models", "models/deep/x.bin", true),
            ("models", "my-models/x.bin", false),
            ("/models/", "models/x.bin", true),
            ("./a/../models//", "models/x.bin", true),
            ("../models", "models/x.bin", false),
            ("# models\n\n  models \r\n", "models/x.bin", true),
            (" # models", "models/x.bin", false),
            ("\u{feff}models", "models/x.bin", true),
            (".", "models/x.bin", false),
            ("*", "models/x.bin", true),
            ("models*", "models", true),
            ("Models", "models/x.bin", false),
        ];
        for (text, path, expected) in table {
            assert_eq!(leaves_out(text, path), expected, "{path} by {text:?}");
        }
    }

    #[test]
    fn the_last_pattern_that_matches_decides_also_below_a_directory() {
        let table = [
            ("*\n!models", "models/x.bin", false),
            ("*\n!models\nmodels/x.bin", "models/x.bin", true),
            ("*\n!models/x.bin", "models/x.bin", false),
            ("*\n!models/x.bin", "models/y.bin", true),
            ("!models\n*", "models/x.bin", true),
            ("models\n! models/*.bin", "models/x.bin", false),
            ("models\n!models/*.bin", "models/deep/x.bin", true),
            ("models\n!**/*.bin", "models/deep/x.bin", false),
            ("**/*.bin\n!models", "models/x.bin", true),
            // The directory was out already when the third was asked, so it is not known for what lies in it.
            ("*\n!models/x.bin\nmodels", "models/x.bin", false),
        ];
        for (text, path, expected) in table {
            assert_eq!(leaves_out(text, path), expected, "{path} by {text:?}");
        }
    }

    #[test]
    fn what_is_not_understood_leaves_nothing_out() {
        for text in ["!", "*\n!/", "a[b", "a\\", "a\\d", "[*]", "[a--c]", "[z-a]", &"x\n".repeat(MAX_PATTERNS + 1)] {
            assert!(Ignore::parse(text).is_none(), "{text:?}");
        }
        let worktree = tempfile::tempdir().expect("a temporary directory");
        let root = worktree.path();
        let n_sent = |text: &str, n_files| {
            fs::write(root.join(".dockerignore"), text).expect("written");
            sent(root, root, None, &vec![PathBuf::from("models/x.bin"); n_files]).len()
        };
        assert_eq!((n_sent("*", 10), n_sent("[a", 10)), (0, 10));
        let long = |n_bytes| format!("*\n#{}", "x".repeat(n_bytes));
        assert_eq!((n_sent(&long(100), 3000), n_sent(&long(1000), 3000)), (0, 3000), "it would take too long");
        assert_eq!((n_sent(&long(1000), 10), n_sent(&long(1 << 16), 10)), (0, 10), "it is too long");
    }

    #[test]
    fn the_file_beside_the_dockerfile_counts_before_that_of_the_context_and_a_link_as_neither() {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        let root = worktree.path().canonicalize().expect("it is there");
        let (context, docker) = (root.join("app"), root.join("docker"));
        for folder in [&context, &docker] {
            fs::create_dir(folder).expect("made");
        }
        let dockerfile = context.join("../docker/Dockerfile");
        let is_out = |dockerfile: Option<&Path>, path| Ignore::of(&root, &context, dockerfile).leaves_out(path);
        assert!(!is_out(Some(&dockerfile), "a"), "there is none");
        fs::write(context.join(".dockerignore"), "a").expect("written");
        assert!(is_out(Some(&dockerfile), "a"));
        fs::write(docker.join("Dockerfile.dockerignore"), "b").expect("written");
        assert!(!is_out(Some(&dockerfile), "a") && is_out(Some(&dockerfile), "b"));
        assert!(is_out(None, "a") && !is_out(None, "b"), "the Dockerfile is none of the tree's");

        fs::rename(docker.join("Dockerfile.dockerignore"), docker.join("other")).expect("moved");
        std::os::unix::fs::symlink("other", docker.join("Dockerfile.dockerignore")).expect("linked");
        assert!(!is_out(Some(&dockerfile), "a") && !is_out(Some(&dockerfile), "b"));
        let outside = tempfile::tempdir().expect("a temporary directory");
        fs::write(outside.path().join("Dockerfile.dockerignore"), "b").expect("written");
        assert!(!is_out(Some(&outside.path().join("Dockerfile")), "b"), "read outside of the worktree");
    }
}
