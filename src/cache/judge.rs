//! Decides why the first step of a target that was not cached was not.
//!
//! A cause counts when a step depends on it, and when the steps before it are as they were: then the last build had their
//! results, and only this step's own inputs can make a new key. Where an input is not known, only a change that is known counts.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::compare::{Compared, Difference, compare};
use super::files::{ContextChanges, Copied};
use super::plan::{Entry, Kind, Plan, is_scratch};
use super::record::{LastBuild, MarkedEntry, MarkedStage, Marker};
use super::steps::SeenStep;
use crate::event::{CacheMiss, NotCached};
use crate::name::reference::Reference;
use crate::{bounds, text};

/// Bytes of an instruction, and of a name in the sentence.
const MAX_INSTRUCTION: usize = 300;
const MAX_NAME: usize = 200;

/// What is known of a target's build.
pub struct Facts<'a> {
    /// Makes the hashes of this repository's records.
    pub marker: &'a Marker,
    /// Path of the Dockerfile, unless it is inline.
    pub dockerfile: Option<&'a str>,
    /// What its steps depend on; `None` when it is not understood.
    pub plan: Option<&'a Plan>,
    /// Its steps, in the order of BuildKit's reports.
    pub steps: &'a [SeenStep],
    /// Digests of images, by the references that BuildKit names.
    pub images: &'a BTreeMap<String, String>,
    /// The commit, if there is one.
    pub sha: Option<&'a str>,
    /// The pod, if it is known.
    pub pod: Option<&'a str>,
    /// Whether the builder has pods.
    pub has_pods: bool,
    /// Why this pod.
    pub why_pod: &'a str,
    /// What changed in the context since a commit; `None` when it is not known.
    pub changes: &'a dyn Fn(&str) -> Option<ContextChanges>,
    /// How many comparisons of variables are left for all targets of the build.
    pub effort: &'a Cell<usize>,
}

/// A cause, and the words of the sentence about it.
struct Verdict(CacheMiss, String);

impl Verdict {
    fn not_known() -> Self {
        Self(CacheMiss::NotKnown, "the reason is not known".into())
    }
}

/// The first step that was not cached, and why; `None` when all were. `last`: the last builds, the closest first; `None` when it
/// is not known whether there are any.
pub fn judge(facts: &Facts<'_>, last: Option<&[&LastBuild]>) -> Option<NotCached> {
    let begun: Vec<&SeenStep> = facts.steps.iter().filter(|step| step.state.has_begun()).collect();
    let first = *begun.first()?;
    let located = facts.plan.and_then(|plan| {
        let located = begun.iter().map(|step| Some((locate(plan, step)?, *step))).collect::<Option<Vec<_>>>()?;
        // In the order of the Dockerfile nothing comes before what it depends on.
        let (located, step) = located.into_iter().min_by_key(|(located, _)| located.entry.line)?;
        Some((plan, located, step))
    });
    let Some((plan, Located { stage, number, entry, is_certain }, step)) = located else {
        return Some(facts.sentence(first, None, Verdict::not_known()));
    };
    let verdict = match last {
        _ if plan.is_uncached(stage) => {
            Verdict(CacheMiss::NoCache, "the build was asked not to take it from the cache".into())
        }
        None => Verdict::not_known(),
        Some([]) => Verdict(CacheMiss::FirstBuild, "no earlier build of this target is known".into()),
        Some(last) => {
            let judged = last
                .iter()
                .map(|last| Judged { facts, plan, last, stage, step: entry, is_located: is_certain }.verdict());
            best(judged.collect())
        }
    };
    let (label, total) = (plan.stages[stage].label.clone(), plan.n_steps(stage));
    let total = u32::try_from(total).unwrap_or(u32::MAX);
    let own = SeenStep { label, number, total, ..step.clone() };
    Some(facts.sentence(&own, Some(entry.line), verdict))
}

/// A step of the Dockerfile.
struct Located<'p> {
    stage: usize,
    number: u32,
    entry: &'p Entry,
    /// Whether its stage and numbers are those of the Dockerfile. The triggers of a base image would change them.
    is_certain: bool,
}

/// A build with the same inputs proves more than one with others.
fn best(verdicts: Vec<Verdict>) -> Verdict {
    let rank = |Verdict(miss, _): &Verdict| match miss {
        CacheMiss::Evicted | CacheMiss::OtherPod | CacheMiss::NotFinished => 0,
        CacheMiss::NotKnown => 2,
        _ => 1,
    };
    verdicts.into_iter().min_by_key(rank).unwrap_or_else(Verdict::not_known)
}

