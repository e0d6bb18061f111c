//! One build with `docker-buildx bake`: define, resolve, validate, solve, read.
//!
//! Owns the order of these and what each child gets. buildx trusts definitions and their directories; we do not: both
//! children run in a sandbox with an environment made from nothing and no PATH, so that nothing but buildx and its
//! loader can be executed, and what is solved is exactly what was validated.

mod child;
mod credentials;
mod define;
mod diagnose;
mod escape;
mod grants;
mod ignore;
mod mask;
mod metadata;
mod policy;
mod print;
mod progress;
mod shown;
mod solve;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::beneath::Directory;
use crate::job::{Build, Sha};
use crate::journal::Journal;
use crate::process::ProcessError;
use crate::reason::{End, HasReason, Reason};
use crate::report::TargetReport;
use crate::sandbox::Sockets;
use crate::secret::Secret;
use crate::settings;
use crate::state::{JobDirectory, StateError, make_private, write_private};

use grants::Grants;
use ignore::Search;

pub use child::{Child, Configuration, dial_child};
pub use define::application as define_application;
pub use policy::Refusal;
pub use print::admit;

/// The version of buildx from which on it evaluates a repository's `Dockerfile.rego`.
const FIRST_WITH_POLICIES: (u32, u32) = (0, 31);

/// The directory of a job's build secrets, in the job's own.
const SECRETS: &str = "secrets";

/// The fields of a target that are looked at when it is built.
const KEPT: [&str; 5] = ["context", "contexts", "dockerfile", "dockerfile-inline", "tags"];

/// A definition that could not be resolved, is not allowed, or could not be handed to buildx.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    /// `--print` does not accept it.
    #[error("{0}")]
    Invalid(String),
    /// It asks for what is not allowed.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A directory or file of the job cannot be made.
    #[error(transparent)]
    State(#[from] StateError),
    /// `docker-buildx` cannot be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// `docker-buildx` ended without having run: the launcher says why.
    #[error("docker-buildx: {0}")]
    Launcher(String),
    /// A granted build secret cannot be used.
    #[error("the build secret {name}: {message}")]
    Secret {
        /// What the configuration calls it.
        name: String,
        /// What is wrong, without anything of its content.
        message: String,
    },
    /// The account's registry credentials cannot be used.
    #[error("registry credentials in {path}: {message}")]
    Credentials {
        /// The file.
        path: String,
        /// What is wrong, without anything of its content.
        message: String,
    },
    /// It was stopped.
    #[error("the build was stopped")]
    Stopped,
}

impl HasReason for BakeError {
    fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Invalid(_) => Reason::DefinitionInvalid,
            Self::Refused(_) => Reason::PolicyRefused,
            Self::State(_) | Self::Process(_) | Self::Launcher(_) => Reason::WorkerFailed,
            Self::Credentials { .. } | Self::Secret { .. } => Reason::WorkerFailed,
            Self::Stopped => return None,
        })
    }
}

/// What to build, and from where.
#[derive(Clone, Copy, Debug)]
pub struct BakeRequest<'a> {
    /// What.
    pub build: &'a Build,
    /// Root of the worktree.
    pub worktree: &'a Path,
    /// The commit, when it is one.
    pub sha: Option<&'a Sha>,
}

/// Where it is built, as the builder integration gives it.
#[derive(Clone, Debug)]
pub struct Location {
    /// Name for `--builder`.
    pub builder: String,
    /// The bake's working directory, by which the kubernetes driver chooses the pod.
    pub working_directory: PathBuf,
    /// buildx's configuration, in which the builder's record lies.
    pub configuration: Configuration,
    /// Variables that lead buildx to the builder.
    pub environment: BTreeMap<String, String>,
    /// What buildx may speak to.
    pub sockets: Sockets,
    /// Files that buildx needs for that, such as certificates. No child can write where they lie.
    pub files: Vec<PathBuf>,
    /// Whether somebody watches that the builder is heard from: then a silent step is just that.
    pub is_watched: bool,
    /// What the bake tells the builder's watch.
    pub run: Arc<Run>,
}

/// A run of docker-buildx, as far as somebody who watches it from the side must know.
#[derive(Debug, Default)]
pub struct Run {
    /// Its process id, once it has one.
    pub pid: OnceLock<u32>,
    /// Set when the builder has begun to work: until then buildx itself gives up after 20 s, and says why.
    pub has_begun: OnceLock<()>,
}

/// What one run of docker-buildx has to build, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Goal<'a> {
    /// The definition.
    pub definition: &'a Definition,
    /// Names of targets in it.
    pub targets: &'a BTreeSet<String>,
    /// When the build's time is over.
    pub deadline: Instant,
}

/// What a bake made: read from its events, so it is known even when it failed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Each target of the definition.
    pub targets: Vec<TargetReport>,
    /// Bytes of build context that were sent.
    pub context_bytes: u64,
    /// Why it did not succeed; `None` when it did.
    pub end: Option<End>,
}

