//! The builders: which one takes a build, and how buildx finds it.
//!
//! Owns buildx's instances (`docker-buildx create`), each job's copy of one, and the two strings by which BuildKit finds
//! what it has seen before: the working directory, by which the kubernetes driver chooses the pod, and the node id, by
//! which contexts are transferred incrementally. Never changes anybody's current builder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::bake::Site;
use crate::job::Build;
use crate::process::{self, ProcessError};
use crate::reason::{Failure, Reason};
use crate::report::Placement;
use crate::sandbox::Sockets;
use crate::settings::{self, Driver};
use crate::state::{self, JobDirectory, StateDirectory, StateError};

/// How long `docker-buildx create` may take.
const CREATE: Duration = Duration::from_secs(60);

/// There is no builder for a build.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// The job names a builder that is not configured.
    #[error("builder: there is no builder {0:?} in the configuration")]
    Unknown(String),
    /// No builder called `default` is configured.
    #[error("no builder is configured: builders.default is missing")]
    NoDefault,
    /// `docker-buildx create` failed.
    #[error("the builder {name} cannot be set up: {message}")]
    Create {
        /// Its name.
        name: String,
        /// buildx's words.
        message: String,
    },
    /// `docker-buildx` cannot be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A directory or file cannot be made.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kubeconfig cannot be read.
    #[error("{path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl BuilderError {
    /// The entry of the closed list.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unknown(_) => Reason::InvalidArguments,
            Self::NoDefault | Self::Create { .. } | Self::Kubeconfig { .. } => Reason::BuilderUnavailable,
            Self::Process(_) | Self::State(_) => Reason::WorkerFailed,
        }
    }
}

impl From<BuilderError> for Failure {
    fn from(error: BuilderError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// All configured builders.
#[derive(Debug)]
pub struct Builders {
    buildx: PathBuf,
    builders: BTreeMap<String, Builder>,
}

#[derive(Debug)]
struct Builder {
    settings: settings::Builder,
    /// The instance's file, as `create` wrote it, once it was needed.
    instance: OnceCell<Vec<u8>>,
}

impl Builders {
    /// Takes the settings; nothing is created yet.
    pub fn new(buildx: &Path, builders: &BTreeMap<String, settings::Builder>) -> Self {
        let builder = |settings: &settings::Builder| Builder { settings: settings.clone(), instance: OnceCell::new() };
        let builders = builders.iter().map(|(name, settings)| (name.clone(), builder(settings))).collect();
        Self { buildx: buildx.to_owned(), builders }
    }

    /// The names, for `doctor`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.builders.keys().map(String::as_str)
    }

    /// Chooses the builder of a build and prepares the job's directory for it.
    pub async fn place(
        &self,
        build: &Build,
        state: &StateDirectory,
        directory: &JobDirectory,
    ) -> Result<(Site, Placement), BuilderError> {
        let (name, builder, why) = self.choose(build)?;
        let working_directory = builder.working_directory(build, state);
        state::make_private(&working_directory)?;
        let config = directory.subdirectory("solve")?.join("buildx");
        state::make_private(&config.join("instances"))?;
        state::write_private(&config.join(".buildNodeID"), node_id(build).as_bytes())?;
        if builder.settings.driver != Driver::Docker {
            let instance = builder.instance.get_or_try_init(|| self.create(name, &builder.settings, directory)).await?;
            state::write_private(&config.join("instances").join(name), instance)?;
        }
        let placement = Placement { builder: name.to_owned(), shard: None, why };
        Ok((builder.site(name, working_directory)?, placement))
    }

    /// Where a build would go, without preparing anything: for `plan`.
    pub fn plan(&self, build: &Build, state: &StateDirectory) -> Result<(Site, Placement), BuilderError> {
        let (name, builder, why) = self.choose(build)?;
        let placement = Placement { builder: name.to_owned(), shard: None, why };
        Ok((builder.site(name, builder.working_directory(build, state))?, placement))
    }

    fn choose(&self, build: &Build) -> Result<(&str, &Builder, String), BuilderError> {
        let (wanted, why) = match &build.builder {
            Some(name) => (name.as_str(), "named by the job"),
            None => ("default", "the default builder"),
        };
        let found = self.builders.get_key_value(wanted);
        let (name, builder) = found.ok_or_else(|| match &build.builder {
            Some(name) => BuilderError::Unknown(name.clone()),
            None => BuilderError::NoDefault,
        })?;
        Ok((name, builder, why.to_owned()))
    }

    /// Makes buildx's instance in a directory of its own, and returns its file.
    ///
    /// With the name of the node given, `create` is idempotent, also when many do it at once.
    async fn create(
        &self,
        name: &str,
        settings: &settings::Builder,
        directory: &JobDirectory,
    ) -> Result<Vec<u8>, BuilderError> {
        let config = directory.subdirectory("create")?;
        let mut command = process::command(&self.buildx);
        command.env("BUILDX_CONFIG", &config).env("TMPDIR", &config).env("HOME", &config);
        command.args([
            "create",
            "--name",
            name,
            "--node",
            &settings.node_name(name),
            "--driver",
            settings.driver.name(),
        ]);
        if let Some(kubeconfig) = &settings.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        if !settings.options.is_empty() {
            let options: Vec<String> =
                settings.options.iter().map(|(key, value)| format!("\"{key}={value}\"")).collect();
            command.args(["--driver-opt", &options.join(",")]);
        }
        command.args(&settings.endpoint);
        let limits = process::Limits {
            timeout: CREATE,
            silence: CREATE,
            max_output_bytes: 1 << 20,
            stop: CancellationToken::new(),
        };
        let mut said = String::new();
        let ended =
            process::run(command, b"", &limits, |_, line| said = String::from_utf8_lossy(line).into_owned()).await?;
        let failed = |message: String| BuilderError::Create { name: name.to_owned(), message };
        if !ended.is_success() {
            return Err(failed(said));
        }
        std::fs::read(config.join("instances").join(name)).map_err(|error| failed(error.to_string()))
    }
}

impl settings::Builder {
    /// The node's name, and so that of the Deployment: buildx's own default unless it is set.
    fn node_name(&self, name: &str) -> String {
        self.node.clone().unwrap_or_else(|| format!("{name}0"))
    }
}

impl Driver {
    fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Remote => "remote",
            Self::Docker => "docker",
        }
    }
}

