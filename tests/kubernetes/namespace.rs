//! The namespace of one test, with kubectl and the audit log.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use world::wait_for_within;

use crate::engine::{Engine, engine};
use crate::harness::{Harness, PATIENCE};

pub struct Namespace {
    pub name: String,
    engine: &'static Engine,
    _turn: Turn,
}

/// A test that stops parts of the cluster runs alone.
enum Turn {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

static TURNS: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

impl Namespace {
    /// A new namespace, named after the harness.
    pub fn of(harness: &Harness) -> Self {
        Self::with(harness, Turn::Shared { _guard: wait(TURNS.clone().read_owned()) })
    }

    /// A new namespace, while no other test runs.
    pub fn alone(harness: &Harness) -> Self {
        Self::with(harness, Turn::Alone { _guard: wait(TURNS.clone().write_owned()) })
    }

    /// Another namespace of the same harness.
    pub fn beside(harness: &Harness, name: &str) -> Self {
        Self::named(format!("{}-{name}", harness.nonce), Turn::Shared { _guard: wait(TURNS.clone().read_owned()) })
    }

    fn with(harness: &Harness, turn: Turn) -> Self {
        Self::named(harness.nonce.clone(), turn)
    }

    fn named(name: String, turn: Turn) -> Self {
        let namespace = Self { name, engine: engine(), _turn: turn };
        namespace.kubectl_anywhere(&["create", "namespace", &namespace.name]);
        namespace
    }

    /// The settings of a builder in this namespace, with `more` added.
    pub fn builder(&self, name: &str, more: &str) -> String {
        self.builder_by(name, Path::new(self.engine.told("KUBECONFIG")), more)
    }

    /// The same with another kubeconfig.
    pub fn builder_by(&self, name: &str, kubeconfig: &Path, more: &str) -> String {
        format!(
            "[builders.{name}]\ndriver = \"kubernetes\"\nkubeconfig = \"{}\"\nnamespace = \"{}\"\nimage = \"{}\"\n\
             grace_period = \"1s\"\nsticky_path = \"/tmp/sidebake-sticky/{}/{{repository}}\"\n{more}\n",
            kubeconfig.display(),
            self.name,
            self.engine.told("BUILDKIT_IMAGE"),
            self.name,
        )
    }

    /// Runs kubectl in this namespace and returns its output.
    ///
    /// # Panics
    /// When kubectl fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_anywhere(&[&["-n", &self.name], arguments].concat())
    }

    fn kubectl_anywhere(&self, arguments: &[&str]) -> String {
        let output = self.kubectl_command(arguments, "");
        assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) {
        let output = self.kubectl_command(&["-n", &self.name, "apply", "-f", "-"], manifest);
        assert!(output.status.success(), "{}\n{manifest}", String::from_utf8_lossy(&output.stderr));
    }

    /// Applies a manifest whose documents name their namespaces.
    pub fn apply_anywhere(&self, manifest: &str) {
        let output = self.kubectl_command(&["apply", "-f", "-"], manifest);
        assert!(output.status.success(), "{}\n{manifest}", String::from_utf8_lossy(&output.stderr));
    }

    fn kubectl_command(&self, arguments: &[&str], input: &str) -> Output {
        let mut kubectl = Command::new(self.engine.told("KUBECTL"));
        kubectl.env("KUBECONFIG", self.engine.told("KUBECONFIG")).args(arguments);
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut kubectl = kubectl.spawn().unwrap();
        kubectl.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        kubectl.wait_with_output().unwrap()
    }

