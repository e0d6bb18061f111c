//! Torture: three workers, thousands of short jobs, and a fault every few seconds. Some jobs take their worker down on
//! every run, some texts are not jobs, and Redis refuses some results. At the end, the audit reads Redis alone: it
//! checks that each job was settled exactly once, and that nothing else remains.
//!
//! usage: cargo test --test torture -- [--seconds N] [--jobs N] [--faults N] [--seed N] [MODE]...
//!
//! MODE  always    Redis writes every command to disk before it answers, so nothing may be lost; the default
//!       everysec  kills Redis too, which may forget a second: nothing may be stuck; prints the lost jobs
//!       builds    real builds, with a scripted docker-buildx: no child, directory or lock may remain
//!       shared    the same with accounts that share the workers: no limit may be exceeded, and the newest job of each
//!                 branch must be built
//!       mutants   custody without one of its parts, on the wire: the audit must notice each
//!
//! A long run is a series of rounds of five minutes, each with its own Redis, fleet and seed. So an hour needs no
//! more memory than one round: `--seconds 3600 --jobs 150000 --faults 1500`.
//!
//! Prints its counts. Exits 1 with a sentence when an assertion fails. The same seed causes the same faults at the same
//! times, as far as the machine keeps up.

#![allow(clippy::unwrap_used, reason = "a failed expectation must end the test")]
#![allow(clippy::print_stdout, reason = "its counts are its result")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests run programs and read the clock; the product has one module for each"
)]
#![allow(missing_docs, unreachable_pub, reason = "a test binary has no public interface")]

mod audit;
mod builds;
mod culprits;
mod faults;
mod fleet;
#[allow(dead_code, unused_imports, reason = "shared with another suite, which uses more of it")]
#[path = "../it/harness.rs"]
mod harness;
mod jobs;
mod leftovers;
mod look;
mod mutants;
mod relay;
mod runs;
mod samples;
mod scripts;
mod stalls;
mod story;
mod strays;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use audit::Ending;
use faults::{COMMANDS, Kind};
use jobs::SHARED;
use story::Story;

/// The longest story. Its memory grows with its jobs.
const ROUND_S: u64 = 300;
/// The seconds per culprit. Each culprit takes five workers down before it is poison.
const CULPRIT_S: usize = 60;

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
    Shared,
    Everysec,
    Builds,
    Mutants,
}

/// The failures, in sentences. Empty when everything is correct.
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
    match mode {
        Mode::Always => rounds("always", "", Ending::verdict, options).await,
        Mode::Shared => rounds("always", SHARED, Ending::verdict, options).await,
        Mode::Everysec => rounds("everysec", "", Ending::verdict_when_redis_forgets, options).await,
        Mode::Builds => vec![("builds".into(), builds::run(options.seed).await)],
        Mode::Mutants => mutants::run(options.seed).await,
    }
}

/// Runs one story after another, until the time is over or a story fails.
async fn rounds(
    fsync: &'static str,
    settings: &'static str,
    judge: fn(&Ending) -> Verdict,
    options: &Options,
) -> Vec<(String, Verdict)> {
    let n_rounds = options.seconds.div_ceil(ROUND_S).max(1);
    let mut verdicts = Vec::new();
    for seed in (options.seed..).take(n_rounds as usize) {
        let seconds = options.seconds / n_rounds;
        let story = Story {
            duration: Duration::from_secs(seconds),
            n_jobs: options.jobs / n_rounds as usize,
            n_long: 1,
            n_faults: options.faults / n_rounds as usize,
            n_culprits: (seconds as usize / CULPRIT_S).clamp(1, 4),
            has_strays: true,
            settings,
            seed,
            kinds: Kind::ALL.to_vec(),
            commands: &COMMANDS,
            fsync,
            mutant: None,
        };
        let told = story.tell(judge).await;
        println!("  {}", told.counts.join("\n  "));
        let is_bad = told.verdict.is_err();
        let shared = if settings == SHARED { ", shared" } else { "" };
        verdicts.push((format!("{fsync}{shared}, seed {seed}"), told.verdict));
        if is_bad {
            break;
        }
    }
    verdicts
}
