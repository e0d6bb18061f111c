//! What a registry has under a name, asked with the credentials of a job.
//!
//! The worker itself asks, outside of any sandbox: only registries that the job pushes to, token servers of the same domain, and the
//! store to which such a registry sends for a blob. Answers are bounded in size and time. Follows the OCI distribution specification 1.1 and docker's token
//! authentication (`distribution/docs/spec/auth`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::credentials::{Credentials, Login};
use super::own_registries::canonical;
use crate::body::{self, BodyError};
use crate::name::reference::{DOCKER_HUB, Reference, is_digest};
use crate::network::{self, ClientError, Unreachable};
use crate::platform::Platform;
use crate::secret::Secret;
use crate::{bounds, hex, json};

/// The time limit of one answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where Docker Hub's registry is.
const DOCKER_HUB_ADDRESS: &str = "registry-1.docker.io";

/// Every form of an image and of an index, and of what they name.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// How BuildKit marks an attestation in an index.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// A registry that did not say what a tag has.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("{url} answered {status}")]
    Status { url: String, status: StatusCode },
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("{url} {what}")]
    Nonsense { url: String, what: String },
}

/// What a tag has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tagged {
    /// The digest of its manifest, which may be an index.
    pub(super) digest: String,
    /// The digests of its images, without attestations.
    pub(super) images: BTreeSet<String>,
}

/// What a reference names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// An index, with the digests of its images, without attestations.
    Index(BTreeSet<String>),
    /// An image for this platform, according to its configuration.
    Image(Platform),
}

/// The registries, for one job.
pub(super) struct Registries<'a> {
    client: Result<Client, ClientError>,
    credentials: &'a Credentials,
}

impl<'a> Registries<'a> {
    /// Connects to nothing yet.
    pub(super) fn new(credentials: &'a Credentials, ca_file: Option<&Path>) -> Self {
        Self { client: network::client(ca_file, |client| client.timeout(TIMEOUT)), credentials }
    }

    /// What `reference`, a tag, has in its registry; `None` when the tag does not exist.
    pub(super) async fn tagged(&self, reference: &str) -> Result<Option<Tagged>, RegistryError> {
        let place = Place::of(reference).ok_or_else(|| nonsense(reference, "is not a valid reference"))?;
        let content = self.get(&place, &place.url, &mut None).await?;
        content.map(|content| Ok(read(&place.url, &content)?.tagged(&content))).transpose()
    }

    /// What `reference`, a tag or a digest, names; `None` when it does not exist, or is neither an image nor an index.
    pub(super) async fn content(&self, reference: &str) -> Result<Option<Content>, RegistryError> {
        let place = Place::of(reference).ok_or_else(|| nonsense(reference, "is not a valid reference"))?;
        let mut authorization = None;
        let Some(content) = self.get(&place, &place.url, &mut authorization).await? else { return Ok(None) };
        let manifest = read(&place.url, &content)?;
        let Some(config) = &manifest.config else { return Ok(manifest.images().map(Content::Index)) };
        let Some(url) = place.blob(&config.digest) else { return Ok(None) };
        let Some(content) = self.get(&place, &url, &mut authorization).await? else { return Ok(None) };
        // The configuration of an artifact, such as a chart, has other fields.
        let config: Config = json::read(&content)
            .map_err(|error| nonsense(&url, format!("is not the configuration of an image: {error}")))?;
        let platform = |os: String, architecture: String| {
            Content::Image(Platform::new(&os, &architecture, config.variant.as_deref().unwrap_or_default()))
        };
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(said(config.os).zip(said(config.architecture)).map(|(os, architecture)| platform(os, architecture)))
    }

