//! What a scripted bake does: the steps that a builder sends to its `docker-buildx`, and constructors for common runs.
//!
//! The streams follow what buildx 0.29 writes under `--progress=rawjson` (`buildx-notes.md` §3, fixtures/buildx).

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::builder::Run;
use crate::hex;

/// One step, a JSON line on the wire: `{"wait_ms": 5}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Writes this to stderr unchanged.
    Stderr(String),
    /// Writes this to stdout unchanged.
    Stdout(String),
    /// Waits.
    WaitMs(u64),
    /// Writes the file of `--metadata-file`.
    Metadata(Value),
    /// Whether to ignore TERM and INT from now on. By default they end the child with 130.
    IgnoreTerm(bool),
    /// Starts a child in the same process group that sleeps and holds stdout and stderr open. Reports its pid.
    SpawnSleeper,
    /// Connects to this `host:port`. Reports the outcome.
    Connect(String),
    /// Connects to this Unix socket. Reports the outcome.
    ConnectUnix(PathBuf),
    /// Reads this file or directory. Reports the outcome and the content.
    Read(PathBuf),
    /// Writes a byte to this file. Reports the outcome.
    Write(PathBuf),
    /// Runs this program without arguments. Reports the outcome.
    Exec(PathBuf),
    /// Ends with this code.
    Exit(i32),
    /// Does nothing forever.
    Hang,
    /// Makes the builder wait for [`crate::Builder::release`].
    Hold,
}

/// The steps of one bake, computed from its run.
#[derive(Clone)]
pub struct Script(Arc<Course>);

type Course = dyn Fn(&Run) -> Vec<Step> + Send + Sync;

impl Script {
    /// Computes the steps from the run.
    pub fn new(steps: impl Fn(&Run) -> Vec<Step> + Send + Sync + 'static) -> Script {
        Script(Arc::new(steps))
    }

    /// The same steps for every run.
    pub fn steps(steps: Vec<Step>) -> Script {
        Script::new(move |_| steps.clone())
    }

    /// Builds and pushes these targets under the tags of the definition. With none, it builds all targets of the run.
    pub fn success(targets: &[&str]) -> Script {
        let targets = owned(targets);
        Script::new(move |run| success(run, &targets, false))
    }

    /// [`Script::success`] with every step from the cache.
    pub fn cached(targets: &[&str]) -> Script {
        let targets = owned(targets);
        Script::new(move |run| success(run, &targets, true))
    }

    /// A recorded stderr and the exit code that followed it.
    pub fn replay(stderr: &str, exit: i32) -> Script {
        Script::steps(vec![Step::Stderr(stderr.into()), Step::Exit(exit)])
    }

    /// A recorded success: stderr and metadata file.
    pub fn replay_with(stderr: &str, metadata: Value) -> Script {
        Script::steps(vec![Step::Stderr(stderr.into()), Step::Metadata(metadata), Step::Exit(0)])
    }

    /// Starts the targets of the run, then hangs.
    pub fn hang() -> Script {
        Script::new(|run| {
            let mut stream = Stream::default();
            for target in &run.targets {
                stream.begin(&run.prefix(target), target, false);
            }
            stream.steps.push(Step::Hang);
            stream.steps
        })
    }

    /// Hangs, and ignores TERM.
    pub fn ignores_term() -> Script {
        let hang = Script::hang();
        Script::new(move |run| [vec![Step::IgnoreTerm(true)], hang.steps_for(run)].concat())
    }

    /// The `RUN command` of `target` logs `output` and ends with `exit_code`, after the push of the other targets.
    pub fn fails_step(target: &str, command: &str, exit_code: i32, output: &str) -> Script {
        let (target, command, output) = (target.to_owned(), command.to_owned(), output.to_owned());
        Script::new(move |run| fails_step(run, &target, &command, exit_code, &output))
    }

    /// Loses BuildKit in the middle of a build: exit 1 with buildx's text.
    pub fn loses_builder() -> Script {
        Script::new(|run| {
            let mut stream = Stream::default();
            for target in &run.targets {
                stream.begin(&run.prefix(target), target, false);
            }
            stream.text(
                "ERROR: failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF",
            );
            stream.steps.push(Step::Exit(1));
            stream.steps
        })
    }

    /// Waits for [`crate::Builder::release`] first.
    pub fn held(self) -> Script {
        Script::new(move |run| [vec![Step::Hold], self.steps_for(run)].concat())
    }

    /// Runs these steps first.
    pub fn after(self, steps: Vec<Step>) -> Script {
        Script::new(move |run| [steps.clone(), self.steps_for(run)].concat())
    }

    pub(crate) fn steps_for(&self, run: &Run) -> Vec<Step> {
        (self.0)(run)
    }
}

/// The digest that [`Script::success`] reports for `target`.
pub fn image_digest(target: &str) -> String {
    digest(&["image", target])
}

fn success(run: &Run, targets: &[String], is_cached: bool) -> Vec<Step> {
    let targets = if targets.is_empty() { &run.targets } else { targets };
    let mut stream = Stream::default();
    for target in targets {
        stream.begin(&run.prefix(target), target, is_cached);
        stream.push(run, target);
    }
    stream.steps.push(Step::Metadata(metadata(run, targets)));
    stream.steps.push(Step::Exit(0));
    stream.steps
}

