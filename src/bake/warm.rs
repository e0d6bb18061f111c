//! Builds a base image and nothing on it ([`crate::warmth`]).

use serde_json::json;

use super::print::Targets;
use super::solve::Prepared;
use super::{Bake, BakeError, Definition, Location, escape};
use crate::job::Build;
use crate::process::RunLimits;
use crate::state::{JobDirectory, make_private, write_private};
use crate::version::Ability;
use crate::warmth::BaseBuild;

/// The target, its definition, and its empty context in a job's directory.
const TARGET: &str = "base";
const FILE: &str = "base.json";
const CONTEXT: &str = "empty";

/// Builds a base image into the builder's cache only. Returns whether that succeeded.
pub(super) async fn base(
    bake: &Bake,
    build: &Build,
    definition: &Definition,
    base: &BaseBuild,
    location: &Location,
    directory: &JobDirectory,
    limits: RunLimits,
) -> bool {
    let error = match run(bake, build, definition, base, location, directory, limits).await {
        Ok(None) => return true,
        Ok(Some(error)) => error,
        Err(error) => error.to_string(),
    };
    tracing::debug!(%base, error, "could not build a base image alone; the build goes on");
    false
}

/// Runs the build. Returns why it failed.
async fn run(
    bake: &Bake,
    build: &Build,
    definition: &Definition,
    BaseBuild { from, platforms }: &BaseBuild,
    location: &Location,
    directory: &JobDirectory,
    limits: RunLimits,
) -> Result<Option<String>, BakeError> {
    let mut prepared = Prepared::new(bake, build, definition, location, directory, "base", &limits.stop).await?;
    let context = directory.join(CONTEXT);
    make_private(&context)?;
    prepared.may_read(context.clone());
    let fields = json!({
        "context": context, "dockerfile-inline": format!("FROM {from}\n"), "platforms": platforms,
        "output": [{"type": "cacheonly"}],
    });
    let targets = Targets::from([(TARGET.to_owned(), fields.as_object().cloned().unwrap_or_default())]);
    let file = directory.join(FILE);
    write_private(&file, escape::definition(&targets, bake.version().await?.can(Ability::Policies)).as_bytes())?;
    let names = targets.into_keys().collect();
    let (ended, error) = prepared.run_silently(bake, location, &[file], &names, &limits).await?;
    Ok((!ended.is_success()).then(|| error.unwrap_or_default()))
}