/// The instruction of a step that BuildKit has reported; `None` when its name does not fit the Dockerfile.
///
/// A step that targets share may have its stage and numbers from another target's Dockerfile. Then its text decides, if only one
/// step has it.
fn locate<'p>(plan: &'p Plan, seen: &SeenStep) -> Option<Located<'p>> {
    let steps = || {
        let located =
            |stage| plan.steps(stage).map(move |(number, entry)| Located { stage, number, entry, is_certain: true });
        plan.needed().into_iter().flat_map(located)
    };
    let is_there = |step: &Located<'_>| {
        let (label, total) = (&plan.stages[step.stage].label, plan.n_steps(step.stage));
        *label == seen.label && (step.number, total) == (seen.number, seen.total as usize) && shows(step.entry, seen)
    };
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_same = |step: &Located<'_>| {
        let text = format!("{} {}", step.entry.kind.name(), step.entry.text);
        !text.contains('$') && words(&text) == words(&seen.instruction)
    };
    steps().find(is_there).or_else(|| {
        let mut same = steps().filter(is_same);
        let found = same.next().filter(|_| same.next().is_none())?;
        Some(Located { is_certain: false, ..found })
    })
}

/// Whether the step's name may show this instruction: it is the same as far as nothing was expanded, masked or cut.
fn shows(entry: &Entry, seen: &SeenStep) -> bool {
    let (keyword, shown) = seen.instruction.split_once(' ').unwrap_or((&seen.instruction, ""));
    let words = |text: &str| text.split_whitespace().take(4).map(str::to_owned).collect::<Vec<_>>();
    let is_open = |word: &str| word.contains(['$', '*', '…', '\\', '"', '\'']);
    let (own, shown) = (words(entry.text.lines().next().unwrap_or_default()), words(shown));
    keyword == entry.kind.name()
        && own
            .iter()
            .zip(&shown)
            .take_while(|(own, shown)| !is_open(own) && !is_open(shown))
            .all(|(own, shown)| own == shown)
}

impl Plan {
    /// Whether the definition wants nothing of this stage from the cache.
    fn is_uncached(&self, stage: usize) -> bool {
        let is_named = |name: &String| self.stages[stage].is_named(name);
        self.wanted.no_cache || self.wanted.no_cache_stages.iter().any(is_named)
    }
}

/// The comparison with one earlier build.
struct Judged<'a> {
    facts: &'a Facts<'a>,
    plan: &'a Plan,
    last: &'a LastBuild,
    stage: usize,
    step: &'a Entry,
    is_located: bool,
}

