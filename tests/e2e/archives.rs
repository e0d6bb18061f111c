//! The archived log on servers of S3 and of Azure's blobs, read back through the interfaces of the stores. No package has a server of
//! Google Cloud Storage that returns what its clients need.
//!
//! docker-buildx is scripted here: a real one shows too little output of a step for an upload in parts.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Sha256;
use world::{Builder, Script, Step, wait_for_within};

use crate::harness::PATIENCE;
use crate::peer::made;

const AT: &str = "2026-11-24T04:05:56Z";

/// The account of Azure's emulators, and its key, which is public.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// So many bytes are uploaded in parts.
const PARTS: usize = 5 << 20;

/// A store, which ends with this value.
struct Store {
    server: Child,
    /// Such as `http://127.0.0.1:4000`.
    url: String,
}

impl Store {
    /// Starts a peer with these arguments; `PORT` is its port.
    async fn start(peer: &str, arguments: &[&str]) -> Self {
        let port = world::free_port().to_string();
        let arguments = arguments.iter().map(|argument| if *argument == "PORT" { port.as_str() } else { argument });
        let mut server = Command::new(made(peer));
        server.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let store = Self { server: server.spawn().unwrap(), url: format!("http://127.0.0.1:{port}") };
        let listens = || std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok();
        wait_for_within(PATIENCE, peer, listens).await;
        store
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        Client::builder().no_proxy().build().unwrap().request(method, format!("{}{path}", self.url))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

async fn sent(request: RequestBuilder) -> Vec<u8> {
    let answer = request.send().await.unwrap();
    let (status, url, body) = (answer.status(), answer.url().clone(), answer.bytes());
    let body = body.await.unwrap().to_vec();
    assert!(status.is_success(), "{url}: {status} {}", String::from_utf8_lossy(&body));
    body
}

/// Lines that do not compress well, each of 400 characters of noise.
fn lines(n_lines: usize) -> Vec<String> {
    let mut state = 7_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    let mut line = |n: usize| format!("line {n} {}", BASE64_STANDARD.encode([(); 300].map(|()| noise())));
    (0..n_lines).map(&mut line).collect()
}

/// A build whose step prints these lines.
fn script(lines: &[String]) -> Script {
    let event = |event: Value| Step::Stderr(format!("{event}\n"));
    let vertex = |more: Value| {
        let mut vertex = json!({"digest": "sha256:a", "name": "[2/2] RUN make", "started": AT});
        vertex.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        event(json!({"vertexes": [vertex]}))
    };
    let prints = |lines: &[String]| {
        let data = BASE64_STANDARD.encode(lines.join("\n") + "\n");
        event(json!({"logs": [{"vertex": "sha256:a", "stream": 1, "data": data, "timestamp": AT}]}))
    };
    let printed = lines.chunks(100).map(prints);
    let ends = [vertex(json!({"completed": AT})), Step::Exit(0)];
    Script::steps([vertex(json!({}))].into_iter().chain(printed).chain(ends).collect())
}

/// Runs a build with this archive. Checks both objects, which `read` reads by the path in their bucket.
async fn archives(settings: &str, read: impl AsyncFn(&str) -> Vec<u8>) {
    let mut harness = world::Harness::start(env!("CARGO_BIN_EXE_sidebake"), "sidebake-archive-", PATIENCE);
    harness.github.install("acme", &["shop"]);
    let (buildx, builder) = (world::install(harness.home.path()), Builder::start());
    harness.settings =
        format!("buildx.binary = \"{}\"\njournal.archive_timeout = \"60s\"\n{settings}", buildx.display());
    harness.builders = format!("builders.default = {{ driver = \"remote\", endpoint = \"{}\" }}", builder.endpoint());
    let doctor = world::text(&harness.run(&["doctor"], ""));
    assert!(doctor.lines().any(|line| line.starts_with("ok ") && line.ends_with(" takes logs")), "{doctor}");

    let lines = lines(18_000);
    builder.script(script(&lines));
    let sha = harness.git.repository("acme/shop").commit(&[("web/Dockerfile", "FROM base\nRUN make\n")]);
    let image = json!({"name": "web", "context": "./web", "tags": ["registry.example/acme/web:1"]});
    let _worker = harness.worker("");
    harness.redis.push("default", "BuildJob", json!([world::build_request("acme/shop", &sha, &[image])])).await;
    let report = harness.callbacks(1).await.remove(0);
    let url = report["log_url"].as_str().unwrap_or_else(|| panic!("{report:#}\n{}", harness.home.logs()));
    let (_, path) = url.split_once("://logs/").unwrap();

    let (text, records) = (read(path).await, read(&path.replace(".log.gz", ".jsonl.gz")).await);
    let unpack = |bytes: &[u8]| {
        let mut unpacked = String::new();
        GzDecoder::new(bytes).read_to_string(&mut unpacked).unwrap();
        unpacked
    };
    let own = unpack(&text);
    let own: Vec<&str> = own.lines().filter_map(|line| line.strip_prefix("web 2/2 | ")).collect();
    assert!(own[1..] == lines, "{} lines are in the text", own.len());
    let own = unpack(&records);
    let own: Vec<Value> = own.lines().map(|record| serde_json::from_str(record).unwrap()).collect();
    let output =
        own.iter().filter(|record| record["type"] == "output").map(|record| record["lines"].as_array().unwrap());
    assert!(output.flatten().eq(lines.iter()), "the lines are in the records");
    assert_eq!(own.last().unwrap()["type"], "end");
    assert!(text.len() > PARTS && records.len() > PARTS, "{} and {} bytes", text.len(), records.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_returns_both_logs_as_they_were_written() {
    let store = Store::start("moto", &["-H", "127.0.0.1", "-p", "PORT"]).await;
    // It verifies no signatures.
    let ask = |method: Method, path: &str| {
        let signature =
            "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        store.ask(method, path).header("authorization", signature)
    };
    sent(ask(Method::PUT, "/logs")).await;
    let settings = format!(
        "journal.archive = \"s3://logs/builds\"\njournal.archive_options = {{ aws_endpoint_url = \"{}\", aws_allow_http = \"true\", \
         aws_access_key_id = \"AKID\", aws_secret_access_key = \"s3cret-of-the-archive\", aws_region = \"us-east-1\" }}",
        store.url
    );
    archives(&settings, async |path| sent(ask(Method::GET, &format!("/logs/{path}"))).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_returns_both_logs_as_they_were_written() {
    let arguments =
        ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", "PORT"];
    let store = Store::start("azurite", &arguments).await;
    // A container whose blobs need no signature.
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now()).unwrap();
    let headers = format!("x-ms-blob-public-access:blob\nx-ms-date:{date}\nx-ms-version:2021-08-06\n");
    let signed = format!("PUT{}{headers}/{ACCOUNT}/{ACCOUNT}/logs\nrestype:container", "\n".repeat(12));
    let mut mac = Hmac::<Sha256>::new_from_slice(&BASE64_STANDARD.decode(ACCOUNT_KEY).unwrap()).unwrap();
    mac.update(signed.as_bytes());
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    let mut create = store.ask(Method::PUT, &format!("/{ACCOUNT}/logs?restype=container"));
    for (name, value) in headers.lines().map(|line| line.split_once(':').unwrap()) {
        create = create.header(name, value);
    }
    sent(create.header("authorization", format!("SharedKey {ACCOUNT}:{signature}")).header("content-length", "0"))
        .await;
    let settings = format!(
        "journal.archive = \"az://logs/builds\"\njournal.archive_options = {{ azure_endpoint = \"{}/{ACCOUNT}\", azure_allow_http = \"true\", \
         azure_storage_account_name = \"{ACCOUNT}\", azure_storage_account_key = \"{ACCOUNT_KEY}\" }}",
        store.url
    );
    let read = async |path: &str| sent(store.ask(Method::GET, &format!("/{ACCOUNT}/logs/{path}"))).await;
    archives(&settings, read).await;
}
