//! What a `.dockerignore` excludes from a build context, and which of its lines does.
//!
//! Follows moby's `ignorefile` and `patternmatcher`, which BuildKit uses: a match on a directory holds for everything in it.
//! Where the result of a pattern is uncertain, nothing is excluded.

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::beneath::Directory;

/// The largest file that is read. A longer one is a mistake or an attack on the worker's time.
const MAX_FILE: usize = 64 << 10;
/// The most patterns, and the most bytes of the regular expression that each becomes.
const MAX_PATTERNS: usize = 500;
const MAX_REGEX: usize = 64 << 10;
/// Bytes of patterns times bytes of paths that one build may cost, directories included: a tenth of a second of typical
/// patterns, two seconds of malicious ones.
const MAX_WORK: usize = 256 << 20;
/// How far into a directory an excluded file is looked for, and the most entries that are compared there.
const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 1_000;
/// The cost of compiling a pattern, in bytes of paths.
const MAKING: usize = 1 << 10;

/// A search for those files of a worktree that are sent to a builder.
pub(super) struct Search<'a> {
    /// The worktree.
    directory: &'a Directory,
    root: &'a Path,
    /// Files that were not found yet, as paths from the root.
    left: BTreeSet<&'a Path>,
    /// The contexts that were searched, each with its ignore file.
    seen: BTreeSet<(PathBuf, Option<PathBuf>)>,
    /// Work that is left. When it is used up, nothing is excluded.
    work: usize,
}

impl<'a> Search<'a> {
    pub(super) fn new(directory: &'a Directory, root: &'a Path, files: &'a [PathBuf]) -> Self {
        Self {
            directory,
            root,
            left: files.iter().map(PathBuf::as_path).collect(),
            seen: BTreeSet::new(),
            work: MAX_WORK,
        }
    }

    /// Finds what is sent with a context, a path without symbolic links. `dockerfile` is `None` when it is inline.
    pub(super) fn look_into(&mut self, context: &Path, dockerfile: Option<&Path>) {
        let Ok(folder) = context.strip_prefix(self.root) else { return };
        // They are adjacent in the set.
        let from = self.left.range::<Path, _>((Bound::Included(folder), Bound::Unbounded)).copied();
        let inside: Vec<&Path> = from.take_while(|file| file.starts_with(folder)).collect();
        if inside.is_empty() {
            return;
        }
        let dockerfile = dockerfile.and_then(|path| path.strip_prefix(self.root).ok());
        let patterns = ignore_file(self.directory, folder, dockerfile);
        if !self.seen.insert((context.to_owned(), patterns.clone())) {
            return;
        }
        let path = |file: &'a Path| file.strip_prefix(folder).ok().and_then(Path::to_str);
        let n_bytes = inside.iter().copied().filter_map(path).flat_map(parts).map(str::len).sum::<usize>();
        let ignore = patterns.and_then(|file| {
            // A regular file only: BuildKit would resolve a link within the context.
            let text = String::from_utf8(self.directory.read_inside(&file, MAX_FILE).ok()?).ok()?;
            self.work = self.work.checked_sub(text.len().saturating_mul(n_bytes + MAKING))?;
            Ignore::parse(&text)
        });
        let ignore = ignore.unwrap_or_default();
        for file in inside {
            if path(file).is_none_or(|path| ignore.excluding_line(path).is_none()) {
                self.left.remove(file);
            }
        }
    }

    /// Finds one file. Its path may contain symbolic links.
    pub(super) fn find(&mut self, file: &Path) {
        let file = file.strip_prefix(self.root).ok().and_then(|file| self.directory.resolve(file).ok());
        if let Some(file) = file {
            self.left.remove(file.path.as_path());
        }
    }

    pub(super) fn has_found(&self, file: &Path) -> bool {
        !self.left.contains(file)
    }
}

/// The ignore file that applies: the one beside the Dockerfile, else the one of the context. All paths start at the root.
fn ignore_file(root: &Directory, context: &Path, dockerfile: Option<&Path>) -> Option<PathBuf> {
    let beside = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        name.into()
    });
    let mut paths = beside.into_iter().chain([context.join(".dockerignore")]);
    paths.find(|path| root.is_there(path))
}

