//! The files that hold the definition of a request, as buildx reads them: copies outside of the worktree.
//!
//! buildx quotes lines that it cannot parse, so a copy has nothing but a regular file of the repository. A link is followed
//! while it stays in the repository. The copy keeps the name of the file, by which buildx recognizes a compose file.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::policy::near::near;
use super::print::{NOWHERE, Targets};
use super::{BakeError, BakeRequest, compose, define, definition, escape, view};
use crate::beneath::{Directory, is_link, leads_out};
use crate::bounds;
use crate::job::{Recipe, RepositoryFiles};
use crate::state::{JobDirectory, make_private, replace_link, write_private};

/// The directory of the copies in a job's directory. No child can write there.
const COPIES: &str = "definition";

/// A link to the worktree, through which `PWD` leads: a definition may put that path anywhere.
const HERE: &str = "here";

/// The most secrets without a file in the repository. buildx reports one each time it reads a definition.
const MAX_STAND_INS: usize = 50;

/// The directory of a view with stand-ins, in a job's directory. No child can write there.
const VIEW: &str = "view";

/// The directory that is `HOME`, beside the copies.
const HOME: &str = "home";

/// What an image gets in place of the path of the repository, which differs from build to build.
const REPOSITORY: &str = "/repository";

/// Fields with paths.
const PATHS: [&str; 3] = ["context", "contexts", "dockerfile"];

/// A file of the repository that buildx may read.
#[derive(Debug)]
pub struct DefinitionFile {
    /// Its path from the root of the worktree, as the job names it.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// Reads the files of the repository that hold a request's definition; none when it comes from the platform.
///
/// # Errors
///
/// A file that does not exist, is not a regular file, is too large, or lies outside of the repository, also through links. So may
/// not the `.env` that buildx reads with a compose file.
pub fn admit(request: &BakeRequest<'_>) -> Result<Vec<DefinitionFile>, BakeError> {
    let Recipe::Files(RepositoryFiles { paths, directory, .. }) = &request.build.recipe else { return Ok(Vec::new()) };
    let invalid = |path: &str, what: &str| BakeError::Invalid(format!("{path}: {what}"));
    let root = Directory::open(request.worktree).map_err(|_| invalid(&paths[0], "the repository cannot be read"))?;
    let admit_one = |path: &String| {
        let content = read(&root, Path::new(path)).map_err(|what| invalid(path, &what))?;
        Ok(DefinitionFile { path: path.clone(), content })
    };
    let files: Vec<DefinitionFile> = paths.iter().map(admit_one).collect::<Result<_, BakeError>>()?;
    let variables = root.resolve(&Path::new(directory).join(".env"));
    let has_compose = paths.iter().any(|path| is_compose(path));
    if has_compose && variables.is_err_and(|error| leads_out(&error)) {
        return Err(invalid(&paths[0], "the .env file beside it links outside of the repository"));
    }
    if let Some(refusal) = compose::refusal(&files, directory, &root) {
        return Err(refusal.into());
    }
    Ok(files)
}

/// The content of a file, or what is wrong with it. A link may lead to it, but not out of the repository.
pub(super) fn read(root: &Directory, path: &Path) -> Result<Vec<u8>, String> {
    // The resolved path has no links, and `read` follows none: what was resolved is what is read.
    let content = root.resolve(path).and_then(|found| root.read(&found.path, bounds::DEFINITION_FILE));
    content.map_err(|error| match error.kind() {
        _ if leads_out(&error) => "is outside of the repository".into(),
        _ if is_link(&error) => "is a link to itself".into(),
        ErrorKind::FileTooLarge => "is larger than 1 MiB".into(),
        ErrorKind::InvalidInput | ErrorKind::IsADirectory => "is not a regular file".into(),
        _ => {
            let hint = near(root, path, false).map(|other| format!(", but {other:?} is")).unwrap_or_default();
            format!("is not in the repository{hint}")
        }
    })
}

/// A definition for buildx.
pub(super) struct Given {
    /// Its files, in the order in which buildx merges them.
    pub(super) files: Vec<PathBuf>,
    /// The worktree.
    worktree: PathBuf,
    /// The directory where it is read, from the root of the worktree.
    folder: PathBuf,
    /// The link to the worktree, if the definition may read `PWD`.
    here: Option<PathBuf>,
    /// The directory that is `HOME` then: it has nothing but stand-ins.
    home: Option<PathBuf>,
    /// The definition may have a variable `HOME` of its own: there is none in the environment then.
    pub(super) has_own_home: bool,
    /// Paths from the root of the worktree where files stand for secrets that the repository does not have.
    stand_ins: BTreeSet<PathBuf>,
    /// The same below `HOME`.
    stand_ins_at_home: BTreeSet<PathBuf>,
    /// The directory with the stand-ins, once there are any.
    view: Option<PathBuf>,
    /// Paths of the worker that a message may have, with what a customer calls them.
    names: Vec<(String, String)>,
    /// How long buildx waited for its turn to read the definition, in milliseconds.
    waited_ms: AtomicU64,
}

impl Given {
    /// Writes the definition of a request.
    pub(super) async fn write(request: &BakeRequest<'_>, directory: &JobDirectory) -> Result<Self, BakeError> {
        let files = match define::text(request) {
            Some(text) => vec![DefinitionFile { path: definition::FILE.into(), content: text.into_bytes() }],
            None => admit(request)?,
        };
        let copies = directory.fresh(COPIES).await?;
        let [here, home] = [HERE, HOME].map(|name| copies.join(name));
        replace_link(request.worktree, &here)?;
        make_private(&home)?;
        let mut given = Self::validated(Vec::new(), request.worktree);
        given.folder = folder_below(request);
        given.has_own_home = files.iter().any(|file| declares_home(&file.content));
        for (i, file) in files.into_iter().enumerate() {
            let folder = copies.join(i.to_string());
            let copy = folder.join(Path::new(&file.path).file_name().expect("a path of a file"));
            make_private(&folder)?;
            write_private(&copy, &file.content)?;
            given.names.push((copy.display().to_string(), file.path));
            given.files.push(copy);
        }
        given.names.extend(names_of(&here));
        given.names.push((home.display().to_string(), NOWHERE.into()));
        (given.here, given.home) = (Some(here), (!given.has_own_home).then_some(home));
        Ok(given)
    }

