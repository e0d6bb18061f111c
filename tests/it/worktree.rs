//! The worktree of a build: git's checkout, with configurable times, and without pointers in place of files.
//!
//! The tests read a worktree from outside, in the builder, while its bake waits for an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};
use world::{File, Repository, Script, Step};

use crate::harness::{CALLBACKS, Harness, Worker};

/// A build of the whole tree of a commit.
fn native(harness: &Harness, sha: &str) -> Value {
    let mut native = harness.native(sha);
    native["application"]["images"] = json!([{"name": "app", "context": ".", "dockerfile_inline": "FROM base", "tags": [format!("registry.example/acme/app:{sha}")]}]);
    native
}

/// Builds each job, and returns what `look` reads in its worktree.
async fn in_each_worktree<T: Send + 'static>(
    harness: &Harness,
    builds: &[Value],
    look: impl Fn(&Path) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let (sees, n_before) = (seen.clone(), harness.redis.queue(CALLBACKS).await.len());
    harness.builder.script_for_the_rest(Script::new(move |run| {
        let definition: Value = serde_json::from_str(&run.text).unwrap();
        let app = &definition["target"]["app"];
        let n: usize = app["labels"]["n"].as_str().unwrap().parse().unwrap();
        sees.lock().unwrap().insert(n, look(Path::new(app["context"].as_str().unwrap())));
        vec![Step::Exit(0)]
    }));
    for (n, build) in builds.iter().enumerate() {
        // Identifies the runs, which come in any order.
        let mut build = build.clone();
        build["application"]["images"][0]["labels"] = json!({"n": n.to_string()});
        harness.redis.push("default", "BuildJob", json!([build])).await;
    }
    for n in 0..builds.len() {
        let report = harness.callbacks(n_before + n + 1).await.swap_remove(n_before + n);
        assert_eq!(report["status"], "succeeded", "{report:#}");
    }
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.len(), builds.len());
    seen.into_values().collect()
}

/// The type and permissions of each path, with a file's content or a link's target.
type Listing = BTreeMap<PathBuf, (String, Bytes)>;

/// Everything below a directory except `.git`.
fn listing(root: &Path) -> Listing {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry == root.join(".git") {
                continue;
            }
            let metadata = entry.symlink_metadata().unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_symlink() => std::fs::read_link(&entry).unwrap().into_os_string().into_encoded_bytes(),
                kind if kind.is_file() => std::fs::read(&entry).unwrap(),
                _ => Vec::new(),
            };
            let mode = format!("{:o}", metadata.permissions().mode());
            found.insert(entry.strip_prefix(root).unwrap().to_owned(), (mode, content.into()));
            if metadata.is_dir() {
                folders.push(entry);
            }
        }
    }
    found
}

/// The git command line, without the machine's configuration.
fn git(directory: &Path, arguments: &[&OsStr]) -> std::process::Output {
    let mut git = Command::new("git");
    git.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", directory).env("LC_ALL", "C");
    git.env("GIT_CONFIG_NOSYSTEM", "1").args(["-c", "safe.directory=*"]).current_dir(directory);
    git.args(arguments).output().unwrap()
}