/// A resolved and validated definition: nothing is left to evaluate in it.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The text for `bake -f -`: escaped, contexts absolute.
    pub text: String,
    /// The same, unescaped, by target; once buildx has understood it, with no other fields than those that are read later.
    pub targets: BTreeMap<String, Map<String, Value>>,
    /// The tree in which all its contexts and Dockerfiles lie.
    pub worktree: PathBuf,
    /// What was replaced in it, for the person who asked for the build.
    pub notices: Vec<String>,
    /// The directory of its build secrets.
    secrets: PathBuf,
    /// What is kept out of all that is said of the build.
    hidden: Vec<Secret>,
}

impl Definition {
    /// Drops the fields that are not read again once buildx has understood the text: values take many times its memory.
    fn understood(mut self) -> Self {
        for fields in self.targets.values_mut() {
            let kept = std::mem::take(fields).into_iter().filter(|(name, _)| KEPT.contains(&name.as_str()));
            *fields = kept.collect();
            // That it is there is all that matters.
            fields.get_mut("dockerfile-inline").map(Value::take);
        }
        self
    }

    /// The names of all targets.
    pub fn names(&self) -> BTreeSet<String> {
        self.targets.keys().cloned().collect()
    }

    /// Those of the worktree's files that a target may be built from: they lie in a context whose `.dockerignore` does not
    /// leave them out, or are a Dockerfile.
    ///
    /// Paths are from the worktree's root. With many patterns and files it takes a second, so it is not for the runtime's threads.
    pub fn inputs<'a>(&self, files: &'a [PathBuf]) -> Vec<&'a Path> {
        // Of a worktree that cannot be opened every file counts, and the build will fail.
        let Ok(root) = Directory::open(&self.worktree) else { return files.iter().map(PathBuf::as_path).collect() };
        let mut search = Search::new(&root, &self.worktree, files);
        self.targets.values().for_each(|fields| look_into(fields, &mut search));
        files.iter().map(PathBuf::as_path).filter(|file| search.has_found(file)).collect()
    }

    /// These targets and all that are linked to them, either way: what was built on a target that is built again must be
    /// built again as well, or it stands on an image that nobody has pushed.
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

/// Finds what a target reads.
fn look_into(fields: &Map<String, Value>, search: &mut Search<'_>) {
    let text = |field: &str| fields.get(field).and_then(Value::as_str);
    let context = PathBuf::from(text("context").unwrap_or_default());
    let dockerfile = policy::paths::dockerfile(&context, text("dockerfile").unwrap_or("Dockerfile"));
    let beside = fields.get("dockerfile-inline").is_none().then_some(&*dockerfile);
    search.look_into(&context, beside);
    // Other targets and images are named in the same place; they look like no absolute path.
    let named = named_contexts(fields).map(Path::new).filter(|named| named.is_absolute());
    named.for_each(|named| search.look_into(named, None));
    // It is read also when it is left out of the context.
    if let Some(dockerfile) = beside {
        search.find(dockerfile);
    }
}

/// The targets on which a target is built: its named contexts `target:NAME`.
fn bases(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    named_contexts(fields).filter_map(|context| context.strip_prefix("target:"))
}

fn named_contexts(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let contexts = fields.get("contexts").and_then(Value::as_object);
    contexts.into_iter().flat_map(Map::values).filter_map(Value::as_str)
}

/// Runs `docker-buildx`.
#[derive(Clone, Debug)]
pub struct Bake {
    buildx: settings::Buildx,
    /// Whether buildx evaluates policies that it finds beside Dockerfiles, once it was asked for its version.
    has_policies: Arc<OnceCell<bool>>,
    /// Turns of `--print`, which can take a processor and all the memory that it may for as long as it may.
    prints: Arc<Semaphore>,
    limits: settings::Bake,
    sandbox: settings::Sandbox,
    accounts: settings::Accounts,
}

impl Bake {
    /// Takes the settings.
    pub fn new(settings: &settings::Settings) -> Self {
        Self {
            buildx: settings.buildx.clone(),
            has_policies: Arc::default(),
            prints: Arc::new(Semaphore::new(settings.bake.prints)),
            limits: settings.bake.clone(),
            sandbox: settings.sandbox.clone(),
            accounts: settings.accounts.clone(),
        }
    }

    /// Resolves and validates the definition.
    pub async fn resolve(
        &self,
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
        stop: &CancellationToken,
    ) -> Result<Definition, BakeError> {
        // What we wrote ourselves needs nobody to resolve it, only to agree: one call of buildx instead of two.
        if let Some(targets) = define::resolved(request) {
            let definition = self.validate_targets(targets, request, directory).await?;
            if print::is_understood(self, &definition, request, directory, stop).await? {
                return Ok(definition.understood());
            }
        }
        admit(request)?;
        let source = define::source(request)?;
        let printed = print::print(self, &source, request, directory, stop).await?;
        let definition = self.validate(&printed, request, directory).await?;
        match print::is_understood(self, &definition, request, directory, stop).await? {
            true => Ok(definition.understood()),
            false => Err(BakeError::Launcher("it does not understand the definition in the way it was checked".into())),
        }
    }

