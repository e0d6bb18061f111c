//! Reads the registry through its HTTP API, independently of what reports say.

use std::io::Write;
use std::process::{Command, Stdio};

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::Value;

/// Indexes first, because an image with its provenance is one.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// The digest that the registry serves for `registry/repository:tag`; none when it has no such image.
pub async fn digest(reference: &str) -> Option<String> {
    let (repository, tag) = split(reference);
    let answer = ask(Method::HEAD, &repository, &format!("manifests/{tag}")).await;
    if answer.status() == StatusCode::NOT_FOUND {
        return None;
    }
    assert!(answer.status().is_success(), "{reference}: {}", answer.status());
    Some(answer.headers()["docker-content-digest"].to_str().unwrap().to_owned())
}

/// The digest of the image's own manifest. An index also has attestations, which contain the time of the build.
pub async fn image_digest(reference: &str) -> Option<String> {
    let digest = digest(reference).await?;
    let (repository, tag) = split(reference);
    let found = json(ask(Method::GET, &repository, &format!("manifests/{tag}")).await).await;
    Some(found["manifests"][0]["digest"].as_str().map_or(digest, str::to_owned))
}

/// The digests of the images in an index, by platform; of a tag for one platform, an object without entries.
pub async fn images(reference: &str) -> Value {
    let (repository, tag) = split(reference);
    let index = json(ask(Method::GET, &repository, &format!("manifests/{tag}")).await).await;
    let entries = index["manifests"].as_array().into_iter().flatten();
    let images = entries.filter(|entry| entry["platform"]["os"] != "unknown").map(|entry| {
        let text = |field: &str| entry["platform"][field].as_str().unwrap().to_owned();
        (format!("{}/{}", text("os"), text("architecture")), entry["digest"].clone())
    });
    images.collect()
}

/// The first attestation of an image in its index.
pub async fn attestation(reference: &str) -> Option<Value> {
    let (repository, tag) = split(reference);
    let index = json(ask(Method::GET, &repository, &format!("manifests/{tag}")).await).await;
    let digest = index["manifests"][1]["digest"].as_str()?;
    let manifest = json(ask(Method::GET, &repository, &format!("manifests/{digest}")).await).await;
    let blob = format!("blobs/{}", manifest["layers"][0]["digest"].as_str().unwrap());
    Some(json(ask(Method::GET, &repository, &blob).await).await)
}

/// The kinds of attestations in an index, by their predicates: a manifest of JSON. Empty for an image alone.
pub async fn attestations(reference: &str) -> String {
    let (repository, tag) = split(reference);
    let index = json(ask(Method::GET, &repository, &format!("manifests/{tag}")).await).await;
    match index["manifests"][1]["digest"].as_str() {
        Some(digest) => json(ask(Method::GET, &repository, &format!("manifests/{digest}")).await).await.to_string(),
        None => String::new(),
    }
}

/// A text file of an image, from the top layer that has it.
pub async fn file(reference: &str, path: &str) -> Option<String> {
    let (repository, _) = split(reference);
    let manifest = manifest(reference).await;
    for layer in manifest["layers"].as_array().unwrap().iter().rev() {
        let blob = ask(Method::GET, &repository, &format!("blobs/{}", layer["digest"].as_str().unwrap())).await;
        if let Some(text) = unpack(&blob.bytes().await.unwrap(), path) {
            return Some(text);
        }
    }
    None
}

/// The image's configuration: environment, labels, history.
pub async fn config(reference: &str) -> Value {
    let (repository, _) = split(reference);
    let manifest = manifest(reference).await;
    json(ask(Method::GET, &repository, &format!("blobs/{}", manifest["config"]["digest"].as_str().unwrap())).await)
        .await
}

/// The manifest of the image itself, which an index lists first.
async fn manifest(reference: &str) -> Value {
    let (repository, tag) = split(reference);
    let found = json(ask(Method::GET, &repository, &format!("manifests/{tag}")).await).await;
    match found["manifests"][0]["digest"].as_str() {
        Some(digest) => json(ask(Method::GET, &repository, &format!("manifests/{digest}")).await).await,
        None => found,
    }
}

async fn ask(method: Method, repository: &str, rest: &str) -> Response {
    let client = Client::builder().no_proxy().build().unwrap();
    client.request(method, format!("{repository}/{rest}")).header("accept", MANIFESTS).send().await.unwrap()
}

async fn json(answer: Response) -> Value {
    assert!(answer.status().is_success(), "{} {}", answer.url(), answer.status());
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

/// `http://registry/v2/repository` and the tag.
fn split(reference: &str) -> (String, String) {
    let (name, tag) = reference.rsplit_once(':').unwrap();
    let (registry, repository) = name.split_once('/').unwrap();
    (format!("http://{registry}/v2/{repository}"), tag.to_owned())
}

/// One file of a compressed layer.
fn unpack(layer: &[u8], path: &str) -> Option<String> {
    let mut tar = Command::new("tar");
    tar.args(["-xzOf", "-", path]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut tar = tar.spawn().unwrap();
    // tar may find the file and exit before it reads everything.
    let _ = tar.stdin.take().unwrap().write_all(layer);
    let output = tar.wait_with_output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}
