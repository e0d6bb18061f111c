//! One attack on one worker: its environment, and the harm that any process can see.

use std::cell::Cell;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use git2::{ObjectType, Oid, Repository};
use rustix::fs::{Mode, OFlags, open};
use sidebake::settings::{self, Driver, SandboxMode, Settings};
use tempfile::TempDir;
use world::{GitHost, Kubernetes, wait_for};

use crate::attacks::{self, Attack};
use crate::scripts::Ground;
use crate::{careless, product};

/// Text that only the host should read.
pub const CANARY: &str = "canary-of-the-host";

/// The content of the commit's file.
pub const CONTENT: &str = "one\n";

/// The protection between a taken-over child and the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wall {
    None,
    /// The kernel's walls around the child.
    Kernel,
    /// The worker's careful handling of what a child leaves.
    Worker,
    Both,
}

impl Wall {
    pub fn is_sandboxed(self) -> bool {
        matches!(self, Self::Kernel | Self::Both)
    }

    fn is_products(self) -> bool {
        matches!(self, Self::Worker | Self::Both)
    }
}

/// The environment that all cases share.
pub struct Range {
    home: TempDir,
    git: GitHost,
    kubernetes: Kubernetes,
    elsewhere: u16,
    visits: Arc<AtomicUsize>,
    /// The commit of `acme/app`, its objects, and those of a pack with a false file.
    pub sha: String,
    forged: (Vec<u8>, Vec<u8>),
    n_cases: Cell<usize>,
}

impl Range {
    pub fn new() -> Self {
        let git = GitHost::open();
        let app = git.repository("acme/app");
        let sha = app.commit(&[("Dockerfile", "FROM scratch\n"), ("file", CONTENT)]);
        let forged = forge(&app.dir, &sha);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (elsewhere, visits) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&visits);
        std::thread::spawn(move || listener.incoming().for_each(|_| _ = counted.fetch_add(1, Ordering::SeqCst)));
        let home = tempfile::tempdir().unwrap();
        // Any process may read this directory, so only the product's own measures protect a job's files.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let kubernetes = Kubernetes::start();
        Self { home, git, kubernetes, elsewhere, visits, sha, forged, n_cases: Cell::new(0) }
    }
}

/// A pack with the commit, its tree and another file. Its index gives this file the id of the commit's file.
fn forge(repository: &Path, sha: &str) -> (Vec<u8>, Vec<u8>) {
    let repository = Repository::open_bare(repository).unwrap();
    let odb = repository.odb().unwrap();
    let commit = repository.find_commit(Oid::from_str(sha).unwrap()).unwrap();
    let tree = commit.tree().unwrap();
    let named = |name: &str| tree.get_name(name).unwrap().id();
    let evil = odb.write(ObjectType::Blob, b"evil\n").unwrap();
    let mut builder = repository.packbuilder().unwrap();
    for id in [commit.id(), tree.id(), named("Dockerfile"), evil] {
        builder.insert_object(id, None).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    builder.write(directory.path(), 0).unwrap();
    let read = |extension: &str| {
        let entries = fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.path());
        fs::read(entries.into_iter().find(|path| path.extension().is_some_and(|found| found == extension)).unwrap())
            .unwrap()
    };
    (read("pack"), lying(&read("idx"), evil, named("file")))
}

/// An index (version 2, gitformat-pack(5)) in which one object has the id of another.
fn lying(index: &[u8], object: Oid, name: Oid) -> Vec<u8> {
    const HEAD: usize = 8 + 256 * 4;
    let n = u32::from_be_bytes(index[HEAD - 4..HEAD].try_into().unwrap()) as usize;
    let (crcs, offsets) = (HEAD + n * 20, HEAD + n * 24);
    let mut entries: Vec<(Vec<u8>, &[u8], &[u8])> = (0..n)
        .map(|i| {
            let id = &index[HEAD + i * 20..][..20];
            let id = if id == object.as_bytes() { name.as_bytes() } else { id };
            (id.to_vec(), &index[crcs + i * 4..][..4], &index[offsets + i * 4..][..4])
        })
        .collect();
    entries.sort();
    let mut forged = index[..8].to_vec();
    for first in 0..=255_u8 {
        let n_below = entries.iter().filter(|(id, ..)| id[0] <= first).count();
        forged.extend(u32::try_from(n_below).unwrap().to_be_bytes());
    }
    entries.iter().for_each(|(id, ..)| forged.extend(id));
    entries.iter().for_each(|(_, crc, _)| forged.extend(*crc));
    entries.iter().for_each(|(.., offset)| forged.extend(*offset));
    // git does not check the checksums after them.
    forged.extend(&index[offsets + n * 4..]);
    forged
}

/// One attack behind one wall.
pub struct Case<'a> {
    pub range: &'a Range,
    pub attack: &'a Attack,
    pub wall: Wall,
    pub ground: Ground,
    /// The directory of this case.
    pub home: PathBuf,
    n_visits: usize,
}

