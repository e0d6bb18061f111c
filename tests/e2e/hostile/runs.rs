//! Runs one fixture under a careless worker, and behind one wall at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sidebake::bake::{Bake, BakeRequest, Child, admit};
use sidebake::builder::{Builders, PlaceRequest};
use sidebake::job::{Build, BuildJob, Recipe, Trust};
use sidebake::reason::{HasReason, Reason};
use sidebake::sandbox::LAUNCH;
use sidebake::settings::Settings;
use sidebake::state::{JobDirectory, StateDirectory};

use super::fixtures::{Fixture, Kind};
use super::trap::{Harm, Trap};
use crate::engine::Engine;

/// A longer run is a failure, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// The processor time of a bomb, in hundredths of a second. Other definitions need a tenth of it.
const BOMB: u64 = 250;
/// Larger than any real definition.
const TOO_MUCH: u64 = 16 << 20;

/// The protection between a definition and the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wall {
    /// None: docker-buildx without the worker's checks.
    None,
    /// Policy decides what it admits to `--print`, and validates the result. Then bare docker-buildx runs it.
    Policy,
    /// An empty environment.
    Environment,
    /// The kernel's walls: files, ports, sockets and limits, with the whole environment.
    Kernel,
}

/// Runs fixtures with the product's own policy, environments and sandboxes.
pub struct Range<'a> {
    pub engine: &'a Engine,
    pub bake: Bake,
    pub builders: Builders,
    pub state: StateDirectory,
    /// The HOME variable of every careless run.
    pub home: String,
}

/// One run.
struct Run<'a> {
    range: &'a Range<'a>,
    fixture: &'a Fixture,
    trap: &'a Trap,
    tree: PathBuf,
    build: Build,
    directory: JobDirectory,
    said: Vec<PathBuf>,
    is_exhausted: bool,
}

impl<'a> Range<'a> {
    /// This program is not a launcher, so the query for the version of docker-buildx fails and it counts as new.
    pub fn new(engine: &'a Engine, settings: &Settings, state: StateDirectory, home: String) -> Self {
        let builders = Builders::new(settings);
        Self { engine, bake: Bake::new(settings), builders, state, home }
    }

    /// Runs a fixture behind a wall. Returns the harm and the output.
    pub async fn run(&self, fixture: &Fixture, trap: &Trap, wall: Wall) -> (BTreeSet<Harm>, String) {
        let build = BuildJob::parse(&fixture.native(&"0".repeat(40), fixture.name)).unwrap().build;
        let directory = self.state.job_directory().unwrap();
        // The same path as in the product.
        let tree = directory.join("tree").join(fixture.name);
        fixture.write(&tree, trap);
        let mut run = Run { range: self, fixture, trap, tree, build, directory, said: Vec::new(), is_exhausted: false };
        let refused = run.behind(wall).await;
        let said: Vec<u8> =
            run.said.iter().flat_map(|path| fs::read(path).unwrap_or_default()).take(TOO_MUCH as usize).collect();
        let mut harms = trap.harms(&said, &[&self.home]).await;
        if run.is_exhausted {
            harms.insert(Harm::Exhausted);
        }
        let words = String::from_utf8_lossy(&said[said.len().saturating_sub(1500)..]).into_owned();
        (harms, refused.map_or(words.clone(), |refused| format!("{words}\nrefused: {refused}")))
    }
}

