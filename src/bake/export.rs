//! Exports the caches of a finished build to a registry.
//!
//! This is a second run of docker-buildx, which finds everything in the builder's own cache. The images are pushed before it. So a
//! registry that fails or hangs costs no build. A build in which no step ran exports nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::solve::Prepared;
use super::{Bake, BakeError, Definition, Goal, Location};
use crate::event::{Event, Phase};
use crate::job::Build;
use crate::journal::Journal;
use crate::process::{Ended, RunLimits};
use crate::state::{JobDirectory, write_private};
use crate::{json, text};

/// How long an export may take. The result of the build waits for it.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The definition of the export in a job's directory.
const FILE: &str = "export.json";

/// Fields that would make steps run again, or add attestations.
const LEFT_OUT: [&str; 4] = ["attest", "no-cache", "no-cache-filter", "pull"];

/// Exports the caches of these targets, as far as they may have one.
pub(super) async fn caches(
    bake: &Bake,
    build: &Build,
    goal: Goal<'_>,
    location: &Location,
    directory: &JobDirectory,
    journal: &Journal,
    stop: &CancellationToken,
) {
    let exports = goal.definition.exports.iter().filter(|(target, _)| goal.targets.contains(*target));
    let exports: BTreeMap<&str, &str> = exports.map(|(target, name)| (&**target, &**name)).collect();
    if exports.is_empty() {
        return;
    }
    let _phase = journal.begin(Phase::CacheExport);
    let targets = exports.keys().map(|target| (*target).to_owned()).collect();
    let goal = Goal { targets: &targets, ..goal };
    let error = match run(bake, build, goal, &exports, location, directory, stop).await {
        Ok(None) => return,
        Ok(Some(error)) => error,
        Err(error) => error.to_string(),
    };
    let of = Vec::from_iter(exports.keys().copied()).join(", ");
    tracing::warn!(targets = of, error, event = "cache_not_exported", "cache not exported; the build is not affected");
    journal.emit(Event::Notice(format!("the cache of {of} was not exported: {}", text::one_line(&error))));
}

/// Runs the export. Returns why it failed.
async fn run(
    bake: &Bake,
    build: &Build,
    goal: Goal<'_>,
    exports: &BTreeMap<&str, &str>,
    location: &Location,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> Result<Option<String>, BakeError> {
    let prepared = Prepared::new(bake, build, goal.definition, location, directory, "export", stop).await?;
    let file = directory.join(FILE);
    let text = definition(goal.definition, exports).expect("the worker wrote the definition");
    write_private(&file, text.as_bytes())?;
    let files: Vec<_> = goal.definition.compose.iter().cloned().chain([file]).collect();
    let limits = RunLimits { timeout: Some(PATIENCE), ..RunLimits::until(stop.clone()) };
    let (ended, error) = prepared.run_silently(bake, location, &files, goal.targets, &limits).await?;
    Ok(match ended {
        Ended::Exited(status) if status.success() => None,
        Ended::TimedOut => Some(format!("the export took more than {} minutes", PATIENCE.as_secs() / 60)),
        Ended::Stopped => Some("the build was stopped during the export".into()),
        _ => Some(error.unwrap_or_else(|| "docker-buildx ended without an error message".into())),
    })
}

/// The text of the definition with nothing but exports of caches as results.
fn definition(definition: &Definition, exports: &BTreeMap<&str, &str>) -> Option<String> {
    let mut text: Value = json::read(definition.text.as_bytes()).ok()?;
    for (name, fields) in text.get_mut("target")?.as_object_mut()? {
        let fields = fields.as_object_mut()?;
        LEFT_OUT.iter().for_each(|field| _ = fields.remove(*field));
        fields.insert("output".into(), json!([{"type": "cacheonly"}]));
        if let Some(reference) = exports.get(name.as_str()) {
            // Registries that know only images refuse a cache in the form of an index.
            let to = json!([{"type": "registry", "ref": reference, "mode": "max", "image-manifest": "true"}]);
            fields.insert("cache-to".into(), to);
        }
    }
    Some(text.to_string())
}
