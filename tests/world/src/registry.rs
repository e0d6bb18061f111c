//! An image registry over HTTP (OCI distribution 1.1), for answers that a real one gives rarely.
//!
//! Accepts every push. Serves images of one layer that no engine has pulled before, so it must be fetched.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Method, Response, StatusCode, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::faults::Faults;
use crate::server::Server;

/// The media types of an image.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CHART: &str = "application/vnd.cncf.helm.config.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The token that the token server gives.
const TOKEN: &str = "token-of-the-world";

/// The tag of every served image.
const TAG: &str = "1";

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Whole,
    /// Half of the layer comes.
    Truncated,
    /// The layer is not the one that the manifest lists.
    OtherLayer,
    /// A page of a portal comes in place of the manifest.
    Page,
    /// It is a chart of Helm, not an image.
    Chart,
    /// It is an index without an image for a platform that builds run on.
    OtherPlatform,
}

/// An image that a registry serves.
pub struct ServedImage {
    /// To pull it.
    pub reference: String,
    /// The path of its layer, for a fault.
    pub layer_path: String,
}

/// A running registry.
pub struct Registry {
    server: Server,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    faults: Faults,
    /// Whether a tag that exists refuses another push.
    is_immutable: AtomicBool,
    /// The user and the password, in Base64, that give a token. Without them, everyone may do everything.
    login: Mutex<Option<String>>,
    /// By path: media type and content.
    objects: Mutex<BTreeMap<String, (String, Vec<u8>)>>,
}

