//! Which changed files a step reads of its context.

use serde::{Deserialize, Serialize};

/// A path whose content or mode differs between two commits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// From the root of the repository, or of the context.
    pub path: String,
    /// Whether only the older commit has it.
    pub is_removed: bool,
    /// Whether it is or was a link or a submodule: what it leads to is not compared.
    pub is_special: bool,
}

/// How the tree of a commit differs from that of an older one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The older commit.
    pub since: String,
    /// In the order of the tree.
    pub paths: Vec<Change>,
    /// Whether these are all.
    pub is_complete: bool,
}

/// The changes that a target's context shows, by paths from the context.
#[derive(Clone, Debug, Default)]
pub struct ContextChanges {
    /// The context from the root of the repository: empty, or with a slash at its end.
    pub folder: String,
    /// Without those that the ignore file leaves out.
    pub paths: Vec<Change>,
    /// Links in the context; `None` when there are too many.
    pub links: Option<Vec<String>>,
    /// Whether these are all.
    pub is_complete: bool,
}

/// What a step reads of its context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    /// Paths and patterns, as in the Dockerfile.
    pub(super) sources: Vec<String>,
    /// Whether a source is not understood.
    pub(super) is_unclear: bool,
    /// Whether flags leave some of the files out.
    pub(super) is_inexact: bool,
}

/// Whether files changed that a step reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// No file that it reads has changed.
    Same,
    /// These have.
    Changed {
        /// From the root of the repository.
        first: String,
        /// How many others.
        n_more: usize,
        /// Whether there may be others still.
        is_more: bool,
    },
    /// It is not known.
    Unknown,
}

impl Reads {
    pub(super) fn add(&mut self, source: &str, is_unclear: bool) {
        self.sources.push(source.to_owned());
        self.is_unclear |= is_unclear;
    }

    /// The same with the values of variables.
    pub(super) fn expanded(&self, lookup: &impl Fn(&str) -> Option<String>) -> Self {
        let mut expanded = Self { sources: Vec::new(), ..self.clone() };
        for source in &self.sources {
            match super::plan::expand(source, lookup) {
                Some(source) => expanded.sources.push(source),
                None => expanded.is_unclear = true,
            }
        }
        expanded
    }

    /// Whether files changed that it reads.
    pub(super) fn copied(&self, changes: &ContextChanges) -> Copied {
        let sources: Vec<Pattern> = self.sources.iter().filter_map(|source| Pattern::parse(source)).collect();
        let is_read = |path: &str| sources.iter().any(|source| source.holds(path));
        let read: Vec<&Change> = changes.paths.iter().filter(|change| is_read(&change.path)).collect();
        let mut certain = read.iter().filter(|change| !change.is_special);
        if let (Some(first), false) = (certain.next(), self.is_inexact) {
            let first = format!("{}{}", changes.folder, first.path);
            let is_more = !changes.is_complete || self.is_unclear;
            return Copied::Changed { first, n_more: read.len() - 1, is_more };
        }
        let leads_away = |link: &String| sources.iter().any(|source| source.follows(link));
        let is_clear = !self.is_unclear && sources.len() == self.sources.len();
        let has_links = changes.links.as_ref().is_none_or(|links| links.iter().any(leads_away));
        let is_same = read.is_empty() && changes.is_complete && is_clear && !has_links;
        // A link that was there before may have led to a file that changed.
        let had_links = changes.paths.iter().any(|change| change.is_special && leads_away(&change.path));
        if is_same && !had_links { Copied::Same } else { Copied::Unknown }
    }
}

/// A source: the parts of a path, perhaps with `*` and `?`.
struct Pattern(Vec<String>);

impl Pattern {
    /// `None` when it is not understood.
    fn parse(source: &str) -> Option<Self> {
        let mut parts = Vec::new();
        for part in source.split('/') {
            match part {
                "" | "." => {}
                // Above the context there is nothing.
                ".." => drop(parts.pop()),
                part if part.contains(['[', ']', '\\']) || part.contains("**") => return None,
                part => parts.push(part.to_owned()),
            }
        }
        Some(Self(parts))
    }

