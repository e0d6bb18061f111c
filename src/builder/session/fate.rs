//! What has become of a pod during a build.

use crate::builder::pods::PodStatus;

/// What has become of a pod during a build.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// The end of a sentence that begins with the pod's name.
    pub(super) sentence: String,
    /// Whether it is gone for good.
    pub(super) has_gone: bool,
    pub(super) is_out_of_memory: bool,
}

/// What has become of a pod; `None` when nothing has.
pub(super) fn fate(before: &PodStatus, now: &[PodStatus]) -> Option<Fate> {
    let of = |sentence: &str, has_gone| Fate { sentence: sentence.to_owned(), has_gone, is_out_of_memory: false };
    let Some(pod) = now.iter().find(|pod| pod.uid == before.uid) else {
        return Some(of("was deleted during the build", true));
    };
    let ended = |what: &str, has_gone| {
        let because = pod.trouble.as_ref().map(|trouble| format!(": {trouble}")).unwrap_or_default();
        Fate { sentence: format!("{what}{because}"), has_gone, is_out_of_memory: pod.is_out_of_memory }
    };
    if !pod.is_running {
        Some(ended("is not running any more", true))
    } else if pod.n_restarts > before.n_restarts {
        Some(ended("restarted BuildKit during the build", false))
    } else if pod.is_going && !before.is_going {
        Some(of("is terminating since the build began", false))
    } else {
        None
    }
}
