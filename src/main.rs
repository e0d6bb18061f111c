//! The binary: decides which of its roles it is in, and makes signals into values.

use std::process::ExitCode;

use clap::Parser;
use sidebake::cli::{Cli, Outcome};
use sidebake::{sandbox, source, worker::Shutdown};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    // A child of ours is this binary again. It has one thread and must not get a runtime before it is restricted.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(verb) if verb == sandbox::LAUNCH => return launched(arguments),
        Some(verb) if verb == source::VERB => return source::child_main(arguments),
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // As Sidekiq: 1 for whatever keeps it from starting.
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::default();
        let signals = tokio::spawn(obey_signals(shutdown.clone()));
        let outcome = cli.run(shutdown).await;
        signals.abort();
        outcome
    })
}

fn launched(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let Err(error) = sandbox::launch(arguments);
    complain_as(sandbox::LAUNCH, &error.to_string());
    ExitCode::FAILURE
}

/// TSTP: quiet. TERM, INT: stop by the deadline; again: now. TTIN: say what runs. As Sidekiq.
async fn obey_signals(shutdown: Shutdown) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quiet = signal(SignalKind::from_raw(libc::SIGTSTP))?;
    // Left alone, the signal would stop the process.
    let mut threads = signal(SignalKind::from_raw(libc::SIGTTIN))?;
    loop {
        tokio::select! {
            _ = terminate.recv() => shutdown.stop(),
            _ = interrupt.recv() => shutdown.stop(),
            _ = quiet.recv() => shutdown.quiet.cancel(),
            _ = threads.recv() => shutdown.show.notify_one(),
        }
    }
}

fn complain(message: &str) {
    complain_as("sidebake", message);
}

#[expect(clippy::print_stderr, reason = "there may be no log yet")]
fn complain_as(name: &str, message: &str) {
    eprintln!("{name}: {message}");
}