    /// Validates what `--print` has printed of a request's definition.
    ///
    /// # Errors
    ///
    /// `Refused` names the path of what is not allowed.
    pub async fn validate(
        &self,
        printed: &[u8],
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
    ) -> Result<Definition, BakeError> {
        let mut targets = print::read(printed)?;
        define::add_secrets(request, &mut targets);
        self.validate_targets(targets, request, directory).await
    }

    async fn validate_targets(
        &self,
        targets: print::Targets,
        request: &BakeRequest<'_>,
        directory: &JobDirectory,
    ) -> Result<Definition, BakeError> {
        let has_policies = self.has_policies().await?;
        let grants = Grants::new(&self.accounts, request);
        let secrets = directory.join(SECRETS);
        let validated = policy::validate(targets, request, &grants, &self.limits, &secrets)?;
        if !validated.secrets.is_empty() {
            make_private(&secrets)?;
        }
        for (path, secret) in validated.secrets.values() {
            write_private(path, secret.expose())?;
        }
        Ok(Definition {
            text: escape::definition(&validated.targets, has_policies),
            targets: validated.targets,
            worktree: request.worktree.to_owned(),
            notices: validated.notices,
            secrets,
            hidden: validated.secrets.values().map(|(_, secret)| secret.to_text()).collect(),
        })
    }

    /// What the child may see and do that resolves the definition of a request; `private` is its own directory.
    pub fn print_child(&self, request: &BakeRequest<'_>, private: &Path) -> Child {
        print::child(self, request, private)
    }

    /// What the child may see and do that builds from a worktree at a location; `private` is its own directory.
    pub fn solve_child(&self, worktree: &Path, secrets: &Path, location: &Location, private: &Path) -> Child {
        solve::child(self, worktree, secrets, location, private)
    }

    /// Builds a validated definition; everything that happens goes to the journal.
    ///
    /// # Errors
    ///
    /// Only when buildx could not be run. A build that fails is an [`Outcome`].
    pub async fn solve(
        &self,
        build: &Build,
        goal: Goal<'_>,
        location: &Location,
        directory: &JobDirectory,
        journal: &Journal,
        stop: &CancellationToken,
    ) -> Result<Outcome, BakeError> {
        solve::solve(self, build, goal, location, directory, journal, stop).await
    }

    /// How long the build may take in all.
    pub fn time_limit(&self, build: &Build) -> Duration {
        build.timeout.unwrap_or(self.limits.timeout)
    }

    /// The names of the variables and the arguments of a solve, for `plan`.
    pub fn describe(&self, location: &Location, directory: &Path) -> (Vec<String>, Vec<String>) {
        let environment = solve::environment(location, directory);
        let mut arguments = vec![self.buildx.binary.display().to_string()];
        arguments.extend(solve::arguments(location, &directory.join(solve::METADATA)));
        (environment.into_keys().collect(), arguments)
    }

    async fn has_policies(&self) -> Result<bool, BakeError> {
        let ask = async || {
            let version = self.version().await?;
            let mut numbers = version.split('.').map(str::parse);
            // One that was built by hand says nothing of itself, and may be new.
            Ok(match (numbers.next(), numbers.next()) {
                (Some(Ok(0)), Some(Ok(0))) => true,
                (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= FIRST_WITH_POLICIES,
                _ => true,
            })
        };
        self.has_policies.get_or_try_init(ask).await.copied()
    }

    /// The version that `docker-buildx version` prints, such as `0.29.1`.
    pub async fn version(&self) -> Result<String, BakeError> {
        print::version(self).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(targets: BTreeMap<String, Map<String, Value>>, worktree: PathBuf) -> Definition {
        Definition {
            text: String::new(),
            targets,
            worktree,
            notices: Vec::new(),
            secrets: PathBuf::new(),
            hidden: Vec::new(),
        }
    }

    #[test]
    fn what_is_linked_to_a_target_is_built_again_with_it() {
        let on = |base: &str| json!({"contexts": {"base": base}}).as_object().cloned().expect("an object");
        let targets = BTreeMap::from([
            ("base".to_owned(), Map::new()),
            ("app".to_owned(), on("target:base")),
            ("test".to_owned(), on("target:app")),
            ("docs".to_owned(), on("docker-image://base")),
        ]);
        let definition = definition(targets, PathBuf::new());
        let again = |name: &str| Vec::from_iter(definition.with_linked(&BTreeSet::from([name.to_owned()])));
        assert_eq!(again("base"), ["app", "base", "test"]);
        assert_eq!(again("test"), ["app", "base", "test"]);
        assert_eq!(again("docs"), ["docs"]);
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
            let definition = definition(targets, worktree.path().to_owned());
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
