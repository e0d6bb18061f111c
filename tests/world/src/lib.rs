//! Stand-ins for the systems that sidebake talks to and a test machine cannot have, imitated on the wire.
//!
//! Each stand-in has its own loopback port and threads, so a test body may block. It stops when its value is dropped.
//! `README.md` lists what each one imitates and what it does not.

#![forbid(unsafe_code)]
// A stand-in that fails must end the test at once, because no code handles its errors.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod app;
mod builder;
mod buildx;
pub mod definition;
mod endless;
mod faults;
mod git;
mod github;
mod harness;
mod hex;
mod kubernetes;
mod objects;
mod proxy;
mod rails;
mod redis;
mod registry;
mod repository;
mod rest;
mod script;
mod server;
mod tokens;
mod worker;

use std::time::{Duration, Instant};

pub use app::App;
pub use builder::{Builder, Report, Run, install};
pub use buildx::{Buildx, buildx};
pub use endless::{Endless, Pace};
pub use faults::Faults;
pub use git::{GitHost, GitRequest, Pack};
pub use github::{Call, GitHub, repository_id};
pub use harness::{CALLBACKS, Harness, build_request};
pub use hex::hex;
pub use kubernetes::{Kubernetes, KubernetesObjects};
pub use objects::{Objects, StoredObject};
pub use proxy::Proxy;
pub use rails::{Answer, Rails, RailsRequest};
pub use redis::{Redis, free_port, redis_server};
pub use registry::{Content, Registry, ServedImage, tar};
pub use repository::{File, Repository};
pub use script::{Script, Step, image_digest};
pub use tokens::{Grant, Reach, Tokens};
pub use worker::{Home, Worker, sidebake, sidebake_on, text};

/// Waits until `condition` holds, and checks it every 10 ms.
///
/// # Panics
/// After 10 s, naming `what` was waited for.
pub async fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    wait_for_within(Duration::from_secs(10), what, condition).await;
}

/// [`wait_for`] with another limit.
///
/// # Panics
/// After `limit`, naming `what` was waited for.
pub async fn wait_for_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "timed out after {limit:?} waiting for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
