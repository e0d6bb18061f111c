//! The cluster. `tests/kubernetes/cluster` makes it once for all tests.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;

pub struct Engine {
    /// The registry. Pods and this machine use the same name.
    pub registry: String,
    /// An image with a shell and its tools, as a reference to pull.
    pub base_image: String,
    /// All output of the script.
    told: BTreeMap<String, String>,
    /// Held open until this process ends; see [`stop_with_this_process`].
    _leash: Option<ChildStdin>,
}

/// The cluster. Starts it when it does not run, and then stops it at the end.
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let is_ours = !script(&["status"]).status.success();
        let started = script(&["up"]);
        assert!(started.status.success(), "no cluster: {}", said(&started));
        Engine::read(&String::from_utf8_lossy(&started.stdout), is_ours.then(stop_with_this_process))
    })
}

impl Engine {
    /// Reads the script's shell assignments.
    fn read(assignments: &str, leash: Option<ChildStdin>) -> Self {
        let pairs = assignments.lines().filter_map(|line| line.split_once('='));
        let told: BTreeMap<String, String> =
            pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect();
        let value = |name: &str| told.get(name).unwrap_or_else(|| panic!("the cluster prints no {name}")).clone();
        Self { registry: value("REGISTRY"), base_image: value("BASE_IMAGE"), _leash: leash, told }
    }

    /// One of the script's assignments.
    pub fn told(&self, name: &str) -> &str {
        self.told.get(name).unwrap_or_else(|| panic!("the cluster prints no {name}"))
    }

    /// Each test has its own builders.
    pub fn builder(&self) -> String {
        String::new()
    }

    pub fn environment(&self) -> [(&str, &str); 1] {
        [("KUBECONFIG", self.told("KUBECONFIG"))]
    }

    pub fn registry_port(&self) -> &str {
        self.registry.rsplit(':').next().unwrap()
    }
}

/// Runs `tests/kubernetes/cluster`.
pub fn script(arguments: &[&str]) -> Output {
    Command::new(path()).args(arguments).stdin(Stdio::null()).output().expect("tests/kubernetes/cluster can be run")
}

fn path() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "kubernetes", "cluster"].iter().collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Starts a shell that waits for the end of a pipe. The pipe ends with this process, however it ends.
fn stop_with_this_process() -> ChildStdin {
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat; exec \"$0\" down"]).arg(path());
    // In its own process group, because Ctrl-C would otherwise end it first.
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    shell.spawn().unwrap().stdin.take().unwrap()
}
