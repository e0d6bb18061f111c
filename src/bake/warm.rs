//! Builds base images and nothing on them ([`crate::warmth`]).

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::print::Targets;
use super::solve::{Prepared, limits};
use super::{Ability, Bake, BakeError, Definition, Location, escape};
use crate::job::Build;
use crate::state::{JobDirectory, make_private, write_private};

/// The definition, and the empty context of its targets, in a job's directory.
const FILE: &str = "warm.json";
const CONTEXT: &str = "empty";

/// Builds base images, as they stand after FROM. Returns whether that succeeded.
pub(super) async fn bases(
    bake: &Bake,
    build: &Build,
    definition: &Definition,
    bases: &[String],
    location: &Location,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> bool {
    match run(bake, build, definition, bases, location, directory, stop).await {
        Ok(None) => true,
        Ok(Some(error)) => {
            tracing::debug!(error, "base images not built on a new pod; the build says why");
            false
        }
        Err(error) => {
            tracing::debug!(%error, "base images not built on a new pod");
            false
        }
    }
}

async fn run(
    bake: &Bake,
    build: &Build,
    definition: &Definition,
    bases: &[String],
    location: &Location,
    directory: &JobDirectory,
    stop: &CancellationToken,
) -> Result<Option<String>, BakeError> {
    let prepared = Prepared::new(bake, build, definition, location, directory, "warm", stop).await?;
    let context = directory.join(CONTEXT);
    make_private(&context)?;
    let platforms: BTreeSet<String> = definition.platforms().into_iter().map(|wanted| wanted.name).collect();
    let target = |from: &String| -> Map<String, Value> {
        let fields = json!({
            "context": context, "dockerfile-inline": format!("FROM {from}\n"), "platforms": platforms,
            "output": [{"type": "cacheonly"}],
        });
        fields.as_object().cloned().unwrap_or_default()
    };
    let targets: Targets = bases.iter().enumerate().map(|(n, from)| (format!("base-{n}"), target(from))).collect();
    let file = directory.join(FILE);
    write_private(&file, escape::definition(&targets, bake.version().await?.can(Ability::Policies)).as_bytes())?;
    let names = targets.into_keys().collect();
    let (ended, error) = prepared.run_silently(bake, location, &[file], &names, &limits(stop.clone())).await?;
    Ok((!ended.is_success()).then(|| error.unwrap_or_default()))
}
