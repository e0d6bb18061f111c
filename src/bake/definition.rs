//! A resolved and validated definition: its targets, the links between them, and their input files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::caching::{self, TargetPlan};
use super::ignore::{self, Excluded, Search};
use super::policy::near::near;
use super::policy::{self, Refusal};
use crate::beneath::Directory;
use crate::bounds;
use crate::cache::BaseImage;
use crate::dockerfile;
use crate::event::FailedStep;
use crate::name::reference::{self, Reference};
use crate::platform::{NamedPlatform, Platform};
use crate::secret::SecretBytes;
use crate::state::{JobDirectory, StateError, write_private};
use crate::warmth::BaseBuild;

/// The fields of a target that are read again later.
const KEPT: [&str; 6] = ["context", "contexts", "dockerfile", "dockerfile-inline", "platforms", "tags"];

/// Its text in a job's directory.
pub(super) const FILE: &str = "definition.json";

/// A resolved and validated definition. Nothing in it is left to evaluate.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The text for bake: escaped, with absolute contexts.
    pub text: String,
    /// The same by target, unescaped. Once buildx has confirmed the text, only the fields that are read later.
    pub targets: BTreeMap<String, Map<String, Value>>,
    /// What the caching of each target depends on, once buildx has confirmed the text.
    pub plans: Arc<BTreeMap<String, TargetPlan>>,
    /// The tree that contains all contexts and Dockerfiles.
    pub worktree: PathBuf,
    /// Fields that were replaced, as notices for the customer.
    pub notices: Vec<String>,
    /// A compose file with text that bake would change. buildx merges it with `text`.
    pub(super) compose: Option<PathBuf>,
    /// The caches that may be exported after the build, by target.
    pub(super) exports: BTreeMap<String, String>,
    /// The refusal on a builder that is not the engine of this machine.
    pub(super) local: Option<Refusal>,
    /// The directory of its build secrets.
    pub(super) secrets: PathBuf,
    /// Secrets to mask in everything that is reported of the build.
    pub(super) hidden: Vec<SecretBytes>,
}

impl Definition {
    /// A definition of these targets, for a test.
    #[cfg(test)]
    pub(super) fn of(targets: BTreeMap<String, Map<String, Value>>, worktree: PathBuf) -> Self {
        Self {
            text: String::new(),
            targets,
            plans: Arc::default(),
            worktree,
            notices: Vec::new(),
            compose: None,
            exports: BTreeMap::new(),
            local: None,
            secrets: PathBuf::new(),
            hidden: Vec::new(),
        }
    }

    /// Plans the targets, and drops the fields that are not read again: as values they take many times the memory of the text.
    pub(super) fn understood(mut self) -> Self {
        self.plans = Arc::new(caching::plans(&self.targets, &self.worktree));
        for fields in self.targets.values_mut() {
            let kept = std::mem::take(fields).into_iter().filter(|(name, _)| KEPT.contains(&name.as_str()));
            *fields = kept.collect();
            // Only its presence matters.
            fields.get_mut("dockerfile-inline").map(Value::take);
        }
        self
    }

    /// Writes the text, and returns its files in the order of bake: the text comes last, and counts where two set one field.
    ///
    /// buildx tries a text without a name as a compose file first, and warns of each `$NAME` in it.
    pub(super) fn write(&self, directory: &JobDirectory) -> Result<Vec<PathBuf>, StateError> {
        let file = directory.join(FILE);
        write_private(&file, self.text.as_bytes())?;
        Ok(self.compose.iter().cloned().chain([file]).collect())
    }

    /// The names of all targets.
    pub fn names(&self) -> BTreeSet<String> {
        self.targets.keys().cloned().collect()
    }

    /// The platforms that the targets name, each once. One that buildx cannot read is left out.
    pub fn platforms(&self) -> Vec<NamedPlatform> {
        let mut all: Vec<NamedPlatform> = Vec::new();
        for (target, fields) in &self.targets {
            for name in platforms(fields) {
                if let Some(platform) = Platform::parse(&name)
                    && !all.iter().any(|known| known.platform == platform)
                {
                    all.push(NamedPlatform { target: target.clone(), name, platform });
                }
            }
        }
        all
    }

    /// The platforms of a target, as it names them.
    pub(super) fn platforms_of(&self, target: &str) -> Vec<String> {
        self.targets.get(target).map(platforms).unwrap_or_default()
    }