impl<'a> Case<'a> {
    pub fn set(range: &'a Range, attack: &'a Attack, wall: Wall) -> Self {
        range.n_cases.set(range.n_cases.get() + 1);
        let nonce = format!("taken-over-{}-{}", std::process::id(), range.n_cases.get());
        let home = range.home.path().join(&nonce);
        let outside = home.join("outside");
        fs::create_dir_all(outside.join("x")).unwrap();
        for name in ["canary", "compose"] {
            fs::write(outside.join(name), CANARY).unwrap();
        }
        fs::write(outside.join("patterns"), "file\n").unwrap();
        let digest = format!("sha256:{}", "6".repeat(64));
        fs::write(outside.join("metadata.json"), format!("{{\"app\": {{\"containerimage.digest\": \"{digest}\"}}}}"))
            .unwrap();
        let program = outside.join("program");
        fs::write(&program, format!("#!/bin/sh\ntouch {}/ran\n", outside.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let ground = Ground {
            attack: attack.name.into(),
            outside,
            elsewhere: range.elsewhere,
            forged: range.forged.clone(),
            nonce,
            ..Ground::default()
        };
        let n_visits = range.visits.load(Ordering::SeqCst);
        Self { range, attack, wall, ground, home, n_visits }
    }

    /// Runs the attack and checks whether it does harm.
    pub async fn has_harm(self) -> bool {
        let has_harm = if self.wall.is_products() { product::has_harm(&self).await } else { careless::has_harm(&self) };
        let _ = Command::new("chmod").args(["-R", "u+rwx"]).arg(&self.home).stderr(Stdio::null()).status();
        let _ = Command::new("rm").arg("-rf").arg(&self.home).status();
        has_harm
    }

    pub fn settings(&self) -> Settings {
        let kubeconfig = self.home.join("kubeconfig");
        fs::write(&kubeconfig, self.range.kubernetes.kubeconfig().to_string()).unwrap();
        let mut builder = settings::Builder::new(Driver::Kubernetes, None);
        // The name of the Deployment there.
        (builder.kubeconfig, builder.node) = (Some(kubeconfig), Some("d0".into()));
        let mut settings = Settings::default();
        settings.builders.insert("default".into(), builder);
        settings.buildx.binary = std::env::current_exe().unwrap();
        settings.sandbox.mode = if self.wall.is_sandboxed() { SandboxMode::Required } else { SandboxMode::Off };
        settings
    }

    pub fn url(&self) -> String {
        format!("{}/acme/app.git", self.range.git.url())
    }

    pub fn api_port(&self) -> u16 {
        self.range.kubernetes.port()
    }

    pub fn outside(&self, name: &str) -> PathBuf {
        self.ground.outside.join(name)
    }

    /// Whether another process ran a program of the attack.
    pub fn has_run(&self) -> bool {
        self.outside("ran").exists()
    }

    /// Whether a client connected to the port.
    pub fn has_connected(&self) -> bool {
        self.range.visits.load(Ordering::SeqCst) > self.n_visits
    }

    /// Whether a process of the child still runs. Ends it.
    pub fn outlives(&self) -> bool {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let of_case = |id: &i32| {
            let command_line = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
            command_line.ends_with(&format!("\0{}\0", self.ground.nonce)) && command_line.contains("sleep 1000")
        };
        let left: Vec<i32> = ids.filter(of_case).collect();
        for id in &left {
            let group = rustix::process::Pid::from_raw(*id).unwrap();
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        !left.is_empty()
    }

    /// Whether a user without rights can run a program.
    pub fn is_run_by_others(&self, program: &Path) -> bool {
        const NOBODY: u32 = 65534;
        if rustix::process::geteuid().is_root() {
            return Command::new(program).uid(NOBODY).gid(NOBODY).stdout(Stdio::null()).status().is_ok();
        }
        // Without root, this process cannot become another user, so it checks the permissions instead.
        let is_open = |path: &Path| fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o001 != 0);
        program.ancestors().take_while(|path| path.starts_with(&self.home)).all(is_open)
    }
}

/// Whether a reader waits for a writer of a FIFO. Ends the reader.
pub fn hangs(mut reader: Child, fifo: &Path) -> bool {
    loop {
        if reader.try_wait().unwrap().is_some() {
            return false;
        }
        // This succeeds only when a reader has the FIFO open or waits in open.
        let writer = open_for_writing(fifo);
        if writer.is_some() {
            reader.kill().unwrap();
            reader.wait().unwrap();
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn open_for_writing(fifo: &Path) -> Option<OwnedFd> {
    let is_fifo = fs::symlink_metadata(fifo).is_ok_and(|about| {
        use std::os::unix::fs::FileTypeExt;
        about.file_type().is_fifo()
    });
    is_fifo.then(|| open(fifo, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()).flatten()
}

/// Waits until a child makes a file to report progress.
pub async fn until_there(path: &Path) {
    wait_for("the child", || path.exists()).await;
}

/// Whether a process holds a directory's lock.
pub fn is_locked(directory: &Path) -> bool {
    let file = File::open(directory).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
}

/// This program, as a child.
pub fn this() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

pub fn is_source(attack: &Attack) -> bool {
    attack.child == attacks::Child::Source
}

/// The content of a file, or empty when the file is missing.
pub fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