    /// Evicts a pod, as draining its node does.
    pub fn evict(&self, pod: &str, options: Value) {
        let metadata = json!({"name": pod, "namespace": self.name});
        let eviction =
            json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": metadata, "deleteOptions": options});
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", self.name);
        let output = self.kubectl_command(&["create", "--raw", &path, "-f", "-"], &eviction.to_string());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a command where containers have their mounts.
    pub fn on_node(&self, command: &[&str]) {
        let node = std::fs::read_to_string(Path::new(self.engine.told("LAB_PID")).join("node")).unwrap();
        let mut nsenter = Command::new("nsenter");
        let ended = nsenter.args(["--mount", "--target", node.trim()]).args(command).output().unwrap();
        assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    /// Persistent volumes for a builder, in the harness's directory. Returns their storage class.
    pub fn offer_disks(&self, n: usize, builder: &str, harness: &Harness) -> String {
        let class = format!("{}-{builder}", self.name);
        self.apply(&format!(
            "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {class}, labels: {{sidebake-test: {}}}}}\n\
             provisioner: kubernetes.io/no-provisioner\nallowVolumeExpansion: true\n",
            self.name,
        ));
        for number in 0..n {
            let path = harness.home.path().join(format!("{builder}-{number}"));
            std::fs::create_dir_all(&path).unwrap();
            self.apply(&format!(
                "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {class}-{number}, labels: {{sidebake-test: {name}}}}}\nspec:\n  \
                 storageClassName: {class}\n  capacity: {{storage: 2Gi}}\n  accessModes: [ReadWriteOnce]\n  \
                 persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: {path}}}\n",
                name = self.name,
                path = path.display(),
            ));
        }
        class
    }

    /// Whether every node is ready.
    pub fn is_node_ready(&self) -> bool {
        let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        self.kubectl_anywhere(&["get", "nodes", "-o", path]).split_whitespace().all(|status| status == "True")
    }

    /// The names of the running pods.
    pub fn pods(&self) -> Vec<String> {
        let pods = self.json(&["get", "pods", "--field-selector", "status.phase=Running"]);
        let pods = pods["items"].as_array().unwrap();
        pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The pods of all exec connections, in order, from the API server's audit log.
    pub fn execs(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.engine.told("AUDIT")).unwrap();
        let here = format!("\"namespace\":\"{}\"", self.name);
        let lines = log.lines().filter(|line| line.contains(&here) && line.contains("\"subresource\":\"exec\""));
        let entries = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let started = entries.filter(|entry| entry["stage"] == "ResponseStarted");
        started.filter_map(|entry| Some(entry["objectRef"]["name"].as_str()?.to_owned())).collect()
    }

    /// A kubeconfig with another address of the API server.
    pub fn kubeconfig_via(&self, address: &str, harness: &Harness) -> PathBuf {
        let text = std::fs::read_to_string(self.engine.told("KUBECONFIG")).unwrap();
        let text = text.replace(&format!("https://{}", self.engine.told("API")), &format!("https://{address}"));
        assert!(text.contains(address), "{text}");
        let path = harness.home.path().join("relayed.conf");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Waits for a condition of the cluster.
    pub async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        wait_for_within(PATIENCE, what, condition).await;
    }

    /// Acts on a part of the cluster, such as `apiserver`: `freeze`, `thaw`, `restart`. The test must run alone.
    pub fn part(&self, verb: &str, part: &str) {
        assert!(matches!(self._turn, Turn::Alone { .. }), "other tests use the cluster");
        let output = crate::engine::script(&[verb, part]);
        assert!(output.status.success(), "{}", crate::harness::text(&output));
    }
}

fn wait<T>(turn: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(turn))
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", &self.name, "--wait=false"];
        self.kubectl_command(&arguments, "");
        // Deletes the namespace, to free its pods' resources for the next test.
        let _ = self.kubectl_command(&["-n", &self.name, "delete", "pods", "--all", "--grace-period=0", "--force"], "");
        let disks = format!("sidebake-test={}", self.name);
        let _ = self
            .kubectl_command(&["delete", "persistentvolumes,storageclasses", "--selector", &disks, "--wait=false"], "");
        let _ = std::fs::remove_dir_all(format!("/tmp/sidebake-sticky/{}", self.name));
    }
}
