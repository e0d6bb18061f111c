//! git's smart HTTP as GitHub serves it: the real `git http-backend` behind GitHub's authentication.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_util::io::ReaderStream;

use crate::faults::Faults;
use crate::repository::{Repository, git, is_public};
use crate::server::Server;
use crate::tokens::{Grant, Tokens};

/// A running git host with its repositories.
pub struct GitHost {
    shared: Arc<Shared>,
    server: Server,
    _dir: Option<TempDir>,
}

/// One request.
#[derive(Clone, Debug)]
pub struct GitRequest {
    /// Path with query.
    pub path: String,
    /// The token in the Basic credentials, if any.
    pub token: Option<String>,
    /// The `Git-Protocol` header, `version=2` from any recent client.
    pub protocol: Option<String>,
    /// The status of the answer; 0 without an answer.
    pub status: u16,
}

/// What the host does with the packs that it sends.
#[derive(Clone, Copy, Debug, Default)]
pub enum Pack {
    /// Sends them complete.
    #[default]
    Whole,
    /// Stops longer packs after this many bytes and keeps the connection open.
    StallAfter(u64),
    /// Ends longer packs after this many bytes.
    CutAfter(u64),
}

struct Shared {
    root: PathBuf,
    /// None when every client may read.
    tokens: Option<Tokens>,
    faults: Faults,
    pack: Mutex<Pack>,
    requests: Mutex<Vec<GitRequest>>,
}

impl GitHost {
    /// A host that serves its repositories to these tokens.
    pub fn start(tokens: Tokens) -> GitHost {
        let dir = tempfile::tempdir().unwrap();
        let mut host = GitHost::serve(dir.path(), Some(tokens), 0);
        host._dir = Some(dir);
        host
    }

    /// A host without authentication, like public repositories.
    pub fn open() -> GitHost {
        let dir = tempfile::tempdir().unwrap();
        let mut host = GitHost::serve(dir.path(), None, 0);
        host._dir = Some(dir);
        host
    }

    /// Serves the bare repositories `OWNER/NAME.git` below `root`, including later ones. Without `tokens`, every client
    /// may read.
    pub fn serve(root: &Path, tokens: Option<Tokens>, port: u16) -> GitHost {
        let shared = Arc::new(Shared {
            root: root.canonicalize().unwrap(),
            tokens,
            faults: Faults::default(),
            pack: Mutex::default(),
            requests: Mutex::default(),
        });
        let router = Router::new().fallback(front_door).with_state(shared.clone());
        GitHost { shared, server: Server::start(router, port), _dir: None }
    }

    /// The base of every repository's URL, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The port of the host.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The directory of the bare repositories.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// The repository `owner/name`, which this makes if it is missing.
    pub fn repository(&self, full_name: &str) -> Repository {
        let dir = self.shared.root.join(format!("{full_name}.git"));
        if !dir.exists() {
            Repository::init(&dir);
        }
        Repository { full_name: full_name.into(), dir }
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<GitRequest> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// How many commands of git's protocol were authorized. A fetch of a known commit takes one, a warm mirror none.
    pub fn n_fetches(&self) -> usize {
        let requests = self.requests();
        requests.iter().filter(|request| request.status == 200 && request.path.ends_with("/git-upload-pack")).count()
    }

    /// The faults of this host.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Sets what the host does with packs from now on.
    pub fn set_pack(&self, pack: Pack) {
        *self.shared.pack.lock().unwrap() = pack;
    }
}

async fn front_door(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let n = record(&shared, &head);
    let response = match shared.faults.strike(head.uri.path()).await {
        Some(response) => response,
        None => match admit(&shared, &head) {
            Ok(path_info) => backend(&shared, &head, &path_info, body).await,
            Err(refusal) => refusal.into_response(),
        },
    };
    shared.requests.lock().unwrap()[n].status = response.status().as_u16();
    response
}

fn record(shared: &Shared, head: &Parts) -> usize {
    let mut requests = shared.requests.lock().unwrap();
    requests.push(GitRequest {
        path: head.uri.to_string(),
        token: basic_token(&head.headers),
        protocol: head.headers.get("git-protocol").and_then(|value| value.to_str().ok()).map(str::to_owned),
        status: 0,
    });
    requests.len() - 1
}

/// `PATH_INFO` for the backend, or GitHub's refusal.
fn admit(shared: &Shared, head: &Parts) -> Result<String, Refusal> {
    let mut parts = head.uri.path().trim_start_matches('/').splitn(3, '/');
    let (owner, name, service) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let name = name.strip_suffix(".git").unwrap_or(name);
    authenticate(shared, &head.headers, &format!("{owner}/{name}"))?;
    if [owner, name].iter().any(|part| part.trim_start_matches('.').is_empty()) {
        return Err(NOT_FOUND);
    }
    if !shared.root.join(owner).join(format!("{name}.git")).is_dir() {
        return Err(NOT_FOUND);
    }
    match (service, head.uri.query().unwrap_or("")) {
        ("info/refs", "service=git-upload-pack") | ("git-upload-pack", _) => {
            Ok(format!("/{owner}/{name}.git/{service}"))
        }
        ("info/refs", "service=git-receive-pack") | ("git-receive-pack", _) => Err(NO_ACCESS),
        // GitHub does not serve the dumb protocol.
        _ => Err(Refusal(403, "Please upgrade your git client.")),
    }
}

fn authenticate(shared: &Shared, headers: &HeaderMap, full_name: &str) -> Result<(), Refusal> {
    let Some(tokens) = &shared.tokens else {
        return Ok(());
    };
    let is_public = is_public(&shared.root.join(format!("{full_name}.git")));
    let token = match basic_token(headers) {
        None if is_public => return Ok(()),
        token => token.ok_or(Refusal(401, "Authentication required."))?,
    };
    let Some(grant) = tokens.grant(&token).filter(Grant::is_valid) else {
        let text = "Invalid username or token. Password authentication is not supported for Git operations.";
        return Err(Refusal(401, text));
    };
    if is_public {
        return Ok(());
    }
    if !grant.reach.covers(full_name) {
        return Err(NOT_FOUND);
    }
    if !grant.permissions.contains_key("contents") {
        return Err(NO_ACCESS);
    }
    Ok(())
}

/// A status with the text that git prints after `remote: `.
struct Refusal(u16, &'static str);

const NOT_FOUND: Refusal = Refusal(404, "Repository not found.");
/// Also GitHub's answer to reading, when a token lacks `contents`.
const NO_ACCESS: Refusal = Refusal(403, "Write access to repository not granted.");

impl Refusal {
    fn into_response(self) -> Response<Body> {
        let response = Response::builder().status(self.0).header(header::CONTENT_TYPE, "text/plain; charset=UTF-8");
        let response = match self.0 {
            401 => response.header(header::WWW_AUTHENTICATE, "Basic realm=\"GitHub\""),
            _ => response,
        };
        response.body(Body::from(format!("{}\n", self.1))).unwrap()
    }
}

fn basic_token(headers: &HeaderMap) -> Option<String> {
    let credentials = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let credentials = String::from_utf8(BASE64_STANDARD.decode(credentials).ok()?).ok()?;
    Some(credentials.split_once(':')?.1.to_owned())
}

/// Runs `git http-backend` for one request. Streams the body in, and headers and body out.
async fn backend(shared: &Shared, head: &Parts, path_info: &str, mut body: Body) -> Response<Body> {
    let mut child = tokio::process::Command::from(cgi(shared, head, path_info))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("git http-backend is installed with git");
    let mut stdin = child.stdin.take().unwrap();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if stdin.write_all(&data).await.is_err() {
                break;
            }
        }
    });
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let response = cgi_headers(&mut stdout).await;
    // It ends when it is done, or by SIGPIPE when the client has closed the connection.
    tokio::spawn(async move { child.wait().await });
    let pack = match path_info.ends_with("/git-upload-pack") {
        true => *shared.pack.lock().unwrap(),
        false => Pack::Whole,
    };
    response.body(spoil(stdout, pack)).unwrap()
}

