//! What an attack can reach, and how the test detects it: canary files, variables and ports, one set for each run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde_json::{Value, json};

use crate::canary_port::CanaryPort;
use crate::engine::Engine;
use crate::registry;

/// Harm to the worker's machine or to other accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// The content of a file or variable appeared in an image, a message or a request.
    Leaked,
    /// The attack read a file.
    Read,
    /// The attack made, changed or removed a file. A program that the attack runs makes a file.
    Wrote,
    /// The attack connected to the port.
    Connected,
    /// An image or cache has a name that the repository chose.
    Pushed,
    /// The attack used too much time or output.
    Exhausted,
}

impl Harm {
    pub fn name(self) -> &'static str {
        match self {
            Self::Leaked => "leaked",
            Self::Read => "read",
            Self::Wrote => "wrote",
            Self::Connected => "connected",
            Self::Pushed => "pushed",
            Self::Exhausted => "exhausted",
        }
    }
}

/// The environment of one run of one fixture.
pub struct Trap {
    pub home: PathBuf,
    outside: PathBuf,
    /// The files before the run, by path.
    before: BTreeMap<PathBuf, Vec<u8>>,
    canary_port: CanaryPort,
    registry: CanaryPort,
    _agent: Option<UnixListener>,
    words: BTreeMap<&'static str, String>,
    canaries: Vec<String>,
}

/// An access time so old that any read changes it.
fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

impl Trap {
    /// Sets a trap in its own directory. `nonce` is part of every canary.
    pub fn set(home: PathBuf, nonce: String, engine: &Engine) -> Self {
        let outside = home.join("outside");
        fs::create_dir_all(outside.join("sub")).unwrap();
        fs::create_dir_all(outside.join("layout/blobs/sha256")).unwrap();
        let (file, variable, mark) = (format!("FILE-{nonce}"), format!("VARIABLE-{nonce}"), format!("MARK-{nonce}"));
        let shouting = format!("FROM {}\nRUN echo {file} && sleep 0\n", engine.base_image);
        let stolen = format!("services:\n  stolen:\n    build:\n      context: .\n      args: {{LOOT: {file}}}\n");
        let digest = format!("sha256:{}", "0".repeat(64));
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":2,"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#
        );
        for (path, text) in [
            ("secret", format!("{file}\n")),
            ("sub/secret", format!("{file}\n")),
            ("variables", format!("LOOT={file}\n")),
            ("compose.yml", stolen),
            ("broken.hcl", format!("target \"default\" {{ args = {{ LOOT = {file} }} \n")),
            ("Dockerfile", shouting),
            ("key", format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{file}\n-----END OPENSSH PRIVATE KEY-----\n")),
            ("layout/index.json", index),
            ("layout/oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}".into()),
        ] {
            fs::write(outside.join(path), text).unwrap();
        }
        // A socket's path is limited to 107 bytes.
        let agent = outside.join("agent");
        let listener = UnixListener::bind(&agent).ok();
        let before = snapshot(&outside);
        for path in before.keys() {
            let times = FileTimes::new().set_accessed(long_ago());
            let _ = File::options().write(true).open(path).and_then(|file| file.set_times(times));
        }
        let canary_port = CanaryPort::asking_for_a_password();
        let registry = CanaryPort::sending_to(canary_port.port);
        let words = BTreeMap::from([
            ("OUTSIDE", outside.display().to_string()),
            ("UP", "../".repeat(20)),
            ("CANARY", format!("127.0.0.1:{}", canary_port.port)),
            ("CANARY_PORT", canary_port.port.to_string()),
            ("EVIL_REGISTRY", format!("127.0.0.1:{}", registry.port)),
            ("FOREIGN", format!("{}/{nonce}/foreign:1", engine.registry)),
            ("BASE", engine.base_image.clone()),
            ("FRONTEND", format!("{}/frontend:1", engine.registry)),
            ("NONCE", nonce.clone()),
            ("VARIABLE", format!("CANARY_{}", nonce.replace('-', "_"))),
        ]);
        Self {
            home,
            outside,
            before,
            canary_port,
            registry,
            _agent: listener,
            words,
            canaries: vec![file, variable, mark],
        }
    }

    /// A fixture's text, with this trap's value for each `@WORD@`.
    pub fn fill(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(&format!("@{word}@"), value))
    }

    /// The variables that no build should see.
    pub fn variables(&self) -> Vec<(String, String)> {
        let agent = self.outside.join("agent").display().to_string();
        vec![(self.words["VARIABLE"].clone(), self.canaries[1].clone()), ("SSH_AUTH_SOCK".into(), agent)]
    }

    /// The docker `config.json` of the job. Its registry is a canary, so that the test can tell it from the code that
    /// hides passwords.
    pub fn credentials(&self) -> String {
        credentials(&self.canaries[0])
    }

    /// The harm since the trap was set, by its canaries and the output.
    pub async fn harms(&self, said: &[u8], more_canaries: &[&str]) -> BTreeSet<Harm> {
        let mut harms = BTreeSet::new();
        // Before this process reads the files itself.
        let is_read =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.is_file() && file.atime() > 1_000_000_000);
        if self.before.keys().any(is_read) {
            harms.insert(Harm::Read);
        }
        if snapshot(&self.outside) != self.before {
            harms.insert(Harm::Wrote);
        }
        if self.canary_port.n_connections() > 0 {
            harms.insert(Harm::Connected);
        }
        if registry::digest(&self.words["FOREIGN"]).await.is_some() {
            harms.insert(Harm::Pushed);
        }
        let all = [said.to_vec(), decoded(said), decoded(&self.canary_port.heard()), decoded(&self.registry.heard())]
            .concat();
        let all = String::from_utf8_lossy(&all);
        let canaries = self.canaries.iter().map(String::as_str).chain(more_canaries.iter().copied());
        if canaries.into_iter().any(|canary| all.contains(canary)) {
            harms.insert(Harm::Leaked);
        }
        harms
    }
}

/// A docker `config.json` for one registry.
pub fn credentials(registry: &str) -> String {
    json!({"auths": {registry: {}}}).to_string()
}

/// All files of a tree with their content, and its directories.
fn snapshot(tree: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(tree).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            all.extend(snapshot(&path));
        }
        let content = if kind.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        all.insert(path, content);
    }
    all
}

/// The decoded Base64 in a text: the output of steps in events, and passwords in requests.
fn decoded(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let logs = events.flat_map(|event| event["logs"].as_array().cloned().unwrap_or_default());
    let logs = logs.filter_map(|log| BASE64.decode(log["data"].as_str()?).ok());
    let words = text.lines().filter_map(|line| BASE64.decode(line.trim().rsplit(' ').next()?).ok());
    logs.chain(words).flatten().collect()
}