    /// Gets one object of a repository; `None` when it does not exist. Keeps the authorization that the registry demands.
    async fn get(
        &self,
        place: &Place<'_>,
        url: &Url,
        authorization: &mut Option<Secret>,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let mut answer = get(client, url, authorization.as_ref()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && authorization.is_none() {
            let login = self.credentials.login(place.registry);
            *authorization = Some(authorize(client, place, answer.headers(), login).await?);
            answer = get(client, url, authorization.as_ref()).await?;
        }
        // A registry may keep its blobs in a store of another host, which gets no credentials.
        if answer.status().is_redirection() && *url != place.url {
            let target = answer.headers().get(LOCATION).and_then(|to| url.join(to.to_str().ok()?).ok());
            let is_store = |to: &Url| to.scheme() == "https" && to.domain().is_some_and(|name| name.contains('.'));
            let is_safe = |to: &Url| is_store(to) || is_this_machine(to) && is_this_machine(url);
            let target =
                target.filter(is_safe).ok_or_else(|| nonsense(url, "redirects to an address that is not a store"))?;
            answer = get(client, &target, None).await?;
        }
        match answer.status() {
            StatusCode::OK => Ok(Some(body::read(answer, url.as_str(), bounds::MANIFEST).await?)),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(RegistryError::Status { url: url.to_string(), status }),
        }
    }
}

/// Where the manifest of a tag is.
struct Place<'a> {
    /// The registry, as references name it.
    registry: &'a str,
    repository: Cow<'a, str>,
    url: Url,
}

impl<'a> Place<'a> {
    /// A registry on this machine has no TLS, as in BuildKit.
    fn of(reference: &'a str) -> Option<Self> {
        let (name, digest) = reference.split_once('@').map_or((reference, None), |(name, at)| (name, Some(at)));
        let Reference { registry, repository, tag } = Reference::of(name);
        let version = match digest {
            Some(digest) => Some(digest).filter(|digest| is_digest(digest))?,
            None => tag,
        };
        let registry = canonical(registry);
        let address = if registry == DOCKER_HUB { DOCKER_HUB_ADDRESS } else { registry };
        let url = |scheme: &str| Url::parse(&format!("{scheme}://{address}/v2/{repository}/manifests/{version}")).ok();
        let url = url("https").and_then(|secure| if is_this_machine(&secure) { url("http") } else { Some(secure) })?;
        Some(Self { registry, repository, url })
    }

    fn blob(&self, digest: &str) -> Option<Url> {
        self.url.join(&format!("../blobs/{digest}")).ok().filter(|_| is_digest(digest))
    }
}

/// Where a registry answers, without credentials, that it is one.
pub fn registry_url(registry: &str) -> Option<Url> {
    let reference = format!("{registry}/a/b:c");
    Place::of(&reference)?.url.join("/v2/").ok()
}

fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

async fn get(client: &Client, url: &Url, authorization: Option<&Secret>) -> Result<Response, RegistryError> {
    let mut request = client.get(url.clone()).header(ACCEPT, ACCEPTED);
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization.expose());
    }
    send(request, url).await
}

/// The authorization that a registry demands.
async fn authorize(
    client: &Client,
    place: &Place<'_>,
    headers: &HeaderMap,
    login: Option<Login>,
) -> Result<Secret, RegistryError> {
    let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    for challenge in challenges {
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        match (scheme.to_ascii_lowercase().as_str(), &login) {
            (_, Some(Login::Token(token))) => return Ok(bearer(token.expose())),
            ("basic", Some(Login::Password(pair))) => return Ok(basic(pair)),
            ("bearer", login) => return token(client, place, &read_parameters(parameters), login.as_ref()).await,
            _ => {}
        }
    }
    Err(RegistryError::Status { url: place.url.to_string(), status: StatusCode::UNAUTHORIZED })
}

