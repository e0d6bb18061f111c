//! What the caching of each target depends on: its Dockerfile, its build arguments, and what its context shows.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::ignore::{Ignore, ignore_text};
use super::{definition, print};
use crate::beneath::Directory;
use crate::bounds;
use crate::cache::{Changes, ContextChanges, Plan, Wanted};

/// Bytes of all Dockerfiles of a build that are planned.
const MAX_DOCKERFILES: usize = 4 * bounds::DOCKERFILE;

/// Fields that enter the cache keys of RUN.
const PROCESS_FIELDS: [&str; 5] = ["extra-hosts", "network", "resources", "shm-size", "ulimits"];

/// What the caching of a target depends on.
#[derive(Clone, Debug)]
pub struct TargetPlan {
    /// Path of its Dockerfile from the root of the worktree, unless it is inline.
    pub dockerfile: Option<String>,
    /// Its steps; `None` when they are not understood.
    pub plan: Option<Plan>,
    /// The context from the root of the worktree; `None` when it is elsewhere.
    folder: Option<String>,
    /// What is left out of the context; `None` when it is not understood.
    ignore: Option<Ignore>,
    /// The size of the ignore file.
    ignore_bytes: usize,
}

/// The plans of all targets.
pub(super) fn plans(targets: &print::Targets, worktree: &Path) -> BTreeMap<String, TargetPlan> {
    let Ok(root) = Directory::open(worktree) else { return BTreeMap::new() };
    let mut left = MAX_DOCKERFILES;
    let plan =
        |(name, fields): (&String, &Map<String, Value>)| (name.clone(), plan(fields, &root, worktree, &mut left));
    targets.iter().map(plan).collect()
}

fn plan(fields: &Map<String, Value>, root: &Directory, worktree: &Path, left: &mut usize) -> TargetPlan {
    let (context, dockerfile) = definition::context(fields);
    let dockerfile = dockerfile.and_then(|path| Some(path.strip_prefix(worktree).ok()?.to_owned()));
    let text = match (&dockerfile, fields.get("dockerfile-inline").and_then(Value::as_str)) {
        (_, Some(inline)) => Some(inline.as_bytes().to_vec()),
        (Some(path), None) => root.resolve(path).and_then(|found| root.read(&found.path, bounds::DOCKERFILE)).ok(),
        (None, None) => None,
    };
    let text = text.filter(|text| {
        *left = left.saturating_sub(text.len());
        *left > 0
    });
    // A link in the path would make the paths of the commit others than those of the context.
    let folder = context.strip_prefix(worktree).ok().filter(|folder| {
        root.resolve(folder).is_ok_and(|found| found.path == **folder || folder.as_os_str().is_empty())
    });
    let rules = folder.and_then(|folder| ignore_text(root, folder, dockerfile.as_deref()).ok());
    TargetPlan {
        dockerfile: dockerfile.map(|path| path.to_string_lossy().into_owned()),
        plan: text.and_then(|text| Plan::read(&text, wanted(fields))),
        folder: folder
            .and_then(Path::to_str)
            .map(|folder| if folder.is_empty() { String::new() } else { format!("{folder}/") }),
        ignore: rules.as_deref().and_then(Ignore::parse),
        ignore_bytes: rules.map_or(0, |rules| rules.len()),
    }
}

