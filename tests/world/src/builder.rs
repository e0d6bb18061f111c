//! The builder's side of a scripted bake: a listening port that the `remote` driver of `docker-buildx` connects to.
//!
//! The worker gives its child an empty environment and one TCP port, so a script can reach the child only through that
//! port. The child sends one JSON line with its request ([`Run`]). The builder answers with JSON lines ([`Step`]). The
//! child then sends reports and its exit code.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::script::{Script, Step};

/// A running builder. Dropping it ends the connections, and with them the scripted children.
pub struct Builder {
    port: u16,
    shared: Arc<Shared>,
}

/// One bake that reached the builder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The whole command line, with the program first.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The working directory, which is the sticky key.
    pub cwd: PathBuf,
    /// The name of the builder.
    pub builder: String,
    /// The text of the definition that it read.
    pub text: String,
    /// The definition as `--print` would show it.
    pub definition: Value,
    /// The targets that it builds, with groups resolved.
    pub targets: Vec<String>,
    /// `config.json` in `DOCKER_CONFIG`, if there is one.
    pub docker_config: Option<String>,
    /// The argument of `--metadata-file`.
    pub metadata_file: Option<PathBuf>,
    /// The pid of the child.
    pub pid: u32,
    /// What the reporting steps found, in order. Complete once the run has ended.
    #[serde(skip)]
    pub reports: Vec<Report>,
    /// The exit code that the child announced; none when it was killed.
    #[serde(skip)]
    pub exit: Option<i32>,
    /// When the child connected.
    #[serde(skip, default = "Instant::now")]
    pub started: Instant,
    /// When its connection ended.
    #[serde(skip)]
    pub ended: Option<Instant>,
}

/// What a step found inside the sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The step that the builder sent.
    pub step: Value,
    /// What the step read, or the pid it started; none when it failed.
    pub found: Option<String>,
    /// The error's text.
    pub error: Option<String>,
    /// The error's number: 13 is EACCES, 1 is EPERM.
    pub errno: Option<i32>,
}

/// A line from the child after the first.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    Report(Report),
    Exit(i32),
}

struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

struct State {
    default: Script,
    queue: VecDeque<Script>,
    runs: Vec<Run>,
    connections: Vec<TcpStream>,
    n_released: usize,
    most_at_once: usize,
    is_over: bool,
}

impl Builder {
    /// A builder on a free port that builds every request.
    pub fn start() -> Builder {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            default: Script::success(&[]),
            queue: VecDeque::new(),
            runs: Vec::new(),
            connections: Vec::new(),
            n_released: 0,
            most_at_once: 0,
            is_over: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), released: Condvar::new() });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if accepting.state().is_over {
                    break;
                }
                let shared = accepting.clone();
                std::thread::spawn(move || shared.converse(connection));
            }
        });
        Builder { port, shared }
    }

    /// The endpoint for `docker-buildx create --driver remote`: `tcp://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// The port of the endpoint, which the sandbox must allow.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Adds a script for one run to the end of the queue.
    pub fn script(&self, script: Script) {
        self.state().queue.push_back(script);
    }

    /// Sets the script of every run that finds none in the queue.
    pub fn script_for_the_rest(&self, script: Script) {
        self.state().default = script;
    }

    /// Every run so far, in the order of their connections.
    pub fn runs(&self) -> Vec<Run> {
        self.state().runs.clone()
    }

    /// How many runs are connected now.
    pub fn running(&self) -> usize {
        self.state().running()
    }

    /// The highest number of runs connected at the same time.
    pub fn most_at_once(&self) -> usize {
        self.state().most_at_once
    }

    /// How many runs have ended, on their own or killed.
    pub fn ended(&self) -> usize {
        let state = self.state();
        state.runs.len() - state.running()
    }

    /// Every run so far, once so many have ended. Only then are their reports and their ends known: the builder can learn of them
    /// after the worker has settled the job, and after the worker itself has gone.
    ///
    /// # Panics
    /// After 10 s without these ends.
    pub async fn ended_runs(&self, n: usize) -> Vec<Run> {
        crate::wait_for("the builder to see its runs end", || self.ended() >= n).await;
        self.runs()
    }

    /// Lets one more held run continue. A run that is held later finds the release too.
    pub fn release(&self) {
        self.state().n_released += 1;
        self.shared.released.notify_all();
    }

    /// Ends every connection, as when the builder's pod is lost. Serves new ones.
    pub fn drop_connections(&self) {
        for connection in self.state().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        self.state().is_over = true;
        self.shared.released.notify_all();
        self.drop_connections();
        // Wakes the accepting thread, so that it stops and closes the port.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Run {
    /// The tags of a target in the definition.
    pub fn tags(&self, target: &str) -> Vec<String> {
        let tags = self.definition["target"][target]["tags"].as_array();
        tags.into_iter().flatten().filter_map(|tag| tag.as_str().map(str::to_owned)).collect()
    }

    /// Whether the connection ended without an exit code, because the child was killed.
    pub fn was_killed(&self) -> bool {
        self.ended.is_some() && self.exit.is_none()
    }

    /// `target `, which vertices carry when there are several targets.
    pub(crate) fn prefix(&self, target: &str) -> String {
        if self.targets.len() > 1 { format!("{target} ") } else { String::new() }
    }

    /// `[target] `, under the same condition.
    pub(crate) fn bracket(&self, target: &str) -> String {
        if self.targets.len() > 1 { format!("[{target}] ") } else { String::new() }
    }
}

