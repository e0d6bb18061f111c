//! Runs the program end to end on real parts: BuildKit, a registry, Redis, Ruby's Sidekiq, and docker-buildx in its
//! sandbox.
//!
//! Only GitHub is a stand-in. The tests inspect the registry, Redis, the disk, and the files that an attack would
//! leave. They share one engine, so they run one after the other: `cargo test --test e2e -- --test-threads=1`.

#![allow(clippy::unwrap_used, reason = "a failed expectation must end the test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests run programs and read the environment; the product has one module for each"
)]
#![allow(missing_docs, unreachable_pub, reason = "a test binary has no public interface")]

mod archives;
mod build;
mod canary_port;
mod coming_from_ruby;
mod commands;
mod credentials;
mod custody;
mod dashboard;
mod describe;
mod dockerignore;
mod engine;
mod escaping;
mod failures;
mod harness;
mod hostile;
mod hostile_definition;
mod hostile_repository;
mod judged;
mod logs_in_rails;
mod make;
mod mistakes;
mod newer_fields;
mod ordinary;
mod peer;
mod platforms;
mod processes;
mod reasons;
mod registry;
mod repository_file;
mod ruby;
mod scheduled;
mod shown;
mod spelling;
mod template;
mod traces;
mod why;