/// The text of the ignore file that applies to a context: empty when there is none. All paths start at the root.
///
/// # Errors
///
/// When it is a link, too long, or not a text.
pub(super) fn ignore_text(root: &Directory, context: &Path, dockerfile: Option<&Path>) -> io::Result<String> {
    let Some(path) = ignore_file(root, context, dockerfile) else { return Ok(String::new()) };
    String::from_utf8(root.read(&path, MAX_FILE)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A file that an ignore file excludes from a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// Its path from the context.
    pub path: PathBuf,
    /// The ignore file, from the root of the worktree.
    pub by: PathBuf,
    /// The number of the line.
    pub line: usize,
}

/// Why a path from a context is not sent to the builder, although it exists. A directory is not sent when everything in it is
/// excluded.
pub(super) fn excluded(
    directory: &Directory,
    root: &Path,
    context: &Path,
    dockerfile: Option<&Path>,
    path: &Path,
) -> Option<Excluded> {
    let folder = context.strip_prefix(root).ok()?;
    if !directory.is_there(&folder.join(path)) {
        return None;
    }
    let by = ignore_file(directory, folder, dockerfile.and_then(|path| path.strip_prefix(root).ok()))?;
    let text = String::from_utf8(directory.read_inside(&by, MAX_FILE).ok()?).ok()?;
    let ignore = Ignore::parse(&text)?;
    let mut path = path.to_owned();
    for _ in 0..MAX_DEPTH {
        if let Some(line) = ignore.excluding_line(path.to_str()?) {
            return Some(Excluded { path, by, line });
        }
        let mut entries = directory.directory(&folder.join(&path)).and_then(|inner| inner.entries(MAX_ENTRIES)).ok()?;
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        path.push(&entries.first()?.name);
    }
    None
}

/// The ignore file of a context and the number of its first line that is not a pattern.
pub(super) fn invalid_line(
    directory: &Directory,
    root: &Path,
    context: &Path,
    dockerfile: Option<&Path>,
) -> Option<(PathBuf, usize)> {
    let folder = context.strip_prefix(root).ok()?;
    let file = ignore_file(directory, folder, dockerfile.and_then(|path| path.strip_prefix(root).ok()))?;
    let text = String::from_utf8(directory.read_inside(&file, MAX_FILE).ok()?).ok()?;
    let invalid = text.lines().position(|line| Ignore::parse(line).is_none())?;
    Some((file, invalid + 1))
}

/// The patterns of one file, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    /// The number of its line.
    line: usize,
    regex: Regex,
    /// Whether it includes again what earlier ones excluded: `!pattern`.
    is_exception: bool,
}

impl Ignore {
    /// `None` when a pattern is not understood: BuildKit may fail on it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().zip(1..).filter(|(text, _)| !text.starts_with('#') && !text.trim().is_empty());
        let mut patterns = Vec::new();
        for (text, line) in lines {
            let text = text.trim();
            let (is_exception, pattern) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest.trim()));
            match clean(pattern) {
                // The context itself cannot be excluded.
                cleaned if cleaned.is_empty() && !is_exception => {}
                cleaned if cleaned.is_empty() => return None,
                cleaned => patterns.push(Pattern { line, regex: regex(&cleaned)?, is_exception }),
            }
            if patterns.len() > MAX_PATTERNS {
                return None;
            }
        }
        Some(Self { patterns })
    }

    /// The line of the pattern that leaves a path out; `None` when it is not left out.
    pub(super) fn excluding_line(&self, path: &str) -> Option<usize> {
        let mut has_matched = vec![false; self.patterns.len()];
        let mut excluding = None;
        for part in parts(path) {
            excluding = None;
            for (pattern, has_matched) in self.patterns.iter().zip(&mut has_matched) {
                // moby does not try a pattern that would change nothing, so the pattern has no effect on what is below.
                if !*has_matched && pattern.is_exception == excluding.is_some() {
                    *has_matched = pattern.regex.is_match(part);
                }
                if *has_matched {
                    excluding = (!pattern.is_exception).then_some(pattern.line);
                }
            }
        }
        excluding
    }
}

/// The parent directories of a path, outermost first, and the path itself.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| end).chain([path.len()]).map(|end| &path[..end])
}

/// Normalizes `.`, `..` and slashes.
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

