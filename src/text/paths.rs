//! Hides what a message reveals of the worker, of Go and of registry sessions.
//!
//! Errors of buildx, BuildKit and the kernel contain paths, URLs and source positions. Paths in the repository become relative to it,
//! and other paths of the worker are hidden. Knows the layout of the state directory ([`crate::state`]), not the meaning of
//! messages.

use std::borrow::Cow;
use std::path::Path;

use crate::text;

/// The longest path on Linux, in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// The longest identity of a worker, in bytes: a host name and two numbers.
const MAX_IDENTITY: usize = 300;

/// Replaces a path of the worker.
const PRIVATE: &str = "a file of the worker";

/// The worker's directories, as they appear in messages.
#[derive(Clone, Debug, Default)]
pub struct WorkerPaths {
    /// Roots of repositories.
    worktrees: Vec<String>,
    /// State directories.
    states: Vec<String>,
}

impl WorkerPaths {
    /// The paths of a worker with this state directory, as configured and with links resolved.
    pub fn new(state: &Path) -> Self {
        Self { worktrees: Vec::new(), states: names(state) }
    }

    /// The same with a repository at `worktree`.
    #[must_use]
    pub fn with_worktree(mut self, worktree: &Path) -> Self {
        self.worktrees.extend(names(worktree));
        self
    }

    /// The message as a customer reads it; unchanged when nothing matches.
    ///
    /// - A path in a repository becomes relative to it; its root is `.`.
    /// - Another path in a state directory becomes "a file of the worker".
    /// - Credentials and queries of URLs are removed, and queries of paths: the query of an upload holds its state.
    /// - Source positions of Go and Rust (`v2.go:105]`) and stack traces are removed. Text in double quotes is the customer's and stays.
    pub fn hide<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for worktree in &self.worktrees {
            replace_path(&mut text, worktree, false, |_| (0, "."));
        }
        for state in &self.states {
            replace_path(&mut text, state, is_of_state_alone(state), in_state);
        }
        if text.lines().all(is_plain) { text } else { Cow::Owned(without_traces(&text)) }
    }
}

/// A directory as configured, and with links resolved.
fn names(path: &Path) -> Vec<String> {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut names = vec![canonical.display().to_string(), path.display().to_string()];
    names.dedup();
    // Every path would match the root directory.
    names.retain(|name| name.len() > 1);
    names
}

/// Whether a state directory has enough components to be unique: a customer's path `app/data` ends like `/data`.
fn is_of_state_alone(state: &str) -> bool {
    state.matches('/').count() >= 2
}

/// Replaces a directory at the beginning of a path, or `anywhere`: a customer may write a word before it. `of` gets the text after it
/// and returns how many more bytes belong to the directory, and its replacement.
fn replace_path(text: &mut Cow<'_, str>, directory: &str, anywhere: bool, of: impl Fn(&str) -> (usize, &'static str)) {
    if !text.contains(directory) {
        return;
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = &**text;
    while let Some(at) = rest.find(directory) {
        let after = &rest[at + directory.len()..];
        let begins = !rest[..at].ends_with(is_part_of_name);
        let may_begin = begins || anywhere || is_job(after);
        let ends = !after.starts_with(is_part_of_name);
        shown.push_str(&rest[..at]);
        rest = after;
        if !(may_begin && ends) {
            shown.push_str(directory);
            continue;
        }
        let (length, name) = of(after);
        rest = &rest[length..];
        match rest.strip_prefix('/').filter(|below| begins && name == "." && below.starts_with(is_part_of_name)) {
            Some(below) => rest = below,
            None => shown.push_str(name),
        }
    }
    shown.push_str(rest);
    *text = Cow::Owned(shown);
}

/// Whether a path without its beginning is that of a job's directory: `/run/HOST:PID:NONCE/N`. No other path has such a component.
fn is_job(path: &str) -> bool {
    let Some(identity) = path.strip_prefix("/run/").and_then(|path| path.split('/').next()) else { return false };
    identity.len() <= MAX_IDENTITY && identity.matches(':').count() >= 2
}

/// Classifies a path below a state directory: `/run/IDENTITY/N/tree/NAME` is a repository's root, everything else is the worker's.
fn in_state(path: &str) -> (usize, &'static str) {
    // Bounded, so that a long text that names the directory many times is scanned once.
    let path = &path[..text::boundary(path, MAX_PATH)];
    let whole = path.find(is_delimiter).unwrap_or(path.len());
    let whole = path[..whole].trim_end_matches(is_punctuation).len();
    let mut parts = path[..whole].splitn(7, '/');
    let mut next = || parts.next().unwrap_or_default();
    let (_, run, identity, n, tree, name) = (next(), next(), next(), next(), next(), next());
    if run == "run" && tree == "tree" && !name.is_empty() {
        return ("/run/".len() + identity.len() + 1 + n.len() + "/tree/".len() + name.len(), ".");
    }
    (whole, PRIVATE)
}

/// Whether a line can contain nothing of Go and no query.
fn is_plain(line: &str) -> bool {
    !line.contains(SOURCES[0]) && !line.contains(SOURCES[1]) && !line.contains(['?', '@']) && !is_stack(line)
}

fn without_traces(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if is_stack(line) {
            // Stack frames follow.
            break;
        }
        push_line(&mut shown, without_log_header(line));
    }
    if text.ends_with('\n') { shown } else { shown.trim_end_matches('\n').to_owned() }
}

