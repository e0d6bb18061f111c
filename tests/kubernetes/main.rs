//! The program on a real Kubernetes, with buildx's own kubernetes driver and real BuildKit pods.
//!
//! `tests/kubernetes/cluster up` makes the cluster, unless `KUBECONFIG` names another one. The tests share it, each in a
//! namespace of its own; those that stop its parts have it alone. They mostly wait:
//! `cargo test --test kubernetes -- --test-threads=3`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must end where it stands")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests run programs and read the environment; the product has one place for each"
)]
#![allow(clippy::print_stdout, reason = "figures are worth reading where a limit was kept")]
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
