//! A harness for one test: Redis, GitHub, a git host, Rails, a builder, and the worker between them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use sidebake::secret::Secret;
use sidebake::settings::{self, Settings};
use world::{Builder, GitHost, GitHub, Home, Rails, Redis, Repository};

pub use world::{Worker, text};

/// How long a condition may take on a busy machine before a test fails.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);

/// A test that keeps a processor busy for seconds holds this lock. Several at once would starve all others.
pub static HEAVY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The queue of a test's callbacks.
pub const CALLBACKS: &str = "callbacks";

/// The product's own Redis client, for tests of one of its parts.
pub fn client(url: &str) -> sidebake::redis::Redis {
    let settings = settings::Redis { url: Secret::new(url), ..Settings::default().redis };
    sidebake::redis::Redis::new(&settings).unwrap()
}

pub struct Harness {
    pub redis: Redis,
    pub github: GitHub,
    pub git: GitHost,
    pub rails: Rails,
    pub builder: Builder,
    pub home: Home,
}

impl Harness {
    pub fn start() -> Self {
        let github = GitHub::start();
        let git = GitHost::start(github.tokens());
        github.serve_commits_from(git.root());
        github.install("acme", &["voting-app"]);
        let home = Home::new(env!("CARGO_BIN_EXE_sidebake"), "sidebake-it-", PATIENCE);
        world::install(home.path());
        std::fs::write(home.path().join("app.pem"), github.app().private_key_pem()).unwrap();
        Self { redis: Redis::start(), github, git, rails: Rails::start("s3cret"), builder: Builder::start(), home }
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
        json!({
            "build_id": 42, "repository": "acme/voting-app", "sha": sha,
            "application": {"images": [{"name": "vote", "context": "./vote", "tags": ["registry.example/acme/vote:1"]}]},
            "callback": {"class": "BuildFinishedJob", "queue": CALLBACKS}
        })
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

    /// Writes the configuration, with `more` at its end, and returns its path.
    pub fn config(&self, more: &str) -> PathBuf {
        self.home.write_config(&format!(
            r#"
concurrency = 4
queues = ["default"]
redis.url = "{redis}"
state.directory = "{home}/state"
github = {{ api_url = "{api}", git_url = "{git}", app_id = "{app}", private_key_file = "{home}/app.pem" }}
buildx.binary = "{home}/docker-buildx"
builders.default = {{ driver = "remote", endpoint = "{builder}" }}
{more}
"#,
            redis = self.redis.url(),
            home = self.home.path().display(),
            api = self.github.url(),
            git = self.git.url(),
            app = self.app_id(),
            builder = self.builder.endpoint(),
        ))
    }

    fn app_id(&self) -> u64 {
        self.github.app().id
    }

    /// Starts a worker with the configuration and `more` at its end.
    pub fn worker(&self, more: &str) -> Worker {
        self.worker_with(&self.config(more), &[])
    }

    pub fn worker_with(&self, config: &Path, arguments: &[&str]) -> Worker {
        self.worker_with_variables::<&str>(config, arguments, &[])
    }

    pub fn worker_with_variables<V: AsRef<OsStr>>(
        &self,
        config: &Path,
        arguments: &[&str],
        variables: &[(&str, V)],
    ) -> Worker {
        self.home.worker(config, arguments, variables)
    }

    /// Runs another command of the binary to its end.
    pub fn run(&self, arguments: &[&str], more: &str) -> Output {
        self.home.run(arguments, &self.config(more), &[])
    }

    /// Waits for the next `n` callbacks and returns their reports, with the earliest first.
    pub async fn callbacks(&self, n: usize) -> Vec<Value> {
        self.callback_jobs(n).await.into_iter().map(|mut job| job["args"][0].take()).collect()
    }

    pub async fn callback_jobs(&self, n: usize) -> Vec<Value> {
        self.until(&format!("{n} callbacks arrive"), async || self.redis.queue(CALLBACKS).await.len() >= n).await;
        let jobs = self.redis.queue(CALLBACKS).await;
        jobs.iter().map(|job| serde_json::from_str(job).unwrap()).collect()
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

    /// Waits until no job is queued or in flight.
    pub async fn idle(&self) {
        self.until("no job is queued or in flight", async || {
            self.redis.queue("default").await.is_empty() && self.redis.keys("sidebake:inflight:*").await.is_empty()
        })
        .await;
    }

    /// Waits for a condition on Redis.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        self.home.until(what, condition).await;
    }

    /// Waits until a worker has a job in flight.
    pub async fn is_in_flight(&self) {
        self.until("the job is in flight", async || self.redis.keys("sidebake:inflight:*").await.len() == 1).await;
    }

    /// The logs of all workers of this test.
    pub fn logs(&self) -> String {
        self.home.logs()
    }

    /// The lines with this event in the logs of all workers.
    pub fn logged(&self, event: &str) -> Vec<String> {
        self.home.logged(event)
    }

    /// The directories of jobs that still exist.
    pub fn job_directories(&self) -> Vec<PathBuf> {
        self.home.job_directories()
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
