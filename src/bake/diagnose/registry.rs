//! What a registry's answer means, by what was asked: a base image, a frontend, or the push of an image.
//!
//! A base image on a registry of the customer's choice is the customer's matter: its registry refuses them, not the platform.

use super::Verdict;
use super::answer::{self, Answer};
use crate::bake::own_registries::{DOCKER_HUB, OwnRegistries, canonical, host_of};
use crate::reason::Reason;

/// What was asked of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// An image of this reference, if it is known, or a layer of it.
    Base(Option<&'a str>),
    /// The image of a Dockerfile frontend.
    Frontend(&'a str),
    /// To accept an image.
    Push,
}

/// Registries that exist. When their host is not found, name resolution fails.
const PUBLIC: &[&str] = &[
    DOCKER_HUB,
    "gcr.io",
    "ghcr.io",
    "lscr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
    "registry.access.redhat.com",
    "registry.gitlab.com",
    "registry.k8s.io",
];

/// The reason in an error about a registry; `None` when it is not known.
pub(super) fn registry(error: &str, wanted: Wanted<'_>, own: &OwnRegistries) -> Option<Verdict> {
    let answer = Answer::read(error)?;
    let host = match wanted {
        Wanted::Base(Some(reference)) | Wanted::Frontend(reference) => Some(host_of(reference)),
        Wanted::Base(None) | Wanted::Push => answer::host(error).map(canonical),
    };
    // Without a known host, the registry counts as the platform's.
    let is_own = wanted == Wanted::Push || host.is_none_or(|host| own.has(host));
    let is_public = host.is_some_and(|host| PUBLIC.contains(&host));
    let not_found = if let Wanted::Frontend(_) = wanted { Reason::FrontendNotFound } else { Reason::BaseImageNotFound };
    let denied = if let Wanted::Frontend(_) = wanted { Reason::FrontendNotFound } else { Reason::BaseImageDenied };
    let advise = |advice: &str| Verdict { advice: Some(advice.to_owned()), ..not_found.into() };
    Some(match answer {
        Answer::TooMany(wait) => Verdict { wait, ..Reason::RegistryRateLimited.into() },
        Answer::Missing if wanted == Wanted::Push => Reason::RegistryRejected.into(),
        Answer::Missing => not_found.into(),
        Answer::Denied if is_own => Reason::RegistryDenied.into(),
        Answer::Denied => denied.into(),
        Answer::PortRefused => Reason::RegistryDenied.into(),
        Answer::Rejected => Reason::RegistryRejected.into(),
        Answer::NoHost | Answer::Insecure if is_own || is_public => Reason::RegistryUnavailable.into(),
        Answer::NoHost => {
            Verdict { advice: host.map(|host| format!("no registry is called {host}")), ..not_found.into() }
        }
        Answer::Insecure => denied.into(),
        Answer::NotImage => advise("it is not an image that BuildKit can use"),
        Answer::OtherPlatform => advise("the image does not exist for the platform of the build"),
        Answer::Away => Reason::RegistryUnavailable.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_of_the_customers_choice_is_the_customers_matter() {
        let own = OwnRegistries::new(["https://index.docker.io/v1/", "creds.example"], ["push.example/shop/web:1"]);
        let says =
            |status: &str| format!("unexpected status from HEAD request to https://r/v2/x/manifests/1: {status}");
        let no_host = "failed to do request: Head \"https://r/v2\": dial tcp: lookup r: no such host";
        for (reference, status, reason) in [
            ("other.example/x:1", "403 Forbidden", Reason::BaseImageDenied),
            ("other.example/x:1", "401 Unauthorized", Reason::BaseImageDenied),
            ("ghcr.io/x/y:1", "403 Forbidden", Reason::BaseImageDenied),
            ("creds.example/x:1", "403 Forbidden", Reason::RegistryDenied),
            ("push.example/x:1", "401 Unauthorized", Reason::RegistryDenied),
            ("docker.io/library/x:1", "403 Forbidden", Reason::RegistryDenied),
            ("other.example/x:1", "404 Not Found", Reason::BaseImageNotFound),
            ("other.example/x:1", "400 Bad Request", Reason::RegistryRejected),
            ("other.example/x:1", "503 Service Unavailable", Reason::RegistryUnavailable),
            ("other.example/x:1", "429 Too Many Requests", Reason::RegistryRateLimited),
        ] {
            let found = registry(&says(status), Wanted::Base(Some(reference)), &own).map(|verdict| verdict.reason);
            assert_eq!(found, Some(reason), "{reference} {status}");
        }
        for (reference, reason) in [
            ("other.example/x:1", Reason::BaseImageNotFound),
            ("localhost/x:1", Reason::BaseImageNotFound),
            ("push.example/x:1", Reason::RegistryUnavailable),
            ("docker.io/library/x:1", Reason::RegistryUnavailable),
            ("quay.io/x/y:1", Reason::RegistryUnavailable),
        ] {
            let found = registry(no_host, Wanted::Base(Some(reference)), &own).expect("a verdict");
            assert_eq!(found.reason, reason, "{reference}");
        }
    }

    #[test]
    fn a_push_that_can_never_succeed_is_not_tried_again() {
        let own = OwnRegistries::default();
        for (status, reason) in [
            ("400 Bad Request", Reason::RegistryRejected),
            ("404 Not Found", Reason::RegistryRejected),
            ("413 Request Entity Too Large", Reason::RegistryRejected),
            ("403 Forbidden", Reason::RegistryDenied),
            ("429 Too Many Requests", Reason::RegistryRateLimited),
            ("500 Internal Server Error", Reason::RegistryUnavailable),
        ] {
            let error = format!(
                "failed to push r.example/x:1: failed commit on ref \"manifest-sha256:2\": unexpected status from PUT request to http://r.example/v2/x/manifests/1: {status}"
            );
            assert_eq!(registry(&error, Wanted::Push, &own).map(|verdict| verdict.reason), Some(reason), "{status}");
        }
    }

    #[test]
    fn a_frontend_has_its_own_reason() {
        let own = OwnRegistries::default();
        let wanted = Wanted::Frontend("other.example/x:1");
        for (error, reason) in [
            ("other.example/x:1: not found", Reason::FrontendNotFound),
            (
                "unexpected status from HEAD request to https://other.example/v2/: 403 Forbidden",
                Reason::FrontendNotFound,
            ),
            ("failed to do request: dial tcp: lookup other.example: no such host", Reason::FrontendNotFound),
            ("failed to do request: dial tcp 10.0.0.1:9: connect: connection refused", Reason::RegistryUnavailable),
        ] {
            assert_eq!(registry(error, wanted, &own).map(|verdict| verdict.reason), Some(reason), "{error}");
        }
    }
}