/// Asks the registry's token server for a token that can read the repository.
async fn token(
    client: &Client,
    place: &Place<'_>,
    challenge: &BTreeMap<&str, &str>,
    login: Option<&Login>,
) -> Result<Secret, RegistryError> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<Secret>,
        access_token: Option<Secret>,
    }
    let realm = challenge.get("realm").copied().unwrap_or_default();
    let mut server = Url::parse(realm).map_err(|_| nonsense(&place.url, "names no token server"))?;
    if !is_beside(&server, &place.url) {
        return Err(nonsense(&place.url, format!("names a token server of another domain: {realm:?}")));
    }
    let scope = format!("repository:{}:pull", place.repository);
    let service = challenge.get("service").copied().unwrap_or_default();
    server.query_pairs_mut().append_pair("service", service).append_pair("scope", &scope);
    let request = match login {
        Some(Login::Identity(identity)) => {
            let pairs =
                [("grant_type", "refresh_token"), ("client_id", "sidebake"), ("refresh_token", identity.expose())];
            server.query_pairs_mut().extend_pairs(pairs);
            let form = server.query().unwrap_or_default().to_owned();
            server.set_query(None);
            client.post(server.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
        }
        Some(Login::Password(pair)) => client.get(server.clone()).header(AUTHORIZATION, basic(pair).expose()),
        Some(Login::Token(_)) | None => client.get(server.clone()),
    };
    server.set_query(None);
    let answer = send(request, &server).await?;
    if answer.status() != StatusCode::OK {
        return Err(RegistryError::Status { url: server.into(), status: answer.status() });
    }
    let content = body::read(answer, server.as_str(), bounds::TOKEN).await?;
    let answer: Answer = json::read(&content).map_err(|_| nonsense(&server, "did not answer with a token"))?;
    let token = answer.token.or(answer.access_token);
    token.map(|token| bearer(token.expose())).ok_or_else(|| nonsense(&server, "did not answer with a token"))
}

/// Whether a token server belongs to a registry: it has the same host, or a name in the domain of the registry's. Credentials go there.
fn is_beside(server: &Url, registry: &Url) -> bool {
    let (Some(host), Some(registry_host)) = (server.host_str(), registry.host_str()) else { return false };
    let is_secure = server.scheme() == "https" || is_this_machine(server) && is_this_machine(registry);
    let is_address = registry_host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let domain = registry_host.split_once('.').map(|(_, domain)| domain);
    let domain = domain.filter(|domain| !is_address && domain.contains('.'));
    let is_in = |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    is_secure && server.username().is_empty() && (host == registry_host || domain.is_some_and(is_in))
}

/// The parameters of a challenge: `realm="https://…",service="…"`.
fn read_parameters(mut text: &str) -> BTreeMap<&str, &str> {
    let mut parameters = BTreeMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        parameters.insert(name.trim_matches([' ', ',']), value);
        text = rest;
    }
    parameters
}

/// The manifest of an image, or an index.
#[derive(Deserialize)]
struct Manifest {
    manifests: Option<Vec<Entry>>,
    config: Option<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    annotations: Option<BTreeMap<String, String>>,
}

/// The configuration of an image.
#[derive(Deserialize)]
struct Config {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

fn read(url: &Url, content: &[u8]) -> Result<Manifest, RegistryError> {
    json::read(content).map_err(|error| nonsense(url, format!("is not a manifest: {error}")))
}

impl Manifest {
    /// The images of an index.
    fn images(&self) -> Option<BTreeSet<String>> {
        let is_image = |entry: &&Entry| !entry.annotations.as_ref().is_some_and(|all| all.contains_key(REFERENCE_TYPE));
        let images = self.manifests.as_ref()?.iter().filter(is_image);
        Some(images.map(|entry| entry.digest.clone()).collect())
    }

    fn tagged(&self, content: &[u8]) -> Tagged {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(content)));
        let images = self.images().unwrap_or_else(|| [digest.clone()].into());
        Tagged { digest, images }
    }
}

fn basic(pair: &Secret) -> Secret {
    Secret::new(format!("Basic {}", pair.expose()))
}

fn bearer(token: &str) -> Secret {
    Secret::new(format!("Bearer {token}"))
}