    /// Whether it copies a file.
    fn holds(&self, path: &str) -> bool {
        let mut path = path.split('/');
        self.0.iter().all(|part| path.next().is_some_and(|name| matches(part.as_bytes(), name.as_bytes())))
    }

    /// Whether it may follow a link: it names the link, or something below.
    fn follows(&self, link: &str) -> bool {
        let names: Vec<&str> = link.split('/').collect();
        let matching = self.0.iter().zip(&names).all(|(part, name)| matches(part.as_bytes(), name.as_bytes()));
        names.len() <= self.0.len() && matching
    }
}

/// Whether a name matches a pattern with `*` and `?`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[from] => (at, from) = (at + 1, from + 1),
            _ => {
                let Some((star_at, star_from)) = star else { return false };
                star = Some((star_at, star_from + 1));
                (at, from) = (star_at + 1, star_from + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(paths: &[&str], links: &[&str]) -> ContextChanges {
        let change = |path: &&str| Change { path: (*path).into(), is_removed: false, is_special: false };
        ContextChanges {
            folder: "vote/".into(),
            paths: paths.iter().map(change).collect(),
            links: Some(links.iter().map(|link| (*link).to_owned()).collect()),
            is_complete: true,
        }
    }

    fn copied(source: &str, changes: &ContextChanges) -> Copied {
        let mut reads = Reads::default();
        reads.add(source, false);
        reads.copied(changes)
    }

    #[test]
    fn a_source_holds_what_buildkit_copies_of_it() {
        for (source, path, is_held) in [
            (".", "a/b", true),
            ("/", "a/b", true),
            ("./a", "a/b", true),
            ("a/", "a/b", true),
            ("../a", "a/b", true),
            ("x/../a", "a/b", true),
            ("a/b", "a", false),
            ("a", "ab", false),
            ("*.txt", "a.txt", true),
            ("*.txt", "d/a.txt", false),
            ("*", "d/a.txt", true),
            ("d/*.txt", "d/a.txt", true),
            ("d*/a", "d/a/deep", true),
            ("?.txt", "ab.txt", false),
            ("a*b*c", "axxbxbc", true),
            ("a*b*c", "axxbxbd", false),
        ] {
            let found = copied(source, &changes(&[path], &[]));
            let held = Copied::Changed { first: format!("vote/{path}"), n_more: 0, is_more: false };
            assert_eq!(found, if is_held { held } else { Copied::Same }, "{source} of {path}");
        }
    }

    #[test]
    fn what_is_not_certain_is_not_known() {
        let links = |links: &[&str]| changes(&["other"], links);
        for (source, changes, expected) in [
            ("a", links(&["b", "a/x", "ab"]), Copied::Same),
            ("a", links(&["a"]), Copied::Unknown),
            ("a/b", links(&["a"]), Copied::Unknown),
            ("*.txt", links(&["x.txt"]), Copied::Unknown),
            ("a[b]", links(&[]), Copied::Unknown),
            ("a/**", links(&[]), Copied::Unknown),
            ("a", ContextChanges { links: None, ..links(&[]) }, Copied::Unknown),
            ("a", ContextChanges { is_complete: false, ..links(&[]) }, Copied::Unknown),
        ] {
            assert_eq!(copied(source, &changes), expected, "{source}");
        }
        let mut special = changes(&["a"], &[]);
        special.paths[0].is_special = true;
        assert_eq!(copied("a", &special), Copied::Unknown);
        assert_eq!(copied("a/b", &special), Copied::Unknown);
        let inexact = Reads { sources: vec!["a".into()], is_inexact: true, is_unclear: false };
        assert_eq!(inexact.copied(&changes(&["a"], &[])), Copied::Unknown);
        assert_eq!(inexact.copied(&changes(&["b"], &[])), Copied::Same);
    }
}