impl Run<'_> {
    /// Returns a reason when the wall stopped the run.
    async fn behind(&mut self, wall: Wall) -> Option<String> {
        let request = BakeRequest { build: &self.build, worktree: &self.tree, commit: None };
        if wall == Wall::Policy
            && let Err(refused) = admit(&request)
        {
            return Some(refused.to_string());
        }
        if let Some(neighbour) = self.fixture.neighbour(self.trap) {
            let file = self.trap.home.join("neighbour.json");
            fs::write(&file, neighbour.to_string()).unwrap();
            let mut command = self.bare();
            command.args(["bake", "--progress", "quiet", "--file"]).arg(file).current_dir(&self.tree);
            assert!(command.stdin(Stdio::null()).status().unwrap().success(), "{}: the neighbour", self.fixture.name);
        }
        let (folder, file) = self.fixture.place(&self.tree);
        let mut targets = Vec::new();
        let private = self.directory.subdirectory("print").unwrap();
        make(&private);
        let child = self
            .range
            .bake
            .print_child(&BakeRequest { build: &self.build, worktree: &self.tree, commit: None }, &private);
        let arguments = ["bake", "--print", "--progress", "quiet", "--file", &file].map(str::to_owned);
        let printed = self.finish(self.command(wall, &child, &private), &arguments, &folder, None);
        let mut input = None;
        if wall == Wall::Policy {
            let printed = fs::read(printed).unwrap();
            if printed.is_empty() {
                return Some("buildx did not print it".into());
            }
            let request = BakeRequest { build: &self.build, worktree: &self.tree, commit: None };
            self.is_refused_to_the_platform(&printed).await;
            self.is_allowed_to_a_branch(&printed).await;
            match self.range.bake.validate(&printed, &request, &self.directory).await {
                Ok(definition) => {
                    targets.extend(definition.names());
                    input = Some(definition.text);
                }
                Err(refused) => return Some(refused.to_string()),
            }
        }
        if self.fixture.is_printed_only || self.is_exhausted {
            return None;
        }
        let request = PlaceRequest::new(&self.build, &self.range.state, &self.directory);
        let place = self.range.builders.place(request).await.unwrap();
        let private = self.directory.subdirectory("solve").unwrap();
        make(&private);
        // The same paths as in the product.
        let docker = private.with_file_name("docker");
        fs::create_dir_all(&docker).unwrap();
        fs::write(docker.join("config.json"), self.trap.credentials()).unwrap();
        let secrets = self.directory.join("secrets");
        let child = self.range.bake.solve_child(&self.tree, &secrets, &place.location, &private);
        let file = if input.is_some() { "-".to_owned() } else { file };
        let mut arguments = vec!["bake".into(), "--progress".into(), "rawjson".into(), "--file".into(), file];
        if !self.fixture.has_outputs {
            arguments.extend(["--set".into(), "*.output=type=cacheonly".into()]);
        }
        arguments.extend(targets);
        self.finish(self.command(wall, &child, &private), &arguments, &folder, input);
        None
    }

    /// Policy replaces some fields in a repository's file. It must refuse the same fields in the platform's own
    /// definition.
    async fn is_refused_to_the_platform(&self, printed: &[u8]) {
        // The content of a repository is dangerous too.
        if !self.fixture.is_dangerous || self.fixture.harm.is_err() || self.fixture.name.starts_with("git_") {
            return;
        }
        // An image that is pushed needs a tag, and few of them have one.
        let build = Build { recipe: Recipe::Inline("{}".into()), push: false, ..self.build.clone() };
        let request = BakeRequest { build: &build, worktree: &self.tree, commit: None };
        let refused = self.range.bake.validate(printed, &request, &self.directory).await;
        let is_policy = matches!(&refused, Err(error) if error.reason() == Some(Reason::PolicyRefused));
        assert!(is_policy, "{}, as the platform's own: {refused:?}", self.fixture.name);
    }

    /// An account's own branches may request what a fork may not.
    async fn is_allowed_to_a_branch(&self, printed: &[u8]) {
        if self.fixture.is_forks {
            let build = Build { trust: Trust::Branch, ..self.build.clone() };
            let request = BakeRequest { build: &build, worktree: &self.tree, commit: None };
            let allowed = self.range.bake.validate(printed, &request, &self.directory).await;
            assert!(allowed.is_ok(), "{}, as a branch's: {allowed:?}", self.fixture.name);
        }
    }

    /// docker-buildx behind a wall.
    fn command(&self, wall: Wall, child: &Child, private: &Path) -> Command {
        match wall {
            Wall::None | Wall::Policy => self.bare(),
            Wall::Environment => {
                let mut command = Command::new(&world::buildx().path);
                command.env_clear().envs(&child.environment);
                command
            }
            Wall::Kernel => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_sidebake"));
                command.arg(LAUNCH).arg(serde_json::to_string(&child.sandbox).unwrap());
                command.arg(std::process::id().to_string()).arg(&world::buildx().path);
                self.carelessly(&mut command, private);
                command
            }
        }
    }

    /// docker-buildx with all variables of the machine.
    fn bare(&self) -> Command {
        let mut command = Command::new(&world::buildx().path);
        let private = self.trap.home.join("private");
        make(&private);
        self.carelessly(&mut command, &private);
        command
    }

    fn carelessly(&self, command: &mut Command, private: &Path) {
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", &self.range.home);
        for (name, folder) in [("BUILDX_CONFIG", "buildx"), ("DOCKER_CONFIG", "docker"), ("TMPDIR", "tmp")] {
            command.env(name, private.join(folder));
        }
        command.envs(self.range.engine.environment()).envs(self.trap.variables());
    }

    /// Runs docker-buildx until it ends or proves to be a bomb. Returns the file with its standard output.
    fn finish(&mut self, mut command: Command, arguments: &[String], folder: &Path, input: Option<String>) -> PathBuf {
        let path = |name: &str| self.trap.home.join(format!("{name}-{}", self.said.len()));
        let (out, err) = (path("out"), path("err"));
        command.args(arguments).current_dir(folder).process_group(0);
        let stdin = match input {
            Some(text) => {
                let file = path("input");
                fs::write(&file, text).unwrap();
                File::open(file).unwrap().into()
            }
            None => Stdio::null(),
        };
        command.stdin(stdin).stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let mut child = command.spawn().unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            let is_too_much = used(child.id()) > BOMB || fs::metadata(&out).unwrap().len() > TOO_MUCH;
            if is_too_much || started.elapsed() > PATIENCE {
                self.is_exhausted = true;
                child.kill().unwrap();
                child.wait().unwrap();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.is_exhausted |= fs::metadata(&out).unwrap().len() > TOO_MUCH;
        self.said.extend([out.clone(), err]);
        out
    }
}