impl Judged<'_> {
    fn verdict(&self) -> Verdict {
        self.own_verdict().unwrap_or_else(Verdict::not_known)
    }

    fn own_verdict(&self) -> Option<Verdict> {
        let (facts, last) = (self.facts, self.last);
        let stages = last.stages.as_deref().filter(|_| last.is_of(facts.marker))?;
        let then = chain(stages, self.counterpart(stages, self.stage)?);
        let digest = |entry: &Entry| facts.digest(entry);
        let now = self.plan.chain(self.stage);
        let steps = compare((facts.marker, facts.effort), &digest, &now, &then, Some(self.step.line))?;
        let (own, before) = steps.split_last()?;
        let changes = self.changes();
        let sources = steps.iter().flat_map(|step| &step.now.sources).copied().collect();
        let mut is_certain = self.is_as_before(before, changes.as_ref())?;
        is_certain &= self.are_stages_as_before(stages, sources, changes.as_ref())?;
        if let Some(difference) = own.differences.first() {
            return Some(self.changed(difference, stages));
        }
        let copied = self.copied(own, changes.as_ref());
        if let Some(Copied::Changed { first, n_more, is_more }) = &copied {
            return Some(Verdict(CacheMiss::FilesChanged, files(first, *n_more, *is_more)));
        }
        is_certain &=
            self.is_located && own.is_certain && !self.plan.is_partial && last.setting == facts.setting_mark(self.plan);
        if !is_certain {
            return None;
        }
        if own.was_solved == Some(false) && copied != Some(Copied::Unknown) {
            return Some(Verdict(CacheMiss::NotFinished, "the last build did not finish this step".into()));
        }
        own.was_solved?;
        match (facts.has_pods, last.pod.as_deref(), facts.pod) {
            (false, None, None) => {}
            (true, Some(then), Some(now)) if then == now => {}
            (true, Some(then), Some(now)) if copied != Some(Copied::Unknown) => {
                let why = text::clip(facts.why_pod, MAX_NAME);
                let words = format!("the last build ran on `{then}`, this one on `{now}` ({why})");
                return Some(Verdict(CacheMiss::OtherPod, words));
            }
            _ => return None,
        }
        match copied {
            Some(Copied::Unknown) => None,
            _ => {
                let words = "nothing that it depends on changed, and the builder no longer has its result";
                Some(Verdict(CacheMiss::Evicted, words.into()))
            }
        }
    }

    /// What changed in the context since the last build.
    fn changes(&self) -> Option<ContextChanges> {
        (self.facts.changes)(self.last.sha.as_deref()?)
    }

    /// Whether nothing changed for these steps. `None` when something did: then their results are those of another build.
    fn is_as_before(&self, steps: &[Compared<'_>], changes: Option<&ContextChanges>) -> Option<bool> {
        let mut is_certain = true;
        for step in steps {
            if !step.differences.is_empty() {
                return None;
            }
            is_certain &= step.is_certain && matches!(self.copied(step, changes), None | Some(Copied::Same));
        }
        Some(is_certain)
    }

    /// The same for all steps of the stages that are copied from, and of those below.
    fn are_stages_as_before(
        &self,
        then: &[MarkedStage],
        sources: BTreeSet<usize>,
        changes: Option<&ContextChanges>,
    ) -> Option<bool> {
        let (mut left, mut seen, mut is_certain) = (Vec::from_iter(sources), BTreeSet::new(), true);
        while let Some(stage) = left.pop() {
            if !seen.insert(stage) {
                continue;
            }
            let now = self.plan.chain(stage);
            let then = chain(then, self.counterpart(then, stage)?);
            let digest = |entry: &Entry| self.facts.digest(entry);
            let steps = compare((self.facts.marker, self.facts.effort), &digest, &now, &then, None)?;
            is_certain &= self.is_as_before(&steps, changes)?;
            // Without steps, an image itself is copied from.
            is_certain &= !steps.is_empty();
            left.extend(now.iter().flat_map(|entry| &entry.sources));
        }
        Some(is_certain)
    }

    /// The same stage of the last build: the target, or that of the same name; without a name, that of the same number.
    fn counterpart(&self, then: &[MarkedStage], stage: usize) -> Option<usize> {
        if stage == self.plan.target {
            return Some(self.last.target);
        }
        match &self.plan.stages[stage].name {
            Some(name) => {
                let name = self.facts.marker.mark(name);
                then.iter().rposition(|stage| stage.name == Some(name))
            }
            None => then.get(stage).filter(|stage| stage.name.is_none()).map(|_| stage),
        }
    }

    fn copied(&self, step: &Compared<'_>, changes: Option<&ContextChanges>) -> Option<Copied> {
        let reads = step.now.reads.as_ref()?.expanded(&|name| step.values.get(name).cloned());
        Some(changes.map_or(Copied::Unknown, |changes| reads.copied(changes)))
    }

    fn changed(&self, difference: &Difference, then: &[MarkedStage]) -> Verdict {
        let shown = |name: &str| text::clip(&text::one_line(&text::plain(name)), MAX_NAME).into_owned();
        match difference {
            Difference::Instruction(Some(line), _) if *line == self.step.line => {
                let text = self.facts.marker.mark(&super::record::step_text(self.step));
                let mut entries = then.iter().flat_map(|stage| &stage.entries);
                let was_elsewhere =
                    entries.any(|entry| matches!(entry, MarkedEntry::Step(known, ..) if *known == text));
                let words = match was_elsewhere {
                    true => "other instructions come before it than in the last build",
                    false => "the instruction is new or changed",
                };
                Verdict(CacheMiss::InstructionChanged, words.into())
            }
            Difference::Instruction(Some(line), words) => {
                let words = format!("`{}` (line {line}) before it is new or changed", shown(words));
                Verdict(CacheMiss::InstructionChanged, words)
            }
            Difference::Instruction(None, words) => {
                let words = format!("{words} before it was removed");
                Verdict(CacheMiss::InstructionChanged, words)
            }
            Difference::Argument(name) => {
                Verdict(CacheMiss::ArgumentChanged, format!("the build argument `{}` changed", shown(name)))
            }
            Difference::Base(image) => {
                Verdict(CacheMiss::BaseChanged, format!("the base image `{}` has another digest", shown(image)))
            }
        }
    }
}

