//! Where the bakes of a builder run: the location for docker-buildx, with buildx's name for the builder.

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::node::Node;
use crate::bake::{Configuration, Location};
use crate::hex;
use crate::job::Build;
use crate::sandbox::Sockets;
use crate::settings::Driver;
use crate::state::StateDirectory;

/// Where a Docker engine on this machine listens.
pub(super) const DOCKER_SOCKET: &str = "unix:///var/run/docker.sock";

impl Node {
    /// The name for buildx, which reserves `default`, reads names in lower case, and wants a letter first. The node has a name of
    /// its own.
    pub(super) fn instance_name(&self) -> String {
        match self.builder.to_ascii_lowercase() {
            name if name == "default" => "sidebake".into(),
            name if name.starts_with(|first: char| first.is_ascii_lowercase()) => name,
            name => format!("sidebake-{name}"),
        }
    }

    /// The directory from which every worker bakes for a repository. It is empty: only its path matters.
    pub(super) fn working_directory(&self, build: &Build, state: &StateDirectory) -> PathBuf {
        let (account, repository) = (&build.account, &build.repository);
        match &self.settings.sticky_path {
            Some(pattern) => pattern.expand(&build.names()).into(),
            None => state.sticky().join(account).join(&repository.owner).join(&repository.name),
        }
    }

    pub(super) fn location(&self, working_directory: PathBuf) -> Location {
        let endpoint = self.settings.endpoint.as_deref();
        let mut location = Location {
            builder: self.instance_name(),
            working_directory,
            configuration: Configuration::default(),
            // A builder with an address is reached directly.
            environment: self.proxies.variables(endpoint.and_then(host)),
            sockets: Sockets::Tcp(endpoint.and_then(port).into_iter().chain(self.proxies.ports()).collect()),
            files: Vec::new(),
            is_watched: self.settings.driver == Driver::Kubernetes,
            run: Arc::default(),
        };
        match self.settings.driver {
            Driver::Kubernetes => {}
            Driver::Remote => {
                location.files =
                    self.settings.options.values().map(PathBuf::from).filter(|path| path.is_absolute()).collect()
            }
            Driver::Docker | Driver::DockerContainer => {
                let endpoint = endpoint.unwrap_or(DOCKER_SOCKET);
                if endpoint.starts_with("unix:") {
                    location.sockets = Sockets::TcpAndUnix(self.proxies.ports().into_iter().collect());
                }
                if self.settings.driver == Driver::Docker {
                    // buildx's own name for the engine behind DOCKER_HOST.
                    location.builder = "default".into();
                }
                location.environment.insert("DOCKER_HOST".into(), endpoint.to_owned());
            }
        }
        if let Some(path) = &self.ca_file {
            // Go reads this file, and the system's directory too.
            location.environment.insert("SSL_CERT_FILE".into(), path.display().to_string());
            location.files.push(path.clone());
        }
        location
    }
}

/// BuildKit keys the incremental transfer of a context by the client's node id. Each repository and trust has one, the same
/// on every worker, so equal directory names of different repositories do not collide.
pub(super) fn node_id(build: &Build) -> String {
    let key = format!("{}\n{}\n{}", build.account, build.repository, build.trust.name());
    hex::encode(&Sha256::digest(key)[..16])
}

fn port(endpoint: &str) -> Option<u16> {
    endpoint.strip_prefix("tcp://")?.rsplit_once(':')?.1.parse().ok()
}

fn host(endpoint: &str) -> Option<&str> {
    Some(endpoint.strip_prefix("tcp://")?.rsplit_once(':')?.0.trim_matches(['[', ']']))
}