impl State {
    fn running(&self) -> usize {
        self.runs.iter().filter(|run| run.ended.is_none()).count()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn converse(self: Arc<Shared>, connection: TcpStream) {
        let mut lines = BufReader::new(connection.try_clone().unwrap()).lines();
        // A connection that sends nothing probes the port and is not a run.
        let Some(Ok(first)) = lines.next() else {
            return;
        };
        let run: Run = match serde_json::from_str(&first) {
            Ok(run) => run,
            Err(error) => return eprintln!("not a scripted docker-buildx: {error}: {first:?}"),
        };
        let (n, script) = self.begin(run.clone(), &connection);
        let sender = self.clone();
        std::thread::spawn(move || sender.send(connection, script.steps_for(&run), n));
        for line in lines.map_while(Result::ok) {
            self.hear(n, &line);
        }
        self.state().runs[n].ended = Some(Instant::now());
        self.released.notify_all();
    }

    fn begin(&self, run: Run, connection: &TcpStream) -> (usize, Script) {
        let mut state = self.state();
        state.runs.push(run);
        state.connections.push(connection.try_clone().unwrap());
        state.most_at_once = state.most_at_once.max(state.running());
        let script = state.queue.pop_front().unwrap_or_else(|| state.default.clone());
        (state.runs.len() - 1, script)
    }

    fn send(&self, mut connection: TcpStream, steps: Vec<Step>, n: usize) {
        for step in steps {
            if matches!(step, Step::Hold) {
                self.wait_for_release(n);
                continue;
            }
            let line = serde_json::to_string(&step).unwrap() + "\n";
            if connection.write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn wait_for_release(&self, n: usize) {
        let mut state = self.state();
        while state.n_released == 0 && state.runs[n].ended.is_none() && !state.is_over {
            state = self.released.wait(state).unwrap();
        }
        // A run that ended while held leaves the release to another.
        if state.runs[n].ended.is_none() {
            state.n_released = state.n_released.saturating_sub(1);
        }
    }

    fn hear(&self, n: usize, line: &str) {
        let run = &mut self.state().runs[n];
        match serde_json::from_str(line) {
            Ok(Word::Report(report)) => run.reports.push(report),
            Ok(Word::Exit(code)) => run.exit = Some(code),
            // KILL can cut a line in the middle.
            Err(error) => eprintln!("scripted docker-buildx said {line:?}: {error}"),
        }
    }
}

/// Installs the scripted `docker-buildx` into `dir` and returns its path.
///
/// # Panics
/// When it has not been built; the message says how.
pub fn install(dir: &Path) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let mut dirs = test.ancestors().skip(1).take(2);
    let built = dirs.find_map(|dir| Some(dir.join("scripted-docker-buildx")).filter(|path| path.is_file()));
    let built =
        built.unwrap_or_else(|| panic!("no scripted-docker-buildx near {}; run: cargo build -p world", test.display()));
    let placed = dir.join("docker-buildx");
    // Never copies it in this process: a child that another thread forks meanwhile would inherit the open file, and
    // executing the program would fail with "Text file busy".
    if std::fs::hard_link(&built, &placed).is_err() {
        let copied = Command::new("cp").args([&built, &placed]).status().unwrap();
        assert!(copied.success(), "cannot copy {} to {}", built.display(), placed.display());
    }
    placed
}
