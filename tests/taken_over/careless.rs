//! A worker that trusts what its children leave, as an earlier version did.
//!
//! Its children can write to its job's directory, mirror and configuration. It reads by path, follows links and checks
//! no size. The consequence decides whether an attack does harm.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use git2::build::CheckoutBuilder;
use git2::{Index, Oid, Repository};
use serde_json::{Value, json};
use sidebake::bake::{Bake, Configuration, Location};
use sidebake::sandbox::Sockets;

use crate::case::{CANARY, CONTENT, Case, hangs, is_locked, is_source, read, this};
use crate::roles::TOO_MUCH;

pub fn has_harm(case: &Case<'_>) -> bool {
    if is_source(case.attack) { source(case) } else { buildx(case) }
}

fn source(case: &Case<'_>) -> bool {
    let (job, mirror) = (case.home.join("job"), case.home.join("mirror"));
    let stage = job.join("source");
    fs::create_dir_all(&stage).unwrap();
    keep_repository(case, &mirror);
    let mut ground = case.ground.clone();
    (ground.mirror, ground.stage) = (mirror.clone(), stage.clone());
    let mut child = this();
    child.args(["attack", &source_sandbox(case, &mirror, &stage), &std::process::id().to_string()]);
    child.arg(serde_json::to_string(&ground).unwrap()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut said = child.stdout.take().unwrap();
    let tree = stage.join("tree");

    match case.attack.name {
        "endless_output" => {
            let n_bytes = std::io::copy(&mut said.take(TOO_MUCH + 1), &mut std::io::sink()).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            return n_bytes > TOO_MUCH;
        }
        "mirror_lock" => {
            let mut first = [0; 1];
            said.read_exact(&mut first).unwrap();
            let is_locked = is_locked(&mirror);
            child.kill().unwrap();
            child.wait().unwrap();
            return is_locked;
        }
        _ => {}
    }
    let mut words = String::new();
    said.read_to_string(&mut words).unwrap();
    child.wait().unwrap();
    match case.attack.name {
        "tree_link" => read(&tree.join("canary")) == CANARY,
        "parent_link" => {
            fs::write(job.join("secret"), "").unwrap();
            case.outside("secret").exists()
        }
        "submodule_link" => {
            let _ = fs::remove_dir(tree.join("libs/x"));
            !case.outside("x").exists()
        }
        "ignore_link" => read(&tree.join(".dockerignore")).contains("file"),
        "definition_link" => read(&tree.join("compose.yaml")) == CANARY,
        "ignore_fifo" => reads_for_ever(&tree.join(".dockerignore")),
        "definition_fifo" => reads_for_ever(&tree.join("compose.yaml")),
        "ignore_sparse" => reads_too_much(&tree.join(".dockerignore")),
        "mirror_alternates" => reads_alternates(case, &mirror),
        "mirror_odd" => fs::File::create(mirror.join("lock")).is_err(),
        name if name.starts_with("mirror_") => check_out(case, &mirror) != CONTENT,
        "claims_commit" => {
            let done: Value = serde_json::from_str(words.lines().last().unwrap()).unwrap();
            done["done"]["sha"] != case.range.sha
        }
        "nest" | "locked" | "odd_names" => {
            this().arg("remove").arg(&job).status().unwrap();
            job.exists()
        }
        "setuid" => case.is_run_by_others(&tree.join("program")),
        "outlive" => case.outlives(),
        other => unreachable!("no careless worker for {other}"),
    }
}

/// The product's source sandbox around other directories.
fn source_sandbox(case: &Case<'_>, mirror: &Path, stage: &Path) -> String {
    let enforcement = if case.wall.is_sandboxed() { "Required" } else { "Off" };
    json!({
        "enforcement": enforcement, "system": sidebake::sandbox::libraries(), "execute": [], "read": [],
        "write": [mirror, stage, "/dev/null"], "sockets": {"Tcp": [443]},
        "limits": {"data_bytes": 1 << 30, "cpu_seconds": 600, "file_bytes": 4_u64 << 30, "stack_bytes": null},
    })
    .to_string()
}

/// The mirror as a bare repository that has the commit.
fn keep_repository(case: &Case<'_>, mirror: &Path) {
    let git = |arguments: &[&str]| {
        assert!(Command::new("git").args(arguments).stderr(Stdio::null()).status().unwrap().success());
    };
    let path = mirror.to_str().unwrap();
    git(&["clone", "--quiet", "--bare", &case.url(), path]);
    git(&["-C", path, "repack", "-a", "-d", "-q"]);
    if case.attack.name == "mirror_alternates" {
        other_repository(case);
    }
}

/// A repository that this one must not read, and its commit.
pub fn other_repository(case: &Case<'_>) -> Oid {
    let repository = Repository::init_bare(case.outside("other.git")).unwrap();
    let blob = repository.blob(CANARY.as_bytes()).unwrap();
    let mut tree = repository.treebuilder(None).unwrap();
    tree.insert("file", blob, 0o100644).unwrap();
    let tree = repository.find_tree(tree.write().unwrap()).unwrap();
    let who = git2::Signature::new("Ada", "ada@example.test", &git2::Time::new(1_700_000_000, 0)).unwrap();
    repository.commit(Some("refs/heads/main"), &who, &who, "other", &tree, &[]).unwrap()
}

fn reads_alternates(case: &Case<'_>, mirror: &Path) -> bool {
    let other = Repository::open_bare(case.outside("other.git")).unwrap();
    let id = other.refname_to_id("refs/heads/main").unwrap();
    let mirror = Repository::open_bare(mirror).unwrap();
    mirror.find_commit(id).is_ok()
}

/// The content of the commit's file, checked out of the mirror after the attack.
fn check_out(case: &Case<'_>, mirror: &Path) -> String {
    // Like the product's child, reads no configuration of the machine. Unlike it, does not hash objects.
    git2::opts::strict_hash_verification(false);
    let directory = case.home.join("checkout");
    fs::create_dir(&directory).unwrap();
    let repository = Repository::open_bare(mirror).unwrap();
    repository.set_workdir(&directory, false).unwrap();
    let commit = repository.find_commit(Oid::from_str(&case.range.sha).unwrap()).unwrap();
    let mut index = Index::new().unwrap();
    index.read_tree(&commit.tree().unwrap()).unwrap();
    repository.checkout_index(Some(&mut index), Some(CheckoutBuilder::new().force().update_index(false))).unwrap();
    read(&directory.join("file"))
}

fn reads_for_ever(path: &Path) -> bool {
    hangs(this().arg("read").arg(path).spawn().unwrap(), path)
}

fn reads_too_much(path: &Path) -> bool {
    !this().arg("read").arg(path).status().unwrap().success()
}

/// Its docker-buildx keeps the kubeconfig, the credentials and the configuration in one directory across runs.
fn buildx(case: &Case<'_>) -> bool {
    let private = case.home.join("job/solve");
    for name in ["buildx/instances", "tmp", "docker"] {
        fs::create_dir_all(private.join(name)).unwrap();
    }
    let server = format!("http://127.0.0.1:{}", case.api_port());
    let kubeconfig = json!({"clusters": [{"cluster": {"server": server}}], "users": [{"user": {"token": "t"}}]});
    fs::write(private.join("kubeconfig"), kubeconfig.to_string()).unwrap();
    let record = json!({"Nodes": [{"Endpoint": "kubernetes:///default"}]});
    fs::write(private.join("buildx/instances/default"), record.to_string()).unwrap();
    fs::write(private.join("docker/config.json"), "{}").unwrap();

    run(case, &private);
    let metadata = private.join("metadata.json");
    let digest = || {
        let metadata: Value = serde_json::from_str(&read(&metadata)).unwrap_or_default();
        metadata["app"]["containerimage.digest"].as_str().unwrap_or_default().to_owned()
    };
    match case.attack.name {
        "metadata_zero" | "metadata_sparse" => reads_too_much(&metadata),
        "metadata_fifo" => reads_for_ever(&metadata),
        "metadata_link" | "metadata_text" | "metadata_digest" => !digest().is_empty(),
        "kubeconfig_plugin" | "kubeconfig_server" | "instance_endpoint" => {
            let mut dial = this();
            dial.arg("dial-stdio").env("BUILDX_CONFIG", private.join("buildx"));
            dial.env("KUBECONFIG", private.join("kubeconfig")).status().unwrap();
            case.has_run() || case.has_connected()
        }
        "credential_helper" => {
            run(case, &private);
            case.has_run()
        }
        "print_leftover" | "solve_leftover" => {
            run(case, &private);
            private.join("tmp/seen").exists()
        }
        other => unreachable!("no careless worker for {other}"),
    }
}

/// Runs docker-buildx once, in the product's sandbox but with other writable directories.
fn run(case: &Case<'_>, private: &Path) {
    let mut location = Location {
        builder: "default".into(),
        working_directory: "/".into(),
        configuration: Configuration::default(),
        environment: [("KUBECONFIG".to_owned(), private.join("kubeconfig").display().to_string())].into(),
        sockets: Sockets::Tcp(vec![case.api_port()]),
        files: Vec::new(),
        is_watched: false,
        run: Default::default(),
    };
    location.environment.insert("DOCKER_CONFIG".into(), private.join("docker").display().to_string());
    let settings = case.settings();
    let child = Bake::new(&settings).solve_child(&case.home, &case.home.join("secrets"), &location, private);
    let mut command = child.command(&settings.buildx.binary).into_std();
    command.arg("bake");
    if case.attack.name == "print_leftover" {
        command.arg("--print");
    }
    let ground = serde_json::to_string(&case.ground).unwrap();
    let definition = json!({"target": {"app": {"context": ".", "args": {"ground": ground}}}}).to_string();
    let file = case.home.join("definition.json");
    fs::write(&file, definition).unwrap();
    command.arg("--file").arg(&file).stdout(Stdio::null()).status().unwrap();
}
