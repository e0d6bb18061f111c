//! Runs the program on a real Kubernetes, with buildx's own kubernetes driver and real BuildKit pods.
//!
//! `tests/kubernetes/cluster up` makes the cluster, unless `KUBECONFIG` names another one. The tests share it, each in
//! its own namespace. Tests that stop parts of the cluster run alone. The tests mostly wait, so run several: `cargo
//! test --test kubernetes -- --test-threads=4`.

#![allow(clippy::unwrap_used, reason = "a failed expectation must end the test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests run programs and read the environment; the product has one module for each"
)]
#![allow(clippy::print_stdout, reason = "the figures show the margin to each limit")]
#![allow(missing_docs, unreachable_pub, reason = "a test binary has no public interface")]
#![allow(dead_code, reason = "the harness is shared with the other suites, which use more of it")]

#[path = "../e2e/harness.rs"]
mod harness;
#[path = "../e2e/processes.rs"]
mod processes;
#[path = "../e2e/registry.rs"]
mod registry;

mod builders;
mod engine;
mod faults;
mod in_cluster;
mod manifests;
mod namespace;
mod placement;
mod relay;
mod roles;
mod shards;
