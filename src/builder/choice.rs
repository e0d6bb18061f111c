//! Which of a builder's pods should take a build, and to which pod each working directory leads.
//!
//! buildx chooses among the pods that run, ready or not. Only the working directory decides which one. So a build that would
//! meet a bad pod gets another working directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::pods::PodStatus;

/// How long a pod or a working directory that did not answer is avoided.
pub(super) const SHUNNED: Duration = Duration::from_secs(120);

/// The pods among which buildx chooses, sorted: their names, and whether they are terminating. Versions of buildx differ in
/// whether they choose such a pod.
pub(super) type Ring = Vec<(String, bool)>;

/// How good a pod is for a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// As good as any.
    Preferred,
    /// It takes builds, and another is better.
    Usable,
}

/// The choice of one build.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) ring: Ring,
    ranks: BTreeMap<String, Rank>,
}

impl Choice {
    /// Chooses among pods. A ready pod is usable. The better ones are not the one that was `lost`, did not fail to answer a
    /// while ago, and are of the newest version. Each wish counts only while a pod fulfils it.
    pub(super) fn among(
        pods: &[PodStatus],
        n_wanted: usize,
        is_shunned: impl Fn(&PodStatus) -> bool,
        lost: Option<&str>,
    ) -> Self {
        let usable: Vec<&PodStatus> = pods.iter().filter(|pod| pod.is_usable()).collect();
        let mut preferred = usable.clone();
        let newest = newest(pods, n_wanted);
        let mut wish = |is_good: &dyn Fn(&PodStatus) -> bool| {
            let good: Vec<&PodStatus> = preferred.iter().copied().filter(|pod| is_good(pod)).collect();
            if !good.is_empty() {
                preferred = good;
            }
        };
        wish(&|pod| lost != Some(&pod.name));
        wish(&|pod| !is_shunned(pod));
        wish(&|pod| pod.revision.is_none() || newest.is_none_or(|newest| pod.revision.as_deref() == Some(newest)));
        let preferred: BTreeSet<&str> = preferred.iter().map(|pod| pod.name.as_str()).collect();
        let rank = |name: &str| if preferred.contains(name) { Rank::Preferred } else { Rank::Usable };
        Self { ring: ring(pods), ranks: usable.iter().map(|pod| (pod.name.clone(), rank(&pod.name))).collect() }
    }

    /// Whether every pod that buildx could choose is as good as any.
    pub(super) fn is_free(&self) -> bool {
        self.ring.iter().all(|(name, _)| self.rank(name) == Some(Rank::Preferred))
    }

    /// Whether buildx could choose a pod of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.ring.iter().any(|(own, _)| own == name)
    }

    /// How good a pod is; `None` when it takes no build.
    pub(super) fn rank(&self, name: &str) -> Option<Rank> {
        self.ranks.get(name).copied()
    }
}

/// The ring of these pods.
pub(super) fn ring(pods: &[PodStatus]) -> Ring {
    let running = pods.iter().filter(|pod| pod.is_running);
    let mut ring: Ring = running.map(|pod| (pod.name.clone(), pod.is_going)).collect();
    ring.sort_unstable();
    ring
}

/// The version whose oldest and youngest pods are both younger than those of the others, once half of the wanted pods are ready
/// in it. A stuck rollout must not send every build to its first pod. A rollback makes young pods of an older version: then none
/// counts.
fn newest(pods: &[PodStatus], n_wanted: usize) -> Option<&str> {
    let mut ages: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    let mut n_usable: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.is_going) {
        let Some(revision) = pod.revision.as_deref() else { continue };
        let age = pod.age_s.unwrap_or(0);
        let (youngest, oldest) = ages.entry(revision).or_insert((age, age));
        (*youngest, *oldest) = (age.min(*youngest), age.max(*oldest));
        *n_usable.entry(revision).or_default() += usize::from(pod.is_usable());
    }
    let (newest, (youngest, _)) = ages.iter().min_by_key(|(_, (_, oldest))| *oldest)?;
    let is_youngest = ages.values().all(|(other, _)| youngest <= other);
    (is_youngest && 2 * n_usable[newest] >= n_wanted).then_some(*newest)
}

/// To which pod each working directory leads, as long as the ring stays the same.
#[derive(Debug, Default)]
pub(super) struct Directories {
    ring: Ring,
    /// The pod, or none when none answered, and when that was learned.
    pods: BTreeMap<PathBuf, (Option<String>, Instant)>,
}

/// What is known of a working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    /// It leads to this pod.
    To(String),
    /// No pod answered from there, a while ago.
    Nowhere,
    /// Nothing.
    Unknown,
}

