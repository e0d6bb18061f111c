//! What each run of docker-buildx gets: a sandbox, an environment made from nothing, and its own directories.
//!
//! Directories that it can write are new for each run. What it reads (worktree, secrets, credentials, kubeconfig) is where
//! no child can write. So a run that was taken over changes nothing for the next run or for the worker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Location;
use crate::bounds;
use crate::sandbox::{Enforcement, ResourceLimits, Sandbox, Sockets, libraries, loaders, network_files};
use crate::state::{StateError, make_private, write_private};

/// Certificates of public certificate authorities.
pub(super) const CERTIFICATES: &str = "/etc/ssl/certs";

/// The stack of a thread. Go starts a thread for each file that it waits for, and RLIMIT_DATA counts all stacks.
pub(super) const STACK_BYTES: u64 = 1 << 20;

/// What one run of docker-buildx gets. Nothing else of the machine is visible to it.
#[derive(Clone, Debug)]
pub struct Child {
    /// Its sandbox.
    pub sandbox: Sandbox,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
}

impl Child {
    /// The command that runs the binary.
    pub fn command(&self, buildx: &Path) -> tokio::process::Command {
        let mut command = self.sandbox.command(buildx);
        command.envs(&self.environment);
        command
    }
}

/// buildx's own configuration, of which each run gets a copy.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The id by which BuildKit recognizes contexts that it has seen.
    pub node_id: String,
    /// The builder's record, by its name; none for buildx's own default builder.
    pub record: Option<(String, Vec<u8>)>,
}

impl Configuration {
    /// Writes it into a new directory.
    pub(super) fn write(&self, directory: &Path) -> Result<(), StateError> {
        make_private(&directory.join("instances"))?;
        write_private(&directory.join(".buildNodeID"), self.node_id.as_bytes())?;
        match &self.record {
            Some((name, record)) => write_private(&directory.join("instances").join(name), record),
            None => Ok(()),
        }
    }
}

/// Creates the directories in which a run writes, in its own directory.
pub(super) fn make_directories(private: &Path) -> Result<(), StateError> {
    ["buildx", "tmp"].iter().try_for_each(|name| make_private(&private.join(name)))
}

/// The environment of a run with its own directories: their paths and [`switches`].
pub(super) fn base_environment(directory: &Path, n_threads: u32) -> BTreeMap<String, String> {
    let path = |name: &str| directory.join(name).display().to_string();
    let mut environment = switches(n_threads);
    environment.extend([("BUILDX_CONFIG".into(), path("buildx")), ("TMPDIR".into(), path("tmp"))]);
    environment
}

/// The variables of every run, the same on every machine. They keep buildx from running git, and from attesting each build
/// with its times, which would change the digest of every rebuild. They limit Go's threads, by default one per processor.
pub(super) fn switches(n_threads: u32) -> BTreeMap<String, String> {
    BTreeMap::from([
        // A repository can contain a bare repository whose configuration makes git run a shell.
        ("BUILDX_GIT_INFO".into(), "0".into()),
        ("BUILDX_GIT_LABELS".into(), "0".into()),
        ("BUILDX_NO_DEFAULT_ATTESTATIONS".into(), "1".into()),
        ("GOMAXPROCS".into(), n_threads.to_string()),
    ])
}

/// The loaders and docker-buildx: all that may be executed.
pub(super) fn programs(buildx: &Path) -> Vec<PathBuf> {
    let mut programs = loaders();
    programs.push(buildx.to_owned());
    programs
}

/// Sandbox and environment of `docker-buildx dial-stdio` at a location; `private` is its own new directory.
///
/// It reads no stranger's bytes, except from a builder that runs strangers' steps.
///
/// # Errors
///
/// When its directory cannot be created.
pub fn dial_child(
    buildx: &Path,
    enforcement: Enforcement,
    location: &Location,
    private: &Path,
) -> Result<Child, StateError> {
    make_directories(private)?;
    location.configuration.write(&private.join("buildx"))?;
    let mut system = libraries();
    system.extend(network_files(Path::new(CERTIFICATES)));
    system.extend(location.files.iter().cloned());
    let mut environment = base_environment(private, 2);
    environment.insert("HOME".into(), private.display().to_string());
    environment.extend(location.environment.clone());
    let sandbox = Sandbox {
        enforcement,
        system,
        execute: programs(buildx),
        read: Vec::new(),
        write: vec![private.to_owned(), "/dev/null".into()],
        sockets: location.sockets.clone(),
        limits: probe_limits(),
    };
    Ok(Child { sandbox, environment })
}

/// Sandbox and environment of `docker-buildx version`.
pub(super) fn version_child(buildx: &Path, enforcement: Enforcement) -> Child {
    let sandbox = Sandbox {
        enforcement,
        system: libraries(),
        execute: programs(buildx),
        read: Vec::new(),
        write: vec!["/dev/null".into()],
        sockets: Sockets::None,
        limits: probe_limits(),
    };
    Child { sandbox, environment: BTreeMap::from([("GOMAXPROCS".into(), "2".into())]) }
}

/// Limits of a docker-buildx that only answers the worker's own questions.
fn probe_limits() -> ResourceLimits {
    ResourceLimits {
        data_bytes: bounds::PROBE_MEMORY as u64,
        cpu_seconds: Some(60),
        file_bytes: 64 << 20,
        stack_bytes: Some(STACK_BYTES),
    }
}
