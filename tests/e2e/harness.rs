//! A harness for one test: Redis, GitHub, a git host and workers, around the engine that all tests share. The engine is
//! Docker here, and a cluster in `tests/kubernetes`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use world::{File, GitHost, GitHub, Home, Reach, Redis, wait_for_within};

pub use world::{Worker, text};

use crate::engine::{Engine, engine};
use crate::processes;

/// How long a build may take before a test fails. On a busy machine, a build takes minutes.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The queue on which callbacks arrive.
pub const CALLBACKS: &str = "callbacks";

pub struct Harness {
    pub redis: Redis,
    pub github: GitHub,
    pub git: GitHost,
    pub engine: &'static Engine,
    pub home: Home,
    /// A prefix for names that no other test and no earlier run uses, so the registry and caches have nothing under it.
    pub nonce: String,
    /// The settings of `builders`, as TOML.
    pub builders: String,
}

impl Harness {
    pub fn open() -> Self {
        let engine = engine();
        let github = GitHub::start();
        let git = GitHost::start(github.tokens());
        github.serve_commits_from(git.root());
        github.install_as(7, "acme", Reach::Under(git.root().to_owned()));
        let home = Home::new(env!("CARGO_BIN_EXE_sidebake"), "sidebake-e2e-", PATIENCE);
        std::fs::write(home.path().join("app.pem"), github.app().private_key_pem()).unwrap();
        let nonce = format!("e2e-{}", home.path().display().to_string().rsplit('-').next().unwrap().to_lowercase());
        let builders = engine.builder();
        Self { redis: Redis::start(), github, git, engine, home, nonce, builders }
    }

    /// Commits files on `main` of a repository of acme and returns the sha.
    pub fn commit(&self, repository: &str, files: &[(&str, &str)]) -> String {
        self.git.repository(&format!("acme/{repository}")).commit(files)
    }

    /// Commits files, links and other special entries.
    pub fn commit_with(&self, repository: &str, files: &[File]) -> String {
        self.git.repository(&format!("acme/{repository}")).commit_with("main", files)
    }

    /// A Dockerfile on the base image. The variable makes its RUN steps new to every cache.
    pub fn dockerfile(&self, instructions: &str) -> String {
        format!("FROM {}\nENV NONCE={}\n{instructions}\n", self.engine.base_image, self.nonce)
    }

    /// Three images in the directories `vote`, `result` and `worker`, each with four steps, two of them before its
    /// sources.
    pub fn commit_voting_app(&self) -> String {
        let dockerfile = self.dockerfile(
            "COPY packages.txt /etc/packages.txt\nRUN cp /etc/packages.txt /etc/installed.txt\n\
             COPY . /srv\nRUN wc -c /srv/app.txt > /srv/size.txt",
        );
        let files = ["vote", "result", "worker"].map(|name| {
            [
                (format!("{name}/Dockerfile"), dockerfile.clone()),
                (format!("{name}/packages.txt"), format!("tzdata\n# locked for {}\n", self.nonce)),
                (format!("{name}/app.txt"), format!("{name}, first\n")),
            ]
        });
        let files: Vec<(&str, &str)> =
            files.as_flattened().iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        self.commit("voting-app", &files)
    }