/// The pattern as a regular expression, as moby makes it; `None` where Go and Rust would read it differently.
fn regex(pattern: &str) -> Option<Regex> {
    if let Some(suffix) = pattern.strip_prefix("**").filter(|suffix| !suffix.contains(['*', '?', '[', ']', '\\'])) {
        // It matches the end of a name: `**model` also excludes `a/small-model`.
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
            // Before a letter, Rust reads a class of characters and Go the letter.
            ('\\', _) => text.push_str(&literal(rest.next().filter(|next| !next.is_ascii_alphanumeric())?)),
            (']', _) | ('[', None) | ('^', None | Some('[')) | ('-', Some(_)) => text.push(character),
            _ => text.push_str(&literal(character)),
        }
        class = match character {
            '[' if class.is_none() => Some('['),
            ']' => None,
            // The character before matters to some patterns.
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
    use std::fs;

    use super::*;

    fn leaves_out(text: &str, path: &str) -> bool {
        Ignore::parse(text).expect("understood").excluding_line(path).is_some()
    }

    /// Patterns that leave everything out, of so many bytes.
    fn long(n_bytes: usize) -> String {
        format!("*\n#{}", "x".repeat(n_bytes - 3))
    }

    fn n_found(root: &Path, files: &[PathBuf], contexts: &[&Path]) -> usize {
        let directory = Directory::open(root).expect("opened");
        let mut search = Search::new(&directory, root, files);
        contexts.iter().for_each(|context| search.look_into(context, None));
        files.iter().filter(|file| search.has_found(file)).count()
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
    fn the_line_that_excludes_an_existing_file_is_known() {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        let root = worktree.path();
        fs::create_dir_all(root.join("app/dist")).expect("made");
        fs::write(root.join("app/dist/a.js"), "").expect("written");
        fs::write(root.join("app/.dockerignore"), "# built\n\nnode\ndist\n!dist/a.js\n*.js\n**/*.js\n")
            .expect("written");
        let directory = Directory::open(root).expect("opened");
        let line = |excluded: Excluded| {
            (excluded.path.display().to_string(), excluded.by.display().to_string(), excluded.line)
        };
        let by = |path: &str| excluded(&directory, root, &root.join("app"), None, Path::new(path)).map(line);
        assert_eq!(by("dist"), Some(("dist".into(), "app/.dockerignore".into(), 4)));
        assert_eq!(by("dist/a.js"), Some(("dist/a.js".into(), "app/.dockerignore".into(), 7)));
        assert_eq!((by("node"), by(".dockerignore")), (None, None), "one is not there, the other is not excluded");
        fs::write(root.join("app/Dockerfile.dockerignore"), "x\ndist/*").expect("written");
        let dockerfile = root.join("app/Dockerfile");
        let by =
            |path: &str| excluded(&directory, root, &root.join("app"), Some(&dockerfile), Path::new(path)).map(line);
        let beside = Some(("dist/a.js".to_owned(), "app/Dockerfile.dockerignore".to_owned(), 2));
        assert_eq!((by("dist"), by("dist/a.js")), (beside.clone(), beside));
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
            let files: Vec<PathBuf> = (0..n_files).map(|n| format!("models/{n:04}").into()).collect();
            n_found(root, &files, &[root])
        };
        assert_eq!((n_sent("*", 10), n_sent("[a", 10)), (0, 10));
        assert_eq!((n_sent(&long(1000), 10), n_sent(&long((1 << 16) + 1), 10)), (0, 10), "it is too long");
    }

    #[test]
    fn all_contexts_of_a_build_share_the_work_that_it_may_cost() {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        let root = worktree.path();
        let n_found_of = |n_patterns: usize, n_contexts: usize| {
            let folders: Vec<PathBuf> = (0..n_contexts).map(|n| root.join(format!("{n:02}"))).collect();
            for folder in &folders {
                fs::create_dir_all(folder).expect("made");
                fs::write(folder.join(".dockerignore"), long(n_patterns)).expect("written");
            }
            let of = |folder: &PathBuf| {
                let name = PathBuf::from(folder.file_name().expect("it has one"));
                (0..1000).map(move |n| name.join(format!("models/{n:09}")))
            };
            let files: Vec<PathBuf> = folders.iter().flat_map(of).collect();
            let contexts: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
            // One that was looked into costs nothing more.
            n_found(root, &files, &[&contexts[..1], &contexts].concat())
        };
        // Of each file two parts are matched, 22 bytes in all.
        let half = MAX_WORK / 2 / (1000 * 22 + MAKING);
        assert_eq!(n_found_of(half, 1), 0);
        assert_eq!(n_found_of(half, 2), 0);
        assert_eq!(n_found_of(half, 3), 1000, "for the third there is nothing left");
        assert_eq!(n_found_of(2 * half + 2, 3), 3000, "for each it is too much");
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
        let is_out = |dockerfile: Option<&Path>, name: &str| {
            let files = [Path::new("app").join(name)];
            let directory = Directory::open(&root).expect("opened");
            let mut search = Search::new(&directory, &root, &files);
            search.look_into(&context, dockerfile);
            !search.has_found(&files[0])
        };
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
