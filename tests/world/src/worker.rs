//! The processes of the product in the directory of one test: workers, with their logs, and the other commands.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::wait_for_within;

/// The directory of one test: the configuration, state directory and logs of its workers.
pub struct Home {
    directory: tempfile::TempDir,
    binary: &'static str,
    patience: Duration,
}

/// A worker process. Dropping it kills the process.
pub struct Worker {
    child: Child,
    log: PathBuf,
    patience: Duration,
}

impl Home {
    /// A new directory whose name begins with `prefix`. A test fails when a condition takes longer than `patience`.
    pub fn new(binary: &'static str, prefix: &str, patience: Duration) -> Self {
        let directory = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
        Self { directory, binary, patience }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes `sidebake.toml` and returns its path.
    pub fn write_config(&self, text: &str) -> PathBuf {
        let path = self.path().join("sidebake.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The binary, without variables of the test's environment that could be settings.
    pub fn sidebake(&self) -> Command {
        sidebake(self.binary)
    }

    /// Starts a worker with this configuration.
    pub fn worker<V: AsRef<OsStr>>(&self, config: &Path, arguments: &[&str], variables: &[(&str, V)]) -> Worker {
        let mut command = self.sidebake();
        command.args(["run", "--config"]).arg(config).args(arguments);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        self.spawn(command)
    }

    /// Starts a command that becomes a worker, and logs its output in this directory.
    pub fn spawn(&self, mut command: Command) -> Worker {
        let log = tempfile::Builder::new().prefix("worker-").suffix(".log").tempfile_in(self.path()).unwrap();
        let (out, log) = log.keep().unwrap();
        if command.get_envs().all(|(name, _)| name != "SIDEBAKE__LOG__LEVEL") {
            command.env("SIDEBAKE__LOG__LEVEL", "sidebake=trace,info");
        }
        let child = command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Worker { child, log, patience: self.patience }
    }

    /// Runs another command of the binary and waits for it.
    pub fn run(&self, arguments: &[&str], config: &Path, variables: &[(&str, &str)]) -> Output {
        let mut command = self.sidebake();
        command.args(arguments).arg("--config").arg(config).envs(variables.iter().copied());
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Waits for a condition.
    ///
    /// # Panics
    /// After the test's patience, with the logs of all its workers.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let started = Instant::now();
        while !condition().await {
            assert!(started.elapsed() < self.patience, "timed out waiting until {what}; the log:\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The logs of all workers of this test.
    pub fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.path()).unwrap().flatten();
        let logs = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"));
        logs.map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default()).collect()
    }

    /// The lines with this event in the logs of all workers.
    pub fn logged(&self, event: &str) -> Vec<String> {
        lines_of(&self.logs(), event)
    }

    /// The directories of jobs that still exist.
    pub fn job_directories(&self) -> Vec<PathBuf> {
        let runs = std::fs::read_dir(self.path().join("state/run")).into_iter().flatten().flatten();
        runs.filter(|run| run.path().is_dir())
            .flat_map(|run| std::fs::read_dir(run.path()).into_iter().flatten().flatten())
            .map(|job| job.path())
            .collect()
    }
}

impl Worker {
    /// Id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The peak memory of the worker, in kB.
    pub fn peak_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The worker and all its descendants.
    pub fn processes(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::from([self.pid()]);
        loop {
            let before = found.len();
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
                let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok());
                if parent.is_some_and(|parent| found.contains(&parent)) {
                    found.insert(id);
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }

    /// The descendants that fetch or check out.
    pub fn source_children(&self) -> Vec<u32> {
        let command_line = |id: &u32| std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        self.processes().into_iter().filter(|id| command_line(id).contains("source-child")).collect()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Sends TERM, as Kubernetes does, and waits for the end.
    pub async fn terminate(&mut self) {
        self.signal("TERM");
        self.ended().await;
    }

    /// Sends KILL, as the kernel's out-of-memory killer does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end of the process and returns its exit status.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        wait_for_within(self.patience, "the worker to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }

    /// The log of this worker.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The lines of the log with this event.
    pub fn logged(&self, event: &str) -> Vec<String> {
        lines_of(&self.log(), event)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary, without variables of the test's environment that could be settings.
pub fn sidebake(binary: &str) -> Command {
    let mut command = Command::new(binary);
    command.env_remove("REDIS_URL").env_remove("REDIS_PROVIDER").env_remove("DOCKER_HOST");
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_ascii_lowercase());
    }
    command
}

/// The same as on a kernel with an older Landlock; see `older-kernel`.
pub fn sidebake_on(kernel: &str, binary: &str) -> Command {
    let mut command = sidebake(Path::new(binary).with_file_name("older-kernel").to_str().unwrap());
    command.args([kernel, binary]);
    command
}

fn lines_of(log: &str, event: &str) -> Vec<String> {
    let field = format!("event=\"{event}\"");
    log.lines().filter(|line| line.contains(&field)).map(str::to_owned).collect()
}

/// Both streams of a command's output.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
