//! A harness for one test: what all suites share, with the engine that all tests share. The engine is Docker here, and a
//! cluster in `tests/kubernetes`.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use world::{File, Reach, wait_for_within};

pub use world::{Worker, text};

use crate::engine::{Engine, engine};
use crate::processes;

/// How long a build may take before a test fails. On a busy machine, a build takes minutes.
pub const PATIENCE: Duration = Duration::from_secs(600);

pub struct Harness {
    shared: world::Harness,
    pub engine: &'static Engine,
    /// A prefix for names that no other test and no earlier run uses, so the registry and caches have nothing under it.
    pub nonce: String,
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
    /// Uses the default sandbox.
    pub fn open() -> Self {
        let engine = engine();
        let mut shared = world::Harness::start(env!("CARGO_BIN_EXE_sidebake"), "sidebake-e2e-", PATIENCE);
        shared.github.install_as(7, "acme", Reach::Under(shared.git.root().to_owned()));
        shared.settings = format!(
            "concurrency = 8\nbuildx.binary = \"{}\"\nsandbox.registry_ports = [{}]",
            world::buildx().path.display(),
            engine.registry_port()
        );
        shared.builders = engine.builder();
        let home = shared.home.path().display().to_string();
        let nonce = format!("e2e-{}", home.rsplit('-').next().unwrap().to_lowercase());
        Self { shared, engine, nonce }
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

    /// The build request of a commit on `main`, with a callback.
    pub fn native(&self, repository: &str, sha: &str, images: &[Value]) -> Value {
        let mut native = world::build_request(&format!("acme/{repository}"), sha, images);
        native["ref"] = json!("refs/heads/main");
        native
    }

    /// The build request of one target of an inline definition.
    pub fn inline(&self, repository: &str, sha: &str, definition: Value, target: &str) -> Value {
        let mut native = self.native(repository, sha, &[]);
        native.as_object_mut().unwrap().remove("application");
        native["definition"] = definition;
        native["targets"] = json!([target]);
        native
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
        let mut buildx = Command::new(&world::buildx().path);
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

    /// Waits until no job is in custody, and none has left a directory or a process.
    pub async fn nothing_is_left(&self) {
        self.idle().await;
        wait_for_within(PATIENCE, "the jobs' processes to end", || self.children().is_empty()).await;
        wait_for_within(PATIENCE, "the removal of the jobs' directories", || self.job_directories().is_empty()).await;
    }

    /// The children of this test's workers: each has its job's directory in its arguments.
    pub fn children(&self) -> Vec<String> {
        processes::with(&format!("{}/state/", self.home.path().display()))
    }
}

/// The Dockerfile of an image that makes SBOMs: of each image the same.
pub fn scanner(harness: &Harness) -> String {
    let sbom = r#"{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","subject":[],"predicate":{"name":"ours"}}"#;
    harness.dockerfile(&format!(
        "RUN printf '%s' '{sbom}' > /sbom\nCMD [\"/bin/sh\", \"-c\", \"cat /sbom > $BUILDKIT_SCAN_DESTINATION/app.spdx.json\"]"
    ))
}

/// The entry of one target in a report.
pub fn target<'a>(report: &'a Value, name: &str) -> &'a Value {
    let targets = report["targets"].as_array().unwrap();
    targets.iter().find(|target| target["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}
