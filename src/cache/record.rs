//! What is remembered of the last build of a target: its Dockerfile as keyed hashes, so that no text of it can be read.
//!
//! An instruction or an argument may hold a secret, and a reader of Redis could try out short ones. So each text is an HMAC
//! with a key that only workers have.

mod times;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::plan::{Entry, Kind, Plan, Variable};
use super::steps::{SeenStep, StepState};
use crate::bounds;
use crate::secret::Secret;

/// Changes when the form or the meaning of a record changes.
const CONTEXT: &str = "sidebake last build v2";

/// A keyed hash of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Mark(u64);

/// Makes the hashes of one repository.
#[derive(Clone)]
pub struct Marker(Hmac<Sha256>);

impl Marker {
    /// Hashes for a scope with the key of the fleet.
    pub fn new(key: &Secret, scope: &str) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()).expect("a key of any length will do");
        for text in [CONTEXT, scope] {
            mac.update(text.as_bytes());
            mac.update(&[0]);
        }
        Self(mac)
    }

    pub(super) fn mark(&self, text: &str) -> Mark {
        let mut mac = self.0.clone();
        mac.update(text.as_bytes());
        let mut number = [0; 8];
        number.copy_from_slice(&mac.finalize().into_bytes()[..8]);
        // Numbers up to 2^53 are exact in every JSON reader.
        Mark(u64::from_be_bytes(number) >> 11)
    }

    /// Shows that a record was made with the same key.
    fn own(&self) -> Mark {
        self.mark("key")
    }
}

impl std::fmt::Debug for Marker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Marker(***)")
    }
}

/// The last build of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastBuild {
    #[serde(rename = "k")]
    key: Mark,
    /// The commit, if there is one.
    pub sha: Option<String>,
    /// The pod, if it is known.
    pub(super) pod: Option<String>,
    #[serde(rename = "f")]
    pub(super) setting: Mark,
    #[serde(rename = "t")]
    pub(super) target: usize,
    /// `None` when the Dockerfile was not understood, or is too long.
    #[serde(rename = "s")]
    pub(super) stages: Option<Vec<MarkedStage>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MarkedStage {
    #[serde(rename = "n")]
    pub(super) name: Option<Mark>,
    #[serde(rename = "b")]
    pub(super) base: Option<usize>,
    #[serde(rename = "e")]
    pub(super) entries: Vec<MarkedEntry>,
}

/// An instruction: one object with one field, as short as its kind allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum MarkedEntry {
    /// Text, digest of the image, global arguments.
    #[serde(rename = "f")]
    From(Mark, Option<Mark>, Vec<MarkedVariable>),
    /// Text with the keyword, what became of it (null when it is not known), and how many milliseconds it took when it last ran (0 when
    /// it is not known).
    #[serde(rename = "s")]
    Step(Mark, Option<bool>, u32),
    #[serde(rename = "e")]
    Env(Vec<MarkedVariable>),
    #[serde(rename = "a")]
    Arg(Vec<MarkedVariable>),
    #[serde(rename = "u")]
    User(Mark),
    #[serde(rename = "h")]
    Shell(Mark),
}

/// Name, value in the Dockerfile, value in the definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MarkedVariable(pub(super) Mark, pub(super) Option<Mark>, pub(super) Option<Mark>);

/// What the text of a step is, to compare.
///
/// White space between words changes no cache key, except in the command of a shell.
pub(super) fn step_text(entry: &Entry) -> String {
    let is_one_line = !entry.text.contains('\n');
    let text = match entry.kind {
        Kind::Copy | Kind::Add | Kind::Workdir if is_one_line && !entry.text.contains(['"', '\'', '\\']) => {
            entry.text.split_whitespace().collect::<Vec<_>>().join(" ")
        }
        _ => entry.text.clone(),
    };
    format!("{} {text}", entry.kind.name())
}

impl LastBuild {
    /// Whether it was made with this key.
    pub fn is_of(&self, marker: &Marker) -> bool {
        self.key == marker.own()
    }

