//! Image references in a normal form: two references to the same image are equal.
//!
//! Follows github.com/distribution/reference (`ParseNormalizedNamed`, `TagNameOnly`) and how registries read a host: its case
//! and the default port do not matter. Two hosts of the same machine stay different.

/// The host of Docker Hub, which references omit.
const HUB: &str = "docker.io";

/// Other names of the same host.
const ALSO_HUB: &[&str] = &["index.docker.io", "registry-1.docker.io"];

/// The image that a reference names. Any text can be parsed: one that is not a reference equals only itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ImageName {
    host: String,
    repository: String,
    /// A tag, or a digest when there is no tag.
    version: String,
}

impl ImageName {
    pub(super) fn parse(text: &str) -> Self {
        let text = text.trim();
        let (text, digest) = text.split_once('@').map_or((text, None), |(text, digest)| (text, Some(digest)));
        let (host, rest) = split_host(text);
        let (repository, tag) = rest.split_once(':').map_or((rest, None), |(name, tag)| (name, Some(tag)));
        let is_official = host == HUB && !repository.contains('/');
        let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
        let version = match (tag, digest) {
            (Some(tag), _) => tag.to_owned(),
            (None, Some(digest)) => format!("@{digest}"),
            (None, None) => "latest".to_owned(),
        };
        Self { host, repository, version }
    }
}

/// The host, in lower case and without the port of HTTPS, and the rest of a reference.
fn split_host(text: &str) -> (String, &str) {
    let is_host = |part: &str| part == "localhost" || part.contains(['.', ':']) || part.contains(char::is_uppercase);
    let Some((host, rest)) = text.split_once('/').filter(|(host, _)| is_host(host)) else {
        return (HUB.to_owned(), text);
    };
    let host = host.to_lowercase();
    // A port may have zeros before it.
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port.trim_start_matches('0')),
        _ => (&*host, "443"),
    };
    let host = match port {
        "443" => name.trim_end_matches('.').to_owned(),
        port => format!("{}:{port}", name.trim_end_matches('.')),
    };
    (if ALSO_HUB.contains(&&*host) { HUB.to_owned() } else { host }, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_mean_the_same_are_equal_and_others_are_not() {
        let digest = format!("@sha256:{}", "0".repeat(64));
        let pinned =
            ["alpine", "docker.io/alpine", "index.docker.io/library/alpine"].map(|name| name.to_owned() + &digest);
        let groups: &[&[&str]] = &[
            &[
                "alpine",
                "alpine:latest",
                "library/alpine",
                "docker.io/alpine",
                "docker.io/library/alpine:latest",
                "index.docker.io/alpine",
                "registry-1.docker.io/library/alpine",
                "Docker.IO/alpine",
                " alpine ",
            ],
            &["alpine:3", "library/alpine:3"],
            &["alpine:LATEST"],
            &["acme/app", "docker.io/acme/app", "docker.io:443/acme/app:latest"],
            &[
                "r.example/acme/app:1",
                "R.Example/acme/app:1",
                "r.example:443/acme/app:1",
                "r.example:0443/acme/app:1",
                "r.example./acme/app:1",
            ],
            &["r.example:5000/acme/app:1", "r.example.:05000/acme/app:1"],
            &["localhost/app", "localhost:443/app"],
            &["Acme/app", "acme:443/app"],
            &["[::1]:5000/app", "[::1]:5000/app:latest"],
            &pinned.each_ref().map(String::as_str),
        ];
        for (n, group) in groups.iter().enumerate() {
            for name in *group {
                assert_eq!(ImageName::parse(name), ImageName::parse(group[0]), "{name}");
                for other in groups.iter().enumerate().filter(|(m, _)| *m != n).flat_map(|(_, group)| *group) {
                    assert_ne!(ImageName::parse(name), ImageName::parse(other), "{name} {other}");
                }
            }
        }
    }
}
