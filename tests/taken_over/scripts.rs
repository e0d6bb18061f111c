//! The actions of each attack in the child.

use std::fs::{self, File, Permissions};
use std::io::{Result, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The environment of a script.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Ground {
    pub attack: String,
    /// The directory that a source child may write to.
    pub mirror: PathBuf,
    pub stage: PathBuf,
    /// A directory of the host with canaries.
    pub outside: PathBuf,
    /// A port that no process should connect to.
    pub elsewhere: u16,
    /// A pack and its false index.
    pub forged: (Vec<u8>, Vec<u8>),
    /// A text in the arguments of every process of this case.
    pub nonce: String,
}

impl Ground {
    fn tree(&self) -> PathBuf {
        self.stage.join("tree")
    }
}

/// The actions of a source child. An error means that a wall stopped it.
pub fn source(ground: &Ground) -> Result<()> {
    let tree = ground.tree();
    if ground.attack != "tree_link" {
        fs::create_dir(&tree)?;
        fs::write(tree.join("Dockerfile"), "FROM scratch\n")?;
        fs::write(tree.join("file"), "one\n")?;
    }
    match ground.attack.as_str() {
        "tree_link" => symlink(&ground.outside, &tree),
        "parent_link" => {
            let job = ground.stage.parent().unwrap();
            fs::rename(job, job.with_extension("old"))?;
            symlink(&ground.outside, job)
        }
        "submodule_link" => symlink(&ground.outside, tree.join("libs")),
        "ignore_link" => symlink(ground.outside.join("patterns"), tree.join(".dockerignore")),
        "ignore_fifo" => fifo(&tree.join(".dockerignore")),
        "ignore_sparse" => File::create(tree.join(".dockerignore"))?.set_len(1 << 30),
        "definition_link" => symlink(ground.outside.join("compose"), tree.join("compose.yaml")),
        "definition_fifo" => fifo(&tree.join("compose.yaml")),
        "nest" => nest(&tree),
        "locked" => locked(&tree),
        "odd_names" => odd_names(&tree),
        "setuid" => setuid(&tree),
        "outlive" => {
            let mut sleep = Command::new("/bin/sh");
            sleep.args(["-c", "sleep 1000; true", &ground.nonce]).process_group(0);
            sleep.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(drop)
        }
        "endless_output" => loop {
            println!("{}", "x".repeat(64 << 10));
        },
        _ => mirror(ground),
    }
}

/// The actions on its mirror: the product's mirror, and the repository of a careless worker.
fn mirror(ground: &Ground) -> Result<()> {
    let of = |path: &str| ground.mirror.join(path);
    let write = |path: &str, text: &str| {
        fs::create_dir_all(of(path).parent().unwrap())?;
        fs::write(of(path), text)
    };
    let attributes = "* text eol=crlf\n";
    let config =
        format!("[core]\nbare = true\nrepositoryformatversion = 0\nattributesFile = {}\n", of("planted").display());
    match ground.attack.as_str() {
        "mirror_config" => {
            write("planted", attributes)?;
            write("config", &config)
        }
        "mirror_attributes" => write("info/attributes", attributes),
        "mirror_commondir" => {
            fs::create_dir_all(of("common/refs"))?;
            symlink(of("objects"), of("common/objects"))?;
            write("common/HEAD", "ref: refs/heads/main\n")?;
            write("planted", attributes)?;
            write("common/config", &config)?;
            write("commondir", &format!("{}/\n", of("common").display()))
        }
        "mirror_alternates" => {
            let other = format!("{}\n", ground.outside.join("other.git/objects").display());
            write("objects/info/alternates", &other)?;
            write("info/alternates", &other)
        }
        "mirror_objects_fork" | "mirror_objects_trust" | "mirror_objects_same" => {
            for packs in ["pack", "objects/pack"].map(of).iter().filter(|packs| packs.exists()) {
                for entry in fs::read_dir(packs)? {
                    fs::remove_file(entry?.path())?;
                }
                let name = format!("pack-{}", "7".repeat(40));
                fs::write(packs.join(format!("{name}.pack")), &ground.forged.0)?;
                fs::write(packs.join(format!("{name}.idx")), &ground.forged.1)?;
            }
            Ok(())
        }
        "mirror_lock" => {
            // The directory itself, and the one above, which the worker locks.
            let locked: Vec<File> = [ground.mirror.as_path(), ground.mirror.parent().unwrap()]
                .iter()
                .filter_map(|path| File::open(path).ok())
                .filter(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok())
                .collect();
            write("is-locked", "")?;
            println!("\"fetched\"");
            std::thread::sleep(std::time::Duration::from_secs(1000));
            drop(locked);
            Ok(())
        }
        "mirror_odd" => {
            for name in ["lock", "readers", "commits"] {
                let _ = fs::remove_file(of(name));
                fs::create_dir_all(of(name).join("deep"))?;
                File::open(of(name))?.set_permissions(Permissions::from_mode(0o000))?;
            }
            Ok(())
        }
        "claims_commit" => Ok(()),
        other => unreachable!("no script for {other}"),
    }
}

/// The actions of docker-buildx when it resolves or bakes.
pub fn buildx(ground: &Ground, private: &Path) -> Result<()> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let config = private.join("buildx");
    let metadata = private.join("metadata.json");
    let (digest, text) = (format!("sha256:{}", "7".repeat(64)), "x".repeat(1 << 20));
    let forged = |digest: &str| json!({"app": {"containerimage.digest": digest}}).to_string();
    match ground.attack.as_str() {
        "metadata_zero" => symlink("/dev/zero", metadata),
        "metadata_sparse" => File::create(metadata)?.set_len((1 << 30) - 1),
        "metadata_fifo" => fifo(&metadata),
        "metadata_link" => symlink(ground.outside.join("metadata.json"), metadata),
        "metadata_text" => fs::write(metadata, forged(&text)),
        "metadata_digest" => fs::write(metadata, forged(&digest)),
        "kubeconfig_plugin" => kubeconfig(&json!({"exec": {"command": ground.outside.join("program")}}), 9),
        "kubeconfig_server" => kubeconfig(&json!({}), ground.elsewhere),
        "instance_endpoint" => {
            let record = json!({"Nodes": [{"Endpoint": format!("tcp://127.0.0.1:{}", ground.elsewhere)}]});
            for entry in fs::read_dir(config.join("instances"))? {
                fs::write(entry?.path(), record.to_string())?;
            }
            Ok(())
        }
        "credential_helper" => {
            let helpers = json!({"credHelpers": {"registry.example": ground.outside.join("program")}});
            fs::write(variable("DOCKER_CONFIG").join("config.json"), helpers.to_string())
        }
        "print_leftover" | "solve_leftover" => fs::write(config.join("leftover"), ""),
        other => unreachable!("no script for {other}"),
    }
}