fn git_succeeds(directory: &Path, arguments: &[&OsStr]) {
    let output = git(directory, arguments);
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The git command's checkout of a commit in a new clone.
fn git_checkout(repository: &Repository, sha: &str) -> Listing {
    let clone = tempfile::tempdir().unwrap();
    let tree = clone.path().join("tree");
    let words = ["clone", "--quiet", "--no-checkout", "--shared"].map(OsStr::new);
    git_succeeds(clone.path(), &[&words[..], &[repository.dir.as_os_str(), tree.as_os_str()]].concat());
    git_succeeds(&tree, &["checkout", "--quiet", "--detach", sha].map(OsStr::new));
    listing(&tree)
}

/// Builds the commits, and compares each worktree with the git command's checkout. Returns the indexes of different
/// commits with their differences.
async fn differences(harness: &Harness, repository: &Repository, shas: &[String]) -> BTreeMap<usize, String> {
    let builds: Vec<Value> = shas.iter().map(|sha| native(harness, sha)).collect();
    let worktrees = in_each_worktree(harness, &builds, listing).await;
    let compare = |(n, ours): (usize, &Listing)| {
        let theirs = git_checkout(repository, &shas[n]);
        let paths: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        let differs = paths.into_iter().find(|path| ours.get(*path) != theirs.get(*path))?;
        Some((n, format!("{differs:?}: ours {:?}, git's {:?}", ours.get(differs), theirs.get(differs))))
    };
    worktrees.iter().enumerate().filter_map(compare).collect()
}

/// An entry of a tree.
#[derive(Clone, Debug)]
enum Node {
    File(Bytes),
    Executable(Bytes),
    Link(String),
    Submodule,
    Directory(Vec<String>, BTreeMap<String, Node>),
}

impl Node {
    /// The entries of a commit; `path` is the path of this node.
    fn files(&self, path: &str, files: &mut Vec<File>) {
        match self {
            Self::File(content) => files.push(File::new(path, content.clone())),
            Self::Executable(content) => files.push(File::executable(path, content.clone())),
            Self::Link(target) => files.push(File::symlink(path, target)),
            // libgit2 checks its configuration for the name, and refuses the commit because the name is invalid there.
            Self::Submodule if path.contains('\n') => {}
            Self::Submodule => files.push(File::submodule(path, "0123456789012345678901234567890123456789")),
            Self::Directory(attributes, nodes) => {
                let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                if !attributes.is_empty() {
                    files.push(File::new(&below(".gitattributes"), attributes.join("\n") + "\n"));
                }
                for (name, node) in nodes {
                    node.files(&below(name), files);
                }
            }
        }
    }
}

/// One of the texts between the bars.
fn one_of(texts: &'static str) -> impl Strategy<Value = String> {
    prop::sample::select(texts.split('|').collect::<Vec<_>>()).prop_map(str::to_owned)
}

/// Few names, so that a directory in one commit is a link or a file in another. Some sort before `.gitattributes`, and
/// some are difficult for programs.
fn any_name() -> impl Strategy<Value = String> {
    let odd = "two words|back\\slash|colon:|line\nfeed|tab\t|quote\"'|naïve.txt|日本| |*|[ab]|~|%s|con|nul.txt|a.|--force|\
               HEAD|git|.git.txt|#a|\u{1}";
    prop_oneof![4 => one_of("a|b|A|src|x.txt|b.sh|-a.txt|!x|.hidden|+.txt"), 1 => one_of(odd)]
}

/// Content that attributes affect.
///
/// Omits `ident` where libgit2 expands it differently from git: in a binary file, a second time in a file, and after
/// another expansion.
fn any_content() -> impl Strategy<Value = Bytes> {
    let text = |piece| prop::collection::vec(one_of(piece), 0..4).prop_map(|pieces| pieces.concat());
    let plain = "line\n|line\r\n|no end|\n|é";
    let id = one_of("$Id$|$Id: 0123456789012345678901234567890123456789 $|$Id|$Id: no end");
    let with_id = (text(plain), id, text(plain)).prop_map(|(before, id, after)| Bytes::from(before + &id + &after));
    let odd = text("line\n|line\r\n|no end|\n|\r|\0|\u{feff}|\u{1a}").prop_map(Bytes::from);
    prop_oneof![3 => with_id, 3 => odd, 1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)]
}

/// Lines of a `.gitattributes`. None begins with `!`, which git ignores and libgit2 does not.
fn any_attributes() -> impl Strategy<Value = Vec<String>> {
    let line = "* text=auto|*.txt text eol=crlf|*.txt ident|* ident|a text eol=lf|b -text|* text|* -text|src/** eol=crlf|\
                *.txt binary|-a.txt text eol=crlf|*.sh text eol=lf|b.sh !text|* eol=crlf|*.txt filter=lfs|\
                \"two words\" ident|# a comment|/a/** -ident|* export-ignore|x.txt text=auto eol=crlf";
    prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(one_of(line), 1..4)]
}

fn any_tree() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        8 => any_content().prop_map(Node::File),
        2 => any_content().prop_map(Node::Executable),
        3 => one_of("a|..|/etc|nowhere|src/x.txt|.|b\\c|line\nfeed|.git").prop_map(Node::Link),
        1 => Just(Node::Submodule),
    ];
    // Most trees have enough files for several threads.
    any_directory(leaf.prop_recursive(3, 30, 8, |entry| any_directory(entry, 1..8)), 8..16)
}

fn any_directory(entry: impl Strategy<Value = Node>, size: Range<usize>) -> impl Strategy<Value = Node> {
    (any_attributes(), prop::collection::btree_map(any_name(), entry, size))
        .prop_map(|(attributes, entries)| Node::Directory(attributes, entries))
}