impl Registry {
    /// Starts an empty registry on a free port.
    pub fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        Self { server: Server::start(router, 0), shared }
    }

    /// Such as `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.server.port())
    }

    /// The faults. A prefix begins with the method, such as `PUT /v2/shop/web/manifests/`.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Refuses from now on each push to a tag that exists, even one of the same image. Amazon's registry answers so.
    pub fn make_tags_immutable(&self) {
        self.shared.is_immutable.store(true, Ordering::Relaxed);
    }

    /// Demands a token from now on, which the token server gives for this user and password.
    pub fn demand_login(&self, user: &str, password: &str) {
        *self.shared.login.lock().unwrap() = Some(BASE64.encode(format!("{user}:{password}")));
    }

    /// Puts a manifest under a tag, and returns its digest.
    pub fn tag(&self, name: &str, tag: &str, media_type: &str, manifest: &Value) -> String {
        let content = manifest.to_string().into_bytes();
        let digest = digest(&content);
        self.put(&format!("/v2/{name}/manifests/{tag}"), media_type, content);
        digest
    }

    /// Puts a blob into a repository, and returns its path.
    pub fn put_blob(&self, name: &str, content: &Value) -> String {
        let content = content.to_string().into_bytes();
        let path = blob_path(name, &content);
        self.put(&path, "application/octet-stream", content);
        path
    }

    /// Serves an image.
    pub fn serve(&self, name: &str, content: Content) -> ServedImage {
        let layer = tar(&format!("{name}-{}", rand::random::<u64>()));
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let config_type = if content == Content::Chart { CHART } else { CONFIG };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(config_type, &config), "layers": [descriptor(LAYER, &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let served_layer = match content {
            Content::Truncated => layer[..layer.len() / 2].to_vec(),
            Content::OtherLayer => layer.iter().map(|byte| byte.wrapping_add(1)).collect(),
            _ => layer.clone(),
        };
        let layer_path = blob_path(name, &layer);
        self.put(&layer_path, "application/octet-stream", served_layer);
        self.put(&blob_path(name, &config), CONFIG, config);
        self.put(&format!("/v2/{name}/manifests/{}", digest(&manifest)), MANIFEST, manifest.clone());
        let (media_type, manifest) = match content {
            Content::Page => ("text/html", b"<html>Please log in</html>".to_vec()),
            Content::OtherPlatform => {
                let mut entry = descriptor(MANIFEST, &manifest);
                entry["platform"] = json!({"os": "linux", "architecture": "s390x"});
                let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
                (INDEX, index.to_string().into_bytes())
            }
            _ => (MANIFEST, manifest),
        };
        self.put(&format!("/v2/{name}/manifests/{TAG}"), media_type, manifest);
        ServedImage { reference: format!("{}/{name}:{TAG}", self.address()), layer_path }
    }

    fn put(&self, path: &str, media_type: &str, content: Vec<u8>) {
        self.shared.objects.lock().unwrap().insert(path.to_owned(), (media_type.to_owned(), content));
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = axum::body::to_bytes(body, 64 << 20).await.unwrap_or_default();
    if let Some(response) = shared.faults.strike(&format!("{} {path}", head.method)).await {
        return response;
    }
    if let Some(refusal) = refusal(&shared, &head) {
        return refusal;
    }
    match (head.method, path.contains("/blobs/uploads/")) {
        (Method::POST, true) => accepted(&format!("{path}upload")),
        (Method::PATCH, true) => accepted(&path),
        (Method::PUT, true) => created(&digest_of_query(head.uri.query().unwrap_or_default())),
        (Method::PUT, false) => stored(&shared, &path, head.headers[header::CONTENT_TYPE].to_str().unwrap(), &body),
        _ => object(&shared, &path),
    }
}

/// The answer to a request without a login, or to a push that the registry refuses.
fn refusal(shared: &Shared, head: &Parts) -> Option<Response<Body>> {
    let path = head.uri.path();
    let authorization = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let host = head.headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if let Some(login) = &*shared.login.lock().unwrap() {
        if path == "/token" {
            let is_known = authorization == Some(&format!("Basic {login}"));
            return Some(if is_known {
                Response::new(Body::from(json!({"token": TOKEN}).to_string()))
            } else {
                empty(StatusCode::UNAUTHORIZED)
            });
        }
        if authorization != Some(&format!("Bearer {TOKEN}")) {
            let mut response = empty(StatusCode::UNAUTHORIZED);
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"world, registry\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            return Some(response);
        }
    }
    let is_tag = path.contains("/manifests/") && !path.contains("/manifests/sha256:");
    let is_refused = head.method == Method::PUT && is_tag && shared.is_immutable.load(Ordering::Relaxed);
    if !is_refused || !shared.objects.lock().unwrap().contains_key(path) {
        return None;
    }
    let error = json!({"errors": [{"code": "TAG_INVALID", "message": "the tag is immutable"}]});
    let mut response = Response::new(Body::from(error.to_string()));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    Some(response)
}

fn stored(shared: &Shared, path: &str, media_type: &str, body: &Bytes) -> Response<Body> {
    let content = || (media_type.to_owned(), body.to_vec());
    let (repository, _) = path.split_once("/manifests/").unwrap_or((path, ""));
    let mut objects = shared.objects.lock().unwrap();
    objects.insert(format!("{repository}/manifests/{}", digest(body)), content());
    objects.insert(path.to_owned(), content());
    created(&digest(body))
}

fn object(shared: &Shared, path: &str) -> Response<Body> {
    if path == "/v2/" {
        return Response::new(Body::from("{}"));
    }
    let objects = shared.objects.lock().unwrap();
    let Some((media_type, content)) = objects.get(path) else { return empty(StatusCode::NOT_FOUND) };
    let mut response = Response::new(Body::from(content.clone()));
    response.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().unwrap());
    response.headers_mut().insert("docker-content-digest", digest(content).parse().unwrap());
    response
}

fn accepted(location: &str) -> Response<Body> {
    let mut response = empty(StatusCode::ACCEPTED);
    response.headers_mut().insert(header::LOCATION, location.parse().unwrap());
    response
}

fn created(digest: &str) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    response.headers_mut().insert("docker-content-digest", digest.parse().unwrap());
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The digest that the end of an upload names: `digest=sha256%3A…`.
fn digest_of_query(query: &str) -> String {
    let value = query.split('&').find_map(|part| part.strip_prefix("digest="));
    value.unwrap_or_default().replace("%3A", ":")
}

fn blob_path(name: &str, content: &[u8]) -> String {
    format!("/v2/{name}/blobs/{}", digest(content))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// A tar archive (POSIX ustar) with one file that contains its name many times.
pub fn tar(name: &str) -> Vec<u8> {
    let content = name.repeat(4096);
    let mut header = [0_u8; 512];
    let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, name);
    field(100, "0000644");
    field(108, "0000000");
    field(116, "0000000");
    field(124, &format!("{:011o}", content.len()));
    field(136, "00000000000");
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = [&header[..], content.as_bytes()].concat();
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}