    /// Reads a record. `None` for a text that is not one.
    pub fn read(text: &[u8]) -> Option<Self> {
        let record: Self = crate::json::read(text).ok().filter(|_| text.len() <= bounds::CACHE_RECORD)?;
        let stages = record.stages.as_deref().unwrap_or_default();
        // A stage is based on an earlier one, and begins with its FROM.
        let is_sound = |(n, stage): (usize, &MarkedStage)| {
            stage.base.is_none_or(|base| base < n) && matches!(stage.entries.first(), Some(MarkedEntry::From(..)))
        };
        let is_whole = record.stages.is_none() || record.target < stages.len();
        (is_whole && stages.iter().enumerate().all(is_sound)).then_some(record)
    }

    /// The record of a build. `digest` knows the digests of images.
    pub(super) fn new(
        marker: &Marker,
        plan: Option<&Plan>,
        setting: &str,
        steps: &[SeenStep],
        digest: &dyn Fn(&Entry) -> Option<String>,
        [sha, pod]: [Option<&str>; 2],
        is_built: bool,
    ) -> Self {
        let needed = plan.map(Plan::needed).unwrap_or_default();
        let stage = |plan: &Plan, n: usize| {
            let stage = &plan.stages[n];
            let becomes = |entry: &Entry| {
                if is_built && needed.contains(&n) {
                    return Some(true);
                }
                let (number, _) = plan.steps(n).find(|(_, step)| step.line == entry.line)?;
                // One for each platform.
                let seen = steps.iter().filter(|step| step.label == stage.label && step.number == number);
                let states: Vec<StepState> = seen.map(|step| step.state).collect();
                let is_done = |state: &StepState| matches!(state, StepState::Cached | StepState::Ran);
                match states.as_slice() {
                    [] => None,
                    states if states.iter().all(is_done) => Some(true),
                    states if states.iter().all(|state| *state == StepState::Failed) => Some(false),
                    _ => None,
                }
            };
            let entries = stage.entries.iter().map(|entry| marked(marker, entry, digest(entry), becomes(entry)));
            let name = stage.name.as_ref().map(|name| marker.mark(name));
            MarkedStage { name, base: stage.base, entries: entries.collect() }
        };
        let stages = plan.map(|plan| (0..plan.stages.len()).map(|n| stage(plan, n)).collect());
        Self {
            key: marker.own(),
            sha: sha.map(str::to_owned),
            pod: pod.map(str::to_owned),
            setting: marker.mark(setting),
            target: plan.map(|plan| plan.target).unwrap_or_default(),
            stages,
        }
    }

    /// As JSON. Without its stages when it would be too long.
    pub fn to_json(&self) -> String {
        let json = |record: &Self| serde_json::to_string(record).expect("a record is plain data");
        let whole = json(self);
        if whole.len() <= bounds::CACHE_RECORD { whole } else { json(&Self { stages: None, ..self.clone() }) }
    }
}

fn marked(marker: &Marker, entry: &Entry, digest: Option<String>, becomes: Option<bool>) -> MarkedEntry {
    let variable = |variable: &Variable| {
        let value = |value: &Option<String>| value.as_ref().map(|value| marker.mark(value));
        MarkedVariable(marker.mark(&variable.name), value(&variable.default), value(&variable.given))
    };
    let variables = || entry.variables.iter().map(variable).collect();
    match entry.kind {
        Kind::From => {
            MarkedEntry::From(marker.mark(&entry.text), digest.map(|digest| marker.mark(&digest)), variables())
        }
        Kind::Env => MarkedEntry::Env(variables()),
        Kind::Arg => MarkedEntry::Arg(variables()),
        Kind::User => MarkedEntry::User(marker.mark(&entry.text)),
        Kind::Shell => MarkedEntry::Shell(marker.mark(&entry.text)),
        Kind::Run | Kind::Copy | Kind::Add | Kind::Workdir => {
            MarkedEntry::Step(marker.mark(&step_text(entry)), becomes, 0)
        }
    }
}