fn fails_step(run: &Run, failing: &str, command: &str, exit_code: i32, output: &str) -> Vec<Step> {
    let mut stream = Stream::default();
    for target in run.targets.iter().filter(|target| *target != failing) {
        stream.begin(&run.prefix(target), target, false);
        stream.push(run, target);
    }
    let prefix = run.prefix(failing);
    stream.from(&prefix, false);
    let error = format!("process \"/bin/sh -c {command}\" did not complete successfully: exit code: {exit_code}");
    let vertex = Vertex::new(&["step", failing, command], format!("[{prefix}2/2] RUN {command}"));
    stream.vertex(&vertex.started());
    stream.log(&vertex, output);
    stream.vertex(&vertex.failed(&error));
    let rule = "-".repeat(20);
    stream
        .text(&format!("Dockerfile:2\n{rule}\n   1 |     FROM base:1\n   2 | >>> RUN {command}\n   3 |     \n{rule}"));
    let at = if run.targets.len() > 1 { format!("target {failing}: ") } else { String::new() };
    stream.text(&format!("ERROR: {at}failed to solve: {error}"));
    stream.steps.push(Step::Exit(1));
    stream.steps
}

fn metadata(run: &Run, targets: &[String]) -> Value {
    let mut metadata = json!({});
    for target in targets {
        let digest = image_digest(target);
        metadata[target] = json!({
            "buildx.build.ref": format!("{0}/{0}0/{1}", run.builder, &digest[7..32]),
            "containerimage.descriptor":
                {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": 856},
            "containerimage.digest": digest,
            "image.name": run.tags(target).join(","),
        });
    }
    metadata
}

/// The steps so far.
#[derive(Default)]
struct Stream {
    steps: Vec<Step>,
}

impl Stream {
    /// From the load of the Dockerfile to the last step; `prefix` is empty or `target `.
    fn begin(&mut self, prefix: &str, target: &str, is_cached: bool) {
        let load = Vertex::new(&["load", target], format!("[{prefix}internal] load build definition from Dockerfile"));
        self.vertex(&load.started());
        self.vertex(&load.completed(false));
        let context = Vertex::new(&["context", target], format!("[{prefix}internal] load build context"));
        self.vertex(&context.started());
        let at = now();
        self.event(json!({"statuses": [{
            "id": "transferring context:", "vertex": context.digest, "name": "transferring", "current": 3456,
            "timestamp": at, "started": at, "completed": at,
        }]}));
        self.vertex(&context.completed(false));
        self.from(prefix, is_cached);
        let step = Vertex::new(&["step", target], format!("[{prefix}2/2] COPY . /src"));
        self.vertex(&step.started());
        self.vertex(&step.completed(is_cached));
    }

    fn from(&mut self, prefix: &str, is_cached: bool) {
        let from = Vertex::new(&["from"], format!("[{prefix}1/2] FROM base:1@{}", digest(&["base"])));
        self.vertex(&from.started());
        self.vertex(&from.completed(is_cached));
    }

    fn push(&mut self, run: &Run, target: &str) {
        let export = Vertex::new(&["export", target], format!("{}exporting to image", run.bracket(target)));
        self.vertex(&export.started());
        let at = now();
        for tag in run.tags(target) {
            self.event(json!({"statuses": [{
                "id": format!("pushing manifest for {tag}@{}", image_digest(target)), "vertex": export.digest,
                "current": 0, "timestamp": at, "started": at, "completed": at,
            }]}));
        }
        self.vertex(&export.completed(false));
    }

    fn vertex(&mut self, vertex: &Value) {
        self.event(json!({"vertexes": [vertex]}));
    }

    fn log(&mut self, vertex: &Vertex, output: &str) {
        let data = BASE64_STANDARD.encode(output);
        self.event(json!({"logs": [{"vertex": vertex.digest, "stream": 1, "data": data, "timestamp": now()}]}));
    }

    fn event(&mut self, event: Value) {
        self.text(&event.to_string());
    }

    fn text(&mut self, line: &str) {
        self.steps.push(Step::Stderr(format!("{line}\n")));
    }
}

struct Vertex {
    digest: String,
    name: String,
    started: String,
}

impl Vertex {
    fn new(identity: &[&str], name: String) -> Vertex {
        // Starts in the past, so that durations are not zero.
        let started = Timestamp::now() - SignedDuration::from_millis(40);
        Vertex { digest: digest(identity), name, started: started.to_string() }
    }

    fn started(&self) -> Value {
        json!({"digest": self.digest, "name": self.name, "started": self.started})
    }

    fn completed(&self, is_cached: bool) -> Value {
        let mut vertex = self.started();
        vertex["completed"] = now().into();
        if is_cached {
            vertex["cached"] = true.into();
        }
        vertex
    }

    fn failed(&self, error: &str) -> Value {
        let mut vertex = self.completed(false);
        vertex["error"] = error.into();
        vertex
    }
}

fn now() -> String {
    Timestamp::now().to_string()
}

fn owned(targets: &[&str]) -> Vec<String> {
    targets.iter().map(|target| (*target).to_owned()).collect()
}

fn digest(identity: &[&str]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(identity.join("\0"))))
}
