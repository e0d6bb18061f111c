//! What the harnesses of all suites share: Redis, GitHub, a git host, and the product's processes between them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{GitHost, GitHub, Home, Redis, Worker};

/// The queue of a test's callbacks.
pub const CALLBACKS: &str = "callbacks";

/// The systems around the workers of one test. A suite adds what builds the images.
pub struct Harness {
    /// The server with the queues.
    pub redis: Redis,
    /// The App's API.
    pub github: GitHub,
    /// The host of the repositories.
    pub git: GitHost,
    /// The directory of the test and its workers.
    pub home: Home,
    /// Settings of the suite, as TOML without a section.
    pub settings: String,
    /// The settings of `builders`, as TOML.
    pub builders: String,
}

impl Harness {
    /// Starts the stand-ins. The name of the test's directory begins with `prefix`. A test fails when a condition takes
    /// longer than `patience`.
    pub fn start(binary: &'static str, prefix: &str, patience: Duration) -> Harness {
        let github = GitHub::start();
        let git = GitHost::start(github.tokens());
        github.serve_commits_from(git.root());
        let home = Home::new(binary, prefix, patience);
        std::fs::write(home.path().join("app.pem"), github.app().private_key_pem()).unwrap();
        Harness { redis: Redis::start(), github, git, home, settings: String::new(), builders: String::new() }
    }

    /// Writes the configuration, with `more` at its end, and returns its path.
    pub fn config(&self, more: &str) -> PathBuf {
        self.home.write_config(&format!(
            r#"
queues = ["default"]
redis.url = "{redis}"
state.directory = "{home}/state"
github = {{ api_url = "{api}", git_url = "{git}", app_id = "{app}", private_key_file = "{home}/app.pem" }}
{settings}
{builders}
{more}
"#,
            redis = self.redis.url(),
            home = self.home.path().display(),
            api = self.github.url(),
            git = self.git.url(),
            app = self.github.app().id,
            settings = self.settings,
            builders = self.builders,
        ))
    }

    /// Starts a worker with the configuration and `more` at its end.
    pub fn worker(&self, more: &str) -> Worker {
        self.worker_with(&self.config(more), &[])
    }

    /// Starts a worker with flags.
    pub fn worker_with(&self, config: &Path, arguments: &[&str]) -> Worker {
        self.worker_with_variables::<&str>(config, arguments, &[])
    }

    /// Starts a worker with flags, and with variables in its environment.
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

    /// Every callback job so far, with the earliest first.
    pub async fn callback_jobs_so_far(&self) -> Vec<Value> {
        let jobs = self.redis.queue(CALLBACKS).await;
        jobs.iter().map(|job| serde_json::from_str(job).unwrap()).collect()
    }

    /// Every report so far, with the earliest first.
    pub async fn reports(&self) -> Vec<Value> {
        self.callback_jobs_so_far().await.into_iter().map(report_of).collect()
    }

    /// Waits until `n` callbacks have arrived and returns all jobs so far.
    pub async fn callback_jobs(&self, n: usize) -> Vec<Value> {
        self.until(&format!("{n} callbacks arrive"), async || self.redis.queue(CALLBACKS).await.len() >= n).await;
        self.callback_jobs_so_far().await
    }

    /// Waits until `n` callbacks have arrived and returns all reports so far.
    pub async fn callbacks(&self, n: usize) -> Vec<Value> {
        self.callback_jobs(n).await.into_iter().map(report_of).collect()
    }

    /// Waits until no job is queued or in flight.
    pub async fn idle(&self) {
        self.until("no job is queued or in flight", async || {
            self.redis.queue("default").await.is_empty() && self.redis.keys("sidebake:inflight:*").await.is_empty()
        })
        .await;
    }

    /// Waits until a worker has a job in flight.
    pub async fn is_in_flight(&self) {
        self.until("the job is in flight", async || !self.redis.keys("sidebake:inflight:*").await.is_empty()).await;
    }

    /// Waits for a condition, and prints the logs when it never holds.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        self.home.until(what, condition).await;
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

fn report_of(mut job: Value) -> Value {
    job["args"][0].take()
}

/// The build request of an Application Template with these images, and with a callback.
pub fn build_request(repository: &str, sha: &str, images: &[Value]) -> Value {
    json!({
        "build_id": 42, "repository": repository, "sha": sha, "application": {"images": images},
        "callback": {"class": "BuildFinishedJob", "queue": CALLBACKS},
    })
}
