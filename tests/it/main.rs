//! Tests the worker from the outside, as Rails, GitHub, git and buildx see it: the real binary between stand-ins and a
//! real Redis.
//!
//! One module for each behavior. Every test has its own [`harness::Harness`], so tests run in parallel.

#![allow(clippy::unwrap_used, reason = "a failed expectation must end the test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests run programs and read the environment; the product has one module for each"
)]
#![allow(missing_docs, unreachable_pub, reason = "a test binary has no public interface")]

mod archive;
mod bad_input;
mod broker;
mod build;
mod cancel;
mod command_line;
mod commands;
mod credentials;
mod custody;
mod definitions;
mod deployment;
mod disk;
mod docs;
mod endless;
mod git_dir;
mod github;
mod harness;
mod heartbeat;
mod helm;
mod history;
mod hostile_source;
mod last_builds;
mod late;
mod layers;
mod limits;
mod logs;
mod memory;
mod metrics;
mod newest;
mod observability;
mod poison;
mod poller;
mod proxies;
mod queues;
mod reasons;
#[allow(dead_code, reason = "shared with another suite, which uses more of it")]
#[path = "../torture/relay.rs"]
mod relay;
mod release;
mod retry;
mod rights;
#[allow(dead_code, reason = "shared with another suite, which uses more of it")]
#[path = "../torture/scripts.rs"]
mod scripts;
mod secrets;
mod servers;
mod shards;
mod shutdown;
mod source;
mod stream;
mod submodules;
mod tenants;
mod tracking;
mod turn;
mod twins;
mod walls;
mod worker_log;
mod worktree;
mod zoo;