/// The processor time of a process, in hundredths of a second.
fn used(id: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn make(private: &Path) {
    for folder in ["buildx", "docker", "tmp"] {
        fs::create_dir_all(private.join(folder)).unwrap();
    }
}

impl Fixture {
    /// The build request of the job.
    pub fn native(&self, sha: &str, repository: &str) -> Value {
        let field = if self.file.ends_with(".yml") || self.file.ends_with(".yaml") { "compose" } else { "bake" };
        let is_said = self.is_forks && self.reference == "refs/heads/main";
        json!({
            "repository": format!("acme/{repository}"), "account": self.account, "sha": sha, "ref": self.reference,
            "trust": if is_said { "fork" } else { "branch" }, field: self.file, "no_cache": true,
            // Policy also refuses a fork's names for its images.
            "push": !self.is_forks,
        })
    }

    /// The definition that another account built before.
    pub fn neighbour(&self, trap: &Trap) -> Option<Value> {
        let definition = json!({"target": {"default": self.neighbour.as_ref()?}}).to_string();
        Some(serde_json::from_str(&trap.fill(&definition)).unwrap())
    }

    /// The files of the fixture's repository.
    pub fn commit(&self, trap: &Trap) -> Vec<world::File> {
        let filled = self.filled(trap);
        let files = filled.into_iter().map(|(path, kind, content)| match kind {
            Kind::File => world::File::new(&path, content),
            Kind::Program => world::File::executable(&path, content),
            Kind::Link => world::File::symlink(&path, &String::from_utf8(content).unwrap()),
        });
        files.collect()
    }

    fn filled(&self, trap: &Trap) -> Vec<(String, Kind, Vec<u8>)> {
        let fill = |content: &Vec<u8>| match std::str::from_utf8(content) {
            Ok(text) => trap.fill(text).into_bytes(),
            Err(_) => content.clone(),
        };
        self.tree.iter().map(|entry| (entry.path.clone(), entry.kind, fill(&entry.content))).collect()
    }

    fn write(&self, tree: &Path, trap: &Trap) {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let mut links = BTreeMap::new();
        for (path, kind, content) in self.filled(trap) {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if kind == Kind::Link {
                links.insert(path, String::from_utf8(content).unwrap());
                continue;
            }
            fs::write(&path, content).unwrap();
            let mode = if kind == Kind::Program { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        for (path, target) in links {
            symlink(target, path).unwrap();
        }
    }

    /// The directory in which the definition is read, and its name there.
    fn place(&self, tree: &Path) -> (PathBuf, String) {
        let path = Path::new(self.file);
        (tree.join(path.parent().unwrap()), path.file_name().unwrap().to_str().unwrap().to_owned())
    }
}
