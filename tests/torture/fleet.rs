//! The workers. Each has its own relay and restarts after its end. All share one state directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex as Lock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Mutex, MutexGuard};

use crate::relay::{Relay, Span};

pub const LEASE_S: u64 = 3;
pub const CONCURRENCY: usize = 10;
/// The Redis user of the workers, with all rights.
pub const USER: [&str; 6] = ["worker", "on", ">secret", "~*", "&*", "+@all"];

pub struct Fleet {
    /// The lock to hold while breaking or killing a worker.
    workers: Vec<Mutex<Worker>>,
    pub relays: Vec<Relay>,
    /// The id of each worker's current or last process.
    pids: Vec<AtomicU32>,
    /// How many times a kill, freeze or cut hit a worker, each with its jobs in flight.
    pub n_crashes: AtomicUsize,
    /// How many times a worker was terminated.
    pub n_stops: AtomicUsize,
    /// How many times Redis refused UNLINK for a while.
    pub n_unlinks_refused: AtomicUsize,
    /// When Redis was down or refused something, or the machine stalled.
    outages: Lock<Vec<Span>>,
    home: tempfile::TempDir,
}

/// A sequence of worker processes under one name, each with its own log.
pub struct Worker {
    name: String,
    home: PathBuf,
    child: Child,
    has_ended: bool,
    n_starts: usize,
    /// When each process of this worker ended, by log.
    pub deaths: Vec<(PathBuf, SystemTime)>,
    /// When it was stopped and continued.
    pub freezes: Vec<(PathBuf, Span)>,
}

impl Fleet {
    /// Starts a worker for each relay, with these further settings.
    pub fn start(relays: Vec<Relay>, settings: &str) -> Self {
        let home = tempfile::Builder::new().prefix("sidebake-torture-").tempdir().unwrap();
        let workers: Vec<Worker> = (0..)
            .zip(&relays)
            .map(|(i, relay)| Worker::start(relay.port, format!("worker{i}"), home.path(), settings))
            .collect();
        Self {
            pids: workers.iter().map(|worker| AtomicU32::new(worker.child.id())).collect(),
            workers: workers.into_iter().map(Mutex::new).collect(),
            relays,
            n_crashes: AtomicUsize::new(0),
            n_stops: AtomicUsize::new(0),
            n_unlinks_refused: AtomicUsize::new(0),
            outages: Lock::default(),
            home,
        }
    }

    pub fn n_workers(&self) -> usize {
        self.workers.len()
    }

    pub async fn worker(&self, i: usize) -> MutexGuard<'_, Worker> {
        self.workers[i].lock().await
    }

    /// The worker that has this process.
    pub fn of_process(&self, pid: u32) -> Option<usize> {
        self.pids.iter().position(|its| its.load(Ordering::Relaxed) == pid)
    }

    pub fn pid(&self, i: usize) -> u32 {
        self.pids[i].load(Ordering::Relaxed)
    }

    /// Waits for the end of worker `i` and starts the next process.
    pub async fn again(&self, i: usize, worker: &mut Worker) {
        worker.ended().await;
        worker.child = spawn(&worker.home, &worker.name, worker.n_starts);
        worker.has_ended = false;
        worker.n_starts += 1;
        self.pids[i].store(worker.child.id(), Ordering::Relaxed);
    }

    pub fn was_out(&self, since: SystemTime, until: SystemTime) {
        self.outages.lock().unwrap().push((since, until));
    }

    /// When a worker could not read Redis, with the earliest first.
    pub fn outages(&self) -> Vec<Span> {
        let mut outages = self.outages.lock().unwrap().clone();
        outages.extend(self.relays.iter().flat_map(Relay::cuts));
        outages.sort();
        outages
    }

    /// The logs of workers that ended unexpectedly.
    pub async fn ended_by_itself(&self) -> Vec<PathBuf> {
        let mut ended = Vec::new();
        for worker in &self.workers {
            let mut worker = worker.lock().await;
            if worker.child.try_wait().unwrap().is_some() {
                worker.has_ended = true;
                ended.push(worker.log());
            }
        }
        ended
    }

    /// Terminates all workers and waits for their end.
    pub async fn end(&self) {
        for worker in &self.workers {
            worker.lock().await.signal(Signal::TERM);
        }
        for worker in &self.workers {
            worker.lock().await.ended().await;
        }
    }

    /// When processes ended, and when they were frozen.
    pub async fn records(&self) -> (Vec<(PathBuf, SystemTime)>, Vec<(PathBuf, Span)>) {
        let (mut deaths, mut freezes) = (Vec::new(), Vec::new());
        for worker in &self.workers {
            let worker = worker.lock().await;
            deaths.extend(worker.deaths.iter().cloned());
            freezes.extend(worker.freezes.iter().cloned());
        }
        (deaths, freezes)
    }

    pub async fn n_starts(&self) -> usize {
        let mut n_starts = 0;
        for worker in &self.workers {
            n_starts += worker.lock().await.n_starts;
        }
        n_starts
    }

    pub fn state_directory(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// Keeps the directory and returns its path.
    pub fn keep_logs(&mut self) -> PathBuf {
        self.home.disable_cleanup(true);
        self.home.path().to_owned()
    }

    /// The logs of all processes.
    pub fn logs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect()
    }
}

impl Worker {
    fn start(port: u16, name: String, home: &Path, settings: &str) -> Self {
        let config = format!(
            "{settings}concurrency = {CONCURRENCY}\nqueues = [\"default\", \"low\"]\nredis.url = \"redis://worker:secret@127.0.0.1:{port}/0\"\n\
             redis.timeout = \"1s\"\nstate.directory = \"{home}/state\"\nshutdown.timeout = \"1s\"\nlease.ttl = \"{LEASE_S}s\"\n\
             jobs = {{ probe = true, poll_interval = \"500ms\" }}\nsandbox.mode = \"off\"\nlog = {{ level = \"sidebake=debug\", format = \"json\" }}\n\
             github = {{ app_id = \"1\", private_key_file = \"{home}/app.pem\" }}\n\
             builders.default = {{ driver = \"docker\" }}\n",
            home = home.display(),
        );
        std::fs::write(home.join(format!("{name}.toml")), config).unwrap();
        let child = spawn(home, &name, 0);
        Self {
            name,
            home: home.to_owned(),
            child,
            has_ended: false,
            n_starts: 1,
            deaths: Vec::new(),
            freezes: Vec::new(),
        }
    }

    /// The log of the current process.
    pub fn log(&self) -> PathBuf {
        log(&self.home, &self.name, self.n_starts - 1)
    }

    pub fn signal(&self, signal: Signal) {
        // Sends nothing to a process that was waited for, because another process may have its id.
        if !self.has_ended {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    async fn ended(&mut self) {
        while self.child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.has_ended = true;
        self.deaths.push((self.log(), SystemTime::now()));
    }
}

fn log(home: &Path, name: &str, n: usize) -> PathBuf {
    home.join(format!("{name}-{n}.log"))
}

fn spawn(home: &Path, name: &str, n: usize) -> Child {
    let log = std::fs::File::create(log(home, name, n)).unwrap();
    let mut sidebake = world::sidebake(env!("CARGO_BIN_EXE_sidebake"));
    sidebake.args(["run", "--config"]).arg(home.join(format!("{name}.toml")));
    sidebake.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