    /// A reference in the registry that only this test uses.
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{}/{}/{name}:{tag}", self.engine.registry, self.nonce)
    }

    /// An image of an Application Template: context `./NAME`, tag `NAME:SHA`.
    pub fn image(&self, name: &str, sha: &str) -> Value {
        json!({"name": name, "context": format!("./{name}"), "tags": [self.reference(name, sha)]})
    }

    /// The build request of a build with a callback.
    pub fn native(&self, repository: &str, sha: &str, images: &[Value]) -> Value {
        json!({
            "build_id": 42, "repository": format!("acme/{repository}"), "sha": sha, "ref": "refs/heads/main",
            "application": {"images": images},
            "callback": {"class": "BuildFinishedJob", "queue": CALLBACKS},
        })
    }

    /// The build request of one target of an inline definition.
    pub fn inline(&self, repository: &str, sha: &str, definition: Value, target: &str) -> Value {
        let mut native = self.native(repository, sha, &[]);
        native.as_object_mut().unwrap().remove("application");
        native["definition"] = definition;
        native["targets"] = json!([target]);
        native
    }

    /// Writes the configuration, with `more` at its end, and returns its path. Uses the default sandbox.
    pub fn config(&self, more: &str) -> PathBuf {
        self.home.write_config(&format!(
            r#"
concurrency = 8
queues = ["default"]
redis.url = "{redis}"
state.directory = "{home}/state"
github = {{ api_url = "{api}", git_url = "{git}", app_id = "{app}", private_key_file = "{home}/app.pem" }}
buildx.binary = "{buildx}"
sandbox.registry_ports = [{port}]
{builder}
{more}
"#,
            redis = self.redis.url(),
            home = self.home.path().display(),
            api = self.github.url(),
            git = self.git.url(),
            app = self.github.app().id,
            buildx = self.engine.buildx.display(),
            builder = self.builders,
            port = self.engine.registry_port(),
        ))
    }

    /// Starts a worker with the configuration and `more` at its end.
    pub fn worker(&self, more: &str) -> Worker {
        self.worker_with(more, &[])
    }

    /// Starts a worker with variables in its environment.
    pub fn worker_with(&self, more: &str, variables: &[(&str, &str)]) -> Worker {
        self.home.worker(&self.config(more), &[], variables)
    }

    /// Runs another command of the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[])
    }

    /// Runs another command with variables in its environment.
    pub fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        self.home.run(arguments, &self.config(""), variables)
    }

    /// The tree of `main` without `.git`, where the worker would check it out in a job's directory; for control runs.
    pub fn check_out(&self, repository: &str) -> PathBuf {
        let tree = self.home.path().join(format!("control-{repository}"));
        std::fs::create_dir(&tree).unwrap();
        let repository = self.git.repository(&format!("acme/{repository}"));
        repository.git(&["--work-tree", tree.to_str().unwrap(), "checkout", "--force", "main", "--", "."]);
        tree
    }

    /// Runs the real `docker-buildx` without the worker's checks.
    pub fn bare_bake(&self, tree: &Path, definition: &Value) -> Output {
        let file = self.home.path().join("bare-bake.json");
        std::fs::write(&file, definition.to_string()).unwrap();
        self.bare_buildx(tree).args(["bake", "--progress", "rawjson", "--file"]).arg(file).output().unwrap()
    }

    /// The real `docker-buildx` in a directory, without validation and with the machine's PATH.
    pub fn bare_buildx(&self, directory: &Path) -> Command {
        let mut buildx = Command::new(&self.engine.buildx);
        buildx.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        buildx.envs(self.engine.environment()).current_dir(directory).stdin(Stdio::null());
        buildx
    }

    /// Starts a worker with `more`, enqueues a build, and returns the report of its callback.
    pub async fn build(&self, native: Value) -> Value {
        let jid = self.redis.push("default", "BuildJob", json!([native])).await;
        self.report(&jid).await
    }

    /// Waits for a job's report.
    ///
    /// # Panics
    /// When the job is in the retry set, because the test expects its end.
    pub async fn report(&self, jid: &str) -> Value {
        self.until(&format!("the callback of {jid} arrives"), async || {
            let retries = self.redis.sorted_set("retry").await;
            let retry = retries.iter().find(|(job, _)| job.contains(jid));
            assert!(retry.is_none(), "the job is in the retry set: {retry:?}");
            self.find_report(jid).await.is_some()
        })
        .await;
        self.find_report(jid).await.unwrap()
    }

    /// A job's report, if it has arrived.
    pub async fn find_report(&self, jid: &str) -> Option<Value> {
        let mut reports = self.reports().await.into_iter();
        reports.find(|report| report["jid"] == jid && report["moment"] == "finished")
    }

    /// Every report so far.
    pub async fn reports(&self) -> Vec<Value> {
        let jobs = self.redis.queue(CALLBACKS).await;
        jobs.iter().map(|job| serde_json::from_str::<Value>(job).unwrap()["args"][0].take()).collect()
    }

    /// Waits for a condition, and prints the log when it never holds.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        self.home.until(what, condition).await;
    }

    /// Waits until no job is in custody, and none has left a directory or a process.
    pub async fn nothing_is_left(&self) {
        self.until("no job is queued or in flight", async || {
            self.redis.queue("default").await.is_empty() && self.redis.keys("sidebake:inflight:*").await.is_empty()
        })
        .await;
        wait_for_within(PATIENCE, "the jobs' processes to end", || self.children().is_empty()).await;
        wait_for_within(PATIENCE, "the removal of the jobs' directories", || self.home.job_directories().is_empty())
            .await;
    }

    /// The children of this test's workers: each has its job's directory in its arguments.
    pub fn children(&self) -> Vec<String> {
        processes::with(&format!("{}/state/", self.home.path().display()))
    }

    /// The logs of this test's processes.
    pub fn logs(&self) -> String {
        self.home.logs()
    }
}

/// The entry of one target in a report.
pub fn target<'a>(report: &'a Value, name: &str) -> &'a Value {
    let targets = report["targets"].as_array().unwrap();
    targets.iter().find(|target| target["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}
