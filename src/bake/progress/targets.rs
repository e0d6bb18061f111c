//! The result of each target of a bake: a fold of its vertices.

use std::collections::{BTreeMap, HashSet};

use super::{BakeProgress, Vertex, millis};
use crate::report::{ImageDigest, Status, TargetReport};

/// Bytes of a platform's name. The longest that exist have some 20, such as `windows(10.0.17763)/amd64`.
const MAX_PLATFORM: usize = 64;

impl BakeProgress {
    /// The result of each target. `is_success`: whether the whole bake succeeded.
    pub(in crate::bake) fn reports(&self, is_success: bool) -> Vec<TargetReport> {
        let ran: HashSet<&str> =
            self.vertices.iter().filter(|vertex| vertex.has_run).map(|vertex| &*vertex.name).collect();
        let numbered = self.tags.iter().zip(0..);
        numbered.map(|((name, tags), number)| self.report(number, name, tags, &ran, is_success)).collect()
    }

    fn report(&self, number: u16, name: &str, tags: &[String], ran: &HashSet<&str>, is_success: bool) -> TargetReport {
        let own: Vec<&Vertex> =
            self.vertices.iter().filter(|vertex| vertex.targets.binary_search(&number).is_ok()).collect();
        let steps = steps(&own, ran);
        // Another build may have begun a shared step earlier. Each target loads its own definition first.
        let began = own.iter().filter(|vertex| vertex.loads_definition()).filter_map(|vertex| vertex.started).min();
        let started = own.iter().filter_map(|vertex| vertex.started).min().max(began);
        let completed = own.iter().filter_map(|vertex| vertex.completed).max();
        let has_failed = own.iter().any(|vertex| vertex.breaks_build());
        let failed = own.iter().find_map(|vertex| self.step_failure(vertex, Some(name)));
        let error = own.iter().filter(|vertex| vertex.breaks_build()).find_map(|vertex| vertex.own_error());
        let digest = tags.iter().find_map(|tag| own.iter().find_map(|vertex| vertex.pushed_as(tag)));
        let status = match (is_success, has_failed, digest) {
            (true, _, _) | (false, false, Some(_)) => Some(Status::Succeeded),
            (false, true, _) => Some(Status::Failed),
            (false, false, None) => None,
        };
        TargetReport {
            name: name.to_owned(),
            status,
            digest: digest.map(str::to_owned),
            image_digest: self.image_digest(name, &own),
            tags: tags.to_vec(),
            duration_ms: started.zip(completed).map_or(0, |(from, to)| millis(from, to)),
            steps_total: count(steps.len()),
            steps_cached: count(steps.values().filter(|has_run| !**has_run).count()),
            failed_step: failed.as_ref().map(|failure| failure.step.clone()),
            log_tail: failed.as_ref().and_then(|failure| failure.log_tail.clone()),
            saved_ms: None,
            why_not_cached: None,
            error: match &failed {
                Some(failure) => Some(failure.ending.clone()),
                None => error.map(|said| said.shown.clone()),
            },
        }
    }
}

impl BakeProgress {
    /// The digests of a target's images, when each is known. A frontend of the customer's choice may export others than asked for.
    fn image_digest(&self, name: &str, own: &[&Vertex]) -> Option<ImageDigest> {
        let mut exports = own.iter().filter(|vertex| vertex.is_export() && !vertex.exported.is_empty());
        let (Some(export), None) = (exports.next(), exports.next()) else { return None };
        let mut exported = export.exported.clone();
        exported.sort_by_key(|(started, _)| *started);
        let mut digests = exported.into_iter().map(|(_, digest)| String::from(digest));
        let platforms = self.platforms.get(name).map(Vec::as_slice).unwrap_or_default();
        let is_long = |platform: &String| platform.len() > MAX_PLATFORM;
        if digests.len() != platforms.len().max(1) || platforms.iter().any(is_long) {
            return None;
        }
        Some(match platforms {
            [] | [_] => ImageDigest::Single(digests.next()?),
            several => ImageDigest::ByPlatform(several.iter().cloned().zip(digests).collect()),
        })
    }
}

/// The steps of a target that were reached, by name, and whether each has run. `ran`: the names of all steps that have run.
///
/// A step that a sibling has just run is reported again, as cached and under another digest. So a step is identified by its
/// name, and has run when any vertex of that name has. When a later step comes from the cache, the steps before it are
/// planned and never completed: they were reached all the same. A FROM without a pull is sometimes reported as cached, so it
/// does not count.
fn steps<'a>(own: &[&'a Vertex], ran: &HashSet<&str>) -> BTreeMap<&'a str, bool> {
    let counted = || own.iter().filter(|vertex| vertex.is_step() && !vertex.name.contains("] FROM "));
    let mut last_completed: BTreeMap<&str, u32> = BTreeMap::new();
    for (stage, n, _) in counted().filter(|vertex| vertex.completed.is_some()).filter_map(|vertex| vertex.position()) {
        let last = last_completed.entry(stage).or_default();
        *last = n.max(*last);
    }
    let mut steps = BTreeMap::new();
    for vertex in counted() {
        let is_passed =
            vertex.position().is_some_and(|(stage, n, _)| last_completed.get(stage).is_some_and(|last| n < *last));
        let has_run = match vertex.completed {
            Some(_) => !vertex.was_cached(),
            None if is_passed => ran.contains(&*vertex.name),
            None => continue,
        };
        *steps.entry(&*vertex.name).or_default() |= has_run;
    }
    steps
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