/// Whether a description of a crash of Go's runtime begins.
fn is_stack(line: &str) -> bool {
    ["goroutine ", "[signal ", "runtime stack:"].iter().any(|begin| line.starts_with(begin))
}

/// A log line of Kubernetes' client without its header: `E1124 04:18:04.264391    6145 v2.go:105] `.
fn without_log_header(line: &str) -> &str {
    if !is_of_kubernetes(line) {
        return line;
    }
    line.split_once("] ").map_or(line, |(_, said)| said)
}

/// Whether a library in docker-buildx logged the line: Kubernetes' client, Go's `log` or Logrus.
pub fn is_log_line(line: &str) -> bool {
    is_of_kubernetes(line) || has_form(line, "dddd/dd/dd dd:dd:dd ") || line.starts_with("time=\"")
}

/// Whether a line has a severity, a date, a time, and `]` after a source position.
fn is_of_kubernetes(line: &str) -> bool {
    ["I", "W", "E", "F"]
        .iter()
        .any(|severity| line.strip_prefix(severity).is_some_and(|rest| has_form(rest, "dddd dd:dd:dd.")))
        && line.split_once("] ").is_some_and(|(head, _)| head.contains(".go:"))
}

/// Whether a line begins with a pattern, in which `d` is a digit.
fn has_form(line: &str, form: &str) -> bool {
    let is_same = |(byte, form): (u8, u8)| if form == b'd' { byte.is_ascii_digit() } else { byte == form };
    line.len() >= form.len() && line.bytes().zip(form.bytes()).all(is_same)
}

/// Copies a line word by word. Spaces, quotes and brackets separate words.
fn push_line(shown: &mut String, line: &str) {
    let (mut rest, mut is_quoted) = (line, false);
    while !rest.is_empty() {
        let end = rest.find(is_delimiter).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let is_gos = !is_quoted && is_source_position(word);
        if !is_gos {
            push_word(shown, word);
        }
        let delimiter = after.chars().next();
        is_quoted ^= delimiter == Some('"') && !word.ends_with('\\');
        let length = delimiter.map_or(0, char::len_utf8);
        if !(is_gos && delimiter == Some(' ')) {
            shown.push_str(&after[..length]);
        }
        rest = &after[length..];
    }
}

fn push_word(shown: &mut String, word: &str) {
    let word = match word.split_once("://") {
        Some((scheme, rest)) => {
            let host = &rest[..rest.find('/').unwrap_or(rest.len())];
            let credentials = host.rfind('@').map_or(0, |at| at + 1);
            shown.push_str(scheme);
            shown.push_str("://");
            &rest[credentials..]
        }
        None => word,
    };
    let Some(at) = query(word) else { return shown.push_str(word) };
    shown.push_str(&word[..at]);
    let end = word.trim_end_matches(is_punctuation).len();
    shown.push_str(&word[end.max(at)..]);
}

/// Where the query of a URL or path begins.
fn query(word: &str) -> Option<usize> {
    let at = word.find('?')?;
    (word[..at].contains('/') && word[at..].contains('=')).then_some(at)
}

/// How a source file of Go or Rust ends, before the line number.
const SOURCES: [&str; 2] = [".go:", ".rs:"];

/// Whether a word is a source position: `file.go:105`, `file.rs:105:7`.
fn is_source_position(word: &str) -> bool {
    let Some((file, position)) = SOURCES.iter().find_map(|end| word.rsplit_once(end)) else { return false };
    let digits = position.trim_end_matches([']', ':', ',']);
    !file.is_empty() && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b':')
}

fn is_delimiter(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '(' | ')' | '<' | '>')
}

fn is_punctuation(c: char) -> bool {
    matches!(c, ':' | ',' | ';' | '.' | ']' | '}')
}