    /// The base images of a target that are not replaced, as far as its Dockerfile alone says it.
    pub(super) fn base_images(&self, target: &str) -> Vec<BaseImage<'_>> {
        let plan = self.plans.get(target).and_then(|planned| planned.plan.as_ref());
        let images = plan.into_iter().flat_map(|plan| plan.base_images());
        // BuildKit refuses any other text, which could change a URL or a Dockerfile that it is put into.
        let is_name = |base: &BaseImage<'_>| reference::check_reference(base.image).is_ok();
        images.filter(|base| is_name(base) && !self.replaces(target, base.image)).collect()
    }

    /// The base images of targets that can be built alone.
    pub fn base_builds(&self, targets: &BTreeSet<String>) -> BTreeSet<BaseBuild> {
        let of_target = |target: &String| {
            let platforms = self.platforms_of(target);
            let froms = self.base_images(target).into_iter().filter_map(|base| base.alone());
            froms.map(|from| BaseBuild { from, platforms: platforms.clone() }).collect::<Vec<_>>()
        };
        targets.iter().flat_map(of_target).collect()
    }

    /// Whether a named context of a target replaces the image of its name, on one platform or on all.
    fn replaces(&self, target: &str, image: &str) -> bool {
        let contexts = self.targets.get(target).and_then(|fields| fields.get("contexts")?.as_object());
        let is_same = |name: &str| name == image || Reference::of(name) == Reference::of(image);
        contexts.is_some_and(|all| all.keys().filter_map(|name| name.split("::").next()).any(is_same))
    }

    /// Those of the worktree's files that a target may read: they are in a context and not excluded by its `.dockerignore`, or
    /// are a Dockerfile.
    ///
    /// Paths start at the worktree's root. Many patterns and files can take a second: do not call it on a runtime thread.
    pub fn inputs<'a>(&self, files: &'a [PathBuf]) -> Vec<&'a Path> {
        // If the worktree cannot be opened, every file counts; the build fails anyway.
        let Ok(root) = Directory::open(&self.worktree) else { return files.iter().map(PathBuf::as_path).collect() };
        let mut search = Search::new(&root, &self.worktree, files);
        self.targets.values().for_each(|fields| look_into(fields, &mut search));
        files.iter().map(PathBuf::as_path).filter(|file| search.has_found(file)).collect()
    }

    /// Path of a target's Dockerfile from the root of the worktree; `None` for an inline one.
    pub fn dockerfile(&self, target: &str) -> Option<String> {
        let path = context(self.targets.get(target)?).1?;
        Some(path.strip_prefix(&self.worktree).ok()?.to_string_lossy().into_owned())
    }

    /// The line of a failed step in its target's Dockerfile, as far as the file alone says it. An inline one is not kept.
    pub fn line_of(&self, target: &str, step: &FailedStep) -> Option<u32> {
        let dockerfile = context(self.targets.get(target)?).1?;
        let root = Directory::open(&self.worktree).ok()?;
        let found = root.resolve(dockerfile.strip_prefix(&self.worktree).ok()?).ok()?;
        dockerfile::line_of(&root.read(&found.path, bounds::DOCKERFILE).ok()?, step)
    }

    /// Why a path from a target's context is not sent to the builder, although the repository has it.
    pub fn excluded_by(&self, target: &str, path: &Path) -> Option<Excluded> {
        let root = Directory::open(&self.worktree).ok()?;
        let (context, dockerfile) = context(self.targets.get(target)?);
        ignore::excluded(&root, &self.worktree, &context, dockerfile.as_deref(), path)
    }

    /// The path below a target's context that this missing one probably means, from the root of the worktree.
    pub(super) fn near_to(&self, target: &str, path: &Path) -> Option<PathBuf> {
        let root = Directory::open(&self.worktree).ok()?;
        let (context, _) = context(self.targets.get(target)?);
        let path = context.strip_prefix(&self.worktree).ok()?.join(path);
        [false, true].into_iter().find_map(|is_directory| near(&root, &path, is_directory))
    }

    /// The first line of an ignore file that is not a pattern, and that file's path from the root of the worktree.
    pub(super) fn invalid_ignore_line(&self) -> Option<(PathBuf, usize)> {
        let root = Directory::open(&self.worktree).ok()?;
        self.targets.values().find_map(|fields| {
            let (context, dockerfile) = context(fields);
            ignore::invalid_line(&root, &self.worktree, &context, dockerfile.as_deref())
        })
    }

    /// The first line that is not UTF-8 in a Dockerfile of the repository, and that file's path from the worktree's root.
    pub fn not_utf8(&self) -> Option<(PathBuf, usize)> {
        let root = Directory::open(&self.worktree).ok()?;
        self.targets.values().filter_map(|fields| context(fields).1).find_map(|dockerfile| {
            let found = root.resolve(dockerfile.strip_prefix(&self.worktree).ok()?).ok()?;
            let content = root.read(&found.path, bounds::DOCKERFILE).ok()?;
            let error = std::str::from_utf8(&content).err()?;
            let n_before = content[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            Some((found.path, n_before + 1))
        })
    }

    /// These targets and all targets linked to them, in both directions. A target that is built again changes its dependents:
    /// without a new build they would stand on an image that was never pushed.
    pub fn with_linked(&self, targets: &BTreeSet<String>) -> BTreeSet<String> {
        let mut linked = targets.clone();
        loop {
            let before = linked.len();
            for (name, fields) in &self.targets {
                let bases: Vec<&str> = bases(fields).collect();
                if linked.contains(name) {
                    linked.extend(bases.iter().map(|base| (*base).to_owned()));
                } else if bases.iter().any(|base| linked.contains(*base)) {
                    linked.insert(name.clone());
                }
            }
            if linked.len() == before {
                return linked;
            }
        }
    }
}

