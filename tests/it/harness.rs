//! A harness for one test: what all suites share, with a scripted docker-buildx, its builder, and Rails.

use std::ops::{Deref, DerefMut};
use std::process::Command;

use serde_json::{Value, json};
use sidebake::secret::Secret;
use sidebake::settings::{self, Settings};
use world::{Builder, Rails, Repository};

pub use world::{CALLBACKS, Worker, text};

/// How long a condition may take on a busy machine before a test fails.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);

/// A test that keeps a processor busy for seconds holds this lock. Several at once would starve all others.
pub static HEAVY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The product's own Redis client, for tests of one of its parts.
pub fn client(url: &str) -> sidebake::redis::Redis {
    // A script with megabytes takes seconds on a machine that is short of memory.
    let timeout = std::time::Duration::from_secs(60);
    let settings = settings::Redis { url: Secret::new(url), timeout, ..Settings::default().redis };
    sidebake::redis::Redis::new(&settings).unwrap()
}

pub struct Harness {
    shared: world::Harness,
    pub rails: Rails,
    pub builder: Builder,
}

impl Deref for Harness {
    type Target = world::Harness;

    fn deref(&self) -> &world::Harness {
        &self.shared
    }
}

impl DerefMut for Harness {
    fn deref_mut(&mut self) -> &mut world::Harness {
        &mut self.shared
    }
}

impl Harness {
    pub fn start() -> Self {
        let mut shared = world::Harness::start(env!("CARGO_BIN_EXE_sidebake"), "sidebake-it-", PATIENCE);
        shared.github.install("acme", &["voting-app"]);
        let (buildx, builder) = (world::install(shared.home.path()), Builder::start());
        shared.settings = format!("concurrency = 4\nbuildx.binary = \"{}\"", buildx.display());
        shared.builders =
            format!("builders.default = {{ driver = \"remote\", endpoint = \"{}\" }}", builder.endpoint());
        Self { shared, rails: Rails::start("s3cret"), builder }
    }

    /// The repository of most tests, with a Dockerfile in each of `vote`, `result` and `worker`, and its commit.
    pub fn voting_app(&self) -> (Repository, String) {
        let repository = self.git.repository("acme/voting-app");
        let sha = repository.commit(&[
            ("vote/Dockerfile", "FROM base\nCOPY . /srv\n"),
            ("result/Dockerfile", "FROM base\nCOPY . /srv\n"),
            ("worker/Dockerfile", "FROM base\nCOPY . /srv\n"),
        ]);
        (repository, sha)
    }

    /// A build request for one image of the voting app, with a callback.
    pub fn native(&self, sha: &str) -> Value {
        let image = json!({"name": "vote", "context": "./vote", "tags": ["registry.example/acme/vote:1"]});
        world::build_request("acme/voting-app", sha, &[image])
    }

    /// A build request for a repository (`owner/name`) of another account. Makes the repository and installs the App on
    /// it.
    pub fn native_of(&self, repository: &str) -> Value {
        let content = format!("FROM base\n# {repository}\n");
        let sha = self.git.repository(repository).commit(&[("vote/Dockerfile", &content)]);
        let (account, name) = repository.split_once('/').unwrap();
        let mut native = self.native(&sha);
        native["repository"] = json!(repository);
        native["installation_id"] = json!(self.github.install(account, &[name]));
        native
    }

    /// Puts so many of Ruby's processes on the list of processes.
    pub async fn list_ruby_processes(&self, n_processes: usize) {
        let mut connection = self.redis.connection().await;
        for n in 0..n_processes {
            let identity = format!("rails:{n}:abcdef");
            let mut beat = redis::pipe();
            beat.cmd("SADD").arg(&["processes", &identity]).cmd("HSET").arg(&[&identity, "info", "{}"]);
            beat.exec_async(&mut connection).await.unwrap();
        }
    }

    /// The locations of a text that must appear nowhere: in a log, in Redis, or in a file of the state directory.
    pub async fn traces_of(&self, text: &str) -> Vec<String> {
        let mut traces = Vec::new();
        if self.logs().contains(text) {
            traces.push("log".to_owned());
        }
        let state = self.home.path().join("state");
        let found = Command::new("grep").args(["-r", "-l", "-a", "-F", "--", text]).arg(state).output().unwrap();
        traces.extend(String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned));
        let mut redis = self.redis.connection().await;
        // Redis would otherwise compress the dump.
        redis::cmd("CONFIG").arg(&["SET", "rdbcompression", "no"]).exec_async(&mut redis).await.unwrap();
        for key in self.redis.keys("*").await {
            let dump: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
            if String::from_utf8_lossy(&dump.unwrap_or_default()).contains(text) {
                traces.push(key);
            }
        }
        traces
    }
}

/// The binary, without variables of the test's environment that could be settings.
pub fn sidebake() -> Command {
    world::sidebake(env!("CARGO_BIN_EXE_sidebake"))
}

/// The arguments of a probe job with a callback.
pub fn probe(outcome: &str, sleep_s: f64) -> Value {
    json!([{"outcome": outcome, "sleep_s": sleep_s, "message": "as asked", "callback": {"class": "Done", "queue": CALLBACKS}}])
}
