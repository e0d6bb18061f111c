//! Torture: three workers, thousands of short jobs, and every few seconds something breaks. At the end Redis alone is asked
//! whether each job was settled, and settled once.
//!
//! usage: cargo test --test torture -- [--seconds N] [--jobs N] [--faults N] [--seed N] [MODE]...
//!
//! MODE  always    Redis writes every command to disk before it answers, so nothing may be lost; the default
//!       everysec  Redis is killed as well, and may forget a second: nothing may be stuck; what was lost is printed
//!       builds    real builds, with a scripted docker-buildx: no child, directory or lock may be left
//!       mutants   custody with one of its parts taken away, on the wire: the torture has to notice each
//!
//! Prints its counts. Exit status 1 and a sentence when an assertion fails; the same seed breaks the same things at the
//! same times, as far as the machine is as quick.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must end where it stands")]
#![allow(clippy::print_stdout, reason = "its counts are its result")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests run programs and look at the clock; the product has one place for each"
)]
#![allow(missing_docs, unreachable_pub, reason = "a test binary has no public interface")]

#[allow(dead_code, reason = "shared with another suite, which uses more of it")]
#[path = "../it/afternoon.rs"]
mod afternoon;
mod audit;
mod builds;
mod faults;
mod fleet;
mod mutants;
mod relay;
mod stalls;
mod story;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use audit::Ending;
use faults::Kind;
use story::Story;

#[derive(Debug, Parser)]
struct Options {
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long, default_value_t = 2500)]
    jobs: usize,
    #[arg(long, default_value_t = 25)]
    faults: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(value_enum)]
    modes: Vec<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Always,
    Everysec,
    Builds,
    Mutants,
}

/// What is wrong, in sentences; nothing when all is well.
type Verdict = Result<(), Vec<String>>;

fn main() -> ExitCode {
    let options = Options::parse_from(std::env::args().filter(|argument| !argument.starts_with("--test-threads")));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let modes = if options.modes.is_empty() { vec![Mode::Always] } else { options.modes.clone() };
    let (mut n_passed, mut n_failed) = (0, 0);
    for mode in modes {
        for (name, verdict) in runtime.block_on(run(mode, &options)) {
            match verdict {
                Ok(()) => n_passed += 1,
                Err(_) => n_failed += 1,
            }
            println!("test torture::{name} ... {}", if verdict.is_ok() { "ok" } else { "FAILED" });
            verdict.err().iter().flatten().for_each(|sentence| println!("  {sentence}"));
        }
    }
    let word = if n_failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {n_passed} passed; {n_failed} failed; 0 ignored; 0 measured; 0 filtered out; finished"
    );
    if n_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(mode: Mode, options: &Options) -> Vec<(String, Verdict)> {
    let story = Story {
        duration: Duration::from_secs(options.seconds),
        n_jobs: options.jobs,
        n_long: 1,
        n_faults: options.faults,
        seed: options.seed,
        kinds: Kind::ALL.to_vec(),
        fsync: "always",
        mutant: None,
    };
    match mode {
        Mode::Always => vec![(format!("always, seed {}", options.seed), story.tell(Ending::verdict).await)],
        Mode::Everysec => {
            let verdict = Story { fsync: "everysec", ..story }.tell(Ending::verdict_when_redis_forgets).await;
            vec![(format!("everysec, seed {}", options.seed), verdict)]
        }
        Mode::Builds => vec![("builds".into(), builds::run(options.seed).await)],
        Mode::Mutants => mutants::run(options.seed).await,
    }
}