/// Looks into everything that a target reads.
fn look_into(fields: &Map<String, Value>, search: &mut Search<'_>) {
    let (context, dockerfile) = context(fields);
    search.look_into(&context, dockerfile.as_deref());
    // Other targets and images are in the same list; they are not absolute paths.
    let named = named_contexts(fields).map(Path::new).filter(|named| named.is_absolute());
    named.for_each(|named| search.look_into(named, None));
    // BuildKit reads it even when it is excluded from the context.
    if let Some(dockerfile) = dockerfile {
        search.find(&dockerfile);
    }
}

/// The platforms of a target, as buildx reads them: an entry may list several, and one that is repeated counts once.
pub(super) fn platforms(fields: &Map<String, Value>) -> Vec<String> {
    let entries = fields.get("platforms").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut platforms = Vec::new();
    for platform in entries.iter().filter_map(Value::as_str).flat_map(|entry| entry.split(',')).map(str::trim) {
        if !platforms.iter().any(|known| known == platform) {
            platforms.push(platform.to_owned());
        }
    }
    platforms
}

/// The tags of a target.
pub(super) fn tags(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    fields.get("tags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The context of a target, and its Dockerfile unless that is inline.
pub(super) fn context(fields: &Map<String, Value>) -> (PathBuf, Option<PathBuf>) {
    let text = |field: &str| fields.get(field).and_then(Value::as_str);
    let context = PathBuf::from(text("context").unwrap_or_default());
    let dockerfile = policy::paths::dockerfile(&context, text("dockerfile").unwrap_or("Dockerfile"));
    (context, fields.get("dockerfile-inline").is_none().then_some(dockerfile))
}

/// The targets on which a target is based: its named contexts `target:NAME`.
fn bases(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    named_contexts(fields).filter_map(|context| context.strip_prefix("target:"))
}

fn named_contexts(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let contexts = fields.get("contexts").and_then(Value::as_object);
    contexts.into_iter().flat_map(Map::values).filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_linked_to_a_target_is_built_again_with_it() {
        let on = |base: &str| json!({"contexts": {"base": base}}).as_object().cloned().expect("an object");
        let targets = BTreeMap::from([
            ("base".to_owned(), Map::new()),
            ("app".to_owned(), on("target:base")),
            ("test".to_owned(), on("target:app")),
            ("docs".to_owned(), on("docker-image://base")),
        ]);
        let definition = Definition::of(targets, PathBuf::new());
        let again = |name: &str| Vec::from_iter(definition.with_linked(&BTreeSet::from([name.to_owned()])));
        assert_eq!(again("base"), ["app", "base", "test"]);
        assert_eq!(again("test"), ["app", "base", "test"]);
        assert_eq!(again("docs"), ["docs"]);
    }

    #[test]
    fn base_images_are_built_alone_unless_they_are_replaced_or_no_names() {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        let root = worktree.path().canonicalize().expect("it is there");
        let dockerfile = "ARG BASE\nARG P\nFROM --platform=$BUILDPLATFORM go:1 AS go\nFROM base:1\nFROM --platform=$P other\nFROM scratch\n\
                          FROM $BASE\nFROM app\nCOPY --from=0 / /\nCOPY --from=1 / /\nCOPY --from=2 / /\nCOPY --from=4 / /\n";
        std::fs::write(root.join("Dockerfile"), dockerfile).expect("written");
        let builds = |base: &str, contexts: Value| {
            let target =
                json!({"context": root, "args": {"BASE": base}, "contexts": contexts, "platforms": ["linux/arm64"]});
            let targets = BTreeMap::from([("t".to_owned(), target.as_object().cloned().expect("an object"))]);
            let definition = Definition::of(targets, root.clone()).understood();
            let builds = definition.base_builds(&definition.names());
            builds.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let go = "FROM --platform=$BUILDPLATFORM go:1 linux/arm64";
        let all = ["FROM alpine linux/arm64", "FROM app linux/arm64", "FROM base:1 linux/arm64", go];
        let mut found = builds("alpine", json!({}));
        found.sort_unstable_by_key(|from| from.replace("--platform=$BUILDPLATFORM ", ""));
        assert_eq!(found, all);
        let replaced = json!({"docker.io/library/base:1": "target:x", "app::linux/arm64": "target:x"});
        for base in ["alpine\nRUN evil", "alpine RUN", "../../api?q=", "registry/../x@y"] {
            assert_eq!(builds(base, replaced.clone()), [go], "{base:?}");
        }
    }

    #[test]
    fn the_first_line_that_is_not_utf8_is_known() {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        let root = worktree.path();
        let target = |dockerfile: &str| {
            json!({"context": root, "dockerfile": dockerfile}).as_object().cloned().expect("an object")
        };
        let targets = BTreeMap::from([("a".to_owned(), target("A")), ("b".to_owned(), target("linked"))]);
        std::fs::write(root.join("A"), "FROM caf\u{e9}\n").expect("written");
        std::fs::write(root.join("B"), b"FROM x\n\nEXPOSE caf\xe9\n").expect("written");
        std::os::unix::fs::symlink("B", root.join("linked")).expect("linked");
        assert_eq!(Definition::of(targets.clone(), root.to_owned()).not_utf8(), Some(("B".into(), 3)));
        std::fs::remove_file(root.join("B")).expect("removed");
        assert_eq!(Definition::of(targets, root.to_owned()).not_utf8(), None);
    }

    #[test]
    fn a_file_is_an_input_of_the_contexts_it_lies_in_and_of_the_dockerfile_it_is() {
        let worktree = tempfile::tempdir().expect("a temporary directory");
        let root = worktree.path().canonicalize().expect("it is there");
        for folder in ["docker", "app"] {
            std::fs::create_dir(root.join(folder)).expect("made");
        }
        std::fs::write(root.join("docker/Dockerfile"), "").expect("written");
        std::os::unix::fs::symlink("../docker/Dockerfile", root.join("docker/linked")).expect("linked");
        std::fs::write(root.join("app/.dockerignore"), "out.*").expect("written");
        let target = json!({
            "context": root.join("docker"), "dockerfile": "linked",
            "contexts": {"assets": root.join("assets"), "base": "target:docs", "image": "docker-image://tools"}
        });
        let other = json!({"context": root.join("app"), "dockerfile": "../docker/Dockerfile"});
        let inputs = |target: &Value, file: &str| {
            let targets = BTreeMap::from([("t".to_owned(), target.as_object().cloned().expect("an object"))]);
            let definition = Definition::of(targets, worktree.path().to_owned());
            definition.inputs(&[PathBuf::from(file)]).len()
        };
        // Followed, `deep/..` is app/a; buildx reads app/Dockerfile, and what is beside that.
        std::fs::create_dir_all(root.join("app/a/b")).expect("made");
        std::os::unix::fs::symlink("a/b", root.join("app/deep")).expect("linked");
        std::fs::write(root.join("app/a/Dockerfile.dockerignore"), "*").expect("written");
        std::fs::write(root.join("app/Dockerfile"), "").expect("written");
        let folded = json!({"context": root.join("app"), "dockerfile": "deep/../Dockerfile"});
        assert_eq!((inputs(&folded, "app/Dockerfile"), inputs(&folded, "app/x.bin")), (1, 1));
        assert_eq!(inputs(&folded, "app/out.bin"), 0);
        std::fs::write(root.join("app/Dockerfile.dockerignore"), "x.*\nDocker*").expect("written");
        assert_eq!((inputs(&folded, "app/Dockerfile"), inputs(&folded, "app/x.bin")), (1, 0));
        std::fs::remove_file(root.join("app/Dockerfile.dockerignore")).expect("removed");
        for (file, of_target, of_other) in [
            ("docker/Dockerfile", 1, 1),
            ("docker/x", 1, 0),
            ("assets/deep/x.bin", 1, 0),
            ("app/x.bin", 0, 1),
            ("app/out.bin", 0, 0),
            ("docker/out.bin", 1, 0),
            ("app-assets/x.bin", 0, 0),
            ("tools/x.bin", 0, 0),
            ("docs", 0, 0),
        ] {
            assert_eq!((inputs(&target, file), inputs(&other, file)), (of_target, of_other), "{file}");
        }
    }
}