impl Builder {
    /// The directory from which every worker bakes for a repository. It exists for its name alone.
    fn working_directory(&self, build: &Build, state: &StateDirectory) -> PathBuf {
        let (account, repository) = (&build.account, &build.repository);
        match &self.settings.sticky_path {
            Some(pattern) => pattern.expand(account, &repository.owner, &repository.name).into(),
            None => state.sticky().join(account).join(&repository.name),
        }
    }

    fn site(&self, name: &str, working_directory: PathBuf) -> Result<Site, BuilderError> {
        let mut site = Site {
            builder: name.to_owned(),
            working_directory,
            environment: BTreeMap::new(),
            sockets: Sockets::Tcp(self.settings.endpoint.as_deref().and_then(port).into_iter().collect()),
            files: Vec::new(),
        };
        match self.settings.driver {
            Driver::Remote => {}
            Driver::Docker => {
                let endpoint = self.settings.endpoint.as_deref().unwrap_or("unix:///var/run/docker.sock");
                if endpoint.starts_with("unix:") {
                    site.sockets = Sockets::TcpAndUnix(Vec::new());
                }
                // buildx's own name for the engine behind DOCKER_HOST.
                site.builder = "default".into();
                site.environment.insert("DOCKER_HOST".into(), endpoint.to_owned());
            }
            Driver::Kubernetes => {
                let path = self.settings.kubeconfig.clone().unwrap_or_default();
                let kubeconfig = std::fs::read_to_string(&path)
                    .map_err(|source| BuilderError::Kubeconfig { path: path.display().to_string(), source })?;
                site.sockets = Sockets::Tcp(api_ports(&kubeconfig));
                site.environment.insert("KUBECONFIG".into(), path.display().to_string());
                site.files = referenced_files(&kubeconfig);
                site.files.push(path);
            }
        }
        Ok(site)
    }
}

/// BuildKit keys the incremental transfer of a context by the client's node id: one for each repository and trust,
/// on whichever worker, so that equal directory names of different repositories do not disturb each other.
fn node_id(build: &Build) -> String {
    let key = format!("{}\n{}\n{}", build.account, build.repository, build.trust.name());
    Sha256::digest(key)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn port(endpoint: &str) -> Option<u16> {
    endpoint.strip_prefix("tcp://")?.rsplit_once(':')?.1.parse().ok()
}

/// The ports of the API servers that a kubeconfig names.
fn api_ports(kubeconfig: &str) -> Vec<u16> {
    let servers = values(kubeconfig, "server:");
    servers.filter_map(|url| reqwest::Url::parse(url).ok()?.port_or_known_default()).collect()
}

/// The certificates and keys that a kubeconfig names by path.
fn referenced_files(kubeconfig: &str) -> Vec<PathBuf> {
    let keys = ["certificate-authority:", "client-certificate:", "client-key:", "tokenFile:"];
    keys.into_iter().flat_map(|key| values(kubeconfig, key)).map(PathBuf::from).collect()
}

/// The values of a key, in block or flow style: enough of YAML for a kubeconfig's URLs and paths.
fn values<'a>(yaml: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let starts =
        yaml.match_indices(key).filter(|(at, _)| !yaml[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '-'));
    starts.map(move |(at, _)| {
        let rest = yaml[at + key.len()..].trim_start_matches([' ', '"', '\'']);
        rest.split(['\n', '\r', ',', '}', '"', '\'', ' ']).next().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_tells_ports_and_files_in_both_styles() {
        let block =
            "clusters:\n- cluster:\n    certificate-authority: /pki/ca.crt\n    server: https://10.0.0.1:6443\n";
        assert_eq!((api_ports(block), referenced_files(block)), (vec![6443], vec!["/pki/ca.crt".into()]));
        let flow = "clusters: [{name: lab, cluster: {server: \"https://k8s.example\", certificate-authority: /ca.crt}}]\n\
                    users: [{name: u, user: {client-certificate: /u.crt, client-key: /u.key}}]";
        assert_eq!(api_ports(flow), [443]);
        assert_eq!(referenced_files(flow), ["/ca.crt", "/u.crt", "/u.key"].map(PathBuf::from));
        assert_eq!(referenced_files("certificate-authority-data: QUJD"), [] as [PathBuf; 0]);
    }
}