    /// A validated definition: in it, nothing is left to read.
    pub(super) fn validated(files: Vec<PathBuf>, worktree: &Path) -> Self {
        Self {
            files,
            worktree: worktree.to_owned(),
            folder: PathBuf::new(),
            here: None,
            home: None,
            has_own_home: false,
            stand_ins: BTreeSet::new(),
            stand_ins_at_home: BTreeSet::new(),
            view: None,
            names: Vec::new(),
            waited_ms: AtomicU64::new(0),
        }
    }

    /// Notes that buildx waited for its turn: the builds of others do not count against this one.
    pub(super) fn note_wait(&self, waited: Duration) {
        self.waited_ms.fetch_add(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long buildx has waited for its turns.
    pub(super) fn waited(&self) -> Duration {
        Duration::from_millis(self.waited_ms.load(Ordering::Relaxed))
    }

    /// Puts an empty file where the definition names the file of a secret that the repository does not have. Returns whether it is
    /// a new one: elsewhere there can be none.
    pub(super) async fn stand_in(&mut self, file: &str, directory: &JobDirectory) -> Result<bool, BakeError> {
        let Some(here) = self.here.clone() else { return Ok(false) };
        let file = Path::new(file);
        if let Some(below) = self.home.as_ref().and_then(|home| file.strip_prefix(home).ok()) {
            return self.stand_in_at_home(below);
        }
        let below = match file.strip_prefix(&here) {
            Ok(file) => view::below(Path::new(""), file),
            Err(_) => view::below(&self.folder, file),
        };
        let Some(below) = below.filter(|_| self.stand_ins.len() < MAX_STAND_INS) else { return Ok(false) };
        if !self.stand_ins.insert(below) {
            return Ok(false);
        }
        let view = directory.fresh(VIEW).await?.join("tree");
        let (worktree, folder, files) = (self.worktree.clone(), self.folder.clone(), self.stand_ins.clone());
        let path = view.clone();
        let made = tokio::task::spawn_blocking(move || view::make(&worktree, &path, &folder, &files)).await;
        made.map_err(|error| BakeError::Launcher(format!("the view of the repository: {error}")))??;
        replace_link(&view, &here)?;
        self.view = Some(view);
        Ok(true)
    }

    /// The same for a file below the home directory.
    fn stand_in_at_home(&mut self, below: &Path) -> Result<bool, BakeError> {
        let below = view::below(Path::new(""), below).filter(|below| below.file_name().is_some());
        let (Some(below), Some(home)) = (below, &self.home) else { return Ok(false) };
        let file = home.join(below);
        let is_new = self.stand_ins_at_home.len() < MAX_STAND_INS && self.stand_ins_at_home.insert(file.clone());
        if let Some(parent) = file.parent().filter(|_| is_new) {
            make_private(parent)?;
            write_private(&file, b"")?;
        }
        Ok(is_new)
    }

    /// The variables that say where the definition is read, if it may read them.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let here = self.here().map(|here| ("PWD", here));
        here.into_iter().chain(self.home.clone().map(|home| ("HOME", home)))
    }

    /// The value of `PWD`, if the definition may read it.
    fn here(&self) -> Option<PathBuf> {
        self.here.as_ref().map(|here| joined(here, &self.folder))
    }

    /// The directory in which buildx runs.
    pub(super) fn working_directory(&self) -> PathBuf {
        joined(self.view.as_ref().unwrap_or(&self.worktree), &self.folder)
    }

    /// What buildx may read beside the worktree.
    pub(super) fn readable(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().chain(&self.view).chain(&self.home).cloned()
    }

    /// The arguments of bake that name the files.
    pub(super) fn arguments(&self) -> impl Iterator<Item = String> {
        self.files.iter().flat_map(|file| ["--file".to_owned(), file.display().to_string()])
    }

    /// A message of buildx with the customer's names of files.
    pub(super) fn renamed(&self, message: &str) -> String {
        self.names.iter().fold(message.to_owned(), |message, (path, name)| message.replace(path, name))
    }

    /// Replaces the path of the link in printed targets: by that of the worktree in paths, and elsewhere by a text that is the same
    /// in each build. It would reveal a path of the worker, and give each build of a commit another digest.
    pub(super) fn restore(&self, targets: &mut Targets) {
        let Some(here) = self.here.as_ref().map(|here| here.display().to_string()) else { return };
        let worktree = self.worktree.display().to_string();
        let home = self.home.as_ref().map(|home| home.display().to_string());
        for (field, value) in targets.values_mut().flat_map(|target| target.iter_mut()) {
            let by = if PATHS.contains(&field.as_str()) { &worktree } else { REPOSITORY };
            let restored = |text: &str| {
                let text = text.replace(&here, by);
                if let Some(home) = &home { text.replace(home, NOWHERE) } else { text }
            };
            *value = escape::map_texts(value.take(), &restored);
            // The names of arguments, labels and contexts are the customer's too.
            if let Some(fields) = value.as_object_mut() {
                *fields = std::mem::take(fields).into_iter().map(|(name, value)| (restored(&name), value)).collect();
            }
        }
    }
}

/// Whether a bake file may have a variable `HOME`. Its default counts then, as nothing comes from the environment.
fn declares_home(content: &[u8]) -> bool {
    [&b"\"HOME\""[..], b"variable HOME"].iter().any(|declared| memchr::memmem::find(content, declared).is_some())
}

/// What a customer calls the link to the worktree, with and without a path below it.
fn names_of(here: &Path) -> Vec<(String, String)> {
    vec![(format!("{}/", here.display()), String::new()), (here.display().to_string(), ".".into())]
}

/// The directory where the relative paths of a request's definition start, without links.
pub(super) fn folder(request: &BakeRequest<'_>) -> PathBuf {
    joined(request.worktree, &folder_below(request))
}

/// The same from the root of the worktree.
fn folder_below(request: &BakeRequest<'_>) -> PathBuf {
    let Recipe::Files(files) = &request.build.recipe else { return PathBuf::new() };
    let name = Path::new(&files.directory);
    let resolved = Directory::open(request.worktree).and_then(|root| root.resolve(name));
    resolved.map_or_else(|_| name.to_owned(), |found| found.path)
}

/// A path below another one. Joining an empty path would add a slash.
fn joined(path: &Path, below: &Path) -> PathBuf {
    if below == Path::new("") { path.to_owned() } else { path.join(below) }
}

/// Whether buildx reads a file of this name as a compose file.
pub(super) fn is_compose(path: &str) -> bool {
    [".yml", ".yaml"].iter().any(|ending| path.to_ascii_lowercase().ends_with(ending))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::job::{Build, Naming, Repository, Trust};

    #[test]
    fn a_link_is_followed_while_it_stays_in_the_repository() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let tree = home.path().join("tree");
        std::fs::create_dir_all(tree.join("ci/shared")).expect("made");
        std::fs::write(tree.join("ci/shared/bake.hcl"), "target \"default\" {}").expect("written");
        std::fs::write(home.path().join("outside.hcl"), "secret").expect("written");
        std::fs::write(tree.join("large.hcl"), vec![b' '; bounds::DEFINITION_FILE + 1]).expect("written");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tree.join("pipe.hcl"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("made");
        let outside = home.path().join("outside.hcl").display().to_string();
        let absolute = tree.join("ci/shared/bake.hcl").display().to_string();
        for (name, to) in [
            ("direct.hcl", "ci/shared/bake.hcl"),
            ("again.hcl", "direct.hcl"),
            ("linked", "ci/shared"),
            ("out.hcl", "../outside.hcl"),
            ("far.hcl", &outside),
            ("absolute.hcl", &absolute),
            ("through.hcl", "out.hcl"),
            ("loop.hcl", "loop.hcl"),
            ("gone.hcl", "nothing.hcl"),
            ("folder.hcl", "ci"),
        ] {
            symlink(to, tree.join(name)).expect("linked");
        }
        let read = |path: &str| {
            let files = RepositoryFiles { paths: vec![path.into()], directory: String::new(), naming: Naming::File };
            let repository = Repository::parse("acme/app").expect("a repository");
            let build = Build::new(repository, Trust::Branch, Recipe::Files(files));
            let admitted = admit(&BakeRequest { build: &build, worktree: &tree, commit: None });
            admitted.map(|files| files[0].content.len()).map_err(|error| error.to_string())
        };
        for path in ["ci/shared/bake.hcl", "direct.hcl", "again.hcl", "linked/bake.hcl"] {
            assert_eq!(read(path), Ok(19), "{path}");
        }
        for (path, expected) in [
            ("out.hcl", "out.hcl: is outside of the repository"),
            ("far.hcl", "far.hcl: is outside of the repository"),
            ("absolute.hcl", "absolute.hcl: is outside of the repository"),
            ("through.hcl", "through.hcl: is outside of the repository"),
            ("loop.hcl", "loop.hcl: is a link to itself"),
            ("gone.hcl", "gone.hcl: is not in the repository"),
            ("folder.hcl", "folder.hcl: is not a regular file"),
            ("pipe.hcl", "pipe.hcl: is not a regular file"),
            ("large.hcl", "large.hcl: is larger than 1 MiB"),
            ("Direct.hcl", "Direct.hcl: is not in the repository, but \"direct.hcl\" is"),
        ] {
            assert_eq!(read(path), Err(expected.into()), "{path}");
        }
    }

    #[test]
    fn the_directory_of_a_definition_is_real_in_paths_and_the_same_text_elsewhere() {
        let given = Given {
            folder: "deploy".into(),
            here: Some("/jobs/1/definition/here".into()),
            home: Some("/jobs/1/definition/home".into()),
            ..Given::validated(Vec::new(), Path::new("/jobs/1/tree/app"))
        };
        assert_eq!(given.here(), Some("/jobs/1/definition/here/deploy".into()));
        let targets = |here: &str, shown: &str, home: &str| {
            let target = serde_json::json!({
                "context": format!("{here}/web"), "contexts": {"a": format!("{here}/deploy/a"), "b": "target:b"},
                "dockerfile": format!("cwd://{here}/x"), "args": {"A": format!("{shown}/deploy"), "B": "/jobs/1", "C": format!("{home}/.cache")},
                "labels": {"l": format!("at {shown}."), (format!("{shown}/k")): "v"},
            });
            serde_json::from_value::<Targets>(serde_json::json!({"t": target})).expect("targets")
        };
        let here = "/jobs/1/definition/here";
        let mut printed = targets(here, here, "/jobs/1/definition/home");
        given.restore(&mut printed);
        assert_eq!(printed, targets("/jobs/1/tree/app", "/repository", "/nonexistent"));
        let message = format!("{here}/deploy/x.env: no such file in {here}");
        assert_eq!(
            Given { names: names_of(Path::new(here)), ..given }.renamed(&message),
            "deploy/x.env: no such file in ."
        );
    }
}
