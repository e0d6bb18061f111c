//! Why steps were not cached: the facts of a run of docker-buildx, beside what is remembered of earlier builds.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::spawn_blocking;

use super::Integrations;
use crate::bake::{Definition, Outcome, TargetPlan};
use crate::bounds;
use crate::cache::{Changes, Facts, LastBuild, judge};
use crate::event::{Event, Placement};
use crate::github::InstallationToken;
use crate::job::BuildJob;
use crate::journal::Journal;
use crate::last_builds::{Earlier, LastBuilds, Scope};
use crate::source::Worktree;

/// Bytes of patterns times bytes of paths that the comparison of a build may cost: a tenth of a second of typical patterns, two
/// seconds of malicious ones.
const MAX_WORK: usize = 256 << 20;

/// Comparisons of variables that the targets of one build may cost: less than a second.
const MAX_COMPARED: usize = 1_000_000;

/// What is remembered of earlier builds, and what is to be remembered of this one.
#[derive(Debug)]
pub struct Caching {
    earlier: Arc<Earlier>,
    records: Mutex<BTreeMap<String, LastBuild>>,
}

impl Caching {
    /// Reads what is remembered of a job's repository. `None` when nothing is remembered at all.
    pub(super) async fn read(integrations: &Integrations, job: &BuildJob, token: &InstallationToken) -> Option<Self> {
        let scope = Scope {
            host: integrations.source.host(),
            repository_id: token.repository_id,
            trust: job.build.trust.name(),
            // Without a builder, the build fails later.
            builder: integrations.builders.name_for(&job.build)?,
            git_ref: job.git_ref.as_deref(),
        };
        let earlier = integrations.last_builds.read(scope).await?;
        Some(Self { earlier: Arc::new(earlier), records: Mutex::default() })
    }

    /// The commits of earlier builds.
    pub(super) fn commits(&self) -> Vec<String> {
        self.earlier.commits()
    }

    /// Emits for each target what the cache did.
    pub(super) async fn explain(&self, run: Run<'_>, journal: &Journal) {
        let Run { definition, worktree, outcome, placement, has_pods } = run;
        let explained = Explained {
            earlier: Arc::clone(&self.earlier),
            plans: Arc::clone(&definition.plans),
            sha: worktree.commit.as_ref().map(|commit| commit.sha.to_string()),
            changes: worktree.changes.clone(),
            links: worktree.links.clone(),
            outcome: outcome.clone(),
            placement,
            has_pods,
        };
        // Patterns of a `.dockerignore` may take a while.
        let targets = spawn_blocking(move || explained.targets()).await.expect("the comparison does not panic");
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        for (event, target, record) in targets {
            journal.emit(event);
            records.insert(target, record);
        }
    }

    /// Remembers this build.
    pub(super) async fn remember(self, last_builds: &LastBuilds) {
        let records = self.records.into_inner().unwrap_or_else(PoisonError::into_inner);
        last_builds.write(&self.earlier, &Vec::from_iter(records)).await;
    }
}

/// A run of docker-buildx.
pub(super) struct Run<'a> {
    pub(super) definition: &'a Definition,
    pub(super) worktree: &'a Worktree,
    pub(super) outcome: &'a Outcome,
    pub(super) placement: Placement,
    pub(super) has_pods: bool,
}

/// The same, to be compared on another thread.
struct Explained {
    earlier: Arc<Earlier>,
    plans: Arc<BTreeMap<String, TargetPlan>>,
    sha: Option<String>,
    changes: Vec<Changes>,
    links: Option<Vec<String>>,
    outcome: Outcome,
    placement: Placement,
    has_pods: bool,
}

impl Explained {
    fn targets(&self) -> Vec<(Event, String, LastBuild)> {
        let left = [MAX_WORK, MAX_COMPARED].map(Cell::new);
        let reached = self.outcome.steps.iter().filter(|(_, steps)| !steps.is_empty());
        let reached = reached.take(bounds::CACHE_TARGETS);
        reached.filter_map(|(target, _)| self.target(target, &left)).collect()
    }

    fn target(&self, target: &str, [left, effort]: &[Cell<usize>; 2]) -> Option<(Event, String, LastBuild)> {
        let plan = self.plans.get(target)?;
        let changes = |sha: &str| {
            let known = self.changes.iter().find(|changes| changes.since == sha);
            let same = || Changes { since: sha.to_owned(), paths: Vec::new(), is_complete: true };
            let is_same = self.sha.as_deref() == Some(sha);
            let changes = known.cloned().or_else(|| is_same.then(same))?;
            Some(plan.context_changes(&changes, self.links.as_deref(), left))
        };
        let facts = Facts {
            marker: &self.earlier.marker,
            dockerfile: plan.dockerfile.as_deref(),
            plan: plan.plan.as_ref(),
            steps: &self.outcome.steps[target],
            images: &self.outcome.images,
            sha: self.sha.as_deref(),
            pod: self.placement.cache(),
            has_pods: self.has_pods,
            why_pod: &self.placement.why,
            changes: &changes,
            effort,
        };
        let earlier = self.earlier.of(target);
        let not_cached = judge(&facts, earlier.as_deref()).map(Box::new);
        let is_built = self.outcome.built.contains(target);
        let (record, saved) = facts.to_record(earlier.as_deref().unwrap_or_default(), is_built);
        Some((Event::Caching { target: target.to_owned(), not_cached, saved }, target.to_owned(), record))
    }
}
