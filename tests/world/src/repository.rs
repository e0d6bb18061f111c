//! Repositories with a history that the test makes. Each commit goes in through one `git fast-import`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The file that makes a bare repository public; git-daemon(1) has the same rule.
const PUBLIC: &str = "git-daemon-export-ok";

/// A bare repository on the host's disk.
pub struct Repository {
    /// `owner/name`
    pub full_name: String,
    /// The bare repository.
    pub dir: PathBuf,
}

/// One entry of a commit.
#[derive(Clone, Debug)]
pub struct File {
    path: String,
    mode: &'static str,
    content: Vec<u8>,
}

impl File {
    /// A plain file.
    pub fn new(path: &str, content: impl Into<Vec<u8>>) -> File {
        File { path: path.into(), mode: "100644", content: content.into() }
    }

    /// An executable file.
    pub fn executable(path: &str, content: impl Into<Vec<u8>>) -> File {
        File { mode: "100755", ..File::new(path, content) }
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> File {
        File { mode: "120000", ..File::new(path, target) }
    }

    /// A submodule at this commit. The caller adds `.gitmodules`.
    pub fn submodule(path: &str, sha: &str) -> File {
        File { mode: "160000", ..File::new(path, sha) }
    }

    /// Removes a file.
    pub fn removed(path: &str) -> File {
        File { mode: "D", ..File::new(path, "") }
    }

    /// Its command in `git fast-import`.
    fn command(&self) -> Vec<u8> {
        let path = self.path.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        match self.mode {
            "D" => format!("D \"{path}\"\n").into(),
            "160000" => format!("M 160000 {} \"{path}\"\n", String::from_utf8_lossy(&self.content)).into(),
            mode => {
                let head = format!("M {mode} inline \"{path}\"\ndata {}\n", self.content.len());
                [head.as_bytes(), &self.content, b"\n"].concat()
            }
        }
    }
}

/// Whether any client may read the bare repository in `dir`.
pub(crate) fn is_public(dir: &Path) -> bool {
    dir.join(PUBLIC).exists()
}

impl Repository {
    pub(crate) fn init(dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        run(git(dir).args(["init", "--quiet", "--bare", "--initial-branch=main"]), b"");
    }

    /// Lets any client read it, with or without a token.
    pub fn publish(&self) {
        std::fs::write(self.dir.join(PUBLIC), "").unwrap();
    }

    /// Commits these files on top of `main` and returns the sha.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        let files: Vec<File> = files.iter().map(|(path, text)| File::new(path, *text)).collect();
        self.commit_with("main", &files)
    }

    /// Commits on a branch and returns the sha. A new branch starts empty.
    ///
    /// Author and dates are fixed, so the same history has the same shas everywhere.
    pub fn commit_with(&self, branch: &str, files: &[File]) -> String {
        let parent = self.tip(branch);
        let n_commits: u64 = self.git(&["rev-list", "--all", "--count"]).parse().unwrap();
        let who = format!("Ada Example <ada@example.test> {} +0000", 1_700_000_000 + 60 * n_commits);
        let mut stream =
            format!("commit refs/heads/{branch}\nauthor {who}\ncommitter {who}\ndata 6\nchange\n").into_bytes();
        if let Some(parent) = parent {
            stream.extend(format!("from {parent}\n").into_bytes());
        }
        for file in files {
            stream.extend(file.command());
        }
        stream.extend(b"\n");
        run(git(&self.dir).args(["fast-import", "--quiet"]), &stream);
        self.tip(branch).unwrap()
    }

    /// Packs all objects so that each blob is a delta of the one before, up to git's 50 in a chain. Hosts reuse these deltas, where
    /// git by itself would choose others on every machine.
    pub fn pack_in_a_chain(&self) {
        let stream = git(&self.dir).args(["fast-export", "--all"]).output().unwrap().stdout;
        let options = ["-c", "fastimport.unpackLimit=1", "fast-import", "--quiet", "--force", "--depth=50"];
        run(git(&self.dir).args(options), &stream);
        run(git(&self.dir).args(["prune-packed", "--quiet"]), b"");
    }

    /// The commit of a branch, if there is one.
    pub fn tip(&self, branch: &str) -> Option<String> {
        let tip = self.git(&["for-each-ref", "--format=%(objectname)", &format!("refs/heads/{branch}")]);
        (!tip.is_empty()).then_some(tip)
    }

    /// Makes this a fork of the other, as on GitHub: each serves the commits of both by their shas.
    pub fn fork(&self, original: &Repository) {
        for (reader, other) in [(self, original), (original, self)] {
            let objects = other.dir.join("objects");
            std::fs::write(reader.dir.join("objects/info/alternates"), format!("{}\n", objects.display())).unwrap();
        }
        let tip = original.tip("main").unwrap();
        self.git(&["update-ref", "refs/heads/main", &tip]);
    }

    /// Runs git in the repository and returns its trimmed output, for anything that the methods above cannot do.
    pub fn git(&self, args: &[&str]) -> String {
        let output = run(git(&self.dir).args(args), b"");
        String::from_utf8(output).unwrap().trim_end().into()
    }
}

/// The git command line in `dir`, without the machine's configuration.
pub(crate) fn git(dir: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(dir).env_clear().env("HOME", dir).env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C");
    if let Some(path) = std::env::var_os("PATH") {
        git.env("PATH", path);
    }
    git
}

fn run(git: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = git.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("git is installed");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{git:?} ended with {}", output.status);
    output.stdout
}