fn cgi(shared: &Shared, head: &Parts, path_info: &str) -> Command {
    let mut command = git(&shared.root);
    command.arg("http-backend");
    let header = |name: &str| head.headers.get(name).map(|value| value.as_bytes().to_vec());
    let variables = [
        ("CONTENT_TYPE", header("content-type")),
        ("CONTENT_LENGTH", header("content-length")),
        ("GIT_PROTOCOL", header("git-protocol")),
        ("HTTP_CONTENT_ENCODING", header("content-encoding")),
    ];
    for (name, value) in variables {
        if let Some(value) = value {
            command.env(name, String::from_utf8_lossy(&value).as_ref());
        }
    }
    command
        .env("GIT_PROJECT_ROOT", &shared.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path_info)
        .env("QUERY_STRING", head.uri.query().unwrap_or(""))
        .env("REQUEST_METHOD", head.method.as_str())
        .env("REMOTE_USER", "x-access-token")
        .env("REMOTE_ADDR", "127.0.0.1");
    configure(
        &mut command,
        &[
            ("uploadpack.allowReachableSHA1InWant", "true"),
            ("uploadpack.allowAnySHA1InWant", "true"),
            ("uploadpack.allowFilter", "true"),
            ("safe.directory", "*"),
        ],
    );
    command
}

fn configure(command: &mut Command, settings: &[(&str, &str)]) {
    command.env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (n, (key, value)) in settings.iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{n}"), OsStr::new(key));
        command.env(format!("GIT_CONFIG_VALUE_{n}"), OsStr::new(value));
    }
}

async fn cgi_headers(stdout: &mut (impl AsyncBufReadExt + Unpin)) -> axum::http::response::Builder {
    let mut response = Response::builder();
    let mut line = String::new();
    while stdout.read_line(&mut line).await.unwrap_or(0) > 0 {
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        response = match name {
            "Status" => response.status(&value[..3]),
            _ => response.header(name, value),
        };
        line.clear();
    }
    response
}

fn spoil(stdout: impl AsyncRead + Unpin + Send + 'static, pack: Pack) -> Body {
    match pack {
        Pack::Whole => Body::from_stream(ReaderStream::new(stdout)),
        Pack::CutAfter(n_bytes) => Body::from_stream(ReaderStream::new(stdout.take(n_bytes))),
        Pack::StallAfter(n_bytes) => {
            let (reader, mut writer) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                // The responses before the pack are shorter, and end.
                if tokio::io::copy(&mut stdout.take(n_bytes), &mut writer).await.is_ok_and(|n| n == n_bytes) {
                    std::future::pending::<()>().await;
                }
            });
            Body::from_stream(ReaderStream::new(reader))
        }
    }
}