/// The same trees in every run, or others with `PROPTEST_RNG_SEED`. So an old difference in libgit2 fails only a search
/// for it, not an unrelated change.
fn always_the_same() -> Config {
    let config = Config::default();
    let rng_seed = if config.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { config.rng_seed };
    Config { rng_seed, ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_trees_are_as_git_checks_them_out() {
    let harness = Harness::start();
    let repository = harness.git.repository("acme/voting-app");
    let mut runner = TestRunner::new(always_the_same());
    let trees: Vec<Node> = (0..24).map(|_| any_tree().new_tree(&mut runner).unwrap().current()).collect();
    let files = trees.iter().map(|tree| {
        let mut files = Vec::new();
        tree.files("", &mut files);
        files
    });
    let files: Vec<Vec<File>> = files.collect();
    let n_large = files.iter().filter(|files| files.len() > 16).count();
    assert!(n_large > trees.len() / 2, "only {n_large} of {} are large enough for several threads", trees.len());
    let commit = |(n, files): (usize, &Vec<File>)| repository.commit_with(&format!("tree-{n}"), files);
    let shas: Vec<String> = files.iter().enumerate().map(commit).collect();
    let _worker = harness.worker("");
    let differences = differences(&harness, &repository, &shas).await;
    let told: Vec<String> =
        differences.iter().map(|(n, difference)| format!("{difference} in {:?}", trees[*n])).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_becomes_a_link_and_a_directory_again_is_as_git_checks_it_out() {
    let harness = Harness::start();
    let repository = harness.git.repository("acme/voting-app");
    let shas = [
        vec![File::new("a/b/file", "1"), File::executable("a/b/run", "1"), File::new("c/file", "1")],
        vec![File::removed("a/b"), File::symlink("a/b", "../c")],
        vec![File::removed("a"), File::symlink("a", "/etc")],
        vec![File::removed("a"), File::new("a/b/file", "2"), File::new("a/passwd", "2")],
        vec![File::removed("a"), File::new("a", "3"), File::removed("c"), File::symlink("c", "a")],
    ]
    .map(|files| repository.commit_with("main", &files));
    let _worker = harness.worker("");
    assert_eq!(differences(&harness, &repository, &shas).await, BTreeMap::new());
}

#[expect(clippy::print_stderr, reason = "a test that has nothing to look at says so")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn this_projects_own_history_is_as_git_checks_it_out() {
    let harness = Harness::start();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_shallow = git(here, &["rev-parse", "--is-shallow-repository"].map(OsStr::new));
    if !here.join(".git").exists() || String::from_utf8_lossy(&is_shallow.stdout).trim() != "false" {
        return skipped("this is not a git repository with a history");
    }
    let bare = harness.git.root().join("acme/voting-app.git");
    let words = ["clone", "--quiet", "--bare"].map(OsStr::new);
    git_succeeds(here, &[&words[..], &[here.as_os_str(), bare.as_os_str()]].concat());
    let repository = harness.git.repository("acme/voting-app");
    // A sample of all commits, including the newest. Each is hundreds of files for an unoptimized libgit2.
    let history = repository.git(&["rev-list", "HEAD"]);
    let step = history.lines().count().div_ceil(8);
    let shas: Vec<String> = history.lines().step_by(step).map(str::to_owned).collect();
    let _worker = harness.worker("");
    assert_eq!(differences(&harness, &repository, &shas).await, BTreeMap::new());
}

/// Seconds and nanoseconds of each file and link. Excludes directories, as BuildKit does.
type Times = BTreeMap<PathBuf, (i64, i64)>;

fn times(worktree: &Path) -> Times {
    let paths = listing(worktree).into_keys();
    let entries = paths.map(|path| (worktree.join(&path).symlink_metadata().unwrap(), path));
    let files = entries.filter(|(metadata, _)| !metadata.is_dir());
    files.map(|(metadata, path)| (path, (metadata.mtime(), metadata.mtime_nsec()))).collect()
}

async fn times_of(harness: &Harness, builds: &[Value]) -> Vec<Times> {
    in_each_worktree(harness, builds, times).await
}

const KEY: &str = "a key that all workers of the fleet have";

/// A worker with its own mirrors and worktrees that derives times from content.
fn worker_of_its_own(harness: &Harness, name: &str, key: &str) -> Worker {
    let key_file = harness.home.path().join(format!("{name}.key"));
    std::fs::write(&key_file, format!("{key}\n")).unwrap();
    let config = harness.config(&format!(
        "[source]\nmtimes_for = {{ \"acme/voting-app\" = \"content\" }}\nmtimes_key_file = \"{}\"",
        key_file.display()
    ));
    let text = std::fs::read_to_string(&config).unwrap().replace("/state\"", &format!("/state-{name}\""));
    let own = config.with_file_name(format!("{name}.toml"));
    std::fs::write(&own, text).unwrap();
    harness.worker_with(&own, &[])
}

/// How many files have the same time in both.
fn n_equal(one: &Times, other: &Times) -> usize {
    one.iter().filter(|(path, time)| other.get(*path) == Some(time)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn times_from_content_are_equal_on_every_worker_and_change_only_with_their_file() {
    let harness = Harness::start();
    let repository = harness.git.repository("acme/voting-app");
    let outside = harness.home.path().join("outside");
    std::fs::write(&outside, "").unwrap();
    let time_outside = outside.metadata().unwrap().modified().unwrap();
    let first = repository.commit_with(
        "main",
        &[
            File::new("a.txt", "one"),
            File::new("copy/a.txt", "one"),
            File::executable("run", "one"),
            File::symlink("link", outside.to_str().unwrap()),
            File::submodule("module", "0123456789012345678901234567890123456789"),
        ],
    );
    let second = repository.commit_with("main", &[File::new("a.txt", "two")]);
    let third = repository.commit_with("main", &[File::new(".gitattributes", "a.txt ident\n")]);
    let builds = [&first, &second, &third].map(|sha| native(&harness, sha));

    let mut worker = worker_of_its_own(&harness, "one", KEY);
    let here = times_of(&harness, &builds).await;
    let mut umbrellas = native(&harness, &first);
    umbrellas["account"] = json!("umbrella");
    let umbrellas = times_of(&harness, &[umbrellas]).await.remove(0);
    worker.signal("TERM");
    worker.ended().await;
    let mut worker = worker_of_its_own(&harness, "two", KEY);
    let there = times_of(&harness, &builds).await;
    worker.signal("TERM");
    worker.ended().await;
    let _worker = worker_of_its_own(&harness, "three", "a key that was set by another operator");
    let elsewhere = times_of(&harness, &builds[..1]).await.remove(0);

    assert_eq!(here[0].len(), 4);
    assert_eq!(here, there, "another worker, another directory, another moment");
    let distinct: BTreeSet<_> = here[0].values().collect();
    assert_eq!(distinct.len(), 4, "another path or file type has another time");
    let year_2025 = 1_735_689_600;
    assert!(here.iter().flat_map(BTreeMap::values).all(|(s, _)| (315_532_800..year_2025).contains(s)), "{here:#?}");
    assert_eq!(n_equal(&here[0], &here[1]), 3, "only a.txt changed: {here:#?}");
    assert_eq!(n_equal(&here[1], &here[2]), 0, "attributes can make another file of the same blob");
    assert_eq!(n_equal(&here[0], &umbrellas), 0, "another account has other times");
    assert_eq!(n_equal(&here[0], &elsewhere), 0, "another key makes other times");
    assert_eq!(outside.metadata().unwrap().modified().unwrap(), time_outside, "the worker followed a link");
    let found = Command::new("grep").args(["-r", "-l", KEY]).arg(harness.home.path()).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.lines().all(|path| path.ends_with(".key")), "{found} contains the key");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_times_are_those_of_the_checkout() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let more = format!("[source]\nmtimes_for = {{ \"acme/other\" = \"content\" }}\nmtimes_key = \"{KEY}\"");
    let _worker = harness.worker(&more);
    let times = times_of(&harness, &[native(&harness, &sha)]).await.remove(0);
    assert_eq!(times.len(), 3);
    // A file system's clock may be a tick behind.
    assert!(times.values().all(|(s, _)| *s + 2 >= i64::try_from(now).unwrap()), "{times:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_could_be_guessed_makes_no_times() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let key = harness.home.path().join("times.key");
    std::fs::write(&key, "hunter2\n").unwrap();
    let more = format!("[source]\nmtimes = \"content\"\nmtimes_key_file = \"{}\"", key.display());
    let _worker = harness.worker(&more);
    harness.until("the job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    let (member, _) = harness.redis.sorted_set("retry").await.remove(0);
    let job: Value = serde_json::from_str(&member).unwrap();
    assert_eq!(job["error_class"], "Sidebake::WorkerFailed");
    let message = job["error_message"].as_str().unwrap();
    assert!(message.contains("source.mtimes_key: is shorter than 32") && !message.contains("hunter2"), "{message}");
    assert!(harness.builder.runs().is_empty());
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

const LFS: &str = "filter=lfs diff=lfs merge=lfs -text\n";

/// Builds the image `vote` of these files, with its Dockerfile at `dockerfile`, and returns the report.
async fn report_of(harness: &Harness, files: &[(&str, &str)], dockerfile: &str) -> Value {
    let sha = harness.git.repository("acme/voting-app").commit(files);
    let mut native = harness.native(&sha);
    native["application"]["images"][0]["dockerfile"] = json!(dockerfile);
    let n_before = harness.redis.queue(CALLBACKS).await.len();
    harness.redis.push("default", "BuildJob", json!([native])).await;
    harness.callbacks(n_before + 1).await.remove(n_before)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_lfs_pointer_in_a_build_context_is_refused_by_its_name() {
    let harness = Harness::start();
    let _worker = harness.worker("");
    let attributes = format!("*.bin {LFS}");
    let files = [
        (".gitattributes", attributes.as_str()),
        ("vote/Dockerfile", "FROM base\nCOPY . /srv\n"),
        ("vote/models/small.bin", POINTER),
        ("vote/models/tiny.bin", POINTER),
    ];
    let report = report_of(&harness, &files, "Dockerfile").await;
    assert_eq!((&report["status"], &report["reason"]), (&json!("failed"), &json!("source_refused")), "{report:#}");
    let message = report["message"].as_str().unwrap();
    let expected = "vote/models/small.bin and 1 more file are Git LFS pointers, whose content is not fetched";
    assert!(message.contains(expected) && message.contains("commit the file itself"), "{message}");

    let attributes = format!("Dockerfile.vote {LFS}");
    let files = [
        (".gitattributes", attributes.as_str()),
        ("vote/models/small.bin", "a file"),
        ("vote/models/tiny.bin", "a file"),
        ("docker/Dockerfile.vote", POINTER),
    ];
    let report = report_of(&harness, &files, "../docker/Dockerfile.vote").await;
    assert_eq!(report["reason"], "source_refused", "{report:#}");
    assert!(report["message"].as_str().unwrap().contains("docker/Dockerfile.vote is a Git LFS pointer"), "{report:#}");
    assert!(harness.builder.runs().is_empty(), "no build runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_git_would_write_in_another_encoding_are_named() {
    let harness = Harness::start();
    let _worker = harness.worker("");
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let dockerfile = ("vote/Dockerfile", "FROM base\nCOPY . /srv\n");
    let attributes = "*.ps1 text working-tree-encoding=UTF-16LE-BOM\nplain.ps1 -working-tree-encoding\nu8.ps1 working-tree-encoding=utf-8\n";
    let few = [dockerfile, (".gitattributes", attributes), ("a.ps1", "é"), ("plain.ps1", "x"), ("u8.ps1", "x")];
    let report = report_of(&harness, &few, "Dockerfile").await;
    let begins = "working-tree-encoding in .gitattributes is ignored; these files are as stored, in UTF-8: ";
    assert_eq!(report["notices"], json!([format!("{begins}a.ps1")]), "{report:#}");
    let many: Vec<String> = (0..100).map(|n| format!("b{n:02}.ps1")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "x")).collect();
    let report = report_of(&harness, &many, "Dockerfile").await;
    let expected = format!("{begins}a.ps1, b00.ps1, b01.ps1, b02.ps1, b03.ps1 and others");
    assert_eq!(report["notices"], json!([expected]), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pointer_that_no_build_reads_or_git_keeps_does_not_matter() {
    let harness = Harness::start();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let _worker = harness.worker("");
    let attributes = format!("*.bin {LFS}vote/models/small.bin -filter\n");
    let files = [
        (".gitattributes", attributes.as_str()),
        ("vote/Dockerfile", "FROM base\nCOPY . /srv\n"),
        ("vote/models/small.bin", POINTER),
        ("vote/models/pointer.txt", POINTER),
        ("vote/models/not-one.bin", "version https://git-lfs.github.com/spec/v1\n"),
        ("vote-assets/video.bin", POINTER),
    ];
    let report = report_of(&harness, &files, "Dockerfile").await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pointer_that_dockerignore_leaves_out_does_not_matter() {
    let harness = Harness::start();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let _worker = harness.worker("");
    let attributes = format!("*.bin {LFS}");
    let mut files = vec![
        (".gitattributes", attributes.as_str()),
        ("vote/Dockerfile", "FROM base\nCOPY . /srv\n"),
        ("vote/models/small.bin", POINTER),
        ("vote/models/deep/tiny.bin", POINTER),
        ("vote/.dockerignore", "# large ones\n**/*.bin\n"),
    ];
    let report = report_of(&harness, &files, "Dockerfile").await;
    assert_eq!(report["status"], "succeeded", "{report:#}");

    files.push(("vote/Dockerfile.dockerignore", "models\n!models/deep\n"));
    let report = report_of(&harness, &files, "Dockerfile").await;
    assert_eq!(report["reason"], "source_refused", "{report:#}");
    assert!(report["message"].as_str().unwrap().contains("vote/models/deep/tiny.bin is a Git LFS"), "{report:#}");
}
