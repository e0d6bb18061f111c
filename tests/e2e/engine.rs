//! The real engine with its registry and base image. `docker/engine` starts it once for all tests.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;

pub struct Engine {
    /// Such as `unix:///…/docker.sock`.
    pub docker_host: String,
    /// `127.0.0.1:PORT`
    pub registry: String,
    /// An image with a shell and its tools, as a reference to pull.
    pub base_image: String,
    /// Held open until this process ends; see [`stop_with_this_process`].
    _leash: Option<ChildStdin>,
}

/// The engine. Starts it when it does not run, and then stops it at the end.
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let is_ours = !script("status").status.success();
        let started = script("start");
        assert!(started.status.success(), "no engine. {}", hint(&started));
        let leash = is_ours.then(stop_with_this_process);
        let status = script("status");
        assert!(status.status.success(), "the engine has stopped. {}", hint(&status));
        let engine = Engine::read(&String::from_utf8_lossy(&status.stdout), leash);
        engine.warm();
        engine
    })
}

impl Engine {
    /// Reads the script's shell assignments.
    fn read(assignments: &str, leash: Option<ChildStdin>) -> Self {
        let value = |name: &str| {
            let found = assignments.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("docker/engine prints no {name}: {assignments}")).to_owned()
        };
        Self {
            docker_host: value("DOCKER_HOST"),
            registry: value("REGISTRY"),
            base_image: value("BASE_IMAGE"),
            _leash: leash,
        }
    }

    /// Builds the base image alone. On a new engine, fewer of the builds that overlap on it are cached, and tests expect that they are.
    fn warm(&self) {
        let mut buildx = Command::new(&world::buildx().path);
        buildx.args(["build", "--output", "type=cacheonly", "-"]).envs(self.environment());
        let mut build = buildx.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        writeln!(build.stdin.take().unwrap(), "FROM {}", self.base_image).unwrap();
        let ended = build.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }

    /// Settings of `builders.default`, unless a test has other ones.
    pub fn builder(&self) -> String {
        format!("builders.default = {{ driver = \"docker\", endpoint = \"{}\" }}", self.docker_host)
    }

    /// The environment that connects a bare docker-buildx to the engine.
    pub fn environment(&self) -> [(&str, &str); 1] {
        [("DOCKER_HOST", &self.docker_host)]
    }

    pub fn registry_port(&self) -> &str {
        self.registry.rsplit(':').next().unwrap()
    }
}

fn script(verb: &str) -> Output {
    Command::new(path()).arg(verb).stdin(Stdio::null()).output().expect("docker/engine can be run")
}

fn path() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "docker", "engine"].iter().collect()
}

fn hint(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    format!("docker/engine said: {}\nInstall what it needs: docker/install", String::from_utf8_lossy(&said).trim())
}

/// Starts a shell that waits for the end of a pipe. The pipe ends with this process, however it ends.
fn stop_with_this_process() -> ChildStdin {
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat; exec \"$0\" stop"]).arg(path());
    // In its own process group, because Ctrl-C would otherwise end it first.
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    shell.spawn().unwrap().stdin.take().unwrap()
}
