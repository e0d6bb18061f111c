//! The binary: chooses its role, and turns signals into values.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;
use rustix::process::{Resource, getrlimit};
use sidebake::cli::Cli;
use sidebake::reason::Cause;
use sidebake::{sandbox, source, worker::Shutdown};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// An idle worker has about twenty open files, and each build some more.
const LEAST_OPEN_FILES: u64 = 64;

fn main() -> ExitCode {
    // A child is this binary again. It has one thread, and must not get a runtime before it is sandboxed.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(verb) if verb == sandbox::LAUNCH => return launched(arguments),
        Some(verb) if verb == sandbox::TRIAL => return tried(arguments),
        Some(verb) if verb == source::VERB => return source::child_main(arguments),
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // As in Sidekiq, 1 for everything that prevents the start.
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(status) => status,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    check_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    runtime.context("failed to start the runtime")?.block_on(async {
        let shutdown = Shutdown::default();
        let signals = Signals::listen(&cli).context("failed to listen to signals")?;
        let signals = tokio::spawn(signals.obey(shutdown.clone()));
        let status = cli.run(shutdown).await;
        signals.abort();
        status
    })
}

/// With fewer, threads of the runtime or of a library panic, and connections fail.
fn check_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    ensure!(
        limit >= LEAST_OPEN_FILES,
        "the limit of open files is {limit}; set it to {LEAST_OPEN_FILES} or more (ulimit -n, or LimitNOFILE of systemd)"
    );
    Ok(())
}

fn launched(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let Err(error) = sandbox::launch(arguments);
    complain_as(sandbox::LAUNCH, &error.to_string());
    ExitCode::from(sandbox::NOT_LAUNCHED)
}

fn tried(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    match sandbox::trial(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain_as(sandbox::TRIAL, &error.to_string());
            ExitCode::from(error.status())
        }
    }
}

/// The process's signals, as in Sidekiq. TSTP: quiet. TERM, INT: stop by the deadline; a second one: now. TTIN: log what runs.
/// HUP: read the level of the log again.
///
/// INT comes from the person at the terminal, and so cancels the build that runs there. For a worker it is a TERM.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quiet: Signal,
    show: Signal,
    reload: Option<Signal>,
}

impl Signals {
    fn listen(cli: &Cli) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quiet: signal(SignalKind::from_raw(libc::SIGTSTP))?,
            // By default, the signal stops the process.
            show: signal(SignalKind::from_raw(libc::SIGTTIN))?,
            reload: cli.obeys_hang_up().then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    async fn obey(mut self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => shutdown.stop(Cause::Shutdown),
                _ = self.interrupt.recv() => shutdown.stop(Cause::Cancelled),
                _ = self.quiet.recv() => shutdown.quiet.cancel(),
                _ = self.show.recv() => shutdown.show.notify_one(),
                Some(()) = received(self.reload.as_mut()) => shutdown.reload.notify_one(),
            }
        }
    }
}

/// The next one of a signal that may not be listened to.
async fn received(signal: Option<&mut Signal>) -> Option<()> {
    signal?.recv().await
}

fn complain(message: &str) {
    complain_as("sidebake", message);
}

#[expect(clippy::print_stderr, reason = "the log may not have started")]
fn complain_as(name: &str, message: &str) {
    eprintln!("{name}: {message}");
}