fn kubeconfig(user: &serde_json::Value, port: u16) -> Result<()> {
    let server = format!("http://127.0.0.1:{port}");
    let text = json!({"clusters": [{"cluster": {"server": server}}], "users": [{"user": user}]});
    fs::write(std::env::var_os("KUBECONFIG").unwrap_or_default(), text.to_string())
}

fn fifo(path: &Path) -> Result<()> {
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0)?)
}

fn nest(tree: &Path) -> Result<()> {
    std::env::set_current_dir(tree)?;
    // More levels than the limit of descriptors. The unit tests of `beneath` remove ten thousand levels, which take a
    // minute to make under Landlock.
    for _ in 0..2000 {
        fs::create_dir("nest")?;
        std::env::set_current_dir("nest")?;
    }
    Ok(())
}

fn locked(tree: &Path) -> Result<()> {
    let deep = tree.join("a/b/c");
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("file"), "")?;
    for path in [deep.as_path(), deep.parent().unwrap(), &tree.join("a"), tree] {
        // By its descriptor, because the sandbox decides about modes by path.
        File::open(path)?.set_permissions(Permissions::from_mode(0o000))?;
    }
    Ok(())
}

fn odd_names(tree: &Path) -> Result<()> {
    let odd: [&[u8]; 7] = [b"\xff\xfe", b"a\nb", b" ", b"-rf", b"...", b"*", b"\x1b[2J"];
    for name in odd {
        let directory = tree.join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir(&directory)?;
        fs::write(directory.join(std::ffi::OsStr::from_bytes(name)), "")?;
        // Careless tools stop at the first directory without permission to enter.
        File::open(&directory)?.set_permissions(Permissions::from_mode(0o100))?;
    }
    Ok(())
}

fn setuid(tree: &Path) -> Result<()> {
    let mut program = File::create(tree.join("program"))?;
    program.write_all(b"#!/bin/sh\nid -u\n")?;
    program.set_permissions(Permissions::from_mode(0o4755))
}
