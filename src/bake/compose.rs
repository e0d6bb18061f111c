//! Services of compose files that bake makes one target of: `api.v1` and `api_v1`. buildx merges their fields without a word.
//!
//! Reads only the names of services. buildx reports what is wrong with a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::{budget, options};

use super::definition_file::{self, DefinitionFile, is_compose};
use super::policy::Refusal;
use super::view::below;
use crate::beneath::Directory;
use crate::bounds;
use crate::job::Paths;
use crate::name::target_name;

/// Levels of a compose file. The parser needs stack for each.
const MAX_DEPTH: usize = 64;

/// What is read of a compose file.
#[derive(Deserialize)]
struct Compose {
    #[serde(default)]
    services: Option<BTreeMap<String, Option<Service>>>,
    #[serde(default)]
    include: Option<Vec<Include>>,
}

/// A service is built when it has a `build`, here or where it comes from.
#[derive(Deserialize)]
struct Service {
    build: Option<IgnoredAny>,
    extends: Option<IgnoredAny>,
}

/// A file that a compose file includes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Include {
    Path(String),
    Paths { path: Paths },
}

/// The refusal of two services that become one target, in these files and in what they include.
pub(super) fn refusal(files: &[DefinitionFile], directory: &str, root: &Directory) -> Option<Refusal> {
    let mut names = BTreeSet::new();
    let mut included = BTreeSet::new();
    for file in files.iter().filter(|file| is_compose(&file.path)) {
        take(&file.content, Path::new(directory), &mut names, &mut included);
    }
    let mut read = BTreeSet::new();
    while let Some(path) = included.pop_first() {
        if read.len() < bounds::DEFINITION_FILES
            && read.insert(path.clone())
            && let Ok(content) = definition_file::read(root, &path)
        {
            take(&content, path.parent().unwrap_or(Path::new("")), &mut names, &mut included);
        }
    }
    let mut targets = BTreeMap::new();
    for name in &names {
        if let Some(other) = targets.insert(target_name(name), name) {
            let message = format!("{other:?} and {name:?} become one target; rename one of them");
            return Some(Refusal::invalid("services", message));
        }
    }
    None
}

/// Adds the names of the services that are built, and the paths of included files.
fn take(content: &[u8], directory: &Path, names: &mut BTreeSet<String>, included: &mut BTreeSet<PathBuf>) {
    let Ok(text) = std::str::from_utf8(content) else { return };
    let options = options! { budget: budget! { max_depth: MAX_DEPTH, max_nodes: bounds::VALUES } };
    let Ok(compose) = serde_saphyr::from_str_with_options::<Compose>(text, options) else { return };
    let is_built = |service: &Option<Service>| {
        service.as_ref().is_some_and(|service| service.build.is_some() || service.extends.is_some())
    };
    names.extend(compose.services.into_iter().flatten().filter(|(_, service)| is_built(service)).map(|(name, _)| name));
    for include in compose.include.into_iter().flatten() {
        let paths = match include {
            Include::Path(path) => vec![path],
            Include::Paths { path: Paths(paths) } => paths,
        };
        included.extend(paths.iter().filter_map(|path| below(directory, Path::new(path))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(files: &[(&str, &str)]) -> Option<String> {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = worktree.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let root = Directory::open(worktree.path()).expect("opened");
        let given = files.iter().filter(|(path, _)| !path.contains('/'));
        let given = given.map(|(path, text)| DefinitionFile { path: (*path).into(), content: text.as_bytes().into() });
        refusal(&given.collect::<Vec<_>>(), "", &root).map(|refusal| refusal.to_string())
    }

    #[test]
    fn services_that_become_one_target_are_refused_by_name() {
        let expected = r#"services: "api.v1" and "api_v1" become one target; rename one of them"#;
        let two = "services:\n  api.v1: {build: .}\n  api_v1: {build: .}\n";
        let one = |name: &str| format!("services: {{{name}: {{build: {{context: .}}}}}}");
        let [dotted, plain] = ["api.v1", "api_v1"].map(one);
        for files in [
            &[("compose.yml", two)][..],
            &[("a.yml", &dotted), ("b.YAML", &plain)],
            &[("a.yml", &format!("include: [sub/b.yml]\n{dotted}")), ("sub/b.yml", &plain)],
            &[
                ("a.yml", &format!("include:\n  - path: [./sub/b.yml]\n{dotted}")),
                ("sub/b.yml", "include: [../other/c.yml]"),
                ("other/c.yml", &plain),
            ],
            &[("a.yml", "x-b: &b {build: .}\nservices:\n  api.v1: *b\n  api_v1: {<<: *b, image: x}\n")],
        ] {
            assert_eq!(refused(files).as_deref(), Some(expected), "{files:?}");
        }
    }

    #[test]
    fn services_that_stay_apart_are_not_refused() {
        for files in [
            // Only one of them is built.
            &[("a.yml", "services: {api.v1: {build: .}, api_v1: {image: x}}")][..],
            // One service in two files.
            &[("a.yml", "services: {api.v1: {build: .}}"), ("b.yml", "services: {api.v1: {build: {target: x}}}")],
            // A bake file adds fields to the target of a service.
            &[("a.yml", "services: {api.v1: {build: .}}"), ("b.hcl", "target \"api_v1\" {}")],
            &[("a.yml", "services: [not, a, map]")],
            &[("a.yml", "include: [../out.yml, /etc/passwd, b.yml]\nservices: {a: null, 5: {build: !reset null}}")],
        ] {
            assert_eq!(refused(files), None, "{files:?}");
        }
        let deep = format!("services: {}{}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(refused(&[("a.yml", &deep)]), None);
    }
}