async fn send(request: RequestBuilder, url: &Url) -> Result<Response, RegistryError> {
    match request.send().await {
        Ok(answer) => Ok(answer),
        Err(error) => Err(Unreachable::new(url.as_str(), &error.without_url()).with_refusal().await.into()),
    }
}

fn nonsense(url: impl ToString, what: impl Into<String>) -> RegistryError {
    RegistryError::Nonsense { url: url.to_string(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use world::Registry;

    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn credentials(auths: Value) -> Credentials {
        Credentials::new(auths.as_object().cloned().expect("an object"))
    }

    #[tokio::test]
    async fn a_tag_has_images_and_attestations_are_none() {
        let registry = Registry::start();
        let (one, two) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
        let attests = json!({"vnd.docker.reference.type": "attestation-manifest"});
        let index = json!({"manifests": [{"digest": one}, {"digest": two, "annotations": attests}]});
        let digest_of_index = registry.tag("acme/web", "index", INDEX, &index);
        let digest = registry.tag("acme/web", "image", IMAGE, &json!({"layers": []}));
        registry.tag("acme/web", "page", "text/html", &json!("Please log in"));
        let none = credentials(json!({}));
        let registries = Registries::new(&none, None);
        let ask = async |tag: &str| registries.tagged(&format!("{}/acme/web:{tag}", registry.address())).await;

        let found = ask("index").await.expect("an answer").expect("it exists");
        assert_eq!(found, Tagged { digest: digest_of_index, images: [one].into() });
        let found = ask("image").await.expect("an answer").expect("it exists");
        assert_eq!(found, Tagged { digest: digest.clone(), images: [digest].into() });
        assert_eq!(ask("other").await.expect("an answer"), None);
        assert!(matches!(ask("page").await, Err(RegistryError::Nonsense { .. })));
        registry.faults().never_end("GET /v2/acme/web/manifests/image", 200, world::Pace::Flood);
        assert!(matches!(ask("image").await, Err(RegistryError::Body(BodyError::TooLong(_)))));
    }

    #[tokio::test]
    async fn an_image_has_the_platform_of_its_configuration_wherever_that_is_stored() {
        let (registry, store) = (Registry::start(), Registry::start());
        let single = registry.serve("acme/base", world::Content::Whole).reference;
        let index = registry.serve("acme/many", world::Content::OtherPlatform).reference;
        let chart = registry.serve("acme/chart", world::Content::Page).reference;
        let none = credentials(json!({}));
        let registries = Registries::new(&none, None);
        let own = Platform::parse("local").map(Content::Image);
        assert_eq!(registries.content(&single).await.expect("an answer"), own);
        let Ok(Some(Content::Index(images))) = registries.content(&index).await else { panic!("{index} is an index") };
        let image = format!("{}@{}", index.rsplit_once(':').expect("a tag").0, images.first().expect("an image"));
        assert_eq!(registries.content(&image).await.expect("an answer"), own);
        assert!(matches!(registries.content(&chart).await, Err(RegistryError::Nonsense { .. })));

        let elsewhere = store.put_blob("acme/base", &json!({"os": "linux", "architecture": "s390x"}));
        let address = format!("http://{}{elsewhere}", store.address());
        registry.faults().fail_next("GET /v2/acme/base/blobs/", 1, 307, &[("location", &address)], "");
        let stored = registries.content(&single).await.expect("an answer");
        assert_eq!(stored, Some(Content::Image(Platform::new("linux", "s390x", ""))));
        registry.faults().fail_next("GET /v2/acme/base/blobs/", 1, 307, &[("location", "http://store.example/x")], "");
        let refused = registries.content(&single).await.expect_err("refused").to_string();
        assert!(refused.ends_with("redirects to an address that is not a store"), "{refused}");
    }

    #[tokio::test]
    async fn a_registry_gets_the_jobs_login_and_a_token_server_of_another_domain_gets_nothing() {
        let registry = Registry::start();
        registry.tag("acme/web", "1", IMAGE, &json!({"layers": []}));
        registry.demand_login("robot", "pa55");
        let tag = format!("{}/acme/web:1", registry.address());
        let with = |auth: &str| credentials(json!({(registry.address()): {"auth": auth}, "other.example": {}}));
        // "robot:pa55" and "robot:other".
        let ask = async |auth: &str| Registries::new(&with(auth), None).tagged(&tag).await;
        assert!(matches!(ask("cm9ib3Q6cGE1NQ==").await, Ok(Some(_))));
        let refused = ask("cm9ib3Q6b3RoZXI=").await.expect_err("refused");
        assert!(refused.to_string().ends_with("/token answered 401 Unauthorized"), "{refused}");
        let elsewhere = [("www-authenticate", "Bearer realm=\"https://evil.example/token\"")];
        registry.faults().fail_next("GET /v2/", 1, 401, &elsewhere, "");
        let refused = ask("cm9ib3Q6cGE1NQ==").await.expect_err("refused");
        assert!(refused.to_string().contains("a token server of another domain"), "{refused}");
    }

    #[test]
    fn a_reference_has_one_place() {
        for (reference, expected) in [
            ("acme/web:1", "https://registry-1.docker.io/v2/acme/web/manifests/1"),
            ("docker.io/web", "https://registry-1.docker.io/v2/library/web/manifests/latest"),
            ("r.example:5000/a/b/c:V1", "https://r.example:5000/v2/a/b/c/manifests/V1"),
            ("localhost:5000/a:1", "http://localhost:5000/v2/a/manifests/1"),
            ("127.0.0.1/a:1", "http://127.0.0.1/v2/a/manifests/1"),
            ("[::1]:5000/a:1", "http://[::1]:5000/v2/a/manifests/1"),
            ("127.0.0.1.example/a:1", "https://127.0.0.1.example/v2/a/manifests/1"),
        ] {
            assert_eq!(Place::of(reference).expect("a place").url.as_str(), expected, "{reference}");
        }
    }

    #[test]
    fn a_token_server_is_in_the_domain_of_its_registry() {
        let is_beside = |server: &str, registry: &str| {
            let url = |text: &str| Url::parse(text).expect("a URL");
            is_beside(&url(server), &url(registry))
        };
        for (server, registry) in [
            ("https://r.example/token", "https://r.example:5000/v2/"),
            ("https://auth.docker.io/token", "https://registry-1.docker.io/v2/"),
            ("https://gitlab.com/jwt/auth", "https://registry.gitlab.com/v2/"),
            ("http://127.0.0.1:1/token", "http://127.0.0.1:2/v2/"),
        ] {
            assert!(is_beside(server, registry), "{server} {registry}");
        }
        for (server, registry) in [
            ("http://r.example/token", "https://r.example/v2/"),
            ("https://evil.example/token", "https://r.example/v2/"),
            ("https://evilgitlab.com/token", "https://registry.gitlab.com/v2/"),
            ("https://2.0.0.1/token", "https://1.0.0.1/v2/"),
            ("http://127.0.0.1:1/token", "https://r.example/v2/"),
            ("https://user@r.example/token", "https://r.example/v2/"),
        ] {
            assert!(!is_beside(server, registry), "{server} {registry}");
        }
    }

    #[test]
    fn a_challenge_has_parameters() {
        let text = r#"realm="https://r.example/token",service="a, b", scope="repository:x:pull,push",error=no"#;
        let expected = [
            ("error", "no"),
            ("realm", "https://r.example/token"),
            ("scope", "repository:x:pull,push"),
            ("service", "a, b"),
        ];
        assert_eq!(read_parameters(text), expected.into());
        for text in ["", "x", "=", "a=\"", ",,="] {
            assert!(read_parameters(text).values().all(|value| value.is_empty()), "{text}");
        }
    }
}
