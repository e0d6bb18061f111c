//! What a worker logs before its first fetch: a line for each system around it, for a person.
//!
//! No line has a secret: URLs are shown without user and password. The settings themselves are logged at level debug.

use crate::redis::Redis;
use crate::sandbox;
use crate::settings::{Builder, Capsule, Driver, Queue, SandboxMode, Settings};
use crate::state::StateDirectory;

/// What is switched off.
const OFF: &str = "off";

/// Logs each system in a line. `redis` is the connection that fetches; `version` is that of a server that answers.
pub(super) async fn log(settings: &Settings, state: &StateDirectory, redis: &Redis, version: Option<&str>) {
    log_redis(redis, version).await;
    log_queues(settings);
    let builders: Vec<_> = settings.builders.iter().map(|(name, builder)| shown_builder(name, builder)).collect();
    tracing::info!(event = "start_builders", builders = builders.join("; "), "builders");
    let (app_id, api_url) = (settings.github.app_id.as_deref(), without_user(&settings.github.api_url));
    tracing::info!(event = "start_github", app_id, api_url, "GitHub App");
    log_sandbox(settings.sandbox.mode);
    let (path, free_bytes, n_mirrors) =
        (settings.state.directory.display(), state.free_bytes().ok(), state.n_mirrors());
    tracing::info!(event = "start_state", %path, free_bytes, n_mirrors, "state directory");
    let live_log = if settings.journal.stream { "on" } else { OFF };
    let archive = settings.journal.archive.as_deref().unwrap_or(OFF);
    tracing::info!(event = "start_logs", live_log, archive, "logs of builds");
    let address = settings.health.listen.map_or_else(|| OFF.to_owned(), |address| address.to_string());
    tracing::info!(event = "start_listener", address, "health listener");
}

async fn log_redis(redis: &Redis, version: Option<&str>) {
    let address = redis.address();
    // A server that did not answer would delay the start by another timeout.
    let is_connected = version.is_some() && redis.connect_if_needed().await.is_ok();
    if !is_connected {
        tracing::info!(event = "start_redis", address, "Redis does not answer yet");
        return;
    }
    // Only a connection shows whether the server pushes.
    let new_jobs = if redis.has_tracking() { "tracking" } else { "polling" };
    tracing::info!(event = "start_redis", address, version, new_jobs, "Redis");
}

fn log_queues(settings: &Settings) {
    let capsules: Vec<_> =
        settings.capsules().iter().map(|(name, capsule)| format!("{name}: {}", shown_capsule(capsule))).collect();
    let classes: Vec<_> = settings.jobs.classes.keys().map(String::as_str).collect();
    let (concurrency, capsules, classes) = (settings.total_concurrency(), capsules.join("; "), classes.join(", "));
    tracing::info!(event = "start_queues", concurrency, capsules, classes, "queues");
}

fn log_sandbox(mode: SandboxMode) {
    let is_on = mode != SandboxMode::Off;
    let enforced = if is_on { sandbox::enforced() } else { "limits".into() };
    let is_brokered = is_on && sandbox::has_broker();
    tracing::info!(event = "start_sandbox", mode = mode.name(), enforced, is_brokered, "sandbox");
}

/// `10 slots for critical,2 default,1`.
fn shown_capsule(capsule: &Capsule) -> String {
    let shown = |queue: &Queue| match queue.weight {
        0 => queue.name.clone(),
        weight => format!("{},{weight}", queue.name),
    };
    let queues: Vec<_> = capsule.queues.iter().map(shown).collect();
    format!("{} slots for {}", capsule.concurrency, queues.join(" "))
}

/// `default: kubernetes, namespace builds, 3 shards`, or `default: remote tcp://buildkit:1234`.
fn shown_builder(name: &str, builder: &Builder) -> String {
    let driver = builder.driver.name();
    if builder.driver != Driver::Kubernetes {
        let endpoint = builder.endpoint.as_deref().map(|endpoint| format!(" {}", without_user(endpoint)));
        return format!("{name}: {driver}{}", endpoint.unwrap_or_default());
    }
    let namespace = builder.namespace.as_ref().map(|namespace| format!(", namespace {namespace}"));
    let size = match (builder.shards, builder.replicas) {
        (Some(n_shards), _) => format!(", {n_shards} shards"),
        (None, Some(n_replicas)) => format!(", {n_replicas} replicas"),
        (None, None) => String::new(),
    };
    format!("{name}: {driver}{}{size}", namespace.unwrap_or_default())
}

/// The URL without user and password.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_is_shown_by_what_tells_it_from_others() {
        let mut builder = Builder::new(Driver::Kubernetes, None);
        assert_eq!(shown_builder("default", &builder), "default: kubernetes");
        (builder.namespace, builder.replicas) = (Some("builds".into()), Some(2));
        assert_eq!(shown_builder("default", &builder), "default: kubernetes, namespace builds, 2 replicas");
        builder.shards = Some(3);
        assert_eq!(shown_builder("default", &builder), "default: kubernetes, namespace builds, 3 shards");
        let remote = Builder::new(Driver::Remote, Some("tcp://me:hunter2@buildkit:1234".into()));
        assert_eq!(shown_builder("far", &remote), "far: remote tcp://buildkit:1234");
        assert_eq!(shown_builder("here", &Builder::new(Driver::Docker, None)), "here: docker");
    }

    #[test]
    fn a_url_is_shown_without_user_and_password() {
        for (url, shown) in [
            ("https://api.github.com", "https://api.github.com"),
            ("https://me:p@ss@github.example/api/v3", "https://github.example/api/v3"),
            ("https://github.example/a@b", "https://github.example/a@b"),
            ("unix:///run/docker.sock", "unix:///run/docker.sock"),
        ] {
            assert_eq!(without_user(url), shown);
        }
    }
}