/// The entries of a stage of the last build: those of the stages below it come first.
fn chain(stages: &[MarkedStage], stage: usize) -> Vec<&MarkedEntry> {
    let mut all = vec![stage];
    while let Some(base) = all.last().and_then(|stage| stages[*stage].base) {
        all.push(base);
    }
    all.iter().rev().flat_map(|stage| &stages[*stage].entries).collect()
}

/// `vote/app.py` and 3 more files changed.
fn files(first: &str, n_more: usize, is_more: bool) -> String {
    let first = text::one_line(&text::plain(first));
    let first = text::clip(&first, MAX_NAME);
    match (n_more, is_more) {
        (0, false) => format!("`{first}` changed"),
        (0, true) => format!("`{first}` and perhaps more files changed"),
        (1, false) => format!("`{first}` and 1 more file changed"),
        (n, false) => format!("`{first}` and {n} more files changed"),
        (n, true) => format!("`{first}` and at least {n} more changed"),
    }
}

impl Facts<'_> {
    fn sentence(&self, step: &SeenStep, line: Option<u32>, Verdict(cause, words): Verdict) -> NotCached {
        let place = match (self.dockerfile, line) {
            (Some(path), Some(line)) => format!(" ({path}:{line})"),
            (Some(path), None) => format!(" ({path})"),
            (None, Some(line)) => format!(" (line {line})"),
            (None, None) => String::new(),
        };
        let instruction = text::one_line(&step.instruction);
        let title = text::clip(&instruction, MAX_INSTRUCTION);
        let message = format!("`{title}`{place} was not cached: {words}");
        let is_named = self.plan.is_none_or(|plan| {
            let stage = plan.stages.iter().find(|stage| stage.label == step.label);
            stage.is_none_or(|stage| stage.name.is_some())
        });
        NotCached {
            number: step.number,
            total: step.total,
            stage: Some(step.label.clone()).filter(|label| is_named && !label.is_empty()),
            instruction: instruction.clone(),
            dockerfile: self.dockerfile.map(str::to_owned),
            line,
            cause,
            message: text::clip(&message, bounds::NOTICE).into_owned(),
        }
    }

    /// The digest of the image in a FROM.
    fn digest(&self, entry: &Entry) -> Option<String> {
        if entry.kind != Kind::From || is_scratch(entry) {
            return None;
        }
        let value = |name: &str| {
            let variable = entry.variables.iter().find(|variable| variable.name == name)?;
            variable.value().map(str::to_owned)
        };
        let image = entry.text.split_ascii_whitespace().find(|word| !word.starts_with("--"))?;
        self.digest_of(&super::plan::expand(image, &value)?)
    }

    fn digest_of(&self, image: &str) -> Option<String> {
        if let Some((_, digest)) = image.split_once('@') {
            return Some(digest.to_owned());
        }
        self.images.get(&Reference::of(image).to_string()).cloned()
    }

    fn setting_mark(&self, plan: &Plan) -> super::record::Mark {
        self.marker.mark(&self.setting(plan))
    }

    /// What holds for all steps, with the digest of the frontend.
    fn setting(&self, plan: &Plan) -> String {
        let frontend = plan.setting.lines().next().filter(|image| !image.is_empty());
        let digest = frontend.and_then(|image| self.digest_of(image)).unwrap_or_default();
        format!("{}\n{digest}", plan.setting)
    }

    /// What to remember of this build, and the total time of its cached steps when they last ran.
    pub fn to_record(&self, earlier: &[&LastBuild], is_built: bool) -> (LastBuild, Option<Duration>) {
        let digest = |entry: &Entry| self.digest(entry);
        let setting = self.plan.map(|plan| self.setting(plan)).unwrap_or_default();
        let of = [self.sha, self.pod];
        let mut record = LastBuild::new(self.marker, self.plan, &setting, self.steps, &digest, of, is_built);
        let own: Vec<&LastBuild> = earlier.iter().copied().filter(|build| build.is_of(self.marker)).collect();
        let saved = self.plan.and_then(|plan| record.note_times(plan, self.steps, &own));
        (record, saved)
    }
}

#[cfg(test)]
mod tests;
