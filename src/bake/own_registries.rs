//! Which registries are the platform's: those that it pushes to or has credentials for.

use std::collections::BTreeSet;

use crate::name::reference::registry_of;

pub(super) use crate::name::reference::DOCKER_HUB;

/// The hosts of these registries.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnRegistries(BTreeSet<String>);

impl OwnRegistries {
    /// From the keys of docker's `auths`, and the references to push.
    pub(super) fn new<'a>(
        credentials: impl IntoIterator<Item = &'a str>,
        pushed: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let hosts = credentials.into_iter().map(host_of_credentials).chain(pushed.into_iter().map(host_of));
        Self(hosts.map(str::to_owned).collect())
    }

    pub(super) fn has(&self, host: &str) -> bool {
        self.0.contains(host)
    }
}

/// The registry of a reference.
pub(super) fn host_of(reference: &str) -> &str {
    canonical(registry_of(reference))
}

/// The registry of a key of docker's `auths`, such as `https://index.docker.io/v1/`.
pub(super) fn host_of_credentials(key: &str) -> &str {
    let address = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    canonical(address.split('/').next().unwrap_or(address))
}

/// The name by which references call a registry.
pub(super) fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "auth.docker.io" => DOCKER_HUB,
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_known_by_each_of_its_names() {
        let credentials = ["https://index.docker.io/v1/", "http://a.example:5000/v2", "b.example"];
        let own = OwnRegistries::new(credentials, ["c.example/x/y:1", "localhost:5000/x", "shop/web:1"]);
        for reference in [
            "node:22",
            "library/node",
            "docker.io/x/y",
            "a.example:5000/x",
            "b.example/x",
            "c.example/z",
            "localhost:5000/y",
        ] {
            assert!(own.has(host_of(reference)), "{reference}");
        }
        for reference in ["a.example/x", "localhost/x", "sub.b.example/x", "Shop/x"] {
            assert!(!own.has(host_of(reference)), "{reference}");
        }
    }
}