fn wanted(fields: &Map<String, Value>) -> Wanted {
    let texts = |field: &str| -> Vec<String> {
        let texts = fields.get(field).and_then(Value::as_array).into_iter().flatten();
        texts.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let arguments = fields.get("args").and_then(Value::as_object).into_iter().flatten();
    Wanted {
        stage: fields.get("target").and_then(Value::as_str).map(str::to_owned),
        arguments: arguments.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect(),
        platforms: definition::platforms(fields),
        process: PROCESS_FIELDS.map(|field| fields.get(field).map(Value::to_string).unwrap_or_default()).join("\n"),
        has_contexts: fields.get("contexts").and_then(Value::as_object).is_some_and(|all| !all.is_empty()),
        no_cache: fields.get("no-cache").and_then(Value::as_bool).unwrap_or(false),
        no_cache_stages: texts("no-cache-filter"),
    }
}

impl TargetPlan {
    /// The changes of a commit that the target's context shows. `links`: the commit's symbolic links, unless there are too many.
    /// Takes from `left` bytes of patterns times bytes of paths; when nothing is left, nothing is known.
    pub fn context_changes(&self, changes: &Changes, links: Option<&[String]>, left: &Cell<usize>) -> ContextChanges {
        let nothing = ContextChanges::default();
        let (Some(folder), Some(ignore)) = (&self.folder, &self.ignore) else { return nothing };
        let n_bytes: usize = changes.paths.iter().map(|change| change.path.len() * 2).sum();
        let Some(rest) = left.get().checked_sub(self.ignore_bytes.saturating_mul(n_bytes)) else { return nothing };
        left.set(rest);
        // Also one that is gone, or that has come.
        let beside = self.dockerfile.as_ref().map(|path| format!("{path}.dockerignore"));
        let is_ignore_file = |path: &str| Some(path) == beside.as_deref() || path == format!("{folder}.dockerignore");
        let has_new_rules = changes.paths.iter().any(|change| is_ignore_file(&change.path));
        // git may write another text from the same content.
        let has_new_text = changes.paths.iter().any(|change| change.path.rsplit('/').next() == Some(".gitattributes"));
        let within = |path: &str| path.strip_prefix(folder.as_str()).map(str::to_owned);
        let shown = changes.paths.iter().filter_map(|change| {
            let path = within(&change.path)?;
            let is_shown = ignore.excluding_line(&path).is_none() && !(has_new_rules && change.is_removed);
            is_shown.then(|| crate::cache::Change { path, ..change.clone() })
        });
        ContextChanges {
            folder: folder.clone(),
            paths: shown.collect(),
            links: links.map(|links| links.iter().filter_map(|link| within(link)).collect()),
            is_complete: changes.is_complete && !has_new_rules && !has_new_text,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cache::Change;

    #[test]
    fn a_context_shows_the_changes_that_its_ignore_file_leaves() {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        let root = worktree.path().canonicalize().expect("it is there");
        std::fs::create_dir_all(root.join("vote")).expect("made");
        std::fs::write(root.join("vote/Dockerfile"), "FROM x\nCOPY . .\n").expect("written");
        std::fs::write(root.join("vote/.dockerignore"), "*.md\n").expect("written");
        let fields = json!({"context": root.join("vote"), "dockerfile": "Dockerfile", "args": {"A": "1", "B": null}});
        let targets = BTreeMap::from([("vote".to_owned(), fields.as_object().cloned().expect("an object"))]);
        let plan = plans(&targets, &root).remove("vote").expect("planned");
        assert_eq!(plan.dockerfile.as_deref(), Some("vote/Dockerfile"));
        assert!(plan.plan.is_some());
        let change = |path: &str| Change { path: path.into(), is_removed: path.contains("old"), is_special: false };
        let changes = |paths: &[&str]| Changes {
            since: String::new(),
            paths: paths.iter().map(|path| change(path)).collect(),
            is_complete: true,
        };
        let left = Cell::new(10_000);
        let shown = |paths: &[&str]| {
            let shown = plan.context_changes(&changes(paths), Some(&["vote/link".into(), "link".into()]), &left);
            assert_eq!(shown.links.as_deref(), Some(&["link".to_owned()][..]));
            (shown.paths.into_iter().map(|change| change.path).collect::<Vec<_>>(), shown.is_complete)
        };
        assert_eq!(shown(&["vote/a.md", "vote/app.py", "votes/x", "x"]), (vec!["app.py".into()], true));
        assert_eq!(shown(&["vote/.dockerignore", "vote/old"]), (vec![".dockerignore".into()], false));
        assert!(!shown(&["vote/.gitattributes"]).1);
        let too_much = plan.context_changes(&changes(&["vote/app.py"]), None, &Cell::new(9));
        assert!(too_much.paths.is_empty() && !too_much.is_complete, "{too_much:?}");
        std::fs::write(root.join("vote/.dockerignore"), "a[b-\n").expect("written");
        let plan = plans(&targets, &root).remove("vote").expect("planned");
        let unclear = plan.context_changes(&changes(&["vote/app.py"]), Some(&[]), &left);
        assert!(unclear.paths.is_empty() && !unclear.is_complete, "{unclear:?}");
    }
}
