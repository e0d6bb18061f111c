//! The workers: each behind a relay of its own, started again when it has ended.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use crate::relay::{Relay, Rewrite};

pub const LEASE_S: u64 = 3;

pub struct Fleet {
    pub workers: Vec<Worker>,
    /// When Redis was not there or did not answer one of the workers, or the machine stood still.
    pub outages: Vec<(SystemTime, SystemTime)>,
    home: tempfile::TempDir,
}

/// One worker after another under the same name, each with a log of its own.
pub struct Worker {
    pub relay: Relay,
    name: String,
    home: PathBuf,
    child: Child,
    n_starts: usize,
    /// When processes of this worker were killed, by the number of their log.
    pub deaths: Vec<(PathBuf, SystemTime)>,
    /// When it was stopped and went on again.
    pub freezes: Vec<(PathBuf, SystemTime, SystemTime)>,
}

impl Fleet {
    pub async fn start(n: usize, redis_port: u16, rewrite: Option<&Rewrite>) -> Self {
        let home = tempfile::Builder::new().prefix("sidebake-torture-").tempdir().unwrap();
        let mut workers = Vec::new();
        for i in 0..n {
            let relay = Relay::to(redis_port, rewrite.cloned()).await;
            workers.push(Worker::start(relay, format!("worker{i}"), home.path()));
        }
        Self { workers, outages: Vec::new(), home }
    }

    /// Leaves the directory there, and names it.
    pub fn keep_logs(&mut self) -> PathBuf {
        self.home.disable_cleanup(true);
        self.home.path().to_owned()
    }

    /// Every log of every process.
    pub fn logs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect()
    }
}

impl Worker {
    fn start(relay: Relay, name: String, home: &Path) -> Self {
        let config = format!(
            "concurrency = 10\nqueues = [\"default\", \"low\"]\nredis.url = \"redis://127.0.0.1:{}/0\"\n\
             redis.timeout = \"1s\"\nstate.directory = \"{}/{name}\"\nshutdown.timeout = \"1s\"\nlease.ttl = \"{LEASE_S}s\"\n\
             jobs = {{ probe = true, poll_interval = \"500ms\" }}\nsandbox.mode = \"off\"\nlog = {{ level = \"sidebake=debug\", format = \"json\" }}\n\
             github = {{ app_id = \"1\", private_key_file = \"{}/app.pem\" }}\n\
             builders.default = {{ driver = \"docker\" }}\n",
            relay.port,
            home.display(),
            home.display(),
        );
        std::fs::write(home.join(format!("{name}.toml")), config).unwrap();
        let child = spawn(home, &name, 0);
        Self { relay, name, home: home.to_owned(), child, n_starts: 1, deaths: Vec::new(), freezes: Vec::new() }
    }

    pub fn log(&self) -> PathBuf {
        log(&self.home, &self.name, self.n_starts - 1)
    }

    pub fn signal(&self, name: &str) {
        let _ = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
    }

    /// Waits for its end and starts the next one.
    pub async fn again(&mut self) {
        while self.child.try_wait().unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        self.deaths.push((self.log(), SystemTime::now()));
        self.child = spawn(&self.home, &self.name, self.n_starts);
        self.n_starts += 1;
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

fn log(home: &Path, name: &str, n: usize) -> PathBuf {
    home.join(format!("{name}-{n}.log"))
}

fn spawn(home: &Path, name: &str, n: usize) -> Child {
    let log = std::fs::File::create(log(home, name, n)).unwrap();
    let mut sidebake = Command::new(env!("CARGO_BIN_EXE_sidebake"));
    sidebake.args(["run", "--config"]).arg(home.join(format!("{name}.toml")));
    sidebake.env_remove("REDIS_URL").env_remove("REDIS_PROVIDER");
    sidebake.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal("CONT");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