impl Directories {
    /// What is known of a working directory.
    pub(super) fn lead(&self, ring: &Ring, directory: &Path, now: Instant) -> Lead {
        match self.pods.get(directory).filter(|_| self.ring == *ring) {
            Some((Some(pod), _)) => Lead::To(pod.clone()),
            Some((None, since)) if now.duration_since(*since) < SHUNNED => Lead::Nowhere,
            _ => Lead::Unknown,
        }
    }

    /// Keeps where a directory leads; `None` when no pod answered.
    pub(super) fn learn(&mut self, ring: &Ring, directory: PathBuf, pod: Option<String>, now: Instant) {
        if self.ring != *ring {
            self.pods.clear();
            self.ring.clone_from(ring);
        }
        self.pods.insert(directory, (pod, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::session::tests::status;

    fn free(choice: &Choice, names: &[&str]) -> Vec<Option<Rank>> {
        names.iter().map(|name| choice.rank(name)).collect()
    }

    const PREFERRED: Option<Rank> = Some(Rank::Preferred);
    const USABLE: Option<Rank> = Some(Rank::Usable);

    #[test]
    fn a_pod_that_is_not_ready_or_terminating_takes_no_build() {
        let all = ["a", "b", "c"];
        let mut pods = all.map(status).to_vec();
        assert!(Choice::among(&pods, 1, |_| false, None).is_free());
        pods[0].is_ready = false;
        pods[1].is_going = true;
        let choice = Choice::among(&pods, 1, |_| false, None);
        assert_eq!(free(&choice, &all), [None, None, PREFERRED]);
        assert!(!choice.is_free(), "buildx could choose the others");
        pods[0].is_running = false;
        pods.swap_remove(1);
        let choice = Choice::among(&pods, 1, |_| false, None);
        assert!(choice.is_free(), "buildx chooses only among pods that run: {choice:?}");
    }

    #[test]
    fn a_pod_that_did_not_answer_is_avoided_while_there_is_another() {
        let pods = ["a", "b"].map(status);
        let choice = Choice::among(&pods, 1, |pod| pod.name == "a", None);
        assert_eq!(free(&choice, &["a", "b"]), [USABLE, PREFERRED]);
        let choice = Choice::among(&pods, 1, |pod| pod.name == "a", Some("b"));
        assert_eq!(free(&choice, &["a", "b"]), [PREFERRED, USABLE], "the pod that this build lost counts first");
        assert!(Choice::among(&pods, 1, |_| true, None).is_free());
        assert!(Choice::among(&pods[..1], 1, |_| true, Some("a")).is_free());
    }

    #[test]
    fn during_a_rollout_pods_of_the_newest_version_are_preferred() {
        let of = |name: &str, revision: &str, age_s: i64| {
            let mut pod = status(name);
            (pod.revision, pod.age_s) = (Some(revision.into()), Some(age_s));
            pod
        };
        let mut pods = [of("old-1", "1", 900), of("new", "2", 60), of("old-2", "1", 800)];
        let all = ["old-1", "new", "old-2"];
        let choice = Choice::among(&pods, 2, |_| false, None);
        assert_eq!(free(&choice, &all), [USABLE, PREFERRED, USABLE]);
        assert!(Choice::among(&pods, 3, |_| false, None).is_free(), "fewer than half of the wanted pods are new");
        pods[1].is_ready = false;
        let choice = Choice::among(&pods, 1, |_| false, None);
        assert_eq!(free(&choice, &all), [PREFERRED, None, PREFERRED]);
        // A rollback from version 2, and a pod of version 1 in the place of one that was deleted, look the same.
        let mut pods = [of("old", "1", 900), of("bad-1", "2", 60), of("bad-2", "2", 50), of("back", "1", 5)];
        assert!(Choice::among(&pods, 2, |_| false, None).is_free());
        pods[3].is_ready = false;
        let choice = Choice::among(&pods, 2, |_| false, None);
        assert_eq!(free(&choice, &["old", "bad-1", "bad-2"]), [PREFERRED; 3], "it is told before it is ready");
    }

    #[test]
    fn what_is_known_of_a_directory_counts_while_the_pods_stay_the_same() {
        let (mut known, now) = (Directories::default(), Instant::now());
        let (before, after) = (ring(&["a", "b"].map(status)), ring(&["a", "c"].map(status)));
        let lead = |known: &Directories, ring, name: &str, at| known.lead(ring, Path::new(name), at);
        known.learn(&before, "x".into(), Some("a".into()), now);
        known.learn(&before, "y".into(), None, now);
        assert_eq!(lead(&known, &before, "x", now), Lead::To("a".into()));
        assert_eq!(lead(&known, &before, "y", now), Lead::Nowhere);
        assert_eq!(lead(&known, &before, "y", now + SHUNNED), Lead::Unknown, "it is tried again");
        assert_eq!(lead(&known, &after, "x", now), Lead::Unknown);
        known.learn(&after, "z".into(), Some("c".into()), now);
        assert_eq!(lead(&known, &before, "x", now), Lead::Unknown);
    }
}
