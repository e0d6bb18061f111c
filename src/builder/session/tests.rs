//! What becomes of pods, and what is learned of them.

use super::dial::is_kept;
use super::fate::{Fate, fate};
use super::*;
use crate::builder::choice::ring;

/// A pod that takes builds.
pub(in crate::builder) fn status(name: &str) -> PodStatus {
    PodStatus {
        name: name.into(),
        uid: format!("uid of {name}"),
        node: None,
        age_s: None,
        is_running: true,
        is_ready: true,
        is_going: false,
        n_restarts: 0,
        trouble: None,
        is_out_of_memory: false,
        n_builds: None,
        app: None,
        revision: None,
        is_of_stateful_set: false,
        is_misplaced: false,
    }
}

#[test]
fn a_terminating_pod_may_go_while_a_pods_name_is_learned() {
    let mut going = status("a");
    going.is_going = true;
    let before = ring(&[going.clone(), status("b")]);
    assert!(is_kept(&before, &[status("b")]));
    assert!(is_kept(&before, &[going.clone(), status("b")]));
    assert!(!is_kept(&before, &[going.clone()]));
    assert!(!is_kept(&ring(&[status("a"), status("b")]), &[going, status("b")]));
}

#[test]
fn a_pods_fate_is_told_in_a_sentence() {
    let before = status("d0-a");
    assert_eq!(fate(&before, &[status("d0-b"), status("d0-a")]), None);
    let gone = |now: PodStatus| {
        let Fate { sentence, has_gone, is_out_of_memory } = fate(&before, &[now]).expect("a fate");
        (sentence, has_gone, is_out_of_memory)
    };
    assert_eq!(gone(status("d0-b")), ("was deleted during the build".into(), true, false));
    let evicted = PodStatus { is_running: false, trouble: Some("Evicted (OOMKilled)".into()), ..before.clone() };
    assert_eq!(gone(evicted), ("is not running any more: Evicted (OOMKilled)".into(), true, false));
    let trouble = Some("OOMKilled (exit code 137)".into());
    let restarted = PodStatus { n_restarts: 1, trouble, is_out_of_memory: true, ..before.clone() };
    let sentence = "restarted BuildKit during the build: OOMKilled (exit code 137)";
    assert_eq!(gone(restarted), (sentence.into(), false, true));
    let going = PodStatus { is_going: true, ..before.clone() };
    assert_eq!(gone(going), ("is terminating since the build began".into(), false, false));
    // A new pod of the same name, as a StatefulSet makes them, is another pod.
    assert!(gone(PodStatus { uid: "other".into(), ..before.clone() }).1);
}
