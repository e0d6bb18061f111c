//! The steps of each target, and the images that were looked up: what tells why a step was not cached.

use std::collections::BTreeMap;

use super::{BakeProgress, Vertex, is_digest};
use crate::cache::{SeenStep, StepState};

impl BakeProgress {
    /// The steps of each target in the order of the reports, without FROM: a FROM without a pull is sometimes reported as cached.
    pub(in crate::bake) fn seen_steps(&self) -> BTreeMap<String, Vec<SeenStep>> {
        let of_target = |number: u16| {
            let own: Vec<&Vertex> =
                self.vertices.iter().filter(|vertex| vertex.targets.binary_search(&number).is_ok()).collect();
            own.iter().filter_map(|vertex| seen(vertex, &own)).collect()
        };
        self.tags.keys().zip(0..).map(|(name, number)| (name.clone(), of_target(number))).collect()
    }

    /// The digests of images, by their references with registry and tag. A reference with two digests is left out.
    pub(in crate::bake) fn images(&self) -> BTreeMap<String, String> {
        let mut images: BTreeMap<String, Option<&str>> = BTreeMap::new();
        for vertex in &self.vertices {
            let from = vertex.name.split_once("] FROM ").filter(|_| vertex.instruction() == Some("FROM"));
            let named = from.map(|(_, image)| image).or_else(|| vertex.name.strip_prefix("docker-image://"));
            let Some((image, digest)) = named.and_then(|named| named.split_once('@')) else { continue };
            if !is_digest(digest) {
                continue;
            }
            let known = images.entry(image.to_owned()).or_insert(Some(digest));
            *known = known.filter(|known| *known == digest);
        }
        images.into_iter().filter_map(|(image, digest)| Some((image, digest?.to_owned()))).collect()
    }
}

/// A step of a target; `None` for FROM and for BuildKit's chores. A step that was skipped for a later one was cached. One that was
/// canceled may have been about to be found in the cache, so it has not begun.
fn seen(vertex: &Vertex, own: &[&Vertex]) -> Option<SeenStep> {
    let (stage, number, total) = vertex.position()?;
    let (_, instruction) = vertex.name.split_once("] ")?;
    // BuildKit joins the layer of a COPY --link in a step of its own.
    if matches!(vertex.instruction(), Some("FROM" | "LINK")) {
        return None;
    }
    let is_passed = || {
        let done = own.iter().filter(|other| other.completed.is_some() && !other.has_error());
        let mut positions = done.filter_map(|other| other.position());
        positions.any(|(its_stage, n, _)| its_stage == stage && n > number)
    };
    let state = match vertex.completed {
        _ if vertex.has_failed() => StepState::Failed,
        Some(_) if vertex.has_error() => StepState::Planned,
        Some(_) if vertex.was_cached() => StepState::Cached,
        Some(_) => StepState::Ran,
        None if is_passed() => StepState::Cached,
        None => StepState::Planned,
    };
    Some(SeenStep {
        label: super::failure::label(stage).to_owned(),
        number,
        total,
        instruction: instruction.to_owned(),
        state,
        took: vertex.took(),
    })
}