fn is_part_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '~' | '@' | '%')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JOB: &str = "/var/lib/sidebake/run/vm:17827:c0ffee/8";

    fn places() -> WorkerPaths {
        WorkerPaths::new(Path::new("/var/lib/sidebake")).with_worktree(Path::new("/home/me/shop"))
    }

    #[test]
    fn paths_are_the_repositorys_and_nothing_is_the_workers() {
        for (text, expected) in [
            (format!("open {JOB}/tree/shop/web/Dockerfile: no such file"), "open web/Dockerfile: no such file"),
            (format!("path \"{JOB}/tree/shop/my web\" not found"), "path \"my web\" not found"),
            (format!("lstat {JOB}/tree/shop: permission denied"), "lstat .: permission denied"),
            (format!("{JOB}/tree/shop/"), "./"),
            (format!("a {JOB}/tree/shop/a, b {JOB}/tree/shop/b"), "a a, b b"),
            (format!("open {JOB}/secrets/0: permission denied"), "open a file of the worker: permission denied"),
            (format!("stat \"{JOB}/solve/buildx/instances/x\": gone"), "stat \"a file of the worker\": gone"),
            ("mkdir /var/lib/sidebake/sticky/acme/x.".into(), "mkdir a file of the worker."),
            ("/var/lib/sidebake: disk full".into(), "a file of the worker: disk full"),
            (
                "/var/lib/sidebaker/x and /home/me/shop/var/lib/sidebaker/x".into(),
                "/var/lib/sidebaker/x and var/lib/sidebaker/x",
            ),
            (format!("stage nosuch-{JOB}/print/buildx not found"), "stage nosuch-a file of the worker not found"),
            (format!("x{JOB}/tree/shop/a: gone"), "x./a: gone"),
            ("x/var/lib/sidebake/sticky".into(), "xa file of the worker"),
            ("/home/me/shop/a /home/me/shop2/a".into(), "a /home/me/shop2/a"),
            ("/home/me/shop/../x".into(), "../x"),
        ] {
            assert_eq!(places().hide(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_short_name_of_a_state_directory_is_no_part_of_a_customers_path() {
        let places = WorkerPaths::new(Path::new("/data"));
        for (text, expected) in [
            ("COPY app/data/x: not found", "COPY app/data/x: not found"),
            ("x/data/run/vm:17827:c0ffee/8/print/tmp: gone", "xa file of the worker: gone"),
            ("open /data/sticky/x: gone", "open a file of the worker: gone"),
        ] {
            assert_eq!(places.hide(text), expected);
        }
    }

    #[test]
    fn sessions_and_credentials_of_urls_are_left_out() {
        for (text, expected) in [
            (
                "PUT request to https://r.example/v2/x/blobs/uploads/1?_state=abc&digest=sha256%3A12: 500 Internal",
                "PUT request to https://r.example/v2/x/blobs/uploads/1: 500 Internal",
            ),
            ("Patch \"/v2/x/blobs/uploads/1?_state=abc\": EOF", "Patch \"/v2/x/blobs/uploads/1\": EOF"),
            ("Get \"https://me:pw@r.example/v2/\": EOF", "Get \"https://r.example/v2/\": EOF"),
            ("https://s3.example/b?X-Amz-Signature=1,", "https://s3.example/b,"),
            ("is it? yes", "is it? yes"),
            ("me@example.com a/b?", "me@example.com a/b?"),
        ] {
            assert_eq!(places().hide(text), expected);
        }
    }

    #[test]
    fn go_is_left_out() {
        for (text, expected) in [
            (
                "E1124 04:18:04.264391    6145 v2.go:105] \"Copying stdin failed\" err=\"io\"",
                "\"Copying stdin failed\" err=\"io\"",
            ),
            ("failed: client.go:12: cannot dial", "failed: cannot dial"),
            ("panicked at src/source/lfs.rs:12:5: out of range", "panicked at out of range"),
            ("at github.com/moby/buildkit/solver/jobs.go:1234", "at "),
            ("panic: nil\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:3 +0x1d", "panic: nil"),
            ("\"/main.go:12\": not found", "\"/main.go:12\": not found"),
            ("COPY main.go: not found", "COPY main.go: not found"),
        ] {
            assert_eq!(places().hide(text), expected);
        }
    }

    #[test]
    fn lines_of_libraries_are_known() {
        for line in [
            "E1124 04:18:04.264391    6145 v2.go:105] \"x\"",
            "2026/11/24 04:18:04 http2: x",
            "time=\"2026-11-24T04:18:04Z\" level=warning",
        ] {
            assert!(is_log_line(line), "{line}");
        }
        for line in ["E1124 04:18:04.264391 x", "Dockerfile:2", "2026/11/24", "", "E1"] {
            assert!(!is_log_line(line), "{line}");
        }
    }

    #[test]
    fn a_text_of_nothing_but_a_directory_takes_no_longer_than_another() {
        let text = "x/var/lib/sidebake".repeat(200_000) + "x";
        assert!(places().hide(&text) == text);
        let paths = places().hide(&"x/var/lib/sidebake/".repeat(200_000)).len();
        assert!(paths < 200_000 * "xa file of the worker".len(), "{paths}");
    }

    proptest! {
        #[test]
        fn whatever_surrounds_it_no_path_of_the_worker_is_shown(
            before in "[a-z0-9._ \":(\n-]{0,8}", name in "[a-z]{1,8}", after in "[ \":)\n][a-z \"]{0,8}",
            below in prop_oneof![Just("solve/tmp/"), Just("secrets/"), Just("tree/shop/"), Just("print/buildx/a b/")],
        ) {
            let text = format!("{before}{JOB}/{below}{name}{after}");
            let hidden = places().hide(&text).into_owned();
            prop_assert!(!hidden.contains("sidebake") && !hidden.contains("17827"), "{hidden}");
        }

        #[test]
        fn hiding_is_stable(text in "[a-z/:?=@\". \n]{0,60}") {
            let once = places().hide(&text).into_owned();
            let twice = places().hide(&once).into_owned();
            prop_assert_eq!(twice, once);
        }
    }
}
